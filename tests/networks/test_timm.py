"""`timm:NAME` students, with a stand-in for the package; and with timm itself where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from pipeline.networks.pretrained import load_encoder_weights
from pipeline.networks.registry import build_student, check_student


class Info:
    """timm's `feature_info`."""

    def __init__(self, widths, strides):
        self.widths, self.strides = widths, strides

    def channels(self):
        return self.widths

    def reduction(self):
        return self.strides


class Pyramid(nn.Module):
    """Feature maps at strides 1, 2, 4 ... as asked; names have `_` where the whole network has `.`."""

    def __init__(self, strides, widths, kind):
        super().__init__()
        self.kind, self.feature_info = kind, Info(widths, strides)
        for number, (width, out) in enumerate(zip((3, *widths), widths, strict=False)):
            step = strides[number] // (strides[number - 1] if number else 1)
            self.add_module(f"stages_{number}", nn.Conv2d(width, out, 3, max(step, 1), padding=1))

    def forward(self, images):
        assert self.kind != "square" or images.shape[2:] == (224, 224), f"Input height ({images.shape[2]})"
        outputs, x = [], images
        for stage in self.children():
            x = stage(x)
            outputs.append(x.permute(0, 2, 3, 1) if self.kind == "last" else x)
        return outputs


class Whole(nn.Module):
    """The classifier that a pyramid is a part of."""

    def __init__(self, strides, widths):
        super().__init__()
        self.stages = nn.ModuleList(Pyramid(strides, widths, "").children())
        self.head = nn.Linear(widths[-1], 10)


NETWORKS = {
    "tiny": ((4, 8, 16), (4, 6, 8), ""),
    "tiny_from_half": ((2, 4, 8, 16, 32), (4, 4, 6, 6, 8), ""),
    "tiny_from_whole": ((1, 2, 4, 8), (4, 4, 6, 8), ""),
    "flat": ((16, 16, 16), (4, 4, 4), ""),
    "short": ((4, 8), (4, 4), ""),
    "square": ((4, 8, 16), (4, 6, 8), "square"),
    "last": ((4, 8, 16), (4, 6, 8), "last"),
    "huge": ((4, 8, 16), (4, 4000, 4000), ""),
}


def create_model(name, *, pretrained, features_only=False):
    assert not pretrained
    strides, widths, kind = NETWORKS[name.split(".")[0]]
    return Pyramid(strides, widths, kind) if features_only else Whole(strides, widths)


@pytest.fixture
def timm(monkeypatch):
    fake = types.ModuleType("timm")
    fake.__version__ = "0.0"
    fake.is_model = lambda name: name.split(".")[0] in NETWORKS
    fake.list_models = lambda: sorted(NETWORKS)
    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("size", [(64, 96), (47, 70), (33, 40)])
@pytest.mark.parametrize("name", ["tiny", "tiny_from_half", "tiny_from_whole", "tiny.some_tag"])
def test_a_timm_student_gives_logits_at_half_the_resolution_rounded_up(name, size):
    student = build_student(f"timm:{name}", 5)
    assert (student.name, student.bin_count) == (f"timm:{name}", 5)
    logits = student.eval()(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, (size[0] + 1) // 2, (size[1] + 1) // 2)


@pytest.mark.usefixtures("timm")
def test_feature_maps_at_full_resolution_are_left_out():
    encoder = build_student("timm:tiny_from_whole", 5).encoder
    assert encoder.strides == (2, 4, 8)
    assert encoder.widths == (4, 6, 8)
    assert [tuple(x.shape[1:]) for x in encoder(torch.randn(1, 3, 32, 32))] == [(4, 16, 16), (6, 8, 8), (8, 4, 4)]


@pytest.mark.usefixtures("timm")
def test_an_unknown_network_is_refused_with_names_that_are_close():
    with pytest.raises(
        ValueError, match=r"timm:tiny_from_hall: timm 0\.0 has no such model; did you mean tiny_from_half"
    ):
        build_student("timm:tiny_from_hall", 5)
    with pytest.raises(ValueError, match="has no such model; see timm.list_models"):
        build_student("timm:qqqqqqqq", 5)


def test_a_name_that_makes_timm_fetch_or_read_something_is_never_passed_on(timm):
    timm.is_model = lambda name: pytest.fail(f"timm was asked for {name}")
    for name in ("hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp/x", "../x", "tiny\n"):
        with pytest.raises(ValueError, match="has no such model"):
            build_student(f"timm:{name}", 5)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("flat", "of 4x6x10, 4x6x10, 4x6x10 for an image of 90x150 px, expected .* pyramid"),
        ("short", "expected .* pyramid"),
        ("last", "channels first. of 23x38x4"),
        (
            "square",
            r"no feature maps for an image of 90x150 px \(Input height \(90\)\): expected a network that accepts",
        ),
        ("huge", "144 M parameters, expected at most 100 M"),
    ],
)
def test_a_network_without_usable_feature_maps_is_refused(name, pattern):
    with pytest.raises(ValueError, match=pattern):
        build_student(f"timm:{name}", 5)


