"""KITTI raw, Virtual KITTI 2 and TUM RGB-D: layouts, truths, splits, and every error that a user may see."""

from __future__ import annotations

import os
import pickle
import re
import shutil

import fakes
import layouts_outdoor as layouts
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.sources.datasets import kitti_lists as kitti_rows
from pipeline.sources.datasets import kitti_velodyne as velodyne
from pipeline.sources.datasets import tum, vkitti2
from pipeline.sources.registry import open_source, source_kinds
from pipeline.sources.splits import file_names, folder_names
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.train.dataset import Augmentation, TrainingData

DATE, DRIVE = layouts.DATE, layouts.DRIVE
IMAGES = f"{DATE}/{DRIVE}/image_02/data"


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture
def raw(tmp_path):
    return layouts.make_kitti_raw(tmp_path / "kitti")


@pytest.fixture
def virtual(tmp_path):
    return layouts.make_vkitti2(tmp_path / "vkitti")


@pytest.fixture
def sequence(tmp_path):
    return layouts.make_tum(tmp_path / "rgbd_dataset_freiburg1_xyz")


def opened(kind, root, truth=None):
    return open_source(f"{kind}:{root}", truth)


MAKERS = {
    "kitti-raw": lambda root: layouts.make_kitti_raw(root / "kitti"),
    "vkitti2": lambda root: layouts.make_vkitti2(root / "vkitti"),
    "tum": lambda root: layouts.make_tum(root / "rgbd_dataset_freiburg2_desk"),
}


# All three


@pytest.mark.parametrize(
    ("kind", "truth"), [("kitti-raw", "annotated"), ("kitti-raw", "velodyne"), ("vkitti2", None), ("tum", None)]
)
def test_a_teacher_is_cached_and_a_student_fed_over_each(tmp_path, kind, truth):
    source = opened(kind, MAKERS[kind](tmp_path), truth)
    options = CacheOptions(view="full", samples_per_shard=3, batch_size=2)
    cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", options)
    store, samples = open_store(tmp_path / "s.zarr"), source.samples("all")
    assert list(store.ids) == [sample.id for sample in samples]
    shared = {"maps_px": None, "augmentation": Augmentation(), "seed": 0}
    taught = TrainingData(source, samples, View(), store=store, **shared)[0, 0]
    told = TrainingData(source, samples, View(), store=None, **shared)[0, 0]
    assert taught.image.shape[-2:] == taught.target_depth_m.shape[-2:] == told.target_depth_m.shape[-2:]
    # The teacher reads depth off brightness, and the fixture's brightness is its depth.
    known = told.target_depth_m.isfinite()
    assert known.float().mean() > 0.2
    assert (taught.target_depth_m - told.target_depth_m)[known].abs().max() < 0.8


