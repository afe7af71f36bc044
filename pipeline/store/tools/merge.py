"""One store of several that were made apart: the compressed chunks are moved as they are, as in `subset`."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ...errors import PipelineError
from ..format.spec import digest_of_ids
from ..write.writer import StoreWriter, write_shards
from .diff import HOW_IT_WAS_MADE, differing_fields
from .subset import columns_of, encoded_sample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ...common.progress import Progress
    from ..read.store import Store
    from ..write.encode import EncodedSample

OF_THE_PART = ("source.samples", "source.ids_sha256", *HOW_IT_WAS_MADE)
"""Fields in which parts of one store may differ."""


def merge_stores(stores: Sequence[Store], out: Path, progress: Progress | None = None) -> int:
    """Write the store `out` of all samples of several, in the order given. Returns its bytes of maps.

    Every depth and map is bit for bit the same. Consecutive parts of a split give the bytes of one store of the whole,
    if they were made by the same package versions with the same samples a shard. Where these differ, the first's number
    of samples a shard is taken, and all versions are named. Goes on where an interrupted call stopped.

    Raises PipelineError for fewer than two stores, for two that differ in what their numbers are (naming the fields) or
    that share a sample, or an `out` that exists, and DamagedStoreError for a damaged chunk.
    """
    if len(stores) < 2:
        raise PipelineError(f"{len(stores)} store to merge: expected at least two")
    for store in stores[1:]:
        _check_alike(stores[0], store)
    ids = _disjoint_ids(stores)
    first = stores[0].spec
    source = {**first.source, "samples": len(ids), "ids_sha256": digest_of_ids(ids)}
    spec = replace(first, source=source, producer=_producers(stores))
    parts = _Parts(stores)
    return write_shards(
        StoreWriter(out, spec, ids), lambda members: [parts.encoded(number) for number in members], "merge", progress
    )


def _check_alike(first: Store, other: Store) -> None:
    """Raise PipelineError unless two stores are parts of one, as far as their specifications tell."""
    fields = [field for field in differing_fields(first.spec, other.spec) if not field[0].startswith(OF_THE_PART)]
    sizes = ["x".join(map(str, store.layout.size_px)) for store in (first, other)]
    if sizes[0] != sizes[1]:
        fields.append(("size of the maps in pixels", sizes[0], sizes[1]))
    if fields:
        told = "; ".join(f"{name} is {here} and {there}" for name, here, there in fields)
        raise PipelineError(
            f"{first.name} and {other.name} are no parts of one store: {told}. Merge stores of one teacher, view and "
            "codec; `pipeline store diff` compares two"
        )


def _disjoint_ids(stores: Sequence[Store]) -> list[str]:
    """Ids of all stores in their order. Raises PipelineError for one that two have."""
    owner: dict[str, Store] = {}
    for store in stores:
        twice = [name for name in store.ids if name in owner]
        if twice:
            before = owner[twice[0]].name
            raise PipelineError(
                f"{before} and {store.name} both hold sample {twice[0]!r} ({len(twice)} of {len(store)} of the second "
                "are there already): expected each sample once; `pipeline store subset` takes some out"
            )
        owner.update(dict.fromkeys(store.ids, store))
    return list(owner)


def _producers(stores: Sequence[Store]) -> dict[str, str]:
    """Versions of the packages that made the parts; where they differ, all of them."""
    names = sorted({name for store in stores for name in store.spec.producer})
    found = {name: {store.spec.producer.get(name, "unknown"): None for store in stores} for name in names}
    return {name: " and ".join(versions) for name, versions in found.items()}


class _Parts:
    """Samples of several stores by their number in all; holds the columns of one store at a time."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores
        self.begins = [0, *accumulate(len(store) for store in stores)]
        self.open = -1
        self.columns: dict[str, NDArray[Any]] = {}

    def encoded(self, number: int) -> EncodedSample:
        """A sample as the writer takes it. Raises DamagedStoreError."""
        part = bisect_right(self.begins, number) - 1
        if part != self.open:
            self.open, self.columns = part, columns_of(self.stores[part])
        return encoded_sample(self.stores[part], number - self.begins[part], self.columns)
