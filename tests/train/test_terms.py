"""Training with terms added to the loss: from the store's signals to resumed runs; terms with weights of their own."""

import csv
import json
from dataclasses import replace

import fakes
import numpy as np
import probe_term
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_stores import folder_bytes
from torch import nn

import pipeline as tiekd
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.train import train_student as train_command
from pipeline.errors import PipelineError
from pipeline.losses import registry
from pipeline.networks.saved_run import load_run
from pipeline.sources.view import View
from pipeline.store import Store, open_store
from pipeline.store.format.extras import Extras, Signal
from pipeline.store.write.encode_extras import SampleExtras
from pipeline.store.write.writer import StoreWriter, encode_sample
from pipeline.train.augment import Augmentation
from pipeline.train.config import Recipe
from pipeline.train.dataset import TrainingData, collate, split_batch
from pipeline.train.forward import fixed_statistics
from pipeline.train.options import TrainOptions
from pipeline.train.run import Interrupted, train_network

OPTIONS = TrainOptions(student="lean-small", epochs=2, batch_size=2, learning_rate=3e-3, seed=1)
ALL = ("gradient=0.5", "confidence", "sky=ignore", "trim=0.1", "texture=0.1")


def options(**changes):
    return TrainOptions(**{**OPTIONS.__dict__, **changes})


