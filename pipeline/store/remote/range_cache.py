"""Parts of a store's files that are kept in a folder of this machine, and which version of each file a run reads.

Of `depth/c/0/0/0` there is a folder of that name, with `whole` (checked against the manifest before it is written),
`OFFSET-LENGTH-VERSION` (ranges, which are taken for that version of the file alone), and `pin-RUN`: the version that
one opened store, and all its loader workers, first saw.
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

from ...errors import PipelineError
from .file_version import Version

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE_VARIABLE = "TIEKD_STORE_CACHE"
PIN_DAYS = 7
"""So long pins, and ranges of versions that were replaced, are left to the runs that made them."""
RANGE = re.compile(r"(\d{1,19})-(\d{1,19})-[0-9a-f]{12}")


def cache_folder(chosen: Path | None = None) -> Path:
    """Where fetched parts of stores are kept: as chosen, else TIEKD_STORE_CACHE, else the user's cache folder.

    Raises PipelineError where the user has none.
    """
    given = chosen or os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiekd-pipeline"
    except RuntimeError:
        raise PipelineError(
            f"the store cache has no place, because there is no home directory: choose one with `store_cache` or "
            f"{CACHE_VARIABLE}"
        ) from None


class Kept:
    """What is kept of one store, for one run of a program and its workers."""

    def __init__(self, folder: Path, name: str, run: str) -> None:
        """`name` is the store's, for messages. Raises PipelineError for a folder that cannot be made."""
        self.folder, self.name, self.run = folder, name, run
        self.failed = False
        """Whether something could not be kept."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PipelineError(
                f"store cache {folder}: {error.strerror}; choose a folder that can be written with `store_cache` or "
                f"{CACHE_VARIABLE}"
            ) from error

    def part(self, path: str, offset: int, length: int, version: Version) -> bytes | None:
        """A range of that version of a file, if it is kept and its checksum fits."""
        key = self.key(version)
        data = self.read(path, f"{offset}-{length}-{key}", 0, length)
        return data if data is not None and ends_in_its_crc(data) else None

    def keep_part(self, path: str, offset: int, data: bytes, version: Version) -> None:
        """Keep a range, if it ends in its checksum."""
        if ends_in_its_crc(data):
            self.write(path, f"{offset}-{len(data)}-{self.key(version)}", data)

    def key(self, version: Version) -> str:
        """What ranges of a version are kept under; where servers tell no versions apart, for this run alone."""
        return version.key if version.is_known else self.run

    def read(self, path: str, name: str, start: int, length: int) -> bytes | None:
        """Bytes of one kept part, None where it has fewer."""
        try:
            with (self.folder / path / name).open("rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError:
            return None
        return data if len(data) == length else None

    def write(self, path: str, name: str, data: bytes) -> None:
        """Write beside and rename: another worker sees the whole part or none."""
        folder = self.folder / path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(prefix=".", dir=folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(beside).replace(folder / name)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        """A full disk must not end a training run that can go on without."""
        self.failed = True
        warnings.warn(
            f"store cache {self.folder}: {error.strerror}; parts of {self.name} are fetched again each epoch: make "
            f"room, or choose another folder with `store_cache` or {CACHE_VARIABLE}",
            stacklevel=3,
        )

    def ranges(self, path: str) -> Iterator[tuple[Path, int, int]]:
        """Kept ranges of any version of a file, as (kept in, offset, length)."""
        try:
            places = list((self.folder / path).iterdir())
        except OSError:
            return
        for place in places:
            if match := RANGE.fullmatch(place.name):
                yield place, int(match[1]), int(match[2])

    # --- versions ----------------------------------------------------------------------------------------------

    def pinned(self, path: str) -> Version | None:
        """The version that some process of this run first saw."""
        place = self.folder / path / f"pin-{self.run}"
        for _ in range(5):
            try:
                etag, modified, length = json.loads(place.read_bytes())
                return Version(str(etag), str(modified), length if isinstance(length, int) else None)
            except FileNotFoundError:
                return None
            except (OSError, ValueError, TypeError):  # another process has just made it, and writes
                time.sleep(0.01)
        return None

    def pin(self, path: str, version: Version) -> Version:
        """Note the version of a file that this run reads. Returns the one that is noted, which may be another's."""
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
        """Remove ranges of other versions and pins, a week after they were made: a run may still go back to them.

        Ranges of a server that tells no versions apart are of no use to another run, and go at once.
        """
        key, at_once = self.key(version), not version.is_known
        places = [place for place, _, _ in self.ranges(path) if not place.name.endswith(key)]
        pins = list((self.folder / path).glob("pin-*"))
        old = time.time() - 86400 * PIN_DAYS
        for place in places + pins:
            with suppress(OSError):  # another process did, or the folder is not ours to write
                if (at_once and place in places) or place.stat().st_mtime < old:
                    place.unlink()


def ends_in_its_crc(data: bytes) -> bool:
    """Whether the last four bytes are the crc32c of the others, as in every index and chunk of a store."""
    return len(data) > 4 and google_crc32c.value(data[:-4]) == int.from_bytes(data[-4:], "little")
