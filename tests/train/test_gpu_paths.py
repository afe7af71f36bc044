"""What a GPU run does differently, on a CPU: values read a step later, measured workers, compiled and exact runs."""

from __future__ import annotations

from dataclasses import replace
from shutil import which

import fakes
import pytest
import torch

from pipeline.common.device import deterministic
from pipeline.common.fileio import sha256_file
from pipeline.losses.base import DepthLoss
from pipeline.networks.saved_run import load_run
from pipeline.store import open_store
from pipeline.train import trainer
from pipeline.train.loader import workers_for
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

OPTIONS = TrainOptions(student="lean", epochs=2, batch_size=2, learning_rate=3e-3, seed=1, loss="si")


class Notes(fakes.StopAt):
    """Keeps the notes of a run that is not stopped."""

    def __init__(self):
        super().__init__(10**9)
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def train(source, store, out, **settings):
    return train_network(source, "train", out, OPTIONS, store=open_store(store), device="cpu", **settings)


def test_values_read_a_step_later_give_the_same_run(tmp_path, scenes, teacher_store, monkeypatch):
    train(scenes, teacher_store, tmp_path / "now")
    monkeypatch.setattr(trainer, "DEFERS", {"cpu"})
    train(scenes, teacher_store, tmp_path / "later")
    for name in ("student.safetensors", "steps.csv", "epochs.csv"):
        assert (tmp_path / "now" / name).read_bytes() == (tmp_path / "later" / name).read_bytes(), name


@pytest.mark.parametrize("step", [1, 5])
def test_a_loss_that_is_not_finite_is_named_with_its_step_though_read_later(
    tmp_path, scenes, teacher_store, monkeypatch, step
):
    terms, calls = DepthLoss.terms, []

    def failing(self, *arguments):
        calls.append(1)
        found = terms(self, *arguments)
        return {**found, "loss": found["loss"] * torch.inf} if len(calls) == step + 1 else found

    monkeypatch.setattr(trainer, "DEFERS", {"cpu"})
    monkeypatch.setattr(DepthLoss, "terms", failing)
    with pytest.raises(ValueError, match=rf"the loss is inf at step {step} \(samples "):
        train(scenes, teacher_store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_measured_workers_change_no_weight_and_are_told(tmp_path, scenes, teacher_store, monkeypatch):
    train(scenes, teacher_store, tmp_path / "plain")
    monkeypatch.setattr(trainer, "MEASURES_WORKERS", {"cpu"})
    notes = Notes()
    train(scenes, teacher_store, tmp_path / "measured", progress=notes)
    assert [note for note in notes.notes if "loader processes" in note]
    assert sha256_file(tmp_path / "plain/student.safetensors") == sha256_file(tmp_path / "measured/student.safetensors")


@pytest.mark.parametrize(
    ("read_s", "step_s", "processes", "workers"),
    [(0.1, 0.2, 1, 1), (0.78, 0.2, 1, 6), (8.0, 0.2, 1, 16), (8.0, 0.2, 4, 4), (1.0, 0.0, 1, 16), (1.0, 0.1, 64, 1)],
)
def test_workers_read_a_batch_in_the_time_of_a_step(monkeypatch, read_s, step_s, processes, workers):
    monkeypatch.setattr("pipeline.train.loader.cores", lambda: 16)
    assert workers_for(read_s, step_s, processes) == workers


def test_a_deterministic_run_has_the_weights_of_an_ordinary_one_on_a_cpu(tmp_path, scenes, teacher_store):
    train(scenes, teacher_store, tmp_path / "plain")
    train(scenes, teacher_store, tmp_path / "exact", deterministic=True)
    assert sha256_file(tmp_path / "plain/student.safetensors") == sha256_file(tmp_path / "exact/student.safetensors")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_switch_is_on_inside_alone():
    with deterministic(enabled=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler: apt-get install g++")
def test_a_compiled_run_learns_what_the_ordinary_one_does(tmp_path, scenes, teacher_store, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    plain = train(scenes, teacher_store, tmp_path / "plain")
    compiled = train(scenes, teacher_store, tmp_path / "compiled", compiled=True)
    assert compiled["last_epoch"]["train_loss"] == pytest.approx(plain["last_epoch"]["train_loss"], rel=1e-3)
    assert load_run(tmp_path / "compiled").network(torch.zeros(1, 3, 16, 32)).isfinite().all()
    assert any((tmp_path / "cache").iterdir())


def test_a_fused_head_learns_what_whole_logits_do(tmp_path, scenes, teacher_store):
    whole = train(scenes, teacher_store, tmp_path / "whole", fuse_head=False)
    fused = train(scenes, teacher_store, tmp_path / "fused", fuse_head=True)
    train(scenes, teacher_store, tmp_path / "default")
    assert fused["last_epoch"]["train_loss"] == pytest.approx(whole["last_epoch"]["train_loss"], rel=1e-2)
    files = {name: sha256_file(tmp_path / name / "student.safetensors") for name in ("whole", "fused", "default")}
    assert files["default"] == files["fused"] != files["whole"]


def test_a_loss_that_needs_whole_logits_refuses_a_fused_head(tmp_path, scenes, teacher_store):
    with pytest.raises(ValueError, match="`fuse_head`: loss 'tiekd-released' needs whole logits"):
        train_network(
            scenes,
            "train",
            tmp_path / "run",
            replace(OPTIONS, loss="tiekd-released"),
            store=open_store(teacher_store),
            device="cpu",
            fuse_head=True,
        )
