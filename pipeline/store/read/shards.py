"""Read the chunks of a sample from shards; caches shard indexes and compares each shard with the manifest once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import google_crc32c

from ...errors import DamagedStoreError
from ..format.shard import EMPTY, parse_index, read_chunk
from .files import PrefetchingFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from ..format.layout import ArrayLayout
    from .files import StoreFiles
    from .validate import Manifest

CACHED_INDEXES = 64
PIECE_BYTES = 2**20


class ShardReader:
    """Shards of one store. Picklable without its caches."""

    def __init__(self, files: StoreFiles, manifest: Manifest, *, check_shards: bool) -> None:
        self.files = files
        self.manifest = manifest
        self.check_shards = check_shards
        self._indexes: OrderedDict[str, NDArray[np.uint64]] = OrderedDict()
        self._checked: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indexes": OrderedDict(), "_checked": set()}

    def read(self, array: ArrayLayout, shard: int, position: int, *, reuse: bool = False) -> list[NDArray[Any] | None]:
        """Return the chunks of the sample at `position` in a shard; None for an absent chunk.

        With `reuse`, for arrays of one chunk per sample, a chunk is valid until this thread's next such call.
        Raises DamagedStoreError.
        """
        assert array.chunks_per_sample == 1 or not reuse
        return list(self.each(array, shard, position, reuse=reuse))

    def each(
        self, array: ArrayLayout, shard: int, position: int, *, reuse: bool = False
    ) -> Iterator[NDArray[Any] | None]:
        """Yield what `read` returns, one chunk at a time: all chunks of a map may take gigabytes."""
        file = array.file(shard)
        rows = self.entries(array, shard, position)
        if len(rows) > 1 and isinstance(self.files, PrefetchingFiles):
            self.files.prefetch(file, [(int(at), int(length)) for at, length in rows if at != EMPTY])

        def read_range(offset: int, length: int) -> bytes:
            return self.files.read_range(file, offset, length)

        for step in range(len(rows)):
            yield read_chunk(array, rows, step, read_range, reuse=reuse)

    def entries(self, array: ArrayLayout, shard: int, position: int) -> NDArray[np.uint64]:
        """Return offsets and lengths (chunks, 2) of the sample at `position`; EMPTY for an absent chunk."""
        first = position * array.chunks_per_sample
        return self._index(array, array.file(shard))[first : first + array.chunks_per_sample]

    def _index(self, array: ArrayLayout, file: str) -> NDArray[np.uint64]:
        index = self._indexes.get(file)
        if index is None:
            size = self.files.size(file)
            if size != self.manifest[file][0]:
                raise DamagedStoreError(f"{file} has {size} bytes: the manifest lists {self.manifest[file][0]}")
            index = parse_index(array, self.files.read_range(file, 0, array.index_bytes), size)
            if self.check_shards and file not in self._checked:
                self._check_shard(file, index)
            while len(self._indexes) >= CACHED_INDEXES:
                self._indexes.popitem(last=False)
        else:
            self._indexes.move_to_end(file)
        self._indexes[file] = index
        return index

    def _check_shard(self, file: str, index: NDArray[np.uint64]) -> None:
        """Compare a shard's sha256 with the manifest on first use.

        If it differs and a chunk's checksum fails, the shard has bit rot, and its other samples stay readable.
        If it differs although every checksum matches, chunks were replaced or moved, and no sample is trusted. Both
        at once look like bit rot; `verify` reports them as well.
        """
        size, digest = self.manifest[file]
        hasher = hashlib.sha256()
        for offset in range(0, size, PIECE_BYTES):
            hasher.update(self.files.read_range(file, offset, PIECE_BYTES))
        if hasher.hexdigest() != digest:
            used = index[index[:, 0] != EMPTY]
            if all(_matches_checksum(self.files.read_range(file, int(at), int(n))) for at, n in used):
                raise DamagedStoreError(
                    "every checksum of the shard matches, but its sha256 differs from the manifest: a chunk or the "
                    "whole shard was swapped, removed or replaced"
                )
        self._checked.add(file)


def _matches_checksum(chunk: bytes) -> bool:
    matches: bool = google_crc32c.value(chunk[:-4]) == int.from_bytes(chunk[-4:], "little")
    return matches
