"""One rendered scene seen by two cameras: a student that is exact for one gives true depth for the other."""

import json
from dataclasses import replace

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main
from pipeline.deploy.export import export_student
from pipeline.deploy.onnx_model import open_onnx
from pipeline.deploy.predict_folder import FolderOptions, predict_folder
from pipeline.deploy.runners import OnnxPredictor, RunPredictor
from pipeline.deploy.student import Student
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import LoadedRun, save_weights, trained_focal_px
from pipeline.sources.intrinsics import Intrinsics
from pipeline.sources.view import View
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher
from pipeline.train.config import regression_edges_m
from scenes.camera import Camera
from scenes.shade import render
from scenes.world import draw_scene

CPU = torch.device("cpu")
SIZE_PX = (96, 160)
HEIGHT_M = 1.5
FIRST_PX, SECOND_PX = 90.0, 153.0
NEAR_M, FAR_M = 1.0, 60.0
VIEWS = ["full", "center:88x144", "center:88x144,resize:44x72", "full,resize:96x120"]


def camera(focal_px):
    """A level camera above the middle of the lane."""
    return Camera(SIZE_PX, focal_px, 79.5, 40.0, (1.6, HEIGHT_M, 0.0), 0.0, 0.0, 0.0)


def seen(focal_px):
    """Picture, depth (H, W), and which pixels show the road plane y = 0, of one street."""
    scene = replace(draw_scene(0, 5, SIZE_PX), camera=camera(focal_px))
    picture, depth_m = render(scene)
    down = (np.arange(SIZE_PX[0])[:, None] - scene.camera.cy_px) / focal_px
    road = (np.abs(HEIGHT_M - down * depth_m) < 1e-3) & (depth_m > NEAR_M) & (depth_m < 25)
    return picture, depth_m, road


class Row(torch.nn.Module):
    """Knows distance by how low something stands in the view of the first camera, exact for what is on the road."""

    def __init__(self, view):
        super().__init__()
        self.camera = View.parse(view).of_intrinsics(Intrinsics(FIRST_PX, FIRST_PX, 79.5, 40.0), SIZE_PX)

    def forward(self, images):
        rows = torch.arange(images.shape[2], dtype=torch.float32)
        depth_m = HEIGHT_M * self.camera.fy_px / (rows - self.camera.cy_px).clamp(min=1e-3)
        part = ((depth_m.clamp(NEAR_M, FAR_M - 1e-3) - NEAR_M) / (FAR_M - NEAR_M)).clamp(min=1e-6)
        logits = torch.stack([torch.zeros_like(part), torch.logit(part)])[None, :, :, None]
        return logits + 0 * images[:, :1]


def run_of(view, network=None, **config):
    focal_px = View.parse(view).of_intrinsics(Intrinsics.of_focal(FIRST_PX), SIZE_PX).focal_px
    trained = {"trained_focal_px": {"median": focal_px, "min": focal_px, "max": focal_px}}
    config = {"student": "row", "view": view, "head": "depth", **trained, **config}
    edges_m = np.array(regression_edges_m(NEAR_M, FAR_M))
    return LoadedRun((network or Row(view)).eval(), edges_m, "1" * 64, config)


def error(depth_m, truth_m, road):
    """Median relative error on the road."""
    compared = road & np.isfinite(depth_m)
    assert compared.sum() > 500
    return np.median(np.abs(depth_m[compared] / truth_m[compared] - 1))


@pytest.mark.parametrize("view", VIEWS)
def test_a_student_of_one_camera_is_true_for_another_with_its_focal_length(tmp_path, view):
    student = Student(tmp_path, run_of(view), CPU)
    picture, truth_m, road = seen(FIRST_PX)
    assert error(student.predict(picture), truth_m, road) < 0.02
    assert error(student.predict(picture, focal_px=FIRST_PX), truth_m, road) < 0.02
    picture, truth_m, road = seen(SECOND_PX)
    assert error(student.predict(picture), truth_m, road) == pytest.approx(1 - FIRST_PX / SECOND_PX, abs=0.03)
    assert error(student.predict(picture, focal_px=SECOND_PX), truth_m, road) < 0.03


