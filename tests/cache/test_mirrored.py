"""A teacher that saw the mirrored images too: its word on them teaches the mirrored crops."""

import re
from dataclasses import replace

import fakes
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_stores import folder_bytes

from pipeline.cache.flips import cache_with_flips, mirrored_path
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.depth.relative import Range
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.store.tools.diff import compare_stores
from pipeline.train.config import Recipe
from pipeline.train.dataset import Augmentation, TrainingData
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

FLIP = Augmentation(flip=True)
OPTIONS = TrainOptions(student="lean-small", epochs=1, batch_size=2, seed=1)


def stores(tmp_path, scenes, teacher=None, view="full"):
    """Stores of a teacher over the frames and over the mirrored frames."""
    teacher = teacher or fakes.RelativeTeacher("metric_m", lopsided=True)
    found = []
    for name, one in (("teacher.zarr", view), ("teacher.mirrored.zarr", f"{view},mirror")):
        cache_teacher(scenes, "all", teacher, tmp_path / name, CacheOptions(view=one, samples_per_shard=3))
        found.append(open_store(tmp_path / name))
    return found


@pytest.mark.parametrize("text", ["full,mirror", "kb,mirror", "center:4x6,mirror", "full,resize:6x9,mirror"])
def test_a_mirrored_view_is_the_view_mirrored(text):
    image = np.random.default_rng(0).integers(0, 255, (360, 1230, 3), np.uint8)
    truth_m = np.random.default_rng(1).random((360, 1230), np.float32)
    mirrored, plain = View.parse(text), View.parse(text.removesuffix(",mirror"))
    assert str(mirrored) == text
    assert np.array_equal(mirrored.of_image(image), plain.of_image(image)[:, ::-1])
    assert np.array_equal(mirrored.of_depth(truth_m, truth_m.shape), plain.of_depth(truth_m, truth_m.shape)[:, ::-1])
    assert mirrored.box_px(360, 1230) == plain.box_px(360, 1230)


@pytest.mark.parametrize("view", ["full", "full,resize:16x48"])
def test_a_mirrored_crop_gets_what_the_teacher_said_of_the_mirrored_image(tmp_path, scenes, view):
    teacher = fakes.RelativeTeacher("metric_m", lopsided=True)
    store, flips = stores(tmp_path, scenes, teacher, view)
    samples = scenes.samples("train")
    given = {"view": View.parse(view), "store": store, "maps_px": None, "augmentation": FLIP, "seed": 0}
    data = TrainingData(scenes, samples, **given, flips=flips)
    without = TrainingData(scenes, samples, **given)
    seen = set()
    for epoch in range(4):
        for number in range(len(samples)):
            item = data[epoch, number]
            said_m = teacher(item.image[None] / 255)[0]
            assert np.allclose(item.target_depth_m[0], said_m, rtol=6e-4)
            same = np.allclose(without[epoch, number].target_depth_m[0], said_m, rtol=6e-4)
            seen.add(same)
    assert seen == {True, False}


def test_maps_are_those_of_the_mirrored_image(tmp_path, scenes):
    store, flips = stores(tmp_path, scenes, fakes.factory_with_dpm())
    samples = scenes.samples("train")
    given = {"view": View(), "store": store, "maps_px": (16, 32), "augmentation": FLIP, "seed": 0}
    data, without = TrainingData(scenes, samples, **given, flips=flips), TrainingData(scenes, samples, **given)
    mirrored = False
    for number in range(len(samples)):
        here, there = data[0, number], without[0, number]
        assert np.allclose(here.target_depth_m, there.target_depth_m, rtol=1.2e-3)  # this teacher mirrors exactly
        assert (here.tail == there.tail).float().mean() > 0.9
        mirrored |= not np.array_equal(flips.sparse_dpm(number).tail, here.tail)
    assert mirrored


def test_relative_targets_are_ranged_after_the_mirroring(tmp_path, scenes):
    teacher = fakes.RelativeTeacher(lopsided=True)
    store, flips = stores(tmp_path, scenes, teacher)
    relative = Range("affine_disparity", 1.0, 100.0)
    given = {"store": store, "maps_px": None, "augmentation": FLIP, "seed": 0, "relative": relative}
    data = TrainingData(scenes, scenes.samples("train"), View(), **given, flips=flips)
    for number in range(4):
        item = data[1, number]
        expected = relative.of(teacher(item.image[None] / 255)[0].numpy())
        assert np.allclose(1 / item.target_depth_m[0].numpy(), 1 / expected, atol=2e-3)


def test_training_with_mirrored_answers_differs_and_its_recipe_says_so(tmp_path, scenes):
    store, flips = stores(tmp_path, scenes)
    for name, one in (("with", flips), ("without", None)):
        train_network(scenes, "train", tmp_path / name, OPTIONS, store=store, flips=one)
    weights = [folder_bytes(tmp_path / name)["student.safetensors"] for name in ("with", "without")]
    assert weights[0] != weights[1]
    recipes = [Recipe.make(OPTIONS, scenes, scenes.samples("train"), store, None, one) for one in (flips, None)]
    assert recipes[0].flips == flips.spec.digest()
    assert recipes[0].digest() != recipes[1].digest()


