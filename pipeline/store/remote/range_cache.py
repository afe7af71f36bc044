"""Local cache of byte ranges of a remote store, and the version of each file that a run reads.

Each file such as `depth/c/0/0/0` has a folder of that name with `whole` (compared with the manifest before writing),
`OFFSET-LENGTH-VERSION` (ranges, valid for that version only), and `pin-RUN`: the version that an opened store and its
loader workers saw first.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c

from ...common.user_cache import user_cache_folder
from ...errors import PipelineError
from .file_version import Version

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE_VARIABLE = "TIEKD_STORE_CACHE"
PIN_DAYS = 7
"""Pins, and ranges of replaced versions, stay this long for runs that may still use them."""
RANGE = re.compile(r"(\d{1,19})-(\d{1,19})-[0-9a-f]{12}")


def cache_folder(chosen: Path | None = None) -> Path:
    """Return the cache folder: `chosen`, else TIEKD_STORE_CACHE, else the user's cache folder.

    Raises PipelineError if the user has no home directory.
    """
    given = chosen or os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    try:
        return user_cache_folder()
    except RuntimeError:
        raise PipelineError(
            f"no folder for the store cache, because there is no home directory: set `store_cache` or {CACHE_VARIABLE}"
        ) from None


class RangeCache:
    """Cache of one store for one run and its workers."""

    def __init__(self, folder: Path, name: str, run: str) -> None:
        """`name` is the store's, for messages. Raises PipelineError if `folder` cannot be created."""
        self.folder, self.name, self.run = folder, name, run
        self.failed = False
        """Whether a write failed."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PipelineError(
                f"store cache {folder}: {error.strerror}; choose a writable folder with `store_cache` or "
                f"{CACHE_VARIABLE}"
            ) from error

    def part(self, path: str, offset: int, length: int, version: Version) -> bytes | None:
        """Return a cached range of that version of a file, or None if missing or damaged."""
        key = self.key(version)
        data = self.read(path, f"{offset}-{length}-{key}", 0, length)
        return data if data is not None and ends_in_its_crc(data) else None

    def write_part(self, path: str, offset: int, data: bytes, version: Version) -> None:
        """Cache a range, if it ends in its checksum."""
        if ends_in_its_crc(data):
            self.write(path, f"{offset}-{len(data)}-{self.key(version)}", data)

    def key(self, version: Version) -> str:
        """Return the cache key of a version; without version information it is valid for this run only."""
        return version.key if version.is_known else self.run

    def read(self, path: str, name: str, start: int, length: int) -> bytes | None:
        """Return bytes of a cached part, None if it is missing or shorter."""
        try:
            with (self.folder / path / name).open("rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError:
            return None
        return data if len(data) == length else None

    def write(self, path: str, name: str, data: bytes) -> None:
        """Write to a temporary file and rename it: other workers see the whole part or none."""
        folder = self.folder / path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", dir=folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(temporary).replace(folder / name)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        """Warn: training can continue without a cache."""
        self.failed = True
        warnings.warn(
            f"store cache {self.folder}: {error.strerror}; parts of {self.name} are fetched again each epoch; free "
            f"space, or choose another folder with `store_cache` or {CACHE_VARIABLE}",
            stacklevel=3,
        )

    def ranges(self, path: str) -> Iterator[tuple[Path, int, int]]:
        """Yield cached ranges of all versions of a file as (path, offset, length)."""
        try:
            files = list((self.folder / path).iterdir())
        except OSError:
            return
        for file in files:
            if match := RANGE.fullmatch(file.name):
                yield file, int(match[1]), int(match[2])

    # --- versions ----------------------------------------------------------------------------------------------

    def pinned(self, path: str) -> Version | None:
        """Return the version that a process of this run saw first."""
        pin = self.folder / path / f"pin-{self.run}"
        for _ in range(5):
            try:
                etag, modified, length = json.loads(pin.read_bytes())
                return Version(str(etag), str(modified), length if isinstance(length, int) else None)
            except FileNotFoundError:
                return None
            except (OSError, ValueError, TypeError):  # another process is writing it
                time.sleep(0.01)
        return None

    def pin(self, path: str, version: Version) -> Version:
        """Record the version of a file for this run. Returns the recorded one, which another worker may have set."""
        folder = self.folder / path
        self._tidy(path, version)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"pin-{self.run}").open("xb") as file:
                file.write(json.dumps(list(version)).encode())
        except FileExistsError:
            return self.pinned(path) or version
        except OSError as error:
            self._warn(error)
        return version

    def _tidy(self, path: str, version: Version) -> None:
        """Remove pins and ranges of other versions after `PIN_DAYS`; other runs may still use younger ones.

        Ranges without version information are useless to other runs and removed at once.
        """
        key, at_once = self.key(version), not version.is_known
        stale = [file for file, _, _ in self.ranges(path) if not file.name.endswith(key)]
        pins = list((self.folder / path).glob("pin-*"))
        old = time.time() - 86400 * PIN_DAYS
        for file in stale + pins:
            with suppress(OSError):  # removed by another process, or not writable
                if (at_once and file in stale) or file.stat().st_mtime < old:
                    file.unlink()


def ends_in_its_crc(data: bytes) -> bool:
    """Return whether data ends in the crc32c of the rest, as every index and chunk of a store does."""
    return len(data) > 4 and google_crc32c.value(data[:-4]) == int.from_bytes(data[-4:], "little")
