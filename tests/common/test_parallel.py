"""Number of threads, also on a system without CPU affinity; peak memory."""

import os

import pytest
import torch

from pipeline.common.device import peak_memory_bytes
from pipeline.common.parallel import MAX_THREADS, cores, worker_threads


def test_threads_follow_the_cores_that_a_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert cores() == worker_threads() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert worker_threads() == MAX_THREADS
    assert worker_threads(20) == 20


def test_without_affinity_as_on_macos_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cores() == worker_threads() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


@pytest.mark.parametrize(("platform", "unit_bytes"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_the_unit_of_the_system(monkeypatch, platform, unit_bytes):
    class Usage:
        ru_maxrss = 7000

    monkeypatch.setattr("pipeline.common.device.sys.platform", platform)
    monkeypatch.setattr("pipeline.common.device.resource.getrusage", lambda _: Usage)
    assert peak_memory_bytes(torch.device("cpu")) == 7000 * unit_bytes


@pytest.mark.parametrize("name", ["TIEKD_PROCESSES", "LOCAL_WORLD_SIZE"])
def test_processes_of_one_run_share_the_cores(monkeypatch, name):
    monkeypatch.setattr("pipeline.common.parallel.cores", lambda: 12)
    for processes, threads in [("1", 8), ("4", 3), ("64", 1), ("many", 8)]:
        monkeypatch.setenv(name, processes)
        assert worker_threads() == threads
    assert worker_threads(20) == 20
