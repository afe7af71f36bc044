"""Read a whole store and name everything in it that is not as it was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..fileio import sha256_bytes
from ..progress import Silent
from .codec import DamagedStoreError
from .layout import MANIFEST, MAX_CHUNK_BYTES
from .reader import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from ..progress import Progress

MAX_NAMED_SAMPLES = 8


@dataclass(frozen=True)
class Damage:
    """One file of a store that is not what the manifest says."""

    file: str
    what: str
    samples: list[str]
    """Ids of the samples that the file holds, all of them suspect; empty where it holds none alone."""

    def __str__(self) -> str:
        if not self.samples:
            return f"{self.file}: {self.what}"
        named = ", ".join(self.samples[:MAX_NAMED_SAMPLES])
        more = len(self.samples) - MAX_NAMED_SAMPLES
        return f"{self.file}: {self.what}; samples {named}{f' and {more} more' if more > 0 else ''}"


def verify_store(path: Path, progress: Progress | None = None) -> list[Damage]:
    """Compare every file with the manifest, and decode every sample. An empty list is a sound store.

    Raises ValueError where the store cannot be opened at all.
    """
    store = open_store(path)
    found: list[Damage] = []
    known = set(store.manifest) | {MANIFEST}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink() or (not file.is_dir() and name not in known):
            found.append(Damage(name, "does not belong to the store", []))
    shard_of = {array.file(shard): shard for array in store.layout.sharded() for shard in range(store.spec.shards)}
    with (progress or Silent()).task("verify", len(store.manifest), "file") as task:
        for name, (size, digest) in store.manifest.items():
            try:
                data = store._files.read(name, max(size, MAX_CHUNK_BYTES))  # noqa: SLF001 - same room
                what = "" if len(data) == size else f"{len(data)} bytes, the manifest says {size}"
                what = what or ("" if sha256_bytes(data) == digest else "sha256 differs from the manifest")
            except DamagedStoreError as error:
                what = str(error)
            if what:
                inside = store.spec.shard_samples(shard_of[name]) if name in shard_of else []
                found.append(Damage(name, what, [store.ids[number] for number in inside]))
            task.update()
    if not found:  # the bytes are the writer's own: see that they also decode
        with (progress or Silent()).task("decode", len(store), "sample") as task:
            for number in range(len(store)):
                try:
                    store.depth(number)
                    if store.spec.dpm_kind != "gaussian":
                        store.dpm(number)
                except DamagedStoreError as error:
                    found.append(Damage("depth", str(error), [store.ids[number]]))
                task.update()
    return found
