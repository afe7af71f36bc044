"""The Triton kernels agree with `fused` in the interpreter, and compile to code that keeps to its registers."""

from importlib.util import find_spec

import pytest
import torch
from triton_cases import CASES, run_script

from pipeline.losses import blockwise as module
from pipeline.losses.blockwise import fused
from pipeline.losses.tiekd import TieKdLoss

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton: pip install '.[triton]'")
ROUNDING = {"depth": 1e-6, "kl": 1e-5, "mass": 1e-6, "gradient": 2e-6}
"""More than float32's own share, which the blocks show: depth and gradient relative, KL in nats."""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return run_script("triton_cases.py", "agree", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return run_script("triton_cases.py", "compile", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="0")


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_differ_from_the_blocks_by_rounding_alone(interpreted, name):
    found = interpreted["cases"][name]
    assert found["pixels"] > 0
    assert found["same_kind"]
    assert not found.get("infinite_apart")
    for part, off in found["triton"].items():
        # The interpreter cuts bfloat16 off, a GPU rounds it.
        half = 2**-7 if "bfloat16" in name and part == "gradient" else 0
        assert off <= 2 * found["blocks"][part] + ROUNDING[part] + half, part


@needs_triton
def test_some_divergences_from_bins_ruled_out_are_infinite_and_some_are_not(interpreted):
    found = interpreted["cases"]["logits of minus infinity"]
    assert found["infinite"] > 0
    assert found["pixels"] > 20


@needs_triton
def test_the_same_logits_give_the_same_bits_from_the_kernels(interpreted):
    assert interpreted["twice"]


@needs_triton
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernels_compile_without_spilling_much(compiled, capability):
    assert len(compiled[capability]) == 2 * 2 * 2 * (5 if capability == "90" else 2)  # types, orders, ways, targets
    for name, used in compiled[capability].items():
        assert used["spilled_bytes"] <= 16, (name, used)


@needs_triton
def test_pixels_that_lie_side_by_side_are_read_sixteen_bytes_at_a_time(compiled):
    for name, used in compiled["90"].items():
        if "contiguous" in name:
            assert used["loads_of_16_bytes"] >= 2, (name, used)


def test_a_kernel_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="`loss_kernel=cuda`: expected one of blocks, triton"):
        fused(torch.zeros(1, 3, 2, 2), torch.arange(4.0), kernel="cuda")


def test_triton_without_its_package_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"not installed; run: pip install 'tiekd-pipeline\[triton\]'"):
        fused(torch.zeros(1, 3, 2, 2), torch.arange(4.0), kernel="triton")


@pytest.mark.parametrize(
    ("dtype", "interpret", "match"),
    [
        (torch.float32, "0", "CUDA device, got cpu: use `loss_kernel=blocks`"),
        (torch.float64, "1", "not support float64 logits"),
    ],
)
def test_logits_that_triton_cannot_take_are_refused(monkeypatch, dtype, interpret, match):
    monkeypatch.setattr(module, "find_spec", lambda _: True)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(ValueError, match=match):
        fused(torch.zeros(1, 3, 2, 2, dtype=dtype), torch.arange(4.0), kernel="triton")


@pytest.mark.parametrize(
    ("device", "package", "kernel"), [("cuda", True, "triton"), ("cuda", None, "blocks"), ("cpu", True, "blocks")]
)
def test_the_default_kernel_is_triton_on_a_gpu_that_has_it(monkeypatch, device, package, kernel):
    monkeypatch.setattr(module, "find_spec", lambda _: package)
    loss = TieKdLoss(torch.arange(4.0))
    loss.use_kernel("auto", torch.device(device))
    assert loss.kernel == kernel
    released = TieKdLoss(torch.arange(4.0), kind="released")
    released.use_kernel("auto", torch.device(device))
    assert released.kernel == "blocks"
