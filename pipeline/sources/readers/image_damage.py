"""Damage in image files that decoders pass over: a wrong checksum in a PNG, a hole in a JPEG.

Pillow does not compare the checksums of a PNG's pixels, and decodes a JPEG around what is missing. A PNG shows all
damage. A JPEG has no checksum: what can be told are markers that no encoder writes, restart markers out of order, and
long runs of one byte, as a disk or a download that lost blocks leaves them. Other changed bytes cannot be told.
"""

from __future__ import annotations

import re
import struct
import zlib

from ...errors import PipelineError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
HOLE_BYTES = 512
"""The smallest block of a disk."""
HOLES = (bytes(HOLE_BYTES), b"\xff" * HOLE_BYTES)
SEQUENTIAL = (0xC0, 0xC1)
"""Start of a frame whose pixels are all in one pass, with Huffman codes."""
SOS, EOI, DHT, FIRST_RESTART = 0xDA, 0xD9, 0xC4, 0xD0
END_OF_BLOCK = 0
"""A symbol of AC tables."""
MARKER = re.compile(rb"\xff+([^\x00\xff])")


def check_png(data: bytes) -> None:
    """Raises PipelineError where a chunk that decoding needs has another CRC than it states."""
    view, at = memoryview(data), len(PNG_MAGIC)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return  # cut off: the decoder says so
        # Of what is not needed (a lower-case first letter), some writers get the CRC wrong.
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise PipelineError(f"the CRC of its chunk {kind.decode('latin-1')!r} at byte {at} is wrong")
        if kind == b"IEND":
            return
        at = end


def check_jpeg(data: bytes) -> None:
    """Raises PipelineError for a scan with bytes that no encoder writes. See the module for what that can tell."""
    at, sequential = 2, False
    first_symbols: dict[int, int] = {}
    while at + 4 <= len(data) and data[at] == 0xFF:  # anything else: the decoder's to judge
        kind = data[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        if kind == EOI:
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind in SEQUENTIAL:
            sequential = True
        elif kind == DHT:
            first_symbols |= _first_symbols(data[at + 4 : end])
        elif kind == SOS:
            # A component and its tables, of DC and of AC, are two bytes. Where each table's code of 0s ends a block,
            # flat areas are long runs of 0; any other is a full block of the same number, which no picture repeats.
            of_ac = [tables & 15 for tables in data[at + 6 : end - 3 : 2]]
            zeros = sequential and any(first_symbols.get(table, END_OF_BLOCK) != END_OF_BLOCK for table in of_ac)
            begin, end = end, _end_of_scan(data, end)
            for hole in HOLES if zeros else HOLES[1:]:
                if (place := data.find(hole, begin, end)) >= 0:
                    raise PipelineError(f"a hole: {HOLE_BYTES} or more bytes of {hole[0]} at byte {place}")
        at = end


def _end_of_scan(data: bytes, begin: int) -> int:
    """Where the marker after a scan's pixels lies; the end of the file if there is none."""
    restarts = 0
    for match in MARKER.finditer(data, begin):
        kind = match[1][0]
        if FIRST_RESTART <= kind < FIRST_RESTART + 8:
            if kind != FIRST_RESTART + restarts % 8:
                raise PipelineError(f"restart marker {kind - FIRST_RESTART} at byte {match.start()}, a part is missing")
            restarts += 1
        elif kind < SEQUENTIAL[0]:
            raise PipelineError(f"bytes FF {kind:02X} at byte {match.start()}, which no encoder writes")
        else:
            return match.start()
    return len(data)


def _first_symbols(segment: bytes) -> dict[int, int]:
    """Number of each AC table of a segment, and the symbol whose code is nothing but 0."""
    at, found = 0, {}
    while at + 17 < len(segment):  # 16 counts by length of code, then the symbols, shortest code first
        if segment[at] >> 4 == 1:
            found[segment[at] & 15] = segment[at + 17]
        at += 17 + sum(segment[at + 1 : at + 17])
    return found
