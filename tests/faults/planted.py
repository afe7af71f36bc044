"""Plant links at generated names, remove locks and directory syncs, and replace a store during a run.

python tests/faults/planted.py [--runs 3]

planted    each generated name next to the target, or in the folder of unfinished work, is a link to a file, a hard
           link to it, or a link to a folder: the command may refuse or finish; the target of the link is unchanged
without    all commands on a file system without flock (three error numbers) or without directory syncs (four) give
           the same bytes as with them
changed    a store is replaced, with other depth, at each step of an interrupted run: the run starts from 0
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
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
from pipeline.store import open_store
from pipeline.store.tools.archive import pack_store, unpack_store
from pipeline.train.options import TrainOptions
from pipeline.train.run import Interrupted, train_network

CACHED = CacheOptions(samples_per_shard=2, batch_size=2, workers=1)
TRAINED = TrainOptions(student="lean", epochs=1, batch_size=2)
SECRET = b"not to be touched"
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)


class Commands:
    """The commands to try, each with its output path."""

    def __init__(self, folder):
        self.source = open_source(f"scenes:{fakes.make_scenes_folder(folder / 'scenes', 4, (32, 64))}")
        self.store, self.packed = folder / "given.zarr", folder / "given.pack"
        self.cache(self.store)
        pack_store(self.store, self.packed)

    def cache(self, out):
        cache_teacher(self.source, "all", fakes.factory_with_dpm(), out, CACHED)

    def images(self, out):
        cache_images(self.source, "all", out, samples_per_shard=2, workers=1)

    def pack(self, out):
        pack_store(self.store, out)

    def unpack(self, out):
        unpack_store(self.packed, out)

    def train(self, out, progress=None):
        train_network(self.source, "train", out, TRAINED, store=open_store(self.store), progress=progress)

    NAMES = ("cache", "images", "pack", "unpack", "train")


@contextmanager
def recording(root):
    """Yield a list to which the paths created below a folder are added."""
    made, real_open, real_mkdir = [], os.open, os.mkdir

    def note(path):
        if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(root) and not os.path.lexists(path):
            made.append(Path(path).relative_to(root))

    def opening(path, flags, mode=0o777, *, dir_fd=None):
        if flags & os.O_CREAT:
            note(path)
        return real_open(path, flags, mode, dir_fd=dir_fd)

    def making(path, mode=0o777, *, dir_fd=None):
        note(path)
        return real_mkdir(path, mode, dir_fd=dir_fd)

    os.open, os.mkdir = opening, making
    try:
        yield made
    finally:
        os.open, os.mkdir = real_open, real_mkdir


def planted(commands, folder):
    """Returns (tried, faults)."""
    tried, faults = 0, []
    for name in Commands.NAMES:
        run, root = getattr(commands, name), folder / name
        root.mkdir()
        with recording(root) as made:
            run(root / "out")
        shutil.rmtree(root)
        for path in dict.fromkeys(made):
            for kind in ("link", "hard link", "link to a folder"):
                tried += 1
                fault = plant(run, root, folder / "precious", path, kind)
                faults += [f"{name}, {path} as a {kind}: {fault}"] if fault else []
    return tried, faults


def plant(run, root, precious, path, kind):
    """Run with one name planted. Returns what is wrong, or None."""
    for folder in (root, precious):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    victim = precious / "victim"
    victim.write_bytes(SECRET)
    planted_path = root / path
    planted_path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "hard link":
        planted_path.hardlink_to(victim)
    else:
        planted_path.symlink_to(victim if kind == "link" else precious)
    fault = None
    try:
        run(root / "out")
    except (ValueError, OSError):
        pass  # it may refuse
    except Exception as error:  # noqa: BLE001 - any other error is a fault
        fault = repr(error)
    if folder_bytes(precious) != {"victim": SECRET}:
        fault = "the target of the link was changed"
    return fault


@contextmanager
def without(flock=None, sync=None):
    """Simulate a file system on which flock or directory syncs raise these error numbers."""
    real_flock, real_sync = fcntl.flock, os.fsync

    def no_flock(*_):
        raise OSError(flock, os.strerror(flock))

    def no_sync(handle):
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(sync, os.strerror(sync))
        real_sync(handle)

    fcntl.flock, os.fsync = no_flock if flock else real_flock, no_sync if sync else real_sync
    try:
        yield
    finally:
        fcntl.flock, os.fsync = real_flock, real_sync


def bytes_of(path):
    """Return the bytes of a file or folder, without metrics.json, which has times."""
    if path.is_file():
        return path.read_bytes()
    return {name: data for name, data in folder_bytes(path).items() if name != "metrics.json"}


def lacking(commands, folder):
    """Returns (tried, faults)."""
    tried, faults = 0, []
    for name in Commands.NAMES:
        run = getattr(commands, name)
        run(folder / f"{name}-whole")
        reference = bytes_of(folder / f"{name}-whole")
        for lack in [*({"flock": number} for number in NO_FLOCK), *({"sync": number} for number in NO_SYNC)]:
            tried += 1
            root = folder / f"{name}-{tried}"
            root.mkdir()
            try:
                with without(**lack):
                    run(root / "out")
                if bytes_of(root / "out") != reference:
                    faults.append(f"{name} without {lack}: other bytes")
                if len(list(root.iterdir())) != 1:
                    faults.append(f"{name} without {lack}: other files were left")
            except Exception as error:  # noqa: BLE001 - any error is a fault
                faults.append(f"{name} without {lack}: {error!r}")
    return tried, faults


def changed(commands, folder, runs):
    """Returns (tried, faults)."""
    tried, faults = 0, []
    black = fakes.BLACK_M
    for step in range(1, runs + 1):
        tried += 1
        store = folder / f"changed-{step}.zarr"
        out = folder / f"run-{step}"

        def train(progress, store=store, out=out):
            train_network(commands.source, "all", out, TRAINED, store=open_store(store), progress=progress)

        try:
            cache_teacher(commands.source, "all", fakes.FakeTeacher(), store, CACHED)
            before = open_store(store)
            steps = 1
            try:
                train(fakes.StopAt(steps))
            except Interrupted:
                pass
            else:
                faults.append(f"step {steps}: the run was not interrupted")
            shutil.rmtree(store)
            fakes.BLACK_M = black - step / 10
            cache_teacher(commands.source, "all", fakes.FakeTeacher(), store, CACHED)
            again = fakes.StopAt(None)
            train(again)
            if before.spec.digest() != open_store(store).spec.digest():
                faults.append(f"step {steps}: the specification changed too, so this shows nothing")
            if again.done != 2 or "store.manifest_sha256" not in again.said:
                faults.append(f"step {steps}: the old run was resumed ({again.done} steps)")
        finally:
            fakes.BLACK_M = black
    return tried, faults


def main():
    """Run all trials; exits with 1 after a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="number of stores to replace during a run")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = Commands(folder)
        for title, trial in (
            ("planted links left their targets unchanged", lambda: planted(commands, folder)),
            ("runs without flock or directory syncs gave the same bytes", lambda: lacking(commands, folder)),
            ("runs started from 0 after their store was replaced", lambda: changed(commands, folder, asked.runs)),
        ):
            tried, faults = trial()
            print(f"{tried - len(faults)} of {tried} {title}", flush=True)  # noqa: T201 - a script for maintainers
            wrong += faults
    for fault in wrong[:20]:
        print(fault)  # noqa: T201 - as above
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
