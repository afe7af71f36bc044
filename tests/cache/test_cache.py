"""Stage one: the same bytes however often it is stopped, and one clear error for input that is at fault."""

import dataclasses
import errno

import fakes
import numpy as np
import pytest
import torch
from tiny_stores import folder_bytes

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.depth.rebin import rebin
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.tools.verify import verify_store
from pipeline.teachers.base import TeacherOutput

OPTIONS = CacheOptions(samples_per_shard=3, batch_size=2, bins="nyu")
OWN_BINS = dataclasses.replace(OPTIONS, bins=None)


def test_a_depth_teacher_makes_a_gaussian_store_and_one_with_maps_a_sparse_one(tmp_path, scenes):
    cache_teacher(scenes, "all", fakes.FakeTeacher(), tmp_path / "depth.zarr", OPTIONS)
    cache_teacher(scenes, "all", fakes.factory_with_dpm(), tmp_path / "maps.zarr", OWN_BINS)
    depth, maps = open_store(tmp_path / "depth.zarr"), open_store(tmp_path / "maps.zarr")
    assert depth.spec.dpm_attributes() == {"kind": "gaussian", "sigma_m": 0.5}
    assert depth.spec.bin_count == 49
    assert maps.spec.dpm_kind == "sparse"
    assert maps.spec.bin_count == 16
    assert maps.layout.size_px == (16, 32)
    assert maps.spec.view_size_px == (32, 64)
    assert maps.rows("dpm_kl_nats").max() <= 0.01


def test_a_store_holds_what_the_teacher_said(tmp_path, scenes):
    teacher = fakes.factory_with_dpm()
    cache_teacher(scenes, "all", teacher, tmp_path / "s.zarr", OWN_BINS)
    store = open_store(tmp_path / "s.zarr")
    frame = fakes.image_of(fakes.smooth_depth_m((32, 64), 4))
    depth, dpm = teacher(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255)
    assert store.depth_m("000004") == pytest.approx(depth[0].numpy(), rel=5e-4)
    assert store.dpm("000004") == pytest.approx(dpm[0].numpy(), abs=0.02)
    assert store.spec.teacher == teacher.card.as_json()


def test_dense_maps_are_stored_when_they_are_asked_for(tmp_path, scenes):
    options = CacheOptions(dpm="dense", samples_per_shard=3, batch_size=2)
    cache_teacher(scenes, "all", fakes.factory_with_dpm(), tmp_path / "s.zarr", options)
    assert open_store(tmp_path / "s.zarr").spec.dpm_kind == "dense"
    assert verify_store(tmp_path / "s.zarr") == []


@pytest.mark.parametrize("workers", [1, 4])
def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path, scenes, teacher_store, workers):
    options = CacheOptions(samples_per_shard=3, batch_size=2, workers=workers)
    cache_teacher(scenes, "all", fakes.factory_with_dpm(), tmp_path / "again.zarr", options)
    assert folder_bytes(tmp_path / "again.zarr") == folder_bytes(teacher_store)


@pytest.mark.parametrize("batches", range(6))
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, scenes, teacher_store, batches):
    target = tmp_path / "again.zarr"
    if batches < 5:
        with pytest.raises(KeyboardInterrupt):
            cache_teacher(
                scenes, "all", fakes.FailingTeacher(batches), target, CacheOptions(samples_per_shard=3, batch_size=2)
            )
        assert not target.exists()
    teacher = fakes.FailingTeacher(5)
    done = cache_teacher(scenes, "all", teacher, target, CacheOptions(samples_per_shard=3, batch_size=2))
    assert folder_bytes(target) == folder_bytes(teacher_store)
    # Whole shards (two batches each, one in the last) are not taught again.
    assert done.samples_before == 3 * (min(batches, 4) // 2) * (batches < 5)
    assert teacher.left == done.samples_before // 3 * 2


def expect(match, tmp_path, source, split="all", teacher=None, **options):
    """Stage one fails with a message, and leaves no store."""
    chosen = CacheOptions(**({"samples_per_shard": 3, "batch_size": 2, "bins": "nyu"} | options))
    with pytest.raises(ValueError, match=match):
        cache_teacher(source, split, teacher or fakes.FakeTeacher(), tmp_path / "s.zarr", chosen)
    assert not (tmp_path / "s.zarr").exists()


def test_an_image_that_does_not_decode_is_named_and_the_rest_is_kept(tmp_path, scenes):
    path = scenes.root / "rgb" / "000006.png"
    sound = path.read_bytes()
    path.write_bytes(sound[:200])
    expect(r"000006.png: does not decode", tmp_path, scenes)
    path.write_bytes(sound)
    done = cache_teacher(scenes, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", OPTIONS)
    assert done.samples_before >= 3


def test_a_missing_image_is_named(tmp_path, scenes):
    (scenes.root / "rgb" / "000003.png").unlink()
    expect(r"000003", tmp_path, scenes)


def test_images_of_two_sizes_are_refused_with_the_view_that_would_help(tmp_path, scenes):
    fakes.write_image(scenes.root / "rgb" / "000005.png", np.zeros((40, 64, 3), np.uint8))
    expect(r"000005.png: its view full is 40x64 px, that of the first image 32x64.*`view=kb`", tmp_path, scenes)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.nan, r"predicted NaN or inf at 1 pixels of 000000, expected finite depth: check its input"),
        (np.inf, r"predicted NaN or inf at 1 pixels"),
        (
            -1.0,
            r"predicted -1 m for 000000 \(0 or less at 1 of 2048 pixels\), .* positive depth: give `drop_nonpositive`",
        ),
    ],
)
def test_depth_that_is_none_is_refused_with_the_sample(tmp_path, scenes, value, match):
    class Bad(fakes.FakeTeacher):
        def predict(self, images, ids):
            depth, dpm, _ = super().predict(images, ids)[:3]
            depth[0, 3, 4] = value
            return TeacherOutput(depth, dpm)

    expect(match, tmp_path, scenes, teacher=Bad())


