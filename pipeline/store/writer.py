"""How a store comes to be: staged, journaled, verified, and only then given its name.

    .NAME.HASH.staging/store/...   the store as far as it is
    .NAME.HASH.staging/journal     which shards are finished, with their hashes and rows

HASH is of the full specification, so a run with another teacher, view, codec or source list never finds these
shards, and a run with the same ones goes on where the last stopped. A shard has one writer and is written whole.
"""

from __future__ import annotations

import shutil
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from ..fileio import make_folder, pretty_json, sha256_bytes, sha256_file, sync_directory, write_durably
from .codec import AffineCodec, LogCodec, encode_chunk, residual_of_codes
from .journal import Journal, ShardRecord
from .layout import MANIFEST, PLANES_PER_CHUNK, ROWS_PER_CHUNK, StoreLayout
from .lock import TargetLock, refuse_existing, remove_leftovers, stagings
from .shard import build_shard
from .sparse import encode_sparse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from .spec import StoreSpec


class EncodedSample(NamedTuple):
    """One sample ready for its shard."""

    size_px: tuple[int, int]
    chunks: dict[str, list[bytes | None]]
    """Chunks of each sharded array, by its path."""
    row: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """What it takes in its shards, with its entries of their indexes."""
        return sum(16 + len(chunk or b"") for chunks in self.chunks.values() for chunk in chunks)


