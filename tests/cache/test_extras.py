"""Stage one keeps what a teacher gives besides depth, if asked to."""

import re
from dataclasses import replace

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_stores import folder_bytes

from pipeline.cache.compare_teacher import compare_with_teacher
from pipeline.cache.flips import cache_with_flips, mirrored_path
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.errors import PipelineError
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.tools.merge import merge_stores
from pipeline.store.tools.verify import verify_store
from pipeline.teachers.base import TeacherOutput

FRAMES = 8
OPTIONS = CacheOptions(samples_per_shard=2, batch_size=2, workers=1)
KEEPS = replace(OPTIONS, signals=("confidence", "sky"), features=("3",), feature_components=2, feature_images=4)


class Rich(fakes.FakeTeacher):
    """Gives everything, as functions of the image."""

    features = ("3",)

    def predict(self, images, ids):
        depth = super().predict(images, ids).depth
        gray = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 4)
        channels = torch.cat([gray, gray.square(), 1 - gray, gray.flip(-1)], dim=1)
        camera = torch.tensor([[30.0, 31.0, 15.5, 7.5]]).repeat(len(images), 1)
        return TeacherOutput(
            depth,
            confidence=gray[:, 0],
            sky=(images[:, 2] > 0.5).float(),
            intrinsics_px=camera,
            features={"3": channels},
        )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = fakes.make_scenes_folder(tmp_path_factory.mktemp("extras") / "scenes", FRAMES, (16, 32))
    (root / "intrinsics.csv").write_text(
        "id,fx_px,fy_px,cx_px,cy_px\n"
        + "".join(f"{number:06d},{40 + number},40,15.5,7.5\n" for number in range(FRAMES))
    )
    return open_source(f"scenes:{root}")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("extras") / "s.zarr"
    cache_teacher(source, "all", Rich(), out, replace(KEEPS, intrinsics="source", data_licence="CC0"))
    return out


def test_the_store_holds_what_the_teacher_gave_of_each_image(source, made):
    store, teacher = open_store(made), Rich()
    for number, sample in enumerate(source.samples("all")):
        image = torch.from_numpy(source.read_image(sample)[0].astype(np.float32) / 255).permute(2, 0, 1)[None]
        given = teacher.predict(image, [sample.id])
        for name in ("confidence", "sky"):
            assert store.signal(name, sample.id) == pytest.approx(getattr(given, name)[0].numpy(), abs=1 / 509)
        assert store.intrinsics_px(sample.id).tolist() == [40 + number, 40, 15.5, 7.5]
        assert np.abs(store.feature("3", sample.id) - given.features["3"][0].numpy()).max() < 0.05
    assert store.spec.extras.data_licence == "CC0"
    assert store.spec.extras.features["3"].fitted_on == 4
    assert float(store.rows("feature_3_cosine").min()) > 0.99
    assert verify_store(made) == []


def test_a_store_without_options_has_the_bytes_of_a_teacher_without_signals(source, tmp_path):
    cache_teacher(source, "all", Rich(), tmp_path / "rich.zarr", OPTIONS)
    cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "plain.zarr", OPTIONS)
    assert folder_bytes(tmp_path / "rich.zarr") == folder_bytes(tmp_path / "plain.zarr")


def test_an_interrupted_run_comes_to_the_same_bytes(source, made, tmp_path):
    options = replace(KEEPS, intrinsics="source", data_licence="CC0")
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(source, "all", Rich(), tmp_path / "s.zarr", options, fakes.StopAt(4))
    assert cache_teacher(source, "all", Rich(), tmp_path / "s.zarr", options).samples_before > 0
    assert folder_bytes(tmp_path / "s.zarr") == folder_bytes(made)


def test_mirrored_images_have_their_own_signals_over_the_same_basis(source, tmp_path):
    cache_with_flips(source, "all", Rich(), tmp_path / "s.zarr", replace(KEEPS, intrinsics="source"))
    store, flips = open_store(tmp_path / "s.zarr"), open_store(mirrored_path(tmp_path / "s.zarr"))
    assert flips.spec.extras.features["3"] == store.spec.extras.features["3"]
    assert flips.signal("sky", 3) == pytest.approx(store.signal("sky", 3)[:, ::-1])
    assert flips.intrinsics_px(3).tolist() == [43, 40, 31 - 15.5, 7.5]


