"""Whatever goes wrong in a teacher's own environment ends in one clear error, and leaves no process behind."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import fakes
import pytest
import torch
from environments import ends_within, is_running, make_environment, numpy_alone
from tiny_stores import folder_bytes

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.errors import PipelineError
from pipeline.sources.registry import open_source
from pipeline.teachers.foreign import model, process
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

ROOT = Path(__file__).parents[2]
OPTIONS = CacheOptions(bins="nyu", sigma_m=0.2, samples_per_shard=2, batch_size=2)
MODULE = '''
import os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np


def fault(number):
    """Act out what the file `act` has, at a call of this number."""
    act, _, at = Path("act").read_text().partition(" ")
    if number != int(at or -1):
        return
    if act == "raise":
        def deeper():
            raise ValueError("no such luck " + 10000 * "x")
        deeper()
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if act == "exit":
        print("the last words")
        os._exit(3)
    if act == "leave":
        sys.exit("leaving")
    if act == "memory":
        raise MemoryError("out of memory, says the network")
    if act == "sleep":
        time.sleep(600)
    if act == "block":
        import ctypes
        ctypes.PyDLL(None).sleep(600)
    if act == "missing":
        import a_package_that_nobody_has


class Net:
    card = {"name": "net", "depth_space": "metric_m", "weights": []}

    def __init__(self):
        Path("pid").write_text(str(os.getpid()))
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path("child").write_text(str(child.pid))
        self.calls = 0
        fault(0)

    def __call__(self, images):
        print("a line among the answers")
        os.write(1, b"\\x00\\x00\\x00\\x02{}")
        self.calls += 1
        fault(self.calls)
        return images.mean(1) + np.float32(2)


class NotJson(Net):
    card = {"name": "net", "depth_space": "metric_m", "weights": [], "preprocessing": {"mean": object()}}


def not_callable():
    return 5
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An environment with numpy alone, which starts fast."""
    return make_environment(tmp_path_factory.mktemp("light") / "env", {}, links=numpy_alone())


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faulty.py").write_text(MODULE)
    (tmp_path / "act").write_text("none")
    return tmp_path


@pytest.fixture
def source(home):
    return open_source(f"scenes:{fakes.make_scenes_folder(home / 'scenes', 8, (16, 32))}")


def opened(python, factory="Net"):
    return open_teacher(
        f"python:faulty:{factory}", device=torch.device("cpu"), options=TeacherOptions(teacher_python=str(python))
    )


SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - listed, not used


@contextmanager
def refuses(*parts):
    """Raises one PipelineError with all parts in this order, in at most 4000 characters, and leaves nothing."""
    before = {*SHARED_MEMORY.glob("*")}
    with pytest.raises(PipelineError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts)) as caught:
        yield
    assert len(str(caught.value)) < 4000
    assert {*SHARED_MEMORY.glob("*")} <= before


def pids(home):
    return [int((home / name).read_text()) for name in ("pid", "child")]


# The interpreter


def test_a_python_that_is_missing_is_refused(home):
    with refuses(f"`teacher_python='{home}/bin/python'`", "expected the Python of an environment"):
        opened(home / "bin" / "python")


@pytest.mark.usefixtures("home")
def test_the_folder_of_an_environment_is_refused_with_its_python(python):
    with refuses("`teacher_python=", f"try {python}"):
        opened(Path(python).parents[1])


def test_a_file_that_cannot_run_is_refused(home):
    with refuses("`teacher_python=", "faulty.py` does not start (Permission denied)", "/path/to/env/bin/python"):
        opened(home / "faulty.py")


@pytest.mark.usefixtures("home")
def test_a_program_that_is_not_python_is_refused_with_what_it_printed():
    with refuses("/ls` ended with exit status 2", "give the Python of an environment", "cannot access"):
        opened("ls")


def test_an_environment_without_numpy_is_refused(home):
    with refuses("lacks numpy (No module named 'numpy')", "install it there"):
        opened(make_environment(home / "bare", {}, links={}))


# The user's code


def test_a_module_that_the_environment_lacks_is_named(home, python):
    (home / "faulty.py").write_text("import a_package_that_nobody_has")
    with refuses("module 'a_package_that_nobody_has' is neither in", home, "nor installed for", python, "install it"):
        opened(python)


@pytest.mark.parametrize(
    ("factory", "parts"),
    [
        ("Absent", ["faulty.py has no function 'Absent'", "for example"]),
        ("not_callable", ["the factory returned int '5'", "for example"]),
        ("NotJson", ["its card is not valid JSON", "object is not JSON serializable"]),
    ],
)
@pytest.mark.usefixtures("home")
def test_a_factory_that_makes_no_teacher_is_refused_as_in_this_process(python, factory, parts):
    with refuses("teacher python:faulty:" + factory, *parts):
        opened(python, factory)


