"""What a finished run says of itself: ranges that did not fit, nothing to learn, holes, sizes, too little memory."""

import dataclasses
import re
import threading
import time

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.common.parallel import Aside
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.tools.estimate import measured_costs
from pipeline.store.tools.info import describe
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

CPU = torch.device("cpu")
OPTIONS = CacheOptions(bins="nyu", sigma_m=0.2, batch_size=4, samples_per_shard=4)


def refuses(*parts):
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture
def source(tmp_path):
    return open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 6, (16, 32))}")


class Changed(fakes.FakeTeacher):
    """A fake whose depth is what `change` makes of it."""

    def __init__(self, change, depth_space="metric_m", **made):
        super().__init__(**made)
        self.card = dataclasses.replace(self.card, depth_space=depth_space)
        self.change = change

    def __call__(self, images):
        given = super().__call__(images)
        return (self.change(given[0]), given[1]) if isinstance(given, tuple) else self.change(given)


class Notes(fakes.StopAt):
    def __init__(self):
        super().__init__(None)
        self.notes, self.facts = [], {}

    def note(self, text):
        self.notes.append(text)

    def update(self, done=1, **facts):
        super().update(done, **facts)
        self.facts |= facts


# Depth outside of bins and codes


def test_the_fractions_outside_of_bins_and_codes_are_those_of_pixels_with_a_value(source, tmp_path):
    def change(depth):
        depth = torch.full_like(depth, 5.0) + depth / 100
        depth[:, :4] = 20.0  # beyond the bins, 4 of 16 rows
        depth[:, 0] = 400.0  # and beyond the codes
        depth[:, 8:] = torch.nan
        return depth

    teacher = Changed(change)
    teacher.card = dataclasses.replace(teacher.card, precision="int16")  # which may have no value
    notes = Notes()
    done = cache_teacher(source, "all", teacher, tmp_path / "s.zarr", OPTIONS, notes)
    assert done.outside is not None
    assert (done.outside.bins, done.outside.codes) == pytest.approx((4 / 8, 1 / 8))
    (warning,) = [note for note in notes.notes if note.startswith("warning")]
    assert "50.000% of depth outside the bins (0.001 to 10 m), 12.500% outside the stored range" in warning


def test_a_hundredth_outside_is_no_warning(source, tmp_path):
    def change(depth):
        depth = depth.clamp(max=9.0)
        depth[:, 0, :5] = 11.0  # 5 of 512
        return depth

    notes = Notes()
    done = cache_teacher(source, "all", Changed(change), tmp_path / "s.zarr", OPTIONS, notes)
    assert done.outside.bins == pytest.approx(5 / 512)
    assert [note for note in notes.notes if note.startswith("warning")] == []


@pytest.mark.parametrize(
    ("factor", "parts"),
    [
        (1000, ["all depth of teacher 'fake' is outside the bins", "100.000%", "`metres_per_unit`", "`bins`"]),
        (1e-9, ["all depth of teacher 'fake' is outside the bins"]),
    ],
    ids=["millimetres", "tiny"],
)
def test_all_depth_outside_is_an_error(source, tmp_path, factor, parts):
    with refuses(*parts):
        cache_teacher(source, "all", Changed(lambda depth: depth * factor), tmp_path / "s.zarr", OPTIONS)
    assert not (tmp_path / "s.zarr").exists()


def test_all_depth_outside_of_the_codes_is_an_error(source, tmp_path):
    options = dataclasses.replace(OPTIONS, depth_range_m=(20.0, 300.0))
    with refuses("outside the stored range", "`depth_range_m`"):
        cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", options)


def test_relative_depth_has_no_such_ranges(source, tmp_path):
    done = cache_teacher(source, "all", fakes.RelativeTeacher(), tmp_path / "s.zarr", CacheOptions())
    assert done.outside is None


# Nothing to learn


