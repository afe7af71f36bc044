"""What a `python:` teacher returns besides depth: confidence, sky, intrinsics and features, and what is refused."""

from __future__ import annotations

import math
import re

import fakes
import pytest
import torch

from pipeline.teachers.base import TeacherOutput
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
IDS = ["a", "b"]
DEPTH = torch.full((2, 8, 12), 3.0)
HALF = torch.full((2, 4, 6), 0.5)
K = torch.tensor([[10.0, 11, 5.5, 3.5], [20, 21, 5, 4]])
LAYERS = {"low": torch.ones(2, 5, 4, 6), "deep": torch.zeros(2, 7, 2, 3)}


def refuses(*parts):
    """Expect a ValueError whose message has all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture
def predicted(monkeypatch):
    """Predict with a teacher that returns the given objects, one a batch; gives the last output."""

    def predict(*returned, preprocessing=None, **options):
        answers = list(returned)

        def model(_):
            return answers.pop(0)

        model.card = {"name": "mine", "depth_space": "metric_m", "preprocessing": preprocessing or {}}
        monkeypatch.setattr(fakes, "made_by_test", lambda: model, raising=False)
        device = torch.device("cpu")
        teacher = open_teacher("python:fakes:made_by_test", device=device, options=TeacherOptions(**options))
        return [teacher.predict(IMAGES, IDS) for _ in returned][-1]

    return predict


def matrices(rows):
    matrix = torch.zeros(len(rows), 3, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2] = rows.unbind(1)
    matrix[:, 2, 2] = 1
    return matrix


def test_a_dict_gives_every_field_as_it_is(predicted):
    returned = {"depth": DEPTH, "confidence": HALF, "sky": HALF / 2, "intrinsics_px": K, "features": LAYERS}
    output = predicted(returned, features=("low", "deep"))
    assert torch.equal(output.depth, DEPTH)
    assert torch.equal(output.confidence, HALF)
    assert torch.equal(output.sky, HALF / 2)
    assert torch.equal(output.intrinsics_px, K)
    assert {layer: values.shape for layer, values in output.features.items()} == {
        "low": (2, 5, 4, 6),
        "deep": (2, 7, 2, 3),
    }
    assert (output.dpm, output.bin_edges_m) == (None, None)


def test_a_teacher_output_gives_the_same_as_a_dict(predicted):
    output = predicted(TeacherOutput(DEPTH, confidence=HALF, intrinsics_px=K))
    assert torch.equal(output.confidence, HALF)
    assert torch.equal(output.intrinsics_px, K)


def test_all_numbers_become_float32(predicted):
    returned = {
        "depth": DEPTH,
        "confidence": HALF.half(),
        "intrinsics_px": K.double(),
        "features": {"a": HALF[:, None].half()},
    }
    output = predicted(returned, features=("a",))
    assert {output.confidence.dtype, output.intrinsics_px.dtype, output.features["a"].dtype} == {torch.float32}


def test_a_signal_may_have_an_axis_of_one_channel(predicted):
    assert torch.equal(predicted({"depth": DEPTH, "sky": HALF[:, None]}).sky, HALF)


def test_intrinsics_may_be_matrices(predicted):
    assert torch.equal(predicted({"depth": DEPTH, "intrinsics_px": matrices(K)}).intrinsics_px, K)


def test_unknown_intrinsics_stay_nan(predicted):
    unknown = torch.tensor([[math.nan] * 4, [10, 10, math.nan, math.nan]])
    torch.testing.assert_close(
        predicted({"depth": DEPTH, "intrinsics_px": unknown}).intrinsics_px, unknown, equal_nan=True
    )


def test_only_the_layers_that_are_asked_for_are_given(predicted):
    returned = {"depth": DEPTH, "features": LAYERS}
    assert list(predicted(returned, features=("deep",)).features) == ["deep"]
    assert predicted(returned).features is None


def test_a_key_whose_value_is_none_is_not_given(predicted):
    assert predicted({"depth": DEPTH, "confidence": None, "features": None}).confidence is None


@pytest.mark.parametrize(
    ("returned", "parts"),
    [
        ({"depth": DEPTH, "conf": HALF}, ["unknown key 'conf'", "depth, dpm, bin_edges_m, confidence, sky"]),
        ({"confidence": HALF}, ["{confidence: Tensor (2, 4, 6) torch.float32}", "a dict with the key depth"]),
        ({"depth": DEPTH, "confidence": 0.5}, ["confidence float '0.5'", "(2, a, b) or (2, 1, a, b)"]),
        ({"depth": DEPTH, "sky": HALF > 0}, ["sky Tensor (2, 4, 6) torch.bool", "of a float type in 0..1"]),
        ({"depth": DEPTH, "sky": HALF[:1]}, ["sky Tensor (1, 4, 6)", "(2, a, b)"]),
        ({"depth": DEPTH, "confidence": HALF[:, None].expand(2, 2, 4, 6)}, ["confidence Tensor (2, 2, 4, 6)"]),
        ({"depth": DEPTH, "confidence": HALF.mT}, ["confidence of 6x4 px for 8x12 px", "transpose"]),
        ({"depth": DEPTH, "confidence": HALF * 4}, ["48 of 48 values", "from 2 to 2, 0 NaN", "apply a sigmoid"]),
        (
            {"depth": DEPTH, "sky": HALF.clone().index_fill_(2, torch.tensor([0]), math.nan)},
            ["sky with 8 of 48 values", "from 0.5 to 0.5, 8 NaN", "apply a sigmoid"],
        ),
        ({"depth": DEPTH, "confidence": -HALF}, ["from -0.5 to -0.5", "exp(-u)"]),
        ({"depth": DEPTH, "intrinsics_px": K[:, :3]}, ["intrinsics_px Tensor (2, 3)", "(2, 4)", "(2, 3, 3)"]),
        ({"depth": DEPTH, "intrinsics_px": K.int()}, ["intrinsics_px Tensor (2, 4) torch.int32", "float type"]),
        ({"depth": DEPTH, "intrinsics_px": -K}, ["(-10, -11, -5.5, -3.5)", "8x12 px", "at least 0.6 and 0.4 px"]),
        ({"depth": DEPTH, "intrinsics_px": K / 100}, ["(0.1, 0.11,", "multiply normalized intrinsics by the width"]),
        ({"depth": DEPTH, "intrinsics_px": K * math.inf}, ["(inf, inf, inf, inf)", "NaN where unknown"]),
        ({"depth": DEPTH, "intrinsics_px": matrices(K) * 2}, ["[0, 0, 1]]", "divide by the last entry"]),
        ({"depth": DEPTH, "intrinsics_px": matrices(K).mT}, ["[0, fy, cy]"]),
    ],
)
def test_a_field_that_is_not_what_its_name_says_is_refused(predicted, returned, parts):
    with refuses("teacher 'mine' returned", *parts):
        predicted(returned)


@pytest.mark.parametrize(
    ("features", "parts"),
    [
        (None, ["returned features NoneType", "`features=low`", '"features", a dict']),
        (LAYERS["low"], ["returned features Tensor (2, 5, 4, 6)", "a dict of layer"]),
        ({"deep": LAYERS["deep"], "x": LAYERS["deep"]}, ["no layer 'low'", "among deep, x"]),
        ({"low": HALF}, ["features of layer 'low' Tensor (2, 4, 6)", "(2, D, a, b)"]),
        ({"low": LAYERS["low"].long()}, ["features of layer 'low' Tensor", "of a float type"]),
        ({"low": LAYERS["low"].mT}, ["returned features of layer 'low' of 6x4 px"]),
        ({"low": LAYERS["low"] * math.nan}, ["'low' with 240 of 240 values NaN or infinite"]),
    ],
)
def test_features_that_are_missing_or_none_are_refused(predicted, features, parts):
    with refuses("teacher 'mine'", *parts):
        predicted({"depth": DEPTH, "features": features}, features=("low",))


def test_a_layer_whose_name_could_be_a_path_is_refused(predicted):
    with refuses("features of layer '../low'", "letters, digits"):
        predicted({"depth": DEPTH, "features": {"../low": LAYERS["low"]}}, features=("../low",))


@pytest.mark.parametrize(
    ("second", "given"),
    [
        ({"depth": DEPTH}, "depth for images a, b, and depth, confidence before"),
        ({"depth": DEPTH, "confidence": HALF, "sky": HALF}, "depth, confidence, sky for images a, b"),
    ],
)
def test_a_batch_with_other_fields_than_the_first_is_refused(predicted, second, given):
    first = {"depth": DEPTH, "confidence": HALF}
    predicted(first, first)
    with refuses(f"teacher 'mine' returned {given}", "the same for every image"):
        predicted(first, second)


def test_a_layer_of_another_width_than_in_the_first_batch_is_refused(predicted):
    first, second = ({"depth": DEPTH, "features": {"low": torch.ones(2, width, 4, 6)}} for width in (5, 6))
    with refuses("depth, low with 6 channels", "low with 5 channels before"):
        predicted(first, second, features=("low",))


def test_a_signal_over_a_resized_view_is_taken_if_the_card_says_so(predicted):
    wide = {"depth": torch.ones(2, 6, 24), "confidence": torch.ones(2, 3, 12)}
    assert predicted(wide, preprocessing={"input_size_px": [6, 24]}).confidence.shape == (2, 3, 12)
    with refuses("returned confidence of 3x12 px for 8x12 px"):
        predicted({**wide, "depth": DEPTH})
