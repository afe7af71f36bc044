"""Never torn: kill, power loss, a full, shrunken or read-only disk, and two writers; each time the same bytes."""

import dataclasses
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import fakes
import numpy as np
import pytest
from tiny_stores import folder_bytes, make_spec, make_store, write_shards

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.common.locks import TargetLock
from pipeline.common.progress import Silent
from pipeline.store.write import lock
from pipeline.store.write.journal import Journal
from pipeline.store.write.writer import StoreWriter

HERE = Path(__file__).parents[1]
OPTIONS = CacheOptions(samples_per_shard=1, batch_size=1, bins="nyu", workers=1)


def script(name, *arguments):
    """Run one of the scripts that maintainers run with larger numbers."""
    # In memory, where a sync costs nothing: the disk of a shared machine may take a second over one.
    place = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}  # noqa: S108 - a folder of its own in it
    command = [sys.executable, HERE / "faults" / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | place)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_comes_to_the_same_bytes():
    assert "25 of 25 kills survived, 4 workers" in script("kill.py", "--kills", "25", "--workers", "4")


@pytest.mark.slow
def test_a_run_that_loses_power_anywhere_comes_to_the_same_bytes():
    found = re.findall(r"(\w+): (\d+) of (\d+) prefixes survived", script("power_loss.py", "--every", "9"))
    assert [mode for mode, _, _ in found] == ["synced", "issued", "mixed"]
    assert all(survived == tried and int(tried) > 50 for _, survived, tried in found)


@pytest.mark.slow
def test_planted_links_lacking_locks_and_a_store_made_again_harm_nothing():
    found = re.findall(r"^(\d+) of (\d+) ", script("planted.py", "--runs", "1"), re.MULTILINE)
    assert len(found) == 3
    assert all(good == tried and int(tried) > 0 for good, tried in found)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [(), ("--handles", "256")], ids=["usual", "256-handles"])
def test_a_store_that_changes_on_its_server_is_never_read_wrong(limit):
    *_, last = script("url_cache.py", "--rounds", "28", *limit).splitlines()
    rounds, reads, right, changed, damaged, before, contact, wrong = map(int, last.split()[1:])
    assert (rounds, wrong) == (28, 0)
    assert changed > 0
    assert reads == right + changed + damaged + before + contact


@pytest.mark.slow
def test_damage_is_found_with_few_open_files():
    last = script("flip.py", "--flips", "60", "--samples", "9", "--handles", "128").splitlines()[-1]
    found, made = re.search(r"whole store +(\d+) / (\d+)", last).groups()
    assert found == made
    assert re.search(r"\d+ / \d+ +(\d+) +\d+", last)


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_run_left_that_was_killed_after_it_named_its_store_goes_with_the_next_run(tmp_path):
    target = make_store(tmp_path / "s.zarr")
    spec, ids = make_spec()
    staging = StoreWriter(target, spec, ids).staging
    staging.mkdir()
    (staging / "journal").write_bytes(b"")
    (tmp_path / ".s.zarr.lock").touch()
    whole = folder_bytes(target)
    with (
        pytest.raises(ValueError, match="s.zarr already exists; refusing to overwrite"),
        StoreWriter(target, spec, ids),
    ):
        pass
    assert listed(tmp_path) == ["s.zarr"]
    assert folder_bytes(target) == whole


def test_a_staging_without_a_store_is_removed_and_told_to_nobody_and_one_with_shards_stays(tmp_path):
    spec, ids = make_spec()
    other, _ = make_spec(view="kb")
    with StoreWriter(tmp_path / "s.zarr", other, ids) as unfinished:
        write_shards(unfinished, [0])
    empty = tmp_path / ".s.zarr.0123456789ab.staging"
    empty.mkdir()
    (empty / "journal").touch()
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        assert writer.other_stagings() == [unfinished.staging]
    assert listed(tmp_path) == sorted([unfinished.staging.name, writer.staging.name])


def test_a_staging_of_a_target_with_a_longer_name_is_left_alone(tmp_path):
    longer = tmp_path / ".s.zarr.b.zarr.0123456789ab.staging"
    longer.mkdir()
    make_store(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="exists"):
        make_store(tmp_path / "s.zarr")
    assert listed(tmp_path) == [longer.name, "s.zarr"]


