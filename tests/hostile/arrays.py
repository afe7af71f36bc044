"""Hostile files of numbers: `.npz`, `.pfm`, `.exr`, HDF5, and data sets that are made of them."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from functools import partial
from typing import TYPE_CHECKING

import h5py
import layouts_indoor as layouts
import numpy as np
from hostile.forge import Case
from hostile.inputs import BAD_ARRAY, PICKLE, huge_file, npy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CASES: list[Case] = []


def case(name: str, way: str, words: str, write: Callable[[Path], object]) -> None:
    """Add a case of one way to open it."""
    CASES.append(Case(name, (way,), words, write))


def bomb(megabytes: int) -> bytes:
    """A zlib stream of zeros, a thousandth as long: one piece, again and again."""
    packer = zlib.compressobj(9)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + piece * megabytes + packer.flush()


def array(name: str, words: str, data: bytes) -> None:
    """Add a case of bytes in a file of an array; the name begins with its format."""
    case(
        f"array-{name}",
        "array",
        words,
        lambda folder: (folder / f"a.{name.split('-', maxsplit=1)[0]}").write_bytes(data),
    )


# --- .npz ------------------------------------------------------------------------------------------------------------


def npz(size: int | None = None, packing: int = zipfile.ZIP_DEFLATED, flag: int = 0, **members: bytes) -> bytes:
    """An archive; `size` is what its directory says of the last member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as packed:
        for name, data in members.items():
            packed.writestr(f"{name}.npy", data)
    data = bytearray(out.getvalue())
    at = data.rindex(b"PK\x01\x02")
    if size is not None:
        struct.pack_into("<I", data, at + 24, size)
    data[at + 8] |= flag
    return bytes(data)


DAMAGED = "damaged, or of another format"
array("npz-bomb", "at most", npz(depth=npy((2**14, 2**14), body=bytes(2**28 + 2**20))))
array("npz-declares-4-gigabytes", "at most", npz(2**32 - 2, depth=npy((4, 4))))
array("npz-object", DAMAGED, npz(depth=npy((1, 1), "|O", PICKLE)))
array("npz-pickle", "not an array", npz(depth=PICKLE))
array("npz-encrypted", "encrypted", npz(flag=1, depth=npy((4, 4))))
array("npz-is-a-pickle", DAMAGED, PICKLE)

# --- .pfm ------------------------------------------------------------------------------------------------------------

array("pfm-of-2^30-squared", BAD_ARRAY, b"Pf\n999999999 999999999\n-1\n" + bytes(64))
array("pfm-of-5000-digits", "no .pfm file", b"Pf\n" + b"9" * 5000 + b" 4\n-1\n" + bytes(64))
array("pfm-scale-nan", "no .pfm file", b"Pf\n4 4\nnan\n" + bytes(64))
array("pfm-scale-1e999", "scale '1e999'", b"Pf\n4 4\n1e999\n" + bytes(64))
array("pfm-of-white-space", "no .pfm file", b"Pf" + b" " * 2**20)
array("pfm-pickle", "no .pfm file", PICKLE)

# --- .exr ------------------------------------------------------------------------------------------------------------

WINDOW = (0, 0, 7, 5)


def channel(name: bytes, kind: int = 2, across: int = 1) -> bytes:
    """One entry of a list of channels."""
    return name + b"\0" + struct.pack("<iIii", kind, 0, across, 1)


def attribute(name: bytes, kind: bytes, data: bytes, size: int | None = None) -> bytes:
    """One attribute of a header."""
    return name + b"\0" + kind + b"\0" + struct.pack("<I", len(data) if size is None else size) + data


