"""Where a store's bytes come from. One small face, so that a remote store is read by the same code as a local one."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .codec import DamagedStoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


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


def is_url(path: str | Path) -> bool:
    """Whether a store lies behind a URL, which `Path` would make another of."""
    return isinstance(path, str) and "://" in path


class LocalFiles:
    """A store in a directory. Holds a few open files; safe to pickle and to fork (reads carry their own offset)."""

    OPEN_FILES = 64

    def __init__(self, root: Path) -> None:
        self.root = root
        self._handles: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]  # pickling restores by making anew

    def __del__(self) -> None:
        # A forked child shares the parent's numbers, but its copies are its own to close.
        for handle in self.__dict__.get("_handles", {}).values():
            os.close(handle)

    def _handle(self, path: str) -> int:
        handle = self._handles.pop(path, None)
        if handle is None:
            whole = self.root / path
            try:
                handle = _open_below(self.root, path)
            except OSError as error:
                raise DamagedStoreError(
                    f"{whole}: {error.strerror}; run `pipeline store verify {self.root}`"
                ) from error
            if len(self._handles) >= self.OPEN_FILES:
                os.close(self._handles.pop(next(iter(self._handles))))
        self._handles[path] = handle
        return handle

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Whole content of a small file."""
        size = self.size(path)
        if size > limit_bytes:
            raise DamagedStoreError(f"{self.root / path}: {size} bytes, expected at most {limit_bytes}")
        return self.read_range(path, 0, size)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`."""
        return os.pread(self._handle(path), length, offset)

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return os.fstat(self._handle(path)).st_size


def _open_below(root: Path, path: str) -> int:
    """Open a regular file below `root` for reading, through no link on the way.

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
        handle = os.open(last, flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return handle
