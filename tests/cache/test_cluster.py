"""Many workers make the store of one process, though they are killed, come late, or have other packages."""

import os
import random
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch
from click.testing import CliRunner
from distributed import LocalCluster
from tiny_stores import folder_bytes

from pipeline.cache import cluster_worker
from pipeline.cache.cluster import cluster_of
from pipeline.cache.cluster_worker import (
    ClusterWorker,
    PlanMismatch,
    StoreTarget,
    WorkerConfig,
    WorkerError,
    check_shared,
)
from pipeline.cache.flips import cache_with_flips, make_both, mirrored_path
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.cache_teacher import cache_teacher as command
from pipeline.common.progress import Silent
from pipeline.errors import PipelineError
from pipeline.sources.registry import open_source
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

FRAMES = 24
OPTIONS = CacheOptions(samples_per_shard=2, batch_size=2, workers=1)
MODULE = f"""
import sys, time
sys.path.append({str(Path(fakes.__file__).parent)!r})
import fakes


class Slow(fakes.FakeTeacher):
    def __call__(self, images):
        time.sleep(0.1)
        return super().__call__(images)


def slow():
    return Slow(scale=2, with_dpm=True, name="fake-dpm")

"""


def as_here():
    """The teacher of the module in the current folder, opened by this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        return open_teacher("python:teachers_of_a_test:slow", device=torch.device("cpu"), options=TeacherOptions())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with `scenes`, a module of teachers, and `one.zarr` of a single process."""
    home = tmp_path_factory.mktemp("cluster")
    source = open_source(f"scenes:{fakes.make_scenes_folder(home / 'scenes', FRAMES, (16, 32))}")
    (home / "teachers_of_a_test.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        cache_teacher(source, "all", as_here(), home / "one.zarr", OPTIONS)
    return home


@contextmanager
def two_workers():
    """Two worker processes that somebody else has started."""
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0", silence_logs=50) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def scheduler():
    with two_workers() as cluster:
        yield cluster


@pytest.fixture
def doomed():
    """A cluster of its own: on a busy machine, not every worker that is killed starts again."""
    with two_workers() as cluster:
        yield cluster


def config(home, factory="slow"):
    """Written as somebody in `home` would."""
    teacher = f"python:teachers_of_a_test:{factory}"
    return WorkerConfig("scenes:scenes", "all", teacher, TeacherOptions(), "cpu", str(home), torch.get_num_threads())


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)


class Watch:
    """Progress that does something as shards come, counts their images, and keeps what was said."""

    def __init__(self, act=lambda _: None):
        self.act, self.done, self.facts, self.said = act, 0, {}, []

    def task(self, title, total, unit, done=0):
        return self if unit == "img" else Silent().task(title, total, unit)

    def note(self, text):
        self.said.append(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self, done=1, **facts):
        self.done, self.facts = self.done + done, facts
        self.act(self.done)


