"""NYU Depth V2 in three layouts, DIODE and Hypersim: what is read, and every error that a user may see."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fakes
import h5py
import layouts_indoor as layouts
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.errors import PipelineError
from pipeline.sources.datasets.hypersim import focal_px, planar_m
from pipeline.sources.readers.hdf5 import Hdf5File, read_hdf5
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.train.dataset import Augmentation, TrainingData

SIZE_PX = layouts.SIZE_PX


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


# kind, fixture, split, ids, how much its image may be off (JPEG), how much its truth
ALL = {
    "labelled": ("nyu", layouts.make_nyu_labeled, "all", [f"{n:04d}" for n in range(1, 7)], 0, 0),
    "pngs": (
        "nyu",
        layouts.make_nyu_pngs,
        "nyudepthv2_train_files_with_gt",
        [f"{('kitchen_0028b', 'living_room_0019')[n % 2]}/rgb_{n:05d}" for n in range(4)],
        3,
        6e-4,
    ),
    "fast-depth": (
        "nyu",
        layouts.make_fast_depth,
        "train",
        ["train/cafe_0001a/00001", "train/cafe_0001a/00003", "train/study_0008/00001"],
        0,
        0,
    ),
    "diode": (
        "diode",
        layouts.make_diode,
        "train",
        ["train/indoors/scene_00000/scan_00000/00000_00000_indoors_000_000"],
        0,
        0,
    ),
    "hypersim": (
        "hypersim",
        layouts.make_hypersim,
        "train",
        [*[f"ai_001_001/cam_00/frame.{n:04d}" for n in range(3)], "ai_001_001/cam_01/frame.0000"],
        3,
        5e-3,
    ),
}


@pytest.fixture(params=ALL, scope="module")
def laid_out(request, tmp_path_factory):
    """(source, its samples, allowances) of each layout."""
    kind, make, split, ids, image_off, truth_off = ALL[request.param]
    source = open_source(f"{kind}:{make(tmp_path_factory.mktemp(request.param))}")
    return source, source.samples(split), ids, image_off, truth_off


def test_each_layout_gives_its_ids_images_and_truth(laid_out):
    source, samples, ids, image_off, truth_off = laid_out
    assert [sample.id for sample in samples] == ids
    for number, sample in enumerate(samples):
        image, sha256 = source.read_image(sample)
        assert image.shape == (*SIZE_PX, 3)
        assert image.dtype == np.uint8
        assert len(sha256) == 64
        expected = fakes.image_of(layouts.depth_m(number)).astype(int)
        assert np.abs(image - expected).mean() <= image_off
        truth_m = source.read_truth_m(sample)
        assert truth_m.dtype == np.float32
        known = np.isfinite(truth_m)
        assert known.mean() in {1.0, 1 - 12 / (SIZE_PX[0] * SIZE_PX[1])}
        assert np.abs(truth_m - layouts.depth_m(number))[known].max() <= truth_off
        assert sample.focal_px > 500


def test_each_layout_survives_pickling_and_reads_the_same(laid_out):
    source, samples, *_ = laid_out
    source.read_image(samples[0])
    again = pickle.loads(pickle.dumps(source))
    assert (again.read_image(samples[-1])[0] == source.read_image(samples[-1])[0]).all()
    assert np.array_equal(again.read_truth_m(samples[-1]), source.read_truth_m(samples[-1]), equal_nan=True)


def test_each_layout_can_be_cached_and_trained_on(laid_out, tmp_path):
    source, samples, *_ = laid_out
    split = tmp_path / "list.txt"
    lines = [sample.id for sample in samples]
    if source.truth == "sync_depth":
        lines = [f"/{one}.jpg /{one.replace('/rgb_', '/sync_depth_')}.png 518.8579" for one in lines]
    split.write_text("\n".join(lines) + "\n")
    options = CacheOptions(samples_per_shard=2, batch_size=2, bins="nyu", sigma_m=0.15, view="full")
    cache_teacher(source, str(split), fakes.FakeTeacher(), tmp_path / "s.zarr", options)
    store = open_store(tmp_path / "s.zarr")
    assert list(store.ids) == [sample.id for sample in samples]
    augmentation = Augmentation(crop_px=(16, 16), flip=True)
    for given_store in (store, None):
        data = TrainingData(
            source, samples, View.parse("full"), store=given_store, maps_px=None, augmentation=augmentation, seed=0
        )
        item = data[0, len(samples) - 1]
        assert item.image.shape == (3, 16, 16)
        close = (item.target_depth_m - 12 * (1 - item.image.float().mean(0, keepdim=True) / 255)).abs()
        assert close[item.target_depth_m.isfinite()].max() < 1.5


def test_images_of_the_labeled_file_are_known_by_the_hash_of_their_pixels(tmp_path):
    source = open_source(f"nyu:{layouts.make_nyu_labeled(tmp_path)}")
    image, sha256 = source.read_image(source.samples("all")[2])
    pixels = fakes.image_of(layouts.depth_m(2))
    assert sha256 == hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    assert image.flags.c_contiguous


@pytest.mark.parametrize("kind", ["nyu", "diode", "hypersim"])
def test_the_defaults_are_those_of_papers(tmp_path, kind):
    make = {"nyu": layouts.make_nyu_labeled, "diode": layouts.make_diode, "hypersim": layouts.make_hypersim}[kind]
    source = open_source(f"{kind}:{make(tmp_path)}")
    expected = {"nyu": ("full", "nyu", 0.15, "nyu_eigen", (416, 544), 2.5)}
    defaults = source.defaults
    found = (defaults.view, defaults.bins, defaults.sigma_m, defaults.protocol, defaults.crop_px, defaults.rotate_deg)
    assert found == expected.get(kind, ("full", None, None, "plain", None, 0))
    assert (source.name, source.root) == (kind, tmp_path)


# Wrong roots


@pytest.mark.parametrize(
    ("layout", "given", "right"),
    [
        ("labelled", "", "data/nyu"),
        ("pngs", "", "data/nyu"),
        ("pngs", "data/nyu/official_splits", "data/nyu"),
        ("pngs", "data/nyu/sync/kitchen_0028b", "data/nyu/sync"),
        ("fast-depth", "data/nyu/train", "data/nyu"),
        ("fast-depth", "data/nyu/train/cafe_0001a", "data/nyu"),
        ("diode", "data/nyu/val", "data/nyu"),
        ("diode", "data/nyu/val/indoors/scene_00019/scan_00183", "data/nyu"),
        ("diode", "data", "data/nyu"),
        ("hypersim", "data/nyu/ai_001_001", "data/nyu"),
        ("hypersim", "data/nyu/ai_001_001/images", "data/nyu"),
        ("hypersim", "data", "data/nyu"),
    ],
)
def test_a_root_too_high_or_too_low_is_refused_with_the_right_one(tmp_path, layout, given, right):
    kind, make, *_ = ALL[layout]
    make(tmp_path / "data/nyu")
    (tmp_path / "data/else").mkdir()
    given = tmp_path / (given or "data")
    with refuses(f"source {kind}:{given}: no ", f"did you mean {kind}:{tmp_path / right}?"):
        open_source(f"{kind}:{given}")


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("nyu", [layouts.LABELED, "sync/", "train/SCENE/00001.h5"]),
        ("diode", ["train/", "indoors/"]),
        ("hypersim", ["ai_001_001/images/"]),
    ],
)
def test_a_root_of_something_else_is_refused_with_what_was_expected(tmp_path, kind, parts):
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    with refuses(f"source {kind}:{tmp_path}/a/b/c/d: no ", *parts):
        open_source(f"{kind}:{tmp_path}/a/b/c/d")


@pytest.mark.parametrize(
    ("layout", "truth", "parts"),
    [
        ("labelled", "dense", ["'dense'", "filled, raw"]),
        ("pngs", "raw", ["'raw'", layouts.LABELED, "download it"]),
        ("fast-depth", "filled", ["'filled'", layouts.LABELED]),
        ("diode", "laser", ["'laser'", "expected depth"]),
        ("hypersim", "distance", ["'distance'", "expected depth"]),
    ],
)
def test_an_unknown_truth_is_refused(tmp_path, layout, truth, parts):
    kind, make, *_ = ALL[layout]
    with refuses(*parts):
        open_source(f"{kind}:{make(tmp_path)}", truth)


# NYU, the labelled file


def test_raw_depth_has_the_holes_that_filled_depth_has_not(tmp_path):
    layouts.make_nyu_labeled(tmp_path)
    filled, raw = (open_source(f"nyu:{tmp_path}", truth) for truth in (None, "raw"))
    sample = filled.samples("all")[1]
    assert np.isfinite(filled.read_truth_m(sample)).all()
    assert np.isnan(raw.read_truth_m(sample)).sum() == 12
    assert (filled.truth, raw.truth) == ("filled", "raw")


@pytest.mark.parametrize("chunks", [None, "frame", "across"])
def test_frames_come_out_whole_however_the_file_is_cut(tmp_path, chunks):
    source = open_source(f"nyu:{layouts.make_nyu_labeled(tmp_path, frames=7, size_px=(17, 13), chunks=chunks)}")
    for number, sample in enumerate(source.samples("all")):
        assert (source.read_image(sample)[0] == fakes.image_of(layouts.depth_m(number, (17, 13)))).all()
        np.testing.assert_array_equal(source.read_truth_m(sample), layouts.depth_m(number, (17, 13)))


def test_pngs_beside_the_labeled_file_go_first_and_truth_asks_for_the_file(tmp_path):
    layouts.make_nyu_labeled(tmp_path)
    layouts.make_nyu_pngs(tmp_path)
    assert open_source(f"nyu:{tmp_path}").truth == "sync_depth"
    assert open_source(f"nyu:{tmp_path}", "filled").truth == "filled"


def test_matlabs_own_split_file_is_turned_into_lists_by_the_command_that_the_error_gives(tmp_path):
    io = pytest.importorskip("scipy.io")
    layouts.make_nyu_labeled(tmp_path)
    io.savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[6], [3], [4]]), "testNdxs": np.array([[1], [2], [5]])})
    source = open_source(f"nyu:{tmp_path}")
    for split in ("train", str(tmp_path / "splits.mat")):
        with pytest.raises(PipelineError, match="MATLAB files are not read") as refused:
            source.samples(split)
        command = str(refused.value).splitlines()[1].strip()
        assert command.startswith("python -c ")
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    assert [sample.id for sample in source.samples("train")] == ["0003", "0004", "0006"]
    assert [sample.id for sample in source.samples("test")] == ["0001", "0002", "0005"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1\n0\n", ["line 2", "'0'", "1 to 6"]),
        ("7\n", ["line 1", "'7'"]),
        ("kitchen\n", ["'kitchen'", "frame number"]),
        ("2\n0002\n", ["line 2", "first on line 1"]),
        ("\n", ["no rows"]),
    ],
)
def test_a_wrong_list_of_numbers_is_refused_with_its_line(tmp_path, text, parts):
    source = open_source(f"nyu:{layouts.make_nyu_labeled(tmp_path)}")
    (tmp_path / "mine.txt").write_text(text)
    with refuses(tmp_path / "mine.txt", *parts):
        source.samples("mine")


def test_an_unknown_split_of_the_labeled_file_names_what_there_is(tmp_path):
    source = open_source(f"nyu:{layouts.make_nyu_labeled(tmp_path)}")
    with refuses("'test'", "`all`"):
        source.samples("test")


def test_many_threads_read_one_file_and_a_forked_process_opens_it_anew(tmp_path, monkeypatch):
    real, opened = h5py.File, []
    monkeypatch.setattr(h5py, "File", lambda *args, **kwargs: opened.append(args) or real(*args, **kwargs))
    source = open_source(f"nyu:{layouts.make_nyu_labeled(tmp_path, frames=12, chunks='across')}")
    samples = source.samples("all") * 8

    def read(sample):
        return source.read_image(sample)[0], source.read_truth_m(sample)

    with ThreadPoolExecutor(8) as threads:
        for sample, (image, truth_m) in zip(samples, threads.map(read, samples), strict=True):
            expected_m = layouts.depth_m(int(sample.id) - 1)
            assert (image == fakes.image_of(expected_m)).all()
            assert (truth_m == expected_m).all()
    opened.clear()
    child = os.fork()
    if child == 0:
        try:
            same = (source.read_truth_m(samples[5]) == layouts.depth_m(5)).all()
            os._exit(0 if same and len(opened) == 1 else 3)
        finally:
            os._exit(4)
    assert os.waitpid(child, 0)[1] == 0
    assert not opened
    assert (read(samples[3])[1] == layouts.depth_m(3)).all()


def test_a_labeled_file_of_other_shapes_is_refused(tmp_path):
    with h5py.File(tmp_path / layouts.LABELED, "w") as file:
        file["images"] = np.zeros((2, 3, 8, 6), np.uint8)
        file["depths"] = np.zeros((2, 6, 8), np.float32)
    with refuses(layouts.LABELED, "(2, 3, 8, 6)", "(2, 6, 8)", "(N, 3, width, height)"):
        open_source(f"nyu:{tmp_path}")


# NYU as PNGs


@pytest.mark.parametrize(
    ("depth", "parts"),
    [
        ("kitchen_0028b/sync_depth_00002.png", ["frame 2", "of frame 0"]),
        ("living_room_0019/sync_depth_00000.png", ["scene living_room_0019", "of scene kitchen_0028b"]),
    ],
    ids=["frame", "scene"],
)
def test_a_nyu_row_with_the_depth_of_another_frame_is_refused_unless_the_list_means_it(tmp_path, depth, parts):
    source = open_source(f"nyu:{layouts.make_nyu_pngs(tmp_path)}")
    row = f"/kitchen_0028b/rgb_00000.jpg /{depth} 518.8579\n"
    (tmp_path / "slipped.txt").write_text(row)
    with pytest.raises(ValueError, match=f"slipped.txt line 1.*{'.*'.join(parts)}.*# pairs: as listed"):
        source.samples("slipped")
    (tmp_path / "slipped.txt").write_text(f"# pairs: as listed\n{row}")
    assert source.samples("slipped")[0].truth_path.endswith(depth)


def test_a_scene_is_found_in_the_half_that_has_the_image(tmp_path):
    source = open_source(f"nyu:{layouts.make_nyu_pngs(tmp_path)}")
    (tmp_path / "both.txt").write_text(
        "bathroom/rgb_00009.jpg bathroom/sync_depth_00009.png 518.8579\n"
        "bathroom/rgb_00005.jpg None 518.8579\n/kitchen_0028b/rgb_00002.jpg None 518.8579\n"
    )
    samples = source.samples("both")
    below = [sample.image_path.removeprefix(f"{tmp_path}/") for sample in samples]
    assert below == [
        "official_splits/train/bathroom/rgb_00009.jpg",
        "official_splits/test/bathroom/rgb_00005.jpg",
        "sync/kitchen_0028b/rgb_00002.jpg",
    ]
    assert [sample.truth_path is None for sample in samples] == [False, True, True]
    assert source.read_truth_m(samples[1]) is None


def test_the_official_halves_need_no_list(tmp_path):
    source = open_source(f"nyu:{layouts.make_nyu_pngs(tmp_path)}")
    assert [sample.id for sample in source.samples("test")] == ["bathroom/rgb_00004", "bathroom/rgb_00005"]
    (sample,) = source.samples("train")
    assert sample.id == "bathroom/rgb_00009"
    np.testing.assert_allclose(source.read_truth_m(sample), layouts.depth_m(9), atol=6e-4)


def test_scenes_right_below_the_root_are_found(tmp_path):
    layouts.make_nyu_pngs(tmp_path)
    source = open_source(f"nyu:{tmp_path / 'sync'}")
    samples = source.samples(str(tmp_path / "nyudepthv2_train_files_with_gt.txt"))
    assert source.read_image(samples[0])[0].shape == (*SIZE_PX, 3)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("/kitchen_0028b/rgb_00000.jpg /kitchen_0028b/sync_depth_00000.png", ["2 columns", "rgb depth focal_px"]),
        ("//etc/rgb_00000.jpg None 518.8579", ["'/etc/rgb_00000.jpg' is absolute"]),
        ("/../rgb_00000.jpg None 518.8579", ["outside the root"]),
        ("/kitchen_0028b/rgb_00000.jpg /../../x.png 518.8579", ["'../../x.png'"]),
        ("/kitchen_0028b/rgb_00000 None 518.8579", ["ends in .jpg"]),
        ("/kitchen_0028b/rgb_00000.jpg None 0.0", ["must be a positive number", "'0.0'"]),
        ("/kitchen_0099/rgb_00000.jpg None 518.8579", ["no folder 'kitchen_0099'", "sync/"]),
    ],
)
def test_a_wrong_row_of_a_list_of_pngs_is_refused_with_its_line(tmp_path, row, parts):
    source = open_source(f"nyu:{layouts.make_nyu_pngs(tmp_path)}")
    (tmp_path / "mine.txt").write_text(row + "\n")
    with refuses("mine.txt line 1", *parts):
        source.samples("mine")


# NYU as FastDepth's files


@pytest.mark.parametrize(
    ("split", "count"), [("train", 3), ("val", 1), ("train/cafe_0001a", 2), ("val/official", 1), ("mine", 1)]
)
def test_fast_depth_splits_are_its_folders(tmp_path, split, count):
    source = open_source(f"nyu:{layouts.make_fast_depth(tmp_path)}")
    (tmp_path / "mine.txt").write_text("train/study_0008/00001.h5\n")
    assert len(source.samples(split)) == count


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("train/nowhere", ["no .h5 file below", "train/SCENE/00001.h5"]),
        ("train/../..", ["outside the root"]),
        ("test", ["'test'", "`train`, `val`"]),
    ],
)
def test_a_wrong_split_of_fast_depth_is_refused(tmp_path, split, parts):
    source = open_source(f"nyu:{layouts.make_fast_depth(tmp_path)}")
    with refuses(*parts):
        source.samples(split)


def test_a_frame_that_is_missing_or_of_another_type_is_named(tmp_path):
    source = open_source(f"nyu:{layouts.make_fast_depth(tmp_path)}")
    first, second, _ = source.samples("train")
    Path(first.image_path).unlink()
    with refuses("image", first.image_path, "No such file", "`source`"):
        source.read_image(first)
    with h5py.File(second.image_path, "a") as file:
        del file["rgb"]
        file["rgb"] = np.zeros((3, 4, 5), np.float32)
    with refuses(second.image_path, "float32 of shape (3, 5, 4)", "uint8"):
        source.read_image(second)


# DIODE


@pytest.mark.parametrize(
    ("split", "count"),
    [("val", 2), ("val/indoors", 1), ("val/outdoor", 1), (layouts.DIODE_SCANS[2], 1), ("val/indoors/scene_00019", 1)],
)
def test_diode_splits_are_its_folders(tmp_path, split, count):
    source = open_source(f"diode:{layouts.make_diode(tmp_path)}")
    samples = source.samples(split)
    assert len(samples) == count
    assert all(sample.id.startswith(split) for sample in samples)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, bool])
def test_where_diodes_mask_is_0_there_is_no_depth(tmp_path, dtype):
    source = open_source(f"diode:{layouts.make_diode(tmp_path)}")
    (sample,) = source.samples("train")
    mask = np.zeros(SIZE_PX, dtype)
    mask[5, 6] = 1
    np.save(sample.truth_path.replace("_depth.npy", "_depth_mask.npy"), mask)
    truth_m = source.read_truth_m(sample)
    assert np.isfinite(truth_m).sum() == 1
    assert truth_m[5, 6] == layouts.depth_m(0)[5, 6]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda path: path.unlink(), ["mask", "no such file"]),
        (lambda path: np.save(path, np.ones((2, 2))), ["(2, 2) px"]),
    ],
)
def test_a_mask_that_is_missing_or_of_another_size_is_refused(tmp_path, change, parts):
    source = open_source(f"diode:{layouts.make_diode(tmp_path)}")
    (sample,) = source.samples("train")
    change(Path(sample.truth_path.replace("_depth.npy", "_depth_mask.npy")))
    with refuses(*parts):
        source.read_truth_m(sample)


@pytest.mark.parametrize(
    ("split", "text", "parts"),
    [
        ("mine", "val/indoors/scene_00019/scan_00183/none.png\n", ["line 1", "none.png is missing"]),
        ("mine", "../x.png\n", ["line 1", "outside the root"]),
        ("val/nowhere", "", ["no image below", "val/indoors"]),
        ("vall", "", ["'vall'", "a folder like train"]),
    ],
)
def test_a_wrong_split_of_diode_is_refused(tmp_path, split, text, parts):
    source = open_source(f"diode:{layouts.make_diode(tmp_path)}")
    (tmp_path / "mine.txt").write_text(text)
    with refuses(*parts):
        source.samples(split)


# Hypersim


def test_the_focal_length_is_the_published_one():
    assert focal_px(1024) == pytest.approx(886.81, abs=0.005)


@given(st.floats(0.5, 20), st.floats(-0.6, 0.6), st.floats(-0.6, 0.6), st.sampled_from([(12, 16), (24, 32), (13, 9)]))
def test_a_plane_comes_back_flat(distance_m, tilt_x, tilt_y, size_px):
    # A plane z = d + a x + b y, met by the ray (right, down, 1) at z = d / (1 - a right - b down).
    lengths = layouts.ray_lengths(size_px)
    across = 2 * np.tan(np.pi / 6)
    right = ((np.arange(size_px[1]) + 0.5) / size_px[1] - 0.5) * across
    down = (((np.arange(size_px[0]) + 0.5) / size_px[0] - 0.5) * across * size_px[0] / size_px[1])[:, None]
    depth_m = distance_m / (1 - tilt_x * right - tilt_y * down)
    found_m = planar_m((depth_m * lengths).astype(np.float32))
    np.testing.assert_allclose(found_m, depth_m, rtol=1e-6)
    points = np.stack(np.broadcast_arrays(right * found_m, down * found_m, found_m), -1).reshape(-1, 3)
    normal = np.array([-tilt_x, -tilt_y, 1.0])
    np.testing.assert_allclose(points @ normal, distance_m, rtol=1e-4)


@pytest.mark.parametrize(
    ("split", "count"),
    [("train", 4), ("test", 2), ("all", 6), ("ai_001_001", 4), ("ai_001_001/cam_01", 1), ("mine", 1)],
)
def test_hypersim_splits_are_those_of_its_table_and_its_scenes(tmp_path, split, count):
    source = open_source(f"hypersim:{layouts.make_hypersim(tmp_path)}")
    (tmp_path / "mine.txt").write_text("ai_003_010/cam_00/frame.0001\n")
    samples = source.samples(split)
    assert len(samples) == count
    assert all(source.read_image(sample)[0].shape == (*SIZE_PX, 3) for sample in samples)


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("val", ["'val'", layouts.SPLIT_FILE, "2 scenes"]),
        ("ai_001_001/cam_07", ["no frame.0000.tonemap.jpg"]),
        ("ai_009_001", ["'ai_009_001'", "`all`", "ai_001_001"]),
        ("mine", ["line 1", "'../frame.0000'", "ai_001_001/cam_00/frame.0000"]),
    ],
)
def test_a_wrong_split_of_hypersim_is_refused(tmp_path, split, parts):
    source = open_source(f"hypersim:{layouts.make_hypersim(tmp_path)}")
    (tmp_path / "mine.txt").write_text("../frame.0000\n")
    with refuses(*parts):
        source.samples(split)


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (b"scene_name,frame_id\nai_001_001,0\n", ["columns ['scene_name', 'frame_id']", "camera_name"]),
        (b"\xff\xfe", ["byte 0 is not UTF-8"]),
        (b"", ["columns []"]),
        (
            b"scene_name,camera_name,frame_id,included_in_public_release,split_partition_name\n../a,cam_00,0,True,train\n",
            ["line 2", "'../a/cam_00/frame.0000'"],
        ),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, table, parts):
    source = open_source(f"hypersim:{layouts.make_hypersim(tmp_path)}")
    (tmp_path / layouts.SPLIT_FILE).write_bytes(table)
    with refuses(layouts.SPLIT_FILE, *parts):
        source.samples("train")


# Listing


@pytest.mark.parametrize(("layout", "split"), [("fast-depth", "train"), ("diode", "train"), ("hypersim", "all")])
def test_a_listing_asks_the_disk_for_folders_and_not_for_files(tmp_path, monkeypatch, layout, split):
    kind, make, *_ = ALL[layout]
    make(tmp_path)
    scene = {
        "fast-depth": "train/study_0008/{:05d}.h5",
        "diode": layouts.DIODE_SCANS[0] + "/{:05d}.png",
        "hypersim": "ai_001_001/images/scene_cam_01_final_preview/frame.{:04d}.tonemap.jpg",
    }[layout]
    for number in range(500):
        (tmp_path / scene.format(number)).touch()
    real, asked = os.stat, []
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: asked.append(args) or real(*args, **kwargs))
    source = open_source(f"{kind}:{tmp_path}")
    assert len(source.samples(split)) >= 500
    assert len(asked) < 40


# HDF5 files


@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f4", "<f2", ">u2", "<f8"])
@pytest.mark.parametrize(
    "packed",
    [
        {"chunks": (2, 5, 4)},
        {"compression": "gzip", "chunks": (1, 17, 13)},
        {"compression": "gzip", "shuffle": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (3, 4, 13)},
        {"fletcher32": True, "chunks": (1, 3, 13)},
        {},
    ],
)
def test_every_type_and_packing_reads_back(tmp_path, dtype, packed):
    values = (np.random.default_rng(0).random((5, 17, 13)) * 200).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, **packed)
    file = Hdf5File(tmp_path / "a.h5", "file")
    for number in range(5):
        read = file.read("x", 3, number)
        np.testing.assert_array_equal(read, values[number])
        assert read.dtype.isnative
    np.testing.assert_array_equal(read_hdf5(str(tmp_path / "a.h5"), "x", 3, "file"), values)
    with refuses("a.h5", "no frame 5, only 5"):
        file.read("x", 3, 5)


@pytest.mark.parametrize(
    "packing", [{"compression": "gzip"}, {"fletcher32": True}, {"compression": "gzip", "shuffle": True}]
)
def test_a_flipped_byte_of_packed_numbers_is_refused_or_seen(tmp_path, packing):
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(64, 64), **packing)
        where = file["x"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[where.byte_offset + where.size // 2] ^= 0xFF
    path.write_bytes(data)
    with refuses("file", path, "does not read"):
        read_hdf5(str(path), "x", 2, "file")


@pytest.mark.parametrize("chunks", [None, (8, 8)])
def test_numbers_that_were_not_all_written_are_refused(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("x", (16, 8), "f4", chunks=chunks)
        if chunks:
            data[:8] = 1  # HDF5 gives zeros for the rest
    with refuses("a.h5", "1 of 2 chunks" if chunks else "0 of 512 bytes", "not written completely"):
        read_hdf5(str(tmp_path / "a.h5"), "x", 2, "file")


@settings(max_examples=60)
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=6))
def test_a_damaged_hdf5_file_is_numbers_or_one_value_error(tmp_path_factory, position, junk):
    path = tmp_path_factory.mktemp("h") / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(600, dtype=np.float32).reshape(20, 30), compression="gzip")
    data = path.read_bytes()
    position %= len(data)
    path.write_bytes((data[:position] + junk + data[position + len(junk) :])[: len(data)])
    try:
        assert read_hdf5(str(path), "x", 2, "depth").size <= 2**25
    except ValueError as error:
        assert str(error).startswith(f"depth {path}: ")  # noqa: PT017 - both ways are right
