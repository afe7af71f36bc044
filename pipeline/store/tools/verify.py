"""Read a whole store and name everything in it that is not as it was written."""

from __future__ import annotations

import errno
import hashlib
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...common.dvc_links import cached_target
from ...common.fileio import printable
from ...common.progress import Silent
from ...errors import DamagedStoreError
from ..format.layout import MANIFEST
from ..format.spec import digest_of_ids
from ..images.reader import ImageCache
from ..read.files import is_url
from .open_any import either_of, open_either

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...common.progress import Progress
    from ..read.store import Store
    from ..remote.compare_cache import Anew

MAX_NAMED_SAMPLES = 8
PIECE_BYTES = 2**25
"""A shard may be larger than memory; a request to a far store takes as long as many bytes."""
OF_THE_SYSTEM = re.compile(r"(.*/)?(\.DS_Store|Thumbs\.db|\._[^/]*|\.nfs[0-9a-fA-F]+)|(.*/)?@eaDir(/.*)?")
"""Files that macOS, Windows, Synology's indexer and NFS put into any folder. No reader of the format looks at them."""
Kind = Literal["damaged", "unreadable", "kept"]
_DAMAGED: Kind = "damaged"
_UNREADABLE: Kind = "unreadable"
OF_THIS_PROCESS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that say nothing of a file, and would be every file's."""


@dataclass(frozen=True)
class Damage:
    """One file of a store that is not what the manifest says, or of which that is not known."""

    file: str
    what: str
    samples: list[str]
    """Ids of the samples that the file holds, all of them suspect; empty where it holds none alone."""
    kind: Kind = "damaged"
    """`unreadable`: the system gave no bytes to compare. `kept`: it was kept wrongly of a sound store behind a URL."""

    def __str__(self) -> str:
        if not self.samples:
            return f"{printable(self.file)}: {self.what}"  # a file of somebody else may have any name
        named = ", ".join(self.samples[:MAX_NAMED_SAMPLES])
        more = len(self.samples) - MAX_NAMED_SAMPLES
        return f"{self.file}: {self.what}; samples {named}{f' and {more} more' if more > 0 else ''}"


def verify_store(path: str | Path, progress: Progress | None = None) -> list[Damage]:
    """Compare every file with the manifest, and decode every sample. An empty list is a sound store.

    `path` may be a URL: all of it is fetched anew. What else lies there is not asked for, since not every server tells.

    Files that operating systems put into any folder are noted and otherwise left alone.

    Raises PipelineError where the store cannot be opened at all, ConnectionError where the other side stays away, and
    OSError where this process may open no more files.
    """
    progress = progress or Silent()
    if is_url(path):
        from ..remote.compare_cache import fetched_anew

        with fetched_anew(str(path)) as files:
            store = either_of(files, files.name, check_shards=False)
            return _kept_wrongly(files, store, _verify(store, [], progress))
    store = open_either(path, check_shards=False)  # all are hashed here
    strange = _strangers(Path(path), store)
    ignored = [name for name in strange if OF_THE_SYSTEM.fullmatch(name) and _is_plain(Path(path) / name)]
    if ignored:
        progress.note(
            f"{len(ignored)} files of the operating system lie in the store and are ignored, such as "
            f"{printable(ignored[0])}"
        )
    found = [Damage(name, "does not belong to the store", []) for name in strange if name not in ignored]
    return _verify(store, found, progress)


def _is_plain(file: Path) -> bool:
    return stat.S_ISREG(file.lstat().st_mode)


def _kept_wrongly(files: Anew, store: Store | ImageCache, found: list[Damage]) -> list[Damage]:
    """Remove what this machine keeps of files that are sound on the server, and is not theirs; and name them."""
    damaged, shard_of = {one.file for one in found}, _shards(store)
    for name in sorted(set(files.wrong) - damaged):
        for place in files.wrong[name]:
            place.unlink(missing_ok=True)
        inside = store.spec.shard_samples(shard_of[name]) if name in shard_of else range(0)
        what = (
            f"{len(files.wrong[name])} parts kept in {files.cache} were not the server's bytes, which match the "
            "manifest; they are removed"
        )
        found.append(Damage(name, what, [_id(store, number) for number in inside], "kept"))
    return found