def signal_of(store, name, sample):
    """A signal of half the view's resolution that tells sample, row and column apart; 0 is nowhere in it."""
    number = sample if isinstance(sample, int) else store.ids.index(sample)
    height, width = store.spec.view_size_px
    rows, columns = np.mgrid[0 : height // 2, 0 : width // 2]
    values = 0.1 + 0.8 * (rows / height + columns / width + number / 8) / 2.5
    return (values if name == "confidence" else 1.1 - values).astype(np.float32)


@pytest.fixture
def signals(monkeypatch):
    """Give every store the signals confidence and sky."""
    monkeypatch.setattr(Store, "signals", ("confidence", "sky"))
    monkeypatch.setattr(Store, "signal", signal_of)


def doubled(values):
    return values.repeat(2, 0).repeat(2, 1)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# samples


def data_of(scenes, store, flips=None, **augmentation):
    return TrainingData(
        scenes,
        scenes.samples("all"),
        View(),
        store=open_store(store),
        maps_px=None,
        augmentation=Augmentation(**augmentation),
        seed=0,
        flips=flips,
        signals=("confidence", "sky"),
    )


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("with_flips", [False, True])
def test_signals_are_cropped_mirrored_and_rotated_with_the_depth(tmp_path, scenes, monkeypatch, with_flips):
    # With a signal that is the depth itself, the two must agree at every pixel
    monkeypatch.setattr(Store, "signal", lambda store, _, sample: store.depth_m(sample) / 20)
    teacher = fakes.RelativeTeacher("metric_m", lopsided=True)
    for name, view in (("plain.zarr", "full"), ("mirrored.zarr", "full,mirror")):
        cache_teacher(scenes, "all", teacher, tmp_path / name, CacheOptions(view=view))
    flips = open_store(tmp_path / "mirrored.zarr") if with_flips else None
    data = data_of(scenes, tmp_path / "plain.zarr", flips=flips, crop_px=(16, 40), rotate_deg=8.0, flip=True)
    outside = 0
    for epoch in range(4):
        for number in range(8):
            item = data[epoch, number]
            valid = item.target_depth_m.isfinite()
            outside += int((~valid).sum())
            for signal in item.signals.values():
                assert signal.dtype == torch.float32
                assert torch.allclose(signal[valid] * 20, item.target_depth_m[valid])
                assert bool((signal[~valid] == 0).all())
    assert outside > 0


@pytest.mark.usefixtures("signals")
def test_a_signal_is_sampled_at_its_own_resolution(scenes, teacher_store):
    data = data_of(scenes, teacher_store)
    for number in range(3):
        expected = doubled(signal_of(data.store, "sky", number))
        assert np.array_equal(data[0, number].signals["sky"][0].numpy(), expected)


@pytest.mark.usefixtures("signals")
def test_signals_stay_with_their_sample_in_a_batch_and_its_parts(scenes, teacher_store):
    data = data_of(scenes, teacher_store, crop_px=(16, 40), flip=True)
    items = [data[0, number] for number in range(4)]
    parts = split_batch(collate(items), 2)
    for number, item in enumerate(items):
        part, place = parts[number // 2], number % 2
        for name, signal in item.signals.items():
            assert torch.equal(part.signals[name][place], signal)
        assert torch.equal(part.image[place], item.image)


@pytest.mark.usefixtures("signals")
def test_only_the_signals_that_terms_need_are_read(scenes, teacher_store):
    def needed(*add):
        return Recipe.make(options(add=add), scenes, scenes.samples("all"), open_store(teacher_store), None).signals

    assert needed() == needed("gradient", "trim", "texture") == ()
    assert needed("gradient", "sky", "confidence") == ("sky", "confidence")


def test_terms_learn_from_the_signals_of_a_real_store(tmp_path, scenes):
    plain = tmp_path / "plain.zarr"
    cache_teacher(scenes, "all", fakes.FakeTeacher(), plain, CacheOptions(bins="nyu"))
    store = open_store(plain)
    sizes = {"confidence": (16, 32), "sky": (8, 16)}
    extras = Extras(signals={name: Signal(size) for name, size in sizes.items()})
    spec = replace(store.spec, extras=extras)

    def encoded(number):
        sample = encode_sample(spec, store.depth_m(number), None)
        image, sha256 = scenes.read_image(scenes.samples("all")[number])
        sample.row.update(image_sha256=sha256, image_size_px=list(image.shape[:2]))
        signals = {name: np.full(size, (number + 1) / 10, np.float32) for name, size in sizes.items()}
        return sample.with_extras(spec, SampleExtras(signals=signals), {})

    with StoreWriter(tmp_path / "v3.zarr", spec, store.ids) as writer:
        for shard in writer.todo:
            writer.write_shard(shard, [encoded(number) for number in spec.shard_samples(shard)])
        writer.finish()
    item = data_of(scenes, tmp_path / "v3.zarr")[0, 3]
    assert torch.allclose(item.signals["confidence"], torch.full((1, 32, 64), 0.4))
    settings = options(add=ALL)
    train_network(scenes, "train", tmp_path / "run", settings, store=open_store(tmp_path / "v3.zarr"))
    assert len(rows(tmp_path / "run" / "steps.csv")) == 6
    with pytest.raises(tiekd.PipelineError, match=r"`add=sky=far` needs the signal sky.*\(it holds none\)"):
        train_network(scenes, "train", tmp_path / "none", options(add=("sky=far",)), store=store)


# runs


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "tiekd", "maps": "from-depth", "add": (*ALL[:2], "sky=far", *ALL[3:])},
        {"loss": "ssim+si", "head": "depth"},
        {"loss": "nll+ssim", "head": "laplace"},
        {"loss": "tiekd-released", "accumulate": 2},
        {"loss": "ssi+grad", "add": ALL[1:]},
        {"loss": "truth-nll", "add": ("gradient", "trim", "texture")},
    ],
)
def test_terms_train_with_every_kind_of_loss_and_are_logged_by_name(tmp_path, scenes, teacher_store, changes):
    settings = options(**({"add": ALL} | changes))
    train_network(scenes, "train", tmp_path / "run", settings, store=open_store(teacher_store))
    table = rows(tmp_path / "run" / "steps.csv")
    names = [term.name for term in settings.terms if term.name in {"gradient", "texture"}]
    assert len(table) == 6
    assert list(table[0])[-len(names) :] == names
    assert not {"trim", "confidence", "sky"} & set(table[0])
    assert all(0 < float(table[-1][name]) < 10 for name in names)
    assert load_run(tmp_path / "run").config["add"] == list(settings.add)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_with_terms_ends_with_the_same_weights(tmp_path, scenes, teacher_store, workers):
    store, settings = open_store(teacher_store), options(add=ALL, rotate_deg=2.0, ema=0.9, accumulate=2)
    train_network(scenes, "train", tmp_path / "whole", settings, store=store)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_network(scenes, "train", out, settings, store=store, workers=workers, progress=fakes.StopAt(3))
    train_network(scenes, "train", out, settings, store=store, workers=workers)
    whole, resumed = folder_bytes(tmp_path / "whole"), folder_bytes(out)
    for name in ("student.safetensors", "steps.csv", "epochs.csv", "config.json"):
        assert resumed[name] == whole[name], name