@pytest.mark.slow
def test_a_store_has_the_bytes_of_one_process_though_workers_are_killed_and_one_comes_late(home, doomed):
    chance, killed, stop = random.Random(3), [], threading.Event()  # noqa: S311 - nothing is secret here

    def kill():
        while len(killed) < 3 and not stop.wait(chance.uniform(0.1, 0.6)):
            pids = [one.pid for one in doomed.workers.values() if one.pid and one.pid not in killed]
            if pids:
                killed.append(chance.choice(pids))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    watch = Watch(lambda done: doomed.scale(3) if done >= FRAMES // 2 else None)
    with cluster_of(doomed.scheduler_address, config(home)) as cluster:
        cluster.plan(OPTIONS)
        killer.start()
        done = cluster.cache(home / "many.zarr", OPTIONS, watch)
        stop.set()
        killer.join()
    assert len(killed) >= 2
    assert folder_bytes(home / "many.zarr") == folder_bytes(home / "one.zarr")
    assert (done.samples, done.samples_before, watch.done) == (FRAMES, 0, FRAMES)
    assert watch.facts.keys() == {"workers", "kb_each", "waits_for"}
    assert watch.facts["waits_for"].keys() == {"reading", "teacher", "encoding", "writing"}
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_a_fault_on_one_image_is_one_message_keeps_what_is_finished_and_one_process_goes_on(home, scheduler, tmp_path):
    fakes.make_scenes_folder(tmp_path / "scenes", FRAMES, (16, 32))
    path = tmp_path / "scenes" / "rgb" / "000021.png"
    sound = path.read_bytes()
    path.write_bytes(sound[:200])
    target = tmp_path / "s.zarr"
    asked = replace(config(home), source_name=f"scenes:{tmp_path / 'scenes'}")
    with (
        cluster_of(scheduler.scheduler_address, asked) as cluster,
        pytest.raises(ValueError, match=r"000021.png: does not decode") as told,
    ):
        cluster.cache(target, OPTIONS)
    assert "Traceback" not in str(told.value)
    assert not target.exists()
    path.write_bytes(sound)
    source = open_source(asked.source_name)
    done = cache_teacher(source, "all", as_here(), target, OPTIONS)
    assert done.samples_before >= 2
    assert folder_bytes(target) == folder_bytes(home / "one.zarr")


@pytest.mark.slow
def test_what_one_process_began_a_cluster_goes_on_with(home, scheduler, tmp_path):
    target = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(open_source("scenes:scenes"), "all", as_here(), target, OPTIONS, fakes.StopAt(12))
    flags = ["--source", "scenes:scenes", "--split", "all", "--teacher", "python:teachers_of_a_test:slow"]
    flags += ["--samples-per-shard", "2", "--batch-size", "2", "--workers", "1", "--out", str(target)]
    done = CliRunner().invoke(command, [*flags, "--device", "cpu", "--scheduler", scheduler.scheduler_address])
    assert done.exit_code == 0, done.output
    assert re.search(f"resuming: 1[02] of {FRAMES} samples", done.output)
    assert folder_bytes(target) == folder_bytes(home / "one.zarr")


@pytest.mark.slow
def test_local_workers_ask_about_mirrored_images_too(home, tmp_path):
    options = replace(OPTIONS, samples_per_shard=8, batch_size=8)
    with cluster_of("local:1", config(home)) as cluster:
        make_both(cluster, tmp_path / "many.zarr", options)
    source, teacher = open_source("scenes:scenes"), as_here()
    cache_with_flips(source, "all", teacher, tmp_path / "one.zarr", options)
    for place in (lambda path: path, mirrored_path):
        assert folder_bytes(place(tmp_path / "many.zarr")) == folder_bytes(place(tmp_path / "one.zarr"))


@pytest.mark.slow
def test_local_workers_that_all_end_and_stay_away_are_told(home, monkeypatch):
    monkeypatch.setattr("pipeline.cache.cluster.NOTE_AFTER_S", 0.2)
    monkeypatch.setattr("pipeline.cache.cluster.LOCAL_WORKERS_WITHIN_S", 0.5)
    with cluster_of("local:1", config(home)) as cluster:
        cluster.client.cluster.scale(0)
        while cluster.workers():
            time.sleep(0.05)
        with pytest.raises(PipelineError, match="all local workers have ended, and none has started again"):
            cluster.plan(OPTIONS)


# --- without a cluster -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["local:0", "local:", "local:two"])
def test_a_number_of_local_workers_that_is_none_is_told(home, scheduler):
    with (
        pytest.raises(ValueError, match=rf"`scheduler={scheduler!r}`: expected local:N"),
        cluster_of(scheduler, config(home)),
    ):
        pass


def test_an_address_where_no_scheduler_answers_is_told(home, monkeypatch):
    monkeypatch.setattr("pipeline.cache.cluster.CONNECT_WITHIN_S", 0.2)
    with (
        pytest.raises(ValueError, match=r"`scheduler=tcp://127.0.0.1:9`: no scheduler answers there"),
        cluster_of("tcp://127.0.0.1:9", config(home)),
    ):
        pass


def test_a_worker_that_does_not_share_the_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_worker, "VISIBLE_WITHIN_S", 0.3)
    (tmp_path / cluster_worker.MARKER_FILE).write_text("another")
    with pytest.raises(ValueError, match=r"a worker on \S+ does not see the files in .*choose an `out` on one"):
        check_shared(tmp_path, "token")


