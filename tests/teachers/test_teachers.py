"""Teachers: every adapter on tiny networks and files, and every error that a user may see."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import fields
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch

from pipeline.depth.dpm import expected_depth
from pipeline.errors import PipelineError
from pipeline.teachers.base import TeacherOutput
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import COMMON_OPTIONS, KINDS, open_teacher

CPU = torch.device("cpu")


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def opened(spec, **options):
    return open_teacher(spec, device=CPU, options=TeacherOptions(**options))


# The registry


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("oracle:x", ["'oracle:x'", "unknown kind 'oracle'", *sorted(KINDS)]),
        ("transformers", ["nothing after the colon", "transformers:DIR_OR_ID"]),
        ("predictions:", ["nothing after the colon", "predictions:DIR"]),
    ],
)
def test_a_wrong_spec_is_refused_with_what_is_known(spec, parts):
    with refuses(*parts):
        opened(spec)


@pytest.mark.parametrize(
    ("spec", "options", "parts"),
    [
        (
            "python:fakes:factory",
            {"metres_per_unit": 0.001},
            ["`metres_per_unit=0.001`", "python", "omit it"],
        ),
        (
            "checkpoint:x",
            {"depth_space": "metric_m"},
            ["`depth_space='metric_m'`", "checkpoint", "`licence`"],
        ),
        ("predictions:x", {"precision": "float16"}, ["`precision='float16'`", "`depth_space`"]),
        ("predictions:x", {"trust_code": True}, ["`trust_code=True`"]),
        ("python:x:y", {"input_size_px": (2, 3)}, ["`input_size_px=(2, 3)`"]),
        ("python:x:y", {"revision": "main"}, ["`revision='main'`"]),
        (
            "predictions:x",
            {"depth_space": "metres"},
            ["`depth_space='metres'`", "metric_m", "scale_invariant"],
        ),
    ],
)
def test_an_option_that_means_nothing_is_refused_not_ignored(spec, options, parts):
    with refuses(*parts):
        opened(spec, **options)


def test_a_missing_optional_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "pipeline.teachers.huggingface.teacher", raising=False)
    with refuses("transformers is not installed", "pip install 'tiekd-pipeline[transformers]'"):
        opened("transformers:x")


def test_every_option_is_used_by_a_kind():
    used = COMMON_OPTIONS.union(*(kind.options for kind in KINDS.values()))
    assert used == {field.name for field in fields(TeacherOptions)}


# Python factories


class Model:
    """What a test's factory returns: gives back what it was made with."""

    def __init__(self, gives=None, **attributes):
        self.card = {"name": "mine", "depth_space": "metric_m"}
        self.gives = gives
        for name, value in attributes.items():
            setattr(self, name, value)

    def __call__(self, images):
        return self.gives(images) if callable(self.gives) else self.gives


IMAGES = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
IDS = ["a", "b"]


@pytest.fixture
def python(monkeypatch):
    """Opens a teacher whose factory returns the given object."""

    def open_with(model, **options):
        monkeypatch.setattr(fakes, "made_by_test", lambda: model, raising=False)
        return opened("python:fakes:made_by_test", **options)

    return open_with


def test_the_fake_teacher_gives_its_depth_and_card():
    teacher = opened("python:fakes:factory", licence="MIT")
    depth, dpm, _ = teacher.predict(IMAGES, IDS)[:3]
    torch.testing.assert_close(depth, fakes.FakeTeacher().predict(IMAGES, IDS).depth)
    assert (dpm, teacher.card.kind, teacher.card.name, teacher.card.licence) == (
        None,
        "python",
        "fake",
        "MIT",
    )


def test_the_fake_teacher_reads_the_truth_off_fake_images():
    depth_m = fakes.smooth_depth_m((8, 10))
    images = torch.from_numpy(fakes.image_of(depth_m)).permute(2, 0, 1)[None] / 255
    np.testing.assert_allclose(fakes.FakeTeacher().predict(images, ["a"]).depth[0], depth_m, atol=0.05)