@pytest.mark.parametrize("kind", MAKERS)
def test_each_is_picklable_for_a_loaders_workers(tmp_path, kind):
    source = opened(kind, MAKERS[kind](tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert again.samples("all") == source.samples("all")
    sample = again.samples("all")[0]
    assert np.array_equal(again.read_truth_m(sample), source.read_truth_m(sample), equal_nan=True)


@pytest.mark.parametrize("kind", MAKERS)
def test_each_is_listed_without_asking_the_disk_for_each_file(tmp_path, kind, monkeypatch):
    source = opened(kind, MAKERS[kind](tmp_path))
    expected = len(source.samples("all"))
    asked = []
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *args, **kwargs: asked.append(str(path)) or real(path, *args, **kwargs)
    )
    assert len(source.samples("all")) == expected
    assert not [path for path in asked if path.endswith((".png", ".jpg", ".bin"))]


@pytest.mark.parametrize("kind", MAKERS)
def test_each_registers_itself_and_has_texts_for_its_row(kind):
    row = source_kinds()[kind]
    assert all([row.data_set, row.layout, row.splits, row.truth, row.licence])
    assert row.defaults.bins in {"kitti", "nyu"}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_refuses_an_empty_folder_a_wrong_truth_and_an_unknown_split(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    with refuses(f"source {kind}:{tmp_path}/empty", "unpack", "there"):
        opened(kind, tmp_path / "empty")
    root = MAKERS[kind](tmp_path)
    with refuses(f"source {kind}:", "truth 'lidar'", "expected"):
        opened(kind, root, "lidar")
    with refuses("split 'nowhere'", "expected a file", "or `all`"):
        opened(kind, root).samples("nowhere")


@pytest.mark.parametrize("kind", MAKERS)
def test_each_refuses_a_list_without_rows(tmp_path, kind):
    (tmp_path / "none.list").write_text("\n")
    with refuses("none.list", "no rows"):
        opened(kind, MAKERS[kind](tmp_path)).samples(str(tmp_path / "none.list"))


def test_folders_are_told_from_files_and_what_is_hidden_is_passed_over(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    for name in (".hidden", "c.png"):
        (tmp_path / name).touch()
    assert (folder_names(tmp_path), file_names(tmp_path)) == (["a", "b"], ["a", "b", "c.png"])
    assert folder_names(tmp_path / "absent") == file_names(tmp_path / "c.png") == []


# KITTI raw


@pytest.mark.parametrize(
    "place",
    [
        DATE,
        "train",
        "val",
        "data_depth_annotated/train",
        "data_depth_annotated/val",
        "data_depth_annotated",
        "gt_depth",
    ],
)
def test_annotated_depth_is_found_where_people_have_it(tmp_path, place):
    source = opened("kitti-raw", layouts.make_kitti_raw(tmp_path, annotated=place, scans=False))
    samples = source.samples("image_02")
    assert source.truth == "annotated"
    assert [sample.truth_path is None for sample in samples] == [False, False, False, True]
    for frame, sample in enumerate(samples[:-1]):
        np.testing.assert_allclose(
            source.read_truth_m(sample), fakes.sparse(fakes.smooth_depth_m((40, 120), frame)), atol=0.51 / 256
        )
    assert source.read_truth_m(samples[-1]) is None


@pytest.mark.parametrize("below", ["input", "kitti_raw", "raw"])
def test_the_dates_may_lie_in_a_folder_beside_depth(tmp_path, below):
    root = layouts.make_kitti_raw(tmp_path)
    (root / below).mkdir()
    (root / DATE).rename(root / below / DATE)
    samples = opened("kitti-raw", root).samples("eigen")
    assert samples[0].id == f"{IMAGES}/0000000000"
    assert samples[0].image_path == f"{root}/{below}/{IMAGES}/0000000000.png"
    assert samples[0].truth_path == f"{root}/train/{DRIVE}/proj_depth/groundtruth/image_02/0000000000.png"


def test_a_scan_is_projected_back_to_the_depth_that_it_was_made_from(raw):
    source = opened("kitti-raw", raw, "velodyne")
    for frame, sample in enumerate(source.samples("image_02")):
        truth_m, expected = source.read_truth_m(sample), fakes.sparse(fakes.smooth_depth_m((40, 120), frame))
        assert truth_m.dtype == np.float32
        # Point (row 0, column 0) is u = v = 1 in KITTI's count; what is behind or hidden leaves no trace.
        np.testing.assert_allclose(truth_m, expected, rtol=1e-5)


def test_the_right_camera_sees_the_scan_from_its_own_place(raw):
    source = opened("kitti-raw", raw, "velodyne")
    left, right = (source.read_truth_m(source.samples(name)[0]) for name in ("image_02", "image_03"))
    row = 21
    at = np.nonzero(np.isfinite(left[row]))[0]
    # The baseline in P_rect moves a point by its disparity.
    disparity = (4.485728 - -33.95242) / left[row, at]
    moved = np.round(at + 1 - disparity - 1).astype(int)
    seen = (moved >= 0) & (moved < 120)
    near = [
        np.nanmin(np.abs(right[row - 1 : row + 3, max(0, m - 1) : m + 2] - d))
        for m, d in zip(moved[seen], left[row, at][seen], strict=True)
    ]
    assert seen.sum() > 10
    assert np.median(near) < 0.01


def test_of_two_points_on_a_pixel_the_nearest_stays_in_any_order(raw):
    camera = velodyne.read_calibration(raw / DATE, scanner=True)["image_02"]
    points = layouts.scan_of(fakes.smooth_depth_m((40, 120)))
    one = velodyne.project_scan_m(points, camera)
    assert np.array_equal(one, velodyne.project_scan_m(points[::-1], camera), equal_nan=True)
    assert np.nanmax(one) < 10


def test_a_point_whose_depth_overflows_leaves_no_trace(raw):
    camera = velodyne.read_calibration(raw / DATE, scanner=True)["image_02"]
    far = np.array([[3e38, 0, 0, 0]], np.float32)
    assert np.isfinite(velodyne.project_scan_m(far, camera)).sum() == 1
    twice = camera._replace(from_scanner=2 * camera.from_scanner)
    assert np.isnan(velodyne.project_scan_m(far, twice)).all()


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), max_size=20))
def test_any_finite_points_give_positive_depth_or_none(tmp_path_factory, points):
    folder = tmp_path_factory.getbasetemp() / "calibration"
    if not folder.exists():
        layouts.write_calibration(folder, (40, 120))
    camera = velodyne.read_calibration(folder, scanner=True)["image_03"]
    scan = np.array([[*point, 0.5] for point in points], np.float32).reshape(-1, 4)
    depth_m = velodyne.project_scan_m(scan, camera)
    assert depth_m.shape == (40, 120)
    assert (depth_m[np.isfinite(depth_m)] > 0).all()
    assert not np.isinf(depth_m).any()
    assert np.isfinite(depth_m).sum() <= len(points)


