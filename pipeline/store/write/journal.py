"""Journal of finished shards: one line per shard with a checksum, synced before the next.

A crash can only truncate the last line: it is removed, and its shard is written again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c

from ...common.fileio import append_durably, canonical_json, cut_durably, write_durably
from ...common.own_files import sync_directory
from .packed_rows import PackedRows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard: its files with size and sha256, and one row per sample."""

    shard: int
    size_px: tuple[int, int]
    """(h, w) of the teacher's output; the same in every record of a journal."""
    files: dict[str, tuple[int, str]]
    rows: Mapping[str, list[Any]]
    """Columns of the `sample` arrays except the id; stored as PackedRows."""

    def __post_init__(self) -> None:
        if not isinstance(self.rows, PackedRows):
            object.__setattr__(self, "rows", PackedRows(self.rows))

    def column(self, name: str, dtype: np.dtype[Any], width: tuple[int, ...]) -> NDArray[Any]:
        """Return a column (rows, *width) in the store's dtype. Raises PipelineError or TypeError for invalid values."""
        assert isinstance(self.rows, PackedRows)
        return self.rows.array(name, dtype, width)

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(size for size, _ in self.files.values())

    def line(self) -> bytes:
        """Return the journal line."""
        assert isinstance(self.rows, PackedRows)
        rows = self.rows.as_json()
        text = canonical_json({"shard": self.shard, "size_px": self.size_px, "files": self.files, "rows": rows})
        return b"%08x %s\n" % (google_crc32c.value(text), text)

    @classmethod
    def parse(cls, line: bytes) -> ShardRecord | None:
        """Parse a journal line; None if it is truncated or damaged."""
        if not line.endswith(b"\n") or line[8:9] != b" ":
            return None
        text = line[9:-1]
        try:
            if int(line[:8], 16) != google_crc32c.value(text):
                return None
        except ValueError:
            return None
        value = json.loads(text)
        height, width = value["size_px"]
        files = {path: (size, digest) for path, (size, digest) in value["files"].items()}
        return cls(value["shard"], (height, width), files, PackedRows.from_json(value["rows"]))


class Journal:
    """The journal of one staging directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[int, ShardRecord]:
        """Return finished shards by number. Truncates the journal after the last valid line."""
        records: dict[int, ShardRecord] = {}
        if not self.path.exists():
            return records
        good = 0
        with self.path.open("rb") as file:
            for line in file:
                record = ShardRecord.parse(line)
                if record is None:
                    break
                records[record.shard] = record
                good += len(line)
        if good < self.path.stat().st_size:
            cut_durably(self.path, good)
        return records

    def append(self, record: ShardRecord) -> None:
        """Append a finished shard durably. Its files must be durable already."""
        fresh = not self.path.exists()
        append_durably(self.path, record.line())
        if fresh:
            sync_directory(self.path.parent)

    def forget(self, shards: set[int]) -> None:
        """Remove shards, so that the next run writes them again."""
        remaining = [record for number, record in sorted(self.read().items()) if number not in shards]
        write_durably(self.path, b"".join(record.line() for record in remaining))
