"""Teachers that come as files: what goes into a network, what comes out, and every error that a user may see."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.teachers.base import nonfinite_remedy
from pipeline.teachers.files.preprocess import KEYS, parse_normalize
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

pytest.importorskip("ai_edge_litert")
from tiny_networks import make_endless_onnx, make_exported, make_litert, make_onnx, make_torchscript, weighed

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (2, 3, 6, 8), generator=torch.Generator().manual_seed(0)) / 255
IDS = ["a", "b"]
SAID = {"depth_space": "metric_m", "normalise": "unit"}


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def opened(kind, path, device=CPU, **options):
    return open_teacher(f"{kind}:{path}", device=device, options=TeacherOptions(**options))


def depth_of(teacher, images=IMAGES):
    return teacher.predict(images, IDS[: len(images)]).depth


# What is said of a file


def make(kind, folder):
    """A file of a kind that needs `unit`, and the options that it needs beside SAID."""
    if kind == "onnx":
        return make_onnx(folder / "net.onnx"), {}
    if kind == "litert":
        return make_litert(folder / "net.tflite"), {}
    return make_torchscript(folder / "net.pt"), {"trust_code": True}


KINDS = ("onnx", "litert", "torchscript")


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_beside_the_file_says_what_flags_say(tmp_path, kind):
    path, more = make(kind, tmp_path)
    by_flags = opened(kind, path, **SAID, **more, channels="bgr", licence="MIT")
    facts = {**SAID, "channels": "bgr", "licence": "MIT", "metres_per_unit": 1.0}
    path.with_name(path.name + ".json").write_text(json.dumps(facts))
    by_file = opened(kind, path, **more)
    assert by_file.card == by_flags.card
    torch.testing.assert_close(depth_of(by_file), depth_of(by_flags))
    assert opened(kind, path, **SAID, **more).card == by_file.card


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("missing", "parts"),
    [
        ("depth_space", ["depth space is not specified", "`depth_space`", "affine_disparity", ".json"]),
        (
            "normalise",
            ["the normalization of its input is not specified", "imagenet, half", "plausible but wrong depth"],
        ),
    ],
)
def test_what_numbers_mean_and_pixels_are_is_never_guessed(tmp_path, kind, missing, parts):
    path, more = make(kind, tmp_path)
    with refuses(f"teacher {kind}:{path}", *parts):
        opened(kind, path, **more, **{key: value for key, value in SAID.items() if key != missing})


@pytest.mark.parametrize(
    ("facts", "options", "parts"),
    [
        (
            {"depth_space": "affine_depth"},
            {},
            ["`depth_space=metric_m` contradicts", "'affine_depth' in net.onnx.json"],
        ),
        ({"normalise": "half"}, {}, ["`normalise=unit` contradicts", "'half' in", "correct the file"]),
        ({"channels": "bgr"}, {"channels": "rgb"}, ["`channels=rgb`", "'bgr'"]),
        ({"channels": "grey"}, {}, ["channels 'grey'", "rgb or bgr"]),
        ({"output": "a"}, {"output": "b"}, ["`output=b`", "'a'"]),
        ({"input_size": [4, 5]}, {"input_size_px": (5, 4)}, ["`input_size_px=5x4`", "contradicts 4x5"]),
        ({"input_size": "4x5"}, {}, ["input_size '4x5'", "[height, width]"]),
        ({"input_size": [4, True]}, {}, ["input_size [4, True]", "1 to 16384"]),
        ({"input_size": [4, 99999]}, {}, ["input_size [4, 99999]"]),
        ({"metres_per_unit": 0.001}, {"metres_per_unit": 1.0}, ["`metres_per_unit=1.0`", "contradicts 0.001"]),
        ({"metres_per_unit": "yards"}, {}, ["net.onnx.json", "'yards'", "above 0"]),
        ({"licence": ["MIT"]}, {}, ["has licence ['MIT']", "expected text"]),
        ({"normalize": "unit"}, {}, ["has unknown key 'normalize'", "expected", *KEYS]),
        ([1], {}, ["net.onnx.json", "list", "expected an object"]),
    ],
)
def test_words_that_contradict_or_are_none_are_refused(tmp_path, facts, options, parts):
    path = make_onnx(tmp_path / "net.onnx")
    (tmp_path / "net.onnx.json").write_text(json.dumps(facts))
    with refuses(*parts):
        opened("onnx", path, **SAID, **options)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "net.onnx")
    with refuses("net.onnx", "not a regular file"):
        opened("onnx", tmp_path / "net.onnx", **SAID)
    path = make_onnx(tmp_path / "real.onnx")
    os.mkfifo(tmp_path / "real.onnx.json")
    with refuses("real.onnx.json", "not a regular file"):
        opened("onnx", path, **SAID)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_missing_a_folder_or_junk_is_refused(tmp_path, kind):
    options = {**SAID, "trust_code": kind == "torchscript"}
    for name in ("gone", "."):
        with refuses(f"teacher {kind}:{tmp_path / name}", "no such file"):
            opened(kind, tmp_path / name, **options)
    (tmp_path / "empty").touch()
    with refuses("empty has 0 bytes"):
        opened(kind, tmp_path / "empty", **options)
    path, _ = make(kind, tmp_path)
    for name, data in {"junk": b"\x08junk" * 9, "cut": path.read_bytes()[:-40]}.items():
        (tmp_path / name).write_bytes(data)
        with refuses(f"{kind}:{tmp_path / name}", "does not load it", "complete"):
            opened(kind, tmp_path / name, **options)


@pytest.mark.parametrize(
    ("kind", "package", "module"),
    [("onnx", "onnxruntime", "files.onnx"), ("litert", "ai_edge_litert", "files.litert")],
)
def test_a_missing_runtime_is_named_with_the_command_that_installs_it(monkeypatch, kind, package, module):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"pipeline.teachers.{module}", raising=False)
    with refuses(f"{package} is not installed", f"pip install 'tiekd-pipeline[{kind}]'"):
        opened(kind, "x")


# What goes in


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("half", (0.5,) * 3, (0.5,) * 3),
        ("unit", (0,) * 3, (1,) * 3),
        ("bytes", (0,) * 3, (1 / 255,) * 3),
        ("0.1/0.5", (0.1,) * 3, (0.5,) * 3),
        ("0.1,0.2,0.3/0.5", (0.1, 0.2, 0.3), (0.5,) * 3),
        ("0.485,0.456,0.406/0.229,0.224,0.225", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_each_normalisation_gives_the_network_what_its_name_says(tmp_path, text, mean, std):
    teacher = opened("onnx", make_onnx(tmp_path / "net.onnx"), depth_space="affine_depth", normalise=text)
    expected = (IMAGES - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(depth_of(teacher), weighed(expected))
    assert np.allclose((teacher.card.preprocessing["mean"], teacher.card.preprocessing["std"]), (mean, std))


@pytest.mark.parametrize("text", ["", "imagenet2", "0.5", "1/2/3", "0.5,0.5/1", "a/b", "nan/1", "0/inf", "0,0,0,0/1"])
def test_what_is_no_normalisation_is_refused_with_the_names(text):
    with refuses("where", repr(text), "imagenet, half, unit, bytes or MEAN/STD", "0.485"):
        parse_normalize(text, "where")


@pytest.mark.parametrize("text", ["123.675,116.28,103.53/58.395,57.12,57.375", "0.5/0", "0.5/-1", "0/255"])
def test_a_normalisation_of_images_in_0_to_255_is_refused_with_what_to_do(text):
    with refuses(repr(text), "0..1", "divide numbers for 0..255 by 255"):
        parse_normalize(text, "where")


def test_bgr_turns_the_channels_and_keeps_each_colours_own_normalisation(tmp_path):
    path = make_onnx(tmp_path / "net.onnx")
    teacher = opened("onnx", path, depth_space="affine_depth", normalise="0.1,0.2,0.3/0.5", channels="bgr")
    expected = (IMAGES - torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)) / 0.5
    torch.testing.assert_close(depth_of(teacher), weighed(expected.flip(1)))


@pytest.mark.parametrize("shape", [(None, None, None, 3), (1, 6, 8, 3), (1, 3, 6, 8), ("b", 3, 6, None)])
def test_the_layout_and_batch_are_found_from_the_shape(tmp_path, shape):
    teacher = opened("onnx", make_onnx(tmp_path / "net.onnx", shape), **SAID)
    torch.testing.assert_close(depth_of(teacher), weighed(IMAGES))
    assert teacher.card.preprocessing["layout"] == ("NHWC" if shape[-1] == 3 else "NCHW")


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((1, 3, 6, 3), ["(1, 3, 6, 3)", "may be N,3,H,W or N,H,W,3"]),
        ((1, None, 6, 8), ["(1, any, 6, 8)", "neither", "python:module:factory"]),
        ((1, 1, 6, 8), ["(1, 1, 6, 8)", "neither"]),
        ((4, 3, 6, 8), ["batch size is 4", "batch size of 1"]),
        ((1, 3, 99999, 99999), ["99999x99999 px", "at most 33554432 pixels"]),
    ],
)
def test_an_input_that_is_no_image_or_may_be_two_is_refused(tmp_path, shape, parts):
    with refuses("net.onnx: ", *parts):
        opened("onnx", make_onnx(tmp_path / "net.onnx", shape), **SAID)


def test_a_network_of_two_inputs_is_refused_with_their_names(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "rays"], ["depth"])],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 4, 4)) for name in ("image", "rays")],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with refuses("the inputs image (1, 3, 4, 4), rays (1, 3, 4, 4)", "one image"):
        opened("onnx", tmp_path / "net.onnx", **SAID)


def resized(size):
    return torch.nn.functional.interpolate(IMAGES, size, mode="bilinear", antialias=True)


def test_a_size_that_the_file_fixes_is_made_from_every_view(tmp_path):
    teacher = opened("onnx", make_onnx(tmp_path / "net.onnx", (1, 3, 3, 4)), **SAID, input_size_px=(3, 4))
    torch.testing.assert_close(depth_of(teacher), weighed(resized((3, 4))))
    assert teacher.card.preprocessing["input_size_px"] == [3, 4]
    with refuses("its input is 3x4 px, which contradicts `input_size_px=4x3`", "omit it"):
        opened("onnx", tmp_path / "net.onnx", **SAID, input_size_px=(4, 3))


def test_a_file_of_any_size_takes_the_asked_one_or_the_views(tmp_path):
    path = make_onnx(tmp_path / "net.onnx")
    asked, own = opened("onnx", path, **SAID, input_size_px=(12, 5)), opened("onnx", path, **SAID)
    torch.testing.assert_close(depth_of(asked), weighed(resized((12, 5))))
    assert depth_of(own).shape == (2, 6, 8)
    assert (asked.card.preprocessing["input_size_px"], own.card.preprocessing["input_size_px"]) == ([12, 5], None)


def test_half_precision_and_byte_inputs_are_made_as_the_file_wants_them(tmp_path):
    half = opened("onnx", make_onnx(tmp_path / "half.onnx", dtype=np.float16), **SAID)
    torch.testing.assert_close(depth_of(half), weighed(IMAGES.half().float()))
    path = make_onnx(tmp_path / "bytes.onnx", dtype=np.uint8)
    whole = opened("onnx", path, depth_space="metric_m", normalise="bytes")
    torch.testing.assert_close(depth_of(whole), weighed((IMAGES * 255).round()))
    with refuses("uint8 without a scale", "`normalise=bytes`"):
        opened("onnx", path, **SAID)


def test_a_network_that_cannot_run_on_a_size_says_which_and_what_to_change(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[2, 1, 4, 4]),
        helper.make_node("Reshape", ["sum", "shape"], ["depth"]),
    ]
    teacher = opened("onnx", make_onnx(tmp_path / "net.onnx", after=nodes), **SAID)
    with refuses("does not run on an input of (2, 3, 6, 8)", "`input_size_px`", "`view`"):
        depth_of(teacher)


def reshaped(shape):
    return [
        helper.make_node("Constant", [], ["shape"], value_ints=shape),
        helper.make_node("Reshape", ["sum", "shape"], ["depth"]),
    ]


def first_of_batch():
    ends = [helper.make_node("Constant", [], [name], value_ints=[at]) for name, at in (("begin", 0), ("end", 1))]
    return [*ends, helper.make_node("Slice", ["sum", "begin", "end", "begin"], ["depth"])]


@pytest.mark.parametrize("nodes", [reshaped([1, 6, 8]), first_of_batch()], ids=["does not run", "gives one map"])
def test_a_graph_that_was_exported_for_a_batch_of_one_is_run_one_by_one(tmp_path, nodes):
    teacher = opened("onnx", make_onnx(tmp_path / "net.onnx", after=nodes), **SAID)
    torch.testing.assert_close(depth_of(teacher), weighed(IMAGES))
    torch.testing.assert_close(depth_of(teacher), weighed(IMAGES))


def test_a_network_that_was_traced_on_a_gpu_is_not_told_to_take_another_size(tmp_path):
    teacher = opened("onnx", make_onnx(tmp_path / "net.onnx"), **SAID)

    def run(_):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two, cuda:0 and cpu!")

    teacher._run = run
    with refuses("names a device other than cpu: give `device`"):
        depth_of(teacher)


def test_overflow_of_float16_in_a_file_does_not_ask_for_a_flag_that_files_lack(tmp_path):
    cast = helper.make_node("Cast", ["sum"], ["depth"], to=TensorProto.FLOAT16)
    path = make_onnx(tmp_path / "net.onnx", after=[cast], output_type=TensorProto.FLOAT16)
    card = opened("onnx", path, **SAID).card
    assert card.precision == "float16"
    assert "--precision" not in nonfinite_remedy(card)
    assert "as float32" in nonfinite_remedy(card)


def test_all_flags_that_a_uint8_file_lacks_are_named_at_once(tmp_path):
    cast = helper.make_node("Cast", ["sum"], ["depth"], to=TensorProto.UINT8)
    path = make_onnx(tmp_path / "net.onnx", dtype=np.uint8, after=[cast], output_type=TensorProto.UINT8)
    with refuses("give `depth_space` (metric_m", "`normalise=bytes`", "`metres_per_unit`", "net.onnx.json"):
        opened("onnx", path)
    with refuses("`normalise=bytes`", "`metres_per_unit`"):
        opened("onnx", path, depth_space="metric_m")
    assert opened("onnx", path, depth_space="metric_m", normalise="bytes", metres_per_unit=0.1)


def test_all_flags_that_other_files_lack_are_named_at_once(tmp_path):
    with refuses("`depth_space`", "`normalise` (imagenet"):
        opened("torchscript", make_torchscript(tmp_path / "net.pt"), trust_code=True)
    with refuses("`depth_space`", "`normalise` (imagenet", "`output` (depth0, depth1)"):
        opened("litert", make_litert(tmp_path / "net.tflite", outputs=2))


@pytest.mark.slow
def test_a_graph_that_never_ends_shows_life_and_can_be_interrupted(tmp_path):
    make_endless_onnx(tmp_path / "net.onnx")
    scenes = fakes.make_scenes_folder(tmp_path / "scenes", 6, (16, 32))
    command = [
        str(Path(sys.executable).with_name("pipeline")),
        "cache-teacher",
        "--source",
        f"scenes:{scenes}",
        "--split",
        "all",
    ]
    command += ["--teacher", "onnx:net.onnx", "--depth-space", "metric_m", "--normalise", "unit", "--bins", "nyu"]
    command += ["--sigma-m", "0.2", "--out", "s.zarr"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert "waits: teacher 100 %" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        rest = run.stderr.read()
        assert run.wait() == 130, rest
    assert "run the same command again" in rest
    assert "Traceback" not in rest


# What comes out


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Squeeze", ["sum"], ["depth"]),
        helper.make_node("Identity", ["sum"], ["depth"]),
        helper.make_node("Transpose", ["sum"], ["depth"], perm=[0, 2, 3, 1]),
    ],
    ids=["B h w", "B 1 h w", "B h w 1"],
)
@pytest.mark.parametrize("batch", [1, "b"])
def test_an_output_with_or_without_an_axis_of_one_is_depth(tmp_path, node, batch):
    teacher = opened("onnx", make_onnx(tmp_path / "net.onnx", (batch, 3, 6, 8), after=[node]), **SAID)
    torch.testing.assert_close(depth_of(teacher), weighed(IMAGES))  # with a batch of 1, squeezed to (h, w)


def test_an_output_that_is_no_depth_is_refused_with_its_shape(tmp_path):
    nodes = [helper.make_node("Concat", ["sum", "sum"], ["depth"], axis=1)]
    teacher = opened("onnx", make_onnx(tmp_path / "net.onnx", after=nodes), **SAID)
    with refuses("output depth is float32 (2, 2, 6, 8) for 2 images", "(2, 1, h, w)", "`output`"):
        depth_of(teacher)


def test_several_outputs_are_listed_until_one_is_chosen(tmp_path):
    path = make_onnx(tmp_path / "net.onnx", outputs=("depth", "doubt"))
    with refuses("outputs depth (", "doubt (", "`output`"):
        opened("onnx", path, **SAID)
    with refuses("no output 'sky', only"):
        opened("onnx", path, **SAID, output="sky")
    teacher = opened("onnx", path, **SAID, output="doubt")
    assert teacher.card.preprocessing["output"] == "doubt"
    torch.testing.assert_close(depth_of(teacher), weighed(IMAGES))


def whole_numbers(path, space="metric_m", **options):
    """A network that gives millimetres as int32, 0 in the left half."""
    nodes = [
        helper.make_node("Constant", [], ["scale"], value_floats=[1000.0]),
        helper.make_node("Mul", ["sum", "scale"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["depth"], to=TensorProto.INT32),
    ]
    make_onnx(path, after=nodes, output_type=TensorProto.INT32)
    return opened("onnx", path, depth_space=space, normalise="unit", **options)


def test_whole_metres_need_a_scale_and_0_is_no_value(tmp_path):
    with refuses("its output is int32", "`metres_per_unit`", "0.001"):
        whole_numbers(tmp_path / "net.onnx")
    images = IMAGES.clone()
    images[..., :4] = 0
    teacher = whole_numbers(tmp_path / "net.onnx", metres_per_unit=0.001)
    depth = depth_of(teacher, images)
    assert teacher.card.precision == "int32"
    assert depth[..., :4].isnan().all()
    assert (depth - weighed(images))[..., 4:].abs().max() < 0.0011


def test_relative_whole_numbers_need_no_scale_and_keep_their_0(tmp_path):
    depth = depth_of(whole_numbers(tmp_path / "net.onnx", "affine_disparity"), IMAGES * 0)
    assert (depth == 0).all()


def test_a_scale_makes_metres_of_a_float_output_and_means_nothing_to_a_relative_one(tmp_path):
    path = make_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(depth_of(opened("onnx", path, **SAID, metres_per_unit=10.0)), 10 * weighed(IMAGES))
    with refuses("10 metres per unit", "affine_disparity", "omit the scale"):
        opened("onnx", path, depth_space="affine_disparity", normalise="unit", metres_per_unit=10.0)


# ONNX


def test_the_card_of_an_onnx_file_says_all_that_decides_its_depth(tmp_path):
    path = make_onnx(tmp_path / "net.onnx")
    card = opened("onnx", path, **SAID, licence="MIT").card
    assert (card.kind, card.name, card.depth_space, card.licence) == ("onnx", "net.onnx", "metric_m", "MIT")
    assert (card.precision, card.weights_sha256) == ("float32", sha256(path.read_bytes()).hexdigest())
    assert card.preprocessing == {
        "channels": "rgb",
        "input_size_px": None,
        "input_type": "float32",
        "layout": "NCHW",
        "mean": [0.0] * 3,
        "metres_per_unit": 1.0,
        "output": "depth",
        "resize": "bilinear, antialias",
        "std": [1.0] * 3,
    }


def test_weights_in_a_file_beside_are_read_and_are_a_part_of_the_digest(tmp_path):
    path = make_onnx(tmp_path / "net.onnx", outside="net.bin")
    teacher = opened("onnx", path, **SAID)
    torch.testing.assert_close(depth_of(teacher), weighed(IMAGES))
    weights = np.frombuffer((tmp_path / "net.bin").read_bytes(), np.float32)
    (tmp_path / "net.bin").write_bytes((2 * weights).tobytes())
    other = opened("onnx", path, **SAID)
    torch.testing.assert_close(depth_of(other), 2 * weighed(IMAGES))
    assert other.card.weights_sha256 != teacher.card.weights_sha256


def test_a_cache_of_links_into_one_folder_is_read(tmp_path):
    make_onnx(tmp_path / "net.onnx", outside="net.bin")
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    for name in ("net.onnx", "net.bin"):
        shutil.move(tmp_path / name, tmp_path / "blobs" / f"digest-of-{name}")
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/digest-of-{name}")
    torch.testing.assert_close(depth_of(opened("onnx", tmp_path / "snapshot/net.onnx", **SAID)), weighed(IMAGES))


@pytest.mark.parametrize("location", ["../net.bin", "/etc/hostname", "sub/../net.bin", "./net.bin", "link.bin", "a\\b"])
def test_weights_that_do_not_lie_beside_the_file_are_refused(tmp_path, location):
    import onnx

    (tmp_path / "net.bin").write_bytes(bytes(12))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.bin").symlink_to(tmp_path / "net.bin")
    path = make_onnx(tmp_path / "in/net.onnx", outside="net.bin")
    model = onnx.load(path, load_external_data=False)
    (entry,) = [entry for entry in model.graph.initializer[0].external_data if entry.key == "location"]
    entry.value = location
    path.write_bytes(model.SerializeToString())
    with refuses("its external weights", "are outside its folder", "export it"):
        opened("onnx", path, **SAID)


def test_a_tensor_that_names_two_files_of_weights_is_refused(tmp_path):
    import onnx

    path = make_onnx(tmp_path / "net.onnx", outside="net.bin")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="/etc/hostname")
    path.write_bytes(model.SerializeToString())
    with refuses("tensor 'weights' names 2 files"):
        opened("onnx", path, **SAID)


def test_weights_inside_a_branch_of_the_network_are_found_too(tmp_path):
    import onnx
    from onnx import numpy_helper

    inner = numpy_helper.from_array(np.ones(1, np.float32), "inner")
    inner.ClearField("raw_data")
    inner.data_location = TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="/etc/hostname")
    branch = helper.make_graph(
        [helper.make_node("Mul", ["sum", "inner"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [inner],
    )
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(1, bool))),
        helper.make_node("If", ["yes"], ["depth"], then_branch=branch, else_branch=branch),
    ]
    path = make_onnx(tmp_path / "net.onnx", after=nodes)
    assert onnx.load(path, load_external_data=False)
    with refuses("its external weights '/etc/hostname'"):
        opened("onnx", path, **SAID)


def test_a_gpu_that_this_onnxruntime_cannot_use_is_refused_with_what_to_install(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it can")
    with refuses("`device=cuda`", "CPUExecutionProvider", "onnxruntime-gpu", "`device=cpu`"):
        opened("onnx", make_onnx(tmp_path / "net.onnx"), torch.device("cuda"), **SAID)


def test_a_student_of_ours_teaches_with_no_flags_at_all(tmp_path):
    from pipeline.deploy.onnx_model import metadata
    from pipeline.sources.view import View
    from pipeline.teachers.base import VIEW

    facts = metadata({"student": "lean"}, [1, 2, 4], "ab" * 32, View.parse("full,resize:6x8"))
    path = make_onnx(tmp_path / "student.onnx", outputs=("depth_m", "low_m"), metadata=facts)
    (tmp_path / "student.onnx.json").write_text('{"parity": "what export-student measured"}')
    teacher = opened("onnx", path)
    torch.testing.assert_close(depth_of(teacher), weighed(IMAGES))
    assert (teacher.card.name, teacher.card.depth_space) == ("lean", "metric_m")
    assert teacher.card.preprocessing[VIEW] == "full,resize:6x8"
    with refuses("`normalise=imagenet` contradicts 'unit' in its metadata"):
        opened("onnx", path, normalise="imagenet")


def test_an_interrupted_store_of_an_onnx_teacher_ends_in_the_same_bytes(tmp_path):
    from tiny_stores import folder_bytes

    from pipeline.cache.plan import CacheOptions
    from pipeline.cache.run import cache_teacher
    from pipeline.sources.registry import open_source

    ids = [f"a/{number:03d}" for number in range(5)]
    source = open_source(f"folder:{fakes.make_folder(tmp_path / 'images', ids)}")
    path = make_onnx(tmp_path / "net.onnx")
    options = CacheOptions(samples_per_shard=2, batch_size=2, bins="nyu", sigma_m=0.2)

    def cache(name, step):
        teacher = opened("onnx", path, **SAID)
        return cache_teacher(source, "all", teacher, tmp_path / name, options, fakes.StopAt(step))

    cache("whole.zarr", None)
    with pytest.raises(KeyboardInterrupt):
        cache("cut.zarr", 4)
    assert cache("cut.zarr", None).samples_before >= 2
    assert folder_bytes(tmp_path / "whole.zarr") == folder_bytes(tmp_path / "cut.zarr")


# LiteRT


def test_a_float_litert_file_runs_image_by_image(tmp_path):
    teacher = opened("litert", make_litert(tmp_path / "net.tflite"), **SAID)
    torch.testing.assert_close(depth_of(teacher), IMAGES.mean(1))
    assert (teacher.card.precision, teacher.card.preprocessing["input_size_px"]) == ("float32", [6, 8])


@pytest.mark.parametrize(("dtype", "least"), [(np.uint8, 0), (np.int8, -128)])
@pytest.mark.parametrize(("normalise", "given"), [("half", 2 / 255), ("unit", 1 / 255), (None, 1 / 255), (None, 1.0)])
def test_a_quantised_litert_file_is_fed_and_read_by_its_own_scale(tmp_path, dtype, least, normalise, given):
    zero = least + 128 if normalise == "half" else least
    unit = 255.0 if given == 1.0 else 1.0
    gives = (unit * 0.02, zero)
    path = make_litert(tmp_path / "net.tflite", dtype=dtype, given=(given, zero), gives=gives)
    teacher = opened("litert", path, depth_space="affine_depth", normalise=normalise)
    expected = unit * (2 * IMAGES - 1 if normalise == "half" else IMAGES).mean(1)
    assert (depth_of(teacher) - expected).abs().max() <= 0.6 * gives[0] + given / 2
    assert teacher.card.precision == np.dtype(dtype).name
    assert teacher.card.preprocessing["output_scale"] == pytest.approx(gives[0])


def test_a_quantised_input_whose_range_is_no_custom_needs_its_normalisation_said(tmp_path):
    path = make_litert(tmp_path / "net.tflite", dtype=np.uint8, given=(0.0187, 113), gives=(0.02, 0))
    with refuses("the normalization of its input is not specified"):
        opened("litert", path, depth_space="metric_m")


def test_0_of_a_quantised_metric_output_is_no_depth(tmp_path):
    path = make_litert(tmp_path / "net.tflite", dtype=np.uint8, given=(1 / 255, 0), gives=(0.02, 0))
    images = IMAGES.clone()
    images[..., :4] = 0
    for space, none in (("metric_m", True), ("scale_invariant", True), ("affine_disparity", False)):
        depth = depth_of(opened("litert", path, depth_space=space), images)
        assert bool(depth[..., :4].isnan().all()) == none
        assert bool((depth[..., :4] == 0).all()) != none
        assert depth[..., 4:].isfinite().all()


def test_a_litert_file_of_any_size_takes_that_of_the_view(tmp_path):
    path = make_litert(tmp_path / "net.tflite", (1, 1, 1, 3), signature=(-1, -1, -1))
    teacher = opened("litert", path, **SAID)
    torch.testing.assert_close(depth_of(teacher), IMAGES.mean(1))
    torch.testing.assert_close(depth_of(teacher, IMAGES[:, :, :3]), IMAGES[:, :, :3].mean(1))


def test_a_litert_file_of_several_outputs_lists_them(tmp_path):
    path = make_litert(tmp_path / "net.tflite", outputs=2)
    with refuses("outputs depth0 (1, 6, 8, 1), depth1 (1, 6, 8, 1)", "`output`"):
        opened("litert", path, **SAID)
    torch.testing.assert_close(depth_of(opened("litert", path, **SAID, output="depth1")), IMAGES.mean(1))


def test_a_gpu_is_refused_for_litert(tmp_path):
    with refuses("`device=cuda`", "use `device=cpu`"):
        opened("litert", make_litert(tmp_path / "net.tflite"), torch.device("cuda"), **SAID)


# TorchScript and torch.export


def test_a_file_with_code_is_not_loaded_before_its_maker_is_trusted(tmp_path, monkeypatch):
    path = make_torchscript(tmp_path / "net.pt")
    monkeypatch.setattr(torch.jit, "load", None)
    monkeypatch.setattr(torch.export, "load", None)
    shutil.copy(path, tmp_path / "net.pt2")
    for name in ("net.pt", "net.pt2"):
        with refuses("is a program", "your permissions", "`trust_code`", "ONNX"):
            opened("torchscript", tmp_path / name, **SAID)


@pytest.mark.filterwarnings("error::DeprecationWarning:torch")
@pytest.mark.parametrize(("form", "output"), [("tensor", None), ("tensor", "0"), ("tuple", "1"), ("dict", "depth")])
def test_torchscript_gives_its_tensor_or_the_one_of_a_tuple_or_dict(tmp_path, form, output):
    path = make_torchscript(tmp_path / "net.pt", form)
    teacher = opened("torchscript", path, **SAID, trust_code=True, output=output)
    torch.testing.assert_close(depth_of(teacher), weighed(IMAGES))
    assert teacher.card.weights_sha256 == sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("form", "listed"), [("tuple", "0 (2, 3, 6, 8), 1 (2, 1, 6, 8)"), ("dict", "depth (2, 1, 6, 8)")]
)
def test_torchscript_of_several_outputs_lists_them(tmp_path, form, listed):
    path = make_torchscript(tmp_path / "net.pt", form)
    for output in (None, "7"):
        teacher = opened("torchscript", path, **SAID, trust_code=True, output=output)
        with refuses(listed, "`output`"):
            depth_of(teacher)


@pytest.mark.parametrize("output", [1, "1"])
def test_the_place_of_an_output_may_be_written_as_a_number(tmp_path, output):
    path = make_torchscript(tmp_path / "net.pt", "tuple")
    (tmp_path / "net.pt.json").write_text(json.dumps({**SAID, "output": output}))
    torch.testing.assert_close(depth_of(opened("torchscript", path, trust_code=True)), weighed(IMAGES))


def test_an_exported_program_runs_at_the_size_that_it_fixes(tmp_path):
    path = make_exported(tmp_path / "net.pt2", (1, 3, 3, 4), fixed=True)
    teacher = opened("torchscript", path, **SAID, trust_code=True)
    torch.testing.assert_close(depth_of(teacher), weighed(resized((3, 4))))
    assert teacher.card.preprocessing["input_size_px"] == [3, 4]


# Real data


@pytest.mark.realdata
class TestFastDepth:
    """../shared/data/README.md: about 0.30 as it is and 0.21 median-scaled, over the whole video."""

    def test_its_own_scale_gives_metres_and_its_accuracy_is_known(self, real):
        from pipeline.sources.registry import open_source
        from pipeline.sources.view import View

        source = open_source(f"folder:{real / 'indoor'}")
        teacher = opened("litert", real / "teachers/fast_depth_224.tflite", depth_space="metric_m")
        assert teacher.card.preprocessing["output_scale"] == pytest.approx(0.0717, abs=1e-5)
        view, errors = View.parse("center:328x438"), []
        for sample in source.samples("all")[::20]:
            image = torch.from_numpy(view.of_image(source.read_image(sample)[0])).permute(2, 0, 1)[None] / 255
            depth = depth_of(teacher, image)
            truth_m = source.read_truth_m(sample)
            truth_m = view.of_depth(truth_m, truth_m.shape)
            assert torch.unique(depth[depth.isfinite()] / 0.0717).numel() <= 255
            depth_m = torch.nn.functional.interpolate(depth.nan_to_num()[:, None], truth_m.shape, mode="bilinear")
            there = (truth_m > 1e-3) & (truth_m < 10)
            found, true = depth_m[0, 0].numpy()[there], truth_m[there]
            scaled = found * np.median(true) / np.median(found)
            errors.append([np.mean(np.abs(one - true) / true) for one in (found, scaled)])
        assert np.mean(errors, axis=0) == pytest.approx((0.3225, 0.2230), abs=0.003)
