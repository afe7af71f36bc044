"""A store behind a URL, fetched without the cache, and compared with what the cache holds of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .range_cache import Kept, cache_folder
from .remote import RemoteFiles

if TYPE_CHECKING:
    from collections.abc import Iterator


class Anew(RemoteFiles):
    """Files of which nothing is taken from the cache, while what the cache holds is compared with what comes."""

    def __init__(self, url: str, empty: Path, cache: Path) -> None:
        """`empty` is where parts are kept meanwhile, `cache` is the folder of caches."""
        self.cache = cache
        self.wrong: dict[str, set[Path]] = {}
        """Kept parts that are not what came, by the store's files."""
        self._against: Kept | None = None
        super().__init__(url, empty, rebuild=False)
        self._against = Kept(cache / self.kept.folder.name, self.name, self.kept.run)

    def _arrived(self, path: str, offset: int, data: bytes) -> None:
        against, end = self._against, offset + len(data)
        for place, at, length in against.ranges(path) if against is not None else ():
            low, high = max(at, offset), min(at + length, end)
            if against is not None and low < high:
                kept = against.read(path, place.name, low - at, high - low)
                if kept != data[low - offset : high - offset]:
                    self.wrong.setdefault(path, set()).add(place)


@contextlib.contextmanager
def fetched_anew(url: str) -> Iterator[Anew]:
    """Files of a store of which nothing is taken from the cache, and nothing from the root's copies."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".anew-", dir=folder) as empty:
        try:
            yield Anew(url, Path(empty), folder)
        finally:
            # One open folder at a time: rmtree holds one a level, which are too many where few handles are left.
            for inner, _, names in os.walk(empty, topdown=False):
                for name in names:
                    Path(inner, name).unlink(missing_ok=True)
                if inner != empty:
                    Path(inner).rmdir()
