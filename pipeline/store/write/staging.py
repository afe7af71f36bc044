"""Write a store of any kind: stage, journal, verify, then rename to the target.

    .NAME.lock                     held by the one process that writes
    .NAME.HASH.staging/store/...   the unfinished store
    .NAME.HASH.staging/journal     which shards are finished, with their hashes and rows

HASH is of the full specification: only a run with the same teacher, view, codec and source list resumes these shards.
A shard has one writer. Its journal record is written after its files are durable under their names with these hashes,
so a recorded shard is not written again unless a file has changed since.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Generic

from ...common.fileio import pretty_json, sha256_bytes, sha256_file, write_durably
from ...common.locks import TargetLock
from ...common.outputs import publish
from ...common.own_files import make_folder, make_folder_below, make_own_folder, remove_own, sync_directory
from ...common.parallel import in_order, worker_threads
from ...common.progress import Silent
from ...errors import PipelineError
from ..format.layout import MANIFEST
from ..format.protocols import S
from ..format.shard import build_shard
from .columns import column_files
from .journal import Journal, ShardRecord
from .lock import refuse_existing, remove_leftovers, stagings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from ...common.progress import Progress
    from ..format.layout import ArrayLayout
    from ..format.protocols import Layout


HASH_THREADS = 8
"""hashlib releases the GIL and takes 0.7 ms per MB per thread: eight are faster than most disks."""


class StagedWriter(Generic[S]):
    """Base of writers of one store; a context manager that holds the target's lock.

    Subclasses record shards with `_note` and define `_layout` and `_more_files`.
    Raises PipelineError on entry if the target exists or another process is writing it.
    """

    def __init__(self, target: Path, spec: S, ids: Sequence[str]) -> None:
        assert len(ids) == spec.samples
        self.target = target
        self.spec = spec
        self.ids = ids
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
            refuse_existing(self.target)  # another writer may have finished before we got the lock
            remove_leftovers(self.target)
            make_own_folder(self.staging)
            make_own_folder(self._store)
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
        """Return whether a shard's files have their sizes; `finish` compares hashes."""
        for path, (size, _) in record.files.items():
            try:
                if (self._store / path).stat().st_size != size:
                    return False
            except FileNotFoundError:
                return False
        return True

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the target's file system."""
        return [self._lock.note] if self._lock.note else []

    @property
    def todo(self) -> list[int]:
        """Numbers of shards still to be written."""
        return [shard for shard in range(self.spec.shards) if shard not in self.finished]

    @property
    def samples_done(self) -> int:
        """Number of samples in finished shards."""
        return sum(len(self.spec.shard_samples(shard)) for shard in self.finished)

    def other_stagings(self) -> list[Path]:
        """Return unfinished stores for this target with another specification; they are never changed."""
        return [path for path in stagings(self.target) if path != self.staging]

    def _note(self, record: ShardRecord) -> None:
        """Sync the folders of a shard's files, then record the shard in the journal."""
        # All folders, also existing ones: a killed run may have created some without syncing.
        for folder in sorted({folder for file in record.files for folder in PurePosixPath(file).parents}):
            sync_directory(self._store / folder)
        self._journal.append(record)
        self.finished[record.shard] = record

    def finish(self, progress: Progress | None = None) -> None:
        """Verify every shard, write rows and manifest, and rename the store to the target.

        Raises PipelineError if a shard changed since it was written; the next run then writes it again.
        """
        assert not self.todo
        records = [self.finished[shard] for shard in range(self.spec.shards)]
        layout = self._layout(records[0].size_px)
        self._refuse_changed(records, progress or Silent())
        manifest = {path: facts for record in records for path, facts in record.files.items()}
        for path, data in self._small_files(layout, records):
            make_folder_below(self._store, str(PurePosixPath(path).parent))
            write_durably(self._store / path, data)
            manifest[path] = (len(data), sha256_bytes(data))
        for folder in sorted({path.parent for path in self._store.rglob("*")}):
            sync_directory(folder)
        assert set(manifest) == set(layout.files())
        write_durably(self._store / MANIFEST, pretty_json({"version": self.spec.version, "files": manifest}))
        publish(self._store, self.target)
        remove_own(self.staging)

    def _refuse_changed(self, records: Sequence[ShardRecord], progress: Progress) -> None:
        files = [(record.shard, path, facts) for record in records for path, facts in record.files.items()]
        threads = worker_threads()
        changed = set()
        with (
            ThreadPoolExecutor(threads, "hash") as pool,
            progress.task("check what was written", sum(record.size_bytes for record in records), "B") as task,
        ):
            found = in_order(pool, sha256_file, (self._store / path for _, path, _ in files), ahead=2 * threads)
            for (shard, _, (size, digest)), future in zip(files, found, strict=True):
                if future.result() != digest:
                    changed.add(shard)
                task.update(size)
        if changed:
            self._journal.forget(changed)
            raise PipelineError(
                f"shards {sorted(changed)} in {self.staging} changed since they were written (disk fault?): "
                "run the same command again, which rewrites only these"
            )

    def _small_files(self, layout: Layout, records: Sequence[ShardRecord]) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of all files except shards."""
        for path, node in layout.metadata().items():
            yield path, pretty_json(node)
        yield from self._more_files()
        for array in layout.rows():
            yield from column_files(array, self.ids, records)

    def _layout(self, size_px: tuple[int, int]) -> Layout:
        """Return the store's layout for this size (h, w)."""
        raise NotImplementedError

    def _more_files(self) -> list[tuple[str, bytes]]:
        """Return more files of this kind of store, as (path, content)."""
        return []


def write_shard_file(
    folder: Path, array: ArrayLayout, shard: int, samples: Sequence[Sequence[bytes | None]]
) -> tuple[str, tuple[int, str]]:
    """Write a shard of one array below `folder`, atomically. Returns its path there, with size and sha256.

    `samples` are the chunks of each sample, in order. Raises OSError if writing fails.
    """
    data = build_shard(array, samples)
    file = array.file(shard)
    make_folder_below(folder, str(PurePosixPath(file).parent))
    write_durably(folder / file, data)
    return file, (len(data), sha256_bytes(data))
