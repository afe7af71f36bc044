"""A store beside its live teacher: the cache's error next to the teacher's own noise, and other teachers refused."""

import re
from dataclasses import replace

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.cache.agreement import Agreement, Distance
from pipeline.cache.compare_teacher import compare_with_teacher
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.tools.verify import verify_store
from pipeline.teachers.base import TeacherOutput

KINDS = ["gaussian", "sparse", "dense"]
OPTIONS = CacheOptions(bins="nyu", sigma_m=0.2, samples_per_shard=3, batch_size=2)


def faithful(kind="gaussian"):
    return fakes.FakeTeacher() if kind == "gaussian" else fakes.factory_with_dpm()


class Changed(fakes.FakeTeacher):
    """The fake teacher under its own name, with its depth changed by `change(depth_m, ids)`."""

    def __init__(self, change, **more):
        super().__init__(**more)
        self.change = change

    def predict(self, images, ids):
        depth_m, dpm, _ = super().predict(images, ids)[:3]
        return TeacherOutput(self.change(depth_m.clone(), ids), dpm)


def noise(share, seed=0):
    random = torch.Generator().manual_seed(seed)
    return lambda depth_m, _: depth_m * (1 + share * torch.randn(depth_m.shape, generator=random))


def tampered_with(depth_m, ids):
    """One pixel of one sample is 2 % farther."""
    if "000004" in ids:
        depth_m[ids.index("000004"), 5, 7] *= 1.02
    return depth_m


