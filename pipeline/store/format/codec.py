"""Encode depth as codes, codes as residuals, residuals as chunks; each step is exact or states its error.

Shape legend: h, w pixels of the teacher's own output.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import google_crc32c
import numcodecs.blosc
import numpy as np

from ...errors import DamagedStoreError, PipelineError
from .prefix_sum import WORD_BITS, WORDS_WORK, look_up, scratch, sum_by_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

# blosc's threads write blocks in the order they finish, so the same depth could give different bytes.
numcodecs.blosc.use_threads = False

BLOSC_LEVEL = 5
"""Compression level of zstd in versions 1 and 2. Another level is another size and time, and the same values."""
BLOSC_LEVELS = range(1, 10)
BLOSC_HEADER = struct.Struct("<4B3I")
BLOSC_VERSIONS = (2, 1)  # versions of the frame format and of zstd in it
BLOSC_ZSTD_BITSHUFFLE = 0x84
BLOSC_COPIED, BLOSC_UNSPLIT = 0x02, 0x10
CHUNK_EXTRA_BYTES = BLOSC_HEADER.size + 4
"""Overhead of an incompressible chunk: blosc's header and the checksum."""
ZIGZAG_SHIFT = 15
MAX_BITS = 16
# Decoded depth is rounded to float32; the error bound reserves this much for it.
FLOAT32_SLACK = 2.0**-23
LARGEST = 1e12
"""Upper limit of depths, edges and widths; its square still fits float32."""


