"""Reads numbers from a MATLAB 5 file, the one kind that NYU's `splits.mat` is; not a general reader.

The format: MathWorks, "MAT-File Format", level 5. A file is 128 bytes, then elements of a type, a length and a body
that is filled up to 8 bytes; an element of type 15 is another, packed with zlib. An array is an element of type 14 that
holds flags, dimensions, a name and the numbers, perhaps as a smaller type than the array's own.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from ...errors import PipelineError
from .images import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

LIMIT_BYTES = 2**20
PACKED, ARRAY = 15, 14
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}


def read_mat5(path: str, what: str) -> dict[str, NDArray[np.float64]]:
    """Name -> numbers, flat, of each array of numbers of a file of at most 1 MB.

    Raises PipelineError for a file that is missing, larger, damaged, or no MATLAB 5 file.
    """
    data = read_bytes(path, what, LIMIT_BYTES)
    if len(data) < 128 or data[126:128] != b"IM":
        raise PipelineError(f"{what} {path}: no MATLAB 5 file of a machine as ours; expected splits.mat as NYU has it")
    try:
        found = {}
        for kind, body in _elements(data[128:]):
            if kind == PACKED:
                unpacker = zlib.decompressobj()
                unpacked = unpacker.decompress(body, LIMIT_BYTES)
                if not unpacker.eof:
                    raise PipelineError(f"an array of more than {LIMIT_BYTES} bytes, or cut off")
                kind, body = next(_elements(unpacked))  # noqa: PLW2901 - what was packed
            if kind == ARRAY:
                parts = list(_elements(body))
                if len(parts) >= 4 and parts[3][0] in NUMBERS:
                    dtype, numbers = NUMBERS[parts[3][0]], parts[3][1]
                    found[parts[2][1].decode("ascii")] = np.frombuffer(numbers, f"<{dtype}").astype(np.float64)
    except (ValueError, StopIteration, struct.error, zlib.error) as error:
        raise PipelineError(f"{what} {path}: damaged ({error}); copy or download it again") from error
    return found


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each element."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        start = at + 8
        if kind >> 16:  # a small one: its length stands in the upper half of its type, its body in the next 4 bytes
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + size > len(data):
            raise PipelineError(f"an element of {size} bytes where {len(data) - start} are left")
        yield kind, data[start : start + size]
        at = start + size if kind == PACKED else -(-(start + size) // 8) * 8
