"""Target maps in Triton kernels: Gaussians and stored sparse maps, computed in registers, and given maps, read.

Shape legend: B batch, K bins, M planes of a sparse map, P pixels, k bins of a tile, p pixels of a tile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from ..targets import GaussianTarget, StoredTarget

if TYPE_CHECKING:
    from torch import Tensor

    from ..targets import GivenTarget

NONE, GAUSSIAN, GIVEN, STORED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""Kind of target map, a compile-time constant of the kernels. Those from GIVEN on have a map of any shape."""
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
"""The logarithm on a GPU treats smaller values as 0."""
CLAMP_SIGMAS = 1e6
"""As in `dpm`: at this distance the end bin has all mass."""


class Strided(NamedTuple):
    """Tensor (B, K, P) and its strides in elements."""

    start: Tensor
    b: int
    k: int
    p: int


class Gaussians(NamedTuple):
    """A GaussianTarget as kernel arguments, in the unit of its means (metres or bins)."""

    means: Tensor
    """(B, P); NaN has no map"""
    edges: Tensor
    """(K + 1,)"""
    lo: float
    hi: float
    farthest: float
    """Largest distance of a mean from the range; means further out are clamped."""
    reach: float
    per_unit: float
    """1 / (sigma sqrt(2))"""


class Planes(NamedTuple):
    """Stored sparse maps, as in `base.StoredMaps`."""

    gap: Tensor
    """(B, M, P)"""
    weight: Tensor
    tail: Tensor
    """(B, P)"""
    table: Tensor
    planes: int
    pixels: int


@triton.jit
def _erfcx(x: tl.tensor) -> tl.tensor:
    """Return exp(x^2) erfc(x) for x >= 0, with a relative error of 3e-7.

    u times a polynomial in v, fitted by least squares of the relative error at 400 Chebyshev nodes.
    """
    u = 2.0 / (x + 2.0)
    v = 2.0 * u - 1.0
    y = v * 4.218304093e-05 - 3.663364623e-05
    y = v * y - 2.994437818e-04
    y = v * y + 4.307414347e-04
    y = v * y + 1.529217931e-03
    y = v * y - 3.243504558e-03
    y = v * y - 1.075165160e-02
    y = v * y + 1.822168380e-02
    y = v * y + 1.397357434e-01
    y = v * y + 3.435803056e-01
    y = v * y + 5.107913613e-01
    return u * y


@triton.jit
def _tail(edge: tl.tensor, near: tl.tensor, away: tl.tensor, per_unit: tl.tensor) -> tl.tensor:
    """Return twice the tail beyond an edge, times exp(away^2), which avoids underflow for means beyond the range."""
    beyond = tl.abs(edge - near) * per_unit
    return _erfcx(beyond + away) * tl.exp(-beyond * (beyond + 2.0 * away))


