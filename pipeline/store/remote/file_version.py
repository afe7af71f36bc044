"""Version of a remote file, as the server reports it with each response."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ...common.fileio import sha256_bytes


class RangeRequest(NamedTuple):
    """Request for bytes `start` to `end` of a file; a response of fewer than `least` bytes is an error."""

    path: str
    start: int
    end: int
    least: int
    expected: Version | None = None
    """Version at the first read."""


class Version(NamedTuple):
    """Version of a file, as reported with a range; fields are empty or None if missing."""

    etag: str = ""
    modified: str = ""
    length: int | None = None
    """Size of the whole file in bytes."""

    @property
    def is_strong(self) -> bool:
        """Whether the ETag is strong; only a strong one may be sent as If-Match."""
        return bool(self.etag) and not self.etag.startswith("W/")

    @property
    def is_known(self) -> bool:
        """Whether another version of the file would differ."""
        return bool(self.etag or self.modified)

    def agrees(self, other: Version) -> bool:
        """Return whether all fields that both have are equal."""
        pairs = (
            (self.etag.removeprefix("W/"), other.etag.removeprefix("W/")),
            # A strong ETag decides; some servers report different times for copies of a file
            *([] if self.is_strong and other.is_strong else [(self.modified, other.modified)]),
        )
        lengths = self.length is None or other.length is None or self.length == other.length
        return lengths and all(not (mine and theirs) or mine == theirs for mine, theirs in pairs)

    @property
    def key(self) -> str:
        """Short text that identifies the version in file names."""
        text = self.etag if self.is_strong else f"{self.etag} {self.modified}"
        return sha256_bytes(f"{text}\n{self.length}".encode())[:12]

    def __str__(self) -> str:
        text = self.etag or self.modified or "neither ETag nor Last-Modified"
        return f"{text}, {'?' if self.length is None else self.length} bytes"


class Answer(NamedTuple):
    """Bytes of a file and their version."""

    data: bytes
    version: Version


def version_of_headers(status: int, headers: Any) -> Version:  # noqa: ANN401 - any case-insensitive mapping
    """Return the version of the file from an HTTP response."""
    whole = re.search(r"/(\d{1,18})$", headers.get("Content-Range", ""))
    length = headers.get("Content-Length", "") if status == 200 else whole[1] if whole else ""
    return Version(
        headers.get("ETag", "")[:200],
        headers.get("Last-Modified", "")[:100],
        int(length) if length.isdecimal() else None,
    )


def version_of_info(info: dict[str, Any]) -> Version:
    """Return the version of a file from fsspec's info."""
    known = {name.lower(): value for name, value in info.items() if value is not None}
    times = (known.get(name) for name in ("lastmodified", "last_modified", "updated", "mtime", "created"))
    modified = next((str(value) for value in times if value is not None), "")
    size = known.get("size")
    return Version(str(known.get("etag", "")), modified, size if isinstance(size, int) else None)
