"""A target's maps inside a GPU kernel, in Triton: the mass of Gaussians made in registers, and maps that are read.

Shape legend: B batch, K bins, P pixels, k bins of a tile, p pixels of a tile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from ..targets import GaussianTarget

if TYPE_CHECKING:
    from torch import Tensor

    from ..targets import GivenTarget

NONE, GAUSSIAN, GIVEN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Which maps a kernel compares with."""
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
"""A GPU's logarithm takes what is below for 0."""
CLAMP_SIGMAS = 1e6
"""As `dpm` has it: at this distance the end bin has everything."""


class Strided(NamedTuple):
    """Tensor (B, K, P) and its strides, in values."""

    start: Tensor
    b: int
    k: int
    p: int


class Gaussians(NamedTuple):
    """What a kernel knows of a GaussianTarget; all lengths on the axis of its places."""

    places: Tensor
    """(B, P); NaN has no map"""
    edges: Tensor
    """(K + 1,)"""
    lo: float
    hi: float
    farthest: float
    """A place further beyond the range is taken for one as far."""
    reach: float
    per_unit: float
    """1 / (sigma sqrt(2))"""


@triton.jit
def _erfcx(x: tl.tensor) -> tl.tensor:
    """exp(x^2) erfc(x) for x >= 0, to 3e-7 of it.

    u times a polynomial in v: least squares of the relative error at 400 Chebyshev nodes.
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
    """Twice the tail beyond an edge, times exp(away^2), without which a place beyond the range would underflow."""
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
    """Where Gaussians stand (p,): whether they do, the place, `near` and `away` (see `gaussian_mass`).

    And the bins, from a multiple of block_k and in steps of window_k, in which any of them has a mass.
    """
    place = tl.load(of.places + spot, mask=inside, other=float("nan"))
    valid = place == place  # noqa: PLR0124 - not NaN
    place = tl.minimum(tl.maximum(tl.where(valid, place, of.lo), of.lo - of.farthest), of.hi + of.farthest)
    near = tl.minimum(tl.maximum(place, of.lo), of.hi)
    lowest = tl.min(tl.where(valid, near - of.reach, float("inf")), 0)
    highest = tl.max(tl.where(valid, near + of.reach, float("-inf")), 0)
    begin, end = 0, 0
    for first_edge in tl.static_range(0, bins + 1, 256):
        number = first_edge + tl.arange(0, 256)
        edge = tl.load(of.edges + tl.minimum(number, bins))
        # A bin is out of reach if its right edge is below the lowest, or its left one above the highest.
        begin += tl.sum(((number > 0) & (number <= bins) & (edge <= lowest)).to(tl.int32), 0)
        end += tl.sum(((number < bins) & (edge < highest)).to(tl.int32), 0)
    begin = begin // block_k * block_k
    end = begin + tl.cdiv(tl.maximum(end - begin, 0), window_k) * window_k
    return valid, place, near, tl.abs(near - place) * of.per_unit, begin, end


@triton.jit
def gaussian_mass(
    of: Gaussians, bin_number: tl.tensor, place: tl.tensor, near: tl.tensor, away: tl.tensor, bins: tl.constexpr
) -> tl.tensor:
    """Mass (k, p) between neighbouring edges, its sum not yet 1; 0 past the last bin. See `dpm.gaussian_mass`.

    `near` is the place, or the end of the range nearest to it, `away` how far that is, in units of sigma sqrt(2).
    """
    place, near, away = place[None, :], near[None, :], away[None, :]
    left = tl.load(of.edges + tl.minimum(bin_number, bins))[:, None]
    right = tl.load(of.edges + tl.minimum(bin_number + 1, bins))[:, None]
    left = tl.minimum(tl.maximum(left, near - of.reach), near + of.reach)
    right = tl.minimum(tl.maximum(right, near - of.reach), near + of.reach)
    before, after = _tail(left, near, away, of.per_unit), _tail(right, near, away, of.per_unit)
    # Two edges on one side of the place differ by the mass between; across it, 2 is missing.
    missing = tl.where((left < place) & (right >= place), 2.0, 0.0)
    return tl.where(left < place, -before, before) - tl.where(right < place, -after, after) + missing


@triton.jit
def lost(rise: tl.tensor, weight: tl.tensor) -> tl.tensor:
    """What a sum of T (logit - top) loses when the top rises; `weight` is the sum of T so far."""
    return tl.where(weight > 0.0, weight * rise, 0.0)


@triton.jit
def sums(t: tl.tensor, x: tl.tensor, rise: tl.tensor, weight: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """What maps and logits (k, p) add to the sums (p,) of T, of T ln T, and of T times the logit, 0 where T is."""
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
    """Where given maps of some pixels begin, and how a tile (k, p) of them is spread from there."""
    here = maps.start + image * maps.b
    pixel = tl.arange(0, inside.shape[0])
    if nearest is None:
        here += first.to(tl.int64) * maps.p
    else:
        pixel = tl.load(nearest + first + pixel, mask=inside, other=0)
    return here, tl.arange(0, block_k)[:, None] * maps.k + pixel[None, :] * maps.p


def arguments(
    target: GaussianTarget | GivenTarget | None,
) -> tuple[int, Gaussians | None, Strided | None, Tensor | None]:
    """Kind of the target; its Gaussians, or its maps and which of their pixels is nearest to each of the logits'."""
    if target is None:
        return NONE.value, None, None, None
    if isinstance(target, GaussianTarget):
        places, edges = target.mean[:, 0].float().contiguous(), target.edges.float()
        lengths = (*target.ends, CLAMP_SIGMAS * target.sigma, target.reach, 1 / (target.sigma * math.sqrt(2)))
        return GAUSSIAN.value, Gaussians(places, edges, *lengths), None, None
    return GIVEN.value, None, Strided(target.maps, *target.maps.stride()), target.nearest
