"""Write columns of `sample/` file by file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..format.codec import encode_chunk
from ..format.layout import ROWS_PER_CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..format.layout import ArrayLayout
    from .journal import ShardRecord


def column_files(array: ArrayLayout, ids: Sequence[str], records: Sequence[ShardRecord]) -> Iterator[tuple[str, bytes]]:
    """Yield path in the store and content of each file of a column: ids, or rows of the records."""
    assert array.chunk[0] <= ROWS_PER_CHUNK
    name, width = array.path.removeprefix("sample/"), array.shape[1:]
    if name == "id":
        column = _id_rows(ids, *array.chunk)
    else:
        column = (record.column(name, array.dtype, width) for record in records)
    number, filled, part = 0, 0, np.zeros(array.chunk, array.dtype)
    for rows in column:
        rest = rows
        while len(rest):
            taken = rest[: len(part) - filled]
            part[filled : filled + len(taken)] = taken
            filled, rest = filled + len(taken), rest[len(taken) :]
            if filled == len(part):
                yield array.file(number), encode_chunk(part)
                number, filled, part = number + 1, 0, np.zeros(array.chunk, array.dtype)
    if filled:
        yield array.file(number), encode_chunk(part)


def _id_rows(ids: Sequence[str], rows: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield ids as UTF-8 (rows, width), padded with zeros; the last part may be shorter."""
    for begin in range(0, len(ids), rows):
        part = ids[begin : begin + rows]
        joined = b"".join(name.encode().ljust(width, b"\0") for name in part)
        yield np.frombuffer(joined, np.uint8).reshape(len(part), width)