@dataclass(frozen=True)
class LogCodec:
    """Metric depth as logarithmic codes: the relative error is the same at 1 m and at 80 m.

    Code 0 is "no value"; code 1 is `lo_m`, code 2^bits - 1 is `hi_m`.
    """

    bits: int
    lo_m: float
    hi_m: float

    @classmethod
    def for_error(cls, max_rel_error: float, lo_m: float, hi_m: float) -> LogCodec:
        """Return the codec with the fewest bits whose relative error in the range is at most `max_rel_error`.

        Raises PipelineError for a range or an error that 16 bits cannot hold.
        """
        if not (0 < lo_m < hi_m < np.inf):
            raise PipelineError(f"depth range {lo_m}-{hi_m} m: expected 0 < lo < hi, both finite")
        if lo_m < 1 / LARGEST or hi_m > LARGEST:  # depth is decoded and processed as float32
            raise PipelineError(f"depth range {lo_m}-{hi_m} m must lie within {1 / LARGEST:g} and {LARGEST:g} m")
        if not 0 < max_rel_error < 1:
            raise PipelineError(f"`max_rel_error` must be between 0 and 1 (e.g. 0.0005), got {max_rel_error}")
        for bits in range(2, MAX_BITS + 1):
            codec = cls(bits, lo_m, hi_m)
            if codec.max_rel_error <= max_rel_error:
                return codec
        raise PipelineError(
            f"`max_rel_error={max_rel_error}` is too small: 16 bits over {lo_m:g}-{hi_m:g} m reach "
            f"{codec.max_rel_error:.2g}; use at least that, or a narrower depth range"
        )

    @property
    def max_rel_error(self) -> float:
        """Largest relative error of a depth inside the range after decoding to float32."""
        steps = 2**self.bits - 2
        return float(np.expm1(np.log(self.hi_m / self.lo_m) / (2 * steps))) + FLOAT32_SLACK

    def encode(self, depth_m: NDArray[np.floating]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Return codes (h, w) of a depth (h, w), NaN as 0, and a mask (h, w) of depths clipped to the range.

        Raises PipelineError for infinite, zero or negative depth.
        """
        if depth_m.dtype == np.float16:  # float16 may overflow at the end of the range
            depth_m = depth_m.astype(np.float32)
        valid = ~np.isnan(depth_m)
        bad = valid & ~((depth_m > 0) & (depth_m < np.inf))
        if bad.any():
            worst = depth_m[bad][0]
            raise PipelineError(
                f"{np.count_nonzero(bad)} pixels have invalid depth such as {worst} m: expected finite and positive"
            )
        steps = 2**self.bits - 2
        clipped = valid & ((depth_m < self.lo_m) | (depth_m > self.hi_m))
        inside = np.clip(np.where(valid, depth_m, self.lo_m), self.lo_m, self.hi_m).astype(np.float64)
        position = np.log(inside / self.lo_m) * (steps / np.log(self.hi_m / self.lo_m))
        codes = np.clip(np.rint(position), 0, steps).astype(np.uint16) + np.uint16(1)
        return np.where(valid, codes, np.uint16(0)), clipped

    def decode(self, codes: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return depth (h, w) float32 metres, NaN for code 0. Raises DamagedStoreError for codes out of range."""
        return look_up(_log_table(self.bits, self.lo_m, self.hi_m), _within(codes, self.bits))

    def decode_residual(self, residual: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Decode a contiguous residual (h, w), overwriting it. Raises DamagedStoreError as `decode` does."""
        return look_up(_log_table(self.bits, self.lo_m, self.hi_m), _codes_in_place(residual, self.bits))


@cache
def _log_table(bits: int, lo_m: float, hi_m: float) -> NDArray[np.float32]:
    steps = 2**bits - 2
    depth_m = lo_m * np.exp(np.arange(steps + 1) * (np.log(hi_m / lo_m) / steps))
    return np.concatenate([[np.nan], depth_m]).astype(np.float32)


@dataclass(frozen=True)
class AffineCodec:
    """Relative depth or disparity as evenly spaced codes over each sample's range; 0 is "no value"."""

    bits: int

    @classmethod
    def for_error(cls, max_range_error: float) -> AffineCodec:
        """Return the codec with the fewest bits whose error is at most this fraction of a sample's range."""
        for bits in range(2, MAX_BITS + 1):
            if 0 < max_range_error < 1 and cls(bits).max_range_error <= max_range_error:
                return cls(bits)
        raise PipelineError(
            f"`max_rel_error` must be between {cls(MAX_BITS).max_range_error:.2g} and 1, got {max_range_error}"
        )

    @property
    def max_range_error(self) -> float:
        """Largest error as a fraction of the sample's range."""
        return float(1 / (2 * (2**self.bits - 2)) + FLOAT32_SLACK)

    def encode(self, values: NDArray[np.floating]) -> tuple[NDArray[np.uint16], float, float]:
        """Return codes (h, w) of values (h, w), NaN as 0, and the sample's scale and offset.

        Raises PipelineError for infinite values.
        """
        valid = ~np.isnan(values)
        if np.isinf(values).any():
            infinite = np.count_nonzero(np.isinf(values))
            raise PipelineError(f"{infinite} pixels are infinite: expected finite values or NaN")
        if not valid.any():
            return np.zeros(values.shape, np.uint16), 1.0, 0.0
        wide = values.astype(np.float64)
        low, high = float(np.nanmin(wide)), float(np.nanmax(wide))
        steps = 2**self.bits - 2
        scale = (high - low) / steps or 1.0
        codes = np.rint((np.where(valid, wide, low) - low) / scale).astype(np.uint16) + np.uint16(1)
        return np.where(valid, codes, np.uint16(0)), scale, low

    def decode(self, codes: NDArray[np.uint16], scale: float, offset: float) -> NDArray[np.float32]:
        """Return values (h, w) float32, NaN for code 0. Raises DamagedStoreError for codes out of range."""
        return look_up(self._table(scale, offset), _within(codes, self.bits))

    def decode_residual(self, residual: NDArray[np.uint16], scale: float, offset: float) -> NDArray[np.float32]:
        """Decode a contiguous residual (h, w), overwriting it. Raises DamagedStoreError as `decode` does."""
        return look_up(self._table(scale, offset), _codes_in_place(residual, self.bits))

    def _table(self, scale: float, offset: float) -> NDArray[np.float32]:
        if not (scale > 0 and abs(offset) + scale * 2**self.bits < np.finfo(np.float32).max):  # nor NaN
            raise DamagedStoreError(f"scale {scale} and offset {offset}: expected finite numbers, scale above 0")
        table = ((np.arange(2**self.bits, dtype=np.float64) - 1) * scale + offset).astype(np.float32)
        table[0] = np.nan
        return table

    def fraction(self, values: NDArray[np.float32], scale: float, offset: float) -> NDArray[np.float32]:
        """Return decoded values (h, w) as fractions of their sample's range, 0 to 1."""
        fractions: NDArray[np.float32] = ((values - offset) / (scale * (2**self.bits - 2))).astype(np.float32)
        return fractions


def residual_of_codes(codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the zigzagged difference of each code (h, w) from its neighbours' prediction, modulo 2^16.

    `code[y,x] - code[y,x-1] - code[y-1,x] + code[y-1,x-1]` is near 0 on smooth surfaces, so its high bits
    compress well.
    """
    difference = np.empty_like(codes)
    difference[:1] = codes[:1]
    np.subtract(codes[1:], codes[:-1], out=difference[1:])
    difference[:, 1:] = difference[:, 1:] - difference[:, :-1]
    signed = difference.view(np.int16)
    zigzag: NDArray[np.uint16] = ((signed << 1) ^ (signed >> ZIGZAG_SHIFT)).view(np.uint16)
    return zigzag


def codes_of_residual(residual: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Undo `residual_of_codes`: two cumulative sums modulo 2^16."""
    sign: NDArray[np.uint16] = (-(residual & 1).view(np.int16)).view(np.uint16)
    difference: NDArray[np.uint16] = np.bitwise_xor(residual >> 1, sign, dtype=np.uint16)
    np.add.accumulate(difference, axis=0, out=difference)
    np.add.accumulate(difference, axis=1, out=difference)
    return difference


def _codes_in_place(residual: NDArray[np.uint16], bits: int) -> NDArray[np.uint16]:
    """Return codes (h, w) of a residual (h, w), overwriting it. Raises DamagedStoreError for codes over `bits`."""
    by_words = bits <= WORD_BITS and WORDS_WORK
    return _within(sum_by_words(residual) if by_words else codes_of_residual(residual), bits)


def _within(codes: NDArray[np.uint16], bits: int) -> NDArray[np.uint16]:
    """Return the codes. Raises DamagedStoreError for one of more than `bits` bits."""
    largest = int(codes.max(initial=0))
    if largest >= 2**bits:
        raise DamagedStoreError(f"depth code {largest} is out of range: expected at most {2**bits - 1}")
    return codes


def encode_chunk(array: NDArray[np.generic], level: int = BLOSC_LEVEL) -> bytes:
    """Encode a chunk with Zarr's codecs `bytes, blosc(zstd, bitshuffle), crc32c`. Deterministic."""
    raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    shuffle = numcodecs.blosc.BITSHUFFLE
    packed = numcodecs.blosc.compress(raw.reshape(-1), b"zstd", level, shuffle, 0, typesize=array.dtype.itemsize)
    data = bytes(packed)
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(4, "little")


def decode_chunk(
    chunk: bytes, shape: tuple[int, ...], dtype: np.dtype[np.generic], *, reuse: bool = False
) -> NDArray[np.generic]:
    """Decode a chunk of `encode_chunk`; with `reuse` the array is valid until this thread's next such call.

    Raises DamagedStoreError if the checksum fails or the header declares another size than the array's. The size is
    checked before anything is allocated: a few bytes of zstd can expand to gigabytes.
    """
    packed, stored = chunk[:-4], int.from_bytes(chunk[-4:], "little")
    if len(chunk) < 20 or google_crc32c.value(packed) != stored:
        raise DamagedStoreError("checksum (crc32c) of a chunk does not match its bytes")
    expected = math.prod(shape) * dtype.itemsize
    declared = int.from_bytes(packed[4:8], "little")
    if declared != expected:
        raise DamagedStoreError(f"a chunk declares {declared} bytes: expected {expected} for {shape} {dtype}")
    if not _is_valid_frame(packed, dtype.itemsize):
        raise DamagedStoreError(f"a chunk of {len(chunk)} bytes for {shape} {dtype} has an invalid blosc header")
    flat = scratch("chunk", (expected,), np.uint8) if reuse else np.empty(expected, np.uint8)
    try:
        numcodecs.blosc.decompress(packed, flat)
    except (RuntimeError, ValueError) as error:
        raise DamagedStoreError(f"a chunk does not decompress ({error})") from error
    return flat.view(dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def _is_valid_frame(packed: bytes, itemsize: int) -> bool:
    """Return whether blosc's header is consistent, so that its decompressor never reads outside the frame."""
    version, zstd_version, flags, typesize, declared, block, size = BLOSC_HEADER.unpack_from(packed)
    valid = (version, zstd_version, typesize, size) == (*BLOSC_VERSIONS, itemsize, len(packed))
    if not (valid and flags & ~(BLOSC_COPIED | BLOSC_UNSPLIT) == BLOSC_ZSTD_BITSHUFFLE and 0 < block <= declared):
        return False
    if flags & BLOSC_COPIED:
        return len(packed) == BLOSC_HEADER.size + int(declared)
    blocks = -(-declared // block)
    first = BLOSC_HEADER.size + 4 * blocks
    if first + 4 * blocks > len(packed):
        return False
    starts = np.frombuffer(packed, "<u4", blocks, BLOSC_HEADER.size)
    return first <= int(starts.min()) and int(starts.max()) <= len(packed) - 4