def test_a_worker_waits_a_little_for_a_disk_of_the_network(tmp_path):
    late = threading.Timer(0.3, lambda: (tmp_path / cluster_worker.MARKER_FILE).write_text("token"))
    late.start()
    begin = time.monotonic()
    check_shared(tmp_path, "token")
    assert time.monotonic() - begin >= 0.2


def worker_of(home, tmp_path, monkeypatch):
    """A worker of this process, and the place where it is to make the store."""
    monkeypatch.setattr(cluster_worker, "open_teacher", lambda *_, **__: fakes.factory_with_dpm())
    (tmp_path / cluster_worker.MARKER_FILE).write_text("token")
    (tmp_path / cluster_worker.PARTS_FOLDER).mkdir()
    worker = ClusterWorker(config(home))
    return worker, StoreTarget(str(tmp_path), "token", worker.plan(OPTIONS).spec.digest(), OPTIONS)


def test_a_worker_writes_a_shard_into_a_folder_of_its_own_twice_alike(home, tmp_path, monkeypatch):
    worker, place = worker_of(home, tmp_path, monkeypatch)
    once, again = worker.make(place, 3), worker.make(place, 3)
    worker.close()
    assert once.folder != again.folder
    assert once.record == again.record
    assert folder_bytes(tmp_path / once.folder) == folder_bytes(tmp_path / again.folder)
    whole = folder_bytes(home / "one.zarr")
    assert folder_bytes(tmp_path / once.folder).items() <= whole.items()


def test_a_worker_with_other_packages_makes_nothing_and_says_what_differs(home, tmp_path, monkeypatch):
    from pipeline.cache.cluster import _other_store

    worker, place = worker_of(home, tmp_path, monkeypatch)
    spec = worker.plan(OPTIONS).spec
    planned = replace(spec, producer={**spec.producer, "numcodecs": "0.1"})
    answer = worker.make(place._replace(digest=planned.digest()), 0)
    worker.close()
    assert isinstance(answer, PlanMismatch)
    assert list((tmp_path / cluster_worker.PARTS_FOLDER).iterdir()) == []
    match = (
        rf"would write a different store \(producer.numcodecs is {spec.producer['numcodecs']} there and 0.1 elsewhere"
    )
    with pytest.raises(ValueError, match=match):
        raise _other_store(planned, answer)


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (PipelineError("depth is none"), PipelineError, "depth is none"),
        (OSError(28, "No space left on device", "x"), OSError, "[Errno 28] No space left on device: 'x'"),
        (ModuleNotFoundError("No module named 'x'"), RuntimeError, "ModuleNotFoundError: No module named 'x'"),
        (ZeroDivisionError("by zero"), RuntimeError, "ZeroDivisionError: by zero"),
    ],
)
def test_a_fault_of_a_worker_is_raised_as_it_was(raised, kind, text):
    def fail():
        raise raised

    told = cluster_worker._error_as_value(fail).error()
    assert (type(told), str(told)) == (kind, text)
    assert "Traceback" in told.__notes__[0]


def test_a_teacher_that_does_not_open_is_told_by_the_worker(home):
    answer = ClusterWorker(config(home, "absent")).plan(OPTIONS)
    assert isinstance(answer, WorkerError)
    assert "has no function 'absent'" in answer.message