def test_annotated_depth_goes_before_scans_and_scans_before_nothing(tmp_path):
    assert opened("kitti-raw", layouts.make_kitti_raw(tmp_path / "both")).truth == "annotated"
    assert opened("kitti-raw", layouts.make_kitti_raw(tmp_path / "scans", annotated=None)).truth == "velodyne"
    images = opened("kitti-raw", layouts.make_kitti_raw(tmp_path / "none", annotated=None, scans=False))
    assert all(sample.truth_path is None for sample in images.samples("all"))


def test_a_truth_that_is_not_there_is_refused_with_where_it_was_looked_for(tmp_path):
    root = layouts.make_kitti_raw(tmp_path, annotated=None, scans=False)
    with refuses("no annotated depth", "train/DRIVE", "gt_depth/DRIVE", "data_depth_annotated.zip", "`truth=velodyne`"):
        opened("kitti-raw", root, "annotated")
    with refuses("no scans", "velodyne_points/data", "synced+rectified", "`truth=annotated`"):
        opened("kitti-raw", root, "velodyne")


def test_lists_of_both_styles_name_the_same_images(raw):
    source = opened("kitti-raw", raw)
    eigen, monodepth = source.samples("eigen"), source.samples("monodepth")
    assert [sample.id[-10:] for sample in monodepth] == [sample.id[-10:] for sample in eigen]
    assert monodepth[0] == eigen[0]
    assert "/image_03/" in monodepth[1].id
    # Listed as .png, on disk as .jpg.
    assert source.read_image(monodepth[1])[0].shape == (40, 120, 3)


def test_ids_are_those_of_the_other_kitti_source(tmp_path):
    root = fakes.make_kitti(tmp_path)
    theirs, ours = opened("kitti", root).samples("train"), opened("kitti-raw", root).samples("train")
    assert theirs == ours


def test_the_focal_length_is_that_of_the_calibration_else_of_the_list(raw):
    assert opened("kitti-raw", raw).samples("eigen")[0].focal_px == layouts.FOCAL_PX
    (raw / DATE / "calib_cam_to_cam.txt").unlink()
    assert opened("kitti-raw", raw).samples("eigen")[0].focal_px == 721.5377
    assert opened("kitti-raw", raw).samples("all")[0].focal_px is None


@pytest.mark.parametrize(
    ("split", "count"),
    [("all", 8), (DATE, 8), (DRIVE, 8), (f"{DATE}/{DRIVE}", 8), ("image_02", 4), (f"{DRIVE}/image_03", 4)],
)
def test_a_split_may_be_a_part_of_the_path(raw, split, count):
    samples = opened("kitti-raw", raw).samples(split)
    assert len(samples) == count
    assert samples == sorted(samples)


def test_a_drive_without_images_is_refused(raw):
    with refuses("'2011_09_26_drive_0099_sync'", "no images", raw, "2011_09_26"):
        opened("kitti-raw", raw).samples("2011_09_26_drive_0099_sync")


def test_a_png_goes_before_its_jpeg_copy_and_other_files_are_passed_over(raw):
    fakes.write_image(raw / IMAGES / "0000000000.jpg", np.zeros((40, 120, 3), np.uint8))
    (raw / IMAGES / "Thumbs.db").touch()
    samples = opened("kitti-raw", raw).samples(f"{DRIVE}/image_02")
    assert len(samples) == 4
    assert samples[0].image_path.endswith("0000000000.png")


