"""Planes of sparse maps in a store: read at once, a few at a time, or checked without decoding a map.

Shape legend: M planes that a sample uses, K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import PipelineError
from ..format.sparse import SparseMap, decode_planes, decode_sparse
from ..format.spec import StoreSpec
from .base import StoredSamples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..format.layout import StoreLayout

MAX_PLANES_BYTES = 2**28
"""Limit for decoding all planes of a sparse map at once; larger maps take a few planes at a time and longer."""


class SparsePlanes(StoredSamples[StoreSpec]):
    """Samples whose maps may be sparse."""

    layout: StoreLayout

    def decoded(self, number: int) -> NDArray[np.float32]:
        """Return the sparse map (K, h, w) of a sample, as `decode_sparse`. Raises PipelineError for invalid data."""
        if self._planes_bytes(number) > MAX_PLANES_BYTES:
            pairs = self._plane_pairs(number)
            return decode_planes(pairs, self._tail(number), self.spec.bin_count, self.spec.weight_bits)
        return decode_sparse(self.sparse_dpm(number), self.spec.bin_count, self.spec.weight_bits)

    @cached_property
    def _planes(self) -> NDArray[np.int32]:
        return self.rows("dpm_planes")

    def sparse_dpm(self, sample: int | str) -> SparseMap:
        """Return a sample's gaps, weights and tails. Raises PipelineError unless the store is `sparse`."""
        if self.spec.dpm_kind != "sparse":
            raise PipelineError(f"{self.name} has {self.spec.dpm_kind} maps: expected sparse ones; use .dpm()")
        number = self.index_of(sample)
        self._check_plane_chunks(number)
        planes, parts = int(self._planes[number]), []
        for path in ("dpm/gap", "dpm/weight"):
            array = self._arrays[path]
            stacked, step = np.empty((planes, *self.layout.size_px), array.dtype), array.chunk[1]
            for first, chunk in zip(range(0, planes, step), self._each_chunk(path, number), strict=False):
                assert chunk is not None
                stacked[first : first + step] = chunk[0, : planes - first]
            parts.append(stacked)
        return SparseMap(parts[0], parts[1], self._tail(number))

    def _tail(self, number: int) -> NDArray[Any]:
        (tail,) = self._chunks("dpm/tail", number)
        if tail is None:
            raise self._damaged("dpm/tail", number, "the chunk is missing")
        return tail[0]  # type: ignore[no-any-return]  # one map, (h, w)

    def _planes_bytes(self, number: int) -> int:
        """Return the uncompressed bytes of a sample's planes."""
        each = sum(self._arrays[path].dtype.itemsize for path in ("dpm/gap", "dpm/weight"))
        return int(self._planes[number]) * each * math.prod(self.layout.size_px)

    def _check_plane_chunks(self, number: int) -> None:
        """Raise DamagedStoreError unless a sample has exactly the chunks that its planes need."""
        planes = int(self._planes[number])
        for path in ("dpm/gap", "dpm/weight"):
            array = self._arrays[path]
            used = self._used_chunks(path, number)
            needed = -(-planes // array.chunk[1])
            if not (0 <= planes <= self.spec.bin_count and used[:needed].all() and int(used.sum()) == needed):
                raise self._damaged(path, number, f"{int(used.sum())} chunks for {planes} planes: expected {needed}")

    def _plane_pairs(self, number: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield gaps and weights (M, h, w) of a sample, one chunk of planes at a time, including unused planes."""
        self._check_plane_chunks(number)
        for gap, weight in zip(*(self._each_chunk(path, number) for path in ("dpm/gap", "dpm/weight")), strict=True):
            if gap is None or weight is None:
                return
            yield gap[0], weight[0]

    def check_planes(self, sample: int | str) -> None:
        """Raise DamagedStoreError for nonzero values that this reader ignores but others might not.

        These are planes beyond `sample/dpm_planes`, weights without a bin, and bins after a pixel's last one. Writers
        leave all of them 0.
        """
        number = self.index_of(sample)
        planes, first = int(self._planes[number]), 0
        ended = np.zeros(self.layout.size_px, np.bool_)
        for gap, weight in self._plane_pairs(number):
            used = max(0, planes - first)
            for path, part in (("dpm/gap", gap), ("dpm/weight", weight)):
                if part[used:].any():
                    raise self._damaged(path, number, f"planes beyond the {planes} that the sample uses are not 0")
            if weight[gap == 0].any():
                raise self._damaged("dpm/weight", number, "weights without a bin are not 0")
            for plane in gap:
                if plane[ended].any():
                    raise self._damaged("dpm/gap", number, "bins follow a pixel's last one")
                ended |= plane == 0
            first += len(gap)
