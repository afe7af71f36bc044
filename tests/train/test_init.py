"""A run can start from the weights of another."""

import json
from pathlib import Path

import fakes
import pytest
import torch
from tiny_stores import folder_bytes

import pipeline as tiekd
from pipeline.common.fileio import sha256_file
from pipeline.networks.saved_run import load_run
from pipeline.store import open_store
from pipeline.train.config import Recipe
from pipeline.train.options import TrainOptions
from pipeline.train.run import Interrupted, train_network

WEIGHTS = "student.safetensors"


def options(**changes):
    fields = {"student": "lean-small", "epochs": 1, "batch_size": 2, "learning_rate": 3e-3, "colour": False}
    return TrainOptions(**{**fields, **changes})


def frozen(**changes):
    """Options of a run whose weights change by rounding alone."""
    return options(learning_rate=1e-12, weight_decay=0.0, **changes)


class Notes(fakes.StopAt):
    """Progress that keeps every note."""

    def __init__(self):
        super().__init__(None)
        self.said = ""

    def note(self, text):
        self.said += text + "\n"


def head_and_body(run):
    """Return the parameters of the last layer of a run, and all others."""
    network = load_run(run).network
    [head] = [name for name, module in network.named_modules() if module is network.head]
    named = dict(network.named_parameters())
    return ({k: v for k, v in named.items() if k.startswith(head) is last} for last in (True, False))


def close(first, second):
    return all(torch.allclose(first[name], second[name], atol=1e-8) for name in first if first.keys() == second.keys())


@pytest.fixture
def train(scenes, teacher_store):
    store = open_store(teacher_store)

    def train(out, settings, progress=None):
        train_network(scenes, "train", out, settings, store=store, progress=progress)
        return out

    return train


@pytest.fixture
def trained(tmp_path, train):
    return train(tmp_path / "trained", options(seed=3))


def test_a_run_starts_from_all_weights_of_a_run_with_the_same_outputs(tmp_path, train, trained):
    notes = Notes()
    out = train(tmp_path / "out", frozen(init=trained), notes)
    for mine, theirs in zip(head_and_body(out), head_and_body(trained), strict=True):
        assert close(mine, theirs)
    assert f"starting from the weights of {trained}" in notes.said
    assert "except" not in notes.said


@pytest.mark.parametrize(
    "changes",
    [{"maps": "from-depth", "bins": "linear:24:0:12"}, {"maps": "from-depth", "bins": "linear:16:0:10"}],
    ids=["more bins", "another range"],
)
def test_with_other_bins_the_last_layer_is_the_one_of_a_run_without_init(tmp_path, train, trained, changes):
    notes = Notes()
    out = train(tmp_path / "out", frozen(init=trained, **changes), notes)
    fresh_head, random_body = head_and_body(train(tmp_path / "random", frozen(**changes)))
    head, body = head_and_body(out)
    assert close(body, list(head_and_body(trained))[1])
    assert not close(body, random_body)
    assert close(head, fresh_head)
    assert "except for its last layer" in notes.said
    assert json.loads((out / "config.json").read_text())["init"]["head"] == "fresh"


def test_another_head_is_fresh(tmp_path, train, trained):
    out = train(tmp_path / "out", frozen(init=trained, head="depth", loss="ssim+si"))
    assert close(list(head_and_body(out))[1], list(head_and_body(trained))[1])


def test_two_outputs_of_log_depth_are_kept_with_other_bins_of_the_same_range(tmp_path, train):
    likelihood = {"head": "laplace", "loss": "nll"}
    first = train(tmp_path / "first", options(bins="linear:8:0.5:12", **likelihood))
    out = train(tmp_path / "out", frozen(init=first, bins="log:30:1:12", **likelihood))
    for mine, theirs in zip(head_and_body(out), head_and_body(first), strict=True):
        assert close(mine, theirs)
    far = train(tmp_path / "far", frozen(init=first, bins="log:30:1:20", **likelihood))
    assert json.loads((far / "config.json").read_text())["init"]["head"] == "fresh"


def test_the_configuration_has_the_hash_of_the_weights_and_not_their_path(tmp_path, train, trained):
    config = json.loads((train(tmp_path / "out", options(init=trained)) / "config.json").read_text())
    assert config["init"] == {"weights_sha256": sha256_file(trained / WEIGHTS), "head": "loaded"}
    assert str(tmp_path) not in json.dumps(config)
    assert "init" not in json.loads((trained / "config.json").read_text())


def test_an_interrupted_run_resumes_exactly_from_a_moved_init(tmp_path, train, trained):
    whole = train(tmp_path / "whole", options(init=trained, epochs=2))
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        train(out, options(init=trained, epochs=2), fakes.StopAt(2))
    moved = trained.rename(tmp_path / "moved")
    notes = Notes()
    train(out, options(init=moved, epochs=2), notes)
    assert notes.said.startswith("resuming from step 2")
    for name in (WEIGHTS, "steps.csv", "config.json"):
        assert folder_bytes(out)[name] == folder_bytes(whole)[name], name


def test_an_interrupted_run_does_not_continue_from_other_weights(tmp_path, train, trained):
    with pytest.raises(Interrupted):
        train(tmp_path / "out", options(init=trained), fakes.StopAt(2))
    other = train(tmp_path / "other", options(seed=4))
    notes = Notes()
    train(tmp_path / "out", options(init=other), notes)
    assert "unfinished work with other settings (init.weights_sha256" in notes.said
    assert "resuming" not in notes.said


def test_weights_that_change_between_plan_and_start_are_refused(tmp_path, train, trained, monkeypatch):
    other = train(tmp_path / "other", options(seed=4))
    made = Recipe.make.__func__

    def swap_after(*args, **kwargs):
        recipe = made(Recipe, *args, **kwargs)
        (trained / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())
        return recipe

    monkeypatch.setattr(Recipe, "make", swap_after)
    with pytest.raises(ValueError, match="`init=.*trained` changed while it was read"):
        train(tmp_path / "out", options(init=trained))


def test_a_run_of_another_student_is_refused(tmp_path, train, trained):
    with pytest.raises(ValueError, match=r"`init='.*trained'`: expected a run of `student=lean`, but .* 'lean-small'"):
        train(tmp_path / "out", options(init=trained, student="lean"))


def test_a_folder_that_is_not_a_finished_run_is_refused(tmp_path, train):
    with pytest.raises(ValueError, match=r"`init=.*nothing`: .*nothing is not a complete run: config.json is missing"):
        train(tmp_path / "out", options(init=tmp_path / "nothing"))


def test_two_sources_of_initial_weights_are_refused():
    with pytest.raises(ValueError, match="`init` and `encoder_weights` are mutually exclusive"):
        options(init=Path("a"), encoder_weights=Path("b"))


def test_python_takes_the_path_as_text(tmp_path, scenes, teacher_store, trained):
    store = tiekd.open_store(teacher_store)
    fields = {"student": "lean-small", "epochs": 1, "batch_size": 2, "device": "cpu"}
    student = tiekd.train_student(scenes, "train", store, tmp_path / "out", init=str(trained), **fields)
    assert student.config["init"]["head"] == "loaded"
