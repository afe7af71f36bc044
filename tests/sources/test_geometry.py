"""Ground truth of another resolution than its image gives the same pixels, metrics and fits as at full resolution."""

import re

import fakes
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.images import cache_images
from pipeline.cli.main import main
from pipeline.evaluation.protocol import choose_protocol
from pipeline.evaluation.run import evaluate_teacher
from pipeline.sources.registry import open_source
from pipeline.sources.view import View, same_aspect
from pipeline.store import open_store
from pipeline.store.images.reader import open_images
from pipeline.train.dataset import Augmentation, TrainingData

IMAGE_PX = (48, 96)
CROPS = [
    "full",
    "center:16x40",
    "center:15x33",
    "center:16x40,resize:12x30",
    "full,resize:20x44",
    "center:16x40,mirror",
]


def expanded(depth_m, factor):
    return depth_m.repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.fixture
def root(tmp_path):
    """Images with truth at a half, a third and twice their resolution, and each of them at full resolution."""
    for number in range(4):
        depth_m = fakes.smooth_depth_m(IMAGE_PX, number)
        fakes.write_image(tmp_path / "rgb" / f"{number}.png", fakes.image_of(depth_m))
        fakes.write_depth(tmp_path / "depth" / f"{number}.png", depth_m, 0.001)
        for name, step in (("half", 2), ("third", 3)):
            small_m = depth_m[step // 2 :: step, step // 2 :: step]
            fakes.write_depth(tmp_path / name / f"{number}.png", small_m, 0.001)
            fakes.write_depth(tmp_path / f"{name}_expanded" / f"{number}.png", expanded(small_m, step), 0.001)
        fakes.write_depth(tmp_path / "twice" / f"{number}.png", expanded(depth_m, 2), 0.001)
    return tmp_path


def source_of(root, truth):
    return open_source(f"folder:{root}", truth)


def run(*arguments):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


PAIRS = [("half", "half_expanded"), ("third", "third_expanded"), ("twice", "depth")]
IDS = ["half", "third", "twice"]


@given(st.sampled_from(CROPS), st.integers(2, 5))
def test_small_truth_gives_the_pixels_of_the_same_truth_expanded_by_nearest(text, factor):
    small = np.random.default_rng(factor).random((18, 42)).astype(np.float32)
    image_px = (18 * factor, 42 * factor)
    view = View.parse(text)
    np.testing.assert_array_equal(view.of_depth(small, image_px), view.of_depth(expanded(small, factor), image_px))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((375, 1242), (375, 1242), True),
        ((480, 640), (240, 320), True),
        ((1440, 1920), (192, 256), True),
        ((968, 1296), (480, 640), True),
        ((375, 1242), (187, 621), True),
        ((375, 1242), (188, 621), True),
        ((1242, 375), (621, 187), True),
        ((375, 1242), (352, 1216), False),
        ((375, 1242), (1242, 375), False),
        ((480, 640), (480, 480), False),
        ((352, 1216), (192, 640), False),
    ],
    ids=["equal", "half", "phone", "scannet", "floor", "ceil", "portrait", "kb", "transposed", "square", "stretched"],
)
def test_sizes_are_of_one_picture_where_their_borders_agree_within_a_pixel(one, other, same):
    assert same_aspect(one, other) is same
    assert same_aspect(other, one) is same


@pytest.mark.parametrize("text", CROPS)
@pytest.mark.parametrize(("truth", "full"), PAIRS, ids=IDS)
def test_training_on_truth_sees_what_it_sees_at_full_resolution(root, truth, full, text):
    given, expected = (
        TrainingData(
            source,
            source.samples("all"),
            View.parse(text),
            store=None,
            maps_px=None,
            augmentation=Augmentation(flip=True),
            seed=1,
        )
        for source in (source_of(root, truth), source_of(root, full))
    )
    for number in range(4):
        np.testing.assert_array_equal(given[0, number].target_depth_m, expected[0, number].target_depth_m)
        np.testing.assert_array_equal(given[0, number].image, expected[0, number].image)


def test_training_on_truth_from_kept_images_takes_the_same_pixels(root, tmp_path):
    source = source_of(root, "half")
    cache_images(source, "all", tmp_path / "kept", view="center:16x40")
    kept = open_images(tmp_path / "kept")
    by_images = [
        TrainingData(
            source,
            source.samples("all"),
            View.parse("center:16x40"),
            store=None,
            maps_px=None,
            augmentation=Augmentation(),
            seed=1,
            images=images,
        )[0, 2].target_depth_m
        for images in (None, kept)
    ]
    np.testing.assert_array_equal(*by_images)