def test_a_listed_depth_that_is_not_on_disk_is_refused_when_it_is_read(raw):
    (raw / f"train/{DRIVE}/proj_depth/groundtruth/image_02/0000000001.png").unlink()
    source = opened("kitti-raw", raw)
    samples = source.samples("eigen")
    assert source.read_truth_m(samples[0]) is not None
    with refuses("0000000001.png", "no such file", "val/DRIVE", "None"):
        source.read_truth_m(samples[1])
    assert source.read_truth_m(samples[3]) is None


@pytest.mark.parametrize(
    ("below", "advice"),
    [
        ("kitti/2011_09_26", "this is one date, or depth only; use {0}/kitti"),
        (f"kitti/{DATE}/{DRIVE}", "this is one drive, use {0}/kitti"),
        ("", "use {0}/kitti"),
        ("kitti/train", "depth only; use {0}/kitti"),
    ],
)
def test_a_root_one_level_off_is_told_which_folder_to_give(raw, below, advice):
    with refuses(f"source kitti-raw:{raw.parent / below}", "2011_09_26", advice.format(raw.parent)):
        opened("kitti-raw", raw.parent / below)


@pytest.mark.parametrize("name", ["calib_cam_to_cam.txt", "calib_velo_to_cam.txt"])
def test_scans_without_calibration_are_refused_before_anything_runs(raw, name):
    (raw / DATE / name).unlink()
    with refuses(name, "No such file", "2011_09_26_calib.zip", "with the drives"):
        opened("kitti-raw", raw, "velodyne").samples("all")
    assert opened("kitti-raw", raw, "annotated").samples("all")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("P_rect_02: ", "P_rect_02: 1 ", ["P_rect_02 has 13 numbers", "expected 12"]),
        ("P_rect_02: 7", "P_rect_02: -7", ["P_rect_02 has focal length -70.0", "about 721"]),
        ("R_rect_00: 9", "R_rect_00: nan ", ["R_rect_00", "expected 9 finite"]),
        ("S_rect_03: 1.200000e+02", "S_rect_03: 1e9", ["S_rect_03", "whole pixels"]),
        ("S_rect_02: 1.200000e+02", "S_rect_02: 120.5", ["S_rect_02 of 120.5 x 40.0", "whole pixels"]),
        ("S_rect_02: 1.200000e+02", "S_rect_02: 1e400", ["S_rect_02", "expected 2 finite"]),
        ("R_rect_00", "r", ["R_rect_00 has 0 numbers"]),
        ("calib_time", "\0" * 2**16, ["bytes, expected at most 65536"]),
    ],
)
def test_a_damaged_calibration_is_refused(raw, old, new, parts):
    path = raw / DATE / "calib_cam_to_cam.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with refuses("calibration", path, *parts):
        opened("kitti-raw", raw, "velodyne").samples("all")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_calibration_or_one_value_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "anything"
    folder.mkdir(exist_ok=True)
    (folder / "calib_cam_to_cam.txt").write_bytes(data)
    with refuses("calibration", "calib_cam_to_cam.txt: P_rect_02"):
        velodyne.read_calibration(folder, scanner=False)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["0 bytes", "truncated"]),
        (bytes(40), ["40 bytes", "multiple of 16", "truncated", "again"]),
        (np.array([[1, 2, np.nan, 0], [1, 2, 3, 0]], "<f4").tobytes(), ["1 of 2 points contain NaN", "damaged"]),
        (np.full((3, 4), np.inf, "<f4").tobytes(), ["3 of 3 points contain NaN or infinity"]),
    ],
)
def test_a_damaged_scan_is_refused(raw, data, parts):
    path = raw / DATE / DRIVE / "velodyne_points/data/0000000000.bin"
    path.write_bytes(data)
    source = opened("kitti-raw", raw, "velodyne")
    with refuses("scan", path, *parts):
        source.read_truth_m(source.samples("eigen")[0])


def test_a_scan_that_is_a_pipe_or_too_large_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.bin")
    with refuses("pipe.bin", "not a regular file"):
        velodyne.read_scan(str(tmp_path / "pipe.bin"))
    (tmp_path / "large.bin").write_bytes(bytes(48))
    monkeypatch.setattr(velodyne, "LIMIT_BYTES", 32)
    with refuses("large.bin", "48 bytes, expected at most 32"):
        velodyne.read_scan(str(tmp_path / "large.bin"))


