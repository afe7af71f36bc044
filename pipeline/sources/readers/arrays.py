"""Reads a 2-D array of numbers from a file of any of the usual formats, without believing what the file claims.

Nothing is unpickled, and nothing is allocated before the size that a file declares is known to be one that a
frame may have. What the numbers mean (metres, disparity, which value is none) is the caller's to know.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import PipelineError
from .exr import read_exr
from .images import LIMIT_PIXELS, check_pixels, read_bytes, read_png16

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ARRAY_SUFFIXES = (".npy", ".npz", ".pfm", ".exr", ".png")
DTYPES = ("uint16", "float16", "float32", "float64")
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
HEADER_BYTES = 2**16
LIMIT_BYTES = LIMIT_PIXELS * 8 + HEADER_BYTES
PIECE_BYTES = 2**20
NPZ_KEY = "depth"
LIMIT_MEMBERS = 64
PFM_HEADER = re.compile(rb"Pf\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[0-9.]{1,20}(?:[eE][-+]?\d{1,3})?)(?=\s)")
MOST_INVALID = 16
"""So many numbers can be declared to be no value; each is a pass over the file."""
LIMIT_M = 1e6
"""What is farther is no measurement: Blender writes 1e10 where a ray meets nothing."""


def read_array(path: Path, what: str, dtypes: tuple[str, ...] = DTYPES) -> NDArray[Any]:
    """The numbers (H, W) of a file, in native byte order: uint16, float16, float32 or float64, as the file has them.

    `.npy`; `.npz` with one array, or with one of the name `depth`; `.pfm` of one channel (float32; its scale tells
    the byte order alone, as all readers have it); `.exr` (float16 or float32; channel Z, depth, Y or R, or the only
    one; needs the package OpenEXR); `.png` (uint16, greyscale). In `.npy` and `.npz` a last axis of 1 is dropped, and
    `dtypes` may name other types.

    Raises PipelineError, which begins with `what` and the path, for a file that is missing, of another format, type or
    number of dimensions, larger than a frame of 8K, or of another length than its header says.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        return read_png16(str(path), what)
    if suffix not in ARRAY_SUFFIXES:
        raise PipelineError(f"{what} {path}: expected a file that ends in {', '.join(ARRAY_SUFFIXES)}")
    data, where = read_bytes(str(path), what, LIMIT_BYTES), f"{what} {path}"
    if suffix in {".npy", ".npz"}:
        array = _read_npy(data, where, dtypes) if suffix == ".npy" else _read_npz(data, where, dtypes)
    else:
        array = _read_pfm(data, where) if suffix == ".pfm" else read_exr(data, where)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_npy(data: bytes, where: str, dtypes: tuple[str, ...]) -> NDArray[Any]:
    shape, fortran, dtype, start = _npy_header(data[:HEADER_BYTES], where, dtypes)
    _check_length(shape, dtype, len(data) - start, where)
    return _shaped(np.frombuffer(data, dtype, offset=start), shape, fortran=fortran)


def _read_npz(data: bytes, where: str, dtypes: tuple[str, ...]) -> NDArray[Any]:
    _check_directory(data, where)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            info = _member(packed.infolist(), where)
            with packed.open(info) as member:
                begin = member.read(HEADER_BYTES)
                shape, fortran, dtype, start = _npy_header(begin, where, dtypes)
                _check_length(shape, dtype, info.file_size - start, where)
                body = np.empty(info.file_size - start, np.uint8)
                have = begin[start:]
                at = 0
                while have:
                    body[at : at + len(have)] = np.frombuffer(have, np.uint8)
                    at += len(have)
                    have = member.read(PIECE_BYTES)
    except Exception as error:  # zipfile raises a dozen types
        if str(error).startswith(where):
            raise
        raise PipelineError(
            f"{where}: no .npz file, or damaged ({error}); write it with numpy.savez(path, depth)"
        ) from error
    if at != len(body):
        raise PipelineError(
            f"{where}: {len(body)} bytes of numbers declared, {at} there; the file is cut off: write it again"
        )
    return _shaped(body.view(dtype), shape, fortran=fortran)


def _check_directory(data: bytes, where: str) -> None:
    """Refuse an archive whose directory would be large when parsed: some bytes an entry there are a kilobyte here."""
    end = data.rfind(b"PK\5\6", max(0, len(data) - 2**16 - 22))
    if end < 0 or len(data) < end + 22:
        raise PipelineError(f"{where}: no .npz file (no directory at its end); write it with numpy.savez(path, depth)")
    entries, size = struct.unpack_from("<HI", data, end + 10)
    if entries > LIMIT_MEMBERS or size > LIMIT_MEMBERS * 1024 or data[max(0, end - 20) : end].startswith(b"PK\6\7"):
        raise PipelineError(f"{where}: holds {entries} arrays or more, expected at most {LIMIT_MEMBERS}")