def test_the_head_may_be_computed_in_the_loss(tmp_path, scenes, teacher_store):
    losses = []
    for fuse_head in (True, False):
        out = tmp_path / str(fuse_head)
        settings = options(add=("gradient", "trim", "texture"), learning_rate=1e-5)
        train_network(scenes, "train", out, settings, store=open_store(teacher_store), fuse_head=fuse_head)
        losses.append([float(row["loss"]) for row in rows(out / "steps.csv")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_second_pass_leaves_running_statistics_unchanged(tmp_path, scenes, teacher_store):
    buffers = []
    for add in ((), ("texture=0",)):
        out = tmp_path / str(len(add))
        train_network(scenes, "train", out, options(add=add), store=open_store(teacher_store))
        weights = load_file(out / "student.safetensors")
        buffers.append({name: value for name, value in weights.items() if "running" in name or "batches" in name})
    assert len(buffers[0]) > 10
    assert all(torch.equal(value, buffers[1][name]) for name, value in buffers[0].items())


def test_fixed_statistics_are_released_after_an_error():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(RuntimeError), fixed_statistics(norm):
        norm(torch.rand(2, 3, 4, 4))
        raise RuntimeError
    assert int(norm.num_batches_tracked) == 0
    norm(torch.rand(2, 3, 4, 4))
    assert int(norm.num_batches_tracked) == 1
    assert bool((norm.running_mean != 0).all())


def test_a_configuration_without_terms_is_as_before(scenes, teacher_store):
    store = open_store(teacher_store)
    recipes = [
        Recipe.make(options(add=add), scenes, scenes.samples("all"), store, None)
        for add in ((), ("trim",), ("trim=0.10",), ["trim=0.1"])
    ]
    assert "add" not in recipes[0].as_json()
    assert recipes[1].as_json()["add"] == ("trim=0.1",)
    assert len({recipe.digest() for recipe in recipes}) == 2


# a term with weights of its own


@pytest.fixture
def probe(monkeypatch):
    """Register the test's own term; the terms that were built."""
    probe_term.register(monkeypatch.setitem)
    return probe_term.built


def test_a_terms_own_weights_are_trained_checkpointed_and_not_part_of_the_student(
    tmp_path, scenes, teacher_store, probe
):
    store, settings = open_store(teacher_store), options(add=("probe",), ema=0.9)
    train_network(scenes, "train", tmp_path / "whole", settings, store=store)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_network(scenes, "train", out, settings, store=store, progress=fakes.StopAt(3))
    start = float(probe[1].guess.detach())
    (partial,) = tmp_path.glob(".run.*.partial")
    state = torch.load(partial / "checkpoint.pt", weights_only=True)
    assert state["objective"].keys() == {"added.probe.guess", "added.probe.steps"}
    assert float(state["objective"]["added.probe.guess"]) == start
    assert int(state["objective"]["added.probe.steps"]) == 3
    train_network(scenes, "train", out, settings, store=store)
    assert probe[2].guess.item() == probe[0].guess.item() != start
    assert int(probe[2].steps) == 6
    whole, resumed = folder_bytes(tmp_path / "whole"), folder_bytes(out)
    for name in ("student.safetensors", "steps.csv", "config.json"):
        assert resumed[name] == whole[name], name
    train_network(scenes, "train", tmp_path / "plain", options(ema=0.9), store=store)
    weights = [load_file(tmp_path / name / "student.safetensors").keys() for name in ("whole", "plain")]
    assert weights[0] == weights[1]
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "plain")]
    assert metrics[0]["parameters"] == metrics[1]["parameters"]