def encode_sample(
    spec: StoreSpec,
    depth: NDArray[np.float32],
    dpm: NDArray[np.float32] | None,
    carried_kl_nats: float | None = None,
) -> EncodedSample:
    """Encode a depth (h, w), NaN where there is no value, and for `sparse` and `dense` stores its map (K, h, w).

    `carried_kl_nats`, what carrying the teacher's map over onto the store's bins cost as a mean over pixels, goes with
    a specification that has `carried_from`, and with no other.
    Depends on its arguments alone, and may run in many threads: the slow parts release the interpreter lock.
    Raises ValueError for values that the depth space does not allow.
    """
    codec = spec.depth_codec()
    invalid = np.isnan(depth)
    row: dict[str, Any] = {"invalid_share": float(np.mean(invalid))}
    if isinstance(codec, LogCodec):
        codes, clipped = codec.encode(depth)
        counted = ~invalid & ~clipped
        error = np.abs(codec.decode(codes)[counted].astype(np.float64) / depth[counted] - 1)
        row["clipped_share"] = float(np.mean(clipped))
    else:
        assert isinstance(codec, AffineCodec)
        codes, scale, offset = codec.encode(depth)
        back = codec.decode(codes, scale, offset)[~invalid].astype(np.float64)
        span = max(scale * (2**codec.bits - 2), np.finfo(np.float64).tiny)
        error = np.abs(back - depth[~invalid]) / span
        row |= {"clipped_share": 0.0, "code_scale": scale, "code_offset": offset}
    row["max_rel_error"] = float(error.max(initial=0.0))
    chunks: dict[str, list[bytes | None]] = {"depth": [encode_chunk(residual_of_codes(codes)[None])]}
    if spec.dpm_kind != "gaussian":
        assert dpm is not None
        assert dpm.shape == (spec.bin_count, *depth.shape)
    if spec.dpm_kind == "sparse":
        assert spec.max_dpm_kl is not None
        stored, divergence = encode_sparse(dpm, spec.max_dpm_kl, spec.weight_bits)  # type: ignore[arg-type]  # above
        planes = len(stored.gap)
        blocks = -(-spec.bin_count // PLANES_PER_CHUNK)
        chunks["dpm/gap"] = _plane_chunks(stored.gap, blocks)
        chunks["dpm/weight"] = _plane_chunks(stored.weight, blocks)
        chunks["dpm/tail"] = [encode_chunk(stored.tail[None])]
        known = divergence[~np.isnan(divergence)]
        row |= {
            "dpm_kl_nats": float(known.mean()) if known.size else 0.0,
            "dpm_max_kl_nats": float(known.max(initial=0.0)),
            "dpm_planes": planes,
        }
    elif spec.dpm_kind == "dense":
        assert dpm is not None
        # A probability too small for float16 becomes the smallest there is: 0 would make divergences infinite.
        half = np.where(dpm > 0, np.maximum(dpm, np.finfo(np.float16).smallest_subnormal), dpm).astype(np.float16)
        chunks["dpm/probability"] = [encode_chunk(half[None])]
    assert (carried_kl_nats is None) == (spec.carried_from is None)
    if carried_kl_nats is not None:
        if not 0 <= carried_kl_nats < np.inf:
            raise ValueError(f"maps carried over at {carried_kl_nats} nats: expected a finite number, 0 or above")
        row["dpm_carried_kl_nats"] = carried_kl_nats
    return EncodedSample((depth.shape[0], depth.shape[1]), chunks, row)


def _plane_chunks(planes: NDArray[np.unsignedinteger], blocks: int) -> list[bytes | None]:
    chunks: list[bytes | None] = []
    for block in range(blocks):
        part = planes[block * PLANES_PER_CHUNK : (block + 1) * PLANES_PER_CHUNK]
        if len(part) == 0:
            chunks.append(None)
            continue
        whole = np.zeros((1, PLANES_PER_CHUNK, *planes.shape[1:]), planes.dtype)
        whole[0, : len(part)] = part
        chunks.append(encode_chunk(whole))
    return chunks


def write_shard_files(
    folder: Path,
    spec: StoreSpec,
    shard: int,
    samples: dict[str, EncodedSample],
    id_bytes: int,
    size_px: tuple[int, int] | None = None,
) -> ShardRecord:
    """Write the files of a shard below `folder`, each whole or absent, of its samples by id, in order.

    `id_bytes` is the length of the longest id of the whole store, `size_px` the size of the other shards, if it is
    known. Raises ValueError if a sample's size is another, OSError where the disk refuses.
    """
    assert len(samples) == len(spec.shard_samples(shard))
    encoded = list(samples.values())
    size_px = size_px or encoded[0].size_px
    for name, sample in samples.items():
        if sample.size_px != size_px:
            _refuse_size(name, sample.size_px, size_px)
    files: dict[str, tuple[int, str]] = {}
    for array in StoreLayout(spec, size_px, id_bytes).sharded():
        data = build_shard(array, [sample.chunks[array.path] for sample in encoded])
        path = folder / array.file(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)
        files[array.file(shard)] = (len(data), sha256_bytes(data))
    return ShardRecord(
        shard, size_px, files, {name: [sample.row[name] for sample in encoded] for name in encoded[0].row}
    )


def _refuse_size(sample_id: str, size_px: tuple[int, int], first_px: tuple[int, int] | None) -> NoReturn:
    assert first_px is not None
    raise ValueError(
        f"the teacher's output for {sample_id} is {_size(size_px)} px, for the first sample {_size(first_px)}: a store "
        "holds one size; choose a --view that makes all images alike (kb, center:HxW or full,resize:HxW)"
    )


class StoreWriter:
    """Writes one store; a context manager that holds the target's lock.

    Raises ValueError on entry if the target exists or another process writes it.
    """

    def __init__(self, target: Path, spec: StoreSpec, ids: list[str]) -> None:
        assert len(ids) == spec.samples
        self.target = target
        self.spec = spec
        self.ids = ids
        self.staging = target.with_name(f".{target.name}.{spec.digest()[:12]}.staging")
        self._store = self.staging / "store"
        self._journal = Journal(self.staging / "journal")
        self._lock = TargetLock(target)
        self._id_bytes = max(len(name.encode()) for name in ids)
        self.finished: dict[int, ShardRecord] = {}

    def __enter__(self) -> Self:
        refuse_existing(self.target)
        make_folder(self.target.parent)
        self._lock.__enter__()
        try:
            refuse_existing(self.target)  # another writer may have finished while we came to the lock
            remove_leftovers(self.target)
            make_folder(self.staging)
            make_folder(self._store)
            self.finished = {
                number: record for number, record in self._journal.read().items() if self._is_there(record)
            }
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    def _is_there(self, record: ShardRecord) -> bool:
        """Whether a shard's files have their sizes; `finish` reads them whole."""
        for path, (size, _) in record.files.items():
            try:
                if (self._store / path).stat().st_size != size:
                    return False
            except FileNotFoundError:
                return False
        return True

    @property
    def todo(self) -> list[int]:
        """Shards that are still to be made."""
        return [shard for shard in range(self.spec.shards) if shard not in self.finished]

    def other_stagings(self) -> list[Path]:
        """Unfinished stores for this target with another specification; they are never touched."""
        return [path for path in stagings(self.target) if path != self.staging]

    def write_shard(self, shard: int, samples: Sequence[EncodedSample]) -> int:
        """Write a whole shard durably, then note it in the journal. Returns its bytes.

        Raises ValueError if a sample's size differs from the others', OSError where the disk refuses.
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

    def adopt_shard(self, record: ShardRecord, folder: Path) -> int:
        """Take over a shard whose files another process wrote durably below `folder`, as `write_shard`.

        Who wrote it never touches the store itself: so one that is late, and was given up, cannot change a shard that
        somebody else has made meanwhile.
        """
        if self.size_px not in {None, record.size_px}:
            _refuse_size(self.ids[self.spec.shard_samples(record.shard)[0]], record.size_px, self.size_px)
        for file in record.files:
            path = self._store / file
            path.parent.mkdir(parents=True, exist_ok=True)
            (folder / file).replace(path)
        self._note(record)
        return record.size_bytes

    def _note(self, record: ShardRecord) -> None:
        """Make the names of a shard's files durable, then the note that it is finished."""
        # All of them, and not only those that were made here: a killed run may have made some, and synced none.
        for folder in sorted({folder for file in record.files for folder in PurePosixPath(file).parents}):
            sync_directory(self._store / folder)
        self._journal.append(record)
        self.finished[record.shard] = record

    def _layout(self, size_px: tuple[int, int]) -> StoreLayout:
        return StoreLayout(self.spec, size_px, self._id_bytes)

    def finish(self) -> None:
        """Verify every shard, write the rows and the manifest, and give the store its name.

        Raises ValueError if a shard changed since it was written; the next run then makes it again.
        """
        assert not self.todo
        records = [self.finished[shard] for shard in range(self.spec.shards)]
        layout = self._layout(records[0].size_px)
        changed = {
            record.shard
            for record in records
            for path, (_, digest) in record.files.items()
            if sha256_file(self._store / path) != digest
        }
        if changed:
            self._journal.forget(changed)
            raise ValueError(
                f"shards {sorted(changed)} in {self.staging} changed since they were written (disk fault?): "
                "run the same command again, which makes these alone once more"
            )
        manifest = {path: facts for record in records for path, facts in record.files.items()}
        for path, data in self._small_files(layout, records):
            whole = self._store / path
            whole.parent.mkdir(parents=True, exist_ok=True)
            write_durably(whole, data)
            manifest[path] = (len(data), sha256_bytes(data))
        for folder in sorted({path.parent for path in self._store.rglob("*")}):
            sync_directory(folder)
        assert set(manifest) == set(layout.files())
        write_durably(self._store / MANIFEST, pretty_json({"version": self.spec.version, "files": manifest}))
        self._store.rename(self.target)
        sync_directory(self.target.parent)
        shutil.rmtree(self.staging)

    def _small_files(self, layout: StoreLayout, records: list[ShardRecord]) -> list[tuple[str, bytes]]:
        """Metadata, bin edges and rows: all that is not a shard."""
        files = [(path, pretty_json(node)) for path, node in layout.metadata().items()]
        edges = layout.edges()
        files.append((edges.file(0), encode_chunk(np.array(self.spec.bin_edges, np.float64))))
        for array in layout.rows():
            name = array.path.removeprefix("sample/")
            values = self._id_rows(array.shape) if name == "id" else _column(name, records, array.dtype, array.shape)
            for number in range(array.files):
                part = np.zeros(array.chunk, array.dtype)
                rows = values[number * array.chunk[0] : (number + 1) * array.chunk[0]]
                part[: len(rows)] = rows
                files.append((array.file(number), encode_chunk(part)))
        assert layout.rows()[0].chunk[0] <= ROWS_PER_CHUNK
        return files

    def _id_rows(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        joined = b"".join(name.encode().ljust(shape[1], b"\0") for name in self.ids)
        return np.frombuffer(joined, np.uint8).reshape(shape)


def _column(name: str, records: list[ShardRecord], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[np.generic]:
    values = [value for record in records for value in record.rows[name]]
    if name == "image_sha256":
        return np.frombuffer(bytes.fromhex("".join(values)), np.uint8).reshape(shape)
    return np.array(values, dtype).reshape(shape)  # None, which the journal's JSON has for NaN, becomes that again


def _size(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]}x{size_px[1]}"