def test_a_frame_that_lacks_its_scan_has_no_truth(raw):
    # Four scans of 2011_09_26_drive_0009_sync are missing from KITTI itself.
    (raw / DATE / DRIVE / "velodyne_points/data/0000000002.bin").unlink()
    samples = opened("kitti-raw", raw, "velodyne").samples("eigen")
    assert [sample.truth_path is None for sample in samples] == [False, False, True, False]


ROW = f"{IMAGES}/0000000005.png {DRIVE}/proj_depth/groundtruth/image_02/0000000005.png 721.5377"


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("a", ["1 columns", "expected 3", "rgb depth focal_px", "DATE/DRIVE frame l"]),
        (ROW.replace("0000000005.png 7", "0000000006.png 7"), ["does not belong to the image", "0000000005.png"]),
        (ROW.replace("721", "x"), ["positive number of pixels, got 'x.5377'"]),
        (ROW.replace("721.5377", "inf"), ["positive number of pixels, got 'inf'"]),
        (ROW.replace("image_02", "image_00"), ["image_00", "expected DATE/DRIVE/image_02"]),
        (ROW.replace("26_drive", "28_drive"), ["expected DATE/DRIVE/image_02"]),
        (f"../{ROW}", ["expected DATE/DRIVE/image_02"]),
        (f"{DATE}/{DRIVE} 5 m", ["side 'm'", "l, r, 2, 3"]),
        (f"{DATE}/{DRIVE} five l", ["frame 'five'"]),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(raw, row, parts):
    (raw / "splits" / "mine.txt").write_text(f"{DATE}/{DRIVE} 0 l\n{row}\n")
    with refuses("mine.txt line 2", *parts):
        opened("kitti-raw", raw).samples("mine")


def test_one_image_in_two_styles_is_refused_as_a_duplicate(raw):
    (raw / "splits" / "mine.txt").write_text(f"{DATE}/{DRIVE} 5 l\n{ROW}\n")
    with refuses("line 2", "(first on line 1)"):
        opened("kitti-raw", raw).samples("mine")


@given(st.integers(0, 9999), st.integers(0, 10**10 - 1), st.sampled_from("lr23"), st.booleans())
def test_a_row_of_either_style_reads_back(drive, frame, side, known):
    name, camera = f"2011_10_03_drive_{drive:04d}_sync", kitti_rows.SIDES[side]
    short = kitti_rows.parse_row(f"2011_10_03/{name} {frame} {side}", "here")
    truth = f"{name}/proj_depth/groundtruth/{camera}/{frame:010d}.png" if known else "None"
    long = kitti_rows.parse_row(f"2011_10_03/{name}/{camera}/data/{frame:010d}.jpg {truth} 718.856", "here")
    assert short.id == long.id == f"2011_10_03/{name}/{camera}/data/{frame:010d}"
    assert (short.lists_truth, long.lists_truth) == (None, known)
    assert (short.suffix, long.suffix, long.focal_px) == (".png", ".jpg", 718.856)


@given(st.text(max_size=60) | st.from_regex(rf"{DATE}/\S+ \S+ \S+", fullmatch=True))
def test_any_line_is_a_row_or_one_value_error(text):
    try:
        row = kitti_rows.parse_row(text, "here line 1")
    except ValueError as error:
        assert str(error).startswith("here line 1: ")  # noqa: PT017 - both ways are right, here is what must hold
        return
    assert re.fullmatch(r"\d{4}_\d\d_\d\d/[\w]+/image_0[23]/data/\d{10}", row.id)


# Virtual KITTI 2


@pytest.mark.parametrize(
    "archives", [("", "", ""), ("vkitti_2.0.3_rgb", "vkitti_2.0.3_depth", "vkitti_2.0.3_textgt"), ("rgb", "depth", "")]
)
def test_virtual_kitti_is_read_from_one_folder_or_three(tmp_path, archives):
    source = opened("vkitti2", layouts.make_vkitti2(tmp_path, archives=archives))
    samples = source.samples("all")
    assert [sample.id for sample in samples[:3]] == [f"Scene01/clone/frames/rgb/Camera_0/rgb_{n:05d}" for n in range(3)]
    assert len(samples) == 18
    assert [samples[0].focal_px, samples[3].focal_px] == [725.0087, 726.0087]
    truth_m = source.read_truth_m(samples[0])
    assert np.isnan(truth_m[:5]).all()
    np.testing.assert_allclose(truth_m[5:], fakes.smooth_depth_m((40, 120))[5:], atol=0.0051)


