"""Folders of predictions: what the numbers of a file mean, whose they are, and every error that a user may see."""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.predictions import UNITS, parse_metres_per_unit
from pipeline.teachers.registry import open_teacher

CPU = torch.device("cpu")


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def opened(spec, **options):
    return open_teacher(spec, device=CPU, options=TeacherOptions(**options))


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


# Folders of predictions

DEPTH_M = np.array([[1.5, 2.0, 3.25], [4.0, 5.5, 80.0]], np.float32)


def write_pfm(path, array):
    # The netpbm family's description of PFM: rows from the bottom up, a negative scale for little-endian.
    path.write_bytes(
        f"Pf\n{array.shape[1]} {array.shape[0]}\n-1.0\n".encode() + np.flipud(array).astype("<f4").tobytes()
    )


def write_exr(path, array):
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": array}).write(str(path))


WRITERS = {
    ".npy": np.save,
    ".npz": lambda path, array: np.savez_compressed(path, depth=array),
    ".png": lambda path, array: Image.fromarray(array).save(path),
    ".pfm": write_pfm,
    ".exr": write_exr,
}


def write_predictions(folder, files, **about):
    for name, array in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[path.suffix](path, array)
    if about:
        (folder / "predictions.json").write_text(json.dumps(about))
    return f"predictions:{folder}"


def test_png_predictions_are_scaled_and_0_is_no_value(tmp_path):
    spec = write_predictions(tmp_path, {"a_b.png": np.array([[0, 256], [65535, 1]], np.uint16)})
    teacher = opened(spec, metres_per_unit=1 / 256)
    depth, dpm, _ = teacher.predict(None, ["a/b"])[:3]
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
        depth_space="metric_m",
        licence="MIT",
    )
    card = opened(spec).card
    assert (card.kind, card.name, card.depth_space, card.licence) == ("predictions", "big-net", "metric_m", "MIT")
    assert card.preprocessing == {"format": "npy", "metres_per_unit": 80 / 65535}
    assert opened(spec, depth_space="metric_m", metres_per_unit=80 / 65535).card == card


def test_the_digest_of_predictions_tells_another_teacher_of_the_same_names_and_sizes(tmp_path):
    digests = [
        opened(write_predictions(tmp_path / name, {"a/b.npy": array}, metres_per_unit=1)).card.weights_sha256
        for name, array in {"one": DEPTH_M, "other": DEPTH_M + 1, "same": DEPTH_M}.items()
    ]
    assert digests[0] == digests[2] != digests[1]


def test_the_digest_of_predictions_tells_another_listing(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M}, metres_per_unit=1)
    before = opened(spec).card.weights_sha256
    assert opened(spec).card.weights_sha256 == before
    np.save(tmp_path / "b.npy", DEPTH_M)
    assert opened(spec).card.weights_sha256 != before


def test_predictions_without_scale_are_refused_with_both_ways_and_usual_values(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M})
    with refuses("`metres_per_unit=0.001`", "predictions.json", '{"metres_per_unit": 0.001}', "1/256", "80/65535"):
        opened(spec)