def exr(
    window: tuple[int, int, int, int] = WINDOW,
    compression: int = 0,
    blocks: list[tuple[int, bytes]] | None = None,
    *,
    channels: bytes = channel(b"Z") + b"\0",
    version: int = 2,
    more: bytes = b"",
    kind: bytes = b"box2i",
    offsets: list[int] | None = None,
) -> bytes:
    """An OpenEXR file: its header, table and blocks of (line, bytes)."""
    box = struct.pack("<4i", *window)
    header = (
        b"\x76\x2f\x31\x01"
        + struct.pack("<I", version)
        + attribute(b"channels", b"chlist", channels)
        + attribute(b"compression", b"compression", bytes([compression]))
        + attribute(b"dataWindow", kind, box)
        + attribute(b"displayWindow", b"box2i", box)
        + attribute(b"lineOrder", b"lineOrder", b"\0")
        + attribute(b"pixelAspectRatio", b"float", struct.pack("<f", 1))
        + attribute(b"screenWindowCenter", b"v2f", bytes(8))
        + attribute(b"screenWindowWidth", b"float", struct.pack("<f", 1))
        + more
        + b"\0"
    )
    blocks = [(line, bytes(32)) for line in range(6)] if blocks is None else blocks
    packed = [struct.pack("<iI", line, len(data)) + data for line, data in blocks]
    at = len(header) + 8 * len(packed)
    table = [at + sum(map(len, packed[:number])) for number in range(len(packed))]
    return header + struct.pack(f"<{len(packed)}Q", *(table if offsets is None else offsets)) + b"".join(packed)


NO_EXR = "not an .exr file, or damaged"
array("exr-of-2^31", NO_EXR, exr((0, 0, 2**31 - 2, 2**31 - 2)))
array("exr-beyond-2^31", NO_EXR, exr((-(2**31), 0, 2**31 - 1, 5)))
array("exr-of-8-million-columns", "declares 6x8388608 pixels", exr((0, 0, 2**23 - 1, 5)))
array("exr-negative", NO_EXR, exr((7, 5, 0, 0)))
array("exr-attribute-of-another-type", NO_EXR, exr(kind=b"string"))
array("exr-without-an-end", NO_EXR, exr(more=attribute(b"a", b"b", b"c") * 1000)[:3000])
array("exr-of-100000-channels", NO_EXR, exr(channels=b"".join(channel(b"%d" % n) for n in range(10**5))))
array("exr-without-channels", NO_EXR, exr(channels=b"\0"))
array("exr-of-a-sampled-channel", "sampled every 2x1", exr(channels=channel(b"Z", across=2) + b"\0"))
for _name, _flag in [("tiled", 0x200), ("deep", 0x800), ("of-parts", 0x1000), ("of-all-flags", 0xFFFFFF00)]:
    array(f"exr-{_name}", NO_EXR, exr(version=2 | _flag))
array("exr-of-an-unknown-compression", NO_EXR, exr(compression=77))
array("exr-block-outside", NO_EXR, exr(offsets=[2**62] * 6))
array("exr-block-again-and-again", NO_EXR, exr(blocks=[(0, bytes(32))] * 6))
array("exr-block-of-another-line", NO_EXR, exr(blocks=[(line + 99, bytes(32)) for line in range(6)]))
array("exr-block-too-large", NO_EXR, exr(blocks=[(line, bytes(33)) for line in range(6)]))
array("exr-table-cut-off", NO_EXR, exr((0, 0, 0, 2**25 - 1)))
array("exr-zip-bomb", NO_EXR, exr((0, 0, 2**20 - 1, 15), 3, [(0, bomb(1000))]))
for _number in (1, 4, 5, 6, 8):
    array(f"exr-garbage-{_number}", NO_EXR, exr(compression=_number, blocks=[(0, os.urandom(20))]))
array("exr-pickle", NO_EXR, PICKLE)

# --- HDF5 ------------------------------------------------------------------------------------------------------------


def hdf5(name: str, words: str, fill: Callable[[h5py.File], object]) -> None:
    """Add a case of an HDF5 file whose `x` should be numbers of two axes."""

    def write(folder: Path) -> None:
        with h5py.File(folder / "a.h5", "w") as file:
            fill(file)

    case(f"hdf5-{name}", "hdf5", words, write)


def put(**facts: object) -> Callable[[h5py.File], object]:
    """Create `x`."""
    return lambda file: file.create_dataset("x", **{"shape": (4, 4), "dtype": "f4", **facts})


