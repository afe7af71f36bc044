"""Rows of one shard as bytes in the store's dtypes: an eighth of the memory of Python objects.

A run keeps the rows of all finished shards until it writes them: a million samples take 60 MB, as lists 500 MB. The
dtypes are those of the store's columns, so nothing is lost.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..format.extras import column_dtype
from ..format.layout import AFFINE_DTYPES, ALIGNMENT_DTYPES, CARRIED_DTYPES, SAMPLE_DTYPES, SPARSE_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

JOURNAL_DTYPES = {"outside_bins_share": ("float32", 0), "is_constant": ("uint8", 0)}
"""Columns that a run needs at its end, but a store does not have."""
COLUMNS = SAMPLE_DTYPES | AFFINE_DTYPES | SPARSE_DTYPES | CARRIED_DTYPES | ALIGNMENT_DTYPES | JOURNAL_DTYPES
"""Dtype and width of packed columns; other columns stay lists."""


class PackedRows(Mapping[str, list[Any]]):
    """Columns by name, one value per sample: numbers, None for NaN, lower-case hex for `image_sha256`."""

    def __init__(self, rows: Mapping[str, Sequence[Any]]) -> None:
        self._columns: dict[str, bytes | list[Any]] = {name: _packed(name, rows[name]) for name in rows}

    def __getitem__(self, name: str) -> list[Any]:
        column = self._columns[name]
        if not isinstance(column, bytes):
            return column
        dtype, width = _dtype_of(name) or ("float32", 0)
        if name == "image_sha256":
            return [column[start : start + width].hex() for start in range(0, len(column), width)]
        values = np.frombuffer(column, np.dtype(dtype).newbyteorder("<"))
        listed: list[Any] = (values.reshape(-1, width) if width else values).tolist()
        return [None if value != value else value for value in listed]  # noqa: PLR0124 - NaN; a list equals itself

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def array(self, name: str, dtype: np.dtype[Any], width: tuple[int, ...]) -> NDArray[Any]:
        """Return a column (rows, *width) in the store's dtype. Raises PipelineError or TypeError for invalid values."""
        column = self._columns[name]
        if isinstance(column, bytes):
            return np.frombuffer(column, dtype.newbyteorder("<")).reshape(-1, *width)
        return np.array(column, dtype).reshape(-1, *width)

    def as_json(self) -> dict[str, str | list[Any]]:
        """Return the columns for a journal line: bytes in base64."""
        return {
            name: base64.b64encode(column).decode() if isinstance(column, bytes) else column
            for name, column in self._columns.items()
        }

    @classmethod
    def from_json(cls, rows: Mapping[str, Any]) -> PackedRows:
        """Parse the columns of a journal line, also of the older unpacked form."""
        return cls({name: base64.b64decode(rows[name]) if isinstance(rows[name], str) else rows[name] for name in rows})


def _dtype_of(name: str) -> tuple[str, int] | None:
    return COLUMNS.get(name) or column_dtype(name)


def _packed(name: str, values: Sequence[Any]) -> bytes | list[Any]:
    if isinstance(values, bytes):
        return values
    try:
        if name == "image_sha256":
            return bytes.fromhex("".join(values))
        if (known := _dtype_of(name)) is not None:
            return np.array(values, np.dtype(known[0]).newbyteorder("<")).tobytes()
    except (ValueError, TypeError, OverflowError):  # wrong type: writing the column raises
        pass
    return list(values)
