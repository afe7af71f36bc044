"""Find the members of a tar archive by its headers. Their data is neither read nor extracted."""

from __future__ import annotations

import os
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from ...common.fileio import open_regular, printable
from ...errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_HEADER_BYTES = 2**20
"""Of an extended header, whose size the archive declares; a long name takes a few hundred bytes."""
BLOCK = 512
COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"(\xb5/\xfd": "zstd -d"}
"""First bytes of compressed files, and the command that decompresses them."""


class TarMember(NamedTuple):
    """One member that is not a folder."""

    name: str
    """As written; bytes that are not UTF-8 are surrogates."""
    offset: int
    """Where its data begins in the archive, in bytes."""
    size: int
    """Of its data, in bytes."""
    kind: str
    """`file`; or `symbolic link`, `hard link`, `sparse file` or `device`, whose data is not there as it is."""


class FileStamp(NamedTuple):
    """Size and time of change, which tell a file from a changed one."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, handle: int) -> FileStamp:
        """Return the stamp of an open file."""
        status = os.fstat(handle)
        return cls(status.st_size, status.st_mtime_ns)


def scan_tar(path: str) -> tuple[list[TarMember], FileStamp]:
    """List the members of an archive, in its order.

    Takes 18 us a member with the headers in memory. Raises PipelineError for a file that cannot be read, is compressed,
    truncated or damaged.
    """
    try:
        with open_regular(path) as file:
            return _scan(file.fileno(), path)
    except OSError as error:
        raise PipelineError(f"shard {path}: {error.strerror}; expected a readable tar file") from error


def _scan(handle: int, path: str) -> tuple[list[TarMember], FileStamp]:
    stamp = FileStamp.of(handle)
    start = os.pread(handle, 8, 0)
    for magic, command in COMPRESSED.items():
        if start.startswith(magic):
            raise PipelineError(
                f"shard {path} is compressed, so single images cannot be read from it: run `{command}` on it once; "
                "JPEG and PNG hardly shrink"
            )
    headers = _Headers(handle)
    try:
        with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]  # `read`, `seek` and `tell` suffice
            members = [_checked(info, stamp.size) for info in _infos(archive)]
            end = archive.offset
    except Exception as error:  # tarfile raises several types for damaged headers, RecursionError among them
        raise PipelineError(
            f"shard {path}: damaged, or not a tar file ({printable(str(error))[:200]}); copy or make it again"
        ) from error
    # tarfile takes a damaged header, or the end of the file, for the end of the archive
    last = os.pread(handle, BLOCK, end)
    if last != bytes(BLOCK):
        problem = "truncated, its end mark is missing" if len(last) < BLOCK else f"damaged header at byte {end}"
        raise PipelineError(f"shard {path}: {problem} after {len(members)} members; copy or make it again")
    return members, stamp


def _infos(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of members that are not folders."""
    while (info := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it would keep all
        if not info.isdir():
            yield info


def _checked(info: tarfile.TarInfo, archive_bytes: int) -> TarMember:
    """Return a member. Raises TarError if its data is not within the archive."""
    kind = "file"
    if info.issym():
        kind = "symbolic link"
    elif info.islnk():
        kind = "hard link"
    elif info.issparse():
        kind = "sparse file"
    elif not info.isreg():
        kind = "device"
    if info.size < 0 or (kind == "file" and info.offset_data + info.size > archive_bytes):
        raise tarfile.ReadError(
            f"{info.name[:80]!r} declares {info.size} bytes from byte {info.offset_data}, the file has {archive_bytes}"
        )
    return TarMember(info.name, info.offset_data, info.size, kind)


class _Headers:
    """The parts of an archive that tarfile asks for. Raises TarError for a header that is too large."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LIMIT_HEADER_BYTES:
            raise tarfile.ReadError(f"header of {size} bytes at byte {self._at}")
        data = os.pread(self._handle, size, self._at)
        self._at += len(data)
        return data
