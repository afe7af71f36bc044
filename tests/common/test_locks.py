"""One writer per target, also on a file system without locks."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading

import fakes
import pytest
from tiny_stores import make_spec, write_shards

from pipeline.common import locks
from pipeline.common.locks import TargetLock
from pipeline.store import open_store
from pipeline.store.tools.archive import pack_store
from pipeline.store.write.writer import StoreWriter
from pipeline.train.options import TrainOptions
from pipeline.train.run import Interrupted, train_network


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def without_flock(request, monkeypatch):
    """A file system without locks."""

    def flock(*_):
        code = getattr(errno, request.param)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_second_writer_is_refused_with_the_first_ones_process(tmp_path):
    with (
        TargetLock(tmp_path / "s"),
        pytest.raises(ValueError, match=f"s is being written by process {os.getpid()} on .*: wait for it"),
    ):
        TargetLock(tmp_path / "s").__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_file_is_the_lock_with_a_note(tmp_path):
    with TargetLock(tmp_path / "s") as lock:
        assert lock.note.startswith(f"the file system of {tmp_path} has no locks (")
        with pytest.raises(
            ValueError, match=f"process {os.getpid()} on .* without flock .if that process is gone, rem"
        ):
            TargetLock(tmp_path / "s").__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_lock_of_a_killed_process_of_this_host_is_taken_over(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".s.lock").write_text(f"process {ended.pid} on {locks._here()} without flock\n")
    with TargetLock(tmp_path / "s"):
        assert f"process {os.getpid()} " in (tmp_path / ".s.lock").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_lock_of_another_host_is_never_taken_over(tmp_path):
    (tmp_path / ".s.lock").write_text("process 1 on elsewhere without flock\n")
    with pytest.raises(
        ValueError, match="process 1 on elsewhere without flock .if that process is gone, remove .*s.lock"
    ):
        TargetLock(tmp_path / "s").__enter__()


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_without_flock_an_old_empty_lock_file_is_taken_over(tmp_path, old):
    path = tmp_path / ".s.lock"
    path.touch()
    if old:
        os.utime(path, (1, 1))
        with TargetLock(tmp_path / "s"):
            pass
    else:
        with pytest.raises(ValueError, match="is being written by another process"):
            TargetLock(tmp_path / "s").__enter__()


def test_a_process_with_flock_respects_a_lock_without_flock(tmp_path):
    path = tmp_path / ".s.lock"
    path.write_text("process 1 on elsewhere without flock\n")
    with pytest.raises(ValueError, match="elsewhere"):
        TargetLock(tmp_path / "s").__enter__()
    path.write_text(f"process 1 on {socket.gethostname()}\n")  # as a killed process with flock leaves it
    with TargetLock(tmp_path / "s"):
        pass


@pytest.mark.usefixtures("without_flock")
def test_without_flock_one_thread_at_a_time_has_the_lock(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    inside, most, refused = [], [], []

    def work():
        for _ in range(40):
            try:
                with TargetLock(tmp_path / "s"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except ValueError:
                refused.append(1)

    (tmp_path / ".s.lock").write_text(f"process {ended.pid} on {locks._here()} without flock\n")
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


@pytest.mark.usefixtures("without_flock")
def test_without_flock_stores_are_written_and_packed(tmp_path):
    spec, ids = make_spec()
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        assert "has no locks" in writer.notes[0]
        write_shards(writer, writer.todo)
        writer.finish()
    pack_store(tmp_path / "s.zarr", tmp_path / "p.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.zarr", "s.zarr"]


def test_a_second_run_to_the_same_target_is_refused(tmp_path, scenes, teacher_store):
    options = TrainOptions(student="lean", epochs=1, batch_size=2)

    class Second(fakes.StopAt):
        """Starts the same run again while the first is running."""

        def task(self, *arguments, **more):
            with pytest.raises(ValueError, match="run is being written by process"):
                train_network(scenes, "train", tmp_path / "run", options, store=open_store(teacher_store))
            return super().task(*arguments, **more)

    train_network(scenes, "train", tmp_path / "run", options, store=open_store(teacher_store), progress=Second(None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "scenes", "teacher.zarr"]


# --- other training data ----------------------------------------------------------------------------------------------


def test_a_run_is_not_resumed_with_a_store_of_other_content(tmp_path, scenes, monkeypatch):
    from pipeline.cache.plan import CacheOptions
    from pipeline.cache.run import cache_teacher

    cached = CacheOptions(samples_per_shard=3, batch_size=2)
    options = TrainOptions(student="lean", epochs=1, batch_size=2)
    path = tmp_path / "t.zarr"
    cache_teacher(scenes, "all", fakes.FakeTeacher(), path, cached)
    first = open_store(path)
    with pytest.raises(Interrupted):
        train_network(scenes, "train", tmp_path / "run", options, store=first, progress=fakes.StopAt(1))
    path.rename(tmp_path / "old.zarr")
    monkeypatch.setattr(fakes, "BLACK_M", 11.0)  # the teacher's code changed: same specification, other depth
    cache_teacher(scenes, "all", fakes.FakeTeacher(), path, cached)
    second = open_store(path)
    assert first.spec.digest() == second.spec.digest()
    progress = fakes.StopAt(None)
    train_network(scenes, "train", tmp_path / "run", options, store=second, progress=progress)
    assert progress.done == 3
    assert "other settings (store.manifest_sha256: " in progress.said


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_process(tmp_path):
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from pipeline.common.locks import TargetLock\n"
        "TargetLock(Path(sys.argv[1])).__enter__()\n"
        "if os.fork():\n"
        "    os.kill(os.getpid(), 9)\n"
        "os.close(1)\n"
        "time.sleep(60)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, tmp_path / "s"], start_new_session=True)
    try:
        assert killed.wait(60) == -9
        with TargetLock(tmp_path / "s"):
            pass
    finally:
        os.killpg(killed.pid, 9)
