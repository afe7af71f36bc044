"""Pack a store of any kind into one uncompressed, reproducible ZIP file, and unpack it.

Members are the store's files under their own names, MANIFEST.json first, without compression, dates or permissions, so
Zarr's `ZipStore` opens an archive directly. Archives are not trusted: directory, manifest and metadata are checked
before anything is written, members must be exactly the manifest's files with their sizes, and unpacked files are hashed
and get their final name only when complete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import zipfile
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ...common.fileio import open_regular
from ...common.outputs import locked_target, publish
from ...common.own_files import make_folder, make_folder_below, naming, open_new, remove_own, sync_directory
from ...common.progress import Silent
from ...errors import DamagedStoreError, PipelineError
from ..format.layout import MANIFEST
from ..read.validate import MANIFEST_LIMIT_BYTES
from .open_any import either_layout, open_either

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ...common.progress import Progress, Task
    from ..read.files import StoreFiles

PIECE_BYTES = 2**20
NO_DATE = (1980, 1, 1, 0, 0, 0)
UNIX = 3
ENCRYPTED = 1
# What zipfile raises for invalid or unsupported archives.
NOT_A_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, OverflowError)


def pack_store(store_path: Path, archive: Path, progress: Progress | None = None) -> int:
    """Write a complete store into one file; the same store gives the same bytes. Returns their number.

    Raises PipelineError if the store does not open or `archive` exists, and DamagedStoreError for a file that does not
    match the manifest; then no file is left.
    """
    store = open_either(store_path)
    files = store._files  # noqa: SLF001 - same package
    temporary = archive.with_name(f".{archive.name}.packing")
    # The manifest does not list itself; opening the store checked it.
    manifest = files.read(MANIFEST, MANIFEST_LIMIT_BYTES)
    whole = {MANIFEST: (len(manifest), hashlib.sha256(manifest).hexdigest()), **store.manifest}
    total = sum(size for size, _ in whole.values())
    progress = progress or Silent()
    with locked_target(archive, progress), progress.task("pack", total, "B") as task:
        try:
            with naming(archive), os.fdopen(open_new(temporary), "wb") as out:
                with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
                    for name in sorted(whole):  # upper case sorts first
                        info = zipfile.ZipInfo(name, NO_DATE)
                        info.create_system = UNIX
                        info.external_attr = (stat.S_IFREG | 0o644) << 16
                        info.file_size = whole[name][0]
                        with packed.open(info, "w") as member:
                            _copy(_pieces_of(files, name), member.write, f"{store_path}/{name}", whole[name], task)
                out.flush()
                os.fsync(out.fileno())
            size = temporary.stat().st_size
            publish(temporary, archive)
        finally:
            temporary.unlink(missing_ok=True)
    return size


def unpack_store(archive: Path, target: Path, progress: Progress | None = None) -> int:
    """Unpack an archive of `pack_store` into the directory `target`. Returns the number of samples.

    Raises PipelineError if `target` exists or the archive is not exactly a valid store, and DamagedStoreError if its
    bytes do not match its manifest; then no file is left.
    """
    try:
        whole = open_regular(archive)
    except OSError as error:
        raise PipelineError(f"{archive}: {error.strerror}; expected a file of `pipeline store pack`") from error
    with whole as file, _zip_errors(archive), zipfile.ZipFile(file) as packed:
        members = _checked_members(packed, archive)
        manifest, spec = either_layout(ZipFiles(packed, members, archive), str(archive))
        for name in sorted((members.keys() ^ manifest.keys()) - {MANIFEST}):
            raise PipelineError(f"{archive}: member {name!r} is in the archive or in its manifest, but not in both")
        for name, (size, _) in manifest.items():
            if members[name].file_size != size:
                there = members[name].file_size
                raise DamagedStoreError(f"{archive}: member {name} has {there} bytes, the manifest lists {size}")
        staging = target.with_name(f".{target.name}.unpacking")
        total = sum(info.file_size for info in members.values())
        progress = progress or Silent()
        with locked_target(target, progress), progress.task("unpack", total, "B") as task:
            remove_own(staging)  # of a killed run: we hold the lock
            try:
                make_folder(staging)
                for name in [*manifest, MANIFEST]:
                    make_folder_below(staging, name.rpartition("/")[0])
                    facts = manifest.get(name, (members[name].file_size, None))
                    with packed.open(members[name]) as member:
                        pieces = iter(partial(member.read, PIECE_BYTES), b"")
                        _write_new(staging / name, pieces, f"{archive}: member {name}", facts, task)
                for folder in sorted({staging, *(path.parent for path in staging.rglob("*"))}):
                    sync_directory(folder)
                publish(staging, target)
            finally:
                remove_own(staging)
    return spec.samples


class ZipFiles:
    """Files of a packed store."""

    def __init__(self, packed: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: Path) -> None:
        self._packed, self._members, self._name = packed, members, name

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Return the content of a small file."""
        size = self.size(path)
        if size > limit_bytes:
            raise DamagedStoreError(f"{self._name}: member {path}: {size} bytes, expected at most {limit_bytes}")
        return self.read_range(path, 0, size)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`."""
        self.size(path)
        with _zip_errors(self._name), self._packed.open(self._members[path]) as member:
            member.seek(offset)
            return member.read(length)

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        if path not in self._members:
            raise DamagedStoreError(f"{self._name}: no member {path}; expected a file of `pipeline store pack`")
        return self._members[path].file_size


def _checked_members(packed: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """Return members by name. Raises PipelineError unless each is a regular, uncompressed, unique file."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in packed.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        where = f"{archive}: member {info.orig_filename!r}"
        parts = info.filename.split("/")
        if info.orig_filename != info.filename or "\\" in info.filename or {"", ".", ".."} & set(parts):
            raise PipelineError(f"{where} leaves the store or is a folder: expected file names of a store")
        if info.filename in members:
            raise PipelineError(f"{where} is a duplicate: expected each file once")
        if kind not in {0, stat.S_IFREG}:
            raise PipelineError(f"{where} is a link or a device: expected regular files only")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.file_size != info.compress_size
            or info.flag_bits & ENCRYPTED
        ):
            raise PipelineError(
                f"{where} is compressed or encrypted: expected it stored, as `pipeline store pack` writes it"
            )
        members[info.filename] = info
    total, size = sum(info.file_size for info in members.values()), archive.stat().st_size  # no overlapping members
    if total > size:
        raise PipelineError(f"{archive}: its members declare {total} bytes, the file has {size}")
    return members


def _copy(
    pieces: Iterator[bytes], write: Callable[[bytes], object], where: str, facts: tuple[int, str | None], task: Task
) -> None:
    """Write pieces, at most the size in `facts`, and compare their sha256."""
    size, digest = facts
    hasher, left = hashlib.sha256(), size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        hasher.update(piece)
        write(piece)
        task.update(len(piece))
    if left or (digest is not None and hasher.hexdigest() != digest):
        raise DamagedStoreError(f"{where} does not match the manifest (size or sha256): fetch it again")


def _write_new(path: Path, pieces: Iterator[bytes], where: str, facts: tuple[int, str | None], task: Task) -> None:
    """Do as `_copy`, durably, into a file that must not exist."""
    with naming(path), path.open("xb") as out:
        _copy(pieces, out.write, where, facts, task)
        out.flush()
        os.fsync(out.fileno())


def _pieces_of(files: StoreFiles, name: str) -> Iterator[bytes]:
    offset = 0
    while piece := files.read_range(name, offset, PIECE_BYTES):
        yield piece
        offset += len(piece)


@contextmanager
def _zip_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*NOT_A_ZIP, OSError) as error:
        # A forged offset makes zipfile seek before the file's start (EINVAL).
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DamagedStoreError(
            f"{archive}: not a packed store, or damaged ({error}); expected a file from `pipeline store pack`"
        ) from error
