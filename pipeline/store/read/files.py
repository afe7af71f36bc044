"""Where a store's bytes come from. One small face, so that a remote store is read by the same code as a local one."""

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
except ImportError:  # not on Windows, where the command line says that it does not run
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


MOST_HANDLES = 64
OUT_OF_HANDLES = {errno.EMFILE, errno.ENFILE}
NOT_AS_WRITTEN = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO}
"""Something else is there than the file that was written, or nothing."""
HINTS = {
    errno.EMFILE: "this process may open no more files: raise the limit with `ulimit -n 4096`, or use fewer `workers`",
    errno.ENFILE: "this machine may open no more files: end other programs, or raise fs.file-max",
    errno.EIO: "the disk or mount gave no bytes: look at the system's log, then read it again or fetch the store again",
    errno.ESTALE: "the network mount lost the file: mount it again",
}
"""What to do about what says nothing of a store's bytes."""


class StoreFiles(Protocol):
    """Read access to the files of one store, by their path in it."""

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Whole content of a small file. Raises DamagedStoreError if it is missing or larger than the limit."""
        ...

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`. Raises DamagedStoreError if the file is missing."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file. Raises DamagedStoreError if it is missing."""
        ...


@runtime_checkable
class FarFiles(StoreFiles, Protocol):
    """Files where a request takes long, so that those of one sample had better go together."""

    def expect(self, path: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Get ranges (offset, length) ready that are about to be read."""
        ...


LINK = "a link: symbolic links inside of a store are followed into the DVC cache of its repository alone"


def is_url(path: str | Path) -> bool:
    """Whether a store lies behind a URL, which `Path` would make another of."""
    return isinstance(path, str) and "://" in path


class _Handle:
    """An open file, closed once nobody reads from it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        # A forked child shares the parent's numbers, but its copies are its own to close.
        os.close(self.number)


class LocalFiles:
    """A store in a directory. Holds a few open files; safe to pickle, to fork and for threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._handles: dict[str, _Handle] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]  # pickling restores by making anew

    def _handle(self, path: str) -> _Handle:
        handle = self._handles.pop(path, None)
        if handle is None:
            while len(self._handles) >= _most_handles():
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
                        gc.collect()  # stores that are out of use may still hold theirs
                        collected = True
                    self._close_one()
                    continue
                raise self._refusal(path, error) from error

    def _close_one(self) -> None:
        """Let the file go that was not read for the longest time; another thread may be at it too."""
        with suppress(KeyError, StopIteration, RuntimeError):
            del self._handles[next(iter(self._handles))]

    def _refusal(self, path: str, error: OSError) -> Exception:
        """What to raise: a file that is not there or no file is damage, and nothing else that a system may say."""
        whole = self.root / path
        if error.errno in NOT_AS_WRITTEN:
            return DamagedStoreError(f"{whole}: {error.strerror}; run `pipeline store verify {self.root}`")
        hint = HINTS.get(error.errno or 0)
        return OSError(error.errno, f"{error.strerror}{f'; {hint}' if hint else ''}", str(whole))

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Whole content of a small file."""
        size = self.size(path)
        if size > limit_bytes:
            raise DamagedStoreError(f"{self.root / path}: {size} bytes, expected at most {limit_bytes}")
        return self.read_range(path, 0, size)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`."""
        handle = self._handle(path)
        try:
            return os.pread(handle.number, length, offset)
        except OSError as error:
            raise self._refusal(path, error) from error

    def size(self, path: str) -> int:
        """Bytes of a file."""
        handle = self._handle(path)
        return os.fstat(handle.number).st_size


def _most_handles() -> int:
    """How many files one store keeps open: an eighth of what the process may open."""
    if resource is None:
        return MOST_HANDLES
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_HANDLES if limit == resource.RLIM_INFINITY else max(1, min(MOST_HANDLES, limit // 8))


def _open_below(root: Path, path: str) -> int:
    """Open a regular file below `root` for reading, through no link on the way but one that DVC made to its cache.

    O_NOFOLLOW looks at the last part of a path alone, so each folder is opened by itself. Raises OSError; for a pipe
    too, which is not waited for.
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
