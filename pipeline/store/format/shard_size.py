"""Default number of samples in a shard: little work to repeat, and few files for a million samples."""

from __future__ import annotations

from .layout import MAX_INDEX_BYTES, PLANES_PER_CHUNK

SAMPLES_PER_SHARD = {"gaussian": 128, "sparse": 128, "dense": 8}
"""Defaults for a small store. A writer holds a whole shard in memory, and a killed run repeats unfinished shards."""
ARRAYS = {"gaussian": 1, "sparse": 4, "dense": 2}
"""Number of sharded arrays by kind of maps."""
DEFAULT_MAX_FILES = 80_000
"""Limit of shard files for the default; gives a manifest of 10 MB and stays below the format's limit."""


def default_samples_per_shard(dpm_kind: str, samples: int, bin_count: int, more_arrays: int = 0) -> int:
    """Return the default samples per shard: 128, doubled until the shards are at most `DEFAULT_MAX_FILES` files.

    `more_arrays` is the number of sharded arrays besides depth and maps. For dense maps it is always 8: a shard must
    fit into memory.
    """
    size = SAMPLES_PER_SHARD[dpm_kind]
    if dpm_kind == "dense":
        return size
    chunks = -(-bin_count // PLANES_PER_CHUNK) if dpm_kind == "sparse" else 1
    arrays = ARRAYS[dpm_kind] + more_arrays
    while arrays * -(-samples // size) > DEFAULT_MAX_FILES and 16 * 2 * size * chunks + 4 <= MAX_INDEX_BYTES:
        size *= 2
    return size
