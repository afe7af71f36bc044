"""Weights as torchvision writes them, and files that are something else, into the encoders of students."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile

import pytest
import safetensors.torch
import torch

from pipeline.networks.encoders import MobileNetV2, ResNet
from pipeline.networks.pretrained import load_encoder_weights
from pipeline.networks.registry import STUDENTS, WITH_ENCODER, build_student


def norm(name, width):
    found = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return found | {f"{name}.num_batches_tracked": ()}


def resnet_layout(depth):
    """Names and shapes of torchvision's `resnet18` and `resnet50`."""
    counts, basic = {18: ((2, 2, 2, 2), True), 50: ((3, 4, 6, 3), False)}[depth]
    found = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    width = 64
    for stage, count in enumerate(counts):
        inner = 64 << stage
        out = inner if basic else 4 * inner
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            convs = [(inner, width, 3), (inner, inner, 3)]
            if not basic:
                convs = [(inner, width, 1), (inner, inner, 3), (out, inner, 1)]
            for number, (wide, narrow, kernel) in enumerate(convs, 1):
                found[f"{name}.conv{number}.weight"] = (wide, narrow, kernel, kernel)
                found |= norm(f"{name}.bn{number}", wide)
            if block == 0 and (stage > 0 or not basic):
                found[f"{name}.downsample.0.weight"] = (out, width, 1, 1)
                found |= norm(f"{name}.downsample.1", out)
            width = out
    return found | {"fc.weight": (1000, width), "fc.bias": (1000,)}