@pytest.mark.parametrize(
    ("act", "parts"),
    [
        ("raise 0", ["its code raised ValueError: no such luck", "(faulty.py, line", "its traceback", "xxx"]),
        ("missing 0", ["raised ModuleNotFoundError: No module named 'a_package_that_nobody_has'", "import a_package"]),
        ("leave 0", ["its code raised SystemExit: leaving", "sys.exit"]),
        ("kill 0", ["ended with signal SIGKILL", "memory is full"]),
    ],
)
def test_a_factory_that_fails_is_quoted(home, python, act, parts):
    (home / "act").write_text(act)
    with refuses("teacher python:faulty:Net", *parts):
        opened(python)
    assert all(ends_within(pid, 5) for pid in pids(home))


# During a run. Calls 1 and 2 test the teacher; 3 to 6 are batches, one for each shard.

FAULTS = [
    ("raise 5", ["its code raised ValueError: no such luck", "faulty.py, line"]),
    ("kill 5", ["its process", "ended with signal SIGKILL", "smaller `batch_size`", "the same command resumes"]),
    ("exit 5", ["ended with exit status 3", "resumes the run; it printed last:", "the last words"]),
    ("stop 5", ["no sign of life for 3 s", "the same command resumes"]),
    ("block 5", ["no sign of life for 3 s", "C code in it blocks all threads"]),
    ("memory 5", ["out of memory (out of memory, says the network)", "`batch_size`", "2 of 4 shards"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("act", "parts"), FAULTS, ids=[act for act, _ in FAULTS])
def test_a_run_that_fails_is_resumed(home, source, python, monkeypatch, act, parts):
    cache_teacher(source, "all", opened(python), home / "whole.zarr", OPTIONS)
    (home / "act").write_text(act)
    monkeypatch.setattr(process, "SILENT_S", 3)
    with refuses(*parts):
        cache_teacher(source, "all", opened(python), home / "s.zarr", OPTIONS)
    gc.collect()  # frames of the error hold the teacher
    assert all(ends_within(pid, 5) for pid in pids(home))
    assert not is_running(pids(home)[0])  # not even as a zombie
    (home / "act").write_text("none")
    assert cache_teacher(source, "all", opened(python), home / "s.zarr", OPTIONS).samples_before == 4
    assert folder_bytes(home / "s.zarr") == folder_bytes(home / "whole.zarr")


@pytest.mark.usefixtures("home")
def test_a_call_that_takes_too_long_is_ended(home, python, monkeypatch):
    teacher = opened(python)
    (home / "act").write_text("sleep 1")
    monkeypatch.setattr(process, "CALL_S", 2.5)
    monkeypatch.setattr(process, "SILENT_S", 2)  # it gives signs of life
    with refuses("works on one call for more than 0.0417 minutes", "`batch_size`"):
        teacher.predict(torch.zeros(2, 3, 8, 10), ["a", "b"])
    with refuses("its process", "has ended; open the teacher again"):
        teacher.predict(torch.zeros(2, 3, 8, 10), ["a", "b"])


@pytest.mark.usefixtures("home")
def test_more_than_the_allowed_bytes_are_refused_before_they_are_copied(python, monkeypatch):
    monkeypatch.setattr(model, "LIMIT_BYTES", 2**10)
    with refuses("returned more than 9.54e-07 GiB for one batch", "`batch_size`"):
        opened(python).predict(torch.zeros(2, 3, 80, 10), ["a", "b"])


# The end of this process


def test_a_teacher_that_is_freed_ends_its_process(home, python):
    teacher = opened(python)
    assert all(is_running(pid) for pid in pids(home))
    del teacher
    assert all(ends_within(pid, 5) for pid in pids(home))


def started(home, python):
    """Start a command whose teacher hangs in its first batch, in C code that blocks all threads."""
    (home / "act").write_text("block 3")
    words = ["--source", "scenes:scenes", "--split", "all", "--bins", "nyu", "--sigma-m", "0.2", "--out", "s.zarr"]
    words += ["--teacher", "python:faulty:Net", "--teacher-python", python, "--batch-size", "2", "--device", "cpu"]
    command = subprocess.Popen(
        [sys.executable, "-m", "tiekd_pipeline", "cache-teacher", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in command.stderr:
        if line.count("a line among the answers"):
            break
    time.sleep(1.5)
    return command


@pytest.mark.slow
@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_process_ends_with_this_one(home, python, number):
    command = started(home, python)
    command.send_signal(number)
    begin = time.monotonic()
    assert command.wait(20) == (130 if number == signal.SIGINT else -number)
    assert all(ends_within(pid, 5) for pid in pids(home))
    assert time.monotonic() - begin < 8
    assert "Traceback" not in command.stderr.read()
