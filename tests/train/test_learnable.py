"""Ground truth, predictions and stores whose depth does not vary are refused before training."""

import shutil

import fakes
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.train.learnable import SILENT_SAMPLES

SIZE_PX = (32, 64)
NETWORK = ("--student", "lean", "--epochs", "1", "--batch-size", "2")
BINS = ("--bins", "nyu", "--sigma-m", "0.2")


def command(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def root(tmp_path):
    """Ten images with ground truth `depth`, `none` (invalid), `same` (5 m), `late` (last image only) and `levels`."""
    ids = [str(number) for number in range(SILENT_SAMPLES + 2)]
    root = fakes.make_folder(tmp_path / "data", ids, SIZE_PX)
    for number in ids:
        fakes.write_depth(root / "none" / f"{number}.png", np.full(SIZE_PX, np.nan, np.float32), 0.001)
        fakes.write_depth(root / "same" / f"{number}.png", np.full(SIZE_PX, 5, np.float32), 0.001)
    shutil.copytree(root / "none", root / "late")
    shutil.copy(root / "depth" / f"{ids[-1]}.png", root / "late")
    shutil.copytree(root / "same", root / "levels")
    fakes.write_depth(root / "levels" / f"{ids[3]}.png", np.full(SIZE_PX, 6, np.float32), 0.001)
    return root


def train(root, out, *flags):
    arguments = ("--source", f"folder:{root}", "--split", "all", *NETWORK)
    return command(*flags[:1], *arguments, *flags[1:], "--out", out)


@pytest.fixture
def stores_anything(monkeypatch):
    """Let stage one write a store of constant depth, which it refuses otherwise."""
    monkeypatch.setattr("pipeline.cache.run.check", lambda *_: (None, []))


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("none", "ground truth none: all 20480 pixels of its 10 samples are invalid"),
        ("same", "ground truth same: every valid pixel of its 10 samples has the depth 5"),
    ],
)
def test_ground_truth_that_is_invalid_or_constant_is_refused(root, tmp_path, truth, message):
    done = train(root, tmp_path / "run", "train-teacher", "--truth", truth, "--bins", "nyu")
    assert done.exit_code == 1
    assert f"nothing to learn from the {message}" in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("truth", ["late", "levels"])
def test_ground_truth_of_few_or_flat_images_is_accepted(root, tmp_path, truth):
    done = train(root, tmp_path / "run", "train-teacher", "--truth", truth, "--bins", "nyu")
    assert done.exit_code == 0, done.output


def test_ground_truth_that_is_all_declared_invalid_is_refused(root, tmp_path):
    flags = ("--truth", "same", "--invalid", "5000", "--bins", "nyu")
    done = train(root, tmp_path / "run", "train-teacher", *flags)
    assert "ground truth same without 5000: all 20480 pixels" in done.output


@pytest.mark.usefixtures("stores_anything")
def test_a_store_of_constant_depth_is_refused(root, tmp_path):
    given = ("--source", f"folder:{root}", "--split", "all", "--teacher", f"predictions:{root / 'same'}")
    store = tmp_path / "s.zarr"
    assert command("cache-teacher", *given, "--metres-per-unit", "mm", *BINS, "--out", store).exit_code == 0
    done = train(root, tmp_path / "run", "train-student", "--store", store)
    assert done.exit_code == 1
    assert "s.zarr: every valid pixel of its 10 samples has the depth 5" in done.output


@pytest.mark.usefixtures("stores_anything")
def test_relative_depth_that_is_flat_in_each_image_is_refused(root, tmp_path):
    (tmp_path / "p").mkdir()
    for number in range(SILENT_SAMPLES + 2):
        np.save(tmp_path / "p" / f"{number}.npy", np.full(SIZE_PX, 1 + number, np.float32))
    given = ("--source", f"folder:{root}", "--split", "all", "--teacher", f"predictions:{tmp_path / 'p'}")
    store = tmp_path / "s.zarr"
    assert command("cache-teacher", *given, "--depth-space", "affine_disparity", "--out", store).exit_code == 0
    done = train(root, tmp_path / "run", "train-student", "--store", store)
    assert done.exit_code == 1
    assert "all 20480 pixels of its 10 samples are invalid, or constant within their sample" in done.output


def test_stage_one_refuses_predictions_that_are_all_invalid(root, tmp_path):
    given = ("--source", f"folder:{root}", "--split", "all", "--teacher", f"predictions:{root / 'none'}")
    done = command("cache-teacher", *given, "--metres-per-unit", "mm", *BINS, "--out", tmp_path / "s.zarr")
    assert done.exit_code == 1
    assert "so there is nothing to learn" in done.output
    assert not (tmp_path / "s.zarr").exists()
