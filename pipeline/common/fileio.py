"""Files that are either whole or absent: write to a temporary file, sync, rename. Also JSON, CSV and sha256."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import stat
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..errors import PipelineError
from .own_files import hidden_name, naming, open_new, open_to_append, refused_link, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


JSON_MAX_MARKS = 2**20
"""Limit of `, : [ { "` in a JSON file: parsed, they take up to 200 MB of memory."""
JSON_MAX_DEPTH = 64


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path`; after a crash it holds the old content or the new, never a part.

    Raises OSError with the path.
    """
    temporary = hidden_name(path, "tmp")
    _write_and_sync(open_new(temporary), path, data)
    temporary.replace(path)
    sync_directory(path.parent)


def append_durably(path: Path, data: bytes) -> None:
    """Append `data` to `path`; after a crash it may hold a part of `data`, or nothing of it."""
    _write_and_sync(open_to_append(path), path, data)


def cut_durably(path: Path, size: int) -> None:
    """Truncate a file to `size` bytes."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise refused_link(path, error) from None
    try:
        with naming(path):
            os.truncate(handle, size)
            os.fsync(handle)
    finally:
        os.close(handle)


def _write_and_sync(handle: int, path: Path, data: bytes) -> None:
    # Uses `os` directly: tests/faults/power_loss.py records these calls to simulate a crash after each.
    try:
        with naming(path):
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[os.write(handle, remaining) :]
            os.fsync(handle)
    finally:
        os.close(handle)


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return JSON bytes that depend on the value alone: sorted keys, no spaces. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def pretty_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return readable JSON bytes: sorted keys, two spaces, a final newline. Raises ValueError for NaN."""
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file for reading. Raises OSError for a pipe or a device, from which a reader could wait forever."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file (a pipe or a device)", str(path))
    return os.fdopen(handle, "rb")


def read_json(path: Path, what: str, limit_bytes: int = 2**24) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a JSON file. Raises PipelineError that names the file, `what` it should be, and what is wrong."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit_bytes:
                raise PipelineError(
                    f"{what} {path}: {size} bytes, expected at most {limit_bytes}; this is not a file of this program"
                )
            data = file.read(limit_bytes)
    except OSError as error:
        raise PipelineError(f"{what} {path}: {error.strerror}") from error
    try:
        return parse_json(data)
    except ValueError as error:
        raise PipelineError(f"{what} {path}: not valid JSON ({error})") from error


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Parse untrusted JSON: finite numbers of at most 64 bits, valid Unicode, no duplicate keys.

    Raises ValueError for anything else, and for text that would need much memory or a deep stack.
    """
    marks = sum(map(data.count, (b",", b":", b"[", b"{", b'"')))
    if marks > JSON_MAX_MARKS:
        raise PipelineError(f"it has {marks} brackets, commas, colons and quotes; expected at most {JSON_MAX_MARKS}")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            parse_int=_whole_number,
            parse_float=_finite_number,
            object_pairs_hook=_without_duplicates,
        )
    except RecursionError:
        raise PipelineError(f"nested deeper than {JSON_MAX_DEPTH}") from None
    level = [value]
    for _ in range(JSON_MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise PipelineError(f"nested deeper than {JSON_MAX_DEPTH}")
    if re.search(rb"\\u[dD][89abAB]", data):
        canonical_json(value)  # raises for half a surrogate pair, which cannot be printed
    return value


def _refuse_constant(name: str) -> float:
    raise PipelineError(f"{name} is not a JSON number")


def _whole_number(text: str) -> int:
    # Check the length first: Python refuses thousands of digits, or takes long.
    value = int(text) if len(text) <= 20 else 2**63
    if not -(2**63) <= value < 2**63:
        raise PipelineError(f"a number of {len(text)} digits does not fit 64 bits")
    return value


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise PipelineError(f"{text[:40]} is not a finite number")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        [(duplicate, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise PipelineError(f"duplicate key {duplicate[:80]!r}")
    return value


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line breaks, bidirectional marks, and bytes that are not UTF-8."""


def has_control(text: str) -> bool:
    """Return whether a name has a character of CONTROL. Spaces, accents and emoji are allowed."""
    return CONTROL.search(text) is not None


def printable(text: str) -> str:
    """Escape control characters in `text`: in a file name they could move a terminal's cursor."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )


def sha256_bytes(data: bytes) -> str:
    """Lower-case hex sha256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Lower-case hex sha256 of a file, read in pieces."""
    with open_regular(path) as file, naming(path):
        return hashlib.file_digest(file, "sha256").hexdigest()


class CsvTable:
    """Rows in memory, and the CSV file to which they are written durably."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def write(self) -> None:
        """Write all rows; missing values are empty."""
        if self.rows:
            text = io.StringIO()
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_durably(self.path, text.getvalue().encode())

    def read(self, keep: Callable[[dict[str, str]], bool]) -> None:
        """Read the rows of the file that `keep` accepts; values are text."""
        if self.path.exists():
            with io.TextIOWrapper(open_regular(self.path), encoding="utf-8", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if keep(row)]
