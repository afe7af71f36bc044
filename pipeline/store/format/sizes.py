"""What a sample of a store takes: its chunks.

One figure for progress, summary, `store info` and `store estimate`. Indexes of shards and metadata are left out: they
weigh in a small store, whose last shard's index has entries for samples that are not there, and not in a large one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .layout import ArrayLayout


def chunk_bytes(arrays: Iterable[ArrayLayout], files: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    """Bytes of the chunks of each sharded array, by its path, in those of its files that are among `files`."""
    return {
        array.path: sum(
            files[name][0] - array.index_bytes for name in map(array.file, range(array.files)) if name in files
        )
        for array in arrays
    }
