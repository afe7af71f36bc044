"""Network files that give confidence and sky besides depth, by the names of their outputs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.errors import OptionError
from pipeline.teachers.files.output_names import parse_outputs
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

pytest.importorskip("ai_edge_litert")
from tiny_networks import make_litert, make_onnx, make_torchscript, weighed

IMAGES = torch.randint(0, 256, (2, 3, 6, 8), generator=torch.Generator().manual_seed(0)) / 255
IDS = ["a", "b"]
SAID = {"depth_space": "metric_m", "normalise": "unit"}


def refuses(*parts):
    """Expect a ValueError whose message has all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def opened(spec, **options):
    return open_teacher(spec, device=torch.device("cpu"), options=TeacherOptions(**SAID, **options))


@pytest.fixture
def onnx(tmp_path):
    """An ONNX file with depth `z`, its sigmoid `conf`, that with swapped axes, and `logits` outside of 0..1."""
    after = [
        helper.make_node("Identity", ["sum"], ["z"]),
        helper.make_node("Sigmoid", ["sum"], ["conf"]),
        helper.make_node("Neg", ["sum"], ["logits"]),
        helper.make_node("Transpose", ["conf"], ["turned"], perm=[0, 1, 3, 2]),
    ]
    return make_onnx(tmp_path / "net.onnx", after=after, outputs=("z", "conf", "logits", "turned"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, {}),
        ("z", {"depth": "z"}),
        ("a,b", {"depth": "a,b"}),  # names of outputs are free
        ("scale=2", {"depth": "scale=2"}),
        ("depth=z", {"depth": "z"}),
        ("sky=s,depth=z,confidence=c=1", {"sky": "s", "depth": "z", "confidence": "c=1"}),
    ],
)
def test_outputs_are_named_by_field_and_a_name_alone_is_depth(text, names):
    assert parse_outputs(text) == names


@pytest.mark.parametrize("text", ["depth=", "depth=z,depth=y", "depth=z,normals=n", "depth=z,confidence", "sky=s,"])
def test_other_text_is_refused_with_the_form(text):
    with pytest.raises(OptionError, match="expected the name of the depth output, or depth=NAME,confidence=NAME"):
        parse_outputs(text)


def test_an_onnx_file_gives_the_outputs_that_are_named(onnx):
    output = opened(f"onnx:{onnx}", output="depth=z,confidence=conf").predict(IMAGES, IDS)
    torch.testing.assert_close(output.depth, weighed(IMAGES))
    torch.testing.assert_close(output.confidence, weighed(IMAGES).sigmoid())
    assert output.sky is None


def test_the_old_form_names_the_depth_alone(onnx):
    output = opened(f"onnx:{onnx}", output="z").predict(IMAGES, IDS)
    torch.testing.assert_close(output.depth, weighed(IMAGES))
    assert output.confidence is None


def test_the_metadata_may_name_the_depth_and_the_option_a_signal(onnx):
    onnx.with_name("net.onnx.json").write_text(json.dumps({"output": "z"}))
    assert opened(f"onnx:{onnx}", output="confidence=conf").predict(IMAGES, IDS).confidence is not None
    with refuses("`output=conf` contradicts 'z' in net.onnx.json"):
        opened(f"onnx:{onnx}", output="depth=conf")


def test_the_card_names_the_outputs_of_signals_and_is_unchanged_without(onnx):
    with_signal = opened(f"onnx:{onnx}", output="depth=z,confidence=conf").card.preprocessing
    without = opened(f"onnx:{onnx}", output="z").card.preprocessing
    assert with_signal == {**without, "signals": {"confidence": "conf"}}


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("depth=z,sky=s", ["no output 's', only z", "conf", "select the sky with `output`"]),
        ("confidence=conf", ["has the outputs z", "select the depth"]),
    ],
)
def test_an_output_that_is_not_there_is_refused_with_those_that_are(onnx, output, parts):
    with refuses(*parts):
        opened(f"onnx:{onnx}", output=output)


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        (
            "depth=z,confidence=logits",
            ["output logits returned confidence with 384 of 384 values outside 0..1", "sigmoid"],
        ),
        ("depth=z,sky=turned", ["output turned returned sky of 32x6 px for 6x32 px", "transpose"]),
    ],
)
def test_an_output_that_is_no_signal_is_refused(onnx, output, parts):
    teacher = opened(f"onnx:{onnx}", output=output)
    with refuses(*parts):
        teacher.predict(IMAGES.repeat(1, 1, 1, 4), IDS)


def test_a_mask_of_truth_values_is_a_signal(tmp_path):
    after = [
        helper.make_node("Identity", ["sum"], ["z"]),
        helper.make_node("IsNaN", ["sum"], ["nan"]),
        helper.make_node("Not", ["nan"], ["sky"]),
    ]
    path = make_onnx(tmp_path / "net.onnx", after=after, outputs=("z",))
    import onnx as library

    model = library.load(path)
    model.graph.output.append(helper.make_tensor_value_info("sky", TensorProto.BOOL, None))
    library.save(model, path)
    assert torch.equal(opened(f"onnx:{path}", output="depth=z,sky=sky").predict(IMAGES, IDS).sky, torch.ones(2, 6, 8))


def test_a_file_that_runs_image_by_image_gives_the_signals_of_all(tmp_path):
    after = [helper.make_node("Identity", ["sum"], ["z"]), helper.make_node("Sigmoid", ["sum"], ["conf"])]
    path = make_onnx(tmp_path / "net.onnx", (1, 3, 6, 8), after=after, outputs=("z", "conf"))
    output = opened(f"onnx:{path}", output="depth=z,confidence=conf").predict(IMAGES, IDS)
    torch.testing.assert_close(output.confidence, weighed(IMAGES).sigmoid())


def test_torchscript_gives_the_keys_of_its_dict(tmp_path):
    path = make_torchscript(tmp_path / "net.pt", "signals")
    teacher = opened(f"torchscript:{path}", output="depth=depth,confidence=conf,sky=sky", trust_code=True)
    output = teacher.predict(IMAGES, IDS)
    torch.testing.assert_close(output.depth, weighed(IMAGES))
    torch.testing.assert_close(output.confidence, 1 - weighed(IMAGES))
    torch.testing.assert_close(output.sky, weighed(IMAGES) / 2)


def test_torchscript_gives_the_places_of_its_tuple(tmp_path):
    path = make_torchscript(tmp_path / "net.pt", "tuple")
    output = opened(f"torchscript:{path}", output="depth=1,sky=1", trust_code=True).predict(IMAGES, IDS)
    torch.testing.assert_close(output.sky, weighed(IMAGES))


def test_a_quantized_litert_file_gives_its_signal_by_its_scale(tmp_path):
    scale = (1 / 255, -128)
    path = make_litert(tmp_path / "net.tflite", dtype=np.int8, given=scale, gives=scale, outputs=2)
    output = opened(f"litert:{path}", output="depth=depth0,confidence=depth1").predict(IMAGES, IDS)
    torch.testing.assert_close(output.confidence, IMAGES.mean(1), atol=1 / 255, rtol=0)
    torch.testing.assert_close(output.confidence, output.depth.nan_to_num(0.0))
