"""How a store of any kind comes to be: staged, journaled, verified, and only then given its name.

    .NAME.lock                     held by the one process that writes
    .NAME.HASH.staging/store/...   the store as far as it is
    .NAME.HASH.staging/journal     which shards are finished, with their hashes and rows

HASH is of the full specification, so a run with another teacher, view, codec or source list never finds these
shards, and a run with the same ones goes on where the last stopped. A shard has one writer and is written whole. Its
record in the journal promises that its files lay on the disk whole, under their names and with these hashes, before
the record did: so a shard with a record is never made again, unless one of its files has changed since.
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
"""hashlib leaves the interpreter to others; one takes 0.7 ms a MB, so that as many outrun most disks."""


class StagedWriter(Generic[S]):
    """Writes one store; a context manager that holds the target's lock, and with it the staging directory.

    A writer of one kind of store notes its shards with `_note`, and tells `finish` of its files.
    Raises PipelineError on entry if the target exists or another process writes it.
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
            refuse_existing(self.target)  # another writer may have finished while we came to the lock
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
        """Whether a shard's files have their sizes; `finish` reads them whole."""
        for path, (size, _) in record.files.items():
            try:
                if (self._store / path).stat().st_size != size:
                    return False
            except FileNotFoundError:
                return False
        return True

    @property
    def notes(self) -> list[str]:
        """What to tell about the target's file system."""
        return [self._lock.note] if self._lock.note else []

    @property
    def todo(self) -> list[int]:
        """Shards that are still to be made."""
        return [shard for shard in range(self.spec.shards) if shard not in self.finished]

    @property
    def samples_done(self) -> int:
        """How many samples the finished shards hold."""
        return sum(len(self.spec.shard_samples(shard)) for shard in self.finished)

    def other_stagings(self) -> list[Path]:
        """Unfinished stores for this target with another specification; they are never touched."""
        return [path for path in stagings(self.target) if path != self.staging]

    def _note(self, record: ShardRecord) -> None:
        """Make the names of a shard's files durable, then the note that it is finished."""
        # All of them, and not only those that were made here: a killed run may have made some, and synced none.
        for folder in sorted({folder for file in record.files for folder in PurePosixPath(file).parents}):
            sync_directory(self._store / folder)
        self._journal.append(record)
        self.finished[record.shard] = record

    def finish(self, progress: Progress | None = None) -> None:
        """Verify every shard, write the rows and the manifest, and give the store its name.

        Raises PipelineError if a shard changed since it was written; the next run then makes it again.
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
                "run the same command again, which makes these alone once more"
            )

    def _small_files(self, layout: Layout, records: Sequence[ShardRecord]) -> Iterator[tuple[str, bytes]]:
        """Metadata, what a kind of store adds, and rows: all that is not a shard."""
        for path, node in layout.metadata().items():
            yield path, pretty_json(node)
        yield from self._more_files()
        for array in layout.rows():
            yield from column_files(array, self.ids, records)

    def _layout(self, size_px: tuple[int, int]) -> Layout:
        """Files of the whole store, once the size of what it holds is known."""
        raise NotImplementedError

    def _more_files(self) -> list[tuple[str, bytes]]:
        """Files that only this kind of store has."""
        return []


def write_shard_file(
    folder: Path, array: ArrayLayout, shard: int, samples: Sequence[Sequence[bytes | None]]
) -> tuple[str, tuple[int, str]]:
    """Write a shard of one array below `folder`, whole or not at all. Returns its path there, with size and sha256.

    `samples` are the chunks of each sample, in order. Raises OSError where the disk refuses.
    """
    data = build_shard(array, samples)
    file = array.file(shard)
    make_folder_below(folder, str(PurePosixPath(file).parent))
    write_durably(folder / file, data)
    return file, (len(data), sha256_bytes(data))