def mobilenet_layout():
    """Names and shapes of torchvision's `mobilenet_v2`."""
    found = {"features.0.0.weight": (32, 3, 3, 3), **norm("features.0.1", 32)}
    width, number = 32, 1
    for expansion, out, count in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(count):
            inner, part = width * expansion, 0
            if expansion > 1:
                found[f"features.{number}.conv.0.0.weight"] = (inner, width, 1, 1)
                found |= norm(f"features.{number}.conv.0.1", inner)
                part = 1
            found[f"features.{number}.conv.{part}.0.weight"] = (inner, 1, 3, 3)
            found |= norm(f"features.{number}.conv.{part}.1", inner)
            found[f"features.{number}.conv.{part + 1}.weight"] = (out, inner, 1, 1)
            found |= norm(f"features.{number}.conv.{part + 2}", out)
            width, number = out, number + 1
    found |= {"features.18.0.weight": (1280, 320, 1, 1), **norm("features.18.1", 1280)}
    return found | {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


LAYOUTS = {
    "mobilenetv2": mobilenet_layout,
    "mobilenetv2-lean": mobilenet_layout,
    "resnet18": lambda: resnet_layout(18),
    "resnet18-lean": lambda: resnet_layout(18),
    "resnet50": lambda: resnet_layout(50),
}


def state_of(layout):
    """Random values; the classifier, which is dropped, takes no memory."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(7)
        if name.endswith("num_batches_tracked")
        else torch.zeros(1).expand(shape)
        if name.startswith(("fc.", "classifier."))
        else torch.rand(shape, generator=generator)
        for name, shape in layout.items()
    }


class Holder:
    """A student with an encoder and no decoder, which would take longer to build than a test should."""

    def __init__(self, encoder, name="resnet18"):
        self.name, self.encoder = name, encoder


def resnet18_with(tmp_path, change, name="weights.pth"):
    state = state_of(resnet_layout(18))
    torch.save(change(state) or state, tmp_path / name)
    return Holder(ResNet(18)), tmp_path / name


@pytest.mark.parametrize(("layout", "entries"), [(mobilenet_layout, 314), (LAYOUTS["resnet18"], 122)])
def test_the_layouts_here_have_as_many_entries_as_torchvisions(layout, entries):
    assert len(layout()) == entries


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_an_encoder_has_the_names_and_shapes_of_torchvision_and_no_others(name):
    with torch.device("meta"):
        encoder = build_student(name, 4).encoder
    layout = {
        key: shape
        for key, shape in LAYOUTS[name]().items()
        if not key.startswith(("fc.", "classifier.", "features.18."))
    }
    assert {key: tuple(value.shape) for key, value in encoder.state_dict().items()} == layout


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("make", [lambda: MobileNetV2(dilated=False), lambda: ResNet(18)])
def test_a_file_of_torchvisions_weights_is_loaded_whole_and_its_sha256_comes_back(tmp_path, make, suffix):
    encoder = make()
    state = state_of(mobilenet_layout() if isinstance(encoder, MobileNetV2) else resnet_layout(18))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    assert load_encoder_weights(Holder(encoder), path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_weights_of_half_precision_in_the_layout_before_torch_1_6_without_counters_are_loaded(tmp_path):
    state = {
        name: value.half()
        for name, value in state_of(resnet_layout(18)).items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    encoder = ResNet(18)
    load_encoder_weights(Holder(encoder), tmp_path / "old.pth")
    assert torch.equal(encoder.layer3[1].conv2.weight, state["layer3.1.conv2.weight"].float())
    assert int(encoder.bn1.num_batches_tracked) == 0


def test_the_same_weights_serve_the_paper_student_and_its_lean_brother():
    with torch.device("meta"):
        for name in ("mobilenetv2", "resnet18"):
            paper, lean = (build_student(one, 4).encoder.state_dict() for one in (name, f"{name}-lean"))
            assert {key: value.shape for key, value in paper.items()} == {key: v.shape for key, v in lean.items()}


def test_weights_of_another_network_are_refused_with_a_few_of_the_names_that_do_not_fit(tmp_path):
    torch.save(state_of(resnet_layout(18)), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="expected the state dict of torchvision's MobileNetV2") as caught:
        load_encoder_weights(Holder(MobileNetV2(dilated=False)), tmp_path / "resnet18.pth")
    text = str(caught.value)
    assert "missing 255: features.0.0.weight, features.0.1.weight, features.0.1.bias, ..." in text
    assert "unexpected 120: conv1.weight, " in text
    assert len(text) < 500
    torch.save(state_of(resnet_layout(50)), tmp_path / "resnet50.pth")
    with pytest.raises(ValueError, match="wrong shape 23: layer1.0.conv1.weight of 64x64x1x1 instead of 64x64x3x3, "):
        load_encoder_weights(Holder(ResNet(18)), tmp_path / "resnet50.pth")


def test_one_name_too_few_or_too_many_is_refused_and_the_encoder_left_as_it_was(tmp_path):
    for change, pattern in (
        (lambda state: state.pop("layer2.0.bn1.bias") is None, "missing 1: layer2.0.bn1.bias"),
        (lambda state: state.update(bogus=torch.ones(1)), "unexpected 1: bogus"),
    ):
        student, path = resnet18_with(tmp_path, change)
        before = student.encoder.conv1.weight.clone()
        with pytest.raises(ValueError, match=pattern):
            load_encoder_weights(student, path)
        assert torch.equal(student.encoder.conv1.weight, before)


def test_a_student_without_an_encoder_is_told_which_have_one():
    with pytest.raises(
        ValueError, match="'lean' has no pretrained encoder: use mobilenetv2, .*resnet18-lean or timm:NAME"
    ):
        load_encoder_weights(build_student("lean", 4), None)


def test_the_students_that_are_said_to_have_an_encoder_are_those_that_have_one():
    with torch.device("meta"):
        assert tuple(name for name in STUDENTS if build_student(name, 4).encoder is not None) == WITH_ENCODER


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors"])
def test_an_absent_file_is_named_with_what_was_expected(tmp_path, name):
    with pytest.raises(ValueError, match="No such file or directory; expected a file of torchvision's ResNet-18"):
        load_encoder_weights(Holder(ResNet(18)), tmp_path / name)


def test_a_folder_a_pipe_and_an_unknown_suffix_are_refused(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "weights.h5").write_bytes(b"x")
    for name, pattern in (
        ("folder.pth", "Is a directory"),
        ("pipe.pth", "not a regular file"),
        ("weights.h5", "ending in .pth, .pt, .bin or .safetensors"),
    ):
        with pytest.raises(ValueError, match=pattern):
            load_encoder_weights(Holder(ResNet(18)), tmp_path / name)


class Code:
    """A pickle of it would make a folder on loading."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_the_code_not_run(tmp_path, zipped):
    torch.save({"conv1.weight": Code(tmp_path / "made")}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="does not load without executing code") as caught:
        load_encoder_weights(Holder(ResNet(18)), tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_holds_its_state_dict_under_a_name_and_other_things_are_refused(tmp_path):
    for held, pattern in (
        ({"epoch": 3, "state_dict": {"conv1.weight": torch.ones(1)}}, "'epoch' is a int, expected only tensors"),
        ([torch.ones(1)], "contains a list, expected a state dict"),
        ({3: torch.ones(1)}, "contains a dict, expected a state dict"),
        ({"conv1.weight": torch.ones(3).to_sparse()}, "torch.sparse_coo"),
        ({"conv1.weight": torch.empty(64, 3, 7, 7, device="meta")}, "on meta"),
    ):
        torch.save(held, tmp_path / "held.pth")
        with pytest.raises(ValueError, match=pattern):
            load_encoder_weights(Holder(ResNet(18)), tmp_path / "held.pth")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    student, path = resnet18_with(tmp_path, lambda state: state["bn1.bias"].fill_(float("nan")) is None)
    with pytest.raises(ValueError, match="bn1.bias has values that are not finite"):
        load_encoder_weights(student, path)


def test_damaged_files_are_one_clear_error(tmp_path):
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7)}, buffer)
    whole = buffer.getvalue()
    for number, data in enumerate((b"", b"hello" * 9, whole[:-200], whole[:3000], b"\x80\x02" + whole)):
        for suffix in (".pth", ".safetensors"):
            path = tmp_path / f"damaged{number}{suffix}"
            path.write_bytes(data)
            with pytest.raises(ValueError, match=path.name):
                load_encoder_weights(Holder(ResNet(18)), path)


def test_a_torch_file_that_would_unfold_in_memory_is_refused_before_it_does(tmp_path):
    with zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deflated/data/0", bytes(2**20))
    with zipfile.ZipFile(tmp_path / "lists.pth", "w") as archive:
        archive.writestr("lists/data.pkl", b"\x80\x02" + b"]" * 2**20 + b".")
    (tmp_path / "old.pth").write_bytes(b"\x80\x02" + b"]" * 2**20 + b".")
    for name, pattern in (
        ("deflated", "uncompressed"),
        ("lists", "pickle of at most 1048576 bytes"),
        ("old", "pickle of over 1048576 bytes"),
    ):
        with pytest.raises(ValueError, match=pattern):
            load_encoder_weights(Holder(ResNet(18)), tmp_path / f"{name}.pth")


@pytest.mark.parametrize("name", ["huge.pth", "huge.safetensors"])
def test_a_file_larger_than_any_weights_is_not_read(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**29 + 1)
    with pytest.raises(ValueError, match="at most 536870912"):
        load_encoder_weights(Holder(ResNet(18)), tmp_path / name)
