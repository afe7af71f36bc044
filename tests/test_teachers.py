"""Teachers: every adapter on tiny networks and files, and every error that a user may see."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: the suite asks no network

import fakes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.dpm import expected_depth
from pipeline.teachers import npy as npy_module
from pipeline.teachers.npy import DTYPES, read_npy
from pipeline.teachers.predictions import UNITS, parse_metres_per_unit
from pipeline.teachers.registry import ALL, FLAGS, KINDS, TeacherOptions, open_teacher

REAL = Path(__file__).parents[1] / "../shared/data"
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
            ["--metres-per-unit 0.001", "python", "leave it out"],
        ),
        (
            "checkpoint:x",
            {"depth_space": "metric_m"},
            ["--depth-space 'metric_m'", "checkpoint", "--licence"],
        ),
        ("predictions:x", {"precision": "float16"}, ["--precision 'float16'", "--depth-space"]),
        ("predictions:x", {"trust_code": True}, ["--trust-code True"]),
        ("python:x:y", {"input_size_px": (2, 3)}, ["--input-size (2, 3)"]),
        ("python:x:y", {"revision": "main"}, ["--revision 'main'"]),
        (
            "predictions:x",
            {"depth_space": "metres"},
            ["--depth-space 'metres'", "metric_m", "scale_invariant"],
        ),
    ],
)
def test_an_option_that_means_nothing_is_refused_not_ignored(spec, options, parts):
    with refuses(*parts):
        opened(spec, **options)


def test_a_missing_optional_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "pipeline.teachers.transformers_model", raising=False)
    with refuses("transformers is not installed", "pip install 'tiekd-pipeline[transformers]'"):
        opened("transformers:x")


def test_every_option_is_used_by_a_kind():
    used = ALL.union(*(kind.uses for kind in KINDS.values()))
    assert used == set(FLAGS)


# Metres per unit


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.001", 0.001), ("80/65535", 80 / 65535), ("1", 1.0), ("1/256", 1 / 256), *UNITS.items()],
)
def test_a_scale_is_a_number_a_fraction_or_a_name(text, value):
    assert parse_metres_per_unit(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1/0", "1/", "/2", "a/b", "1/2/3", "metres", "0/5"])
def test_another_scale_is_refused_with_the_names(text):
    with refuses(repr(text), "above 0", "80/65535", *UNITS):
        parse_metres_per_unit(text)


@given(st.floats(1e-30, 1e30), st.floats(1e-30, 1e30))
def test_a_fraction_is_the_quotient(above, below):
    assert parse_metres_per_unit(repr(above)) == above
    assert parse_metres_per_unit(f"{above!r}/{below!r}") == above / below


@given(st.text(max_size=12))
def test_any_text_is_a_scale_above_0_or_a_value_error(text):
    try:
        value = parse_metres_per_unit(text)
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017 - both ways are right, here is what must hold
        return
    assert 0 < value < math.inf


# Numbers in .npy files


def npy_bytes(array, **kwargs):
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


@settings(deadline=None)  # writes files
@given(
    st.sampled_from(DTYPES),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from("<>"),
    st.sampled_from("CF"),
)
def test_npy_of_every_type_and_order_reads_back(tmp_path_factory, dtype, shape, byte_order, order):
    array = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.dtype(dtype).newbyteorder(byte_order), order)
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, array)
    read = read_npy(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(dtype)


HEADER = npy_bytes(np.zeros((4, 5), np.float32))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["no .npy file", "numpy.save"]),
        (b"PK\x03\x04 something", ["no .npy file"]),
        (HEADER[:-1], ["says 80 bytes", "holds 79", "write it again"]),
        (HEADER + b"x", ["says 80 bytes", "holds 81"]),
        (
            HEADER.replace(b"(4, 5), }".ljust(20), b"(99999, 999999), }".ljust(20)),
            ["399995600004", "holds 80"],
        ),
        (npy_bytes(np.zeros((1, 4, 5), np.float32)), ["float32 of shape (1, 4, 5)", "(height, width)"]),
        (npy_bytes(np.zeros((4, 5), np.int32)), ["int32", "uint16, float16, float32, float64"]),
        (npy_bytes(np.zeros((0, 5), np.float32)), ["shape (0, 5)"]),
        (npy_bytes(np.array([[{}]], dtype=object), allow_pickle=True), ["object"]),
        (b"\x93NUMPY\x09\x00" + HEADER[8:], ["no .npy file", "(9, 0)"]),
        (HEADER.replace(b"'<f4'", b"'<f9'"), ["no .npy file"]),
    ],
)
def test_a_wrong_npy_file_is_refused(tmp_path, data, parts):
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with refuses(path, *parts):
        read_npy(path)


@settings(deadline=None)  # writes files
@given(st.integers(0, len(HEADER) - 1), st.binary(min_size=1, max_size=3))
def test_a_damaged_npy_header_never_allocates_what_it_claims(tmp_path_factory, position, junk):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    path.write_bytes((HEADER[:position] + junk + HEADER[position + len(junk) :])[: len(HEADER)])
    try:
        assert read_npy(path).nbytes <= len(HEADER)
    except ValueError as error:
        assert "a.npy" in str(error)  # noqa: PT017 - both ways are right, here is what must hold


def test_a_npy_file_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(npy_module, "LIMIT_PIXELS", -500)
    (tmp_path / "a.npy").write_bytes(HEADER)
    with refuses("a.npy", f"{len(HEADER)} bytes, expected at most 96"):
        read_npy(tmp_path / "a.npy")


# Folders of predictions

DEPTH_M = np.array([[1.5, 2.0, 3.25], [4.0, 5.5, 80.0]], np.float32)


def write_predictions(folder, files, **about):
    for name, array in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)
    if about:
        (folder / "predictions.json").write_text(json.dumps(about))
    return f"predictions:{folder}"


def test_png_predictions_are_scaled_and_0_is_no_value(tmp_path):
    spec = write_predictions(tmp_path, {"a_b.png": np.array([[0, 256], [65535, 1]], np.uint16)})
    teacher = opened(spec, metres_per_unit=1 / 256)
    depth, dpm, _ = teacher.predict(None, ["a/b"])
    np.testing.assert_array_equal(depth, np.array([[[np.nan, 1], [65535 / 256, 1 / 256]]], np.float32))
    assert (depth.dtype, dpm, teacher.needs_images, teacher.bin_edges_m) == (torch.float32, None, False, None)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npy_predictions_come_in_the_order_of_the_ids(tmp_path, dtype):
    spec = write_predictions(
        tmp_path, {"a/b.npy": DEPTH_M.astype(dtype), "c_d.npy": 2 * DEPTH_M.astype(dtype)}, metres_per_unit=1
    )
    depth = opened(spec).predict(None, ["c/d", "a/b"]).depth
    np.testing.assert_array_equal(depth, np.stack([2 * DEPTH_M, DEPTH_M]))


def test_integer_npy_predictions_have_0_as_no_value(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": np.array([[0, 2000]], np.uint16)}, metres_per_unit="mm")
    np.testing.assert_array_equal(opened(spec).predict(None, ["a"]).depth, [[[np.nan, 2]]])


def test_the_card_of_predictions_says_what_the_folder_says(tmp_path):
    spec = write_predictions(
        tmp_path / "big-net",
        {"a.npy": DEPTH_M},
        metres_per_unit="80/65535",
        depth_space="affine_depth",
        licence="MIT",
    )
    card = opened(spec).card
    assert (card.kind, card.name, card.depth_space, card.licence) == (
        "predictions",
        "big-net",
        "affine_depth",
        "MIT",
    )
    assert card.preprocessing == {"format": "npy", "metres_per_unit": 80 / 65535}
    assert opened(spec, depth_space="affine_depth", metres_per_unit=80 / 65535).card == card


def test_the_digest_of_predictions_tells_another_listing(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M}, metres_per_unit=1)
    before = opened(spec).card.weights_sha256
    assert opened(spec).card.weights_sha256 == before
    np.save(tmp_path / "b.npy", DEPTH_M)
    assert opened(spec).card.weights_sha256 != before


def test_predictions_without_scale_are_refused_with_both_ways_and_usual_values(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M})
    with refuses("--metres-per-unit 0.001", "predictions.json", '{"metres_per_unit": 0.001}', "1/256", "80/65535"):
        opened(spec)


@pytest.mark.parametrize(
    ("about", "options", "parts"),
    [
        (
            {"metres_per_unit": 0.001},
            {"metres_per_unit": 1.0},
            ["--metres-per-unit 1.0", "says 0.001", "leave"],
        ),
        ({"metres_per_unit": 0}, {}, ["metres per unit '0'", "above 0"]),
        ({"metres_per_unit": "yards"}, {}, ["'yards'", "tiekd-kitti"]),
        ({}, {"metres_per_unit": -1.0}, ["--metres-per-unit -1.0", "above 0"]),
        (
            {"metres_per_unit": 1, "depth_space": "metric_m"},
            {"depth_space": "affine_depth"},
            ["depth_space 'affine_depth'", "says 'metric_m'", "correct the file"],
        ),
        ({"metres_per_unit": 1, "depth_space": "feet"}, {}, ["'feet'", "metric_m"]),
        ({"metres_per_unit": 1, "licence": "MIT"}, {"licence": "GPL"}, ["licence 'GPL'", "'MIT'"]),
    ],
)
def test_contradicting_or_wrong_words_about_predictions_are_refused(tmp_path, about, options, parts):
    with refuses(*parts):
        opened(write_predictions(tmp_path, {"a.npy": DEPTH_M}, **about), **options)


def test_a_description_that_is_no_object_is_refused(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M})
    (tmp_path / "predictions.json").write_text("[1]")
    with refuses("predictions.json", "list", "expected an object"):
        opened(spec)


def test_a_missing_prediction_is_named_with_both_names_tried(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M}, metres_per_unit=1)
    with refuses(tmp_path, "none for 'x/y'", "expected x/y.npy or x_y.npy", "take it out"):
        opened(spec).predict(None, ["a", "x/y"])


def test_predictions_of_two_sizes_in_a_batch_are_refused(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M, "b.npy": DEPTH_M[:, :2]}, metres_per_unit=1)
    with refuses("a.npy is 2x3 px", "b.npy is 2x2 px", "expected one size"):
        opened(spec).predict(None, ["a", "b"])


def test_one_file_for_two_ids_is_refused(tmp_path):
    spec = write_predictions(tmp_path, {"a_b_c.npy": DEPTH_M}, metres_per_unit=1)
    teacher = opened(spec)
    teacher.predict(None, ["a/b_c"])
    teacher.predict(None, ["a/b_c"])
    with refuses("a_b_c.npy would be of both 'a/b_c' and 'a_b/c'", "folders named as in the ids"):
        teacher.predict(None, ["a_b/c"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 0.0])
def test_float_metres_that_are_no_depth_are_refused_with_their_number(tmp_path, bad):
    array = DEPTH_M.copy()
    array[0, :2] = bad
    spec = write_predictions(tmp_path, {"a.npy": array}, metres_per_unit=1)
    with refuses(tmp_path / "a.npy", "2 of 6 pixels", "above 0", "metric_m", "write uint16"):
        opened(spec).predict(None, ["a"])


def test_relative_predictions_may_be_0_or_negative_but_not_nan(tmp_path):
    spec = write_predictions(
        tmp_path,
        {"a.npy": DEPTH_M - 2, "b.npy": DEPTH_M * np.nan},
        metres_per_unit=1,
        depth_space="affine_disparity",
    )
    np.testing.assert_array_equal(opened(spec).predict(None, ["a"]).depth[0], DEPTH_M - 2)
    with refuses("b.npy", "6 of 6 pixels", "finite numbers in a float format of affine_disparity"):
        opened(spec).predict(None, ["b"])


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"a.npy": DEPTH_M, "b.png": np.ones((2, 2), np.uint16)}, [".npy and .png", "one format"]),
        ({}, ["no such directory"]),
        ({"a.txt.png/b.npy": DEPTH_M, "c.png": np.ones((2, 2), np.uint16)}, [".npy and .png"]),
    ],
)
def test_a_folder_without_one_format_is_refused(tmp_path, files, parts):
    with refuses(*parts):
        opened(write_predictions(tmp_path / "p", files), metres_per_unit=1.0)


def test_an_empty_folder_of_predictions_is_refused(tmp_path):
    (tmp_path / "readme.txt").touch()
    with refuses(tmp_path, "no .png or .npy", "files of one format"):
        opened(f"predictions:{tmp_path}", metres_per_unit=1.0)


def test_an_8_bit_prediction_is_refused(tmp_path):
    spec = write_predictions(tmp_path, {"a.png": np.ones((2, 2), np.uint8)}, metres_per_unit=1)
    with refuses("prediction", tmp_path / "a.png", "'L'", "PNG of 16 bits"):
        opened(spec).predict(None, ["a"])


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
    depth, dpm, _ = teacher.predict(IMAGES, IDS)
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
    depth, dpm, _ = teacher.predict(IMAGES, IDS)
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
        ((torch.ones(2, 8, 10),) * 3, ["(Tensor (2, 8, 10) torch.float32, Tensor"]),
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
        (FLAT, [0, 1, 2], ["(2, 4, 8, 10)", "expected (2, 2, 8, 10)", "2 bins"]),
        (FLAT[..., :5], [0, 1, 2, 3, 4], ["(2, 4, 8, 5)", "expected (2, 4, 8, 10)"]),
        (2 * FLAT, [0, 1, 2, 3, 4], ["from 0.5 to 0.5", "off 1 by up to 1", "softmax"]),
        (
            FLAT + torch.tensor([1, -1, 0, 0]).view(4, 1, 1),
            [0, 1, 2, 3, 4],
            ["from -0.75 to 1.25", "softmax"],
        ),
        (FLAT * torch.nan, [0, 1, 2, 3, 4], ["up to nan"]),
    ],
)
def test_what_is_no_map_is_refused_and_quoted(python, dpm, edges, parts):
    with refuses("'mine' returned", *parts):
        python(Model((torch.ones(2, 8, 10), dpm), bin_edges_m=edges)).predict(IMAGES, IDS)


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
        (Model(card={"name": "x"}), ["its card {'name': 'x'} is wrong", "depth_space", "card ="]),
        (Model(card={"depth_space": "metric_m", "colour": 1}), ["colour"]),
        (Model(card={"depth_space": "feet"}), ["'feet'", "metric_m"]),
        (
            Model(card={"depth_space": "metric_m", "preprocessing": {"a": object()}}),
            ["is no JSON", "plain values"],
        ),
        (Model(card={"depth_space": "metric_m", "preprocessing": {"a": math.nan}}), ["is no JSON"]),
        (7, ["the factory returned int '7'", "def __call__"]),
    ],
)
def test_a_factory_without_a_right_card_is_refused_with_an_example(python, model, parts):
    with refuses("teacher python:fakes:made_by_test", *parts):
        python(model)


def test_a_depth_space_other_than_the_cards_is_refused(python):
    assert python(Model(), depth_space="metric_m").card.name == "mine"
    with refuses("--depth-space affine_depth", "card says metric_m", "leave the flag out"):
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
    from pipeline.students.run import LoadedRun
    from pipeline.teachers import checkpoint

    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1).eval()
    loaded = LoadedRun(network, np.array([1.0, 2, 4, 8, 16]), "ab" * 32, {"student": "lean"})
    monkeypatch.setattr(checkpoint, "load_run", lambda _: loaded)
    return loaded


def test_a_checkpoint_gives_the_softmax_of_its_logits_and_their_mean(run):
    teacher = opened("checkpoint:some/run", licence="MIT")
    depth, dpm, _ = teacher.predict(IMAGES, IDS)
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
    from pipeline.students.build import build_student
    from pipeline.students.run import CONFIG, WEIGHTS, save_weights

    save_weights(build_student("lean", 4), tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"student": "lean", "bin_edges_m": [1, 2, 4, 8, 16]}))
    teacher = opened(f"checkpoint:{tmp_path}")
    depth, dpm, _ = teacher.predict(torch.rand(1, 3, 32, 64), ["a"])
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

    from pipeline.cache import cache_teacher
    from pipeline.plan import CacheOptions
    from pipeline.sources.registry import open_source
    from pipeline.store import open_store

    source = open_source(f"folder:{fakes.make_folder(tmp_path / 'images', size_px=(24, 32))}")
    run.config["view"] = "full,resize:12x16"
    for view, expected in ((None, "full,resize:12x16"), ("full", "full")):
        out = tmp_path / f"{expected}.zarr"
        cache_teacher(source, "all", opened("checkpoint:some/run"), out, CacheOptions(view=view))
        assert open_store(out).spec.view == expected


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with refuses(tmp_path, "no finished run"):
        opened(f"checkpoint:{tmp_path}")


# Hugging Face transformers, on networks of a few thousand weights

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")


def build_network(family, **config):
    import transformers as hf

    torch.manual_seed(0)
    if family in {"depth_anything", "dpt_dinov2"}:
        config["backbone_config"] = hf.Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28,
            patch_size=14, out_indices=[1, 2], reshape_hidden_states=False, apply_layernorm=True,
        )  # fmt: skip
    small = {"neck_hidden_sizes": [8, 8], "reassemble_factors": [2, 1], "fusion_hidden_size": 8}
    if family == "depth_anything":
        return hf.DepthAnythingForDepthEstimation(
            hf.DepthAnythingConfig(patch_size=14, reassemble_hidden_size=16, head_hidden_size=8, **small, **config)
        )
    if family == "dpt_dinov2":
        return hf.DPTForDepthEstimation(hf.DPTConfig(**small, **config))
    if family == "dpt":
        sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
        return hf.DPTForDepthEstimation(
            hf.DPTConfig(
                image_size=32, patch_size=16, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
                backbone_out_indices=[0, 1, 2, 3], **sizes, **config,
            )
        )  # fmt: skip
    if family == "glpn":
        ones = [1] * 4
        return hf.GLPNForDepthEstimation(
            hf.GLPNConfig(
                hidden_sizes=[8] * 4, depths=ones, num_attention_heads=ones, mlp_ratios=ones,
                decoder_hidden_size=8, **config,
            )
        )  # fmt: skip
    backbone = hf.BeitConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=16, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False, use_relative_position_bias=True,
    )  # fmt: skip
    return hf.ZoeDepthForDepthEstimation(
        hf.ZoeDepthConfig(
            backbone_config=backbone, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, bottleneck_features=8,
            num_relative_features=8, bin_embedding_dim=8, num_attractors=[4, 2, 2, 1],
            backbone_hidden_size=16,
            bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
        )
    )  # fmt: skip


def build_processor(family, **settings):
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
    from transformers.models.glpn.image_processing_pil_glpn import GLPNImageProcessorPil
    from transformers.models.zoedepth.image_processing_pil_zoedepth import ZoeDepthImageProcessorPil

    if family == "glpn":
        return GLPNImageProcessorPil(**settings)
    if family == "zoedepth":
        return ZoeDepthImageProcessorPil(size={"height": 64, "width": 64}, ensure_multiple_of=16)
    multiple = 16 if family == "dpt" else 14
    size = {"height": 2 * multiple, "width": 2 * multiple}
    keep = family == "depth_anything"
    return DPTImageProcessorPil(size=size, keep_aspect_ratio=keep, ensure_multiple_of=multiple, **settings)


def save_model(folder, family, processor=None, **config):
    network = build_network(family, **config)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15)  # the library's own start gives the same depth everywhere
    network.save_pretrained(folder)
    build_processor(family, **(processor or {})).save_pretrained(folder)
    return network.eval()


METRIC = {"depth_estimation_type": "metric", "max_depth": 20}
VIEWS = torch.randint(0, 256, (2, 3, 40, 100), generator=torch.Generator().manual_seed(0)) / 255


@needs_transformers
class TestTransformers:
    @pytest.mark.parametrize(
        ("family", "config", "depth_space", "size"),
        [
            ("depth_anything", METRIC, "metric_m", (28, 70)),
            ("depth_anything", {}, "affine_disparity", (28, 70)),
            ("dpt", {}, "affine_disparity", (32, 32)),
            ("glpn", {"max_depth": 80}, "metric_m", (32, 96)),
            ("zoedepth", {}, "metric_m", (40, 100)),
        ],
    )
    def test_a_network_comes_back_with_its_space_and_own_resolution(self, tmp_path, family, config, depth_space, size):
        network = save_model(tmp_path / "net", family, **config)
        teacher = opened(f"transformers:{tmp_path / 'net'}")
        depth = teacher.predict(VIEWS, IDS).depth
        assert teacher.card.depth_space == depth_space
        assert (depth.shape, depth.dtype) == ((2, *size), torch.float32)
        pictures = [(view * 255).round().byte().permute(1, 2, 0).numpy() for view in VIEWS]
        with torch.no_grad():
            raw = network(**build_processor(family)(images=pictures, return_tensors="pt")).predicted_depth
        if family != "zoedepth":
            torch.testing.assert_close(depth, raw)
        assert depth.isfinite().all()
        assert not torch.equal(depth[0], depth[1])

    def test_zoedepth_loses_the_padding_that_its_processor_adds(self):
        from pipeline.teachers.transformers_model import _without_padding

        height, width, rows, columns = 40, 100, 13, 21  # int(sqrt(side / 2) * 3) of padding
        ramp = torch.arange(-columns, width + columns).float().expand(1, height + 2 * rows, -1)
        kept = _without_padding(ramp, height, width)
        torch.testing.assert_close(kept, torch.arange(width).float().expand(1, height, width))

    def test_the_card_says_weights_processor_and_precision_but_no_path(self, tmp_path):
        save_model(tmp_path / "net", "depth_anything", **METRIC)
        card = opened(f"transformers:{tmp_path / 'net'}", licence="Apache-2.0").card
        from pipeline.fileio import canonical_json, sha256_file

        assert (card.kind, card.name, card.precision, card.licence) == (
            "transformers",
            "net",
            "float32",
            "Apache-2.0",
        )
        assert (card.revision, card.weights_sha256) == (None, sha256_file(tmp_path / "net/model.safetensors"))
        assert card.preprocessing["processor"] == "DPTImageProcessorPil"
        assert card.preprocessing["settings"]["size"] == {"height": 28, "width": 28}
        assert str(tmp_path) not in canonical_json(card.as_json()).decode()

    def test_an_asked_input_size_is_what_the_network_sees(self, tmp_path):
        save_model(tmp_path, "depth_anything")
        teacher = opened(f"transformers:{tmp_path}", input_size_px=(42, 56))
        assert teacher.predict(VIEWS, IDS).depth.shape == (2, 42, 56)
        assert teacher.card.preprocessing["input_size_px"] == [42, 56]

    def test_an_input_size_that_the_patches_do_not_divide_is_refused_with_the_next(self, tmp_path):
        save_model(tmp_path, "depth_anything")
        with refuses("(40, 60)", "makes (42, 56)", "--input-size 42x56"):
            opened(f"transformers:{tmp_path}", input_size_px=(40, 60)).predict(VIEWS, IDS)

    def test_an_input_size_for_a_processor_without_one_is_refused(self, tmp_path):
        save_model(tmp_path, "glpn")
        with refuses("takes no size", "--view"):
            opened(f"transformers:{tmp_path}", input_size_px=(64, 64))

    def test_half_precision_keeps_the_digits_of_depth(self, tmp_path):
        save_model(tmp_path, "depth_anything", **METRIC)
        exact = opened(f"transformers:{tmp_path}").predict(VIEWS, IDS).depth
        teacher = opened(f"transformers:{tmp_path}", precision="bfloat16")
        depth = teacher.predict(VIEWS, IDS).depth
        assert teacher.card.precision == "bfloat16"
        assert not torch.equal(depth, exact)
        assert ((depth - exact).abs() / exact).median() < 0.001
        assert (depth != depth.bfloat16().float()).float().mean() > 0.9

    def test_an_overflow_in_float16_is_refused(self, tmp_path):
        network = build_network("depth_anything")
        with torch.no_grad():
            network.neck.convs[0].weight.fill_(1e6)
        network.save_pretrained(tmp_path)
        build_processor("depth_anything").save_pretrained(tmp_path)
        with refuses("overflows in float16", "a, b", "--precision bfloat16"):
            opened(f"transformers:{tmp_path}", precision="float16").predict(VIEWS, IDS)

    def test_an_unknown_precision_is_refused(self, tmp_path):
        save_model(tmp_path, "glpn")
        with refuses("precision 'int8'", "auto", "bfloat16"):
            opened(f"transformers:{tmp_path}", precision="int8")

    def test_a_family_whose_head_is_not_known_runs_in_float32_alone(self, tmp_path):
        save_model(tmp_path, "zoedepth")
        with refuses("--precision float16", "use float32"):
            opened(f"transformers:{tmp_path}", precision="float16")

    def test_a_space_that_the_configuration_does_not_say_must_be_given(self, tmp_path):
        save_model(tmp_path, "dpt_dinov2")
        with refuses("does not say", "--depth-space metric_m", "affine_disparity"):
            opened(f"transformers:{tmp_path}")
        assert opened(f"transformers:{tmp_path}", depth_space="metric_m").card.depth_space == "metric_m"

    def test_a_space_other_than_the_configurations_is_refused(self, tmp_path):
        save_model(tmp_path, "depth_anything", **METRIC)
        with refuses("--depth-space affine_depth", "says metric_m", "leave it out"):
            opened(f"transformers:{tmp_path}", depth_space="affine_depth")

    @pytest.mark.parametrize("key", ["do_pad", "do_center_crop"])
    def test_a_processor_that_changes_the_area_is_refused(self, tmp_path, key):
        save_model(tmp_path, "dpt")
        path = tmp_path / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: True, "size_divisor": 16}))
        with refuses("preprocessor_config.json", key, "another area", "--view"):
            opened(f"transformers:{tmp_path}")

    def test_pickled_weights_are_refused(self, tmp_path):
        save_model(tmp_path, "glpn")
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with refuses("only pytorch_model.bin", "pickle", "save_pretrained"):
            opened(f"transformers:{tmp_path}", trust_code=True)

    def test_a_directory_without_weights_is_refused(self, tmp_path):
        with refuses(tmp_path, "no weights", "model.safetensors"):
            opened(f"transformers:{tmp_path}")

    def test_weights_that_would_stay_random_are_refused(self, tmp_path):
        network = save_model(tmp_path, "depth_anything")
        weights = {name: value for name, value in network.state_dict().items() if not name.startswith("head.conv3")}
        from safetensors.torch import save_file

        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with refuses("lack 2 weights", "head.conv3.bias", "random"):
            opened(f"transformers:{tmp_path}")

    def test_weights_that_depth_never_uses_may_be_absent(self, tmp_path):
        network = save_model(tmp_path, "dpt")
        unused = "neck.fusion_stage.layers.0.residual_layer1."
        weights = {name: value for name, value in network.state_dict().items() if not name.startswith(unused)}
        assert len(weights) < len(network.state_dict())
        from safetensors.torch import save_file

        whole = opened(f"transformers:{tmp_path}").predict(VIEWS, IDS).depth
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        torch.testing.assert_close(opened(f"transformers:{tmp_path}").predict(VIEWS, IDS).depth, whole)

    def test_weights_in_several_files_are_one_digest_and_load(self, tmp_path):
        network = build_network("glpn")
        network.save_pretrained(tmp_path, max_shard_size="20KB")
        build_processor("glpn").save_pretrained(tmp_path)
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        teacher = opened(f"transformers:{tmp_path}")
        assert re.fullmatch("[0-9a-f]{64}", teacher.card.weights_sha256)
        assert teacher.predict(VIEWS, IDS).depth.shape == (2, 32, 96)

    @pytest.mark.parametrize("model_type", ["depth_pro", "prompt_depth_anything"])
    def test_a_family_that_cannot_be_used_is_refused_with_the_reason(self, tmp_path, model_type):
        save_model(tmp_path, "glpn")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        with refuses(f"a {model_type} network", "cannot use: it", "glpn", "python:module:factory"):
            opened(f"transformers:{tmp_path}")

    @pytest.mark.parametrize("text", ["{}", "{", '{"model_type": "bert"}', '{"model_type": "no-such"}'])
    def test_a_directory_of_something_else_is_refused(self, tmp_path, text):
        save_model(tmp_path, "glpn")
        (tmp_path / "config.json").write_text(text)
        with refuses(tmp_path):
            opened(f"transformers:{tmp_path}")

    def test_code_beside_the_weights_does_not_run(self, tmp_path):
        save_model(tmp_path, "glpn")
        config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        with refuses(tmp_path):
            opened(f"transformers:{tmp_path}")
        assert not (tmp_path / "ran").exists()

    def test_a_revision_of_a_directory_is_refused(self, tmp_path):
        with refuses("--revision 'main'", "directory", "leave it out"):
            opened(f"transformers:{tmp_path}", revision="main")

    def test_a_hub_id_that_cannot_be_had_is_refused(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with refuses("transformers:nobody/no-such-depth", "the hub does not give it", "check the id"):
            opened("transformers:nobody/no-such-depth")

    def test_what_is_neither_directory_nor_hub_id_is_refused(self):
        with refuses("/no/such/folder", "no such directory", "no hub id like"):
            opened("transformers:/no/such/folder")

    def test_a_hub_id_is_named_with_its_commit(self, tmp_path, monkeypatch):
        commit = "0123456789abcdef0123456789abcdef01234567"
        save_model(tmp_path / commit, "glpn")
        asked = []

        def snapshot_download(repo, *, revision, allow_patterns):
            asked.append((repo, revision, allow_patterns))
            return str(tmp_path / commit)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        card = opened("transformers:someone/glpn-tiny", revision="v1").card
        assert (card.name, card.revision) == ("someone/glpn-tiny", commit)
        assert asked == [("someone/glpn-tiny", "v1", ["*.json", "*.safetensors"])]


# Real data


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
class TestRealPredictions:
    def test_both_forms_of_the_real_predictions_agree(self):
        from pipeline.sources.registry import open_source

        ids = [sample.id for sample in open_source(f"kitti:{REAL / 'kitti'}").samples("sample_train")][:4]
        png = opened(f"predictions:{REAL / 'kitti/teacher_png16'}", metres_per_unit=UNITS["tiekd-kitti"])
        native = opened(f"predictions:{REAL / 'kitti/teacher_native'}", metres_per_unit=1.0)
        large, small = png.predict(None, ids).depth, native.predict(None, ids).depth
        assert (large.shape, small.shape) == ((4, 352, 1216), (4, 192, 640))
        resized = torch.nn.functional.interpolate(small[:, None], large.shape[1:], mode="bilinear")[:, 0]
        assert ((large - resized.clamp(max=80)).abs() / large).mean() < 1e-4  # PNG of this scale ends at 80 m