@pytest.mark.parametrize(
    ("split", "count"),
    [("Scene01", 12), ("clone", 6), ("Scene01/fog", 6), ("15-deg-left", 6), ("Camera_0", 9), ("clone/Camera_1", 3)],
)
def test_a_split_of_virtual_kitti_is_a_part_of_the_path(virtual, split, count):
    samples = opened("vkitti2", virtual).samples(split)
    assert len(samples) == count
    assert all(set(split.split("/")) <= set(sample.id.split("/")) for sample in samples)


def test_a_list_of_virtual_kitti_keeps_its_order(virtual):
    ids = ["Scene20/15-deg-left/frames/rgb/Camera_1/rgb_00002", "Scene01/clone/frames/rgb/Camera_0/rgb_00000"]
    (virtual / "mine.txt").write_text("".join(f"{sample_id}.jpg\n" for sample_id in ids))
    assert [sample.id for sample in opened("vkitti2", virtual).samples("mine")] == ids


def test_virtual_kitti_without_depth_or_intrinsics_has_images_alone(virtual):
    shutil.rmtree(virtual / "Scene01/clone/frames/depth")
    (virtual / "Scene01/clone/intrinsic.txt").unlink()
    source = opened("vkitti2", virtual)
    sample = source.samples("Scene01/clone")[0]
    assert (sample.truth_path, sample.focal_px, source.read_truth_m(sample)) == (None, None, None)


@pytest.mark.parametrize(
    ("below", "advice"),
    [
        ("vkitti/Scene01", "this is one scene, use {0}/vkitti"),
        ("vkitti/Scene01/clone", "this is one variation, use {0}/vkitti"),
        ("", "use {0}/vkitti"),
    ],
)
def test_a_root_of_virtual_kitti_one_level_off_is_told_which_folder_to_give(virtual, below, advice):
    with refuses(f"source vkitti2:{virtual.parent / below}", "SceneXX", advice.format(virtual.parent)):
        opened("vkitti2", virtual.parent / below)


def test_depth_of_virtual_kitti_without_its_images_is_refused(virtual):
    for folder in virtual.glob("*/*/frames/rgb"):
        shutil.rmtree(folder)
    with refuses("no frames/rgb", "vkitti_2.0.3_rgb.tar"):
        opened("vkitti2", virtual)


@pytest.mark.parametrize("row", ["0 0 725", "0 0 nan 1 1 1", "0 0 -1 1 1 1", "x 0 725 725 620 187"])
def test_a_damaged_table_of_intrinsics_is_refused(virtual, row):
    path = virtual / "Scene01/clone/intrinsic.txt"
    path.write_text(path.read_text() + row)
    with refuses(path, "line 8", row, "frame camera fx fy cx cy", "textgt"):
        opened("vkitti2", virtual).samples("Scene01")


@pytest.mark.parametrize(
    "row", ["Scene01/clone/rgb_00000.jpg", "../Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg", "a b"]
)
def test_a_malformed_row_of_virtual_kitti_is_refused(virtual, row):
    (virtual / "mine.txt").write_text(f"{row}\n")
    with refuses("mine.txt line 1", row, "Scene01/clone/frames/rgb"):
        opened("vkitti2", virtual).samples("mine")


@given(st.text(max_size=40) | st.from_regex(r"\d{1,5} \d( \S{1,9}){4}", fullmatch=True))
def test_any_line_is_a_row_of_intrinsics_or_one_value_error(text):
    try:
        (frame, camera), focal_px = vkitti2._parse_intrinsic(text, "here line 2")
    except ValueError as error:
        assert str(error).startswith("here line 2: ")  # noqa: PT017 - both ways are right, here is what must hold
        return
    assert frame >= 0
    assert 0 <= camera <= 9
    assert 0 < focal_px < np.inf


def test_a_color_copy_of_depth_is_refused(virtual):
    path = virtual / "Scene01/clone/frames/depth/Camera_0/depth_00000.png"
    Image.new("RGB", (120, 40)).save(path)
    source = opened("vkitti2", virtual)
    with refuses(path, "16"):
        source.read_truth_m(source.samples("clone")[0])


