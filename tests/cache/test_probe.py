"""A teacher that differs from itself, asked again or in a batch, is refused before a run; rounding is not."""

import dataclasses
import re

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_networks import make_onnx

from pipeline.cache.cluster_worker import ClusterWorker, WorkerConfig, WorkerError
from pipeline.cache.flips import cache_with_flips
from pipeline.cache.plan import CacheOptions
from pipeline.cache.probe import difference
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

OPTIONS = CacheOptions(bins="nyu", sigma_m=0.2, batch_size=4)


def refuses(*parts):
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture
def source(tmp_path):
    return open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 6, (16, 32))}")


class Told(fakes.FakeTeacher):
    """A fake whose depth `change(depth, images, calls)` makes another; counts what it is shown."""

    def __init__(self, change=lambda depth, _images, _calls: depth, precision="float32", depth_space="metric_m"):
        super().__init__()
        self.card = dataclasses.replace(self.card, precision=precision, depth_space=depth_space)
        self.change, self.shown = change, []

    def __call__(self, images):
        self.shown.append(len(images))
        return self.change(super().__call__(images), images, len(self.shown))


def mixes(depth, images, _calls):
    """What a normalisation in training mode does."""
    return depth * (1 + 0.3 * images.mean())


def only_the_first(depth, _images, _calls):
    """What a graph with a batch of 1 in it may do."""
    return depth[:1].expand(len(depth), -1, -1)


def noisy(depth, _images, calls):
    return depth * (1 + 0.01 * (calls % 2))


def rounded(dtype):
    def change(depth, images, _calls):
        return (depth * (1 + torch.finfo(dtype).eps * (len(images) > 1))).to(dtype).float()

    return change


def test_the_probe_shows_the_teacher_four_images(source, tmp_path):
    teacher = Told()
    cache_teacher(source, "all", teacher, tmp_path / "s.zarr", OPTIONS)
    assert teacher.shown == [1, 3, 4, 2]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (mixes, ["different depth for an image alone and in a batch of 3", "%", "medians", "`batch_size=1`"]),
        (only_the_first, ["different depth for an image alone and in a batch of 3", "`batch_size=1`"]),
        (
            noisy,
            [
                "does not repeat its prediction for one image: 1.00%",
                "expected at most 0.05%",
                "seed it",
                "`accept_noise`",
            ],
        ),
    ],
    ids=["mixes the batch", "gives the first image's answer to all", "noise"],
)
def test_a_teacher_that_does_not_repeat_itself_is_refused_before_anything_is_written(source, tmp_path, change, parts):
    with refuses(*parts):
        cache_teacher(source, "all", Told(change), tmp_path / "s.zarr", OPTIONS)
    assert not list(tmp_path.rglob("journal"))


@pytest.mark.parametrize("change", [mixes, noisy], ids=["mixes the batch", "noise"])
def test_it_is_stored_where_that_was_accepted(source, tmp_path, change):
    options = dataclasses.replace(OPTIONS, accept_noise=True)
    cache_teacher(source, "all", Told(change), tmp_path / "s.zarr", options)
    assert len(open_store(tmp_path / "s.zarr")) == 6


def test_a_teacher_that_mixes_is_stored_one_image_at_a_time(source, tmp_path):
    teacher = Told(mixes)
    cache_teacher(source, "all", teacher, tmp_path / "s.zarr", dataclasses.replace(OPTIONS, batch_size=1))
    assert teacher.shown == [1, 1] + 6 * [1]


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")],
    ids=["float32", "float16", "bfloat16"],
)
def test_rounding_is_no_difference(source, tmp_path, dtype, precision):
    teacher = Told(rounded(dtype), precision)
    assert cache_teacher(source, "all", teacher, tmp_path / "s.zarr", OPTIONS).samples == 6


@pytest.mark.parametrize("space", ["affine_depth", "affine_disparity", "scale_invariant"])
def test_relative_numbers_are_probed_too(source, tmp_path, space):
    options = CacheOptions(batch_size=4)
    with refuses("different depth for an image alone"):
        cache_teacher(source, "all", Told(mixes, depth_space=space), tmp_path / "s.zarr", options)
    assert cache_teacher(source, "all", Told(depth_space=space), tmp_path / "s.zarr", options).samples == 6


