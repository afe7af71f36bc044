"""Verify a store: compare every file with the manifest and decode every sample."""

from __future__ import annotations

import errno
import hashlib
import re
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...common.dvc_links import cached_target
from ...common.fileio import printable
from ...common.progress import Silent
from ...depth.spaces import DISPARITY
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
    from ..remote.compare_cache import UncachedFiles

MAX_NAMED_SAMPLES = 8
PIECE_BYTES = 2**25
"""A shard may exceed memory; larger pieces save requests to a remote store."""
SYSTEM_FILES = re.compile(r"(.*/)?(\.DS_Store|Thumbs\.db|\._[^/]*|\.nfs[0-9a-fA-F]+)|(.*/)?@eaDir(/.*)?")
"""Files that macOS, Windows, Synology and NFS create in any folder. Readers ignore them."""
Kind = Literal["damaged", "unreadable", "kept"]
_DAMAGED: Kind = "damaged"
_UNREADABLE: Kind = "unreadable"
PROCESS_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of the process, not of a file; every file would give them."""


@dataclass(frozen=True)
class Damage:
    """One file of a store that does not match the manifest or is unreadable."""

    file: str
    what: str
    samples: list[str]
    """Ids of the samples in the file; empty for files that are not shards."""
    kind: Kind = "damaged"
    """`unreadable`: the system could not read it. `kept`: the cache of an intact remote store was wrong."""

    def __str__(self) -> str:
        if not self.samples:
            return f"{printable(self.file)}: {self.what}"  # an unexpected file may have any name
        named = ", ".join(self.samples[:MAX_NAMED_SAMPLES])
        more = len(self.samples) - MAX_NAMED_SAMPLES
        return f"{self.file}: {self.what}; samples {named}{f' and {more} more' if more > 0 else ''}"


def verify_store(path: str | Path, progress: Progress | None = None) -> list[Damage]:
    """Compare every file with the manifest and decode every sample. An empty list means the store is OK.

    `path` may be a URL: the whole store is fetched without the cache; unexpected files there are not detected. Files
    that operating systems create are noted and ignored.

    Raises PipelineError if the store cannot be opened, ConnectionError if the server cannot be reached, and OSError if
    this process has too many open files.
    """
    progress = progress or Silent()
    if is_url(path):
        from ..remote.compare_cache import fetch_uncached

        with fetch_uncached(str(path)) as files:
            store = either_of(files, files.name, check_shards=False)
            return _remove_wrong_ranges(files, store, _verify(store, [], progress))
    store = open_either(path, check_shards=False)  # hashed here instead
    unexpected = _unexpected_files(Path(path), store)
    ignored = [name for name in unexpected if SYSTEM_FILES.fullmatch(name) and _is_regular(Path(path) / name)]
    if ignored:
        progress.note(
            f"{len(ignored)} files of the operating system in the store are ignored, such as {printable(ignored[0])}"
        )
    found = [Damage(name, "does not belong to the store", []) for name in unexpected if name not in ignored]
    return _verify(store, found, progress)


def _is_regular(file: Path) -> bool:
    return stat.S_ISREG(file.lstat().st_mode)


def _remove_wrong_ranges(files: UncachedFiles, store: Store | ImageCache, found: list[Damage]) -> list[Damage]:
    """Remove cached ranges that differ from intact files on the server, and report them."""
    damaged, shard_of = {damage.file for damage in found}, _shards(store)
    for name in sorted(set(files.wrong) - damaged):
        for file in files.wrong[name]:
            file.unlink(missing_ok=True)
        inside = store.spec.shard_samples(shard_of[name]) if name in shard_of else range(0)
        what = (
            f"{len(files.wrong[name])} cached parts in {files.cache_folder} differed from the server, which matches "
            "the manifest; they are removed"
        )
        found.append(Damage(name, what, [_id(store, number) for number in inside], "kept"))
    return found


def _shards(store: Store | ImageCache) -> dict[str, int]:
    """Return the shard number of each file of the large arrays."""
    return {array.file(shard): shard for array in store.layout.sharded() for shard in range(store.spec.shards)}


def _verify(store: Store | ImageCache, found: list[Damage], progress: Progress) -> list[Damage]:
    shard_of = _shards(store)
    with progress.task("verify", len(store.manifest), "file") as task:
        for name in store.manifest:
            inside = store.spec.shard_samples(shard_of[name]) if name in shard_of else range(0)
            try:
                what, kind = _difference(store, name), _DAMAGED
            except ConnectionError:  # not damage of the file
                raise
            except OSError as error:
                if error.errno in PROCESS_ERRORS:
                    raise
                what, kind = f"cannot be read: {error.strerror or error}", _UNREADABLE
            if what:
                found.append(Damage(name, what, [_id(store, number) for number in inside], kind))
            task.update()
    if found:
        return found
    # All bytes match the manifest; check that they decode.
    try:
        if digest_of_ids(store.ids) != store.spec.source.get("ids_sha256"):
            found.append(Damage("sample/id", "the ids' sha256 differs from the store's attributes", []))
        store.index_of(store.ids[0])  # reads all ids and refuses duplicates
    except DamagedStoreError as error:
        found.append(Damage("sample/id", str(error), []))
    found += _unreadable_rows(store)
    with progress.task("decode", len(store), "sample") as task:
        for number in range(len(store)):
            found += _unreadable(store, number)
            task.update()
    return found


def _unreadable_rows(store: Store | ImageCache) -> list[Damage]:
    """Return damage of columns that do not decode, except ids."""
    found = []
    for array in store.layout.rows():
        for number in range(array.files if array.path != "sample/id" else 0):
            try:
                store._part(array, number)  # noqa: SLF001 - same package
            except DamagedStoreError as error:
                found.append(Damage(array.file(number), str(error), []))
    return found


def _readers(store: Store | ImageCache) -> dict[str, Callable[[int], object]]:
    """Return functions that together decode each chunk of a sample."""
    if isinstance(store, ImageCache):
        return {"rgb": store.image}
    readers: dict[str, Callable[[int], object]] = {"depth": store.depth}
    if store.spec.dpm_kind != "gaussian":
        readers["dpm"] = store.dpm
    if store.spec.dpm_kind == "sparse":
        readers["dpm/gap"] = store.check_planes
    if store.spec.alignment is not None:
        readers["sample/align_verdict"] = store.alignment
    readers |= {f"signals/{name}": partial(store.signal, name) for name in store.signals}
    readers |= {f"features/{layer}": partial(store.feature_components, layer) for layer in store.feature_layers}
    if store.feature_layers:
        readers["features"] = lambda _: store.bases
    if store.spec.depth_space == DISPARITY:
        readers["sample/intrinsics"] = store.depth_m
    if store.spec.extras.relations is not None:
        readers["relations"] = store.relations
    return readers


def _unreadable(store: Store | ImageCache, number: int) -> list[Damage]:
    """Return damage of a sample that does not decode."""
    found = []
    for array, read in _readers(store).items():
        try:
            read(number)
        except DamagedStoreError as error:
            found.append(Damage(array, str(error), [_id(store, number)]))
    return found


def _unexpected_files(path: Path, store: Store | ImageCache) -> list[str]:
    """Return links outside the DVC cache, and files that the manifest does not list."""
    known = {*store.manifest, MANIFEST}
    paths = [(file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*"))]

    def belongs(file: Path, name: str) -> bool:
        if file.is_symlink():
            return name in known and cached_target(str(file), str(path)) is not None
        return file.is_dir() or name in known

    return [name for file, name in paths if not belongs(file, name)]


def _difference(store: Store | ImageCache, name: str) -> str:
    """Return how a file differs from the manifest; empty if it matches. Raises OSError if it cannot be read."""
    size, digest = store.manifest[name]
    try:
        length = store._files.size(name)  # noqa: SLF001 - same package
        hasher = hashlib.sha256()
        for offset in range(0, size if length == size else 0, PIECE_BYTES):
            hasher.update(store._files.read_range(name, offset, PIECE_BYTES))  # noqa: SLF001 - same package
    except DamagedStoreError as error:
        return str(error)
    if length != size:
        return f"{length} bytes, the manifest lists {size}"
    return "" if hasher.hexdigest() == digest else "sha256 differs from the manifest"


def _id(store: Store | ImageCache, number: int) -> str:
    try:
        return store.ids[number]
    except (DamagedStoreError, OSError):  # damaged ids are reported separately
        return f"number {number}"
