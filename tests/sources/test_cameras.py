"""Intrinsics of every source: the figures of the data set, for the image that is on disk, and clear refusals."""

import json
import math
import re

import fakes
import layouts_indoor as indoor
import layouts_outdoor as outdoor
import numpy as np
import pytest
from PIL import Image

from pipeline.sources.base import Sample
from pipeline.sources.intrinsics import Intrinsics, intrinsics_of, intrinsics_of_view
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from scenes.dataset import make_scenes
from scenes.worlds import WORLDS

NYU_PX = (518.857901, 519.469611, 325.582449, 253.736166)


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def camera_of(spec, split, image_px, number=0):
    source = open_source(spec)
    return intrinsics_of(source, source.samples(split)[number], image_px)


def unknown(camera):
    return [math.isnan(value) for value in camera]


# Published constants


@pytest.mark.parametrize(
    ("make", "kind", "split", "image_px", "expected"),
    [
        (indoor.make_nyu_labeled, "nyu", "all", (480, 640), NYU_PX),
        (indoor.make_nyu_pngs, "nyu", "test", (480, 640), NYU_PX),
        (indoor.make_fast_depth, "nyu", "train", (480, 640), NYU_PX),
        (indoor.make_diode, "diode", "val", (768, 1024), (886.81, 927.06, 512, 384)),
        (indoor.make_hypersim, "hypersim", "all", (768, 1024), (886.81, 886.81, 511.5, 383.5)),
        (outdoor.make_vkitti2, "vkitti2", "Scene01/clone/Camera_1", (375, 1242), (726.0087, 725.0087, 620.5, 187)),
    ],
)
def test_a_source_states_the_cameras_of_its_data_set(tmp_path, make, kind, split, image_px, expected):
    make(tmp_path / "root")
    assert camera_of(f"{kind}:{tmp_path / 'root'}", split, image_px) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rgbd_dataset_freiburg1_desk", (517.3, 516.5, 318.6, 255.3)),
        ("rgbd_dataset_freiburg2_xyz", (520.9, 521.0, 325.1, 249.7)),
        ("rgbd_dataset_freiburg3_long_office_household", (535.4, 539.2, 320.1, 247.6)),
        ("mine", None),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_tum_sequence_has_the_camera_in_its_name(tmp_path, name, expected, several):
    root = outdoor.make_tum(tmp_path / "all" / name)
    camera = camera_of(f"tum:{root.parent if several else root}", "all", (480, 640))
    assert (None if camera is None else tuple(camera)) == expected


def test_a_resized_copy_has_scaled_intrinsics_and_a_crop_none(tmp_path):
    indoor.make_diode(tmp_path / "root")
    half = camera_of(f"diode:{tmp_path / 'root'}", "val", (384, 512))
    assert half == pytest.approx((443.405, 463.53, 255.75, 191.75))
    assert camera_of(f"diode:{tmp_path / 'root'}", "val", (384, 1024)) is None


def test_a_list_of_nyu_with_another_focal_length_is_taken_at_its_word(tmp_path):
    root = indoor.make_nyu_pngs(tmp_path / "root")
    image = next((root / "official_splits/test").glob("*/rgb_*")).relative_to(root / "official_splits/test")
    (root / "mine.txt").write_text(f"{image} None 300.5\n")
    camera = camera_of(f"nyu:{root}", "mine", (480, 640))
    assert camera[:2] == (300.5, 300.5)
    assert unknown(camera) == [False, False, True, True]


# KITTI


@pytest.mark.parametrize("camera", ["image_02", "image_03"])
def test_kitti_raw_has_the_rectified_cameras_of_the_day(tmp_path, camera):
    root = outdoor.make_kitti_raw(tmp_path / "kitti")
    size_px = (40, 120)
    expected = (outdoor.FOCAL_PX, outdoor.FOCAL_PX, size_px[1] / 2, size_px[0] / 2)
    assert camera_of(f"kitti-raw:{root}", camera, size_px) == pytest.approx(expected)


