"""A shard: one file with the chunks of many samples, as Zarr's `sharding_indexed` with the index at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from ...errors import DamagedStoreError
from .codec import CHUNK_EXTRA_BYTES, decode_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from .layout import ArrayLayout

EMPTY = 2**64 - 1
"""Offset and length of an absent chunk, which reads as zeros."""


def build_shard(layout: ArrayLayout, samples: Sequence[Sequence[bytes | None]]) -> bytes:
    """Return the bytes of a shard from the chunks of its samples, in order; None is a chunk of zeros.

    The last shard of an array may have fewer samples than the layout's shard; the rest of its index is empty.
    """
    assert layout.shard is not None
    index = np.full((layout.shard[0] * layout.chunks_per_sample, 2), EMPTY, "<u8")
    body: list[bytes] = []
    offset = layout.index_bytes
    for number, chunk in enumerate(chunk for sample in samples for chunk in sample):
        if chunk is not None:
            index[number] = offset, len(chunk)
            offset += len(chunk)
            body.append(chunk)
    head = index.tobytes()
    return b"".join([head, google_crc32c.value(head).to_bytes(4, "little"), *body])


def parse_index(layout: ArrayLayout, head: bytes, file_bytes: int) -> NDArray[np.uint64]:
    """Return (chunks, 2) offsets and lengths from the first `layout.index_bytes` bytes of a shard of `file_bytes`.

    Raises DamagedStoreError if the checksum fails or the chunks do not fill the rest of the file without gaps or
    overlaps, each within the largest size of a chunk.
    """
    if len(head) != layout.index_bytes or google_crc32c.value(head[:-4]) != int.from_bytes(head[-4:], "little"):
        raise DamagedStoreError("the shard's index does not match its checksum (crc32c)")
    index = np.frombuffer(head[:-4], "<u8").reshape(-1, 2)
    used = index[index[:, 0] != EMPTY]
    if used.size and (
        int(used[:, 0].min()) < layout.index_bytes
        or int(used[:, 1].max()) > file_bytes
        or int(used[:, 0].max()) > file_bytes
        or int((used[:, 0] + used[:, 1]).max()) > file_bytes
    ):
        raise DamagedStoreError("the shard's index points outside its file")
    if int(used[:, 1].max(initial=0)) > layout.chunk_bytes + CHUNK_EXTRA_BYTES:
        raise DamagedStoreError(
            f"the shard's index lists a chunk of {int(used[:, 1].max())} bytes: expected at most "
            f"{layout.chunk_bytes + CHUNK_EXTRA_BYTES}"
        )
    ends = np.concatenate([[np.uint64(layout.index_bytes)], used[:, 0] + used[:, 1]])
    if not (np.array_equal(ends[:-1], used[:, 0]) and int(ends[-1]) == file_bytes):
        raise DamagedStoreError("the chunks in the shard's index overlap or leave gaps")
    return index


def read_chunk(
    layout: ArrayLayout,
    index: NDArray[np.uint64],
    number: int,
    read: Callable[[int, int], bytes],
    *,
    reuse: bool = False,
) -> NDArray[np.generic] | None:
    """Read chunk `number` of a shard through `read(offset, length)`; None if absent. `reuse` as in `decode_chunk`.

    Raises DamagedStoreError.
    """
    offset, length = index[number].tolist()
    if offset == EMPTY:
        return None
    chunk = read(offset, length)
    if len(chunk) != length:
        raise DamagedStoreError(f"the shard is truncated: {len(chunk)} of {length} bytes at offset {offset}")
    return decode_chunk(chunk, layout.chunk, layout.dtype, reuse=reuse)