def test_maps_come_with_their_edges_at_the_teachers_own_resolution():
    teacher = opened("python:fakes:factory_with_dpm")
    depth, dpm, _ = teacher.predict(IMAGES, IDS)[:3]
    assert (depth.shape, dpm.shape, teacher.bin_edges_m.shape) == ((2, 4, 5), (2, 16, 4, 5), (17,))
    torch.testing.assert_close(dpm.sum(1), torch.ones(2, 4, 5))


def test_a_factory_that_takes_a_parameter_gets_the_device(monkeypatch):
    devices = []
    monkeypatch.setattr(
        fakes,
        "made_by_test",
        lambda device: devices.append(device) or Model(lambda x: x[:, 0]),
        raising=False,
    )
    opened("python:fakes:made_by_test").predict(IMAGES, IDS)
    assert devices == [CPU]


def test_half_precision_depth_becomes_float32_without_gradient(python):
    weight = torch.ones(1, requires_grad=True)
    depth = python(Model(lambda images: (images[:, 0] * weight).half())).predict(IMAGES, IDS).depth
    assert (depth.dtype, depth.requires_grad) == (torch.float32, False)


@pytest.mark.parametrize(
    ("gives", "parts"),
    [
        (
            torch.ones(2, 1, 8, 10),
            ["Tensor (2, 1, 8, 10) torch.float32", "(2, 3, 8, 10)", "expected depth (2, h, w)"],
        ),
        (torch.ones(1, 8, 10), ["Tensor (1, 8, 10)", "expected depth (2, h, w)"]),
        (torch.ones(2, 0, 10), ["Tensor (2, 0, 10)"]),
        (torch.ones(2, 8, 10, dtype=torch.int64), ["torch.int64", "float type"]),
        (np.ones((2, 8, 10)), ["ndarray (2, 8, 10) float64"]),
        (None, ["NoneType 'None'"]),
        ({"depth": 1}, ["dict", "depth"]),
        ((torch.ones(2, 8, 10),) * 4, ["(Tensor (2, 8, 10) torch.float32, Tensor", "or of these and its bin edges"]),
        ((torch.ones(2, 8, 10), None, torch.ones(2, 5)), ["no dpm, but bin edges Tensor (2, 5)", "without emits_maps"]),
    ],
)
def test_what_is_no_depth_is_refused_and_quoted(python, gives, parts):
    with refuses("'mine' returned", *parts):
        python(Model(gives)).predict(IMAGES, IDS)


FLAT = torch.full((2, 4, 8, 10), 0.25)


@pytest.mark.parametrize(
    ("dpm", "edges", "parts"),
    [
        (FLAT, None, ["a dpm Tensor (2, 4, 8, 10)", "no bin_edges_m", "(K + 1,)"]),
        (FLAT, [0, 1, 2], ["(2, 4, 8, 10)", "expected shape (2, 2, 8, 10)", "2 bins"]),
        (FLAT[..., :5], [0, 1, 2, 3, 4], ["(2, 4, 8, 5)", "expected shape (2, 4, 8, 10)"]),
        (2 * FLAT, [0, 1, 2, 3, 4], ["with values from 0.5 to 0.5", "up to 1 away from 1", "softmax"]),
        (
            FLAT + torch.tensor([1, -1, 0, 0]).view(4, 1, 1),
            [0, 1, 2, 3, 4],
            ["with values from -0.75 to 1.25", "softmax"],
        ),
        (FLAT * torch.nan, [0, 1, 2, 3, 4], ["up to nan"]),
    ],
)
def test_what_is_no_map_is_refused_and_quoted(python, dpm, edges, parts):
    with refuses("'mine' returned", *parts):
        python(Model((torch.ones(2, 8, 10), dpm), bin_edges_m=edges)).predict(IMAGES, IDS)


ADAPTIVE = torch.tensor([[0.0, 1, 2, 3, 4], [0, 2, 4, 6, 8]])


@pytest.mark.parametrize("edges", [ADAPTIVE, ADAPTIVE[..., None, None].expand(-1, -1, 8, 10).double()])
@pytest.mark.parametrize("made", [tuple, lambda parts: TeacherOutput(*parts)])
def test_maps_may_come_with_edges_of_each_image_or_each_pixel(python, edges, made):
    teacher = python(Model(made((torch.ones(2, 8, 10), FLAT, edges)), emits_maps=True))
    depth, dpm, given_m = teacher.predict(IMAGES, IDS)[:3]
    torch.testing.assert_close(given_m, edges)
    assert (depth.shape, dpm.shape, teacher.emits_maps, teacher.bin_edges_m) == ((2, 8, 10), FLAT.shape, True, None)


