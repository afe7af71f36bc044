"""Reading, the teacher, encoding and writing overlap, and a fault in one loses nothing of the others."""

import dataclasses
import json
import re
import threading
import time
from pathlib import Path

import fakes
import pytest
from click.testing import CliRunner
from tiny_stores import folder_bytes

from pipeline.cache import encoder, shard_worker
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main


class SlowTeacher(fakes.FakeTeacher):
    """Notes when it works, and takes a while without the processor."""

    def __init__(self):
        super().__init__()
        self.begun_s, self.ended_s = [], []

    def predict(self, images, ids):
        self.begun_s.append(time.monotonic())
        time.sleep(0.1)
        output = super().predict(images, ids)
        self.ended_s.append(time.monotonic())
        return output


def test_the_teacher_gets_its_next_batch_before_its_last_answer_is_encoded(tmp_path, scenes, monkeypatch):
    encode = encoder.encode_sample

    def slow(*arguments):
        time.sleep(0.1)
        return encode(*arguments)

    monkeypatch.setattr(encoder, "encode_sample", slow)
    teacher, options = SlowTeacher(), CacheOptions(samples_per_shard=2, batch_size=2, workers=2, accept_noise=True)
    cache_teacher(scenes, "all", teacher, tmp_path / "s.zarr", dataclasses.replace(options, bins="nyu", sigma_m=0.2))
    gaps_s = [begun - ended for begun, ended in zip(teacher.begun_s[1:], teacher.ended_s, strict=False)]
    assert len(gaps_s) == 3
    assert min(gaps_s) < 0.05  # one after another, each gap has the 0.1 s that encoding takes


def test_a_teacher_faster_than_the_encoder_waits_for_it(tmp_path, scenes, monkeypatch):
    encode, release = encoder.encode_sample, threading.Event()

    def held(*arguments):
        assert release.wait(30)
        return encode(*arguments)

    monkeypatch.setattr(encoder, "encode_sample", held)
    teacher = SlowTeacher()
    options = CacheOptions(samples_per_shard=8, batch_size=1, bins="nyu", sigma_m=0.2, accept_noise=True)
    run = threading.Thread(target=cache_teacher, args=(scenes, "all", teacher, tmp_path / "s.zarr", options))
    run.start()
    time.sleep(1.5)
    shown = len(teacher.ended_s)
    release.set()
    run.join()
    assert shown <= 1 + shard_worker.ENCODING + shard_worker.IN_FLIGHT  # of 8; their maps would all be in memory
    assert len(teacher.ended_s) == 8


def test_a_batch_that_failed_ends_the_run_before_the_batch_behind_it(tmp_path, scenes):
    teacher = fakes.FailingTeacher(2, ValueError("gave out"))
    with pytest.raises(ValueError, match="gave out"):
        cache_teacher(scenes, "all", teacher, tmp_path / "s.zarr", CacheOptions(samples_per_shard=3, batch_size=2))
    assert teacher.left == -1  # not asked again


def test_a_shard_is_kept_whose_last_batch_was_in_flight_when_the_next_image_failed(tmp_path, scenes, teacher_store):
    path = Path(scenes.samples("all")[3].image_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    options = CacheOptions(samples_per_shard=3, batch_size=3)
    with pytest.raises(ValueError, match=path.name):
        cache_teacher(scenes, "all", fakes.FailingTeacher(9), tmp_path / "s.zarr", options)
    path.write_bytes(whole)
    done = cache_teacher(scenes, "all", fakes.FailingTeacher(9), tmp_path / "s.zarr", options)
    assert done.samples_before == 3
    assert folder_bytes(tmp_path / "s.zarr") == folder_bytes(teacher_store)


def test_the_command_writes_a_profile_and_says_what_waited(tmp_path):
    scenes = fakes.make_scenes_folder(tmp_path / "scenes", 6, (16, 32))
    command = ["cache-teacher", "--source", f"scenes:{scenes}", "--split", "all", "--teacher", "python:fakes:factory"]
    command += ["--bins", "nyu", "--sigma-m", "0.2", "--out", str(tmp_path / "s.zarr")]
    profile = ["--profile", str(tmp_path / "trace.json")]
    refused = CliRunner().invoke(main, [*command, *profile, "--scheduler", "local:2"])
    assert (refused.exit_code, "leave it or --scheduler out" in refused.output) == (2, True)
    done = CliRunner().invoke(main, [*command, *profile])
    assert done.exit_code == 0, done.output
    assert re.search(r"each part waited: .*teacher \d+%", done.output)
    names = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert names >= {"read", "stack", "teacher", "encode", "write"}