hdf5("group", "no data set 'x'", lambda file: file.create_group("x"))
hdf5("nothing", "it has none", lambda _: None)
hdf5("names-of-escapes", r"it has \x1b[2J", lambda file: file.create_group("\x1b[2J"))
hdf5("external-storage", "in other files", put(external=[("/etc/passwd", 0, 64)]))
hdf5("objects", "expected numbers", put(dtype=h5py.string_dtype()))
hdf5("compound", "expected numbers", put(dtype=np.dtype([("a", "f4"), ("b", "f4")])))
hdf5("text", "expected numbers", put(dtype="S8"))
hdf5("null", "expected numbers", lambda file: file.create_dataset("x", data=h5py.Empty("f4")))
hdf5("three-axes", "of shape (4, 4, 4)", put(shape=(4, 4, 4)))
hdf5("no-rows", "of shape (0, 4)", put(shape=(0, 4), maxshape=(None, 4)))
hdf5("2^40-numbers", "declares frames", put(shape=(2**20, 2**20)))
hdf5("2^40-numbers-in-chunks", "declares frames", put(shape=(2**20, 2**20), chunks=(2**8, 2**8)))
hdf5("numbers-never-written", "has 0 of 64 bytes", put())
hdf5("chunks-never-written", "has 0 of 1 chunks", put(chunks=(4, 4)))
for _name, _data in [
    ("pickle", PICKLE),
    ("empty", b""),
    ("signature-alone", b"\x89HDF\r\n\x1a\n" + bytes(500)),
    ("signature-and-noise", b"\x89HDF\r\n\x1a\n\x02\x08\x08\x00" + bytes(range(256)) * 4),
]:
    case(
        f"hdf5-{_name}",
        "hdf5",
        "not a complete HDF5 file",
        lambda folder, data=_data: (folder / "a.h5").write_bytes(data),
    )
case("hdf5-is-a-pipe", "hdf5", "not a regular file", lambda folder: os.mkfifo(folder / "a.h5"))
case("hdf5-is-a-device", "hdf5", "not a regular file", lambda folder: (folder / "a.h5").symlink_to("/dev/zero"))
case("hdf5-of-50-gigabytes", "hdf5", "not a complete HDF5 file", partial(huge_file, "a.h5", 50 * 2**30))

# --- any array -------------------------------------------------------------------------------------------------------

for _suffix in ("npy", "npz", "pfm", "exr"):
    case(f"array-{_suffix}-pipe", "array", "not a regular", lambda folder, s=_suffix: os.mkfifo(folder / f"a.{s}"))
    case(
        f"array-{_suffix}-of-50-gigabytes",
        "array",
        "bytes, expected at most",
        partial(huge_file, f"a.{_suffix}", 50 * 2**30),
    )
    array(f"{_suffix}-empty", "no |not |damaged", b"")

# --- data sets -------------------------------------------------------------------------------------------------------


def changed(make: Callable[[Path], Path], change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A sound data set, changed."""
    return lambda folder: change(make(folder / "root"))


def relinked(name: str, to: object) -> Callable[[Path], object]:
    """The labelled file with a link in the place of a data set."""

    def change(root: Path) -> None:
        with h5py.File(root / layouts.LABELED, "a") as file:
            del file[name]
            file[name] = to

    return change


LABELED = layouts.make_nyu_labeled
for _name in ("images", "depths"):
    case(
        f"nyu-{_name}-elsewhere",
        "nyu",
        "does not open|no data set",
        changed(LABELED, relinked(_name, h5py.ExternalLink("/etc/passwd", "/x"))),
    )
case(
    "nyu-is-a-pipe",
    "nyu",
    "no NYU Depth V2 root",
    lambda folder: ((folder / "root").mkdir(), os.mkfifo(folder / "root" / layouts.LABELED)),
)
TABLE = layouts.SPLIT_FILE
for _name, _data, _words in [
    ("field-of-a-megabyte", b"scene_name," + b"a" * 2**20, "field larger than field limit"),
    ("nul", b"\0" * 1000, "columns|line contains NUL"),
    ("escape", b"\x1b[2J,a\n", r"columns ['\x1b[2J', 'a']"),
]:
    case(
        f"hypersim-table-{_name}",
        "hypersim",
        _words,
        changed(layouts.make_hypersim, lambda root, data=_data: (root / TABLE).write_bytes(data)),
    )
case(
    "hypersim-table-of-a-gigabyte",
    "hypersim",
    "expected at most",
    changed(layouts.make_hypersim, partial(huge_file, TABLE, 2**30)),
)


def mask(data: bytes) -> Callable[[Path], object]:
    """DIODE with another mask."""
    return changed(layouts.make_diode, lambda root: next(root.rglob("train/**/*_mask.npy")).write_bytes(data))


case("diode-mask-object", "diode", BAD_ARRAY, mask(npy((1, 1), "|O", PICKLE)))
case("diode-mask-pickle", "diode", BAD_ARRAY, mask(PICKLE))
