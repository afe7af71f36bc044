"""Write a depth store shard by shard; see `staging` for resuming and renaming."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ...common.own_files import make_folder_below
from ...common.progress import Silent
from ...errors import PipelineError
from ..format.codec import encode_chunk
from ..format.layout import StoreLayout
from ..format.spec import StoreSpec
from .encode import EncodedSample, encode_sample
from .journal import ShardRecord
from .staging import StagedWriter, write_shard_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from ...common.progress import Progress
    from ..format.features import Basis

__all__ = ["EncodedSample", "StoreWriter", "encode_sample", "write_shard_files", "write_shards"]


def write_shard_files(
    folder: Path,
    spec: StoreSpec,
    shard: int,
    samples: dict[str, EncodedSample],
    id_bytes: int,
    size_px: tuple[int, int] | None = None,
) -> ShardRecord:
    """Write the files of a shard below `folder`, each atomically. `samples` are its samples by id, in order.

    `id_bytes` is the length of the store's longest id, `size_px` the size of the other shards, if known. Raises
    PipelineError if a sample's size differs, OSError if writing fails.
    """
    assert len(samples) == len(spec.shard_samples(shard))
    encoded = list(samples.values())
    size_px = size_px or encoded[0].size_px
    for name, sample in samples.items():
        if sample.size_px != size_px:
            _refuse_size(name, sample.size_px, size_px)
    files = dict(
        write_shard_file(folder, array, shard, [sample.chunks[array.path] for sample in encoded])
        for array in StoreLayout(spec, size_px, id_bytes).sharded()
    )
    return ShardRecord(
        shard, size_px, files, {name: [sample.row[name] for sample in encoded] for name in encoded[0].row}
    )


def _refuse_size(sample_id: str, size_px: tuple[int, int], first_px: tuple[int, int] | None) -> NoReturn:
    assert first_px is not None
    raise PipelineError(
        f"the teacher's output for {sample_id} is {_size(size_px)} px, for the first sample {_size(first_px)}: "
        "expected one size; choose a `view` that makes all images equal in size (kb, center:HxW or full,resize:HxW)"
    )


class StoreWriter(StagedWriter[StoreSpec]):
    """Writes one depth store; a context manager that holds the target's lock.

    Raises PipelineError on entry if the target exists or another process is writing it.
    """

    def __init__(self, target: Path, spec: StoreSpec, ids: list[str], bases: Mapping[str, Basis] | None = None) -> None:
        super().__init__(target, spec, ids)
        self.bases = bases or {}
        """Basis of each layer of features."""
        assert {layer: basis.sha256 for layer, basis in self.bases.items()} == {
            layer: each.basis_sha256 for layer, each in spec.extras.features.items()
        }
        self._id_bytes = max(len(name.encode()) for name in ids)

    def write_shard(self, shard: int, samples: Sequence[EncodedSample]) -> int:
        """Write a shard durably, then record it in the journal. Returns its bytes.

        Raises PipelineError if sizes differ between samples, OSError if writing fails.
        """
        names = [self.ids[index] for index in self.spec.shard_samples(shard)]
        named = dict(zip(names, samples, strict=True))
        record = write_shard_files(self._store, self.spec, shard, named, self._id_bytes, self.size_px)
        self._note(record)
        return record.size_bytes

    @property
    def size_px(self) -> tuple[int, int] | None:
        """(h, w) of the teacher's output, once a shard is finished."""
        known = next(iter(self.finished.values()), None)
        return known.size_px if known else None

    @property
    def sample_bytes(self) -> float:
        """Mean chunk bytes per sample of the finished shards, as in `sizes.chunk_bytes`; needs at least one shard."""
        return self._chunk_bytes / self.samples_done

    def __enter__(self) -> Self:
        super().__enter__()
        self._chunk_bytes = sum(map(self._chunk_bytes_of, self.finished.values()))
        return self

    def _note(self, record: ShardRecord) -> None:
        super()._note(record)
        self._chunk_bytes += self._chunk_bytes_of(record)

    def _chunk_bytes_of(self, record: ShardRecord) -> int:
        return record.size_bytes - sum(array.index_bytes for array in self._layout(record.size_px).sharded())

    def adopt_shard(self, record: ShardRecord, folder: Path) -> int:
        """Move a shard that another process wrote durably below `folder` into the store. Returns its bytes.

        Other processes never write to the store itself: a late one cannot change a shard that was written meanwhile.
        """
        if self.size_px not in {None, record.size_px}:
            _refuse_size(self.ids[self.spec.shard_samples(record.shard)[0]], record.size_px, self.size_px)
        for file in record.files:
            make_folder_below(self._store, str(PurePosixPath(file).parent))
            (folder / file).replace(self._store / file)
        self._note(record)
        return record.size_bytes

    def _layout(self, size_px: tuple[int, int]) -> StoreLayout:
        return StoreLayout(self.spec, size_px, self._id_bytes)

    def _more_files(self) -> list[tuple[str, bytes]]:
        files = [("dpm/bin_edges/c/0", encode_chunk(np.array(self.spec.bin_edges, np.float64)))]
        for layer, basis in self.bases.items():
            files.append((f"features/{layer}/mean/c/0", encode_chunk(basis.mean)))
            files.append((f"features/{layer}/basis/c/0/0", encode_chunk(basis.rows)))
        return files


def write_shards(
    writer: StoreWriter, encoded: Callable[[range], Sequence[EncodedSample]], title: str, progress: Progress | None
) -> int:
    """Write all missing shards with samples from `encoded`, and finish. Returns their bytes."""
    progress = progress or Silent()
    written = 0
    with writer:
        for note in writer.notes:
            progress.note(note)
        with progress.task(title, len(writer.ids), "sample", done=writer.samples_done) as task:
            for shard in writer.todo:
                members = writer.spec.shard_samples(shard)
                written += writer.write_shard(shard, encoded(members))
                task.update(len(members))
        writer.finish(progress)
    return written


def _size(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]}x{size_px[1]}"
