"""Write a subset of a store, copying compressed chunks without decoding."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from ...errors import DamagedStoreError, PipelineError
from ..format.shard import EMPTY
from ..format.spec import digest_of_ids
from ..write.encode import EncodedSample
from ..write.writer import StoreWriter, write_shards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ...common.progress import Progress
    from ..format.layout import ArrayLayout
    from ..read.store import Store

MAY_BE_EMPTY = {"dpm/gap", "dpm/weight"}
"""Arrays whose chunks of unused planes are absent; all other arrays need every chunk."""


def subset_store(store: Store, out: Path, samples: Sequence[int | str], progress: Progress | None = None) -> int:
    """Write the store `out` with exactly these samples (ids or positions), in order. Returns its shard bytes.

    Depth and maps stay identical bit for bit; all samples in order give the same bytes as `store`. Resumes an
    interrupted call. Raises PipelineError for no samples, missing or duplicate samples, or an existing `out`, and
    DamagedStoreError for a damaged chunk.
    """
    by_id = iter(store.indexes_of([sample for sample in samples if isinstance(sample, str)]).tolist())
    numbers = [next(by_id) if isinstance(sample, str) else store.index_of(sample) for sample in samples]
    if not numbers:
        raise PipelineError(f"no samples of {store.name} selected: expected at least one")
    number, times = Counter(numbers).most_common(1)[0]
    if times > 1:
        raise PipelineError(f"duplicate sample {store.ids[number]!r} ({times} times): expected each once")
    ids = [store.ids[number] for number in numbers]
    source = {**store.spec.source, "samples": len(ids), "ids_sha256": digest_of_ids(ids)}
    spec = replace(store.spec, source=source)
    rows = renumbered(columns_of(store), {number: index for index, number in enumerate(numbers)})
    return write_shards(
        StoreWriter(out, spec, ids, store.bases),
        lambda members: [encoded_sample(store, numbers[index], rows) for index in members],
        "subset",
        progress,
    )


def raw_chunks(store: Store, array: ArrayLayout, number: int) -> list[bytes | None]:
    """Return a sample's compressed chunks in one of the large arrays, with verified checksums; None if absent.

    Raises DamagedStoreError.
    """
    shard, position = divmod(number, store.spec.samples_per_shard)
    file = array.file(shard)
    try:
        rows = store._shards.entries(array, shard, position)  # noqa: SLF001 - same package
        entries = [(int(offset), int(length)) for offset, length in rows]
        return [
            _checked(array, store._files.read_range(file, *entry) if entry[0] != EMPTY else None, entry[1])  # noqa: SLF001
            for entry in entries
        ]
    except DamagedStoreError as error:
        raise store._damaged(array.path, number, str(error)) from error  # noqa: SLF001 - same package


def _checked(array: ArrayLayout, chunk: bytes | None, length: int) -> bytes | None:
    if chunk is None:
        if array.path not in MAY_BE_EMPTY:
            raise DamagedStoreError("the chunk is missing")
        return None
    if len(chunk) != length or google_crc32c.value(chunk[:-4]) != int.from_bytes(chunk[-4:], "little"):
        raise DamagedStoreError("checksum (crc32c) of a chunk does not match its bytes")
    return chunk


def columns_of(store: Store) -> dict[str, NDArray[Any]]:
    """Return all columns of the store except the id."""
    names = [array.path.removeprefix("sample/") for array in store.layout.rows()]
    return {name: store.rows(name) for name in names if name != "id"}


def renumbered(columns: dict[str, NDArray[Any]], rows: Mapping[int, int]) -> dict[str, NDArray[Any]]:
    """Return columns whose numbers of adjacent frames are those of another store: -1 where it lacks the frame."""
    for name in columns.keys() & {"previous", "next"}:
        column = columns[name]
        columns[name] = np.array([rows.get(number, -1) for number in column.tolist()], column.dtype)
    return columns


def _json(value: Any) -> Any:  # noqa: ANN401 - any value of a column
    """Return a value for the journal; NaN becomes None, as JSON has no NaN."""
    if isinstance(value, list):
        return [_json(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def encoded_sample(store: Store, number: int, rows: dict[str, NDArray[Any]]) -> EncodedSample:
    """Return a sample for the writer, with its compressed chunks. Raises DamagedStoreError."""
    chunks = {array.path: raw_chunks(store, array, number) for array in store.layout.sharded()}
    row = {name: _json(column[number].tolist()) for name, column in rows.items()}
    row["image_sha256"] = rows["image_sha256"][number].tobytes().hex()
    return EncodedSample(store.layout.size_px, chunks, row)