# TUM RGB-D


def test_a_tum_sequence_pairs_images_by_time_and_keeps_one_without_partner(sequence):
    source = opened("tum", sequence)
    samples = source.samples("all")
    assert [sample.id for sample in samples[:2]] == ["rgb/1305031102.175304", "rgb/1305031102.375304"]
    assert [sample.truth_path is None for sample in samples] == [False, False, True, False]
    assert samples[0].truth_path == f"{sequence}/depth/1305031102.160407.png"
    assert samples[0].focal_px == 517.3
    for frame in (0, 1, 3):
        np.testing.assert_allclose(
            source.read_truth_m(samples[frame]), fakes.sparse(fakes.smooth_depth_m((24, 32), frame)), atol=0.51 / 5000
        )
    assert source.read_truth_m(samples[2]) is None


def test_a_folder_of_tum_sequences_has_them_as_splits_and_in_its_ids(tmp_path):
    names = ["rgbd_dataset_freiburg2_desk", "rgbd_dataset_freiburg3_teddy", "mine"]
    for name in names:
        layouts.make_tum(tmp_path / name)
    source = opened("tum", tmp_path)
    assert len(source.samples("all")) == 12
    assert {sample.id.split("/")[0] for sample in source.samples(names[0])} == {names[0]}
    assert [source.samples(name)[0].focal_px for name in names] == [520.9, 535.4, None]


def test_a_list_of_a_tum_split_keeps_its_order(tmp_path):
    for name in ("a", "b"):
        layouts.make_tum(tmp_path / name)
    (tmp_path / "mine.txt").write_text("# two\nb/rgb/1305031102.375304.png\na/rgb/1305031102.175304.png\n")
    samples = opened("tum", tmp_path).samples("mine")
    assert [sample.id for sample in samples] == ["b/rgb/1305031102.375304", "a/rgb/1305031102.175304"]
    assert samples[0].truth_path == f"{tmp_path}/b/depth/1305031102.394330.png"


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("rgb/1.png", ["'rgb/1.png'", "not in any rgb.txt", "expected rgb/STAMP.png"]),
        ("../rgb/1.png", ["outside the root"]),
        ("rgb/1305031102.175304.png\nrgb/1305031102.175304.png", ["2: ", "(first on line 1)"]),
    ],
)
def test_a_wrong_row_of_a_tum_list_is_refused(sequence, row, parts):
    (sequence / "mine.txt").write_text(row)
    with refuses("mine.txt line", *parts):
        opened("tum", sequence).samples("mine")


def test_a_tum_sequence_without_depth_has_images_alone(sequence):
    shutil.rmtree(sequence / "depth")
    with_list = opened("tum", sequence).samples("all")
    assert sum(sample.truth_path is None for sample in with_list) == 1
    (sequence / "depth.txt").unlink()
    assert all(sample.truth_path is None for sample in opened("tum", sequence).samples("all"))


def test_tum_depth_without_its_list_is_refused(sequence):
    (sequence / "depth.txt").unlink()
    with refuses("depth.txt", "No such file"):
        opened("tum", sequence).samples("all")


@pytest.mark.parametrize(
    ("below", "advice"),
    [
        (
            "data/rgbd_dataset_freiburg1_xyz/rgb",
            "this is a part of one sequence, use {0}/data/rgbd_dataset_freiburg1_xyz",
        ),
        ("", "use {0}/data"),
    ],
)
def test_a_root_of_tum_one_level_off_is_told_which_folder_to_give(tmp_path, below, advice):
    layouts.make_tum(tmp_path / "data/rgbd_dataset_freiburg1_xyz")
    with refuses(f"source tum:{tmp_path / below}", "rgb.txt", advice.format(tmp_path)):
        opened("tum", tmp_path / below)


def test_tum_images_without_their_list_are_refused(sequence):
    (sequence / "rgb.txt").unlink()
    with refuses("rgb/ without rgb.txt", ".tgz"):
        opened("tum", sequence)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("1.5", ["1 columns", "STAMP rgb/STAMP.png"]),
        ("soon rgb/1.png", ["time stamp 'soon'", "seconds"]),
        ("nan rgb/1.png", ["time stamp 'nan'"]),
        ("1.5 ../1.png", ["outside the root"]),
        ("1.5 rgb/1.txt", ["'rgb/1.txt'", "ends in .png"]),
        ("1.5 rgb/1305031102.175304.png", ["(first on line 4)"]),
    ],
)
def test_a_malformed_line_of_rgb_txt_is_refused(sequence, row, parts):
    path = sequence / "rgb.txt"
    path.write_text(path.read_text() + row)
    with refuses(path, "line 8", *parts):
        opened("tum", sequence).samples("all")


