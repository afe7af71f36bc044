"""A relative teacher's store takes its metres from another teacher's store, image by image."""

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_stores import folder_bytes

from pipeline.cache.align import AlignOptions, align_store, unalign_store
from pipeline.cache.align_to_store import align_to_store
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.depth.resize import nearest
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.tools.subset import subset_store
from pipeline.store.tools.verify import verify_store
from pipeline.teachers.base import TeacherCard, TeacherOutput

SIZE_PX = (24, 64)
FRAMES = 6
SPACES = ["affine_disparity", "affine_depth", "scale_invariant"]
CORRUPT = 0.1
"""Fraction of wrong pixels of the structure."""


class Structure:
    """A teacher of exact relative depth, `a z + b` with a and b of each image, and some wrong pixels."""

    needs_images = True
    bin_edges_m = None

    def __init__(self, space="affine_disparity", scale=1, corrupt=CORRUPT, upside_down=()):
        self.card = TeacherCard(kind="python", name="structure", depth_space=space)
        self._depth_m = fakes.FakeTeacher(scale=scale)
        self._corrupt, self._upside_down = corrupt, upside_down

    def predict(self, images, ids):
        own = self._depth_m(images)
        own = 1 / own if self.card.depth_space == "affine_disparity" else own
        for number, name in enumerate(ids):
            a, b = 0.5 + int(name), 0.0 if self.card.depth_space == "scale_invariant" else 3.0 * int(name)
            low, high = own[number].aminmax()
            values = low + high - own[number] if name in self._upside_down else own[number]
            random = np.random.default_rng(int(name))
            wrong = torch.from_numpy(random.uniform(size=values.shape) < self._corrupt)
            noise = low + (high - low) * torch.from_numpy(random.uniform(size=values.shape)).float()
            own[number] = a * torch.where(wrong, noise, values) + b
        return TeacherOutput(own)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Frames, a metric store and a relative store of each depth space: made once, never changed."""
    folder = tmp_path_factory.mktemp("made")
    root = fakes.make_scenes_folder(folder / "scenes", FRAMES, SIZE_PX)
    cached(root, fakes.FakeTeacher(), folder / "metric.zarr", bins="linear:16:0:12", sigma_m=0.5)
    for space in SPACES:
        cached(root, Structure(space), folder / f"{space}.zarr")
    return folder


def cached(root, teacher, path, split="all", **options):
    cache_teacher(open_source(f"scenes:{root}"), split, teacher, path, CacheOptions(samples_per_shard=2, **options))
    return open_store(path)


def aligned(relative, metric, out, **options):
    summary = align_to_store(relative, metric, out, AlignOptions(workers=2, **options))
    return open_store(out), summary


def is_right(name, shape=SIZE_PX):
    """Mask (h, w) of the pixels that `Structure` did not corrupt."""
    return np.random.default_rng(int(name)).uniform(size=shape) >= CORRUPT


@pytest.mark.parametrize("space", SPACES)
def test_metres_are_recovered_within_the_error_of_the_codecs_although_a_tenth_of_the_pixels_is_wrong(
    made, tmp_path, space
):
    relative, metric = open_store(made / f"{space}.zarr"), open_store(made / "metric.zarr")
    store, summary = aligned(relative, metric, tmp_path / "both.zarr")
    assert (summary.accepted, summary.rejected) == (FRAMES, {})
    error = relative.spec.max_rel_error + metric.spec.max_rel_error
    for name in store.ids:
        true_m = 12 * (1 - read_image(made, name).mean(axis=2, dtype=np.float64) / 255)
        own, true = (1 / each if space == "affine_disparity" else each for each in (store.depth_m(name), true_m))
        assert (np.abs(own - true) <= error * (np.ptp(true) + true))[is_right(name)].all()
        assert np.array_equal(store.depth(name), relative.depth(name))
    assert verify_store(tmp_path / "both.zarr") == []


def read_image(made, name):
    source = open_source(f"scenes:{made / 'scenes'}")
    (sample,) = [each for each in source.samples("all") if each.id == name]
    return source.read_image(sample)[0]


def test_the_alignment_names_the_other_teacher_and_the_content_of_its_store_but_no_path(made, tmp_path):
    relative, metric = open_store(made / "affine_depth.zarr"), open_store(made / "metric.zarr")
    store, _ = aligned(relative, metric, tmp_path / "both.zarr")
    assert store.spec.alignment["truth"] == f"store fake {metric.manifest_sha256[:12]}"
    assert store.spec.version == 2


def test_the_same_two_stores_give_the_same_bytes_at_any_path(made, tmp_path):
    relative, metric = open_store(made / "affine_depth.zarr"), open_store(made / "metric.zarr")
    aligned(relative, metric, tmp_path / "first.zarr")
    subset_store(metric, tmp_path / "elsewhere.zarr", list(metric.ids))
    aligned(relative, open_store(tmp_path / "elsewhere.zarr"), tmp_path / "second.zarr")
    assert folder_bytes(tmp_path / "first.zarr") == folder_bytes(tmp_path / "second.zarr")


def test_undoing_gives_the_relative_store_back(made, tmp_path):
    store, _ = aligned(open_store(made / "affine_depth.zarr"), open_store(made / "metric.zarr"), tmp_path / "s.zarr")
    unalign_store(store, tmp_path / "back.zarr")
    assert folder_bytes(tmp_path / "back.zarr") == folder_bytes(made / "affine_depth.zarr")


@pytest.mark.parametrize(("relative_scale", "metric_scale"), [(1, 2), (2, 1), (4, 2)])
def test_stores_of_other_resolutions_are_compared_at_the_smaller_one(made, tmp_path, relative_scale, metric_scale):
    root = made / "scenes"
    relative = cached(root, Structure(scale=relative_scale), tmp_path / "r.zarr")
    metric = cached(root, fakes.FakeTeacher(scale=metric_scale), tmp_path / "m.zarr", bins="linear:16:0:12", sigma_m=1)
    store, summary = aligned(relative, metric, tmp_path / "both.zarr", min_points=20)
    coarser = max(relative_scale, metric_scale)
    assert summary.accepted == FRAMES
    assert store.alignment(0).points == SIZE_PX[0] * SIZE_PX[1] // coarser**2
    assert summary.residual["max"] < 0.03


def test_a_resized_map_takes_the_pixel_at_each_center():
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert nearest(values, (2, 3)).tolist() == [[1, 3, 5], [7, 9, 11]]
    assert nearest(values, (1, 2)).tolist() == [[7, 10]]
    assert np.array_equal(nearest(values, (2, 6)), values)


def test_samples_are_found_by_id_in_a_larger_store_of_another_order(made, tmp_path):
    relative, metric = open_store(made / "affine_depth.zarr"), open_store(made / "metric.zarr")
    subset_store(metric, tmp_path / "shuffled.zarr", [5, 3, 0, 1, 4, 2])
    subset_store(relative, tmp_path / "part.zarr", [4, 1])
    whole, _ = aligned(relative, metric, tmp_path / "whole.zarr")
    part, _ = aligned(
        open_store(tmp_path / "part.zarr"), open_store(tmp_path / "shuffled.zarr"), tmp_path / "part_aligned.zarr"
    )
    assert [part.alignment(name) for name in part.ids] == [whole.alignment(name) for name in part.ids]


def test_structure_that_contradicts_the_metres_is_rejected_with_the_reason(made, tmp_path):
    relative = cached(made / "scenes", Structure("affine_depth", upside_down={"000003"}), tmp_path / "r.zarr")
    store, summary = aligned(relative, open_store(made / "metric.zarr"), tmp_path / "s.zarr")
    assert summary.rejected == {"scale not above 0": ["000003"]}
    assert np.isnan(store.depth_m("000003")).all()


def test_noise_is_rejected_for_its_residual(made, tmp_path):
    relative = cached(made / "scenes", Structure("affine_depth", corrupt=1), tmp_path / "r.zarr")
    _, summary = aligned(relative, open_store(made / "metric.zarr"), tmp_path / "s.zarr", max_residual=0.05)
    assert summary.accepted == 0
    assert set(summary.rejected) <= {"residual too large", "scale not above 0"}


def test_too_few_common_pixels_are_a_reason(made, tmp_path):
    relative, metric = open_store(made / "affine_depth.zarr"), open_store(made / "metric.zarr")
    _, summary = aligned(relative, metric, tmp_path / "s.zarr", min_points=SIZE_PX[0] * SIZE_PX[1] + 1)
    assert summary.rejected == {"too few points of truth": list(relative.ids)}


def test_a_sample_that_was_rejected_in_the_other_store_is_left_out_here(made, tmp_path):
    root = made / "scenes"
    raw = cached(root, Structure("affine_depth", upside_down={"000002"}), tmp_path / "raw.zarr")
    align_store(raw, open_source(f"scenes:{root}"), "all", tmp_path / "to_truth.zarr", AlignOptions(min_points=20))
    other = open_store(tmp_path / "to_truth.zarr")
    assert other.accepted.tolist() == [True, True, False, True, True, True]
    _, summary = aligned(open_store(made / "affine_disparity.zarr"), other, tmp_path / "s.zarr")
    assert summary.rejected == {"no truth": ["000002"]}


def test_missing_samples_are_refused_before_anything_is_written(made, tmp_path):
    subset_store(open_store(made / "metric.zarr"), tmp_path / "few.zarr", [0, 1])
    with pytest.raises(ValueError, match="few.zarr has no sample '000002'"):
        aligned(open_store(made / "affine_depth.zarr"), open_store(tmp_path / "few.zarr"), tmp_path / "x.zarr")
    assert not list(tmp_path.glob("*x.zarr*"))


def test_other_images_of_the_same_ids_are_refused(made, tmp_path):
    root = fakes.make_scenes_folder(tmp_path / "scenes", FRAMES, SIZE_PX)
    fakes.write_image(root / "rgb" / "000004.png", fakes.image_of(fakes.smooth_depth_m(SIZE_PX, 9)))
    metric = cached(root, fakes.FakeTeacher(), tmp_path / "m.zarr", bins="linear:16:0:12", sigma_m=0.5)
    with pytest.raises(ValueError, match="different images of '000004'"):
        aligned(open_store(made / "affine_depth.zarr"), metric, tmp_path / "x.zarr")


def test_another_view_is_refused_with_both(made, tmp_path):
    bins = {"bins": "linear:16:0:12", "sigma_m": 0.5}
    metric = cached(made / "scenes", fakes.FakeTeacher(), tmp_path / "m.zarr", view="center:20x48", **bins)
    with pytest.raises(ValueError, match=r"view full, 24x64 px, .* view center:20x48, 20x48 px"):
        aligned(open_store(made / "affine_depth.zarr"), metric, tmp_path / "x.zarr")


def test_a_store_without_metres_gives_none(made, tmp_path):
    relative = open_store(made / "affine_depth.zarr")
    with pytest.raises(ValueError, match="affine_disparity, which is not in metres"):
        aligned(relative, open_store(made / "affine_disparity.zarr"), tmp_path / "x.zarr")


def test_metric_depth_is_not_aligned_to_another_store(made, tmp_path):
    metric = open_store(made / "metric.zarr")
    with pytest.raises(ValueError, match="metric depth needs no alignment"):
        aligned(metric, metric, tmp_path / "x.zarr")


def test_an_interrupted_alignment_resumes_to_the_same_bytes(made, tmp_path):
    relative, metric = open_store(made / "affine_depth.zarr"), open_store(made / "metric.zarr")
    aligned(relative, metric, tmp_path / "whole.zarr")
    with pytest.raises(KeyboardInterrupt):
        align_to_store(relative, metric, tmp_path / "s.zarr", AlignOptions(workers=2), fakes.StopAt(3))
    assert not (tmp_path / "s.zarr").exists()
    progress = fakes.StopAt(None)
    align_to_store(relative, metric, tmp_path / "s.zarr", AlignOptions(workers=2), progress)
    assert folder_bytes(tmp_path / "s.zarr") == folder_bytes(tmp_path / "whole.zarr")


def run(*arguments, status=0):
    done = CliRunner().invoke(main, ["store", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done.output


def test_the_command_aligns_to_a_store_and_tells_what_to(made, tmp_path):
    text = run("align", made / "affine_depth.zarr", "--to", made / "metric.zarr", "--out", tmp_path / "s.zarr")
    assert "6 of 6 samples accepted, relative residual p05 0.0" in text
    assert "aligned      to store fake " in run("info", tmp_path / "s.zarr")


@pytest.mark.parametrize("option", [["--source", "scenes:x"], ["--split", "all"], ["--truth", "dense"], ["--undo"]])
def test_the_command_takes_a_store_or_ground_truth_and_not_both(tmp_path, option):
    text = run("align", "a.zarr", "--to", "b.zarr", *option, "--out", tmp_path / "s.zarr", status=2)
    assert "leave --source, --split, --truth" in text
