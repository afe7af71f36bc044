"""How kept images come to be: staged, journaled, verified, and only then given their name, as a store of depth is.

    .NAME.HASH.staging/store/...   the store as far as it is
    .NAME.HASH.staging/journal     which shards are finished, with their hashes and rows

HASH is of the full specification. A shard has one writer and is written whole.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..fileio import make_folder, pretty_json, sha256_bytes, sha256_file, sync_directory, write_durably
from .codec import encode_chunk
from .image_codec import residual_of_image
from .image_layout import COLUMNS, VERSION
from .journal import Journal, ShardRecord
from .layout import MANIFEST
from .lock import TargetLock, refuse_existing, remove_leftovers
from .shard import build_shard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from .image_layout import ImageSpec
    from .layout import ArrayLayout


class EncodedImage(NamedTuple):
    """One image ready for its shard."""

    chunk: bytes
    sha256: str
    """Of the file that it came from."""
    file_size_px: tuple[int, int]
    """(height, width) of the image in the file, before the view."""


def encode_image(view: NDArray[np.uint8], sha256: str, file_size_px: tuple[int, int]) -> EncodedImage:
    """Encode the view (H, W, 3) uint8 of an image, exactly. May run in many threads."""
    return EncodedImage(encode_chunk(residual_of_image(view)[None]), sha256, file_size_px)


class ImageWriter:
    """Writes one store of images; a context manager that holds the target's lock.

    Raises ValueError on entry if the target exists or another process writes it.
    """

    def __init__(self, target: Path, spec: ImageSpec, ids: Sequence[str]) -> None:
        assert len(ids) == spec.samples
        self.target, self.spec, self.ids = target, spec, ids
        self.staging = target.with_name(f".{target.name}.{spec.digest()[:12]}.staging")
        self._store = self.staging / "store"
        self._journal = Journal(self.staging / "journal")
        self._lock = TargetLock(target)
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
            for number, record in self._journal.read().items():
                if all(_has_size(self._store / path, size) for path, (size, _) in record.files.items()):
                    self.finished[number] = record
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    @property
    def todo(self) -> list[int]:
        """Shards that are still to be made."""
        return [shard for shard in range(self.spec.shards) if shard not in self.finished]

    def write_shard(self, shard: int, images: Sequence[EncodedImage]) -> int:
        """Write a whole shard durably, then note it in the journal. Returns its bytes."""
        assert len(images) == len(self.spec.shard_samples(shard))
        data = build_shard(self.spec.rgb, [[image.chunk] for image in images])
        file = self.spec.rgb.file(shard)
        path = self._store / file
        make_folder(path.parent)
        write_durably(path, data)
        # All of them, and not only those that were made here: a killed run may have made some, and synced none.
        for folder in path.relative_to(self.staging).parents:
            sync_directory(self.staging / folder)
        rows: dict[str, list[Any]] = {
            "image_sha256": [image.sha256 for image in images],
            "image_size_px": [list(image.file_size_px) for image in images],
        }
        record = ShardRecord(shard, self.spec.size_px, {file: (len(data), sha256_bytes(data))}, rows)
        self._journal.append(record)
        self.finished[shard] = record
        return len(data)

    def finish(self) -> None:
        """Verify every shard, write the rows and the manifest, and give the store its name.

        Raises ValueError if a shard changed since it was written; the next run then makes it again.
        """
        assert not self.todo
        records = [self.finished[shard] for shard in range(self.spec.shards)]
        manifest = {path: facts for record in records for path, facts in record.files.items()}
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
        files = [(path, pretty_json(node)) for path, node in self.spec.metadata().items()]
        for array in self.spec.rows():
            files += _row_files(array, self._column(array, records))
        for file, data in files:
            make_folder((self._store / file).parent)
            write_durably(self._store / file, data)
            manifest[file] = (len(data), sha256_bytes(data))
        assert set(manifest) == set(self.spec.files())
        write_durably(self._store / MANIFEST, pretty_json({"version": VERSION, "files": manifest}))
        self._store.rename(self.target)
        sync_directory(self.target.parent)
        shutil.rmtree(self.staging)

    def _column(self, array: ArrayLayout, records: Sequence[ShardRecord]) -> NDArray[Any]:
        name = array.path.removeprefix("sample/")
        if name == "id":
            joined = b"".join(one.encode().ljust(array.shape[1], b"\0") for one in self.ids)
            return np.frombuffer(joined, np.uint8).reshape(array.shape)
        assert name in COLUMNS
        values = [value for record in records for value in record.rows[name]]
        if name == "image_sha256":
            return np.frombuffer(bytes.fromhex("".join(values)), np.uint8).reshape(array.shape)
        return np.array(values, array.dtype).reshape(array.shape)


def _row_files(array: ArrayLayout, values: NDArray[Any]) -> list[tuple[str, bytes]]:
    files = []
    for number in range(array.files):
        part = np.zeros(array.chunk, array.dtype)
        rows = values[number * array.chunk[0] : (number + 1) * array.chunk[0]]
        part[: len(rows)] = rows
        files.append((array.file(number), encode_chunk(part)))
    return files


def _has_size(path: Path, size: int) -> bool:
    """Whether a file has its size; `finish` reads it whole."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
