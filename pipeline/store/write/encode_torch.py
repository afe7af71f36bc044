"""Compute the residuals and columns of metric depth on a GPU, with the bits that `encode` computes on the CPU.

Codes are not computed with the GPU's logarithm, whose last bit may differ: each depth is compared with the smallest
depth that `LogCodec.encode` gives each code.

Shape legend: B batch, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..format.codec import LogCodec

WORD = 0xFFFF


class DepthCounts(NamedTuple):
    """What one image's row is made of; pixel counts."""

    invalid: int
    """NaN."""
    infinite: int
    nonpositive: int
    clipped: int
    outside_bins: int
    max_rel_error: float
    """Over valid pixels that are not clipped."""
    is_constant: bool
    """Whether all finite values are equal, or there are none."""


@dataclass(frozen=True)
class DepthEncoder:
    """Encodes depth on the device of the tensors it gets."""

    codec: LogCodec
    bin_range_m: tuple[float, float]

    def encode(self, depth_m: Tensor) -> tuple[Tensor, Tensor]:
        """Encode depth (B, h, w) float32, NaN where invalid, without waiting for the device.

        Returns residuals (B, h, w), uint16 values as int16, and statistics (B, 8) float64 for `counts_of`. Images with
        infinite or nonpositive depth have undefined residuals.
        """
        thresholds, table = _tensors(self.codec, depth_m.device)
        lo_m, hi_m, nearest_m, farthest_m = _limits_m(self, depth_m.device).unbind()
        invalid = torch.isnan(depth_m)
        infinite = torch.isinf(depth_m)
        known = ~(invalid | infinite)
        codes = (torch.bucketize(depth_m, thresholds, right=True, out_int32=True) + 1).masked_fill_(invalid, 0)
        clipped = (depth_m < lo_m) | (depth_m > hi_m)
        error = (table[codes] / depth_m.double() - 1).abs_()
        error.masked_fill_(invalid | clipped, 0)
        statistics = torch.stack(
            [
                _count(invalid),
                _count(infinite),
                _count(depth_m <= 0),
                _count(clipped),
                _count(known & ((depth_m < nearest_m) | (depth_m > farthest_m))),
                error.flatten(1).amax(dim=1),
                depth_m.masked_fill(~known, torch.inf).flatten(1).amin(dim=1).double(),
                depth_m.masked_fill(~known, -torch.inf).flatten(1).amax(dim=1).double(),
            ],
            dim=1,
        )
        return _residual(codes), statistics


def counts_of(statistics: NDArray[np.float64]) -> DepthCounts:
    """Return the counts of one image (8,)."""
    *counts, error, least, largest = statistics.tolist()
    invalid, infinite, nonpositive, clipped, outside = map(int, counts)
    return DepthCounts(invalid, infinite, nonpositive, clipped, outside, error, is_constant=least >= largest)


def _count(mask: Tensor) -> Tensor:
    return mask.flatten(1).sum(dim=1).double()


def _residual(codes: Tensor) -> Tensor:
    """Return `residual_of_codes` of codes (B, h, w) int32, as int16."""
    difference = codes.clone()
    difference[:, 1:] -= codes[:, :-1]
    across = difference.clone()
    across[:, :, 1:] -= difference[:, :, :-1]
    signed = _signed(across)
    return _signed((signed << 1) ^ (signed >> 15)).to(torch.int16)


def _signed(values: Tensor) -> Tensor:
    """Return values modulo 2^16 as -2^15 to 2^15 - 1."""
    return ((values + 0x8000) & WORD) - 0x8000


# Cached, because a copy from ordinary memory would wait for the GPU.


@cache
def _limits_m(encoder: DepthEncoder, device: torch.device) -> Tensor:
    return torch.tensor([encoder.codec.lo_m, encoder.codec.hi_m, *encoder.bin_range_m]).to(device)


@cache
def _tensors(codec: LogCodec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the thresholds, and the depth (2^bits,) float64 of each code."""
    codes = np.arange(2**codec.bits, dtype=np.uint16)
    table = codec.decode(codes[None])[0].astype(np.float64)
    return torch.from_numpy(thresholds_m(codec)).to(device), torch.from_numpy(table).to(device)


@cache
def thresholds_m(codec: LogCodec) -> NDArray[np.float32]:
    """Return the smallest float32 depth (2^bits - 2,) whose code is at least 2, 3, and so on.

    Found by bisection: positive float32 numbers are ordered as their bits are.
    """
    wanted = np.arange(2, 2**codec.bits, dtype=np.int64)
    low = np.zeros(wanted.shape, np.int64)  # of which the code is less
    high = np.full(wanted.shape, np.float32(np.finfo(np.float32).max).view(np.int32), np.int64)
    while (high - low > 1).any():
        middle = (low + high) // 2
        depth_m = middle.astype(np.int32).view(np.float32)
        reached = codec.encode(depth_m)[0] >= wanted
        high = np.where(reached, middle, high)
        low = np.where(reached, low, middle)
    return high.astype(np.int32).view(np.float32)
