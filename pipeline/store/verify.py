"""Read a whole store and name everything in it that is not as it was written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..fileio import printable
from ..progress import Silent
from .codec import DamagedStoreError
from .either import either_of, open_either
from .files import is_url
from .image_reader import KeptImages
from .layout import MANIFEST
from .spec import digest_of_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..progress import Progress
    from .reader import Store

MAX_NAMED_SAMPLES = 8
PIECE_BYTES = 2**25
"""A shard may be larger than memory; a request to a far store takes as long as many bytes."""


@dataclass(frozen=True)
class Damage:
    """One file of a store that is not what the manifest says."""

    file: str
    what: str
    samples: list[str]
    """Ids of the samples that the file holds, all of them suspect; empty where it holds none alone."""

    def __str__(self) -> str:
        if not self.samples:
            return f"{printable(self.file)}: {self.what}"  # a file of somebody else may have any name
        named = ", ".join(self.samples[:MAX_NAMED_SAMPLES])
        more = len(self.samples) - MAX_NAMED_SAMPLES
        return f"{self.file}: {self.what}; samples {named}{f' and {more} more' if more > 0 else ''}"


def verify_store(path: str | Path, progress: Progress | None = None) -> list[Damage]:
    """Compare every file with the manifest, and decode every sample. An empty list is a sound store.

    `path` may be a URL: all of it is fetched anew. What else lies there is not asked for, since not every server tells.

    Raises ValueError where the store cannot be opened at all, ConnectionError where the other side stays away.
    """
    progress = progress or Silent()
    if is_url(path):
        from .remote import fetched_anew

        with fetched_anew(str(path)) as files:
            return _verify(either_of(files, files.name, check_shards=False), [], progress)
    store = open_either(path, check_shards=False)  # all are hashed here
    strange = [Damage(name, "does not belong to the store", []) for name in _strangers(Path(path), store)]
    return _verify(store, strange, progress)


def _verify(store: Store | KeptImages, found: list[Damage], progress: Progress) -> list[Damage]:
    shard_of = {array.file(shard): shard for array in store.layout.sharded() for shard in range(store.spec.shards)}
    with progress.task("verify", len(store.manifest), "file") as task:
        for name in store.manifest:
            if what := _difference(store, name):
                inside = store.spec.shard_samples(shard_of[name]) if name in shard_of else range(0)
                found.append(Damage(name, what, [_id(store, number) for number in inside]))
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


def _unreadable_rows(store: Store | KeptImages) -> list[Damage]:
    """Files of columns that do not decode; the ids have been read."""
    found = []
    for array in store.layout.rows():
        for number in range(array.files if array.path != "sample/id" else 0):
            try:
                store._part(array, number)  # noqa: SLF001 - same room
            except DamagedStoreError as error:
                found.append(Damage(array.file(number), str(error), []))
    return found


def _readers(store: Store | KeptImages) -> dict[str, Callable[[int], object]]:
    """Ways to read a sample that, all together, decode each of its chunks."""
    if isinstance(store, KeptImages):
        return {"rgb": store.image}
    readers: dict[str, Callable[[int], object]] = {"depth": store.depth}
    if store.spec.dpm_kind != "gaussian":
        readers["dpm"] = store.dpm
    if store.spec.alignment is not None:
        readers["sample/align_verdict"] = store.alignment
    return readers


def _unreadable(store: Store | KeptImages, number: int) -> list[Damage]:
    """What of a sample does not decode."""
    found = []
    for array, read in _readers(store).items():
        try:
            read(number)
        except DamagedStoreError as error:
            found.append(Damage(array, str(error), [_id(store, number)]))
    return found


def _strangers(path: Path, store: Store | KeptImages) -> list[str]:
    """Links, and files that the manifest does not name."""
    known = {*store.manifest, MANIFEST}
    there = [(file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*"))]
    return [name for file, name in there if file.is_symlink() or (not file.is_dir() and name not in known)]


def _difference(store: Store | KeptImages, name: str) -> str:
    """What a file has that the manifest does not say; empty where they agree."""
    size, digest = store.manifest[name]
    try:
        length = store._files.size(name)  # noqa: SLF001 - same room
        hasher = hashlib.sha256()
        for offset in range(0, size if length == size else 0, PIECE_BYTES):
            hasher.update(store._files.read_range(name, offset, PIECE_BYTES))  # noqa: SLF001 - same room
    except DamagedStoreError as error:
        return str(error)
    except ConnectionError:  # says nothing of the file
        raise
    except OSError as error:  # a bad sector, or a folder in the place of a file
        return f"cannot be read: {error.strerror or error}"
    if length != size:
        return f"{length} bytes, the manifest says {size}"
    return "" if hasher.hexdigest() == digest else "sha256 differs from the manifest"


def _id(store: Store | KeptImages, number: int) -> str:
    try:
        return store.ids[number]
    except DamagedStoreError:  # the ids are damaged too, which is told on its own
        return f"number {number}"
