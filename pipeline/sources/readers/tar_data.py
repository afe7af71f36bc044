"""Read the data of a tar archive's members by their place, without extracting them."""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from typing import Any

from ...common.fileio import open_regular
from ...errors import PipelineError
from .images import LIMIT_BYTES
from .tar_headers import FileStamp

OPEN_FILES = 64
"""Archives that a process keeps open. A system allows 1024 open files by default, and workers inherit those of the main
process."""


class TarData:
    """Archives of a data set, opened when they are first read. Picklable, and safe in threads and forked processes.

    Attributes:
        stamps: path -> stamp of each archive when its headers were scanned.
    """

    def __init__(self) -> None:
        self.stamps: dict[str, FileStamp] = {}
        self._open = lru_cache(OPEN_FILES)(_OpenFile)

    def __getstate__(self) -> dict[str, Any]:
        return {"stamps": self.stamps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]  # open files stay in their process
        self.stamps = state["stamps"]

    def read(self, path: str, begin: int, end: int, what: str, limit_bytes: int = LIMIT_BYTES) -> bytes:
        """Return the bytes `begin` to `end` of an archive.

        Raises PipelineError, which begins with `what`, for an archive that is missing or was changed since the scan,
        and for a member larger than the limit.
        """
        if end - begin > limit_bytes:
            raise PipelineError(f"{what}: {end - begin} bytes, expected at most {limit_bytes}; is this a frame at all?")
        try:
            # An entry that another thread drops from the cache is closed when this call lets go of it
            file = self._open(path)
            data = os.pread(file.handle, end - begin, begin) if end > begin else b""
            stamp = FileStamp.of(file.handle)
        except OSError as error:
            missing = error.errno == errno.ENOENT
            remedy = "check the root given to `source`" if missing else "expected a readable file"
            raise PipelineError(f"{what}: {error.strerror}; {remedy}") from error
        if self.stamps.get(path, stamp) != stamp or len(data) < end - begin:
            raise PipelineError(
                f"{what}: {path} has changed since its headers were read; run the same command again, and do not write "
                "to shards that are in use"
            )
        return data


class _OpenFile:
    """An open file, closed with its last reference."""

    def __init__(self, path: str) -> None:
        self.handle = -1
        with open_regular(path) as file:
            self.handle = os.dup(file.fileno())

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
