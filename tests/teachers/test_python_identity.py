"""Who a teacher is: what decides its numbers is in its card, and a run that goes on says what changed."""

import importlib
import json
import re
import sys

import fakes
import pytest
import torch

from pipeline.cache import conditions
from pipeline.cache.compare_teacher import compare_with_teacher
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.tools.info import describe, unstated
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

CPU = torch.device("cpu")
OPTIONS = CacheOptions(bins="nyu", sigma_m=0.2, samples_per_shard=2, batch_size=2)
MODULE = """
import torch
import numpy as np
from helper import parts
import importlib

class Mine(torch.nn.Module):
    card = {"name": "mine", "depth_space": "metric_m"CARD}
    def forward(self, images):
        return OFFSET + parts.of(images)

def load():
    return Mine()

def other():
    return Mine()
"""
FILES = {"helper/__init__.py": "", "helper/parts.py": "def of(images):\n    return images.mean(1)\n"}


def refuses(*parts):
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a teacher's module, as it is after this process has forgotten the last one, and opens it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def forget():
        for name in ("some_teacher", "helper", "helper.parts"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    def make(offset=2, card="", factory="load", files=(), **options):
        forget()
        text = MODULE.replace("OFFSET", str(offset)).replace("CARD", card)
        for name, content in {"some_teacher.py": text, **FILES, **dict(files)}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        return open_teacher(f"python:some_teacher:{factory}", device=CPU, options=TeacherOptions(**options))

    yield make
    forget()


@pytest.fixture
def source(tmp_path):
    return open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 6, (16, 32))}")


class Notes(fakes.StopAt):
    """Progress that keeps the notes, and interrupts as its base does."""

    def __init__(self, step=None):
        super().__init__(step)
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def interrupted(source, teacher, out, step=4):
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(source, "all", teacher, out, OPTIONS, Notes(step))


def test_the_card_has_a_hash_of_each_module_that_is_not_installed(write):
    made_of = write().card.preprocessing["python"]
    assert made_of["factory"] == "some_teacher:load"
    assert list(made_of["source"]) == ["helper", "helper.parts", "some_teacher"]
    assert made_of["packages"] == ["numpy", "torch"]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in made_of["source"].values())


@pytest.mark.parametrize(
    "changed",
    [
        {"offset": 5},
        {"factory": "other"},
        {"files": {"helper/parts.py": "def of(images):\n    return images.amax(1)\n"}},
        {"files": {"helper/__init__.py": "# changed\n"}},
    ],
    ids=["the module", "another factory", "what it imports", "the package of what it imports"],
)
def test_changed_code_is_another_teacher(write, changed):
    assert write().card != write(**changed).card


def test_the_same_code_is_the_same_teacher_in_another_folder(write, tmp_path, monkeypatch):
    first = write().card
    (tmp_path / "moved").mkdir()
    for name in ("some_teacher.py", "helper"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    monkeypatch.chdir(tmp_path / "moved")
    for name in ("some_teacher", "helper", "helper.parts"):
        sys.modules.pop(name, None)
    sys.path.remove(str(tmp_path))
    assert open_teacher("python:some_teacher:load", device=CPU, options=TeacherOptions()).card == first


def test_code_that_was_put_on_the_path_by_the_teacher_counts_too(write, tmp_path):
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "helper_of_others.py").write_text("SCALE = 1\n")
    lazily = FILES["helper/parts.py"] + "import sys\nsys.path.append('vendor')\nimport helper_of_others\n"
    try:
        assert "helper_of_others" in write(files={"helper/parts.py": lazily}).card.preprocessing["python"]["source"]
    finally:
        sys.modules.pop("helper_of_others", None)


def test_code_that_changed_after_it_was_imported_is_refused(write, tmp_path):
    write()
    (tmp_path / "some_teacher.py").write_text((tmp_path / "some_teacher.py").read_text().replace("2 +", "5 +"))
    with refuses("some_teacher.py changed after this process imported it", "start the process"):
        open_teacher("python:some_teacher:load", device=CPU, options=TeacherOptions())