def test_each_day_of_kitti_has_its_own_calibration(tmp_path):
    root = fakes.make_kitti(tmp_path)
    other = root / "input/2011_10_03/2011_10_03_drive_0034_sync/image_02/data"
    other.mkdir(parents=True)
    for day, size_px in (("2011_09_26", (40, 120)), ("2011_10_03", (50, 120))):
        outdoor.write_calibration(root / "input" / day, size_px)
    name = "2011_10_03/2011_10_03_drive_0034_sync/image_02/data/0000000000.png"
    (root / "splits/mine.txt").write_text(f"{fakes.DRIVE}/0000000000.png None 721.5377\n{name} None 718.856\n")
    first, second = (camera_of(f"kitti:{root}", "mine", px, n) for n, px in enumerate([(40, 120), (50, 120)]))
    assert first == pytest.approx((70, 70, 60, 20))
    assert second == pytest.approx((70, 70, 60, 25))


def test_kitti_without_a_calibration_has_the_focal_length_of_its_list(tmp_path):
    root = fakes.make_kitti(tmp_path)
    camera = camera_of(f"kitti:{root}", "train", (40, 120))
    assert camera[:2] == (721.5377, 721.5377)
    assert unknown(camera) == [False, False, True, True]


def test_a_calibration_with_a_principal_point_far_away_is_refused(tmp_path):
    root = outdoor.make_kitti_raw(tmp_path / "kitti")
    path = next(root.glob("*/calib_cam_to_cam.txt"))
    path.write_text(path.read_text().replace("7.000000e+01 0.000000e+00 6.000000e+01", "7.0e+01 0.0 6.0e+03"))
    with refuses(path, "P_rect_02", "cx 6000 px", "40x120 px", "expected -120 to 240"):
        open_source(f"kitti-raw:{root}").samples("all")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("kind", "below", "split"), [("kitti", "kitti", "sample_test"), ("kitti-raw", "kitti/input", "all")]
)
def test_real_kitti_frames_have_the_figures_of_p_rect(real, kind, below, split):
    source = open_source(f"{kind}:{real / below}")
    sample = source.samples(split)[0]
    image_px = source.read_image(sample)[0].shape[:2]
    assert image_px == (375, 1242)
    assert intrinsics_of(source, sample, image_px) == pytest.approx((721.5377, 721.5377, 609.5593, 172.8540))
    view = intrinsics_of_view(source, sample, View.parse("kb"), image_px)
    assert view == pytest.approx((721.5377, 721.5377, 596.5593, 149.8540))  # 13 columns and 23 rows less


@pytest.mark.realdata
def test_a_real_folder_has_the_figures_of_its_matrix(real):
    camera = camera_of(f"folder:{real / 'indoor'}", "train", (360, 540))
    assert camera == pytest.approx((495.5678, 495.4820, 269.5029, 169.1941), abs=1e-4)


# A folder


CSV = "id,fx_px,fy_px,cx_px,cy_px\na/0001,50.5,49,15.5,11\nb/0001,60,61,16,12\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("K.txt", "50.5 0 15.5\n0 49 11\n0 0 1\n"),
        ("K.txt", "50.5 49 15.5 11"),
        ("dataset.json", json.dumps({"intrinsics": [50.5, 49, 15.5, 11]})),
        ("intrinsics.csv", CSV),
    ],
)
def test_a_folder_states_its_camera_in_one_file(tmp_path, name, text):
    fakes.make_folder(tmp_path)
    (tmp_path / name).write_text(text)
    assert camera_of(f"folder:{tmp_path}", "all", (24, 32)) == (50.5, 49, 15.5, 11)


def test_each_image_of_a_folder_has_its_row_and_one_without_a_row_has_none(tmp_path):
    fakes.make_folder(tmp_path)
    (tmp_path / "intrinsics.csv").write_text(CSV)
    cameras = [camera_of(f"folder:{tmp_path}", "all", (24, 32), number) for number in range(3)]
    assert cameras == [Intrinsics(50.5, 49, 15.5, 11), None, Intrinsics(60, 61, 16, 12)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("id,fx,fy,cx,cy\n", ["first line 'id,fx,fy,cx,cy'", "expected id,fx_px,fy_px,cx_px,cy_px"]),
        (f"{CSV}c,1,2,3\n", ["line 4", "'c,1,2,3'", "0001,500.5,500.5"]),
        (f"{CSV}c,1,2,3,x\n", ["line 4", "'c,1,2,3,x'"]),
        (f"{CSV}c,nan,2,3,4\n", ["line 4", "'c,nan,2,3,4'"]),
        (f"{CSV}c,-1,2,3,4\n", ["line 4: fx -1 px, expected a positive number"]),
        (f"{CSV}b/0001,60,61,16,12\n", ["line 4", "duplicate id 'b/0001' (first on line 3)"]),
        (CSV.replace("15.5", "640"), ["line 2: cx 640 px", "24x32 px, expected -32 to 64", "another resolution"]),
    ],
)
def test_a_wrong_row_of_intrinsics_is_refused_with_its_line(tmp_path, text, parts):
    fakes.make_folder(tmp_path)
    (tmp_path / "intrinsics.csv").write_text(text)
    with refuses(tmp_path / "intrinsics.csv", *parts):
        camera_of(f"folder:{tmp_path}", "all", (24, 32))


