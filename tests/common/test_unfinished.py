"""Which unfinished runs are resumed, and the message for those that are not."""

import json
from dataclasses import replace

import fakes
import pytest
import torch

from pipeline.cache.images import cache_images
from pipeline.common.fileio import sha256_file
from pipeline.common.unfinished import note_others, partial_folder
from pipeline.store import open_store
from pipeline.store.images.reader import open_images
from pipeline.train.loader import Batches
from pipeline.train.options import TrainOptions
from pipeline.train.run import Interrupted, train_network
from pipeline.train.sampler import EpochBatchSampler

OPTIONS = TrainOptions(student="lean", epochs=1, batch_size=2)


@pytest.fixture
def train(tmp_path, scenes, teacher_store):
    """Train to `tmp_path/run`; `stop` says after which step."""

    def call(*, stop=None, options=OPTIONS, **more):
        progress = fakes.StopAt(stop)
        more.setdefault("store", open_store(teacher_store))
        try:
            train_network(scenes, "train", tmp_path / "run", options, progress=progress, **more)
        except Interrupted:
            assert stop
        return progress

    return call


def partial_of(folder):
    (path,) = folder.glob(".run.*.partial")
    return path


def test_a_run_records_the_content_of_its_store(tmp_path, train, teacher_store):
    train()
    store = json.loads((tmp_path / "run" / "config.json").read_text())["store"]
    assert store["manifest_sha256"] == sha256_file(teacher_store / "MANIFEST.json")
    assert store["digest"] == open_store(teacher_store).spec.digest()


def test_a_run_of_an_earlier_version_is_refused_and_resumes_after_it_is_renamed(tmp_path, train):
    train(stop=2)
    path = partial_of(tmp_path)
    config = json.loads((path / "config.json").read_text())
    del config["store"]["manifest_sha256"]  # as earlier versions wrote it
    (path / "config.json").write_text(json.dumps(config))
    old = path.rename(partial_folder(tmp_path / "run", config))
    with pytest.raises(
        ValueError, match=f"{old.name} was started by an earlier version, which did not record store.mani"
    ):
        train()
    old.rename(path)
    assert "resuming from step 2 of 3" in train().said


def test_what_differs_is_named_with_both_values(train):
    train(stop=2)
    said = train(options=replace(OPTIONS, seed=1, weight=0.5, crop_px=(32, 64))).said
    assert "crop_px: None there, [32, 64] here; seed: 0 there, 1 here; weight: 0.1 there, 0.5 here)" in said


def test_a_folder_without_readable_settings_is_noted(tmp_path):
    other = tmp_path / ".out.0123456789ab.partial"
    other.mkdir()
    (other / "journal").touch()
    (other / "settings.json").write_text("[")
    progress = fakes.StopAt(None)
    note_others(tmp_path / ".out.ffffffffffff.partial", tmp_path / "out", "settings.json", {}, "journal", progress)
    assert "with other settings (settings.json cannot be read)" in progress.said


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("checkpoint.pt", lambda _: b""),
        ("checkpoint.pt", lambda data: data[:10]),
        ("checkpoint.pt", lambda data: data[: len(data) // 2]),
        ("steps.csv", lambda data: data.replace(b"\n1,", b"\nx,")),
    ],
    ids=["empty", "ten bytes", "half", "a table"],
)
def test_a_cut_checkpoint_is_one_clear_message(tmp_path, train, name, cut):
    train(stop=2)
    path = partial_of(tmp_path) / name
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(ValueError, match="cannot resume from .*checkpoint.pt .*remove .*partial to start from step 0"):
        train()


def test_a_checkpoint_of_another_network_is_one_clear_message(tmp_path, train):
    train(stop=2)
    torch.save({"step": 1}, partial_of(tmp_path) / "checkpoint.pt")
    with pytest.raises(ValueError, match="cannot resume from"):
        train()


def test_a_run_resumes_with_its_image_cache_or_none_but_not_with_another(tmp_path, train, scenes):
    for name, size in (("one", 2), ("two", 3)):
        cache_images(scenes, "train", tmp_path / name, samples_per_shard=size)
    options = replace(OPTIONS, loss="truth-si")
    train(stop=1, options=options, images=open_images(tmp_path / "one"))
    with pytest.raises(ValueError, match="two is not the image cache that this run began with"):
        train(options=options, images=open_images(tmp_path / "two"))
    assert "resuming from step 1" in train(stop=2, options=options).said
    with pytest.raises(ValueError, match="two is not the image cache"):
        train(options=options, images=open_images(tmp_path / "two"))
    assert "resuming from step 2" in train(options=options, images=open_images(tmp_path / "one")).said


# --- out of memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_is_one_message_and_the_checkpoint_is_kept(train, monkeypatch, error):
    train(stop=2)

    def fails(*_):
        raise error

    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="out of memory on cpu at step 2 of 3"),
    ):
        patch.setattr("pipeline.train.optimizer.Optimizer.backward", fails)
        train()
    assert "resuming from step 2 of 3" in train().said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that", "--shm-size"),
        ("unable to open shared memory object </torch_1_2_3> in read-write mode: No such", "--shm-size"),
        ("unable to write to file </torch_1_2>: No space left on device (28)", "--shm-size"),
        ("Too many open files. Communication with the workers is no longer possible.", "ulimit -n"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "fewer `workers`"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "fewer `workers`"),
    ],
    ids=["bus error", "no object", "full", "handles", "killed", "exited"],
)
def test_a_loader_worker_that_died_is_one_message(monkeypatch, text, expected):
    batches = Batches([], EpochBatchSampler(4, 2, 0), 1, torch.device("cpu"))

    def fails(_):
        raise RuntimeError(text)

    monkeypatch.setattr(type(batches.loader), "__iter__", lambda loader: map(fails, [loader]))
    with pytest.raises(ValueError, match=f"a loader worker failed with `workers=1`: .*{expected}"):
        next(iter(batches))


def test_another_error_of_a_loader_worker_keeps_its_traceback(monkeypatch):
    batches = Batches([], EpochBatchSampler(4, 2, 0), 1, torch.device("cpu"))

    def fails(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(batches.loader), "__iter__", lambda _: iter(()))
    assert list(batches) == []
    monkeypatch.setattr(type(batches.loader), "__iter__", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        list(batches)
