"""One writer for one target. The kernel drops the lock of a process that is killed, so none is ever left behind."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


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
