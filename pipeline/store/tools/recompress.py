"""Write a store again with another compression level: other bytes, the same values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..format.codec import decode_chunk, encode_chunk
from ..write.writer import StoreWriter, write_shards
from .subset import columns_of, encoded_sample

if TYPE_CHECKING:
    from pathlib import Path

    from ...common.progress import Progress
    from ..read.store import Store
    from ..write.encode import EncodedSample


def recompress_store(store: Store, out: Path, level: int, progress: Progress | None = None) -> int:
    """Write the store `out` with all samples of `store` at a compression level. Returns its shard bytes.

    Resumes an interrupted call. Raises PipelineError for a level outside 1 to 9 or an existing `out`, and
    DamagedStoreError for a damaged chunk.
    """
    spec = replace(store.spec, compression_level=level)
    rows = columns_of(store)
    arrays = store.layout.sharded()

    def recompressed(number: int) -> EncodedSample:
        sample = encoded_sample(store, number, rows)
        chunks = {
            array.path: [
                None if chunk is None else encode_chunk(decode_chunk(chunk, array.chunk, np.dtype(array.dtype)), level)
                for chunk in sample.chunks[array.path]
            ]
            for array in arrays
        }
        return sample._replace(chunks=chunks)

    return write_shards(
        StoreWriter(out, spec, list(store.ids), store.bases),
        lambda members: [recompressed(number) for number in members],
        "recompress",
        progress,
    )