def test_an_rgb_txt_of_comments_alone_is_refused(sequence):
    (sequence / "rgb.txt").write_text("# color images\n")
    with refuses("rgb.txt", "no rows", ".tgz"):
        opened("tum", sequence).samples("all")


def test_time_stamps_that_are_no_seconds_are_refused(tmp_path):
    root = layouts.make_tum(tmp_path / "seq")
    for kind in ("rgb", "depth"):
        (root / f"{kind}.txt").write_text("".join(f"{n / 10**5} {kind}/{n}.png\n" for n in range(200)))
    with refuses(f"sequence {root}", "40000 pairs", "expected two or three", "time stamps are in seconds"):
        opened("tum", root).samples("all")


def by_hand(first_s, second_s, limit_s):
    """associate.py's rule, written as it is told: the best pair first, then the best of what is left."""
    partners, left, right = {}, set(first_s), set(second_s)
    while True:
        pairs = [(abs(a - b), a, b) for a in left for b in right if abs(a - b) < limit_s]
        if not pairs:
            return [partners.get(a) for a in first_s]
        _, a, b = min(pairs)
        partners[a] = b
        left.remove(a)
        right.remove(b)


stamps = st.lists(st.integers(0, 60).map(lambda n: 1305031102 + n * 0.0041), max_size=14, unique=True)


@given(stamps, stamps)
def test_pairs_are_those_of_the_benchmark(first_s, second_s):
    partners = tum.associate(first_s, second_s)
    assert [None if j is None else second_s[j] for j in partners] == by_hand(first_s, second_s, 0.02)


def test_a_difference_of_the_limit_itself_makes_no_pair():
    assert tum.associate([1.0, 2.0], [1.5, 2.25], 0.5) == [None, 1]


def test_a_stamp_is_taken_by_the_nearest_and_never_twice():
    assert tum.associate([0.0, 0.01], [0.009]) == [None, 0]
    assert tum.associate([0.0], []) == [None]


@given(st.text(max_size=40) | st.from_regex(r"[\d.]{1,9} \S{1,12}\.png", fullmatch=True))
def test_any_line_is_a_stamped_image_or_one_value_error(text):
    try:
        row = tum._parse_row(text, "here line 1")
    except ValueError as error:
        assert str(error).startswith("here line 1: ")  # noqa: PT017 - both ways are right, here is what must hold
        return
    assert np.isfinite(row.stamp_s)
    assert not row.path.startswith("/")


# Real data


@pytest.mark.realdata
class TestRealKitti:
    def test_scans_give_the_saved_depth_in_every_pixel(self, real):
        # gt_depth of drive 0002 is round(256 z) of one scan. All 115,060 values of these six pictures are the same.
        source = opened("kitti-raw", real / "kitti", "velodyne")
        scanned = [sample for sample in source.samples("2011_09_26_drive_0002_sync") if sample.truth_path is not None]
        assert len(scanned) == 6
        values = 0
        for sample in scanned:
            _, drive, camera, _, frame = sample.id.split("/")
            path = real / "kitti" / "gt_depth" / drive / "proj_depth" / "groundtruth" / camera / f"{frame}.png"
            saved = np.array(Image.open(path), np.uint16)
            ours = np.nan_to_num(np.rint(source.read_truth_m(sample) * np.float32(256))).astype(np.uint16)
            assert np.array_equal(ours, saved)
            values += np.count_nonzero(saved)
        assert values == 115_060

    def test_the_same_root_reads_as_both_kinds_of_kitti(self, real):
        ours, theirs = opened("kitti-raw", real / "kitti"), opened("kitti", real / "kitti")
        assert ours.truth == "annotated"
        for split in ("sample_train", "sample_test"):
            assert ours.samples(split) == theirs.samples(split)
        assert [sample.id for sample in ours.samples("kitti_eigen_test")] == [
            sample.id for sample in theirs.samples("kitti_eigen_test")
        ]
