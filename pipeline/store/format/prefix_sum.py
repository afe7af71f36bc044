"""The quick way from a residual to depth: sums over four pixels at a time, and memory that is used again.

The residual of codes below 2^14 is summed in 64-bit words of four pixels. As an integer such a word is
`v0 + v1 2^16 + v2 2^32 + v3 2^48` with v of either sign, so that sums of words are words of sums, whatever is carried
from one pixel to the next. Codes are neither negative nor above 2^16, so in the end each pixel reads its own code.

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
"""Codes of at most so many bits are summed by words: then no residual needs more than its 16 bits and a sign."""
WORDS_WORK = sys.byteorder == "little"
PIXELS = 4
SPREAD = np.uint64(0x0001_0001_0001_0001)
"""Times this, each pixel of a word is the sum of itself and those before it."""
HALF = np.uint64(2**47)
"""Half a unit of a word's last pixel: with it the shift that reads that pixel rounds, instead of rounding down."""
HALF_UNSPREAD = np.uint64(2**64 + 2**47 - 2**63)
"""What SPREAD makes HALF of."""
LAST_PIXEL = np.int64(48)

KEPT_BYTES = 2**24
"""Larger memory is not kept for the next sample."""
LOOKED_UP_AT_ONCE = 2**16


class _Kept(threading.local):
    """Memory of each thread's own. A fresh page costs more than the sums over what it holds."""

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[np.uint8]] = {}


_KEPT = _Kept()


def scratch(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """Uninitialised array that is valid until this thread asks for `name` again."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = _KEPT.buffers.get(name)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        if size <= KEPT_BYTES:
            _KEPT.buffers[name] = buffer
    return buffer[:size].view(dtype).reshape(shape)


def sum_by_words(residual: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Codes (h, w) of a contiguous residual (h, w), which is overwritten; valid until this thread's next call.

    Where all of them are below 2^14 they are what sums modulo 2^16 give. Where those give a larger one, so does this,
    though not the same.
    """
    height, width = residual.shape
    whole = residual
    if width % PIXELS:
        whole = scratch("whole", (height, -(-width // PIXELS) * PIXELS), np.uint16)  # type: ignore[assignment]
        whole[:, :width] = residual  # what lies beyond is of no matter: a word is carried to later pixels alone
    odd: NDArray[np.uint16] = scratch("odd", whole.shape, np.uint16)  # type: ignore[assignment]
    np.bitwise_and(whole, 1, out=odd)
    odd *= whole
    whole >>= 1
    words, last = whole.view(np.uint64), odd.view(np.uint64)
    words -= last  # the zigzag undone: r / 2 where r is even, (r - 1) / 2 - r where it is odd
    words[0] += HALF_UNSPREAD
    np.add.accumulate(words, axis=0, out=words)
    words *= SPREAD
    np.right_shift(words.view(np.int64), LAST_PIXEL, out=last.view(np.int64))
    words[:, 0] -= HALF
    last[:, 0] -= HALF_UNSPREAD  # and the sum to its right takes HALF from all other words
    np.add.accumulate(last, axis=1, out=last)
    last *= SPREAD
    words[:, 1:] += last[:, :-1]
    return whole[:, :width]


def look_up(table: NDArray[np.float32], codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The table's value (h, w) at each code (h, w), none of which lies beyond it."""
    height, width = codes.shape
    found = np.empty(codes.shape, np.float32)
    rows = max(1, LOOKED_UP_AT_ONCE // max(1, width))
    memory: NDArray[np.intp] = scratch("index", (min(rows, height), width), np.intp)  # type: ignore[assignment]
    for top in range(0, height, rows):
        index = memory[: height - top]
        index[...] = codes[top : top + rows]
        # Not for its wrapping, which never happens: the default mode would write to a copy first.
        np.take(table, index, out=found[top : top + rows], mode="wrap")
    return found