def test_what_a_run_left_that_finished_no_shard_goes_with_the_next_run_and_is_told_to_nobody(tmp_path):
    spec, ids = make_spec()
    with StoreWriter(tmp_path / "s.zarr", make_spec(view="kb")[0], ids) as failed:
        pass
    assert listed(tmp_path) == [failed.staging.name]
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        assert writer.other_stagings() == []
        write_shards(writer, writer.todo)
        writer.finish()
    assert listed(tmp_path) == ["s.zarr"]


# --- writers ---------------------------------------------------------------------------------------------------------


class Interrupted(fakes.FakeTeacher):
    """Stops after some batches; `then` is called before."""

    def __init__(self, batches, then=lambda: None, name="fake"):
        super().__init__(name=name)
        self.left, self.then = fakes.PROBED + batches, then

    def predict(self, images, ids):
        self.left -= 1
        if self.left < 0:
            self.then()
            raise KeyboardInterrupt
        return super().predict(images, ids)


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def test_a_second_run_while_the_first_teaches_is_refused_and_the_first_goes_on(tmp_path, scenes):
    target = tmp_path / "out" / "s.zarr"

    def second():
        for teacher in (fakes.FakeTeacher(), fakes.FakeTeacher(name="other")):
            with pytest.raises(ValueError, match=rf"is being written by process {os.getpid()} on .*: wait for it"):
                cache_teacher(scenes, "all", teacher, target, OPTIONS)
        assert len(lock.stagings(target)) == 1

    with pytest.raises(KeyboardInterrupt):
        cache_teacher(scenes, "all", Interrupted(3, second), target, OPTIONS)
    assert cache_teacher(scenes, "all", fakes.FakeTeacher(), target, OPTIONS).samples_before == 3


def test_a_store_that_another_writer_finishes_before_the_lock_is_had_is_not_written_over(tmp_path, monkeypatch):
    spec, ids = make_spec()
    real = TargetLock.__enter__

    def late(self):
        monkeypatch.setattr(TargetLock, "__enter__", real)
        make_store(tmp_path / "s.zarr")
        return real(self)

    monkeypatch.setattr(TargetLock, "__enter__", late)
    with pytest.raises(ValueError, match="s.zarr already exists"), StoreWriter(tmp_path / "s.zarr", spec, ids):
        pass
    assert listed(tmp_path) == ["s.zarr"]


def test_a_teacher_with_other_weights_starts_anew_and_is_told_of_the_unfinished_store(tmp_path, scenes):
    target = tmp_path / "out" / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(scenes, "all", Interrupted(3), target, OPTIONS)
    teacher, notes = fakes.FakeTeacher(), Notes()
    teacher.card = dataclasses.replace(teacher.card, weights_sha256="1" * 64)
    assert cache_teacher(scenes, "all", teacher, target, OPTIONS, notes).samples_before == 0
    (note,) = [said for said in notes.said if "unfinished" in said]
    assert re.search(r"\.s\.zarr\.\w{12}\.staging is an unfinished store with other settings and \d of \d", note)
    assert "teacher.weights_sha256 is 000" in note
    assert note.endswith("remove it if you do not need it")
    cache_teacher(scenes, "all", teacher, tmp_path / "alone.zarr", OPTIONS)
    assert folder_bytes(target) == folder_bytes(tmp_path / "alone.zarr")


@pytest.mark.parametrize("change", [{"max_rel_error": 1e-3}, {"depth_range_m": (0.5, 80.0)}, {"dpm": "dense"}])
def test_a_changed_codec_starts_anew(tmp_path, scenes, change):
    class Maps(Interrupted):
        def __init__(self):
            super().__init__(3)
            self.bin_edges_m = np.linspace(0, fakes.BLACK_M, 17)

    target, options = tmp_path / "s.zarr", dataclasses.replace(OPTIONS, bins=None)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(scenes, "all", Maps(), target, options)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(scenes, "all", Maps(), target, dataclasses.replace(options, **change))
    journals = [Journal(path / "journal").read() for path in lock.stagings(target)]
    assert [sorted(journal) for journal in journals] == [[0, 1, 2], [0, 1, 2]]


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 KB: its folder, and a way to mount it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.strip()}")

    def remount(options):
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    yield folder, remount
    subprocess.run(["umount", folder], check=True)


