"""The focal length that a run records: that of its views, without an effect on the training itself."""

import json

import fakes
import pytest

from pipeline.cache.images import cache_images
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.common.progress import Silent
from pipeline.networks.saved_run import load_run, trained_focal_px
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.images.reader import open_images
from pipeline.train.options import TrainOptions
from pipeline.train.run import Interrupted, train_network

OPTIONS = TrainOptions(student="lean", epochs=1, batch_size=2, seed=1, loss="si")
VIEW = "full,resize:16x32"
"""Half of the pixels."""


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def write_cameras(source, ids=None):
    """Focal lengths of 40, 42, 44 ... px for the frames of `train`."""
    ids = ids or [sample.id for sample in source.samples("train")]
    rows = "".join(f"{sample_id},{40 + 2 * n},{40 + 2 * n},31.5,15.5\n" for n, sample_id in enumerate(ids))
    (source.root / "intrinsics.csv").write_text("id,fx_px,fy_px,cx_px,cy_px\n" + rows)
    return open_source(f"scenes:{source.root}")


@pytest.fixture
def half_store(tmp_path, scenes):
    """A store of views of half the size."""
    path = tmp_path / "half.zarr"
    cache_teacher(scenes, "train", fakes.FakeTeacher(), path, CacheOptions(view=VIEW, batch_size=2))
    return open_store(path)


def config_of(out):
    return json.loads((out / "config.json").read_text())


def test_a_run_records_the_focal_length_of_its_views(tmp_path, scenes, half_store):
    train_network(write_cameras(scenes), "train", tmp_path / "run", OPTIONS, store=half_store)
    assert config_of(tmp_path / "run")["trained_focal_px"] == {"median": 22.5, "min": 20.0, "max": 25.0}
    assert trained_focal_px(load_run(tmp_path / "run").config) == 22.5


def test_a_run_without_intrinsics_has_the_configuration_and_weights_that_it_had(tmp_path, scenes, half_store):
    train_network(scenes, "train", tmp_path / "before", OPTIONS, store=half_store)
    assert "trained_focal_px" not in config_of(tmp_path / "before")
    train_network(write_cameras(scenes), "train", tmp_path / "after", OPTIONS, store=half_store)
    after = config_of(tmp_path / "after")
    assert after.pop("trained_focal_px")
    assert after == config_of(tmp_path / "before")
    for name in ("student.safetensors", "epochs.csv"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_one_image_without_a_camera_leaves_the_focal_length_unknown(tmp_path, scenes, half_store):
    ids = [sample.id for sample in scenes.samples("train")][:-1]
    train_network(write_cameras(scenes, ids), "train", tmp_path / "run", OPTIONS, store=half_store)
    assert "trained_focal_px" not in config_of(tmp_path / "run")


def test_a_run_that_an_older_release_began_resumes_and_gets_its_focal_length(tmp_path, scenes, half_store):
    with pytest.raises(Interrupted):
        train_network(scenes, "train", tmp_path / "run", OPTIONS, store=half_store, progress=fakes.StopAt(1))
    (partial,) = tmp_path.glob(".run.*.partial")
    assert "trained_focal_px" not in config_of(partial)
    notes = Notes()
    train_network(write_cameras(scenes), "train", tmp_path / "run", OPTIONS, store=half_store, progress=notes)
    assert any("resuming from step" in note for note in notes.notes)
    assert not partial.exists()
    assert config_of(tmp_path / "run")["trained_focal_px"]["median"] == 22.5


@pytest.mark.parametrize("cached", [False, True])
def test_training_on_ground_truth_records_it_too(tmp_path, scenes, cached):
    options = TrainOptions(**{**OPTIONS.__dict__, "loss": "truth-si", "view": VIEW})
    images = None
    if cached:
        cache_images(scenes, "train", tmp_path / "images.zarr", view=VIEW)
        images = open_images(tmp_path / "images.zarr")
    train_network(write_cameras(scenes), "train", tmp_path / "run", options, images=images)
    assert config_of(tmp_path / "run")["trained_focal_px"]["median"] == 22.5


def test_damaged_intrinsics_are_noted_and_do_not_stop_training(tmp_path, scenes, half_store):
    (scenes.root / "intrinsics.csv").write_text("id,fx_px,fy_px,cx_px,cy_px\n000000,x,1,1,1\n")
    notes = Notes()
    source = open_source(f"scenes:{scenes.root}")
    train_network(source, "train", tmp_path / "run", OPTIONS, store=half_store, progress=notes)
    assert any("does not record a focal length" in note and "line 2" in note for note in notes.notes)
    assert "trained_focal_px" not in config_of(tmp_path / "run")