def test_parts_of_a_split_made_over_one_basis_merge(source, tmp_path):
    for name, rows in (("a", range(3)), ("b", range(3, FRAMES))):
        (source.root / f"part_{name}.txt").write_text("".join(f"{number:06d}\n" for number in rows))
    first = replace(KEEPS, samples_per_shard=3)
    cache_teacher(source, "part_a", Rich(), tmp_path / "a.zarr", first)
    bases = tuple(open_store(tmp_path / "a.zarr").bases.items())
    cache_teacher(source, "part_b", Rich(), tmp_path / "b.zarr", replace(first, bases=bases))
    merge_stores([open_store(tmp_path / f"{name}.zarr") for name in "ab"], tmp_path / "both.zarr")
    assert len(open_store(tmp_path / "both.zarr")) == FRAMES
    assert verify_store(tmp_path / "both.zarr") == []


def test_as_few_components_are_kept_as_the_asked_cosine_needs(source, tmp_path):
    teacher = Rich()
    counts = []
    for name, error in (("a", 0.02), ("b", 1e-4)):
        options = replace(KEEPS, signals=(), feature_components=4, max_feature_cosine_error=error)
        cache_teacher(source, "all", teacher, tmp_path / f"{name}.zarr", options)
        store = open_store(tmp_path / f"{name}.zarr")
        assert 1 - store.rows("feature_3_cosine").mean() <= 1.5 * error
        counts.append(store.spec.extras.features["3"].components)
    assert counts[0] < counts[1]


class Wrong(Rich):
    """Gives `change` from the second batch on."""

    def __init__(self, **change):
        super().__init__()
        self.change, self.calls = change, 0

    def predict(self, images, ids):
        self.calls += 1
        given = super().predict(images, ids)
        return given._replace(**{name: act(given) for name, act in self.change.items()}) if ids[0] > "000003" else given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": lambda given: given.confidence * 9}, r"00000\d, teacher 'fake': signal 'confidence' is \d"),
        ({"sky": lambda given: given.sky * torch.nan}, r"signal 'sky' is nan at one of \d+ pixels"),
        ({"sky": lambda _: None}, "signal 'sky' is missing, and the first image has it"),
        ({"sky": lambda given: given.sky[:, :2]}, "signal 'sky' has .* expected one size"),
        ({"features": lambda given: {"3": given.features["3"][:, :3]}}, "features of layer '3' have the shape"),
        ({"features": lambda _: {}}, "features of layer '3' are missing"),
    ],
)
def test_what_changes_between_images_ends_in_one_error_and_keeps_finished_shards(source, tmp_path, change, message):
    options = replace(KEEPS, feature_images=1)
    with pytest.raises(PipelineError, match=message):
        cache_teacher(source, "all", Wrong(**change), tmp_path / "s.zarr", options)
    assert list(tmp_path.glob(".s.zarr.*.staging"))
    cache_teacher(source, "all", Rich(), tmp_path / "s.zarr", options)
    assert verify_store(tmp_path / "s.zarr") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": ("mood",)}, "`signals=mood`: expected any of confidence, sky, valid"),
        ({"signals": ("valid",)}, "does not give it (it gives confidence, sky)"),
        ({"features": ("4",)}, "`features=4`: teacher 'fake' gave 3"),
        ({"features": ("3",), "feature_components": 1, "max_feature_cosine_error": 1e-6}, "1 components of layer '3'"),
    ],
)
def test_what_the_teacher_does_not_give_is_refused_before_the_run(source, tmp_path, options, message):
    with pytest.raises(PipelineError, match=re.escape(message)):
        cache_teacher(source, "all", Rich(), tmp_path / "s.zarr", replace(OPTIONS, **options))
    assert not list(tmp_path.iterdir())