def test_a_run_with_changed_code_starts_again_and_says_which_module_changed(write, source, tmp_path):
    out = tmp_path / "s.zarr"
    interrupted(source, write(2), out)
    progress = Notes()
    cache_teacher(source, "all", write(5), out, OPTIONS, progress)
    store = open_store(out)
    assert all(float(store.depth(number).min()) >= 5 for number in range(6))
    (note,) = [note for note in progress.notes if "does not resume it" in note]
    assert "teacher.preprocessing.python.source.some_teacher is" in note
    assert "2 of 6 samples" in note or "4 of 6 samples" in note


def test_a_run_under_another_torch_starts_again_and_says_so(write, source, tmp_path, monkeypatch):
    out = tmp_path / "s.zarr"
    interrupted(source, write(), out)
    versions = {"tiekd-pipeline": "1", "numcodecs": "1", "numpy": "1", "torch": "9.9"}
    monkeypatch.setattr("pipeline.store.format.spec.version", versions.__getitem__)
    progress = Notes()
    cache_teacher(source, "all", write(), out, OPTIONS, progress)
    (note,) = [note for note in progress.notes if "does not resume it" in note]
    assert f"producer.torch is {torch.__version__} there and 9.9 now" in note


@pytest.mark.parametrize("what", ["threads", "numpy"])
def test_a_run_that_goes_on_under_other_conditions_says_which(write, source, tmp_path, monkeypatch, what):
    out = tmp_path / "s.zarr"
    interrupted(source, write(), out)
    before = conditions.conditions_of(write().card.as_json())
    monkeypatch.setattr(conditions, "conditions_of", lambda _: {**before, what: "99"})
    monkeypatch.setattr("pipeline.cache.run.conditions_of", lambda _: {**before, what: "99"})
    progress = Notes()
    cache_teacher(source, "all", write(), out, OPTIONS, progress)
    (note,) = [note for note in progress.notes if "other conditions" in note]
    assert f"({what} {before[what]} before and 99 now)" in note


def test_a_run_that_goes_on_under_the_same_conditions_says_nothing_of_them(write, source, tmp_path):
    out = tmp_path / "s.zarr"
    interrupted(source, write(), out)
    progress = Notes()
    cache_teacher(source, "all", write(), out, OPTIONS, progress)
    assert [note for note in progress.notes if "conditions" in note or "does not" in note] == []
    assert any("resuming" in note for note in progress.notes)


@pytest.mark.parametrize("record", [b"", b"{}", b"[1]", b'{"spec": [1, 2, 3], "conditions": [4]}'])
def test_a_record_of_conditions_that_is_none_stops_no_run(write, source, tmp_path, record):
    out = tmp_path / "s.zarr"
    interrupted(source, write(), out)
    (staging,) = tmp_path.glob(".s.zarr.*.staging")
    (staging / "run.json").write_bytes(record)
    assert cache_teacher(source, "all", write(), out, OPTIONS).samples_before > 0


def test_packages_of_members_are_conditions_of_an_ensemble():
    members = [{"card": {"kind": kind, "preprocessing": {}}} for kind in ("onnx", "transformers")]
    found = conditions.conditions_of({"kind": "ensemble", "preprocessing": {"members": members}})
    assert {"onnxruntime", "transformers", "torch", "threads", "cores"} == set(found)


# Weights


def test_weights_that_a_card_names_are_hashed(write, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"one")
    first = write(card=', "weights": "net.pth"').card
    (tmp_path / "net.pth").write_bytes(b"two")
    second = write(card=', "weights": ["net.pth"]').card
    assert first.weights_sha256 != second.weights_sha256
    assert unstated(first.as_json()) == []


def test_a_folder_of_weights_is_hashed_whole(write, tmp_path):
    (tmp_path / "w" / "in").mkdir(parents=True)
    (tmp_path / "w" / "a.bin").write_bytes(b"one")
    (tmp_path / "w" / "in" / "b.bin").write_bytes(b"two")
    first = write(card=', "weights": ["w"]').card.weights_sha256
    (tmp_path / "w" / "in" / "b.bin").write_bytes(b"3")
    assert first != write(card=', "weights": ["w"]').card.weights_sha256


@pytest.mark.parametrize(
    ("card", "parts"),
    [
        (', "weights": "gone.pth"', ["weights gone.pth", "No such file", "correct the path"]),
        (', "weights": 7', ["weights 7", "expected a path or a list of paths"]),
        (', "weights": [], "weights_sha256": "0"', ["both weights and weights_sha256"]),
    ],
    ids=["a missing file", "a number", "twice"],
)
def test_weights_that_are_none_are_refused(write, card, parts):
    with refuses(*parts):
        write(card=card)


