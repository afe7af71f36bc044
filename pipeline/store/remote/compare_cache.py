"""Fetch a store from a URL without its cache, and compare the cache with the server."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .range_cache import RangeCache, cache_folder
from .remote import RemoteFiles

if TYPE_CHECKING:
    from collections.abc import Iterator


class UncachedFiles(RemoteFiles):
    """Files read from the server only; cached ranges are compared with the server's bytes."""

    def __init__(self, url: str, empty: Path, cache: Path) -> None:
        """`empty` is a temporary cache folder, `cache` the folder of the user's caches."""
        self.cache_folder = cache
        self.wrong: dict[str, set[Path]] = {}
        """Cached ranges that differ from the server, by the store's files."""
        self._compared: RangeCache | None = None
        super().__init__(url, empty, rebuild=False)
        self._compared = RangeCache(cache / self.cache.folder.name, self.name, self.cache.run)

    def _arrived(self, path: str, offset: int, data: bytes) -> None:
        compared, end = self._compared, offset + len(data)
        for place, at, length in compared.ranges(path) if compared is not None else ():
            low, high = max(at, offset), min(at + length, end)
            if compared is not None and low < high:
                kept = compared.read(path, place.name, low - at, high - low)
                if kept != data[low - offset : high - offset]:
                    self.wrong.setdefault(path, set()).add(place)


@contextlib.contextmanager
def fetch_uncached(url: str) -> Iterator[UncachedFiles]:
    """Open a store's files without the cache and without the metadata copies in its root."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".anew-", dir=folder) as empty:
        try:
            yield UncachedFiles(url, Path(empty), folder)
        finally:
            # One open folder at a time: rmtree holds one per level, too many if few handles are left.
            for inner, _, names in os.walk(empty, topdown=False):
                for name in names:
                    Path(inner, name).unlink(missing_ok=True)
                if inner != empty:
                    Path(inner).rmdir()
