"""One writer for one target, and what killed ones left beside it.

The kernel drops the lock of a process that is killed, so none is ever left behind.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


def stagings(target: Path) -> list[Path]:
    """Staging directories of a target, whatever their specification."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.staging")
    return sorted(path for path in target.parent.iterdir() if name.fullmatch(path.name))


def remove_leftovers(target: Path) -> None:
    """Remove stagings that hold nothing to go on from. The target's lock must be held.

    Where `store` is missing it has got its name already; where there is no journal no shard was finished.
    """
    for staging in stagings(target):
        if not (staging / "store").exists() or not (staging / "journal").exists():
            shutil.rmtree(staging)


def refuse_existing(target: Path) -> None:
    """Raise ValueError if there is something at `target`.

    A run that was killed between naming its store and tidying up has left a staging directory: that goes too.
    """
    if not target.exists() and not target.is_symlink():
        return
    with suppress(OSError, ValueError):  # a folder that may not be written, or a writer that is tidying up itself
        if stagings(target) or TargetLock(target).path.exists():
            with TargetLock(target):
                remove_leftovers(target)
    raise ValueError(f"{target} exists: a finished store is never written over; remove it or choose another --out")


class TargetLock:
    """Held while a store is written; a context manager."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.lock")
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Take the lock. Raises ValueError at once, saying who holds it, if another process has it."""
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise ValueError(
                    f"{self.target} is being written by {holder}: wait for it, or choose another --out"
                ) from error
            # Whoever held it before may have removed the file between our open and our lock.
            try:
                same = self.path.stat().st_ino == os.fstat(handle).st_ino
            except FileNotFoundError:
                same = False
            if same:
                break
            os.close(handle)
        with suppress(OSError):  # on a full disk nobody is told who holds the lock, and it holds all the same
            os.truncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file while the lock is still held, then let go."""
        assert self._handle is not None
        self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None