@pytest.mark.parametrize(
    ("about", "options", "parts"),
    [
        (
            {"metres_per_unit": 0.001},
            {"metres_per_unit": 1.0},
            ["`metres_per_unit=1.0` contradicts 0.001", "omit"],
        ),
        ({"metres_per_unit": 0}, {}, ["metres per unit '0'", "above 0"]),
        ({"metres_per_unit": "yards"}, {}, ["'yards'", "tiekd-kitti"]),
        ({}, {"metres_per_unit": -1.0}, ["`metres_per_unit=-1.0`", "above 0"]),
        (
            {"metres_per_unit": 1, "depth_space": "metric_m"},
            {"depth_space": "affine_depth"},
            ["`depth_space=affine_depth`", "'metric_m' in", "correct the file"],
        ),
        ({"metres_per_unit": 1, "depth_space": "feet"}, {}, ["'feet'", "metric_m"]),
        ({"metres_per_unit": 1, "licence": "MIT"}, {"licence": "GPL"}, ["`licence=GPL`", "'MIT'"]),
        ({"metres_per_unit": 1, "licence": 7}, {}, ["has licence 7", "expected text"]),
        ({"metres_per_unit": 1, "name": "x" * 5000}, {}, ["has name xxx", "at most 4096"]),
        ({"metres_per_unit": [1]}, {}, ["predictions.json", "'[1]'", "above 0"]),
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
    with refuses(tmp_path, "no file for 'x/y'", "expected x/y.npy or x_y.npy", "remove"):
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
    with refuses("a_b_c.npy matches both 'a/b_c' and 'a_b/c'", "folders named as in the ids"):
        teacher.predict(None, ["a_b/c"])


@pytest.mark.parametrize("bad", [np.inf, -1.0, 0.0])
def test_float_metres_that_are_no_depth_are_refused_with_their_number(tmp_path, bad):
    array = DEPTH_M.copy()
    array[0, :2] = bad
    spec = write_predictions(tmp_path, {"a.npy": array}, metres_per_unit=1)
    with refuses(tmp_path / "a.npy", "2 of 6 pixels", f"{bad:g}", "above 0", "metric_m", f"`invalid={bad:g}`"):
        opened(spec).predict(None, ["a"])


def test_nan_in_float_predictions_is_no_value(tmp_path):
    array = DEPTH_M.copy()
    array[0, :2] = np.nan
    spec = write_predictions(tmp_path, {"a.npy": array}, metres_per_unit=2)
    np.testing.assert_array_equal(opened(spec).predict(None, ["a"]).depth[0], 2 * array)


def test_relative_predictions_may_be_0_or_negative_but_not_infinite(tmp_path):
    spec = write_predictions(
        tmp_path,
        {"a.npy": DEPTH_M - 2, "b.npy": DEPTH_M * np.inf},
        depth_space="affine_disparity",
    )
    np.testing.assert_array_equal(opened(spec).predict(None, ["a"]).depth[0], DEPTH_M - 2)
    with refuses("b.npy", "6 of 6 pixels", "finite numbers", "affine_disparity"):
        opened(spec).predict(None, ["b"])


@pytest.mark.parametrize("said", ["flag", "file", "both"])
def test_declared_numbers_are_no_value_and_are_recorded(tmp_path, said):
    array = np.array([[0, 65535, 4000], [1, 2000, 65534]], np.uint16)
    about = {"invalid": 65535} if said == "file" else {"invalid": [65535, 1]} if said == "both" else {}
    spec = write_predictions(tmp_path, {"a.png": array}, metres_per_unit=0.001, **about)
    flag = {"file": (1.0,), "flag": (65535.0, 1.0), "both": (1.0,)}[said]
    teacher = opened(spec, invalid=flag)
    expected = np.array([[np.nan, np.nan, 4], [np.nan, 2, 65.534]], np.float32)
    np.testing.assert_array_equal(teacher.predict(None, ["a"]).depth[0], expected)
    assert teacher.card.preprocessing["invalid"] == [65535, 1]


@pytest.mark.parametrize("suffix", [".npy", ".pfm"])
def test_declared_numbers_of_a_float_format_are_those_that_its_type_holds(tmp_path, suffix):
    array = np.array([[0.0, -1.0, 0.1, 5.0]], np.float32)
    spec = write_predictions(tmp_path, {f"a{suffix}": array}, metres_per_unit=1, invalid=[0, -1, 0.1])
    np.testing.assert_array_equal(opened(spec).predict(None, ["a"]).depth[0], [[np.nan, np.nan, np.nan, 5]])


@pytest.mark.parametrize(
    ("about", "parts"),
    [
        ({"invalid": "65535"}, ["predictions.json", "invalid 65535", "expected a number"]),
        ({"invalid": [True]}, ["invalid [True]"]),
        ({"invalid": list(range(17))}, ["up to 16"]),
        ({"metre_per_unit": 0.001}, ["unknown key 'metre_per_unit'", "metres_per_unit", "remove"]),
        ({"grid": "crop"}, ["grid 'crop'", "image or view"]),
        ({"view": "middle"}, ["predictions.json", "'middle'", "center:HxW"]),
        ({"input_size": [192]}, ["input_size [192]", "[height, width]"]),
    ],
    ids=["text", "bool", "many", "misspelt", "grid", "view", "size"],
)
def test_a_statement_that_is_none_is_refused(tmp_path, about, parts):
    with refuses(*parts):
        opened(write_predictions(tmp_path, {"a.npy": DEPTH_M}, metres_per_unit=1, **about))


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
    with refuses(tmp_path, "none of .exr, .npy, .npz, .pfm, .png", "files of one format"):
        opened(f"predictions:{tmp_path}", metres_per_unit=1.0)


def test_an_8_bit_prediction_is_refused(tmp_path):
    spec = write_predictions(tmp_path, {"a.png": np.ones((2, 2), np.uint8)}, metres_per_unit=1)
    with refuses("prediction", tmp_path / "a.png", "'L'", "PNG of 16 bits"):
        opened(spec).predict(None, ["a"])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pfm", ".exr"])
def test_metres_in_every_float_format_come_back_as_they_are(tmp_path, suffix):
    if suffix == ".exr":
        pytest.importorskip("OpenEXR")
    teacher = opened(write_predictions(tmp_path, {f"a_b{suffix}": DEPTH_M}, metres_per_unit=1))
    np.testing.assert_array_equal(teacher.predict(None, ["a/b"]).depth[0], DEPTH_M)
    assert teacher.card.preprocessing["format"] == suffix[1:]


@pytest.mark.parametrize(("name", "top_m"), [("tiekd-kitti", 80), ("tiekd-nyu", 10)])
def test_the_last_number_of_a_released_prediction_is_the_end_of_its_range(tmp_path, name, top_m):
    spec = write_predictions(tmp_path, {"a.png": np.array([[65535]], np.uint16)}, metres_per_unit=name)
    assert float(opened(spec).predict(None, ["a"]).depth) == top_m


@pytest.mark.parametrize("space", ["affine_depth", "affine_disparity", "scale_invariant"])
def test_relative_predictions_need_no_scale_and_refuse_one(tmp_path, space):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M})
    for scale in (None, 1.0):
        teacher = opened(spec, depth_space=space, metres_per_unit=scale)
        assert teacher.card.preprocessing["metres_per_unit"] == 1
        np.testing.assert_array_equal(teacher.predict(None, ["a"]).depth[0], DEPTH_M)
    with refuses("0.001 metres per unit", space, "stored as it is", "omit the scale"):
        opened(spec, depth_space=space, metres_per_unit=0.001)


