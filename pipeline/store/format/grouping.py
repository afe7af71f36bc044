"""How many samples go into one shard where nobody says: as few as keep a store to a number of files that opens at once.

A manifest is parsed by every process that opens a store, so what grows with the data set is the shard and not the list.
"""

from __future__ import annotations

from .layout import MAX_INDEX_BYTES, PLANES_PER_CHUNK

SAMPLES_PER_SHARD = {"gaussian": 128, "sparse": 128, "dense": 8}
"""Of a small store. A writer holds a whole shard in memory, and a run that is killed makes its last ones again."""
ARRAYS = {"gaussian": 1, "sparse": 4, "dense": 2}
"""Sharded arrays of each kind of maps."""
USUAL_FILES = 80_000
"""Of shards: below what the format allows, rows and metadata included; a manifest of 10 MB."""


def usual_samples_per_shard(dpm_kind: str, samples: int, bin_count: int) -> int:
    """Samples a shard of a store of `samples`: 128, doubled until its shards are at most `USUAL_FILES` files.

    Of dense maps it is 8, however many there are: a shard has to fit into memory.
    """
    size = SAMPLES_PER_SHARD[dpm_kind]
    if dpm_kind == "dense":
        return size
    chunks = -(-bin_count // PLANES_PER_CHUNK) if dpm_kind == "sparse" else 1
    while ARRAYS[dpm_kind] * -(-samples // size) > USUAL_FILES and 16 * 2 * size * chunks + 4 <= MAX_INDEX_BYTES:
        size *= 2
    return size
