"""Hostile archives for `unpack_store`."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from typing import TYPE_CHECKING

from hostile.forge import Case, Forged

from pipeline.store.format.layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CASES: list[Case] = []
SHARD = "depth/c/0/0/0"
Members = list[tuple[zipfile.ZipInfo, bytes]]


def case(name: str, words: str, change: Callable[[Members], object], **after: int) -> None:
    """Add a case: a valid archive with changed members, and changed fields of SHARD in the directory."""

    def write(folder: Path) -> None:
        files = sorted(path for path in Forged.sound["gaussian"].rglob("*") if path.is_file())
        members = [(member(path.relative_to(Forged.sound["gaussian"]).as_posix()), path.read_bytes()) for path in files]
        change(members)
        with zipfile.ZipFile(folder / "s.zip", "w") as packed:
            for info, data in members:
                packed.writestr(info, data)
        if after:
            path = folder / "s.zip"
            path.write_bytes(redeclared(path.read_bytes(), **after))

    CASES.append(Case(f"archive-{name}", ("archive",), words, write))


def member(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    """Return the ZIP header of a member."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def redeclared(data: bytes, **fields: int) -> bytes:
    """An archive whose directory has other numbers for SHARD: crc, packed, size, at (offset of its local header)."""
    changed = bytearray(data)
    start = data.index(b"PK\x01\x02")
    while data[start + 46 : start + 46 + len(SHARD)] != SHARD.encode():
        start = data.index(b"PK\x01\x02", start + 4)
    places = {"crc": 16, "packed": 20, "size": 24, "at": 42}
    for name, value in fields.items():
        struct.pack_into("<I", changed, start + places[name], value)
    return bytes(changed)


def add(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Callable[[Members], None]:
    """One more member."""
    return lambda members: members.append((member(name, mode), data))


def of_shard(change: Callable[[Members, int], None]) -> Callable[[Members], None]:
    """Change the member of SHARD."""
    return lambda members: change(members, next(n for n, (info, _) in enumerate(members) if info.filename == SHARD))


def cut(members: Members, number: int) -> None:
    members[number] = members[number][0], members[number][1][:-1]


def rotten(members: Members, number: int) -> None:
    members[number] = members[number][0], members[number][1][:-1] + b"\0"


def compressed(members: Members, number: int) -> None:
    members[number][0].compress_type = zipfile.ZIP_DEFLATED
    members[number] = members[number][0], bytes(50_000_000)


def renamed(name: str) -> Callable[[Members], None]:
    """The manifest under another name."""

    def change(members: Members) -> None:
        number = next(n for n, (info, _) in enumerate(members) if info.filename == MANIFEST)
        members[number] = member(name), members[number][1]

    return change


LEAVE = "leaves the store"
case("parent", LEAVE, add("../outside/owned"))
case("parent-inside", LEAVE, add("depth/../../outside/owned"))
case("absolute", LEAVE, add(f"{os.getcwd()}/owned"))  # noqa: PTH109 - text
case("backslash", LEAVE, add("..\\outside\\owned"))
case("folder", LEAVE, add("more/", b""))
case("dot", LEAVE, add("./zarr.json"))
case("escape", "but not in both", add("\x1b[2J"))
case("link", "is a link or a device", add("more", b"/etc/passwd", stat.S_IFLNK | 0o777))
case("pipe", "is a link or a device", add("more", b"", stat.S_IFIFO | 0o644))
case("device", "is a link or a device", add("more", b"", stat.S_IFCHR | 0o644))
case("twice", "is a duplicate", add("zarr.json", b"{}"))
case("more", "but not in both", add("more"))
case("less", "but not in both", of_shard(lambda members, number: members.pop(number)))
case("compressed", "is compressed or encrypted", of_shard(compressed))
case("cut-member", "the manifest lists", of_shard(cut))
case("rotten-member", "does not match", of_shard(rotten))
case("without-manifest", "no member MANIFEST.json", renamed("other.json"))
case("declares-4-gigabytes", "its members declare|is compressed", lambda _: None, size=2**32 - 2, packed=2**32 - 2)
case("declares-more-than-packed", "is compressed or encrypted", lambda _: None, size=10**6)
case("member-in-another", "not a packed store|does not match", lambda _: None, at=0)
case("member-outside", "not a packed store", lambda _: None, at=2**31)


def raw(name: str, words: str, put: Callable[[Path], object]) -> None:
    """Add a case that is not an archive."""
    CASES.append(Case(f"archive-{name}", ("archive",), words, lambda folder: put(folder / "s.zip")))


raw("is-a-pipe", "not a regular file|no packed store|not a packed store", os.mkfifo)
raw("is-text", "not a packed store", lambda path: path.write_text("a" * 100))
raw("is-empty", "not a packed store", lambda path: path.write_bytes(b""))
raw("of-a-directory-alone", "not a packed store", lambda path: path.write_bytes(b"PK\x05\x06" + b"\xff" * 18))


def nul(path: Path) -> None:
    """A name with a NUL, at which only some readers end it."""
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(member("zarr.json#more"), b"{}")
    path.write_bytes(path.read_bytes().replace(b"#more", b"\0more"))


raw("nul", LEAVE, nul)


def by_the_million(path: Path) -> None:
    """A directory of 100000 empty members."""
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a", b"")
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    directory = b"".join(
        data[start : start + 28] + struct.pack("<H", 6) + data[start + 30 : start + 46] + b"%06d" % number
        for number in range(100_000)
    )
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + tail)


raw("of-members-by-the-million", "not a packed store|members|no member", by_the_million)
