"""Bytes per sample of a store: its chunks, as progress, summary, `store info` and `store estimate` report them.

Shard indexes and metadata are left out: they are negligible in a large store, but would distort a small one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .layout import ArrayLayout


def chunk_bytes(arrays: Iterable[ArrayLayout], files: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    """Return the bytes of the chunks of each sharded array, by its path, over those of its files that `files` lists."""
    return {
        array.path: sum(
            files[name][0] - array.index_bytes for name in map(array.file, range(array.files)) if name in files
        )
        for array in arrays
    }