@pytest.mark.usefixtures("timm")
def test_weights_of_the_whole_network_are_loaded_under_the_pyramids_names_and_all_must_fit(tmp_path):
    student = build_student("timm:tiny", 5)
    state = create_model("tiny", pretrained=False).state_dict()
    torch.save(state, tmp_path / "tiny.bin")
    load_encoder_weights(student, tmp_path / "tiny.bin")
    assert torch.equal(student.encoder.net.stages_1.weight, state["stages.1.weight"])
    torch.save({**state, "bogus.weight": torch.ones(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match="expected the state dict of timm's tiny; unexpected 1: bogus.weight"):
        load_encoder_weights(student, tmp_path / "more.pth")
    del state["stages.2.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError, match="missing 1: net.stages_2.bias"):
        load_encoder_weights(student, tmp_path / "less.pth")


def test_without_timm_one_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    check_student("timm:resnet18")
    with pytest.raises(
        ValueError, match=r"the package timm is not installed; run: pip install 'tiekd-pipeline\[timm\]'"
    ):
        build_student("timm:resnet18", 5)


def test_a_torchvision_of_another_torch_is_one_error_that_says_so(monkeypatch, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"nms does not exist\): it needs the torchvision that matches torch"):
        build_student("timm:resnet18", 5)


def test_nothing_imports_timm_unless_asked():
    code = (
        "import sys, pipeline.train.run, pipeline.evaluation.run, pipeline.networks.pretrained as p\n"
        "from pipeline.networks.registry import build_student\n"
        "build_student('mobilenetv2-lean', 4)\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('timm', 'torchvision') or m.endswith('timm_encoder')]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def real_timm():
    """timm imports torchvision, whose operators a CPU build of torch lacks; their schemas are enough to import it."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    library = torch.library.Library("torchvision", "DEF")  # its definitions go when it does
    try:
        found = importlib.import_module("timm")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] in {"timm", "torchvision"}]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        found = importlib.import_module("timm")
    yield found
    del library


@pytest.mark.parametrize(
    ("name", "strides"), [("mobilenetv3_small_050", (2, 4, 8, 16, 32)), ("convnext_atto.d2_in1k", (4, 8, 16, 32))]
)
def test_real_networks_of_timm_become_students_and_load_their_own_weights(real_timm, tmp_path, name, strides):
    student = build_student(f"timm:{name}", 5)
    assert student.encoder.strides == strides
    whole = real_timm.create_model(name, pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    load_encoder_weights(student, tmp_path / "weights.pth")
    images = torch.randn(1, 3, 64, 96)
    student.eval(), whole.eval()
    with torch.no_grad():
        assert student(images).shape == (1, 5, 32, 48)
        theirs = whole.forward_intermediates(images, intermediates_only=True)
        ours = student.encoder(images)
    assert len(ours) == len(strides)
    for one, other in zip(ours[:-1], theirs[-len(ours) : -1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("real_timm")
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("vit_tiny_patch16_224", "takes every size"),
        ("swin_tiny_patch4_window7_224", "takes every size"),
        ("convnext_xlarge", "expected at most 100 M"),
        ("mobilenetv3_large_10", "did you mean .*mobilenetv3_large_100"),
    ],
)
def test_real_networks_of_timm_that_cannot_serve_are_refused(name, pattern):
    with pytest.raises(ValueError, match=pattern):
        build_student(f"timm:{name}", 5)