@pytest.mark.parametrize("text", ["50.5 0 15.5 11", "50.5 -49 15.5 11"])
def test_both_focal_lengths_of_a_folder_are_checked(tmp_path, text):
    fakes.make_folder(tmp_path)
    (tmp_path / "K.txt").write_text(text)
    with refuses("K.txt: fy", "expected a positive number"):
        open_source(f"folder:{tmp_path}")


def test_two_files_of_intrinsics_are_refused(tmp_path):
    fakes.make_folder(tmp_path)
    (tmp_path / "K.txt").write_text("50.5 49 15.5 11")
    (tmp_path / "intrinsics.csv").write_text(CSV)
    with refuses("both K.txt and intrinsics.csv", "remove one"):
        open_source(f"folder:{tmp_path}")


# Scenes, and other sources


def test_rendered_frames_have_the_cameras_that_drew_them(tmp_path):
    make_scenes(tmp_path / "scenes", count=2, size_px=(32, 48), seed=3, workers=1)
    cameras = [camera_of(f"scenes:{tmp_path}/scenes", "all", (32, 48), number) for number in range(2)]
    drawn = [WORLDS["street"].draw_camera(3, number, (32, 48)) for number in range(2)]
    assert cameras[0] != cameras[1]
    for camera, truth in zip(cameras, drawn, strict=True):
        assert camera == pytest.approx((truth.focal_px, truth.focal_px, truth.cx_px, truth.cy_px), abs=1e-4)


def test_frames_of_an_older_renderer_have_no_camera(tmp_path):
    fakes.make_scenes_folder(tmp_path)
    assert camera_of(f"scenes:{tmp_path}", "all", (24, 64)) is None


class Own:
    """A source of a user, without `read_intrinsics`."""


@pytest.mark.parametrize("focal_px", [None, 400.0])
def test_a_source_without_the_method_has_the_focal_length_of_the_row(focal_px):
    camera = intrinsics_of(Own(), Sample("a", "a.png", None, focal_px), (24, 32))
    assert (None if camera is None else camera[:2]) == (None if focal_px is None else (400.0, 400.0))


@pytest.mark.parametrize("camera", [(0, 400, 16, 12), (400, math.inf, 16, 12), (400, 400, math.inf, 12)])
def test_impossible_intrinsics_of_a_users_source_are_refused_with_the_image(camera):
    source = Own()
    source.read_intrinsics = lambda *_: Intrinsics(*camera)
    with refuses("intrinsics of a:", "expected"):
        intrinsics_of(source, Sample("a", "a.png", None, None), (24, 32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_intrinsics_are_turned_with_an_image_that_exif_turns(tmp_path, orientation):
    marked = np.zeros((24, 32, 3), np.uint8)
    marked[5, 20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "rgb").mkdir()
    Image.fromarray(marked).save(tmp_path / "rgb/a.png", exif=exif)
    (tmp_path / "K.txt").write_text("40 20 14 13")
    source = open_source(f"folder:{tmp_path}")
    sample = source.samples("all")[0]
    image = source.read_image(sample)[0]
    camera = intrinsics_of(source, sample, image.shape[:2])
    row, column = (int(index[0]) for index in np.nonzero(image[..., 0]))
    # The ray of the marked pixel, whatever the axes are called now
    ray = [abs(column - camera.cx_px) / camera.fx_px, abs(row - camera.cy_px) / camera.fy_px]
    assert sorted(ray) == pytest.approx([(20 - 14) / 40, (13 - 5) / 20])