def test_one_image_alone_makes_no_batch(tmp_path):
    source = open_source(f"folder:{fakes.make_folder(tmp_path / 'one', ids=('a/1', 'a/2'))}")
    teacher = Told(mixes)
    cache_teacher(source, "test", teacher, tmp_path / "s.zarr", OPTIONS)
    assert teacher.shown == [1, 1, 1]


def test_a_file_with_a_fixed_batch_of_one_is_probed(source, tmp_path):
    path = make_onnx(tmp_path / "net.onnx", (1, 3, "h", "w"))
    options = TeacherOptions(depth_space="affine_depth", normalise="unit")
    teacher = open_teacher(f"onnx:{path}", device=torch.device("cpu"), options=options)
    assert cache_teacher(source, "all", teacher, tmp_path / "s.zarr", CacheOptions(batch_size=4)).samples == 6


def test_predictions_are_not_probed(source, tmp_path):
    (tmp_path / "made").mkdir()
    for number in range(6):
        np.save(tmp_path / "made" / f"{number:06d}.npy", np.full((16, 32), 1.0 + number) + np.eye(16, 32))
    options = TeacherOptions(metres_per_unit=1.0)
    teacher = open_teacher(f"predictions:{tmp_path / 'made'}", device=torch.device("cpu"), options=options)
    assert cache_teacher(source, "all", teacher, tmp_path / "s.zarr", OPTIONS).samples == 6


def test_mirrored_images_are_probed_too(source, tmp_path):
    with refuses("different depth for an image alone"):
        cache_with_flips(source, "all", Told(mixes), tmp_path / "s.zarr", OPTIONS)


def test_a_worker_probes_when_it_is_asked_for_the_plan(tmp_path, monkeypatch):
    scenes = fakes.make_scenes_folder(tmp_path / "scenes", 6, (16, 32))
    monkeypatch.setattr("pipeline.cache.cluster_worker.open_teacher", lambda *_, **__: Told(mixes))
    answer = ClusterWorker(WorkerConfig(f"scenes:{scenes}", "all", "python:x:y", TeacherOptions(), "cpu")).plan(OPTIONS)
    assert isinstance(answer, WorkerError)
    assert "`accept_noise`" in answer.message


def test_the_command_refuses_and_accepts(tmp_path, monkeypatch):
    monkeypatch.setattr(fakes, "mixing", lambda: Told(mixes), raising=False)
    scenes = fakes.make_scenes_folder(tmp_path / "scenes", 6, (16, 32))
    command = ["cache-teacher", "--source", f"scenes:{scenes}", "--split", "all", "--teacher", "python:fakes:mixing"]
    command += ["--bins", "nyu", "--sigma-m", "0.2", "--out", str(tmp_path / "s.zarr")]
    refused = CliRunner().invoke(main, command)
    assert (refused.exit_code, "in a batch of 3" in refused.output) == (1, True)
    assert CliRunner().invoke(main, [*command, "--accept-noise"]).exit_code == 0


@pytest.mark.parametrize(
    ("first", "second", "metric", "expected"),
    [
        ([2.0, 4.0], [2.0, 4.0], True, 0.0),
        ([2.0, 4.0], [2.2, 4.0], True, 0.05),
        ([2.0, 4.0], [2.2, 4.0], False, 0.05),
        ([2.0, np.nan], [2.0, np.nan], True, 0.0),
        ([2.0, np.nan], [2.0, 4.0], True, 0.5),
        ([0.0, 4.0], [0.0, 4.0], True, 0.0),
        ([0.0, 4.0], [9.0, 4.0], True, 0.5),
        ([3.0, 3.0], [3.0, 3.0], False, 0.0),
    ],
)
def test_a_difference_is_the_mean_over_pixels(first, second, metric, expected):
    one, other = (np.array([values], np.float32) for values in (first, second))
    assert difference(one, other, metric=metric) == pytest.approx(expected, abs=1e-6)
