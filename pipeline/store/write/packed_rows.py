"""Rows of one shard as bytes in the store's own types: an eighth of the memory that Python's numbers and text take.

A run keeps the rows of all finished shards until it writes them, and reads them back from its journal when it resumes:
of a million samples they are 60 MB, and half a gigabyte as lists. Nothing is lost, because these types are what the
columns of the store end in.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..format.layout import AFFINE_DTYPES, ALIGNMENT_DTYPES, CARRIED_DTYPES, SAMPLE_DTYPES, SPARSE_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

JOURNAL_DTYPES = {"outside_bins_share": ("float32", 0), "is_constant": ("uint8", 0)}
"""Of columns that a run needs at its end, and no store has."""
COLUMNS = SAMPLE_DTYPES | AFFINE_DTYPES | SPARSE_DTYPES | CARRIED_DTYPES | ALIGNMENT_DTYPES | JOURNAL_DTYPES
"""Type and width of the columns that are packed; any other one stays a list."""


class PackedRows(Mapping[str, list[Any]]):
    """Columns of one value a sample, by name: numbers, None for NaN, and of `image_sha256` lower-case hex."""

    def __init__(self, rows: Mapping[str, Sequence[Any]]) -> None:
        self._columns: dict[str, bytes | list[Any]] = {name: _packed(name, rows[name]) for name in rows}

    def __getitem__(self, name: str) -> list[Any]:
        column = self._columns[name]
        if not isinstance(column, bytes):
            return column
        dtype, width = COLUMNS[name]
        if name == "image_sha256":
            return [column[start : start + width].hex() for start in range(0, len(column), width)]
        values = np.frombuffer(column, np.dtype(dtype).newbyteorder("<"))
        listed: list[Any] = (values.reshape(-1, width) if width else values).tolist()
        return [None if one != one else one for one in listed]  # noqa: PLR0124 - NaN, which JSON has not

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def array(self, name: str, dtype: np.dtype[Any], width: tuple[int, ...]) -> NDArray[Any]:
        """A column (rows, *width) as the store has it. Raises PipelineError or TypeError for another type."""
        column = self._columns[name]
        if isinstance(column, bytes):
            return np.frombuffer(column, dtype.newbyteorder("<")).reshape(-1, *width)
        return np.array(column, dtype).reshape(-1, *width)

    def as_json(self) -> dict[str, str | list[Any]]:
        """The columns as a line of the journal has them: bytes in base64."""
        return {
            name: base64.b64encode(column).decode() if isinstance(column, bytes) else column
            for name, column in self._columns.items()
        }

    @classmethod
    def from_json(cls, rows: Mapping[str, Any]) -> PackedRows:
        """Read the columns of a journal's line, also of one from before they were packed."""
        return cls({name: base64.b64decode(one) if isinstance(one, str) else one for name, one in rows.items()})


def _packed(name: str, values: Sequence[Any]) -> bytes | list[Any]:
    if isinstance(values, bytes):
        return values
    try:
        if name == "image_sha256":
            return bytes.fromhex("".join(values))
        if name in COLUMNS:
            return np.array(values, np.dtype(COLUMNS[name][0]).newbyteorder("<")).tobytes()
    except (ValueError, TypeError, OverflowError):  # not of its type: whoever writes the column refuses it
        pass
    return list(values)