def test_a_source_without_default_bins_asks_for_them(tmp_path):
    source = open_source(f"folder:{fakes.make_folder(tmp_path / 'folder')}")
    expect(r"has no default depth bins: give `bins`, for example `bins=nyu`", tmp_path, source, bins=None)
    expect(r"has no default width .*give `sigma_m`, for example 0.2", tmp_path, source, sigma_m=None)


def test_maps_of_a_teacher_that_has_none_are_refused(tmp_path, scenes):
    expect(r"`dpm=sparse`: teacher 'fake' predicts depth without maps", tmp_path, scenes, dpm="sparse")


def test_a_relative_teacher_is_stored_in_its_own_space_with_maps_over_each_samples_range(tmp_path, scenes):
    teacher = fakes.FakeTeacher()
    teacher.card = dataclasses.replace(teacher.card, depth_space="affine_disparity")
    expect(
        r"`bins` and `sigma_m` are in metres, but teacher 'fake' predicts affine_disparity",
        tmp_path,
        scenes,
        teacher=teacher,
    )
    cache_teacher(scenes, "all", teacher, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    values, maps = store.depth(2), store.dpm(2)
    share = (values - values.min()) / (values.max() - values.min())
    centers = (store.bin_edges_m[1:] + store.bin_edges_m[:-1]) / 2
    inside = (share > 0.1) & (share < 0.9)
    assert (maps * centers[:, None, None]).sum(axis=0)[inside] == pytest.approx(share[inside], abs=0.01)


def test_depth_beyond_the_range_is_clipped_and_counted(tmp_path, scenes):
    options = CacheOptions(bins="nyu", depth_range_m=(5.0, 300.0))
    done = cache_teacher(scenes, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", options)
    assert 0.1 < done.clipped_share < 0.9
    assert done.max_rel_error <= 5e-4


def test_a_full_disk_keeps_what_is_finished_and_says_how_to_go_on(tmp_path, scenes, monkeypatch):
    from pipeline.store.write import staging

    real, count = staging.write_durably, [0]

    def full(path, data):
        count[0] += 1
        if count[0] == 4:  # depth of the second shard
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(staging, "write_durably", full)
    with pytest.raises(
        ValueError,
        match=r"is full \(No space left on device\): \d of 3 shards are safe in .*free space and run the same command",
    ):
        cache_teacher(scenes, "all", fakes.factory_with_dpm(), tmp_path / "s.zarr", OPTIONS)
    monkeypatch.setattr(staging, "write_durably", real)
    cache_teacher(scenes, "all", fakes.factory_with_dpm(), tmp_path / "s.zarr", OPTIONS)
    assert verify_store(tmp_path / "s.zarr") == []


def test_a_store_that_will_not_fit_is_refused_before_its_first_shard(tmp_path, scenes, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("pipeline.cache.run.shutil.disk_usage", lambda _: usage._replace(free=100))
    expect(r"8 samples of about [\d.]+ KB need .* GB, .* has 1e-07 GB free: free space", tmp_path, scenes)
    assert not list(tmp_path.glob(".*/journal"))


def test_a_store_that_will_not_fit_any_more_is_refused_by_the_sizes_of_its_finished_shards(
    tmp_path, scenes, monkeypatch
):
    import shutil

    with pytest.raises(KeyboardInterrupt):
        cache_teacher(scenes, "all", fakes.FailingTeacher(2), tmp_path / "s.zarr", OPTIONS)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("pipeline.cache.run.shutil.disk_usage", lambda _: usage._replace(free=100))
    teacher = fakes.FailingTeacher(0)  # it is not even asked
    message = r"5 samples of about .* free space, or choose another `out`; 1 finished shards stay in"
    expect(message, tmp_path, scenes, teacher=teacher)
    assert teacher.left == fakes.PROBED


def test_predictions_in_the_released_layout_are_cached_with_their_missing_pixels(tmp_path):
    from pipeline.teachers.options import TeacherOptions
    from pipeline.teachers.registry import open_teacher

    root = fakes.make_kitti(tmp_path / "kitti", 4, (40, 120))
    source = open_source(f"kitti:{root}")
    folder = tmp_path / "teacher"
    for number, sample in enumerate(source.samples("train")):
        depth_m = fakes.smooth_depth_m((20, 60), number)
        depth_m[0, 0] = np.nan
        fakes.write_depth(folder / (sample.id.replace("/", "_") + ".png"), depth_m, 80 / 65535)
    options = TeacherOptions(metres_per_unit=80 / 65535)
    teacher = open_teacher(f"predictions:{folder}", device=torch.device("cpu"), options=options)
    done = cache_teacher(source, "train", teacher, tmp_path / "s.zarr", CacheOptions(view="full"))
    assert done.invalid_share == pytest.approx(1 / 1200)
    store = open_store(tmp_path / "s.zarr")
    assert np.isnan(store.depth_m(0)[0, 0])
    assert store.depth_m(1)[5] == pytest.approx(fakes.smooth_depth_m((20, 60), 1)[5], rel=1e-3)


# --- maps over other bins --------------------------------------------------------------------------------------------


class Moving(fakes.FakeTeacher):
    """Maps of 16 bins, whose edges lie elsewhere in each image or at each pixel; interrupted after some batches."""

    emits_maps = True

    def __init__(self, per, batches=100):
        super().__init__(scale=2, with_dpm=True, name="moving")
        self.edges_m, self.bin_edges_m = self.bin_edges_m, None
        self.per, self.left = per, batches

    def predict(self, images, ids):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.bin_edges_m = self.edges_m
        depth, dpm = self(images)
        self.bin_edges_m = None
        edges_m = (
            torch.from_numpy(self.edges_m).expand(len(ids), -1)
            * images.mean(dim=(1, 2, 3), dtype=torch.float64)[:, None]
        )
        if self.per == "pixel":
            edges_m = edges_m[..., None, None] * (1 + depth[:, None] / 40)
        return TeacherOutput(depth, dpm, edges_m)


@pytest.mark.parametrize("per", ["image", "pixel"])
def test_bins_of_each_image_or_pixel_are_carried_over_onto_the_stores(tmp_path, scenes, per):
    done = cache_teacher(scenes, "all", Moving(per), tmp_path / "s.zarr", OPTIONS)
    store = open_store(tmp_path / "s.zarr")
    assert (store.spec.carried_from, store.spec.dpm_kind, store.spec.bin_count) == (per, "sparse", 49)
    frame = fakes.image_of(fakes.smooth_depth_m((32, 64), 4))
    answer = Moving(per).predict(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255, ["000004"])
    dpm, cost = rebin(answer.dpm[0].numpy(), answer.bin_edges_m[0].numpy(), store.bin_edges_m)
    assert store.dpm("000004") == pytest.approx(dpm, abs=0.02)
    assert store.rows("dpm_carried_kl_nats")[4] == pytest.approx(cost.kl_nats, rel=1e-5)
    assert done.rebinned.kl_nats == pytest.approx(store.rows("dpm_carried_kl_nats").mean(), rel=1e-5)
    assert done.rebinned.kl_nats > 0
    assert 0 < done.rebinned.depth_fraction < 0.05
    assert verify_store(tmp_path / "s.zarr") == []


def test_a_resumed_run_tells_what_all_of_it_cost_and_ends_in_the_same_bytes(tmp_path, scenes):
    whole = cache_teacher(scenes, "all", Moving("pixel"), tmp_path / "whole.zarr", OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(scenes, "all", Moving("pixel", fakes.PROBED + 4), tmp_path / "s.zarr", OPTIONS)
    done = cache_teacher(scenes, "all", Moving("pixel"), tmp_path / "s.zarr", OPTIONS)
    assert done.samples_before == 3
    assert done.rebinned == whole.rebinned
    assert folder_bytes(tmp_path / "s.zarr") == folder_bytes(tmp_path / "whole.zarr")


@pytest.mark.parametrize("workers", [1, 4])
def test_the_bytes_of_carried_maps_do_not_depend_on_the_number_of_threads(tmp_path, scenes, workers):
    for name, count in (("a", workers), ("b", None)):
        options = dataclasses.replace(OPTIONS, workers=count)
        cache_teacher(scenes, "all", Moving("image"), tmp_path / f"{name}.zarr", options)
    assert folder_bytes(tmp_path / "a.zarr") == folder_bytes(tmp_path / "b.zarr")


def test_fixed_bins_are_kept_unless_others_are_named(tmp_path, scenes):
    teacher = fakes.factory_with_dpm()
    for bins, carried_from, count in ((None, None, 16), ("linear:16:0:12", None, 16), ("linear:8:0:12", "fixed", 8)):
        path = tmp_path / f"{bins}.zarr"
        done = cache_teacher(scenes, "all", teacher, path, dataclasses.replace(OPTIONS, bins=bins))
        spec = open_store(path).spec
        assert (spec.carried_from, spec.bin_count, done.rebinned is None) == (carried_from, count, carried_from is None)
    assert folder_bytes(tmp_path / "None.zarr") == folder_bytes(tmp_path / "linear:16:0:12.zarr")
    pairs = open_store(tmp_path / "None.zarr").dpm(2).reshape(8, 2, 16, 32).sum(axis=1)
    assert open_store(tmp_path / "linear:8:0:12.zarr").dpm(2) == pytest.approx(pairs, abs=0.02)


def test_mass_beyond_the_named_bins_is_told(tmp_path, scenes):
    options = dataclasses.replace(OPTIONS, bins="linear:16:0:6")
    done = cache_teacher(scenes, "all", fakes.factory_with_dpm(), tmp_path / "s.zarr", options)
    store = open_store(tmp_path / "s.zarr")
    assert done.rebinned.clipped_fraction > 0.3
    assert done.rebinned.clipped_fraction < np.mean([store.dpm(number)[-1].mean() for number in range(8)])


def test_dense_maps_are_carried_over_too(tmp_path, scenes):
    cache_teacher(scenes, "all", Moving("image"), tmp_path / "s.zarr", dataclasses.replace(OPTIONS, dpm="dense"))
    assert (open_store(tmp_path / "s.zarr").spec.dpm_kind, verify_store(tmp_path / "s.zarr")) == ("dense", [])


def test_gaussian_maps_drop_those_of_moving_bins(tmp_path, scenes):
    done = cache_teacher(
        scenes, "all", Moving("pixel"), tmp_path / "s.zarr", dataclasses.replace(OPTIONS, dpm="gaussian")
    )
    assert (open_store(tmp_path / "s.zarr").spec.carried_from, done.rebinned) == (None, None)


class Fickle(Moving):
    """Gives maps over moving bins for the first sample, and then something else."""

    def __init__(self, gives):
        super().__init__("image")
        self.gives = gives

    def predict(self, images, ids):
        answer = super().predict(images, ids)
        gives = {name: value if value is None else value[: len(ids)] for name, value in self.gives.items()}
        return answer if self.left == 99 else answer._replace(**gives)


@pytest.mark.parametrize(
    ("gives", "match"),
    [
        ({"dpm": None}, r"returned no map for 000000, but not for the first sample"),
        ({"bin_edges_m": None}, r"returned a map without adaptive bins for 000000"),
        ({"bin_edges_m": torch.zeros(2, 17)}, r"000000, teacher 'moving': bin edges descend"),
        ({"bin_edges_m": torch.ones(2, 9).cumsum(1)}, r"bin edges of shape \(9,\) for a map of 16 bins over 16x32 px"),
    ],
)
def test_maps_that_are_not_as_the_first_are_refused(tmp_path, scenes, gives, match):
    expect(match, tmp_path, scenes, teacher=Fickle(gives))


def test_moving_bins_need_bins_to_be_carried_over_onto(tmp_path):
    source = open_source(f"folder:{fakes.make_folder(tmp_path / 'folder', size_px=(32, 64))}")
    expect(r"has no default depth bins: give `bins`", tmp_path, source, teacher=Moving("image"), bins=None)


def test_moving_bins_of_a_relative_teacher_are_refused(tmp_path, scenes):
    teacher = Moving("image")
    teacher.card = dataclasses.replace(teacher.card, depth_space="affine_depth")
    match = r"'moving' predicts affine_depth with adaptive bins.*use `dpm=gaussian`"
    expect(match, tmp_path, scenes, teacher=teacher, bins=None)


def test_a_teacher_that_says_it_has_moving_bins_and_gives_none_is_told_at_once(tmp_path, scenes):
    teacher = fakes.factory_with_dpm()
    teacher.emits_maps = True
    expect(r"has emits_maps = True, but returned no bin edges for 000000", tmp_path, scenes, teacher=teacher)
