"""A run as a teacher gives the outputs of its encoder, by stride."""

from __future__ import annotations

import json
import re

import pytest
import torch

from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import CONFIG, WEIGHTS, load_run, normalize, save_weights
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
IDS = ["a", "b"]


@pytest.fixture
def saved(tmp_path):
    """Save a run of a student with random weights."""

    def save(student):
        torch.manual_seed(0)
        save_weights(build_student(student, 4), tmp_path / WEIGHTS)
        (tmp_path / CONFIG).write_text(json.dumps({"student": student, "bin_edges_m": [1, 2, 4, 8, 16]}))
        return tmp_path

    return save


def opened(run, **options):
    return open_teacher(f"checkpoint:{run}", device=torch.device("cpu"), options=TeacherOptions(**options))


@pytest.mark.parametrize(
    ("student", "layers", "numbers"),
    [
        ("lean", ("2", "8", "32", "last"), (0, 2, 4, 4)),
        ("resnet18-lean", ("4", "16"), (1, 3)),
        ("mobilenetv2", ("4", "8"), (0, 3)),  # three maps at 1/8: the deepest
    ],
)
def test_features_are_the_maps_of_the_encoder_at_their_strides(saved, student, layers, numbers):
    run = saved(student)
    features = opened(run, features=layers).predict(IMAGES, IDS).features
    assert tuple(features) == layers
    with torch.no_grad():
        encoded = load_run(run).network.encoded(normalize(IMAGES))
    for layer, number in zip(layers, numbers, strict=True):
        assert torch.equal(features[layer], encoded[number])
        if layer != "last":
            assert features[layer].shape[2:] == (64 // int(layer), 96 // int(layer))


@pytest.mark.parametrize("student", ["lean", "resnet18", "mobilenetv2-lean"])
def test_depth_and_maps_have_the_same_bits_with_and_without_features(saved, student):
    run = saved(student)
    without, given = (opened(run, features=layers).predict(IMAGES, IDS) for layers in ((), ("4", "last")))
    assert without.features is None
    assert torch.equal(given.depth, without.depth)
    assert torch.equal(given.dpm, without.dpm)


def test_a_layer_that_the_network_lacks_is_refused_with_those_that_exist(saved):
    run = saved("resnet18-lean")
    expected = f"teacher checkpoint:{run} has no layer '64', expected `features` among 2, 4, 8, 16, 32, last"
    with pytest.raises(ValueError, match=re.escape(expected)):
        opened(run, features=("4", "64"))


def test_the_card_does_not_depend_on_the_features_that_are_asked_for(saved):
    run = saved("lean")
    assert opened(run, features=("4",)).card == opened(run).card
