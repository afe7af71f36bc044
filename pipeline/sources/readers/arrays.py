"""Read a 2-D array of numbers from .npy, .npz, .pfm, .exr and 16-bit .png files.

Pickles are refused. The meaning of the numbers (metres, disparity, which value is none) is up to the caller.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import printable
from ...errors import PipelineError
from .exr import read_exr
from .images import LIMIT_PIXELS, check_pixels, decode_png16, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ARRAY_SUFFIXES = (".npy", ".npz", ".pfm", ".exr", ".png")
DTYPES = ("uint16", "float16", "float32", "float64")
LIMIT_BYTES = LIMIT_PIXELS * 8 + 2**16
"""The largest frame in float64, and a header."""
NPZ_KEY = "depth"
PFM_HEADER = re.compile(rb"Pf\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[0-9.]{1,20}(?:[eE][-+]?\d{1,3})?)(?=\s)")
MOST_INVALID = 16
"""So many numbers can be declared to be no value; each is a pass over the file."""
LIMIT_M = 1e6
"""What is farther is no measurement: Blender writes 1e10 where a ray meets nothing."""


def read_array(path: Path, what: str, dtypes: tuple[str, ...] = DTYPES) -> NDArray[Any]:
    """Return the numbers (H, W) of a file: uint16, float16, float32 or float64, in native byte order.

    `.npy`; `.npz` with one array, or one named `depth`; `.pfm` of one channel (float32; the sign of its scale is the
    byte order, its value is ignored as in other readers); `.exr` (float16 or float32; channel Z, depth, Y or R, or the
    only one; extra `exr`); `.png` (16 bits, gray). In `.npy` and `.npz` a last axis of 1 is dropped, and `dtypes` may
    name other types.

    Raises PipelineError, which begins with `what` and the path, for a file that is missing, damaged, of another format,
    type or number of dimensions, or larger than a frame of 8K.
    """
    suffix = path.suffix.lower()
    if suffix not in ARRAY_SUFFIXES:
        raise PipelineError(f"{what} {path}: expected a file that ends in {', '.join(ARRAY_SUFFIXES)}")
    limit_bytes = None if suffix == ".png" else LIMIT_BYTES
    return decode_array(str(path), suffix, read_bytes(str(path), what, limit_bytes), what, dtypes)


def decode_array(path: str, suffix: str, data: bytes, what: str, dtypes: tuple[str, ...] = DTYPES) -> NDArray[Any]:
    """As `read_array`, of the bytes of a file whose suffix is one of ARRAY_SUFFIXES; `path` is for messages."""
    where = f"{what} {path}"
    if suffix == ".png":
        return decode_png16(path, data, what)
    if suffix in {".npy", ".npz"}:
        array = _depth_shape((_read_npy if suffix == ".npy" else _read_npz)(data, where), where, dtypes)
    else:
        array = _read_pfm(data, where) if suffix == ".pfm" else read_exr(data, where)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_npy(data: bytes, where: str) -> NDArray[Any]:
    file = io.BytesIO(data)
    array = _load(file, where, "write it with numpy.save(path, depth)")
    if not isinstance(array, np.ndarray):
        raise PipelineError(f"{where}: not an .npy file but an .npz file; rename it to .npz")
    if file.tell() != len(data):
        raise PipelineError(f"{where}: {len(data) - file.tell()} bytes follow the array; write the file again")
    return array


def _read_npz(data: bytes, where: str) -> NDArray[Any]:
    hint = "write it with numpy.savez(path, depth)"
    archive = _load(io.BytesIO(data), where, hint)
    if isinstance(archive, np.ndarray):
        raise PipelineError(f"{where}: not an .npz file but an .npy file; rename it to .npy")
    with archive:
        names = archive.files if len(archive.files) == 1 else [name for name in archive.files if name == NPZ_KEY]
        if len(names) != 1:
            listed = ", ".join(repr(name[:80]) for name in archive.files[:20]) or "(none)"
            raise PipelineError(f"{where}: arrays {listed}; expected a single one, or one named {NPZ_KEY!r}")
        # A few bytes of deflate can expand to gigabytes
        declared = max(
            info.file_size for info in archive.zip.infolist() if info.filename in {names[0], f"{names[0]}.npy"}
        )
        if declared > LIMIT_BYTES:
            raise PipelineError(f"{where}: its array declares {declared} bytes, expected at most {LIMIT_BYTES}")
        with _damage(where, hint):
            array = archive[names[0]]
    if not isinstance(array, np.ndarray):
        raise PipelineError(f"{where}: {names[0]!r} is not an array; {hint}")
    return array


def _load(file: io.BytesIO, where: str, hint: str) -> Any:  # noqa: ANN401 - an array or an archive
    with _damage(where, hint):
        return np.load(file, allow_pickle=False)


@contextmanager
def _damage(where: str, hint: str) -> Iterator[None]:
    """Report whatever numpy and zipfile raise for a damaged file as one error."""
    try:
        yield
    except Exception as error:  # numpy and zipfile raise a dozen types
        text = printable(str(error).replace("\n", " "))[:200]
        raise PipelineError(f"{where}: damaged, or of another format ({text}); {hint}") from error


def _depth_shape(array: NDArray[Any], where: str, dtypes: tuple[str, ...]) -> NDArray[Any]:
    """Return the array without a last axis of 1. Raises PipelineError unless it is (H, W) of one of the types."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype.name not in dtypes or array.ndim != 2:
        raise PipelineError(
            f"{where}: {array.dtype} of shape {array.shape}, expected (height, width) of {', '.join(dtypes)}"
        )
    check_pixels(array.shape[0], array.shape[1], where)
    return array


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
    declared, present = height * width * 4, len(data) - start
    if declared != present:
        raise PipelineError(
            f"{where}: its header declares {declared} bytes of numbers, but it has {present}; write the file again"
        )
    check_pixels(height, width, where)
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
