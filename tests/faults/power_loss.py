"""Simulate a power loss after every file operation of a cache run; the next run must give the same bytes.

    python tests/faults/power_loss.py [--every 1] [--kills 2] [--images]

A run is recorded: each mkdir, create, write, fsync, rename and unlink in its folder, by replacing the functions of `os`
that pipeline/common/fileio.py and the writer call. For every prefix of these operations a folder is written as a disk
may hold it after power loss at that moment, in three modes:

    synced   only what was synced; other data and names are gone
    issued   everything, as after `kill -9`
    mixed    each unsynced name present or not; each unsynced file lost, cut, with a tail of zeros, or complete

Then the same run is started on it. It must keep every shard that the recorded run had noted as finished, give the bytes
of an uninterrupted run, and leave no other files. `--kills` repeats this for runs that resume a killed one, whose
unsynced operations may still be lost. `--images` runs `cache_images` instead of stage one.

Assumptions about a disk: a rename is atomic, and synced data stays.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import fakes
import torch
from tiny_stores import folder_bytes

from pipeline.cache.images import cache_images
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.sources.registry import open_source
from pipeline.store.write.staging import StagedWriter

MODES = ("synced", "issued", "mixed")
TARGET = "new/deeper/s.zarr"
"""In folders that the run creates: their names must be durable too."""
FRAMES, PER_SHARD = 7, 2
SHARD = ("shard is finished",)
"""An operation without effect: after it the shard must not be lost."""


def cache_depth(scenes, root):
    """Run stage one over small scenes; returns its summary."""
    options = CacheOptions(samples_per_shard=PER_SHARD, batch_size=PER_SHARD, workers=1)
    return cache_teacher(open_source(f"scenes:{scenes}"), "all", fakes.factory_with_dpm(), root / TARGET, options)


def cache_scene_images(scenes, root):
    """Cache the images of the scenes; returns the summary."""
    source = open_source(f"scenes:{scenes}")
    return cache_images(source, "all", root / TARGET, samples_per_shard=PER_SHARD, workers=1)


# --- recording -----------------------------------------------------------------------------------------------------


class Recorder:
    """Replaces functions of `os`, and records what they change under `root` as tuples (name, path, ...)."""

    NAMES = ("open", "close", "write", "pwrite", "fsync", "truncate", "replace", "rename", "mkdir", "unlink", "rmdir")

    def __init__(self, root):
        self.root = root
        self.operations = []
        self.paths = {}
        """Paths of open handles."""
        self.lock = threading.RLock()  # an operation and its record are atomic
        self.real = {name: getattr(os, name) for name in self.NAMES}

    def inside(self, path, dir_fd=None):
        """Return the path relative to the root, or None if it is outside."""
        if isinstance(path, int):
            return self.paths.get(path)
        whole = Path(path) if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink() / path
        return whole.relative_to(self.root).as_posix() if whole.is_relative_to(self.root) else None

    def open(self, path, flags, mode=0o777, *, dir_fd=None):
        with self.lock:
            name = self.inside(path, dir_fd)
            there = name is None or os.path.lexists(self.root / name)
            handle = self.real["open"](path, flags, mode, dir_fd=dir_fd)
            if name is not None:
                self.paths[handle] = name
                if not there:
                    self.operations.append(("create", name))
                elif flags & os.O_TRUNC:
                    self.operations.append(("truncate", name, 0))
            return handle

    def close(self, handle):
        with self.lock:
            self.paths.pop(handle, None)
            self.real["close"](handle)

    def write(self, handle, data, *offset):
        with self.lock:
            name, end = self.inside(handle), os.fstat(handle).st_size
            count = self.real["pwrite" if offset else "write"](handle, data, *offset)
            if name is not None:
                assert not offset or offset == (end,), "the simulated disk supports only writes at the end"
                self.operations.append(("write", name, bytes(data[:count])))
            return count

    def change(self, kind, path, *more, **options):
        with self.lock:
            name, rename = self.inside(path, options.get("dir_fd")), kind in {"rename", "replace"}
            arguments = [self.inside(more[0])] if rename else [*more] * (kind == "truncate")
            self.real[kind](path, *more, **options)
            if name is not None:
                self.operations.append(("rename" if rename else kind, name, *arguments))

    def __enter__(self):
        own = {"open": self.open, "close": self.close, "write": self.write, "pwrite": self.write}
        for name in self.NAMES:
            setattr(os, name, own.get(name) or partial(self.change, name))
        self.note = StagedWriter._note

        def noting(writer, record):
            self.note(writer, record)
            self.operations.append(SHARD)

        StagedWriter._note = noting
        return self.operations

    def __exit__(self, *_):
        StagedWriter._note = self.note
        for name, function in self.real.items():
            setattr(os, name, function)


# --- a disk --------------------------------------------------------------------------------------------------------


class Node:
    """A file or folder: its issued and its durable content."""

    def __init__(self, *, folder):
        self.folder = folder
        self.issued, self.durable = ({}, {}) if folder else (b"", b"")


class Disk:
    """Replays operations, and writes what may be left of them after power loss."""

    def __init__(self):
        self.root = Node(folder=True)
        self.pending = []
        """Changes of names that are not durable yet: lists of (folder, name, node or None)."""

    def find(self, path):
        """Return the node at an issued path."""
        node = self.root
        for part in Path(path).parts:
            node = node.issued[part]
        return node

    def change(self, *changes):
        """Change names atomically, at first only in memory."""
        done = [(self.find(Path(path).parent), Path(path).name, node) for path, node in changes]
        for folder, name, node in done:
            place(folder.issued, name, node)
        self.pending.append(done)

    def apply(self, kind, path="", *more):
        """Replay one operation."""
        if kind in {"mkdir", "create"}:
            self.change((path, Node(folder=kind == "mkdir")))
        elif kind == "rename":
            self.change((path, None), (more[0], self.find(path)))
        elif kind in {"unlink", "rmdir"}:
            self.change((path, None))
        elif kind == "write":
            self.find(path).issued += more[0]
        elif kind == "truncate":
            self.find(path).issued = self.find(path).issued[: more[0]]
        elif kind == "fsync":
            self.sync(self.find(path))

    def sync(self, node):
        """Make a file's data, or a folder's names, durable."""
        if not node.folder:
            node.durable = node.issued
            return
        for changes in [changes for changes in self.pending if any(folder is node for folder, _, _ in changes)]:
            self.pending.remove(changes)
            for folder, name, child in changes:
                place(folder.durable, name, child)

    def lay_out(self, where, mode, chance):
        """Write to the folder `where` what may be left after power loss."""
        names = {}
        if mode == "mixed":
            for changes in self.pending:
                if chance.random() < 0.5:
                    for folder, name, child in changes:
                        place(names.setdefault(folder, dict(folder.durable)), name, child)

        def lay(node, path):
            if node.folder:
                path.mkdir(parents=True)
                kept = node.issued if mode == "issued" else names.get(node, node.durable)
                for name, child in kept.items():
                    lay(child, path / name)
            elif mode == "mixed":
                path.write_bytes(damaged(node.durable, node.issued, chance))
            else:
                path.write_bytes(node.issued if mode == "issued" else node.durable)

        lay(self.root, where)


def place(names, name, node):
    """Give a name to a node; None removes the name."""
    names.pop(name, None)
    if node is not None:
        names[name] = node


def damaged(durable, issued, chance):
    """Return what may be left of a file whose last writes were not synced."""
    if durable == issued:
        return issued
    safe = len(durable) if issued.startswith(durable) else 0
    cut = chance.randint(safe, len(issued))
    return chance.choice([durable, issued[:cut], issued[:cut] + bytes(len(issued) - cut), issued])


# --- the trial -----------------------------------------------------------------------------------------------------


def fault_after(run, scenes, root, promised, *, finished):
    """Run again after power loss. Returns what is wrong, or None."""
    target = root / TARGET
    named = target.exists()
    fault = None
    try:
        done = run(scenes, root)
        if named:
            fault = "a finished store was overwritten"
        elif finished:
            fault = "the run had finished, but its store is gone"
        elif done.samples_before < promised:
            fault = f"{promised} samples were noted as finished, but only {done.samples_before} were left"
    except (OSError, ValueError, KeyError) as error:
        if not (named and "already exists; refusing to overwrite" in str(error)):
            return f"the next run fails: {error!r}"
    if folder_bytes(target) != REFERENCE:
        return "other bytes than those of an uninterrupted run"
    left = sorted(path.name for path in target.parent.iterdir() if path != target)
    return fault or (f"{', '.join(left)} were left" if left else None)


def try_prefixes(run, disk, operations, scenes, place_for_trials, every, promised, counts, faults, chance):
    """Replay the operations on a disk, with a trial of each mode after each operation."""
    finished = False
    for number in range(len(operations) + 1):
        if number:
            disk.apply(*operations[number - 1])
            promised += PER_SHARD * (operations[number - 1] == SHARD)
            finished = number == len(operations)
        if number % every and not finished:
            continue
        for mode in MODES:
            root = place_for_trials / "trial"
            disk.lay_out(root, mode, chance)
            fault = fault_after(run, scenes, root, min(promised, FRAMES), finished=finished)
            counts[mode, fault is None] += 1
            if fault:
                before = operations[number - 1][:2] if number else "nothing"
                faults.append(f"{mode}, after operation {number} {before}: {fault}")
            shutil.rmtree(root)


REFERENCE = {}


def main():
    """Try all prefixes; exits with 1 if one is not survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="try only every n-th prefix")
    parser.add_argument("--kills", type=int, default=2, help="number of killed runs to resume, after the fresh run")
    parser.add_argument("--images", action="store_true", help="an image cache instead of a depth store")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    run = cache_scene_images if asked.images else cache_depth
    torch.set_num_threads(1)
    chance = random.Random(asked.seed)  # noqa: S311 - nothing is secret here
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - syncs are free there
    counts, faults = Counter(), []
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        here = Path(folder)
        scenes = fakes.make_scenes_folder(here / "scenes", FRAMES, (16, 32))
        with Recorder(here / "whole") as operations:
            (here / "whole").mkdir()
            run(scenes, here / "whole")
        operations = operations[1:]  # the root itself is there
        REFERENCE.update(folder_bytes(here / "whole" / TARGET))
        everything = Disk()
        for operation in operations:
            everything.apply(*operation)
        everything.lay_out(here / "replayed", "issued", chance)
        assert folder_bytes(here / "replayed") == folder_bytes(here / "whole"), "an operation was not recorded"
        try_prefixes(run, Disk(), operations, scenes, here, asked.every, 0, counts, faults, chance)
        runs = [f"{len(operations)} operations of a fresh run"]
        for _ in range(asked.kills):
            killed = chance.randrange(len(operations))
            disk = Disk()
            for operation in operations[:killed]:
                disk.apply(*operation)
            promised = PER_SHARD * operations[:killed].count(SHARD)
            disk.lay_out(here / "resumed", "issued", chance)
            if (here / "resumed" / TARGET).exists():
                shutil.rmtree(here / "resumed")
                continue
            with Recorder(here / "resumed") as more:
                run(scenes, here / "resumed")
            shutil.rmtree(here / "resumed")
            runs.append(f"{len(more)} of a run after a kill at {killed}")
            try_prefixes(run, disk, more, scenes, here, asked.every, promised, counts, faults, chance)
    print("; ".join(runs))  # noqa: T201 - a script for maintainers
    for mode in MODES:
        tried = counts[mode, True] + counts[mode, False]
        print(f"{mode}: {counts[mode, True]} of {tried} prefixes survived")  # noqa: T201 - as above
    for fault in faults[:: max(1, len(faults) // 20)]:
        print(fault)  # noqa: T201 - as above
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
