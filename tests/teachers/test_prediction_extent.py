"""Predictions and outputs of another geometry: cut as the view cuts, or refused with both sizes and what to do."""

import json
import re

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_networks import make_torchscript

from pipeline.cli.main import main
from pipeline.deploy.predict_folder import FolderOptions, predict_folder
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.teachers.base import TeacherCard, check_covers
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.prediction_extent import Extent
from pipeline.teachers.predictions import IGNORED_KEYS, KEYS
from pipeline.teachers.python_factory import PythonTeacher
from pipeline.teachers.registry import open_teacher

IMAGE_PX = (48, 96)
KITTI_PX = (375, 1242)
CPU = torch.device("cpu")
BINS = ("--bins", "nyu", "--sigma-m", "0.2")


def command(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def run(*arguments):
    done = command(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def root(tmp_path):
    """Three images with dense truth in millimetres, which is exact in the store's sense."""
    return fakes.make_folder(tmp_path / "data", ("0", "1", "2"), IMAGE_PX)


def cached(root, folder, out, *flags):
    given = ("--source", f"folder:{root}", "--split", "all", "--teacher", f"predictions:{folder}", *BINS)
    return command("cache-teacher", *given, *flags, "--out", out)


def truth_of(root, text, number=0):
    source = open_source(f"folder:{root}")
    return View.parse(text).of_depth(source.read_truth_m(source.samples("all")[number]), IMAGE_PX)


# Predictions of the whole image


@pytest.mark.parametrize("text", ["center:20x40", "full,resize:12x30", "center:20x40,resize:10x20", "full"])
def test_predictions_of_whole_images_are_cut_as_the_view_cuts(root, tmp_path, text):
    done = cached(root, root / "depth", tmp_path / "s.zarr", "--metres-per-unit", "mm", "--view", text)
    assert done.exit_code == 0, done.output
    store = open_store(tmp_path / "s.zarr")
    assert store.layout.size_px == View.parse(text).size_px(*IMAGE_PX)
    for number in range(3):
        np.testing.assert_allclose(store.depth_m(number), truth_of(root, text, number), rtol=6e-4)


def test_predictions_that_are_the_truth_have_no_error_under_a_view_that_resizes(root, tmp_path):
    cached(root, root / "depth", tmp_path / "s.zarr", "--metres-per-unit", "mm", "--view", "full,resize:12x30")
    given = ("--source", f"folder:{root}", "--split", "all", "--out", tmp_path / "m.json")
    run("evaluate-teacher", tmp_path / "s.zarr", *given)
    assert json.loads((tmp_path / "m.json").read_text())["metrics"]["abs_rel"] < 5e-4


def test_images_of_two_sizes_make_one_store_where_the_view_resizes(tmp_path):
    root = tmp_path / "data"
    for number, size_px in enumerate([(48, 96), (24, 48)]):
        depth_m = fakes.smooth_depth_m(size_px, number)
        fakes.write_image(root / "rgb" / f"{number}.png", fakes.image_of(depth_m))
        fakes.write_depth(root / "depth" / f"{number}.png", depth_m, 0.001)
    flags = ("--metres-per-unit", "mm", "--view", "full,resize:24x48")
    assert cached(root, root / "depth", tmp_path / "s.zarr", *flags).exit_code == 0
    assert open_store(tmp_path / "s.zarr").layout.size_px == (24, 48)


def test_a_store_of_cut_predictions_agrees_with_its_live_teacher(root, tmp_path):
    flags = ("--metres-per-unit", "mm")
    cached(root, root / "depth", tmp_path / "s.zarr", *flags, "--view", "center:20x40")
    given = ("--source", f"folder:{root}", "--split", "all", "--against", f"predictions:{root / 'depth'}", *flags)
    assert ": OK" in run("store", "verify", tmp_path / "s.zarr", *given)


def test_an_ensemble_cuts_the_predictions_of_whole_images_among_its_members(root, tmp_path):
    members = [
        {"teacher": f"predictions:{root / 'depth'}", "metres-per-unit": 0.001},
        {"teacher": "python:fakes:factory"},
    ]
    (tmp_path / "both.json").write_text(json.dumps({"members": members}))
    given = ("--source", f"folder:{root}", "--split", "all", "--view", "center:20x40", "--trust-code", *BINS)
    run("cache-teacher", *given, "--teacher", f"ensemble:{tmp_path / 'both.json'}", "--out", tmp_path / "s.zarr")
    np.testing.assert_allclose(open_store(tmp_path / "s.zarr").depth_m(1), truth_of(root, "center:20x40", 1), rtol=0.02)


@pytest.mark.parametrize("mirrored_by", ["hand", "us"])
def test_a_mirrored_view_takes_mirrored_files_as_they_are_and_mirrors_stated_images(root, tmp_path, mirrored_by):
    depths_m = [fakes.smooth_depth_m(IMAGE_PX, number) for number in range(3)]
    for number, depth_m in enumerate(depths_m):
        (tmp_path / "p").mkdir(exist_ok=True)
        np.save(tmp_path / "p" / f"{number}.npy", depth_m[:, ::-1] if mirrored_by == "hand" else depth_m)
    if mirrored_by == "us":
        (tmp_path / "p" / "predictions.json").write_text('{"grid": "image"}')
    flags = ("--metres-per-unit", "1", "--view", "center:20x41,mirror")
    assert cached(root, tmp_path / "p", tmp_path / "s.zarr", *flags).exit_code == 0
    expected = View.parse("center:20x41,mirror").of_depth(depths_m[2], IMAGE_PX)
    np.testing.assert_allclose(open_store(tmp_path / "s.zarr").depth_m(2), expected, rtol=6e-4)


# What a size says


def shown(size_px, asked, image_px=KITTI_PX, **stated):
    """The size of what is taken of a file."""
    return Extent(**stated).of_view(np.ones(size_px, np.float32), View.parse(asked), image_px, "prediction a").shape


@pytest.mark.parametrize(
    ("size_px", "view", "taken_px"),
    [
        ((352, 1216), "kb", (352, 1216)),
        ((176, 608), "kb", (176, 608)),
        ((88, 304), "kb", (88, 304)),
        ((352, 1216), "kb,resize:88x304", (352, 1216)),
        ((88, 304), "kb,resize:88x304", (88, 304)),
        ((192, 640), "full,resize:192x640", (192, 640)),
        ((375, 1242), "full,resize:192x640", (192, 640)),
        ((375, 1242), "kb", (352, 1216)),
        ((375, 1242), "kb,resize:88x304", (88, 304)),
        ((187, 621), "full", (187, 621)),
    ],
    ids=["view", "half", "quarter", "box", "resized", "stretched", "whole", "crop", "both", "half-full"],
)
def test_a_file_is_of_the_view_or_of_the_image_by_its_size(size_px, view, taken_px):
    assert shown(size_px, view) == taken_px


def refused(*parts):
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def test_a_crop_is_not_stretched_over_the_whole_image():
    with refused("prediction a: 352x1216 px", "view full, 375x1242 px", "`view=kb`"):
        shown((352, 1216), "full")


def test_a_stretched_file_is_taken_where_its_input_size_is_stated():
    with refused(
        "192x640 px",
        "view kb, 352x1216 px",
        "image, 375x1242 px",
        "`input_size_px=192x640`",
        '"input_size": [192, 640]',
    ):
        shown((192, 640), "kb")
    assert shown((192, 640), "kb", input_px=(192, 640)) == (192, 640)
    assert shown((96, 320), "kb", input_px=(192, 640)) == (96, 320)
    assert shown((352, 1216), "kb", input_px=(192, 640)) == (352, 1216)
    assert shown((192, 640), "kb", grid="image", input_px=(192, 640)) == (180, 627)
    with refused("200x600 px", "`input_size_px=200x600`"):
        shown((200, 600), "kb", input_px=(192, 640))


def test_a_small_file_of_the_whole_image_is_cut_where_that_is_stated():
    with refused("187x621 px", "view kb", '"grid": "image"'):
        shown((187, 621), "kb")
    assert shown((187, 621), "kb", grid="image") == (176, 608)


def test_exchanged_rows_and_columns_are_refused():
    with refused("1216x352 px"):
        shown((1216, 352), "kb")


def test_a_size_that_may_be_either_is_refused_until_it_is_stated():
    either = ((120, 160), "center:240x320", (480, 640))
    with refused("120x160 px", "480x640", "center:240x320", '"grid": "image" or "grid": "view"'):
        shown(*either)
    assert shown(*either, grid="view") == (120, 160)
    assert shown(*either, grid="image") == (60, 80)
    assert shown((240, 320), *either[1:]) == (240, 320)
    assert shown((480, 640), *either[1:]) == (240, 320)


def test_what_is_stated_is_held_against_the_size_and_the_view():
    with refused("352x1216 px", "whole image, 375x1242 px"):
        shown((352, 1216), "kb", grid="image")
    with refused("375x1242 px", "view kb, 352x1216 px"):
        shown((375, 1242), "kb", grid="view", view=View.parse("kb"))
    with refused("covers the view kb, not full", "`view=kb`"):
        shown((352, 1216), "full", grid="view", view=View.parse("kb"))
    assert shown((88, 304), "kb", grid="view", view=View.parse("kb,resize:88x304")) == (88, 304)


# What our own `predict` writes


class Darkness:
    """A model whose depth is 12 m times darkness, through a view."""

    def __init__(self, view):
        self.view, self.facts, self.depth_space = View.parse(view), {"name": "dark"}, "metric_m"
        self.depth_range_m = (0.5, 12.0)

    def predict_m(self, images):
        return (fakes.BLACK_M * (1 - images.mean(axis=-1) / 255)).astype(np.float32)


@pytest.mark.parametrize("grid", ["image", "view"])
def test_what_predict_writes_teaches_the_same_depth_whichever_grid_it_has(root, tmp_path, grid):
    options = FolderOptions("none", npy=True, grid=grid)
    predict_folder(Darkness("center:20x40"), root / "rgb", tmp_path / "p", options)
    written = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert set(written) <= {*KEYS, *IGNORED_KEYS}
    flags = ("--view", "center:20x40") if grid == "image" else ()  # the view of the files, where they have one
    done = cached(root, tmp_path / "p", tmp_path / "s.zarr", *flags)
    assert done.exit_code == 0, done.output
    store = open_store(tmp_path / "s.zarr")
    assert store.spec.view == "center:20x40"
    np.testing.assert_allclose(store.depth_m(0), truth_of(root, "center:20x40"), rtol=0.02)


def test_predictions_of_a_view_are_not_taken_for_another(root, tmp_path):
    predict_folder(Darkness("center:20x40"), root / "rgb", tmp_path / "p", FolderOptions("none", npy=True, grid="view"))
    done = cached(root, tmp_path / "p", tmp_path / "s.zarr", "--view", "center:24x48")
    assert done.exit_code == 1
    assert "covers the view center:20x40, not center:24x48: give --view center:20x40" in done.output


def test_holes_around_the_view_of_a_prediction_are_no_value(root, tmp_path):
    predict_folder(Darkness("center:20x40"), root / "rgb", tmp_path / "p", FolderOptions("none", npy=True))
    assert cached(root, tmp_path / "p", tmp_path / "s.zarr", "--view", "full").exit_code == 0
    depth_m = open_store(tmp_path / "s.zarr").depth_m(0)
    assert np.isnan(depth_m).mean() == pytest.approx(1 - 800 / 4608)
    assert np.isfinite(depth_m[14:34, 28:68]).all()


def test_infinity_can_be_declared_no_value(root, tmp_path):
    (tmp_path / "p").mkdir()
    for number in range(3):
        depth_m = fakes.smooth_depth_m(IMAGE_PX, number)
        depth_m[:4] = np.inf
        np.save(tmp_path / "p" / f"{number}.npy", depth_m)
    done = cached(root, tmp_path / "p", tmp_path / "s.zarr", "--metres-per-unit", "1")
    assert done.exit_code == 1
    assert "384 of 4608 pixels are infinite" in done.output
    done = cached(root, tmp_path / "p", tmp_path / "s.zarr", "--metres-per-unit", "1", "--invalid", "inf")
    assert done.exit_code == 0, done.output
    store = open_store(tmp_path / "s.zarr")
    assert store.spec.teacher["preprocessing"]["invalid"] == ["inf"]
    assert np.isnan(store.depth_m(0)).sum() == 384


def test_a_member_of_an_ensemble_declares_its_own_numbers(root, tmp_path):
    members = [
        {"teacher": f"predictions:{root / 'depth'}", "metres-per-unit": 0.001, "invalid": "5000,6000"},
        {"teacher": f"predictions:{root / 'depth'}", "metres-per-unit": 0.001, "invalid": 7000},
    ]
    (tmp_path / "both.json").write_text(json.dumps({"members": members}))
    options = TeacherOptions(map_edges_m=(1.0, 5.0, 10.0), map_sigma_m=0.2)
    teacher = open_teacher(f"ensemble:{tmp_path / 'both.json'}", device=CPU, options=options)
    stated = [one["card"]["preprocessing"]["invalid"] for one in teacher.card.preprocessing["members"]]
    assert stated == [[5000, 6000], [7000]]


# What networks give


@pytest.mark.parametrize(
    ("output_px", "input_px"),
    [
        ((192, 640), (192, 640)),
        ((48, 160), (192, 640)),
        ((128, 160), (228, 304)),
        ((364, 1232), (375, 1242)),
        ((94, 311), (375, 1242)),
        ((1, 1), (192, 640)),
    ],
    ids=["same", "strides", "padded", "patches", "ceil", "one"],
)
def test_an_output_covers_its_input_at_any_resolution(output_px, input_px):
    check_covers("a", output_px, input_px, "mend it")


@pytest.mark.parametrize("output_px", [(640, 192), (320, 96), (192, 192), (192, 600)])
def test_an_output_of_another_aspect_is_refused_with_both_sizes(output_px):
    size = "x".join(map(str, output_px))
    turned = output_px in {(640, 192), (320, 96)}
    with refused(f"a returned depth of {size} px for 192x640 px", "transpose the output" if turned else "mend it"):
        check_covers("a", output_px, (192, 640), "mend it")


@pytest.mark.parametrize("flags", [(), ("--flip-average",)], ids=["alone", "flips"])
def test_a_transposed_output_of_a_python_teacher_is_refused(root, tmp_path, flags):
    given = ("--source", f"folder:{root}", "--split", "all", *BINS, *flags)
    done = command("cache-teacher", *given, "--teacher", "python:fakes:transposed", "--out", tmp_path / "s.zarr")
    assert done.exit_code == 1
    assert "returned depth of 96x48 px for 48x96 px" in done.output
    assert "rows and columns look swapped" in done.output
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("stated", [None, (32, 32), [32, 32], 32], ids=["none", "tuple", "list", "number"])
def test_a_python_teacher_of_a_fixed_input_says_its_size(stated):
    card = TeacherCard(
        "python", "square", "metric_m", preprocessing={} if stated is None else {"input_size_px": stated}
    )
    teacher = PythonTeacher(lambda images: torch.ones(len(images), 16, 16), card, None, CPU)
    images = torch.zeros(2, 3, 48, 96)
    if stated in ((32, 32), [32, 32]):
        assert teacher.predict(images, ["a", "b"]).depth.shape == (2, 16, 16)
        return
    with refused("'square' returned depth of 16x16 px for 48x96 px", '"input_size_px": [height, width]'):
        teacher.predict(images, ["a", "b"])


@pytest.mark.parametrize(
    ("output_px", "fits"), [((518, 784), True), ((512, 512), True), ((784, 518), False), ((540, 360), False)]
)
def test_a_python_teacher_of_a_varying_input_states_that_it_covers_the_view(output_px, fits):
    def depth(images):
        return torch.ones(len(images), *output_px)

    images = torch.zeros(1, 3, 360, 540)
    with refused("360x540 px"):
        PythonTeacher(depth, TeacherCard("python", "patches", "metric_m"), None, CPU).predict(images, ["a"])
    card = TeacherCard("python", "patches", "metric_m", preprocessing={"covers_view": True})
    teacher = PythonTeacher(depth, card, None, CPU)
    if fits:
        assert teacher.predict(images, ["a"]).depth.shape == (1, *output_px)
        return
    with refused(f"{'x'.join(map(str, output_px))} px for 360x540 px"):
        teacher.predict(images, ["a"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_transposed_output_of_a_file_is_refused(tmp_path):
    class Transposed(torch.nn.Module):
        def forward(self, images):
            return images.mean(1).transpose(1, 2) + 1

    torch.jit.script(Transposed()).save(tmp_path / "net.pt")
    options = TeacherOptions(depth_space="metric_m", normalise="unit", trust_code=True)
    teacher = open_teacher(f"torchscript:{tmp_path / 'net.pt'}", device=CPU, options=options)
    with refused("net.pt", "returned depth of 32x24 px for 24x32 px", "swapped"):
        teacher.predict(torch.zeros(1, 3, 24, 32), ["a"])


def test_a_file_of_a_square_input_covers_any_view(tmp_path):
    path = make_torchscript(tmp_path / "net.pt")
    options = TeacherOptions(depth_space="metric_m", normalise="unit", trust_code=True, input_size_px=(32, 32))
    teacher = open_teacher(f"torchscript:{path}", device=CPU, options=options)
    height, width = teacher.predict(torch.zeros(1, 3, 24, 64), ["a"]).depth.shape[1:]
    assert height == width