def test_a_store_that_is_not_the_mirrored_one_is_refused(tmp_path, scenes):
    store, flips = stores(tmp_path, scenes)

    def make(flips, loss="tiekd", flip=True):
        chosen = replace(OPTIONS, loss=loss, flip=flip)
        return Recipe.make(chosen, scenes, scenes.samples("train"), store, None, flips)

    with pytest.raises(ValueError, match=r"another view \(full, expected full,mirror\) than .*`cache_flips`"):
        make(store)
    (tmp_path / "other").mkdir()
    other = stores(tmp_path / "other", scenes, fakes.FakeTeacher(name="another"))[1]
    with pytest.raises(ValueError, match="another teacher than"):
        make(other)
    with pytest.raises(ValueError, match="is not used with `flip=False`, because no image is mirrored: leave it out"):
        make(flips, flip=False)
    with pytest.raises(ValueError, match="is not used with `loss=truth-si`, because ground truth is mirrored"):
        make(flips, loss="truth-si")


def test_stores_of_different_images_are_refused(tmp_path, scenes):
    store = stores(tmp_path, scenes)[0]
    path = scenes.root / "rgb" / "000002.png"
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
    (tmp_path / "later").mkdir()
    flips = stores(tmp_path / "later", scenes)[1]
    with pytest.raises(ValueError, match="were made from different images of '000002'"):
        train_network(scenes, "train", tmp_path / "run", OPTIONS, store=store, flips=flips)


# Stage one over both


def test_both_stores_are_made_and_an_interruption_loses_nothing(tmp_path, scenes):
    teacher = fakes.RelativeTeacher("metric_m", lopsided=True)
    options = CacheOptions(samples_per_shard=3, batch_size=2)
    both = cache_with_flips(scenes, "all", teacher, tmp_path / "whole.zarr", options)
    assert (both.plain.samples, both.mirrored.samples) == (8, 8)
    assert mirrored_path(tmp_path / "whole.zarr") == tmp_path / "whole.mirrored.zarr"
    plain, mirrored = (open_store(tmp_path / name) for name in ("whole.zarr", "whole.mirrored.zarr"))
    assert (plain.spec.view, mirrored.spec.view) == ("full", "full,mirror")
    out = tmp_path / "cut.zarr"
    with pytest.raises(KeyboardInterrupt):  # in the second pass
        cache_with_flips(scenes, "all", fakes_stopping(teacher, after=16), out, options)
    assert out.exists()
    assert not mirrored_path(out).exists()
    again = cache_with_flips(scenes, "all", teacher, out, options)
    assert again.plain is None
    assert again.mirrored.samples_before > 0
    assert folder_bytes(mirrored_path(out)) == folder_bytes(tmp_path / "whole.mirrored.zarr")


def fakes_stopping(teacher, after):
    """The same teacher, interrupted once it has seen `after` images."""

    class Stopping(type(teacher)):
        seen = 0

        def predict(self, images, ids):
            Stopping.seen += len(ids)
            if Stopping.seen > after + 4:
                raise KeyboardInterrupt
            return super().predict(images, ids)

    found = Stopping("metric_m", lopsided=True)
    found.card = teacher.card
    return found


def test_flips_are_added_to_a_store_that_is_there_and_to_no_other(tmp_path, scenes):
    teacher = fakes.FakeTeacher()
    cache_teacher(scenes, "all", teacher, tmp_path / "s.zarr")
    both = cache_with_flips(scenes, "all", teacher, tmp_path / "s.zarr")
    assert both.plain is None
    assert both.mirrored.samples == 8
    with pytest.raises(ValueError, match="s.zarr already exists"):
        cache_with_flips(scenes, "all", fakes.FakeTeacher(name="another"), tmp_path / "s.zarr")


def test_predictions_cannot_be_asked_about_mirrored_images(tmp_path, scenes):
    teacher = fakes.FakeTeacher()
    teacher.needs_images = False
    with pytest.raises(ValueError, match="is a folder of predictions and cannot predict mirrored images"):
        cache_with_flips(scenes, "all", teacher, tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="omit ,mirror"):
        cache_with_flips(scenes, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", CacheOptions(view="full,mirror"))


@pytest.mark.parametrize("lopsided", [False, True])
def test_two_stores_of_mirrored_views_are_compared_where_they_show_the_same(tmp_path, scenes, lopsided):
    store, flips = stores(tmp_path, scenes, fakes.RelativeTeacher("metric_m", lopsided=lopsided))
    found = compare_stores(store, flips)
    if lopsided:  # 1 to 1.5 from left to right against 1.5 to 1
        assert found.max_rel_difference == pytest.approx(0.5, abs=0.01)
        assert 0.15 < found.median_rel_difference < 0.3
    else:
        assert found.max_rel_difference < 1.1e-3
    assert any(name == "view.name" for name, _, _ in found.fields)


def test_the_command_says_how_far_the_mirrored_answers_are(tmp_path, scenes):
    words = ["cache-teacher", "--source", f"scenes:{scenes.root}", "--split", "all", "--cache-flips"]
    words += ["--teacher", "python:fakes:lopsided", "--out", str(tmp_path / "s.zarr")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    gap = re.search(
        r"predictions of 8 mirrored images differ from mirrored predictions by (\S+)% \(median\)", done.output
    )
    assert 15 < float(gap[1]) < 30
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1
    assert "s.zarr already exists" in again.output