@pytest.mark.parametrize("space", ["metric_m", "affine_disparity"])
def test_one_constant_for_every_image_is_refused(source, tmp_path, space):
    options = OPTIONS if space == "metric_m" else CacheOptions()
    teacher = Changed(lambda depth: torch.full_like(depth, 2.0), space)
    with refuses("a constant for each of 6 samples", "nothing to learn"):
        cache_teacher(source, "all", teacher, tmp_path / "s.zarr", options)


def test_no_value_anywhere_is_refused(source, tmp_path):
    teacher = Changed(lambda depth: torch.full_like(depth, torch.nan))
    teacher.card = dataclasses.replace(teacher.card, precision="int16")
    with refuses("no value at any pixel of 6 samples"):
        cache_teacher(source, "all", teacher, tmp_path / "s.zarr", OPTIONS)


def test_some_samples_may_be_constant_or_without_value(source, tmp_path):
    asked = []

    def change(depth):
        asked.append(1)
        return torch.full_like(depth, 2.0) if len(asked) < 2 else depth

    options = dataclasses.replace(OPTIONS, accept_noise=True)
    assert cache_teacher(source, "all", Changed(change), tmp_path / "s.zarr", options).samples == 6


def test_a_single_image_may_be_a_flat_wall(tmp_path):
    source = open_source(f"folder:{fakes.make_folder(tmp_path / 'one', ids=('a/1', 'a/2'))}")
    teacher = Changed(lambda depth: torch.full_like(depth, 2.0))
    assert cache_teacher(source, "test", teacher, tmp_path / "s.zarr", OPTIONS).samples == 1


