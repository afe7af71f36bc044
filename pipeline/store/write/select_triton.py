"""Select the stored bins of sparse maps on a GPU, with the codes that `format.sparse` computes on the CPU.

Sums and logarithms of a GPU differ from numpy's in their last bits. So each decision (how many bins, which code) is
made with a margin far above that rounding, and pixels within a margin are marked, for the CPU to encode. Ties
between equal bins are exact.

A program holds the bins of a few pixels in registers, and finds the smallest kept probability by bisection over the
bits of float32, instead of sorting.

Shape legend: B batch, K bins, P pixels, M planes, p pixels and k bins of a tile.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from ..format.sparse import SMALLEST, SUM_TOLERANCE, TRUNCATION_FRACTION, weight_table

if TYPE_CHECKING:
    from torch import Tensor

TILE = 2048
"""Values of a tile; with their float64 logarithms they fill the registers of eight warps."""
COST_MARGIN = tl.constexpr(1e-11)
"""In nats; rounding is below 1e-13."""
CODE_MARGIN = tl.constexpr(1e-8)
"""In steps between codes; rounding is below 1e-10."""
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


class SelectedMaps(NamedTuple):
    """Stored parts of a batch of maps."""

    bin_plus_one: Tensor
    """(B, L, P) int16: 1 + the bin of each plane, 0 after a pixel's last; L is the limit of planes."""
    weight: Tensor
    """(B, L, P) int16: codes, modulo 2^16."""
    tail: Tensor
    """(B, P) int16."""
    divergence: Tensor
    """(B, P) float64, NaN for invalid pixels."""
    kept: Tensor
    """(B, P) int16: number of kept bins; more than L if they do not fit."""
    uncertain: Tensor
    """(B, P) bool: pixels that the CPU must encode."""
    improper: Tensor
    """(B, P) bool: negative probabilities, or a sum other than 1."""