def make_images(root, flat):
    """A folder of 12 images; the maps of the first `flat` are small, those of the others 24 KB of noise."""
    random = np.random.default_rng(0)
    for number in range(12):
        noise = random.integers(0, 255, (96, 160, 3), np.uint8)
        even = np.full_like(noise, 99)
        even[0, 0] = 0  # depth of one constant is refused
        fakes.write_image(root / "rgb" / f"{number:02d}.png", even if number < flat else noise)
    (root / "all.txt").write_text("".join(f"{number:02d}\n" for number in range(12)))
    return root


def cached(root, out):
    """Run `cache-teacher` as a process over a folder of images."""
    code = "from pipeline.cli.main import main; main()"
    flags = ["--source", f"folder:{root}", "--split", root / "all.txt", "--teacher", "python:fakes:factory"]
    flags += ["--bins", "nyu", "--sigma-m", "0.5", "--samples-per-shard", "1", "--batch-size", "1", "--device", "cpu"]
    command = [sys.executable, "-c", code, "cache-teacher", *flags, "--workers", "1", "--out", out]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(HERE / "support")}
    )


def refused(message, done):
    """A command failed with one message on one line, after its progress bar."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert re.search(message, told), told


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_what_is_finished_and_with_more_room_it_comes_to_the_same_bytes(
    tmp_path, small_disk
):
    disk, remount = small_disk
    images = make_images(tmp_path / "images", flat=3)
    safe = r"s.zarr is full \(No space left on device\): {} of 12 shards are safe in .*free space and run the same"
    refused(safe.format(r"[4-9]"), cached(images, disk / "s.zarr"))
    assert len(lock.stagings(disk / "s.zarr")) == 1
    remount("size=280k")  # enough for the shards, not for rows and metadata
    refused(safe.format("12"), cached(images, disk / "s.zarr"))
    remount("size=2m")
    done = cached(images, disk / "s.zarr")
    assert "resuming: 12 of 12 samples" in done.stderr
    cached(images, tmp_path / "s.zarr")
    assert folder_bytes(disk / "s.zarr") == folder_bytes(tmp_path / "s.zarr")
    assert listed(disk) == ["s.zarr"]


def test_a_store_that_will_not_fit_on_a_disk_is_refused_with_what_it_takes_and_what_there_is(tmp_path, small_disk):
    disk, _ = small_disk
    done = cached(make_images(tmp_path / "images", flat=0), disk / "s.zarr")
    needs = (
        r"12 samples of about 2\d\.\d KB need 0\.000\d+ GB, but the disk of .*s.zarr has 0\.000\d+ GB free: free space"
    )
    refused(needs, done)
    assert not list(disk.glob(".*/journal"))


@pytest.mark.slow
def test_a_disk_that_is_read_only_is_told_at_the_start_and_on_going_on(tmp_path, small_disk):
    disk, remount = small_disk
    images = make_images(tmp_path / "images", flat=12)
    remount("ro")
    message = r"Error: .*disk.*: Read-only file system; choose an --out that can be written"
    refused(message, cached(images, disk / "s.zarr"))
    refused(message, cached(images, disk / "new" / "s.zarr"))
    remount("rw")
    refused("is full", cached(images, disk / "s.zarr"))
    remount("ro")
    refused(message, cached(images, disk / "s.zarr"))
    remount("rw,size=2m")
    assert cached(images, disk / "s.zarr").returncode == 0
    remount("ro")
    refused("s.zarr already exists; refusing to overwrite", cached(images, disk / "s.zarr"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", [1, 2, 20, 30])
def test_a_quota_or_disk_that_is_used_up_at_any_write_is_told_and_then_gone_on_from(
    tmp_path, scenes, monkeypatch, number, write
):
    real, count = os.write, [0]

    def full(handle, data):
        count[0] += 1
        if count[0] == write:
            real(handle, data[: len(data) // 2])  # a torn file, or a torn line of the journal
            raise OSError(number, os.strerror(number))
        return real(handle, data)

    target = tmp_path / "out" / "s.zarr"
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ValueError, match=rf"is full \({os.strerror(number)}\): \d of 8 shards are safe .*free space"):
        cache_teacher(scenes, "all", fakes.FakeTeacher(), target, OPTIONS)
    monkeypatch.setattr(os, "write", real)
    cache_teacher(scenes, "all", fakes.FakeTeacher(), target, OPTIONS)
    cache_teacher(scenes, "all", fakes.FakeTeacher(), tmp_path / "whole.zarr", OPTIONS)
    assert folder_bytes(target) == folder_bytes(tmp_path / "whole.zarr")
    assert listed(target.parent) == ["s.zarr"]
