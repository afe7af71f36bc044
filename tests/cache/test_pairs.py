"""Teachers of stereo pairs: right images reach them, and their disparities read in metres."""

import re
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_stores import folder_bytes

import pipeline as tiekd
from pipeline.cache.compare_teacher import compare_with_teacher
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.errors import PipelineError
from pipeline.sources.registry import open_source
from pipeline.sources.stereo import baseline_of, read_right
from pipeline.store import open_store
from pipeline.store.tools.verify import verify_store
from pipeline.teachers.base import TeacherCard, TeacherOutput
from pipeline.teachers.camera import with_camera
from pipeline.teachers.options import TeacherOptions

REAL = Path(__file__).parents[3] / "shared" / "data" / "kitti"
SIZE_PX = (40, 120)
DISPARITY_PX = 6
FX_PX, BASELINE_M = 100.0, 0.5
CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
S_rect_02: 120 40
P_rect_02: 100 0 60 5 0 100 20 0 0 0 1 0
S_rect_03: 120 40
P_rect_03: 100 0 60 -45 0 100 20 0 0 0 1 0
"""
OPTIONS = CacheOptions(view="full", samples_per_shard=2, batch_size=2)


@pytest.fixture
def root(tmp_path):
    """KITTI frames of one disparity: column x of the left image is column x - 6 of the right one."""
    root = fakes.make_kitti(tmp_path / "kitti", 6, SIZE_PX)
    for number in range(6):
        name = f"{number:010d}" + (".jpg" if number % 2 else ".png")
        wide = np.random.default_rng(number).integers(0, 256, (SIZE_PX[0], SIZE_PX[1] + DISPARITY_PX, 3), np.uint8)
        drive = root / "input" / "2011_09_26" / "2011_09_26_drive_0001_sync"
        for camera, first in (("image_02", 0), ("image_03", DISPARITY_PX)):
            fakes.write_image(drive / camera / "data" / name, wide[:, first : first + SIZE_PX[1]])
    (root / "input" / "2011_09_26" / "calib_cam_to_cam.txt").write_text(CALIBRATION)
    return root


class Matcher:
    """Block matching over 0 to 9 pixels: `right` is searched at x - d."""

    needs_images = True
    bin_edges_m = None
    card = TeacherCard("python", "matcher", "disparity_px", "0" * 64, preprocessing={"inputs": ["right", "baseline"]})

    def predict(self, images, ids, right, baseline_m):
        assert baseline_m.tolist() == [BASELINE_M] * len(ids)
        costs = []
        for disparity in range(10):
            shifted = F.pad(right, (disparity, 0))[..., : right.shape[-1]]
            costs.append(F.avg_pool2d((images - shifted).abs().mean(1, keepdim=True), 5, 1, 2))
        return TeacherOutput(torch.cat(costs, 1).argmin(1).float().clamp(min=0.5))


def matcher():
    return with_camera(Matcher(), TeacherOptions())


def test_a_stereo_teacher_fills_a_store_that_reads_in_metres(root, tmp_path):
    source = open_source(f"kitti:{root}")
    cache_teacher(source, "train", matcher(), tmp_path / "s.zarr", OPTIONS)
    store = open_store(tmp_path / "s.zarr")
    assert (store.spec.depth_space, store.spec.version, store.is_metric) == ("disparity_px", 3, True)
    for sample in store.ids:
        inside = store.depth_m(sample)[:, 2 * DISPARITY_PX : -DISPARITY_PX]
        assert np.median(inside) == pytest.approx(FX_PX * BASELINE_M / DISPARITY_PX, rel=1e-3)
        assert np.mean(np.abs(inside / (FX_PX * BASELINE_M / DISPARITY_PX) - 1) < 0.01) > 0.9
    assert verify_store(tmp_path / "s.zarr") == []
    (agreement,) = compare_with_teacher(store, source, "train", matcher(), count=2)
    assert agreement.holds


def test_the_view_changes_the_right_image_and_the_focal_length_alike(root, tmp_path):
    options = replace(OPTIONS, view="center:32x96")
    cache_teacher(open_source(f"kitti:{root}"), "train", matcher(), tmp_path / "s.zarr", options)
    store = open_store(tmp_path / "s.zarr")
    assert np.median(store.depth_m(0)[:, 12:-6]) == pytest.approx(FX_PX * BASELINE_M / DISPARITY_PX, rel=1e-3)
    assert store.intrinsics_px(0).tolist() == [100, 100, 48, 16]


def test_a_student_trains_from_disparities(root, tmp_path):
    source = open_source(f"kitti:{root}")
    cache_teacher(source, "train", matcher(), tmp_path / "s.zarr", OPTIONS)
    store = open_store(tmp_path / "s.zarr")
    options = {"student": "lean-small", "epochs": 1, "batch_size": 2, "crop_px": (32, 96), "skip_rows": 0}
    student = tiekd.train_student(source, "train", store, tmp_path / "run", bins="log:8:1:40", **options)
    assert np.isfinite(student.metrics["last_epoch"]["train_loss"])


def test_an_interrupted_run_comes_to_the_same_bytes(root, tmp_path):
    source = open_source(f"kitti:{root}")
    cache_teacher(source, "train", matcher(), tmp_path / "whole.zarr", OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(source, "train", matcher(), tmp_path / "s.zarr", OPTIONS, fakes.StopAt(2))
    cache_teacher(source, "train", matcher(), tmp_path / "s.zarr", OPTIONS)
    assert folder_bytes(tmp_path / "s.zarr") == folder_bytes(tmp_path / "whole.zarr")


def drop_calibration(root):
    (root / "input" / "2011_09_26" / "calib_cam_to_cam.txt").unlink()


def drop_right(root):
    for path in (root / "input").glob("*/*/image_03/data/0000000000.*"):
        path.unlink()


def shrink_right(root):
    (path,) = (root / "input").glob("*/*/image_03/data/0000000000.*")
    fakes.write_image(path, np.zeros((38, 120, 3), np.uint8))


def tilt(root):
    path = root / "input" / "2011_09_26" / "calib_cam_to_cam.txt"
    path.write_text(path.read_text().replace("-45 0 100 20", "-45 0 100 21"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_calibration, "wants right images, but source 'kitti' has no stereo pair with a baseline for"),
        (drop_right, r"image_03/data/0000000000"),
        (shrink_right, "its right image has 38x120 px, the left one 40x120 px; expected a rectified pair of one size"),
        (tilt, "have different intrinsics, expected those of a rectified pair"),
    ],
)
def test_pairs_that_are_missing_or_not_rectified_end_in_one_error(root, tmp_path, damage, message):
    damage(root)
    with pytest.raises(PipelineError, match=message):
        cache_teacher(open_source(f"kitti:{root}"), "train", matcher(), tmp_path / "s.zarr", OPTIONS)


def test_a_teacher_without_pairs_does_not_mind_their_absence(root, tmp_path):
    tilt(root)
    drop_right(root)
    options = replace(OPTIONS, bins="nyu", sigma_m=0.5)
    assert cache_teacher(open_source(f"kitti:{root}"), "train", fakes.FakeTeacher(), tmp_path / "s.zarr", options)


def test_a_mirrored_view_is_refused_because_it_would_be_another_pair(root, tmp_path):
    with pytest.raises(PipelineError, match="mirroring swaps left and right"):
        cache_teacher(
            open_source(f"kitti:{root}"), "train", matcher(), tmp_path / "s.zarr", replace(OPTIONS, view="full,mirror")
        )


def test_a_stereo_teacher_in_an_ensemble_is_refused_when_it_is_opened(tmp_path, monkeypatch):
    (tmp_path / "stereo_net.py").write_text(
        "def net():\n    def call(images, right):\n        return images[:, 0] + 1\n"
        "    call.card = {'name': 'n', 'depth_space': 'metric_m', 'weights': [], 'inputs': ['right']}\n"
        "    return call\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match="wants stereo pairs, which an ensemble does not pass to its members"):
        tiekd.open_teacher(
            "ensemble:python:stereo_net:net,python:fakes:factory", map_edges_m=(1, 2, 3), map_sigma_m=1.0
        )


def test_a_source_without_pairs_is_refused(tmp_path):
    source = open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 2, (16, 32))}")
    with pytest.raises(PipelineError, match="use kitti, kitti-raw"):
        cache_teacher(source, "all", matcher(), tmp_path / "s.zarr", OPTIONS)


@pytest.mark.realdata
def test_the_real_pairs_of_kitti_are_rectified_with_the_published_baseline():
    source = open_source(f"kitti:{REAL}")
    sample = source.samples(str(REAL / "splits" / "sample_train.txt"))[0]
    left = source.read_image(sample)[0]
    assert baseline_of(source, sample) == pytest.approx(0.5327, abs=1e-4)
    assert read_right(source, sample, left.shape[:2]).shape == left.shape


@pytest.mark.realdata
def test_semi_global_matching_of_real_pairs_agrees_with_the_laser_scanner(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "teachers"))
    source, split = open_source(f"kitti:{REAL}"), REAL / "splits" / "sample_test.txt"
    rows = tmp_path / "rows.txt"
    rows.write_text("\n".join(split.read_text().splitlines()[:4]))
    teacher = tiekd.open_teacher("python:sgbm:teacher", drop_nonpositive=True)
    store = tiekd.cache_teacher(teacher, source, str(rows), tmp_path / "s.zarr", view="kb")
    errors = []
    for sample in source.samples(str(rows)):
        truth_m = source.read_truth_m(sample)
        top, left = truth_m.shape[0] - 352, (truth_m.shape[1] - 1216) // 2
        truth_m, depth_m = truth_m[top:, left : left + 1216], store.depth_m(sample.id)
        known = np.isfinite(truth_m) & np.isfinite(depth_m)
        assert known.sum() > 0.5 * np.isfinite(truth_m).sum()
        errors.append(np.median(np.abs(depth_m[known] / truth_m[known] - 1)))
    assert re.fullmatch("disparity_px", store.spec.depth_space)
    assert max(errors) < 0.04