@pytest.mark.parametrize(
    ("edges", "attributes", "parts"),
    [
        (ADAPTIVE, {}, ["bin edges Tensor (2, 5)", "emits_maps False", "set emits_maps = True"]),
        (
            ADAPTIVE,
            {"emits_maps": True, "bin_edges_m": [0, 1, 2, 3, 4]},
            ["bin_edges_m ndarray (5,)", "remove one of the two"],
        ),
        (ADAPTIVE.tolist(), {"emits_maps": True}, ["bin edges list", "(2, K + 1) or (2, K + 1, h, w)"]),
        (ADAPTIVE[0], {"emits_maps": True}, ["Tensor (5,)", "(2, K + 1)"]),
        (ADAPTIVE.long(), {"emits_maps": True}, ["torch.int64", "of a float type, in metres"]),
        (ADAPTIVE[:1], {"emits_maps": True}, ["Tensor (1, 5)", "for each of 2 images"]),
        (ADAPTIVE.flip(1), {"emits_maps": True}, ["invalid bin edges", "descend"]),
        (ADAPTIVE * math.inf, {"emits_maps": True}, ["invalid bin edges", "NaN or infinite"]),
        (torch.ones(2, 5, 8, 9).cumsum(1), {"emits_maps": True}, ["shape (5, 8, 9)", "4 bins over 8x10 px"]),
        (ADAPTIVE[:, :4], {"emits_maps": True}, ["a dpm Tensor (2, 4, 8, 10)", "expected shape (2, 3, 8, 10)"]),
        (None, {"emits_maps": True}, ["no bin_edges_m", "emits_maps = True and return (depth, dpm, bin_edges_m)"]),
    ],
)
def test_edges_that_do_not_fit_are_refused_and_quoted(python, edges, attributes, parts):
    with refuses("'mine' returned", *parts):
        python(Model((torch.ones(2, 8, 10), FLAT, edges), **attributes)).predict(IMAGES, IDS)


def test_a_promise_of_maps_that_is_not_kept_is_told(python):
    with refuses("'mine' returned no dpm, but its emits_maps is True"):
        python(Model(torch.ones(2, 8, 10), emits_maps=True)).predict(IMAGES, IDS)


@pytest.mark.parametrize("edges", [[0, 1], [0, 2, 1], [0, 1, np.inf], [[0, 1, 2]], torch.zeros(4)])
def test_bin_edges_that_are_none_are_refused(python, edges):
    with refuses("bin_edges_m", "(K + 1,) finite metres, ascending"):
        python(Model(bin_edges_m=edges))


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (
            Model(card=None),
            ["its card is NoneType", "expected a TeacherCard or a dict", 'card = {"name"', "def __call__"],
        ),
        (Model(card={"name": "x"}), ["its card {'name': 'x'} is not valid", "depth_space", "card ="]),
        (Model(card={"depth_space": "metric_m", "colour": 1}), ["colour"]),
        (Model(card={"depth_space": "feet"}), ["'feet'", "metric_m"]),
        (
            Model(card={"depth_space": "metric_m", "preprocessing": {"a": object()}}),
            ["is not valid JSON", "use numbers"],
        ),
        (Model(card={"depth_space": "metric_m", "preprocessing": {"a": math.nan}}), ["is not valid JSON"]),
        (7, ["the factory returned int '7'", "def __call__"]),
    ],
)
def test_a_factory_without_a_right_card_is_refused_with_an_example(python, model, parts):
    with refuses("teacher python:fakes:made_by_test", *parts):
        python(model)


