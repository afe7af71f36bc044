"""Planes of sparse maps in a store: read all at once, a few at a time, or looked at without making a map of them.

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
"""Planes of a sparse map that are unpacked all at once for `dpm`; beyond, a few at a time, which takes longer."""


class SparsePlanes(StoredSamples[StoreSpec]):
    """Samples whose maps may be sparse ones."""

    layout: StoreLayout

    def decoded(self, number: int) -> NDArray[np.float32]:
        """Sparse map (K, h, w) of a sample, as `decode_sparse`. Raises PipelineError for what is none."""
        if self._planes_bytes(number) > MAX_PLANES_BYTES:
            pairs = self._plane_pairs(number)
            return decode_planes(pairs, self._tail(number), self.spec.bin_count, self.spec.weight_bits)
        return decode_sparse(self.sparse_dpm(number), self.spec.bin_count, self.spec.weight_bits)

    @cached_property
    def _planes(self) -> NDArray[np.int32]:
        return self.rows("dpm_planes")

    def sparse_dpm(self, sample: int | str) -> SparseMap:
        """Teacher map of a `sparse` store as it is stored. Raises PipelineError for other stores."""
        if self.spec.dpm_kind != "sparse":
            raise PipelineError(f"{self.name} holds {self.spec.dpm_kind} maps, not sparse ones: read them with .dpm()")
        number = self.index_of(sample)
        self._check_plane_chunks(number)
        planes, parts = int(self._planes[number]), []
        for path in ("dpm/gap", "dpm/weight"):
            array = self._arrays[path]
            whole, step = np.empty((planes, *self.layout.size_px), array.dtype), array.chunk[1]
            for first, chunk in zip(range(0, planes, step), self._each_chunk(path, number), strict=False):
                assert chunk is not None
                whole[first : first + step] = chunk[0, : planes - first]
            parts.append(whole)
        return SparseMap(parts[0], parts[1], self._tail(number))

    def _tail(self, number: int) -> NDArray[Any]:
        (tail,) = self._chunks("dpm/tail", number)
        if tail is None:
            raise self._damaged("dpm/tail", number, "the chunk is missing")
        return tail[0]  # type: ignore[no-any-return]  # one map, (h, w)

    def _planes_bytes(self, number: int) -> int:
        """What the planes of a sample take once they are unpacked."""
        each = sum(self._arrays[path].dtype.itemsize for path in ("dpm/gap", "dpm/weight"))
        return int(self._planes[number]) * each * math.prod(self.layout.size_px)

    def _check_plane_chunks(self, number: int) -> None:
        """Raise DamagedStoreError unless a sample has just the chunks that its planes need, from the first."""
        planes = int(self._planes[number])
        for path in ("dpm/gap", "dpm/weight"):
            array = self._arrays[path]
            used = self._used_chunks(path, number)
            needed = -(-planes // array.chunk[1])
            if not (0 <= planes <= self.spec.bin_count and used[:needed].all() and int(used.sum()) == needed):
                raise self._damaged(path, number, f"{int(used.sum())} chunks for {planes} planes")

    def _plane_pairs(self, number: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Gaps and weights (M, h, w) of a sample, a chunk of planes at a time; the last one whole."""
        self._check_plane_chunks(number)
        for gap, weight in zip(*(self._each_chunk(path, number) for path in ("dpm/gap", "dpm/weight")), strict=True):
            if gap is None or weight is None:
                return
            yield gap[0], weight[0]

    def check_planes(self, sample: int | str) -> None:
        """Raise DamagedStoreError for planes that this reader ignores and another might not.

        These are planes of the last chunk beyond `sample/dpm_planes`, weights without a bin, and bins after a pixel's
        last one. A writer leaves all of them 0.
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
                raise self._damaged("dpm/weight", number, "weights of no bin are not 0")
            for plane in gap:
                if plane[ended].any():
                    raise self._damaged("dpm/gap", number, "bins follow a pixel's last one")
                ended |= plane == 0
            first += len(gap)