@pytest.mark.parametrize("name", ["predictions.json", "b.npy"])
def test_a_pipe_among_predictions_is_refused_and_not_waited_for(tmp_path, name):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M})
    os.mkfifo(tmp_path / name)
    with refuses(name, "not a regular file"):
        opened(spec, metres_per_unit=1.0)


def test_a_link_to_a_description_that_is_gone_is_refused(tmp_path):
    spec = write_predictions(tmp_path, {"a.npy": DEPTH_M})
    (tmp_path / "predictions.json").symlink_to(tmp_path / "gone.json")
    with refuses("predictions.json", "No such file"):
        opened(spec, metres_per_unit=1.0)


# Real data


@pytest.mark.realdata
class TestRealPredictions:
    def test_both_forms_of_the_real_predictions_agree(self, real):
        from pipeline.sources.registry import open_source

        ids = [sample.id for sample in open_source(f"kitti:{real / 'kitti'}").samples("sample_train")][:4]
        png = opened(f"predictions:{real / 'kitti/teacher_png16'}", metres_per_unit=UNITS["tiekd-kitti"])
        native = opened(f"predictions:{real / 'kitti/teacher_native'}", metres_per_unit=1.0)
        large, small = png.predict(None, ids).depth, native.predict(None, ids).depth
        assert (large.shape, small.shape) == ((4, 352, 1216), (4, 192, 640))
        resized = torch.nn.functional.interpolate(small[:, None], large.shape[1:], mode="bilinear")[:, 0]
        assert ((large - resized.clamp(max=80)).abs() / large).mean() < 1e-4  # PNG of this scale ends at 80 m

    @pytest.mark.parametrize(("split", "frames", "absrel"), [("sample_train", 24, 0.0579), ("sample_test", 20, 0.0633)])
    def test_the_released_layout_gives_the_accuracy_that_its_makers_measured(self, real, split, frames, absrel):
        from pipeline.sources.registry import open_source
        from pipeline.sources.view import View

        source = open_source(f"kitti:{real / 'kitti'}")
        teacher = opened(f"predictions:{real / 'kitti/teacher_png16'}", metres_per_unit=UNITS["tiekd-kitti"])
        errors = []
        for sample in source.samples(split):
            truth_m = source.read_truth_m(sample)
            truth_m = View.parse("kb").of_depth(truth_m, truth_m.shape)
            # The crop of Garg et al. on 352x1216, as the README of the data has it.
            crop = (
                slice(int(0.40810811 * 352), int(0.99189189 * 352)),
                slice(int(0.03594771 * 1216), int(0.96405229 * 1216)),
            )
            truth_m, depth_m = truth_m[crop], teacher.predict(None, [sample.id]).depth[0].numpy()[crop]
            there = (truth_m > 1e-3) & (truth_m < 80)
            errors.append(np.mean(np.abs(depth_m - truth_m)[there] / truth_m[there]))
        assert len(errors) == frames
        assert np.mean(errors) == pytest.approx(absrel, abs=5e-5)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_compared_in_one_form_of_unicode_with_any_case_of_the_suffix(tmp_path, form):
    name = unicodedata.normalize(form, "Caf\u00e9 at 10.15\u202fAM")
    np.save(tmp_path / "a.npy", np.full((4, 5), 2.0, np.float32))
    (tmp_path / "a.npy").rename(tmp_path / f"{name}.NPY")
    (tmp_path / "predictions.json").write_text('{"metres_per_unit": 1}')
    teacher = open_teacher(f"predictions:{tmp_path}", device=torch.device("cpu"), options=TeacherOptions())
    assert float(teacher.predict(None, ["Caf\u00e9 at 10.15\u202fAM"]).depth.max()) == 2


def test_folders_behind_links_hold_predictions_too(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "elsewhere/1.npy", np.full((4, 5), 2.0, np.float32))
    (tmp_path / "out/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out/circle").symlink_to(tmp_path / "out")
    (tmp_path / "out/predictions.json").write_text('{"metres_per_unit": 1}')
    teacher = open_teacher(f"predictions:{tmp_path / 'out'}", device=torch.device("cpu"), options=TeacherOptions())
    assert float(teacher.predict(None, ["a/1"]).depth.max()) == 2