def store_of(tmp_path, source, teacher, **changes):
    path = tmp_path / "s.zarr"
    options = OPTIONS if teacher.bin_edges_m is None else replace(OPTIONS, bins=None, sigma_m=None)
    cache_teacher(source, "all", teacher, path, replace(options, **changes))
    assert verify_store(path) == []
    return open_store(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_faithful_store_is_within_its_bound_of_a_teacher_that_repeats_itself(tmp_path, scenes, kind):
    store = store_of(tmp_path, scenes, faithful(kind), dpm=kind)
    depth, *maps = compare_with_teacher(store, scenes, "all", faithful(kind), count=5, batch_size=3)
    assert depth.holds
    assert 0 < depth.cache.median < depth.cache.largest <= depth.bound == 5e-4
    assert depth.noise.largest < 1e-6
    assert len(maps) == (kind != "gaussian")
    for one in maps:
        assert one.holds
        assert 0 < one.cache.largest <= one.bound == {"sparse": 0.01, "dense": 1e-4}[kind]
        assert abs(one.noise.largest) < 1e-6


def test_relative_depth_is_measured_as_a_share_of_each_samples_range(tmp_path, scenes):
    def relative(change=None):
        teacher = Changed(change or (lambda depth, _: 3 - 0.25 * depth))
        teacher.card = replace(teacher.card, depth_space="affine_disparity")
        return teacher

    store = store_of(tmp_path, scenes, relative(), bins=None, sigma_m=None)
    (depth,) = compare_with_teacher(store, scenes, "all", relative())
    assert depth.holds
    assert 0 < depth.cache.largest <= 5.1e-4
    (depth,) = compare_with_teacher(store, scenes, "all", relative(lambda depth, _: 3.01 - 0.25 * depth))
    assert not depth.holds


def test_a_teacher_with_noise_shows_it_and_a_store_of_it_is_not_blamed(tmp_path, scenes):
    store = store_of(tmp_path, scenes, Changed(noise(0.01, seed=1)), accept_noise=True)
    (depth,) = compare_with_teacher(store, scenes, "all", Changed(noise(0.01, seed=2)))
    assert 0.005 < depth.noise.median < 0.02
    assert depth.cache.largest > 10 * depth.bound
    assert depth.holds


def test_a_store_that_was_tampered_with_under_valid_checksums_is_told_with_its_sample(tmp_path, scenes):
    store = store_of(tmp_path, scenes, Changed(tampered_with))
    (depth,) = compare_with_teacher(store, scenes, "all", faithful())
    assert not depth.holds
    assert depth.worst == "000004"
    assert depth.cache.largest == pytest.approx(0.0196, abs=2e-3)
    assert depth.cache.median < depth.bound


def test_tampered_maps_are_told_though_depth_is_right(tmp_path, scenes):
    teacher = faithful("sparse")
    store = store_of(tmp_path, scenes, teacher)
    other = faithful("sparse")
    live = other.predict
    other.predict = lambda images, ids: live(images, ids)._replace(dpm=live(images, ids).dpm.flip(1))
    depth, maps = compare_with_teacher(store, scenes, "all", other)
    assert depth.holds
    assert not maps.holds
    assert maps.cache.largest > 1


def test_a_value_where_the_teacher_gives_none_is_no_match(tmp_path, scenes):
    def hole(depth_m, _):
        depth_m[:, 3, 3] = float("nan")
        return depth_m

    holed = Changed(hole)
    (depth,) = compare_with_teacher(store_of(tmp_path, scenes, faithful()), scenes, "all", holed)
    assert depth.cache.largest == np.inf
    assert not depth.holds


def test_another_teacher_is_refused_with_each_field_that_differs(tmp_path, scenes):
    store = store_of(tmp_path, scenes, faithful())
    other = fakes.FakeTeacher(name="somebody")
    other.card = replace(other.card, precision="bfloat16")
    with pytest.raises(ValueError, match="another teacher") as told:
        compare_with_teacher(store, scenes, "all", other)
    assert "name is 'fake' in the store and 'somebody' live" in str(told.value)
    assert "precision is 'float32' in the store and 'bfloat16' live" in str(told.value)
    assert "licence" not in str(told.value)
    assert "as they were given to `pipeline cache-teacher`" in str(told.value)


def test_other_bins_of_a_teacher_with_maps_are_refused(tmp_path, scenes):
    store = store_of(tmp_path, scenes, faithful("sparse"))
    other = faithful("sparse")
    other.bin_edges_m = other.bin_edges_m * 2
    with pytest.raises(ValueError, match="bins are 16 from 0 to 12 in the store and 16 from 0 to 24 live"):
        compare_with_teacher(store, scenes, "all", other)


def test_maps_over_other_bins_are_compared_where_the_store_has_them(tmp_path, scenes):
    cache_teacher(scenes, "all", faithful("sparse"), tmp_path / "s.zarr", replace(OPTIONS, bins="log:24:1:12"))
    store = open_store(tmp_path / "s.zarr")
    _, maps = compare_with_teacher(store, scenes, "all", faithful("sparse"), count=5)
    assert maps.holds
    assert 0 < maps.cache.largest <= 0.01
    other = faithful("sparse")
    other.bin_edges_m = other.bin_edges_m * 0.9
    _, maps = compare_with_teacher(store, scenes, "all", other, count=5)
    assert not maps.holds


def test_maps_over_moving_bins_are_compared_where_the_store_has_them(tmp_path, scenes):
    class Moving(Changed):
        emits_maps = True

        def predict(self, images, ids):
            depth_m, dpm, _ = super().predict(images, ids)[:3]
            return TeacherOutput(depth_m, dpm, torch.linspace(0, 12, 17).expand(len(ids), -1) * self.stretch)

        stretch = 1.0

    def moving(stretch=1.0):
        teacher = Moving(lambda depth_m, _: depth_m, scale=2, with_dpm=True)
        teacher.stretch = stretch
        return teacher

    cache_teacher(scenes, "all", moving(), tmp_path / "s.zarr", replace(OPTIONS, bins="log:24:1:12"))
    store = open_store(tmp_path / "s.zarr")
    assert store.spec.carried_from == "image"
    assert all(one.holds for one in compare_with_teacher(store, scenes, "all", moving(), count=3))
    assert not all(one.holds for one in compare_with_teacher(store, scenes, "all", moving(0.9), count=3))
    other = fakes.FakeTeacher(scale=2, with_dpm=True)
    with pytest.raises(ValueError, match="maps were rebinned from image bins, the teacher has fixed bins"):
        compare_with_teacher(store, scenes, "all", other)
    with pytest.raises(ValueError, match="rebinned from image bins, the teacher has no bins"):
        compare_with_teacher(store, scenes, "all", fakes.FakeTeacher(scale=2))


def test_another_output_size_is_refused(tmp_path, scenes):
    store = store_of(tmp_path, scenes, faithful())
    with pytest.raises(ValueError, match=r"returned depth of shape \(8, 16, 32\) for 8 images, but .* holds 32x64 px"):
        compare_with_teacher(store, scenes, "all", fakes.FakeTeacher(scale=2))


def test_other_images_are_refused(tmp_path, scenes):
    store = store_of(tmp_path, scenes, faithful())
    fakes.write_image(scenes.root / "rgb" / "000003.png", np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="000003.png is not the image that the teacher saw"):
        compare_with_teacher(store, scenes, "all", faithful())


def test_the_stores_own_view_is_applied(tmp_path, scenes):
    store = store_of(tmp_path, scenes, faithful(), view="center:16x40,resize:8x20")
    (depth,) = compare_with_teacher(store, scenes, "all", faithful())
    assert depth.holds


def test_samples_are_spread_evenly_and_shown_twice(tmp_path, scenes):
    store = store_of(tmp_path, scenes, faithful())
    seen = []
    watched = Changed(lambda depth_m, ids: seen.append(list(ids)) or depth_m)
    compare_with_teacher(store, scenes, "all", watched, count=4, batch_size=3)
    ids = ["000000", "000002", "000004", "000006"]
    assert seen == [ids[:3], *([one] for one in ids[:3]), ids[3:], ids[3:]]


def test_the_noise_of_the_teacher_counts_twice_and_the_bound_once():
    one = Agreement("depth", 0.01, Distance(0.011, 0.05), Distance(0.001, 0.02), "a")
    assert one.limit == pytest.approx((0.012, 0.05))
    assert one.holds
    assert not one._replace(cache=Distance(0.0121, 0.05)).holds
    assert not one._replace(cache=Distance(0.011, 0.0501)).holds


# --- the command -----------------------------------------------------------------------------------------------------


def verify(store, *more):
    return CliRunner().invoke(main, ["store", "verify", str(store), *map(str, more)])


@pytest.fixture
def cached(tmp_path):
    """A folder of images, and a store of it as the command line writes it."""
    folder, store = fakes.make_folder(tmp_path / "folder", size_px=(32, 64)), tmp_path / "s.zarr"
    images = ["--source", f"folder:{folder}", "--split", "train"]
    given = ["--teacher", "python:fakes:factory", "--bins", "nyu", "--sigma-m", "0.2", "--out", str(store)]
    done = CliRunner().invoke(main, ["cache-teacher", *images, *given])
    assert done.exit_code == 0, done.output
    return store, images


def test_the_command_prints_the_caches_error_beside_the_teachers_noise(cached):
    store, images = cached
    done = verify(store, "--against", "python:fakes:factory", *images, "--samples", 2)
    assert done.exit_code == 0, done.output
    assert ": OK\n" in done.output
    assert re.search(r"store, depth +0\.0[12]\d+% +0\.0[34]\d+% +0\.0500% +0\.0500%\n", done.output), done.output
    assert re.search(r"teacher again, depth +0\.0000% +0\.0000%\n", done.output), done.output


def test_the_command_fails_where_the_store_is_not_what_the_teacher_says(tmp_path, cached):
    store, images = cached
    source = open_source(images[1])
    teacher = Changed(lambda depth_m, _: depth_m * 1.1)
    teacher.card = replace(teacher.card, **open_store(store).spec.teacher)
    other = tmp_path / "other.zarr"
    cache_teacher(source, "train", teacher, other, OPTIONS)
    done = verify(other, "--against", "python:fakes:factory", *images)
    assert done.exit_code == 1
    assert re.search(
        r"other.zarr: its depth differs by up to 10\.\d+% from the live teacher \(sample a/000[12]\)", done.output
    )
    assert "Traceback" not in done.output


def test_the_command_refuses_another_teacher(cached):
    store, images = cached
    done = verify(store, "--against", "python:fakes:factory_with_dpm", *images)
    assert done.exit_code == 1
    assert re.search(r"name is '.*' in the store and '.*' live", done.output), done.output


def test_damage_is_told_before_a_teacher_is_loaded(cached):
    store, images = cached
    (store / "depth/c/0/0/0").unlink()
    done = verify(store, "--against", "python:nowhere:nothing", *images)
    assert done.exit_code == 1
    assert "1 files are damaged" in done.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--against", "python:fakes:factory"], "--against needs the images too: add --source and --split"),
        (["--split", "train"], "--split: used only with --against; add --against TEACHER"),
        (["--precision", "float16", "--samples", 3], "--samples, --precision: used only with --against"),
    ],
)
def test_half_of_what_a_comparison_needs_is_wrong_usage(cached, flags, message):
    done = verify(cached[0], *flags)
    assert done.exit_code == 2
    assert message in done.output