def test_a_depth_space_other_than_the_cards_is_refused(python):
    assert python(Model(), depth_space="metric_m").card.name == "mine"
    with refuses("`depth_space=affine_depth`", "contradicts metric_m in its card", "omit the option"):
        python(Model(), depth_space="affine_depth")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("python:fakes", ["expected python:module:factory", "def __call__"]),
        ("python:no_such_module:f", ["module 'no_such_module'", str(Path.cwd()), "install it"]),
        ("python:fakes:nothing", ["fakes.py has no function 'nothing'"]),
        ("python:fakes:BLACK_M", ["no function 'BLACK_M'"]),
    ],
)
def test_a_factory_that_is_not_there_is_refused(spec, parts):
    with refuses(*parts):
        opened(spec)


def test_a_module_in_the_current_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_teacher.py").write_text("from fakes import factory as build\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert opened("python:my_own_teacher:build").card.name == "fake"


# Networks trained here


@pytest.fixture
def run(monkeypatch):
    from pipeline.networks.saved_run import LoadedRun
    from pipeline.teachers import checkpoint

    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1).eval()
    loaded = LoadedRun(network, np.array([1.0, 2, 4, 8, 16]), "ab" * 32, {"student": "lean"})
    monkeypatch.setattr(checkpoint, "load_run", lambda _: loaded)
    return loaded


def test_a_checkpoint_gives_the_softmax_of_its_logits_and_their_mean(run):
    teacher = opened("checkpoint:some/run", licence="MIT")
    depth, dpm, _ = teacher.predict(IMAGES, IDS)[:3]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = run.network((IMAGES - mean[:, None, None]) / std[:, None, None]).softmax(1)
    torch.testing.assert_close(dpm, expected)
    torch.testing.assert_close(depth, expected_depth(expected, torch.from_numpy(run.bin_edges_m))[:, 0])
    assert depth.shape == (2, 4, 5)
    assert 1 < depth.min() < depth.max() < 16


def test_the_card_of_a_checkpoint_names_its_student_and_weights(run):
    teacher = opened("checkpoint:some/run", licence="MIT")
    card = teacher.card
    assert (card.kind, card.name, card.depth_space, card.licence) == ("checkpoint", "lean", "metric_m", "MIT")
    assert card.weights_sha256 == run.weights_sha256
    np.testing.assert_array_equal(teacher.bin_edges_m, run.bin_edges_m)


def test_a_run_on_disk_teaches(tmp_path):
    from pipeline.networks.registry import build_student
    from pipeline.networks.saved_run import CONFIG, WEIGHTS, save_weights

    save_weights(build_student("lean", 4), tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"student": "lean", "bin_edges_m": [1, 2, 4, 8, 16]}))
    teacher = opened(f"checkpoint:{tmp_path}")
    depth, dpm, _ = teacher.predict(torch.rand(1, 3, 32, 64), ["a"])[:3]
    assert teacher.card.name == "lean"
    assert (dpm.shape[1], dpm.shape[2:]) == (4, depth.shape[1:])
    assert 1 < depth.min() < depth.max() < 16


def test_a_regression_network_teaches_depth_alone(run):
    run.config["head"] = "depth"
    teacher = opened("checkpoint:some/run")
    assert teacher.bin_edges_m is None
    assert teacher.predict(IMAGES, IDS).dpm is None


def test_a_checkpoint_is_shown_the_view_that_it_was_trained_on_unless_another_is_asked_for(tmp_path, run):
    import fakes

    from pipeline.cache.plan import CacheOptions
    from pipeline.cache.run import cache_teacher
    from pipeline.sources.registry import open_source
    from pipeline.store import open_store

    source = open_source(f"folder:{fakes.make_folder(tmp_path / 'images', size_px=(24, 32))}")
    run.config["view"] = "full,resize:12x16"
    for view, expected in ((None, "full,resize:12x16"), ("full", "full")):
        out = tmp_path / f"{expected}.zarr"
        cache_teacher(source, "all", opened("checkpoint:some/run"), out, CacheOptions(view=view))
        assert open_store(out).spec.view == expected


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with refuses(tmp_path, "not a complete run"):
        opened(f"checkpoint:{tmp_path}")


def test_an_error_in_the_users_code_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "my_broken.py").write_text("def load(device):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PipelineError, match=r"its code raised ZeroDivisionError: .*\(my_broken.py, line 2\)"):
        opened("python:my_broken:load")
