"""Reads one channel of an OpenEXR file of scan lines.

The header is read here, and so are pixels without compression or with ZIP, which is what writers do unless told
otherwise. For other compressions there is the package OpenEXR, an extra. It is given the same pixels under a header
that is written here, because on a damaged one it dies, and takes the process with it.

The format: openexr.com, "OpenEXR File Layout".

Shape legend: H, W pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import PipelineError
from .images import check_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAGIC = b"\x76\x2f\x31\x01"
LONG_NAMES = 0x400
"""The one flag of the version that does not say tiles, deep data or many parts."""
CHANNELS = ("z", "depth", "y", "r")
"""What a channel of depth is called, the surest first: Z by OpenEXR's convention, Y (grey) and R by others'."""
DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
REQUIRED = {
    "channels": ("chlist", None),
    "compression": ("compression", 1),
    "dataWindow": ("box2i", 16),
    "displayWindow": ("box2i", 16),
    "lineOrder": ("lineOrder", 1),
    "pixelAspectRatio": ("float", 4),
    "screenWindowCenter": ("v2f", 8),
    "screenWindowWidth": ("float", 4),
}
"""Attributes that a header must have: their types and lengths."""
NONE, ZIPS, ZIP = 0, 2, 3
LINES = {NONE: 1, 1: 1, ZIPS: 1, ZIP: 16, 4: 32, 5: 16, 6: 32, 7: 32, 8: 32, 9: 256}
"""Scan lines of a block, by compression; 1 is RLE, 4 PIZ, 5 PXR24, 6 and 7 B44, 8 and 9 DWA."""
LIMIT_UNPACKED_BYTES = 2**29


class _Header(NamedTuple):
    attributes: dict[str, bytes]
    """Those of REQUIRED."""
    kinds: dict[str, int]
    """Name -> number of the type, of each channel in the order of the file."""
    top: int
    height: int
    width: int
    compression: int
    size: int
    """Bytes before the table of offsets."""

    @property
    def line_bytes(self) -> int:
        """Of a scan line of all channels."""
        return self.width * sum(DTYPES[kind].itemsize for kind in self.kinds.values())


def read_exr(data: bytes, where: str) -> NDArray[Any]:
    """The numbers (H, W) float16 or float32 of a file's bytes. Raises PipelineError, which begins with `where`."""
    try:
        header = _header(data)
    except (ValueError, IndexError, struct.error) as error:
        raise PipelineError(f"{where}: no .exr file of scan lines, or damaged ({error}); write it again") from error
    check_pixels(header.height, header.width, where)
    if header.height * header.line_bytes > LIMIT_UNPACKED_BYTES:
        raise PipelineError(
            f"{where}: {len(header.kinds)} channels of {header.height * header.line_bytes} bytes; too large"
        )
    name = _channel(list(header.kinds), where)
    planes = [name]
    if name.rpartition(".")[2].lower() == "r":  # grey that was saved as colour, or a picture
        others = {name[:-1].lower() + letter for letter in "gb"}
        planes += [other for other in header.kinds if other.lower() in others]
    if any(header.kinds[plane] == 0 for plane in planes):
        raise PipelineError(f"{where}: channel {name!r} is of type UINT, expected HALF or FLOAT")
    try:
        reader = _unpacked if header.compression in {NONE, ZIPS, ZIP} else _by_package
        arrays = reader(data, header, planes)
    except ImportError as error:
        raise PipelineError(
            f"{where}: compression {header.compression} needs OpenEXR: run `pip install 'tiekd-pipeline[exr]'`, or "
            "write the file with ZIP"
        ) from error
    except Exception as error:  # the package raises what C++ threw, by several names
        raise PipelineError(f"{where}: pixels are missing or damaged ({error}); copy or write it again") from error
    if any(not np.array_equal(arrays[0], other, equal_nan=True) for other in arrays[1:]):
        raise PipelineError(
            f"{where}: channels {', '.join(planes)} differ, so this is a picture; expected one of depth"
        )
    return arrays[0]


def _header(data: bytes) -> _Header:
    version = int.from_bytes(data[4:8], "little")
    if data[:4] != MAGIC or version & ~LONG_NAMES != 2:
        raise PipelineError(f"it begins with {data[:8].hex() or 'nothing'}")
    found: dict[str, bytes] = {}
    at = 8
    while data[at]:
        name, at = _text(data, at)
        kind, at = _text(data, at)
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4 + size
        if at > len(data):
            raise PipelineError(f"an attribute of {size} bytes")
        if name in REQUIRED:
            if name in found or kind != REQUIRED[name][0] or REQUIRED[name][1] not in {None, size}:
                raise PipelineError(f"attribute {name} of {size} bytes of type {kind!r}")
            found[name] = data[at - size : at]
    if found.keys() != REQUIRED.keys():
        raise PipelineError(f"no {', '.join(sorted(REQUIRED.keys() - found.keys()))}")
    left, top, right, bottom = struct.unpack("<4i", found["dataWindow"])
    compression = found["compression"][0]
    if compression not in LINES:
        raise PipelineError(f"compression {compression}")
    return _Header(found, _kinds(found["channels"]), top, bottom - top + 1, right - left + 1, compression, at + 1)