def _member(members: list[zipfile.ZipInfo], where: str) -> zipfile.ZipInfo:
    named = [info for info in members if info.filename == f"{NPZ_KEY}.npy"] or members
    if len(named) != 1:
        there = ", ".join(repr(info.filename.removesuffix(".npy")[:80]) for info in members[:20])
        raise PipelineError(
            f"{where}: holds the arrays {there or '(none)'}, expected one alone, or one named {NPZ_KEY!r}"
        )
    if named[0].file_size > LIMIT_BYTES:
        raise PipelineError(f"{where}: its array declares {named[0].file_size} bytes, expected at most {LIMIT_BYTES}")
    return named[0]


def _npy_header(begin: bytes, where: str, dtypes: tuple[str, ...]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, Fortran order, type, bytes of the header) of what begins so."""
    file = io.BytesIO(begin)
    try:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as error:  # the parser lets through what Python's tokenizer raises
        raise PipelineError(f"{where}: no .npy file ({error}); write it with numpy.save(path, depth)") from error
    plain = shape[:2] if len(shape) == 3 and shape[2] == 1 else shape
    if (
        dtype.hasobject
        or dtype.name not in dtypes
        or len(plain) != 2
        or any(side is True or side < 1 for side in shape)
    ):
        raise PipelineError(f"{where}: {dtype} of shape {shape}, expected (height, width) of {', '.join(dtypes)}")
    return plain, bool(fortran), dtype, file.tell()


def _check_length(shape: tuple[int, ...], dtype: np.dtype[Any], there: int, where: str) -> None:
    declared = int(shape[0]) * int(shape[1]) * dtype.itemsize
    if declared != there:
        raise PipelineError(
            f"{where}: its header says {declared} bytes of numbers, it holds {there}; "
            "the file is cut off or not what it says: write it again"
        )
    check_pixels(int(shape[0]), int(shape[1]), where)


def _shaped(numbers: NDArray[Any], shape: tuple[int, ...], *, fortran: bool) -> NDArray[Any]:
    return numbers.reshape(shape, order="F" if fortran else "C")


def _read_pfm(data: bytes, where: str) -> NDArray[Any]:
    # The format: netpbm.sourceforge.net/doc/pfm.html. Rows go from the bottom up; a scale below 0 is little endian.
    match = PFM_HEADER.match(data[:256])
    if match is None:
        color = "; PF is a colour picture" if data.startswith(b"PF") else ""
        raise PipelineError(
            f"{where}: no .pfm file of one channel, expected it to begin with 'Pf', width, height, scale{color}"
        )
    width, height, scale = int(match[1]), int(match[2]), _number(match[3])
    if not np.isfinite(scale) or scale == 0:
        raise PipelineError(
            f"{where}: scale {match[3].decode()!r}, expected a number other than 0: its sign is the byte order"
        )
    # One byte of white space ends the header; writers on Windows put two.
    start = match.end() + (2 if len(data) - match.end() - 2 == height * width * 4 else 1)
    _check_length((height, width), np.dtype(np.float32), len(data) - start, where)
    rows = np.frombuffer(data, "<f4" if scale < 0 else ">f4", offset=start).reshape(height, width)
    return np.ascontiguousarray(rows[::-1])


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def is_any_of(values: NDArray[Any], numbers: Sequence[float]) -> NDArray[np.bool_]:
    """Where (H, W) a file's values are one of some numbers, as the file's type holds them."""
    found = np.zeros(values.shape, np.bool_)
    with np.errstate(over="ignore"):
        for number in numbers:
            found |= values == (values.dtype.type(number) if values.dtype.kind == "f" else number)
    return found


def parse_invalid(text: str) -> tuple[float, ...]:
    """Numbers with commas between, which mean no value in a file. Raises PipelineError for anything else."""
    try:
        return invalid_numbers([float(word) for word in text.split(",")], "`invalid`")
    except ValueError:
        raise PipelineError(
            f"`invalid={text!r}`: expected the numbers that say in the files that there is no value, such as 65535 or "
            "65535,-1"
        ) from None


def invalid_numbers(written: object, where: str) -> tuple[float, ...]:
    """Numbers that a description declares to be no value: one, or a list. Raises PipelineError for anything else."""
    listed: list[Any] = written if isinstance(written, list) else [] if written is None else [written]
    if len(listed) > MOST_INVALID or not all(type(one) in {int, float} and not np.isnan(one) for one in listed):
        raise PipelineError(
            f"{where}: invalid {str(written)[:80]}, expected a number of the files' own, or a list of up to "
            f"{MOST_INVALID}, such as 65535"
        )
    return tuple(float(one) for one in listed)


def metres(
    values: NDArray[Any], metres_per_unit: float = 1.0, invalid: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Depth (H, W) float32 metres of a file's numbers.

    NaN where they are 0, negative, not finite, beyond LIMIT_M or one of `invalid`, which are the file's own numbers.
    """
    depth_m = (values * np.float64(metres_per_unit)).astype(np.float32)
    depth_m[~((depth_m > 0) & (depth_m <= LIMIT_M))] = np.nan
    if invalid:
        depth_m[is_any_of(values, invalid)] = np.nan
    return depth_m
