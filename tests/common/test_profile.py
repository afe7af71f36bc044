"""A profile measures how long each part of a pipeline waited, and writes a trace."""

import json
import threading
import time

import pytest

from pipeline.common import profile as profiles
from pipeline.common.profile import Profile


def test_overlapping_spans_of_a_part_count_once():
    profile = Profile()
    both = threading.Barrier(2)

    def work():
        with profile.span("read"):
            both.wait()
            time.sleep(0.2)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    busy = 1 - profile.waiting()["read"]
    assert 0.5 < busy <= 1  # 0.2 s of a little more; counted twice it would be 0 waiting after 0.2 of 0.4 s
    time.sleep(0.3)
    assert profile.waiting()["read"] > 0.4


def test_the_trace_has_each_span_with_its_thread(tmp_path):
    profile = Profile(record=True)
    with profile.span("teacher"):
        time.sleep(0.01)

    def write():
        with profile.span("write"):
            pass

    worker = threading.Thread(target=write, name="write_0")
    worker.start()
    worker.join()
    profile.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    teacher, write = (event for event in events if event["ph"] == "X")
    assert (teacher["name"], write["name"]) == ("teacher", "write")
    assert teacher["dur"] >= 10_000  # microseconds
    assert write["ts"] >= teacher["ts"] + teacher["dur"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[write["tid"]] == "write_0"
    assert names[teacher["tid"]] != "write_0"


def test_memory_does_not_grow_with_the_number_of_spans(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "MAX_SPANS", 3)
    profile = Profile(record=True)
    for _ in range(5):
        with profile.span("read"):
            pass
    profile.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len([event for event in events if event["ph"] == "X"]) == 3


def test_a_part_that_raises_is_counted_too():
    profile = Profile()
    with pytest.raises(KeyError), profile.span("encode"):
        raise KeyError
    assert set(profile.waiting()) == {"encode"}