def test_intrinsics_that_nobody_gives_are_refused(tmp_path):
    bare = open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'bare', 2, (16, 32))}")
    with pytest.raises(PipelineError, match="`intrinsics=source`: source 'scenes' has none for '000000'"):
        cache_teacher(bare, "all", Rich(), tmp_path / "s.zarr", replace(OPTIONS, intrinsics="source"))
    with pytest.raises(PipelineError, match="`intrinsics=teacher`: teacher 'fake' gives none"):
        cache_teacher(bare, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", replace(OPTIONS, intrinsics="teacher"))


def test_the_teachers_own_intrinsics_are_kept_if_asked(source, tmp_path):
    cache_teacher(source, "all", Rich(), tmp_path / "s.zarr", replace(OPTIONS, intrinsics="teacher"))
    assert open_store(tmp_path / "s.zarr").intrinsics_px(5).tolist() == [30, 31, 15.5, 7.5]


MODULE = """
import torch

class Net:
    card = {"name": "net", "depth_space": "metric_m", "weights": []}

    def __call__(self, images):
        gray = images.mean(dim=1)
        features = torch.stack([gray, gray * gray, 1 - gray], dim=1)[..., ::2, ::2]
        return {"depth": 1 + 9 * gray, "confidence": gray, "features": {"deep": features}}
"""


@pytest.mark.parametrize("more", [[], ["--scheduler", "local:1"]], ids=["here", "cluster"])
def test_flags_of_the_command_keep_signals_and_features(source, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rich_net.py").write_text(MODULE)
    flags = ["cache-teacher", "--source", f"scenes:{source.root}", "--split", "all", "--teacher", "python:rich_net:Net"]
    flags += ["--signals", "confidence", "--features", "deep:2", "--data-licence", "CC BY 4.0", "--out", "s.zarr"]
    done = CliRunner().invoke(main, [*flags, *more])
    assert done.exit_code == 0, done.output
    store = open_store(tmp_path / "s.zarr")
    assert (store.signals, store.feature_layers) == (("confidence",), ("deep",))
    described = CliRunner().invoke(main, ["store", "info", "s.zarr"]).output
    assert re.search(r"layer deep +2 components of 3 channels", described)
    assert re.search(r"confidence +16x32 px; error at most 0.0020", described)
    assert re.search(r"data licence +CC BY 4.0", described)


def test_a_basis_without_features_is_wrong_usage(source, tmp_path):
    flags = ["cache-teacher", "--source", f"scenes:{source.root}", "--split", "all", "--teacher", "python:a:b"]
    done = CliRunner().invoke(main, [*flags, "--features-basis", "x.zarr", "--out", str(tmp_path / "s.zarr")])
    assert done.exit_code == 2
    assert "need --features" in done.output


def test_the_live_teacher_is_compared_with_the_stored_signals(source, made):
    agreements = {each.name: each for each in compare_with_teacher(open_store(made), source, "all", Rich(), count=3)}
    assert set(agreements) == {"depth", "confidence", "sky"}
    assert all(agreement.holds for agreement in agreements.values())

    class Doubter(Rich):
        def predict(self, images, ids):
            given = super().predict(images, ids)
            return given._replace(confidence=given.confidence * 0.9)

    agreements = {each.name: each for each in compare_with_teacher(open_store(made), source, "all", Doubter(), count=3)}
    assert not agreements["confidence"].holds
    assert agreements["depth"].holds


def test_bases_are_taken_for_exactly_the_asked_layers(source, made, tmp_path):
    bases = tuple(open_store(made).bases.items())
    with pytest.raises(PipelineError, match="there is no basis for layer '3'"):
        options = replace(KEEPS, bases=(("7", bases[0][1]),))
        cache_teacher(source, "all", Rich(), tmp_path / "s.zarr", options)
    cache_teacher(source, "all", Rich(), tmp_path / "s.zarr", replace(KEEPS, bases=(*bases, ("7", bases[0][1]))))
    assert open_store(tmp_path / "s.zarr").feature_layers == ("3",)


def test_intrinsics_that_are_wrong_do_not_stop_a_run_that_needs_none(tmp_path):
    root = fakes.make_folder(tmp_path / "folder")
    (root / "K.txt").write_text("500 0 3200\n0 500 2400\n0 0 1\n")
    options = replace(OPTIONS, bins="nyu", sigma_m=0.5)
    assert cache_teacher(open_source(f"folder:{root}"), "train", fakes.FakeTeacher(), tmp_path / "s.zarr", options)
    with pytest.raises(PipelineError, match="cx 3200 px"):
        options = replace(options, intrinsics="source")
        cache_teacher(open_source(f"folder:{root}"), "train", fakes.FakeTeacher(), tmp_path / "t.zarr", options)
