"""Compares the selection of sparse maps on a device with the CPU encoder; test_selection.py runs it in fresh processes.

    TRITON_INTERPRET=1 python tests/support/select_cases.py agree
    python tests/support/select_cases.py compile

`agree` runs the kernel in Triton's interpreter and prints JSON: for each case the planes, the pixels that were left to
the CPU, and whether all codes are the same. `compile` compiles without a GPU and prints registers and spills.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import fakes
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_stores import folder_bytes, make_spec

from pipeline.cache import selection
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.sources.registry import open_source
from pipeline.store.format.sparse import TRUNCATION_FRACTION
from pipeline.store.write.encode import compress, encode_sample
from pipeline.teachers.base import TeacherOutput

KL_TOLERANCE_NATS = 1e-6
"""The CPU takes the logarithm of decoded probabilities in float32."""


def maps_of(bins, shape, seed, scale=3.0):
    """Return a map (K, h, w) with flat, certain, partly equal and invalid pixels among random ones."""
    logits = np.random.default_rng(seed).normal(0, scale, (bins, *shape)).astype(np.float32)
    dpm = torch.softmax(torch.from_numpy(logits), 0).numpy()
    odd = dpm.reshape(bins, -1)[:, :4]
    odd[:, :1] = np.nan
    odd[:, 1:2] = 1 / bins
    odd[:, 2:] = 0
    odd[bins // 2, 2:3] = 1
    equal = min(max(bins // 2, 2), 40)
    odd[:equal, 3:] = np.float32(1 / equal)
    return dpm


def compare(dpm, max_kl_nats, weight_bits):
    """Encode a map both ways. Returns planes, pixels left to the CPU, and None or the first difference."""
    bins = len(dpm)
    spec, _ = make_spec("sparse", bin_edges=tuple(np.linspace(0.5, 40, bins + 1).tolist()), max_dpm_kl=max_kl_nats)
    assert spec.weight_bits == weight_bits, (spec.weight_bits, weight_bits)
    depth_m = np.full(dpm.shape[1:], 3, np.float32)
    depth_m[0, 0] = np.nan
    output = TeacherOutput(torch.from_numpy(depth_m)[None], torch.from_numpy(dpm.copy())[None])
    (selected,) = selection.Selector(spec).select(output)
    uncertain = int(selected.maps.uncertain.sum())
    part = selected.get(may_lack_values=True)
    expected = encode_sample(spec, depth_m, dpm.copy())
    if part is None:
        return None, uncertain, "left to the CPU"
    found = compress(spec, part.residual, part.stored, part.row)
    for name, chunks in expected.chunks.items():
        if found.chunks[name] != chunks:
            return expected.row["dpm_planes"], uncertain, name
    for name, value in expected.row.items():
        if abs(found.row[name] - value) > (KL_TOLERANCE_NATS if name.endswith("kl_nats") else 0):
            return expected.row["dpm_planes"], uncertain, f"{name}: {found.row[name]} instead of {value}"
    return expected.row["dpm_planes"], uncertain, None


def at_the_budget():
    """Return a map with a pixel for which dropping one bin costs the budget to the last bit, and that budget."""
    dpm = maps_of(8, (12, 12), 3)
    pixel = np.array([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.0078125], np.float32)
    dpm[:, 5, 5] = pixel
    rest = pixel[4:].astype(np.float64)
    cost = float((rest * np.log(rest)).sum() - rest.sum() * np.log(rest.sum() / 4))
    return dpm, cost / TRUNCATION_FRACTION


def agree():
    """Report every case."""
    selection.DEVICES.add("cpu")
    report = {}
    for bins, max_kl_nats, bits in [(2, 0.01, 8), (7, 0.01, 8), (64, 0.01, 8), (64, 1e-4, 16), (257, 0.02, 8)]:
        scale = 3.0 if bins < 100 else 6.0
        name = f"{bins} bins{' of 16 bits' if bits == 16 else ''}"
        report[name] = compare(maps_of(bins, (5, 7), bins, scale), max_kl_nats, bits)
    dpm, budget = at_the_budget()
    report["at the budget"] = compare(dpm, budget, 8)
    report["more planes than room"] = compare(maps_of(200, (4, 4), 0, 0.5), 0.01, 8)
    negative = maps_of(8, (4, 4), 0)
    negative[:2, 3, 3] += np.array([-2, 2], np.float32)
    try:
        report["negative"] = compare(negative, 0.01, 8)
    except ValueError as error:
        report["negative"] = str(error)

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 5.0, 30.0]), st.floats(0.008, 0.3))
    def random_maps(bins, seed, scale, max_kl_nats):
        assert compare(maps_of(bins, (3, 5), seed, scale), max_kl_nats, 8)[2] is None

    random_maps()
    with tempfile.TemporaryDirectory() as folder:
        report["stores"] = stores(Path(folder))
    return report


def stores(folder):
    """Return whether stores of a teacher, selected on a device and by the CPU, have the same chunks."""
    source = open_source(f"scenes:{fakes.make_scenes_folder(folder / 'scenes', 5, (24, 32))}")
    same = {}
    for kind in ("gaussian", "sparse"):
        bins = {"bins": "nyu", "sigma_m": 0.2} if kind == "gaussian" else {}
        options = CacheOptions(samples_per_shard=2, batch_size=2, dpm=kind, accept_noise=True, **bins)
        for name, devices in {"cpu": set(), "device": {"cpu"}}.items():
            selection.DEVICES.clear()
            selection.DEVICES.update(devices)
            teacher = fakes.FakeTeacher(scale=2, with_dpm=kind == "sparse")
            cache_teacher(source, "all", teacher, folder / f"{name}-{kind}.zarr", options)
        by_cpu, on_device = (folder_bytes(folder / f"{name}-{kind}.zarr") for name in ("cpu", "device"))
        # Columns of divergences may differ in their last digits, and so may what has their checksums.
        own = {path for path in by_cpu if kind == "sparse" and not path.startswith(("depth/", "dpm/"))}
        same[kind] = by_cpu.keys() == on_device.keys() and all(
            by_cpu[path] == on_device[path] for path in by_cpu.keys() - own
        )
    return same


def compiled():
    """Return registers and spilled bytes, by compute capability and number of bins."""
    from triton.backends.compiler import GPUTarget
    from triton.knobs import nvidia
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction
    from triton_cases import NoGpu, resources

    from pipeline.store.write.select_triton import select

    launch, made = JITFunction.run, []
    JITFunction.run = lambda *args, **kwargs: made.append(launch(*args, **{**kwargs, "warmup": True}))
    report = {}
    for capability in (80, 90):
        driver.set_active(NoGpu(GPUTarget("cuda", capability, 32)))
        for bins in (64, 257):
            select(torch.rand(1, bins, 16, 32), 0.01, 8, 64)
            report[f"{capability}, {bins} bins"] = resources(nvidia.cuobjdump.path, made.pop())
    JITFunction.run = launch
    return report


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.stdout.write(json.dumps(agree() if sys.argv[1] == "agree" else compiled()))
