"""Which version of a file a server gives: what it says of it with each answer, and whether two answers agree."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ...common.fileio import sha256_bytes


class Ask(NamedTuple):
    """Bytes `start` to `end` of a file; an answer of fewer than `least` is a failure."""

    path: str
    start: int
    end: int
    least: int
    expected: Version | None = None
    """What the file was when it was first read."""


class Version(NamedTuple):
    """What a server says of a file with a part of it; empty or None where it says nothing."""

    etag: str = ""
    modified: str = ""
    length: int | None = None
    """Bytes of the whole file."""

    @property
    def is_strong(self) -> bool:
        """Whether the ETag stands for these very bytes; only such a one may be sent as If-Match."""
        return bool(self.etag) and not self.etag.startswith("W/")

    @property
    def is_known(self) -> bool:
        """Whether another version of the file would look different."""
        return bool(self.etag or self.modified)

    def agrees(self, other: Version) -> bool:
        """Whether nothing that both say differs."""
        pairs = (
            (self.etag.removeprefix("W/"), other.etag.removeprefix("W/")),
            # A strong ETag decides; some servers give another time for each copy of a file
            *([] if self.is_strong and other.is_strong else [(self.modified, other.modified)]),
        )
        lengths = self.length is None or other.length is None or self.length == other.length
        return lengths and all(not (one and two) or one == two for one, two in pairs)

    @property
    def key(self) -> str:
        """Short text that differs between versions, for names of files."""
        said = self.etag if self.is_strong else f"{self.etag} {self.modified}"
        return sha256_bytes(f"{said}\n{self.length}".encode())[:12]

    def __str__(self) -> str:
        said = self.etag or self.modified or "neither ETag nor Last-Modified"
        return f"{said}, {'?' if self.length is None else self.length} bytes"


class Answer(NamedTuple):
    """Bytes of a file, and the version that they are of."""

    data: bytes
    version: Version


def version_of_headers(status: int, headers: Any) -> Version:  # noqa: ANN401 - any mapping without case
    """Version of the file behind an HTTP answer."""
    whole = re.search(r"/(\d{1,18})$", headers.get("Content-Range", ""))
    length = headers.get("Content-Length", "") if status == 200 else whole[1] if whole else ""
    return Version(
        headers.get("ETag", "")[:200],
        headers.get("Last-Modified", "")[:100],
        int(length) if length.isdecimal() else None,
    )


def version_of_info(info: dict[str, Any]) -> Version:
    """Version of a file by what fsspec says of it."""
    known = {name.lower(): value for name, value in info.items() if value is not None}
    times = (known.get(name) for name in ("lastmodified", "last_modified", "updated", "mtime", "created"))
    modified = next((str(value) for value in times if value is not None), "")
    size = known.get("size")
    return Version(str(known.get("etag", "")), modified, size if isinstance(size, int) else None)