def _shards(store: Store | ImageCache) -> dict[str, int]:
    """Number of each file of the large arrays."""
    return {array.file(shard): shard for array in store.layout.sharded() for shard in range(store.spec.shards)}


def _verify(store: Store | ImageCache, found: list[Damage], progress: Progress) -> list[Damage]:
    shard_of = _shards(store)
    with progress.task("verify", len(store.manifest), "file") as task:
        for name in store.manifest:
            inside = store.spec.shard_samples(shard_of[name]) if name in shard_of else range(0)
            try:
                what, kind = _difference(store, name), _DAMAGED
            except ConnectionError:  # says nothing of the file
                raise
            except OSError as error:
                if error.errno in OF_THIS_PROCESS:
                    raise
                what, kind = f"cannot be read: {error.strerror or error}", _UNREADABLE
            if what:
                found.append(Damage(name, what, [_id(store, number) for number in inside], kind))
            task.update()
    if found:
        return found
    # The bytes are those that the manifest was made for: see that they also mean something.
    try:
        if digest_of_ids(store.ids) != store.spec.source.get("ids_sha256"):
            found.append(Damage("sample/id", "the ids' sha256 is not the one in the store's attributes", []))
        store.index_of(store.ids[0])  # to find one, all are looked at: each must be there once
    except DamagedStoreError as error:
        found.append(Damage("sample/id", str(error), []))
    found += _unreadable_rows(store)
    with progress.task("decode", len(store), "sample") as task:
        for number in range(len(store)):
            found += _unreadable(store, number)
            task.update()
    return found


def _unreadable_rows(store: Store | ImageCache) -> list[Damage]:
    """Files of columns that do not decode; the ids have been read."""
    found = []
    for array in store.layout.rows():
        for number in range(array.files if array.path != "sample/id" else 0):
            try:
                store._part(array, number)  # noqa: SLF001 - same room
            except DamagedStoreError as error:
                found.append(Damage(array.file(number), str(error), []))
    return found


def _readers(store: Store | ImageCache) -> dict[str, Callable[[int], object]]:
    """Ways to read a sample that, all together, decode each of its chunks."""
    if isinstance(store, ImageCache):
        return {"rgb": store.image}
    readers: dict[str, Callable[[int], object]] = {"depth": store.depth}
    if store.spec.dpm_kind != "gaussian":
        readers["dpm"] = store.dpm
    if store.spec.dpm_kind == "sparse":
        readers["dpm/gap"] = store.check_planes
    if store.spec.alignment is not None:
        readers["sample/align_verdict"] = store.alignment
    return readers


def _unreadable(store: Store | ImageCache, number: int) -> list[Damage]:
    """What of a sample does not decode."""
    found = []
    for array, read in _readers(store).items():
        try:
            read(number)
        except DamagedStoreError as error:
            found.append(Damage(array, str(error), [_id(store, number)]))
    return found


def _strangers(path: Path, store: Store | ImageCache) -> list[str]:
    """Links that DVC did not make, and files that the manifest does not name."""
    known = {*store.manifest, MANIFEST}
    there = [(file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*"))]

    def belongs(file: Path, name: str) -> bool:
        if file.is_symlink():
            return name in known and cached_target(str(file), str(path)) is not None
        return file.is_dir() or name in known

    return [name for file, name in there if not belongs(file, name)]


def _difference(store: Store | ImageCache, name: str) -> str:
    """What a file has that the manifest does not say; empty where they agree. Raises OSError where it is not read."""
    size, digest = store.manifest[name]
    try:
        length = store._files.size(name)  # noqa: SLF001 - same room
        hasher = hashlib.sha256()
        for offset in range(0, size if length == size else 0, PIECE_BYTES):
            hasher.update(store._files.read_range(name, offset, PIECE_BYTES))  # noqa: SLF001 - same room
    except DamagedStoreError as error:
        return str(error)
    if length != size:
        return f"{length} bytes, the manifest says {size}"
    return "" if hasher.hexdigest() == digest else "sha256 differs from the manifest"


def _id(store: Store | ImageCache, number: int) -> str:
    try:
        return store.ids[number]
    except (DamagedStoreError, OSError):  # the ids are at fault too, which is told on its own
        return f"number {number}"