def test_a_run_goes_on_whose_first_shards_an_earlier_release_made(source, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr("pipeline.cache.encoder.row_of", lambda *_: {})
        options = dataclasses.replace(OPTIONS, samples_per_shard=1, batch_size=1)
        cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", options, fakes.StopAt(3))
    assert cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", options).samples_before > 0


# 0 and less


def below(depth):
    depth = depth.clone()
    depth[:, 0, :3] = torch.tensor([0.0, -1.0, -0.5])
    return depth


@pytest.fixture
def lowers(monkeypatch):
    """`python:fakes:lowers` gives 0 or less at three pixels of each image."""
    monkeypatch.setattr(fakes, "lowers", lambda: Changed(below), raising=False)
    other = fakes.FakeTeacher(name="other")
    other.card = dataclasses.replace(other.card, weights_sha256="1" * 64)
    monkeypatch.setattr(fakes, "factory_with_own_sha", lambda: other, raising=False)
    monkeypatch.setattr(fakes, "lowers_maps", lambda: Changed(below, with_dpm=True), raising=False)


@pytest.mark.usefixtures("lowers")
def test_depth_of_0_or_less_is_refused_with_the_flag_that_takes_it_as_no_value(source, tmp_path):
    teacher = open_teacher("python:fakes:lowers", device=CPU, options=TeacherOptions())
    with refuses("predicted 0 m for 000000 (0 or less at 3 of 512 pixels)", "`drop_nonpositive`"):
        cache_teacher(source, "all", teacher, tmp_path / "s.zarr", OPTIONS)


@pytest.mark.usefixtures("lowers")
@pytest.mark.parametrize("name", ["lowers", "lowers_maps"])
def test_with_the_flag_these_pixels_are_holes_and_are_counted(source, tmp_path, name):
    teacher = open_teacher(f"python:fakes:{name}", device=CPU, options=TeacherOptions(drop_nonpositive=True))
    options = OPTIONS if name == "lowers" else CacheOptions(batch_size=4)
    done = cache_teacher(source, "all", teacher, tmp_path / "s.zarr", options)
    assert done.dropped == (18, 6)
    store = open_store(tmp_path / "s.zarr")
    assert np.isnan(store.depth(0)).sum() == 3
    assert np.isnan(store.dpm(0)).any(axis=0).sum() == 3
    assert store.spec.teacher["preprocessing"]["nonpositive"] == "no value"


@pytest.mark.usefixtures("lowers")
def test_the_flag_counts_for_flip_average_and_members_of_an_ensemble():
    images = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    mixed = {"map_edges_m": tuple(np.linspace(0, 12, 9)), "map_sigma_m": 0.5, "drop_nonpositive": True}
    two = "ensemble:python:fakes:lowers,python:fakes:factory_with_own_sha"
    for spec, flip in (("python:fakes:lowers", True), (two, False)):
        teacher = open_teacher(spec, device=CPU, options=TeacherOptions(**mixed, flip_average=flip))
        assert bool((teacher.predict(images, ["a", "b"]).depth.nan_to_num(1) > 0).all())


@pytest.mark.parametrize(
    ("spec", "options", "parts"),
    [
        ("predictions:x", {}, ["`drop_nonpositive=True`", "does not apply to predictions"]),
        ("python:fakes:disparities", {}, ["affine_disparity, in which 0 and less are valid"]),
    ],
    ids=["files", "disparity"],
)
def test_the_flag_is_refused_where_it_means_nothing(monkeypatch, spec, options, parts):
    monkeypatch.setattr(fakes, "disparities", lambda: fakes.RelativeTeacher(), raising=False)  # noqa: PLW0108 - no device
    with refuses(*parts):
        open_teacher(spec, device=CPU, options=TeacherOptions(drop_nonpositive=True, **options))


@pytest.mark.usefixtures("lowers")
def test_the_command_says_how_many(tmp_path):
    scenes = fakes.make_scenes_folder(tmp_path / "scenes", 6, (16, 32))
    command = ["cache-teacher", "--source", f"scenes:{scenes}", "--split", "all", "--teacher", "python:fakes:lowers"]
    command += ["--bins", "nyu", "--sigma-m", "0.2", "--out", str(tmp_path / "s.zarr")]
    assert "--drop-nonpositive" in CliRunner().invoke(main, command).output
    done = CliRunner().invoke(main, [*command, "--drop-nonpositive"])
    assert "0 or less, treated as no value: 18 pixels in 6 samples" in done.output
    assert "of depth outside the bins (0.001 to 10 m)" in done.output


# One size


def test_progress_summary_info_and_estimate_name_one_size(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", OPTIONS, fakes.StopAt(6))
    notes = Notes()
    done = cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", OPTIONS, notes)
    store = open_store(tmp_path / "s.zarr")
    costs = measured_costs(store)[0]
    assert notes.facts["kb_each"] * 1e3 == pytest.approx(done.sample_bytes)
    assert costs.bytes(1, store.layout.size_px) == pytest.approx(done.sample_bytes)
    assert f"a sample: {done.sample_bytes / 1e3:.1f} KB" in dict(describe(store))["size"]


# Too little memory


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
    ids=["torch on a CPU", "torch on a GPU", "Python"],
)
def test_too_little_memory_is_one_message_and_finished_shards_stay(source, tmp_path, error):
    asked = []

    def change(depth):
        asked.append(1)
        if len(asked) > 3:  # two probe it
            raise error
        return depth

    with refuses("out of memory", "`batch_size`", "1 of 2 shards are finished", "resumes from them"):
        cache_teacher(source, "all", Changed(change), tmp_path / "s.zarr", OPTIONS)
    assert cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", OPTIONS).samples_before == 4


def test_too_little_memory_for_the_teacher_itself_is_told(monkeypatch):
    def huge():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    monkeypatch.setattr(fakes, "huge", huge, raising=False)
    with refuses("python:fakes:huge", "out of memory while opening it"):
        open_teacher("python:fakes:huge", device=CPU, options=TeacherOptions())


# A call that takes long


def test_a_long_call_shows_life_and_gives_its_result():
    beats, aside = [], Aside()
    assert aside.call(lambda: time.sleep(0.2) or 7, 0.02, lambda: beats.append(1)) == 7
    assert beats
    with pytest.raises(TimeoutError, match="its own"):
        aside.call(lambda: (_ for _ in ()).throw(TimeoutError("its own")), 1.0, lambda: None)


def test_a_call_that_never_ends_can_be_left():
    stuck = threading.Event()

    def beat():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Aside().call(stuck.wait, 0.02, beat)
    stuck.set()
