"""Fast decoding of residuals: prefix sums over four pixels at a time, with reused memory.

The residual of codes below 2^14 is summed in 64-bit words of four pixels. As an integer such a word is
`v0 + v1 2^16 + v2 2^32 + v3 2^48` with signed v, so a sum of words is a word of sums despite carries between pixels.
Final codes are between 0 and 2^16, so each pixel reads its own code.

Shape legend: h, w pixels of the teacher's own output; g words in a row.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

WORD_BITS = 14
"""Limit of bits for sums by words: no residual then needs more than 16 bits and a sign."""
WORDS_WORK = sys.byteorder == "little"
PIXELS = 4
SPREAD = np.uint64(0x0001_0001_0001_0001)
"""Multiplying by this makes each pixel of a word the sum of itself and the pixels before it."""
HALF = np.uint64(2**47)
"""Half a unit of a word's last pixel: with it the shift that reads that pixel rounds to nearest instead of down."""
HALF_UNSPREAD = np.uint64(2**64 + 2**47 - 2**63)
"""The value that SPREAD turns into HALF."""
LAST_PIXEL = np.int64(48)

MAX_BUFFER_BYTES = 2**24
"""Larger buffers are not reused."""
LOOKUP_BLOCK = 2**16


class _Buffers(threading.local):
    """Reused buffers, one set per thread: a fresh page costs more than the sums over it."""

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[np.uint8]] = {}


_BUFFERS = _Buffers()


def scratch(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """Return an uninitialized array, valid until this thread requests `name` again."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = _BUFFERS.buffers.get(name)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        if size <= MAX_BUFFER_BYTES:
            _BUFFERS.buffers[name] = buffer
    return buffer[:size].view(dtype).reshape(shape)


def sum_by_words(residual: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return codes (h, w) of a contiguous residual (h, w), overwriting it; valid until this thread's next call.

    If all codes are below 2^14 they equal the sums modulo 2^16. If those give a larger code, this gives a larger
    code too, though perhaps another one.
    """
    height, width = residual.shape
    padded = residual
    if width % PIXELS:
        padded = scratch("padded", (height, -(-width // PIXELS) * PIXELS), np.uint16)  # type: ignore[assignment]
        padded[:, :width] = residual  # padding needs no value: carries only reach later pixels
    odd: NDArray[np.uint16] = scratch("odd", padded.shape, np.uint16)  # type: ignore[assignment]
    np.bitwise_and(padded, 1, out=odd)
    odd *= padded
    padded >>= 1
    words, last = padded.view(np.uint64), odd.view(np.uint64)
    words -= last  # the zigzag undone: r / 2 where r is even, (r - 1) / 2 - r where it is odd
    words[0] += HALF_UNSPREAD
    np.add.accumulate(words, axis=0, out=words)
    words *= SPREAD
    np.right_shift(words.view(np.int64), LAST_PIXEL, out=last.view(np.int64))
    words[:, 0] -= HALF
    last[:, 0] -= HALF_UNSPREAD  # the sum over the row then removes HALF from all other words
    np.add.accumulate(last, axis=1, out=last)
    last *= SPREAD
    words[:, 1:] += last[:, :-1]
    return padded[:, :width]


def look_up(table: NDArray[np.float32], codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the table's value (h, w) at each code (h, w); every code must lie inside the table."""
    height, width = codes.shape
    values = np.empty(codes.shape, np.float32)
    rows = max(1, LOOKUP_BLOCK // max(1, width))
    memory: NDArray[np.intp] = scratch("index", (min(rows, height), width), np.intp)  # type: ignore[assignment]
    for top in range(0, height, rows):
        index = memory[: height - top]
        index[...] = codes[top : top + rows]
        # mode="wrap" avoids a copy of the default mode; no code wraps.
        np.take(table, index, out=values[top : top + rows], mode="wrap")
    return values