def test_the_students_first_weights_do_not_depend_on_those_of_terms(tmp_path, scenes, teacher_store, probe):
    losses = []
    for add in ((), ("probe",)):
        out = tmp_path / str(len(add))
        train_network(scenes, "train", out, options(add=add), store=open_store(teacher_store))
        first = rows(out / "steps.csv")[0]
        losses.append(float(first["loss"]) - (0.5 * float(first["probe"]) if add else 0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(probe) == 1


@pytest.mark.usefixtures("probe")
def test_a_terms_weight_that_is_not_finite_is_named(tmp_path, scenes, teacher_store, monkeypatch):
    def value(term, step):
        term.steps_seen = getattr(term, "steps_seen", 0) + 1
        if term.steps_seen == 6:
            with torch.no_grad():
                term.guess.fill_(torch.nan)
        return 0 * step.depth_m.mean()

    monkeypatch.setattr(probe_term.Probe, "value", value)
    with pytest.raises(ValueError, match=r"added.probe.guess is not finite"):
        train_network(scenes, "train", tmp_path / "run", options(add=("probe",)), store=open_store(teacher_store))


# refusals


@pytest.mark.parametrize("add", ["confidence=2", "sky=far"])
def test_a_store_without_the_signal_is_refused_with_the_command_that_makes_one(
    tmp_path, scenes, teacher_store, monkeypatch, add
):
    monkeypatch.setattr(Store, "signals", ("valid",))
    name = add.split("=")[0]
    match = (
        rf"`add={add}` needs the signal {name}, which \S*teacher.zarr does not hold \(it holds valid\): make a store "
        rf"with `signals={name}` in `pipeline cache-teacher`"
    )
    with pytest.raises(tiekd.PipelineError, match=match):
        tiekd.train_student(scenes, "train", open_store(teacher_store), tmp_path / "run", add=[add])


@pytest.mark.usefixtures("signals")
def test_the_far_end_as_sky_is_refused_with_stored_maps(tmp_path, scenes, teacher_store):
    with pytest.raises(
        tiekd.PipelineError, match=r"`add=sky=far` changes depth, but the maps stored in \S*teacher.zarr"
    ):
        tiekd.train_student(scenes, "train", open_store(teacher_store), tmp_path / "run", add=["sky=far"])


@pytest.mark.usefixtures("signals")
def test_ground_truth_has_no_signals(tmp_path, scenes, teacher_store):
    store = open_store(teacher_store)
    with pytest.raises(tiekd.PipelineError, match=r"`add=confidence=1` needs the signal confidence of a store, but"):
        tiekd.train_student(scenes, "train", store, tmp_path / "run", loss="truth-si", add=["confidence"])


def test_one_term_as_a_string_is_refused():
    with pytest.raises(tiekd.PipelineError, match=r"`add='gradient'`: expected a list, such as \['gradient'\]"):
        TrainOptions(add="gradient")


@pytest.mark.usefixtures("signals")
def test_the_command_adds_terms(tmp_path, scenes, teacher_store):
    arguments = [
        "--source",
        f"scenes:{scenes.root}",
        "--split",
        "train",
        "--store",
        str(teacher_store),
        "--epochs",
        "1",
    ]
    arguments += ["--student", "lean-small", "--batch-size", "2", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(train_command, [*arguments, "--add", "gradient=0.25", "--add", "confidence"])
    assert done.exit_code == 0, done.output
    assert load_run(tmp_path / "run").config["add"] == ["gradient=0.25", "confidence=1"]
    refused = CliRunner().invoke(train_command, [*arguments, "--add", "trim=2"])
    assert refused.exit_code == 1
    assert "--add trim=2: expected trim=VALUE, fraction of the valid pixels, from 0 to 0.9" in refused.output


def test_the_help_of_the_command_names_every_term():
    (parameter,) = [parameter for parameter in train_command.params if parameter.name == "add"]
    assert all(name in parameter.help for name in registry.TERMS)


@pytest.mark.parametrize(
    ("term", "signal", "value", "message"),
    [("sky=ignore", "sky", 1.0, "are invalid, or sky"), ("confidence", "confidence", 0.0, "or of no confidence")],
)
def test_signals_that_leave_nothing_to_learn_are_refused(tmp_path, monkeypatch, term, signal, value, message):
    source = tiekd.open_source("scenes", fakes.make_scenes_folder(tmp_path / "scenes", 4, (32, 64)))
    cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", CacheOptions(bins="nyu", sigma_m=0.5))
    monkeypatch.setattr(Store, "signals", (signal,))
    monkeypatch.setattr(Store, "signal", lambda *_: np.full((4, 8), value, np.float32))
    with pytest.raises(PipelineError, match=message):
        train_network(source, "all", tmp_path / "run", options(add=(term,)), store=open_store(tmp_path / "s.zarr"))
