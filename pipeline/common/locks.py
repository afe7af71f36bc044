"""One writer per target. The kernel releases the lock of a killed process.

Some file systems have no locks (Lustre mounted without flock, some NFS and FUSE). There the lock is the file itself,
which names the process and its host. A lock of a process that ended on this host is taken over; a lock of another host
must be removed by the user.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..errors import PipelineError
from .own_files import hidden_name, naming, refused_link

try:
    import fcntl
except ImportError:  # absent on Windows, which the command line refuses
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from .progress import Progress

NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Errors of a file system without locks."""
WITHOUT_FLOCK = "without flock"
EMPTY_FOR_S = 10.0
"""An empty lock file older than this was left by a process that was killed while it created the file."""
MAX_HOLDER_BYTES = 400
_held: set[int] = set()
"""Open lock files of this process. A forked loader worker inherits them with their locks, and would keep the target
locked for seconds after its parent was killed."""


def _close_in_child() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class TargetLock:
    """Lock held while a target is written; a context manager.

    Attributes:
        note: a note to print if the file system has no locks, or None; set on entry.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = hidden_name(target, "lock")
        self.note: str | None = None
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Take the lock. Raises PipelineError if another process holds it."""
        while True:
            handle, created = self._open()
            try:
                with naming(self.path):
                    taken = self._take(handle, created=created)
            except BaseException:
                os.close(handle)
                raise
            if taken:
                break
            os.close(handle)
        host = f"{_here()} {WITHOUT_FLOCK}" if self.note else socket.gethostname()
        with suppress(OSError):  # on a full disk the holder is not recorded, but the lock works
            os.truncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {host}\n".encode(), 0)
        self._handle = handle
        _held.add(handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file while the lock is held, then release it."""
        assert self._handle is not None
        if self._handle in _held:  # not in a forked child, which has released it already
            self.path.unlink(missing_ok=True)
            _held.discard(self._handle)
            os.close(self._handle)
        self._handle = None

    def _open(self) -> tuple[int, bool]:
        """Return an open lock file and whether it was created here. Raises OSError or PipelineError for a link."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        while True:
            with suppress(FileExistsError):
                return os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
            try:
                handle = os.open(self.path, flags)
            except FileNotFoundError:
                continue  # its holder released it
            except OSError as error:
                raise refused_link(self.path, error) from None
            if os.fstat(handle).st_nlink > 1:
                os.close(handle)
                raise PipelineError(f"{self.path} is a hard link to another file, expected a lock file: remove it")
            return handle, False

    def _take(self, handle: int, *, created: bool) -> bool:
        """Lock an open file; False if it must be opened again. Raises PipelineError if another process holds it."""
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # noqa: TRY301 - as without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held_error(self._holder(handle)) from None
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            self.note = (
                f"the file system of {self.target.parent or '.'} has no locks ({os.strerror(error.errno)}): "
                f"{self.path.name} locks the target instead; remove it if this process was killed and its host is gone"
            )
            return created or self._take_over(handle)
        # The previous holder may have removed the file between our open and our lock.
        if not _is_at(self.path, handle):
            return False
        # A process whose mount of this file system has no locks may hold the file.
        return not self._holder(handle).endswith(WITHOUT_FLOCK) or self._take_over(handle)

    def _take_over(self, handle: int) -> bool:
        """Remove the file of a process that ended; returns False. Raises PipelineError if it may still run."""
        holder = self._holder(handle)
        if not _is_gone(holder) and (holder or time.time() - os.fstat(handle).st_mtime < EMPTY_FOR_S):
            raise self._held_error(holder)
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)  # only one of several processes succeeds
            aside_is_ours = _is_at(aside, handle)
            if not aside_is_ours:  # this is the new file of a faster process
                with suppress(OSError):
                    aside.rename(self.path)
                raise self._held_error("another process")
            aside.unlink(missing_ok=True)
        return False

    def _holder(self, handle: int) -> str:
        return os.pread(handle, MAX_HOLDER_BYTES, 0).decode(errors="replace").strip()

    def _held_error(self, holder: str) -> PipelineError:
        hint = f" (if that process is gone, remove {self.path})" if holder.endswith(WITHOUT_FLOCK) or not holder else ""
        return PipelineError(
            f"{self.target} is being written by {holder or 'another process'}{hint}: wait for it, or choose another "
            "`out`"
        )


def _is_at(path: Path, handle: int) -> bool:
    """Return whether the path still names the open file."""
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _here() -> str:
    """Return host and process namespace: a container may have its host's name but other process ids."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _is_gone(holder: str) -> bool:
    """Return whether the holder was a process of this host that has ended."""
    match = re.fullmatch(rf"process (\d{{1,9}}) on (.+) {WITHOUT_FLOCK}", holder)
    if match is None or match[2] != _here():
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user
        return False
    return False


@contextmanager
def locked(target: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a target; notes a file system without locks."""
    with TargetLock(target) as lock:
        if lock.note:
            progress.note(lock.note)
        yield