@pytest.mark.parametrize("grid", ["image", "view"])
def test_a_folder_of_another_camera_is_rescaled_and_says_so(tmp_path, grid):
    view = VIEWS[1]
    picture, truth_m, road = seen(SECOND_PX)
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images/a.png")
    options = FolderOptions(depth_png="none", npy=True, grid=grid, focal_px=SECOND_PX)
    predict_folder(RunPredictor(run_of(view), CPU), tmp_path / "images", tmp_path / "out", options)
    if grid == "view":
        truth_m, road = (View.parse(view).of_depth(values, SIZE_PX) for values in (truth_m, road))
    assert error(np.load(tmp_path / "out/a.npy"), truth_m, road) < 0.02
    assert json.loads((tmp_path / "out/predictions.json").read_text())["focal_px"] == SECOND_PX
    open_teacher(f"predictions:{tmp_path / 'out'}", device=CPU, options=TeacherOptions())  # can still teach


def test_a_resized_input_is_another_camera_too(tmp_path):
    Image.new("RGB", SIZE_PX[::-1]).save(tmp_path / "a.png")
    small = RunPredictor(run_of("full"), CPU, size_px=(48, 80))
    options = FolderOptions(depth_png="none", npy=True, focal_px=FIRST_PX)
    predict_folder(small, tmp_path / "a.png", tmp_path / "out", options)
    depth_m = np.load(tmp_path / "out/a.npy")
    # Things are half as large in half of the pixels, so the network sees them at twice their distance
    unscaled_m = HEIGHT_M * FIRST_PX / (45 - 40)
    assert depth_m[90:92, 0].mean() == pytest.approx(unscaled_m / 2, rel=0.02)  # row 45 of the small image


# ONNX files


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("file") / "student.onnx"
    export_student(run_of(VIEWS[1]), path)
    return path


def test_an_exported_student_carries_its_focal_length_and_rescales(tmp_path, file):
    student = open_onnx(file)
    assert student.card.trained_focal_px == FIRST_PX
    picture, truth_m, road = seen(SECOND_PX)
    Image.fromarray(picture).save(tmp_path / "a.png")
    options = FolderOptions(depth_png="none", npy=True, focal_px=SECOND_PX)
    predict_folder(OnnxPredictor(student), tmp_path / "a.png", tmp_path / "out", options)
    assert error(np.load(tmp_path / "out/a.npy"), truth_m, road) < 0.02


def test_the_command_rescales_by_its_flag(tmp_path, file):
    picture, truth_m, road = seen(SECOND_PX)
    Image.fromarray(picture).save(tmp_path / "a.png")
    words = ["predict", str(file), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--focal-px", "153"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    depth_m = np.asarray(Image.open(tmp_path / "out/a.png")) / 256
    assert error(np.where(depth_m > 0, depth_m, np.nan), truth_m, road) < 0.02


# Refusals


@pytest.mark.parametrize(
    ("config", "focal_px", "message"),
    [
        ({"trained_focal_px": None}, 500.0, r"`focal_px=500`: row does not record the focal length"),
        ({"depth_space": "affine_disparity"}, 500.0, r"`focal_px=500`: row predicts relative depth"),
        ({}, 0.0, r"`focal_px=0.0`: expected a number of pixels above 0"),
        ({}, float("nan"), r"`focal_px=nan`"),
        ({}, float("inf"), r"`focal_px=inf`"),
    ],
)
def test_what_cannot_be_rescaled_is_refused(tmp_path, config, focal_px, message):
    run = run_of("full", **config)
    with pytest.raises(ValueError, match=message):
        Student(tmp_path, run, CPU).predict(np.zeros((*SIZE_PX, 3), np.uint8), focal_px=focal_px)
    Image.new("RGB", (160, 96)).save(tmp_path / "a.png")
    options = FolderOptions(depth_png="none", npy=True, focal_px=focal_px)
    with pytest.raises(ValueError, match=message):
        predict_folder(RunPredictor(run, CPU), tmp_path / "a.png", tmp_path / "out", options)


@pytest.mark.parametrize("stated", [{}, {"median": "90"}, {"median": -1}, {"median": True}, {"median": 1e300}])
def test_an_impossible_focal_length_of_a_strangers_run_is_refused(stated):
    with pytest.raises(ValueError, match="trained_focal_px .* expected a positive `median`"):
        trained_focal_px({"trained_focal_px": stated})


def test_a_run_of_an_older_release_predicts_and_has_no_focal_length(tmp_path):
    network = build_student("lean", 8)
    save_weights(network, tmp_path / "student.safetensors")
    config = {"student": "lean", "view": "full", "bin_edges_m": np.linspace(1, 40, 9).tolist()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    fakes.write_image(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    words = ["predict", str(tmp_path), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--focal-px", "500"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "--focal-px 500" in done.output
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(main, words[:-2]).exit_code == 0