@triton.jit
def standing(
    of: Gaussians,
    spot: tl.tensor,
    inside: tl.tensor,
    bins: tl.constexpr,
    block_k: tl.constexpr,
    window_k: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Load Gaussians (p,): return validity, mean, `near` and `away` (`gaussian_mass`), and the range of bins with mass.

    The range begins at a multiple of block_k and has a multiple of window_k bins.
    """
    place = tl.load(of.means + spot, mask=inside, other=float("nan"))
    valid = place == place  # noqa: PLR0124 - not NaN
    place = tl.minimum(tl.maximum(tl.where(valid, place, of.lo), of.lo - of.farthest), of.hi + of.farthest)
    near = tl.minimum(tl.maximum(place, of.lo), of.hi)
    lowest = tl.min(tl.where(valid, near - of.reach, float("inf")), 0)
    highest = tl.max(tl.where(valid, near + of.reach, float("-inf")), 0)
    begin, end = 0, 0
    for first_edge in tl.static_range(0, bins + 1, 256):
        number = first_edge + tl.arange(0, 256)
        edge = tl.load(of.edges + tl.minimum(number, bins))
        # A bin is out of reach if its right edge is below `lowest`, or its left edge above `highest`
        begin += tl.sum(((number > 0) & (number <= bins) & (edge <= lowest)).to(tl.int32), 0)
        end += tl.sum(((number < bins) & (edge < highest)).to(tl.int32), 0)
    begin = begin // block_k * block_k
    end = begin + tl.cdiv(tl.maximum(end - begin, 0), window_k) * window_k
    return valid, place, near, tl.abs(near - place) * of.per_unit, begin, end


@triton.jit
def gaussian_mass(
    of: Gaussians, bin_number: tl.tensor, place: tl.tensor, near: tl.tensor, away: tl.tensor, bins: tl.constexpr
) -> tl.tensor:
    """Return the unnormalized mass (k, p) between adjacent edges; 0 past the last bin. See `dpm.gaussian_mass`.

    `near` is the mean clamped to the range, `away` their distance in units of sigma sqrt(2).
    """
    place, near, away = place[None, :], near[None, :], away[None, :]
    left = tl.load(of.edges + tl.minimum(bin_number, bins))[:, None]
    right = tl.load(of.edges + tl.minimum(bin_number + 1, bins))[:, None]
    left = tl.minimum(tl.maximum(left, near - of.reach), near + of.reach)
    right = tl.minimum(tl.maximum(right, near - of.reach), near + of.reach)
    before, after = _tail(left, near, away, of.per_unit), _tail(right, near, away, of.per_unit)
    # The difference of two edges is the mass between them; if the mean is between them, 2 is added
    missing = tl.where((left < place) & (right >= place), 2.0, 0.0)
    return tl.where(left < place, -before, before) - tl.where(right < place, -after, after) + missing


@triton.jit
def lost(rise: tl.tensor, weight: tl.tensor) -> tl.tensor:
    """Return how much a sum of T (logit - top) decreases when the top rises; `weight` is the sum of T so far."""
    return tl.where(weight > 0.0, weight * rise, 0.0)


@triton.jit
def sums(t: tl.tensor, x: tl.tensor, rise: tl.tensor, weight: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return what maps and logits (k, p) add to the sums (p,) of T, of T ln T, and of T times the logit."""
    entropy = tl.where(tl.abs(t) < TINY, 0.0, t * tl.log(t))
    cross = tl.sum(tl.where(t == 0.0, 0.0, t * x), 0) - lost(rise, weight)
    return tl.sum(t, 0), tl.sum(entropy, 0), cross


@triton.jit
def given(
    maps: Strided,
    nearest: tl.tensor,
    image: tl.tensor,
    first: tl.tensor,
    inside: tl.tensor,
    block_k: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the start of the given maps of some pixels, and the offsets of a tile (k, p) from it."""
    here = maps.start + image * maps.b
    pixel = tl.arange(0, inside.shape[0])
    if nearest is None:
        here += first.to(tl.int64) * maps.p
    else:
        pixel = tl.load(nearest + first + pixel, mask=inside, other=0)
    return here, tl.arange(0, block_k)[:, None] * maps.k + pixel[None, :] * maps.p


@triton.jit
def stored(
    of: Planes, image: tl.tensor, first: tl.tensor, inside: tl.tensor, bins: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return (p,): start in the planes, 1 / the sum of the map (0: no map), and the value of bins without a plane."""
    pixel = first + tl.arange(0, inside.shape[0])
    here = image * of.planes * of.pixels + pixel
    count, total = tl.zeros([inside.shape[0]], tl.int32), tl.zeros([inside.shape[0]], tl.float32)
    for plane in range(of.planes):
        present = tl.load(of.gap + here + plane * of.pixels, mask=inside, other=0) > 0
        code = tl.load(of.weight + here + plane * of.pixels, mask=present, other=0)
        total += tl.where(present, tl.load(of.table + code), 0.0)
        count += present.to(tl.int32)
    others = bins - count
    rest = tl.load(of.table + tl.load(of.tail + image * of.pixels + pixel, mask=inside, other=0))
    rest /= tl.maximum(others, 1)
    total += rest * others
    return here, tl.where(count > 0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0), rest


@triton.jit
def stored_tile(
    of: Planes, here: tl.tensor, norm: tl.tensor, rest: tl.tensor, bin_number: tl.tensor, known: tl.tensor
) -> tl.tensor:
    """Return the stored probabilities (k, p) of some bins; 0 past the last bin and where there is no map."""
    found = tl.zeros(known.shape, tl.float32) + rest[None, :]
    last = tl.zeros([known.shape[1]], tl.int32) - 1
    for plane in range(of.planes):
        gap = tl.load(of.gap + here + plane * of.pixels, mask=norm > 0.0, other=0).to(tl.int32)
        code = tl.load(of.weight + here + plane * of.pixels, mask=gap > 0, other=0)
        last = tl.where(gap > 0, last + gap, last)
        chosen = (bin_number[:, None] == last[None, :]) & (gap > 0)[None, :]
        found = tl.where(chosen, tl.load(of.table + code)[None, :], found)
    return tl.where(known, found * norm[None, :], 0.0)


def arguments(
    target: GaussianTarget | GivenTarget | StoredTarget | None,
) -> tuple[int, Gaussians | Planes | None, Strided | None, Tensor | None]:
    """Return the kind of the target; its Gaussians or planes; its maps, and the pixel of them nearest to each logit."""
    if target is None:
        return NONE.value, None, None, None
    if isinstance(target, StoredTarget):
        maps = target.stored
        gap, weight, tail = (part.contiguous().flatten(-2) for part in (maps.gap, maps.weight, maps.tail))
        table = target.table.to(gap.device, torch.float32)
        return STORED.value, Planes(gap, weight, tail, table, gap.shape[1], gap.shape[2]), None, None
    if isinstance(target, GaussianTarget):
        means, edges = target.mean[:, 0].float().contiguous(), target.edges.float()
        lengths = (*target.ends, CLAMP_SIGMAS * target.sigma, target.reach, 1 / (target.sigma * math.sqrt(2)))
        return GAUSSIAN.value, Gaussians(means, edges, *lengths), None, None
    return GIVEN.value, None, Strided(target.maps, *target.maps.stride()), target.nearest
