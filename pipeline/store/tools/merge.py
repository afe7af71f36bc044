"""Merge several stores into one, copying compressed chunks without decoding."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from ...common.licences import distinct, united
from ...errors import PipelineError
from ..format.spec import digest_of_ids
from ..write.writer import StoreWriter, write_shards
from .diff import PROVENANCE_FIELDS, differing_fields
from .subset import columns_of, encoded_sample, renumbered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ...common.progress import Progress
    from ..read.store import Store
    from ..write.encode import EncodedSample

PART_FIELDS = ("source.samples", "source.ids_sha256", "data_licence", "teacher.licence", *PROVENANCE_FIELDS)
"""Fields in which merged stores may differ."""


def merge_stores(stores: Sequence[Store], out: Path, progress: Progress | None = None) -> int:
    """Write the store `out` with all samples of several stores, in order. Returns its shard bytes.

    Depth and maps stay identical bit for bit. Consecutive parts of a split give the same bytes as one store of the
    whole, if package versions and samples per shard are equal. If they differ, the first store's samples per shard are
    used and all versions listed. Resumes an interrupted call.

    Raises PipelineError for fewer than two stores, stores whose specifications differ (naming the fields) or that share
    a sample, or an existing `out`, and DamagedStoreError for a damaged chunk.
    """
    if len(stores) < 2:
        raise PipelineError(f"{len(stores)} store to merge: expected at least two")
    for store in stores[1:]:
        _check_alike(stores[0], store)
    ids = _disjoint_ids(stores)
    first = stores[0].spec
    source = {**first.source, "samples": len(ids), "ids_sha256": digest_of_ids(ids)}
    licences = _licences(stores, progress)
    spec = replace(
        first,
        source=source,
        producer=_producers(stores),
        teacher={**first.teacher, "licence": licences.teacher} if licences.teacher else first.teacher,
        extras=replace(first.extras, data_licence=licences.data),
    )
    parts = _Parts(stores)
    return write_shards(
        StoreWriter(out, spec, ids, stores[0].bases),
        lambda members: [parts.encoded(number) for number in members],
        "merge",
        progress,
    )


def _check_alike(first: Store, other: Store) -> None:
    """Raise PipelineError unless the specifications of two stores allow a merge."""
    fields = [field for field in differing_fields(first.spec, other.spec) if not field[0].startswith(PART_FIELDS)]
    sizes = ["x".join(map(str, store.layout.size_px)) for store in (first, other)]
    if sizes[0] != sizes[1]:
        fields.append(("size of the maps in pixels", sizes[0], sizes[1]))
    levels = first.spec.compression_level, other.spec.compression_level
    if levels[0] != levels[1]:
        raise PipelineError(
            f"cannot merge {first.name} and {other.name}: their compression levels are {levels[0]} and {levels[1]}: "
            "write one again with `pipeline store recompress`"
        )
    if fields:
        differences = "; ".join(f"{name} is {here} and {there}" for name, here, there in fields)
        raise PipelineError(
            f"cannot merge {first.name} and {other.name}: {differences}. Expected stores with the same teacher, view "
            "and codec; `pipeline store diff` compares two"
        )


def _disjoint_ids(stores: Sequence[Store]) -> list[str]:
    """Return the ids of all stores in order. Raises PipelineError for a duplicate."""
    owner: dict[str, Store] = {}
    for store in stores:
        duplicates = [name for name in store.ids if name in owner]
        if duplicates:
            before = owner[duplicates[0]].name
            raise PipelineError(
                f"{before} and {store.name} both have sample {duplicates[0]!r} ({len(duplicates)} of {len(store)} "
                "of the second are duplicates): expected each sample once; `pipeline store subset` selects samples"
            )
        owner.update(dict.fromkeys(store.ids, store))
    return list(owner)


def _producers(stores: Sequence[Store]) -> dict[str, str]:
    """Return package versions of the parts; if they differ, all of them."""
    names = sorted({name for store in stores for name in store.spec.producer})
    versions = {name: {store.spec.producer.get(name, "unknown"): None for store in stores} for name in names}
    return {name: " and ".join(values) for name, values in versions.items()}


class _Licences(NamedTuple):
    teacher: str | None
    data: str | None


def _licences(stores: Sequence[Store], progress: Progress | None) -> _Licences:
    """Return the licences of all parts; notes where they differ, because each applies to a part of the result."""
    stated = {
        "teacher": [store.spec.teacher.get("licence") for store in stores],
        "data": [store.spec.extras.data_licence for store in stores],
    }
    joined = {}
    for what, licences in stated.items():
        names = distinct(licences)
        joined[what] = united(licences)
        if len(names) > 1 and progress is not None:
            progress.note(f"the parts have different licences of the {what}, and all apply: {', '.join(names)}")
    return _Licences(joined["teacher"], joined["data"])


class _Parts:
    """Samples of several stores by overall position; caches the columns of one store."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores
        self.begins = [0, *accumulate(len(store) for store in stores)]
        self.open = -1
        self.columns: dict[str, NDArray[Any]] = {}

    def encoded(self, number: int) -> EncodedSample:
        """Return a sample for the writer. Raises DamagedStoreError."""
        part = bisect_right(self.begins, number) - 1
        if part != self.open:
            rows = range(self.begins[part], self.begins[part + 1])
            self.open, self.columns = part, renumbered(columns_of(self.stores[part]), dict(enumerate(rows)))
        return encoded_sample(self.stores[part], number - self.begins[part], self.columns)