def select(maps: Tensor, max_kl_nats: float, weight_bits: int, limit: int) -> SelectedMaps:
    """Select from maps (B, K, h, w) float32 on their device, without waiting for it; at most `limit` planes."""
    batch, bins, height, width = maps.shape
    pixels = height * width
    flat = maps.reshape(batch, bins, pixels)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(batch, *shape, dtype=dtype, device=maps.device)

    found = SelectedMaps(
        torch.zeros(batch, limit, pixels, dtype=torch.int16, device=maps.device),
        torch.zeros(batch, limit, pixels, dtype=torch.int16, device=maps.device),
        empty(pixels, dtype=torch.int16),
        empty(pixels, dtype=torch.float64),
        empty(pixels, dtype=torch.int16),
        empty(pixels, dtype=torch.bool),
        empty(pixels, dtype=torch.bool),
    )
    block_k = triton.next_power_of_2(bins)
    block_p = max(1, TILE // block_k)
    last = 2**weight_bits - 1
    with torch.cuda.device(maps.device) if maps.is_cuda else torch.no_grad():
        _select[(triton.cdiv(pixels, block_p), batch)](
            flat,
            *flat.stride(),
            _weights(weight_bits, maps.device),
            *found,
            pixels,
            _numbers(max_kl_nats, last, maps.device),
            bins=bins,
            last=last,
            limit=limit,
            block_k=block_k,
            block_p=block_p,
            num_warps=8,
        )
    return found


# Cached, because a copy from ordinary memory would wait for the GPU.


@cache
def _weights(weight_bits: int, device: torch.device) -> Tensor:
    return torch.from_numpy(weight_table(weight_bits)).to(device)


@cache
def _numbers(max_kl_nats: float, last: int, device: torch.device) -> Tensor:
    """Return budget, codes per unit of log probability, and tolerance; as arguments, Triton rounds them to float32."""
    steps = (last - 1) / math.log(SMALLEST)
    return torch.tensor([TRUNCATION_FRACTION * max_kl_nats, steps, SUM_TOLERANCE], dtype=torch.float64).to(device)


@triton.jit
def _x_log(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """Return x log y, and 0 where x is 0."""
    return tl.where(x > 0, x * tl.log(tl.where(x > 0, y, 1.0)), 0.0)


@triton.jit
def _cost(own: tl.tensor, rest: tl.tensor, others: tl.tensor) -> tl.tensor:
    """Return the divergence in nats of spreading `rest` evenly over `others` bins whose sum of p log p is `own`."""
    return own - _x_log(rest, rest / tl.maximum(others, 1))


@triton.jit
def _code(probability: tl.tensor, steps: tl.tensor, last: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return `encode_weight`, and whether it is near a boundary of two codes."""
    some = probability > 0
    position = tl.log(tl.where(some, tl.minimum(probability, 1.0), 1.0)) * steps
    below = tl.floor(position)
    fraction = position - below
    near = some & (tl.abs(fraction - 0.5) < CODE_MARGIN) & (position < last)
    code = 1 + below.to(tl.int32) + (fraction > 0.5).to(tl.int32)
    return tl.where(some, tl.minimum(tl.maximum(code, 1), last), 0), near


@triton.jit
def _least_kept(bits: tl.tensor, real: tl.tensor, true: tl.tensor, own: tl.tensor, budget: tl.tensor) -> tl.tensor:
    """Return the bits (p,) of the smallest kept probability: the largest whose set costs no more than the budget."""
    low = tl.zeros([bits.shape[0]], tl.int32)
    high = tl.max(bits, 1) + 1
    for _ in range(31):
        middle = low + (high - low) // 2
        dropped = (bits < middle[:, None]) & real
        rest = tl.sum(tl.where(dropped, true, 0.0), 1)
        cost = _cost(tl.sum(tl.where(dropped, own, 0.0), 1), rest, tl.sum(dropped.to(tl.int32), 1))
        unequal = high - low > 1
        low = tl.where(unequal & (cost <= budget), middle, low)
        high = tl.where(unequal & (cost > budget), middle, high)
    return low


@triton.jit
def _count(
    bits: tl.tensor,
    real: tl.tensor,
    true: tl.tensor,
    own: tl.tensor,
    least: tl.tensor,
    total: tl.tensor,
    budget: tl.tensor,
    bins: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the number of kept bins (p,), how many of them equal the smallest, and whether that is certain."""
    ties = tl.sum(((bits == least[:, None]) & real).to(tl.int32), 1)
    above = tl.sum((bits > least[:, None]).to(tl.int32), 1)
    below = (bits < least[:, None]) & real
    rest = tl.sum(tl.where(below, true, 0.0), 1)
    rest_own = tl.sum(tl.where(below, own, 0.0), 1)
    value = least.to(tl.float32, bitcast=True).to(tl.float64) / total
    value_own = _x_log(value, value)
    few, enough = tl.zeros([bits.shape[0]], tl.int32), ties
    for _ in range(12):
        middle = few + (enough - few) // 2
        left = ties - middle
        cost = _cost(rest_own + left * value_own, rest + left * value, bins - above - middle)
        unequal = enough - few > 1
        enough = tl.where(unequal & (cost <= budget), middle, enough)
        few = tl.where(unequal & (cost > budget), middle, few)
    count = above + enough
    # Certain if one bin fewer costs clearly more than the budget, and these clearly less.
    left = ties - enough
    cost = _cost(rest_own + left * value_own, rest + left * value, bins - count)
    left += 1
    cost_of_fewer = _cost(rest_own + left * value_own, rest + left * value, bins - count + 1)
    certain = (count == 1) | (cost_of_fewer > budget + COST_MARGIN)
    return count, enough, certain & ((count == bins) | (cost < budget - COST_MARGIN))


@triton.jit
def _divergence(
    own: tl.tensor,
    true: tl.tensor,
    kept: tl.tensor,
    left: tl.tensor,
    decoded: tl.tensor,
    decoded_tail: tl.tensor,
    others: tl.tensor,
) -> tl.tensor:
    """Return KL (p,) of the map from what a reader decodes, given the decoded weights and tail."""
    share = (decoded_tail.to(tl.float64) / tl.maximum(others, 1)).to(tl.float32)
    whole = tl.sum(decoded.to(tl.float64), 1) + share.to(tl.float64) * others
    whole = tl.where(whole > 0, whole, 1.0)
    restored = tl.maximum((decoded.to(tl.float64) / whole[:, None]).to(tl.float32), TINY).to(tl.float64)
    restored_share = tl.maximum((share.to(tl.float64) / whole).to(tl.float32), TINY).to(tl.float64)
    return tl.sum(own, 1) - tl.sum(tl.where(kept, _x_log(true, restored), 0.0), 1) - _x_log(left, restored_share)


@triton.jit
def _select(
    maps: tl.tensor,
    stride_b: tl.tensor,
    stride_k: tl.tensor,
    stride_p: tl.tensor,
    table: tl.tensor,
    bin_out: tl.tensor,
    weight_out: tl.tensor,
    tail_out: tl.tensor,
    divergence_out: tl.tensor,
    count_out: tl.tensor,
    uncertain_out: tl.tensor,
    improper_out: tl.tensor,
    pixels: tl.tensor,
    numbers: tl.tensor,
    bins: tl.constexpr,
    last: tl.constexpr,
    limit: tl.constexpr,
    block_k: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """Select the bins of block_p pixels of one image."""
    budget, steps, tolerance = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0).to(tl.int64) * block_p + tl.arange(0, block_p)
    bin_number = tl.arange(0, block_k)
    inside = pixel < pixels
    real = inside[:, None] & (bin_number < bins)[None, :]
    given = tl.load(
        maps + image * stride_b + bin_number[None, :] * stride_k + pixel[:, None] * stride_p, mask=real, other=0.0
    )
    wide = given.to(tl.float64)
    total = tl.sum(wide, 1)
    absent = total != total  # noqa: PLR0124 - NaN
    improper = (tl.min(given, 1) < 0) | (tl.abs(total - 1) > tolerance)
    improper = improper & (absent == 0)
    usable = inside & (absent == 0) & (improper == 0)
    given = tl.where(usable[:, None], given, 0.0)
    total = tl.where(usable, total, 1.0)
    true = given.to(tl.float64) / total[:, None]
    own = _x_log(true, true)

    bits = tl.where(real, given.to(tl.int32, bitcast=True), -1)
    least = _least_kept(bits, real, true, own, budget)
    tied = (bits == least[:, None]) & real
    count, ties_kept, certain = _count(bits, real, true, own, least, total, budget, bins)

    kept = (bits > least[:, None]) | (tied & (tl.cumsum(tied.to(tl.int32), 1) <= ties_kept[:, None]))
    kept = kept & real & usable[:, None]
    count = tl.where(usable, count, 0)
    code, near = _code(true, steps, last)
    certain = certain & (tl.sum((near & kept).to(tl.int32), 1) == 0)
    left = tl.sum(tl.where(kept, 0.0, given.to(tl.float64)), 1) / total
    tail, near_tail = _code(left, steps, last)
    certain = certain & (near_tail == 0)

    plane = tl.cumsum(kept.to(tl.int32), 1) - 1
    at = image * limit * pixels + plane.to(tl.int64) * pixels + pixel[:, None]
    stored = kept & (plane < limit)
    tl.store(bin_out + at, (bin_number[None, :] + 1).to(tl.int16), mask=stored)
    tl.store(weight_out + at, code.to(tl.int16), mask=stored)

    decoded = tl.load(table + code, mask=kept, other=0.0)
    divergence = _divergence(own, true, kept, left, decoded, tl.load(table + tail), bins - count)
    spot = image * pixels + pixel
    tl.store(tail_out + spot, tail.to(tl.int16), mask=inside)
    tl.store(divergence_out + spot, tl.where(usable, divergence, float("nan")), mask=inside)
    tl.store(count_out + spot, count.to(tl.int16), mask=inside)
    tl.store(uncertain_out + spot, (certain == 0) & usable, mask=inside)
    tl.store(improper_out + spot, improper, mask=inside)
