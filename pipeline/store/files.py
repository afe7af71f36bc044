"""Where a store's bytes come from. One small face, so that a remote store is read by the same code as a local one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from .codec import DamagedStoreError

if TYPE_CHECKING:
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
                handle = os.open(whole, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
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