def _kinds(data: bytes) -> dict[str, int]:
    kinds: dict[str, int] = {}
    at = 0
    while data[at]:
        name, at = _text(data, at)
        kind, _, across, down = struct.unpack_from("<iIii", data, at)
        at += 16
        if kind not in DTYPES or (across, down) != (1, 1) or name in kinds:
            raise PipelineError(f"channel {name!r} of type {kind}, every {across} by {down} pixels")
        kinds[name] = kind
    return kinds


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at, at + 256)
    text = data[at:end].decode("ascii")
    if not text.isprintable():
        raise PipelineError(f"a name {text[:40]!r}")
    return text, end + 1


def _channel(names: list[str], where: str) -> str:
    """The channel of depth; a name may have layers before its last dot."""
    if len(names) == 1:
        return names[0]
    for wanted in CHANNELS:
        found = [name for name in names if name.rpartition(".")[2].lower() == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            break
    there = ", ".join(repr(name[:80]) for name in names[:20]) or "(none)"
    raise PipelineError(f"{where}: channels {there}; expected one alone, or one of Z, depth, Y or R: write depth alone")


def _blocks(data: bytes, header: _Header) -> Iterator[tuple[int, int, bytes]]:
    """(first line, lines, packed bytes) of each block; the lines count from 0. Each comes once."""
    lines = LINES[header.compression]
    count = -(-header.height // lines)
    offsets = np.frombuffer(data, "<u8", count, header.size)
    seen = set()
    for offset in offsets.tolist():
        line, size = struct.unpack_from("<ii", data, offset)
        first = line - header.top
        high = min(lines, header.height - first)
        if first % lines or not 0 <= first < header.height or first in seen or not 0 < size <= high * header.line_bytes:
            raise PipelineError(f"a block of {size} bytes at line {line}")
        if offset + 8 + size > len(data):
            raise PipelineError("cut off")
        seen.add(first)
        yield first, high, data[offset + 8 : offset + 8 + size]


def _unpacked(data: bytes, header: _Header, planes: list[str]) -> list[NDArray[Any]]:
    arrays = {plane: np.empty((header.height, header.width), DTYPES[header.kinds[plane]]) for plane in planes}
    for first, high, packed in _blocks(data, header):
        size = high * header.line_bytes
        lines = np.frombuffer(packed if len(packed) == size else _unzipped(packed, size), np.uint8).reshape(high, -1)
        at = 0
        for name, kind in header.kinds.items():
            end = at + header.width * DTYPES[kind].itemsize
            if name in arrays:
                arrays[name][first : first + high] = np.ascontiguousarray(lines[:, at:end]).view(DTYPES[kind])
            at = end
    return list(arrays.values())


def _unzipped(packed: bytes, size: int) -> bytes:
    """Bytes of a ZIP block: differences from byte to byte, of the even bytes and then of the odd ones."""
    flat = zlib.decompressobj().decompress(packed, size + 1)
    if len(flat) != size:
        raise PipelineError(f"a block unpacks to {len(flat)} bytes, expected {size}")
    steps = np.frombuffer(flat, np.uint8).copy()
    steps[1:] += 128  # that is, minus 128
    halves = np.cumsum(steps, dtype=np.uint8)
    whole = np.empty(size, np.uint8)
    whole[::2], whole[1::2] = halves[: (size + 1) // 2], halves[(size + 1) // 2 :]
    return whole.tobytes()


def _by_package(data: bytes, header: _Header, planes: list[str]) -> list[NDArray[Any]]:
    """Through OpenEXR: the same blocks under a header of what must be there and nothing else."""
    clean = MAGIC + (2 | int.from_bytes(data[4:8], "little") & LONG_NAMES).to_bytes(4, "little")
    for name, (kind, _) in REQUIRED.items():
        value = header.attributes[name]
        clean += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    clean += b"\0"
    blocks = sorted(_blocks(data, header))
    at = len(clean) + 8 * len(blocks)
    offsets = []
    for _, _, packed in blocks:
        offsets.append(at)
        at += 8 + len(packed)
    body = [struct.pack("<ii", first + header.top, len(packed)) + packed for first, _, packed in blocks]
    # Its newer class `File` warns on stderr where pixels are missing, and gives zeros: this one raises.
    file = import_module("OpenEXR").InputFile(
        io.BytesIO(clean + struct.pack(f"<{len(offsets)}Q", *offsets) + b"".join(body))
    )
    try:
        shape = header.height, header.width
        return [np.frombuffer(file.channel(plane), DTYPES[header.kinds[plane]]).reshape(shape) for plane in planes]
    finally:
        file.close()
