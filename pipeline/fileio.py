"""Files that are either whole or absent: write beside, sync, rename. Also JSON, CSV and sha256."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (a rename is not, until its directory is synced)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that after a crash it holds the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """JSON bytes that depend on the value alone: sorted keys, no spaces, no NaN. Raises ValueError on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def pretty_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """JSON bytes for people: sorted keys, two spaces, a final newline. Raises ValueError on NaN."""
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, what: str, limit_bytes: int = 64 * 2**20) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a JSON file, or raise ValueError naming the file, `what` it should be, and what is wrong."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{what} {path}: {error.strerror}") from error
    if size > limit_bytes:
        raise ValueError(f"{what} {path}: {size} bytes, expected at most {limit_bytes}; this is no file of ours")
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} {path}: not valid JSON ({error})") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def sha256_bytes(data: bytes) -> str:
    """Lower-case hex sha256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Lower-case hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CsvTable:
    """Rows in memory that are kept as a CSV file, whole or absent like every file here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def write(self) -> None:
        """Write all rows; a column that some rows lack is empty there."""
        if self.rows:
            text = io.StringIO()
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_durably(self.path, text.getvalue().encode())

    def read(self, keep: Callable[[dict[str, str]], bool]) -> None:
        """Take back the rows of the file that `keep` accepts; values are text."""
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if keep(row)]
