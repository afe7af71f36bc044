"""Read access to a store's files, local or remote, through one protocol."""

from __future__ import annotations

import errno
import gc
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ...common.dvc_links import cached_target
from ...errors import DamagedStoreError

try:
    import resource
except ImportError:  # Windows; the command line refuses to run there
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


MAX_HANDLES = 64
OUT_OF_HANDLES = {errno.EMFILE, errno.ENFILE}
NOT_AS_WRITTEN = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO}
"""The path is missing or not a regular file."""
HINTS = {
    errno.EMFILE: "this process has too many open files: raise the limit with `ulimit -n 4096`, or use fewer `workers`",
    errno.ENFILE: "this machine has too many open files: end other programs, or raise fs.file-max",
    errno.EIO: "the disk or mount failed: check the system's log, then read again or fetch the store again",
    errno.ESTALE: "the network mount lost the file: remount it",
}
"""Advice for errors that do not mean a damaged store."""


class StoreFiles(Protocol):
    """Read access to the files of one store, by their path in it."""

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Return the content of a small file. Raises DamagedStoreError if it is missing or larger than the limit."""
        ...

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`. Raises DamagedStoreError if the file is missing."""
        ...

    def size(self, path: str) -> int:
        """Return the size of a file in bytes. Raises DamagedStoreError if it is missing."""
        ...


@runtime_checkable
class PrefetchingFiles(StoreFiles, Protocol):
    """Files with slow requests, which can fetch several ranges at once."""

    def prefetch(self, path: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges (offset, length) that are read next."""
        ...


LINK = "a symbolic link: links inside a store may only lead into the DVC cache of its repository"


def is_url(path: str | Path) -> bool:
    """Return whether a store's path is a URL; `Path` would change it."""
    return isinstance(path, str) and "://" in path


class _Handle:
    """An open file, closed when it is no longer referenced."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        # After a fork the child closes its own copy of the descriptor.
        os.close(self.number)


class LocalFiles:
    """A store in a directory. Keeps a few files open; picklable, fork-safe and thread-safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._handles: dict[str, _Handle] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]  # unpickle by constructing

    def _handle(self, path: str) -> _Handle:
        handle = self._handles.pop(path, None)
        if handle is None:
            while len(self._handles) >= _max_handles():
                self._close_one()
            handle = self._open(path)
        self._handles[path] = handle
        return handle

    def _open(self, path: str) -> _Handle:
        collected = False
        while True:
            try:
                return _Handle(_open_below(self.root, path))
            except OSError as error:
                if error.errno in OUT_OF_HANDLES and not collected:
                    if not self._handles:
                        gc.collect()  # unreferenced stores may still hold open files
                        collected = True
                    self._close_one()
                    continue
                raise self._refusal(path, error) from error

    def _close_one(self) -> None:
        """Close the least recently read file; another thread may do so at the same time."""
        with suppress(KeyError, StopIteration, RuntimeError):
            del self._handles[next(iter(self._handles))]

    def _refusal(self, path: str, error: OSError) -> Exception:
        """Return the error to raise: only a missing or non-regular file is damage."""
        whole = self.root / path
        if error.errno in NOT_AS_WRITTEN:
            return DamagedStoreError(f"{whole}: {error.strerror}; run `pipeline store verify {self.root}`")
        hint = HINTS.get(error.errno or 0)
        return OSError(error.errno, f"{error.strerror}{f'; {hint}' if hint else ''}", str(whole))

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Return the content of a small file."""
        size = self.size(path)
        if size > limit_bytes:
            raise DamagedStoreError(f"{self.root / path}: {size} bytes, expected at most {limit_bytes}")
        return self.read_range(path, 0, size)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`."""
        handle = self._handle(path)
        try:
            return os.pread(handle.number, length, offset)
        except OSError as error:
            raise self._refusal(path, error) from error

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        handle = self._handle(path)
        return os.fstat(handle.number).st_size


def _max_handles() -> int:
    """Return how many files one store keeps open: at most an eighth of the process's limit."""
    if resource is None:
        return MAX_HANDLES
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_HANDLES if limit == resource.RLIM_INFINITY else max(1, min(MAX_HANDLES, limit // 8))


def _open_below(root: Path, path: str) -> int:
    """Open a regular file below `root` for reading; the only link it follows is one into the DVC cache.

    O_NOFOLLOW checks the last part of a path only, so each folder is opened separately. Raises OSError, also for a pipe
    (without blocking).
    """
    *folders, last = path.split("/")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    folder = os.open(root, flags | os.O_DIRECTORY)
    try:
        for name in folders:
            inner = os.open(name, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        try:
            handle = os.open(last, flags | os.O_NOFOLLOW, dir_fd=folder)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            target = cached_target(f"{root}/{path}", str(root))
            if target is None:
                raise OSError(errno.ELOOP, LINK) from error
            handle = os.open(target, flags | os.O_NOFOLLOW)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return handle
