"""Columns of `sample/`, one row a sample, as the files of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .codec import encode_chunk
from .layout import ROWS_PER_CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from .journal import ShardRecord
    from .layout import ArrayLayout


def column_files(array: ArrayLayout, ids: Sequence[str], records: Sequence[ShardRecord]) -> Iterator[tuple[str, bytes]]:
    """Path in the store and content of each file of a column: the ids themselves, or what the records say."""
    assert array.chunk[0] <= ROWS_PER_CHUNK
    name = array.path.removeprefix("sample/")
    values = _id_rows(ids, array.shape) if name == "id" else _column(name, records, array.dtype, array.shape)
    for number in range(array.files):
        part = np.zeros(array.chunk, array.dtype)
        rows = values[number * array.chunk[0] : (number + 1) * array.chunk[0]]
        part[: len(rows)] = rows
        yield array.file(number), encode_chunk(part)


def _id_rows(ids: Sequence[str], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    joined = b"".join(name.encode().ljust(shape[1], b"\0") for name in ids)
    return np.frombuffer(joined, np.uint8).reshape(shape)


def _column(
    name: str, records: Sequence[ShardRecord], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    values = [value for record in records for value in record.rows[name]]
    if name == "image_sha256":
        return np.frombuffer(bytes.fromhex("".join(values)), np.uint8).reshape(shape)
    return np.array(values, dtype).reshape(shape)  # None, which the journal's JSON has for NaN, becomes that again