@pytest.mark.parametrize(
    ("card", "weights", "warned"),
    [("", "not stated", True), (', "weights": []', "none", False), (', "weights": "helper"', "sha256 ", False)],
    ids=["not named", "said to be none", "named"],
)
def test_what_is_not_stated_is_said_in_the_run_and_by_info(write, source, tmp_path, card, weights, warned):
    progress = Notes()
    cache_teacher(source, "all", write(card=card), tmp_path / "s.zarr", OPTIONS, progress)
    assert any("not stated: weights of mine" in note for note in progress.notes) == warned
    lines = dict(describe(open_store(tmp_path / "s.zarr")))
    assert lines["weights"].startswith(weights)
    assert lines["code"].startswith("helper ")


def test_a_store_whose_code_was_not_hashed_says_so():
    assert unstated({"kind": "python", "name": "old", "preprocessing": {}}) == ["code of old", "weights of old"]


def test_what_members_do_not_state_an_ensemble_does_not():
    old = {"kind": "python", "name": "old", "weights_sha256": "1", "preprocessing": {}}
    card = {"kind": "ensemble", "weights_sha256": "2", "preprocessing": {"members": [{"card": old}, {"card": old}]}}
    assert unstated(card) == ["code of old"] * 2


# Other places where a card is compared


def test_a_store_of_a_release_without_hashes_can_still_be_compared_with_its_teacher(write, source, tmp_path):
    teacher = write()
    old = write()
    old.card.preprocessing.pop("python")
    cache_teacher(source, "all", old, tmp_path / "s.zarr", OPTIONS)
    assert all(one.holds for one in compare_with_teacher(open_store(tmp_path / "s.zarr"), source, "all", teacher))


def test_changed_code_is_refused_as_the_teacher_of_a_store(write, source, tmp_path):
    cache_teacher(source, "all", write(), tmp_path / "s.zarr", OPTIONS)
    changed = write(5)
    with refuses("was made from another teacher", "some_teacher"):
        compare_with_teacher(open_store(tmp_path / "s.zarr"), source, "all", changed)


# Eval mode


CARD = {"name": "bound", "depth_space": "metric_m"}


class Bound:
    def __init__(self, network):
        self.card = CARD
        self.parts = {"net": network}

    def __call__(self, images):
        return self.parts["net"](images)[:, 0] + 2


def as_function(network):
    def call(images):
        return network(images)[:, 0] + 2

    call.card = CARD
    return call


def as_module(network):
    module = torch.nn.Sequential(network, torch.nn.Flatten(1, 2))
    module.card = CARD
    return module


@pytest.mark.parametrize("form", [Bound, as_function, as_module], ids=["an attribute", "a closure", "itself"])
def test_networks_of_a_python_teacher_are_put_into_eval_mode(monkeypatch, form):
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5), torch.nn.Conv2d(3, 1, 1))
    monkeypatch.setattr(fakes, "trained", lambda: form(network), raising=False)
    assert network.training
    open_teacher("python:fakes:trained", device=CPU, options=TeacherOptions())
    assert not any(module.training for module in network.modules())


@pytest.mark.usefixtures("source")
def test_the_command_hints_at_weights_that_are_not_named(write, tmp_path, capfd):
    write()
    flags = ["--source", f"scenes:{tmp_path / 'scenes'}", "--split", "all", "--bins", "nyu", "--sigma-m", "0.2"]
    main(["cache-teacher", *flags, "--teacher", "python:some_teacher:load", "--out", "s.zarr"], standalone_mode=False)
    assert '"weights": ["net.pth"]' in capfd.readouterr().err
    assert json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())["attributes"]["depth_store"]["version"] == 1


def test_a_module_of_torch_without_an_init_of_its_own_is_a_factory(monkeypatch):
    class Plain(torch.nn.Module):
        card = CARD

        def forward(self, images):
            return images.mean(1) + 2

    monkeypatch.setattr(fakes, "Plain", Plain, raising=False)
    assert not open_teacher("python:fakes:Plain", device=CPU, options=TeacherOptions())._model.training