def test_a_student_of_small_truth_learns_the_depths_of_its_crop(root):
    source = source_of(root, "half")
    data = TrainingData(
        source,
        source.samples("all"),
        View.parse("center:16x40"),
        store=None,
        maps_px=None,
        augmentation=Augmentation(),
        seed=0,
    )
    target_m = data[0, 0].target_depth_m.numpy()[0]
    true_m = fakes.smooth_depth_m(IMAGE_PX, 0)[16:32, 28:68]  # the crop of the image
    assert np.abs(target_m - true_m).max() < 0.4  # a pixel of the small truth, at the bump's steepest
    assert abs(float(np.median(target_m)) - float(np.median(true_m))) < 0.1
    wrong_m = fakes.smooth_depth_m(IMAGE_PX, 0)[8:40, 8:88]  # what the crop's own pixels of the small truth cover
    assert float(np.ptp(wrong_m)) > float(np.ptp(true_m)) + 1


@pytest.mark.parametrize("text", ["center:16x40", "full,resize:24x48"])
@pytest.mark.parametrize(("truth", "full"), PAIRS, ids=IDS)
def test_evaluation_on_small_truth_has_the_metrics_of_full_resolution(root, tmp_path, truth, full, text):
    store = tmp_path / "teacher.zarr"
    teacher = ("--teacher", "python:fakes:factory", "--view", text, "--bins", "nyu", "--sigma-m", "0.2")
    run("cache-teacher", "--source", f"folder:{root}", "--split", "all", *teacher, "--out", store)
    results = [
        evaluate_teacher(open_store(store), source, "all", choose_protocol("plain", source))["metrics"]
        for source in (source_of(root, truth), source_of(root, full))
    ]
    assert results[0] == results[1]
    assert results[0]["abs_rel"] < 0.05


@pytest.mark.parametrize("truth", ["half", "third", "twice"])
def test_alignment_by_small_truth_finds_the_scale_of_full_resolution(root, tmp_path, truth):
    store = tmp_path / "relative.zarr"
    (tmp_path / "p").mkdir()
    for number in range(4):
        np.save(tmp_path / "p" / f"{number}.npy", 3 / fakes.smooth_depth_m(IMAGE_PX, number)[16:32, 28:68] + 2)
    teacher = ("--teacher", f"predictions:{tmp_path / 'p'}", "--depth-space", "affine_disparity")
    view = ("--view", "center:16x40")
    run("cache-teacher", "--source", f"folder:{root}", "--split", "all", *teacher, *view, "--out", store)
    align = ("--source", f"folder:{root}", "--split", "all", "--truth", truth, "--min-points", "50")
    told = run("store", "align", store, *align, "--out", tmp_path / "aligned.zarr")
    assert "4 of 4 samples accepted" in told
    aligned_m = open_store(tmp_path / "aligned.zarr").depth_m(0)
    off = np.abs(aligned_m / fakes.smooth_depth_m(IMAGE_PX, 0)[16:32, 28:68] - 1)
    assert np.median(off) < 0.02  # half a pixel of the small truth


def test_truth_of_another_aspect_is_refused_in_training_evaluation_and_alignment(root, tmp_path):
    for number in range(4):
        fakes.write_depth(root / "cut" / f"{number}.png", fakes.smooth_depth_m((40, 96), number), 0.001)
    given = ("--source", f"folder:{root}", "--split", "all")
    run("cache-teacher", *given, "--teacher", "python:fakes:relative", "--out", tmp_path / "r.zarr")
    truth = (*given, "--truth", "cut")
    for words in (
        ("train-teacher", *truth, "--bins", "nyu", "--student", "lean", "--epochs", "1", "--crop", "32x32"),
        ("evaluate-teacher", tmp_path / "r.zarr", *truth),
        ("store", "align", tmp_path / "r.zarr", *truth),
    ):
        done = CliRunner().invoke(main, list(map(str, (*words, "--out", tmp_path / "out"))))
        assert done.exit_code == 1
        assert re.search(r"cut.\d.png: ground truth has 40x96 px, .* 48x96 px; .*same aspect ratio", done.output)
