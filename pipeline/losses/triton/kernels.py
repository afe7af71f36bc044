"""Triton kernels of `fused_triton`: forward and backward.

A program processes the bins of a few pixels tile by tile with a running maximum (online softmax), so K has no limit.
With Gaussian maps, tiles out of their reach skip them, and tiles within are smaller, since the mass of the Gaussians is
computed in registers.

Shape legend: B batch, K bins, P pixels, k bins of a tile, p pixels of a tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from .maps import (
    GAUSSIAN,
    GIVEN,
    STORED,
    Gaussians,
    Planes,
    Strided,
    gaussian_mass,
    given,
    lost,
    standing,
    stored,
    stored_tile,
    sums,
)

if TYPE_CHECKING:
    from torch import Tensor

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


class OfPixels(NamedTuple):
    """Values of each pixel that backward needs, and the results, all (B, P)."""

    largest: Tensor
    scale: Tensor
    """1 / the sum of exponentials"""
    mean: Tensor
    kl_nats: Tensor | None = None
    mass: Tensor | None = None
    norm: Tensor | None = None
    """1 / the sum of the masses of a Gaussian; 0 where there is no map"""


@triton.jit
def _tile(
    image: Strided, first_bin: tl.tensor, inside: tl.tensor, rows: tl.constexpr, bins: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the bins of a tile (k,), offsets (k, p) of its values from the first, and a mask (k, p) of valid ones."""
    step, pixel = tl.arange(0, rows), tl.arange(0, inside.shape[0])
    known = (first_bin + step < bins)[:, None] & inside[None, :]
    return first_bin + step, step[:, None] * image.k + pixel[None, :] * image.p, known


@triton.jit
def _add(
    x: tl.tensor, level: tl.tensor, top: tl.tensor, total: tl.tensor, moment: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Add a tile of logits (k, p) to the largest logit, the sum of exponentials and their sum times levels (p,).

    Also return the increase of the largest logit (p,), and the tile minus the largest logit.
    """
    new_top = tl.maximum(top, tl.max(x, 0))
    rise = new_top - top
    x -= new_top[None, :]
    share, shrink = tl.exp(x), tl.exp(-rise)
    return new_top, total * shrink + tl.sum(share, 0), moment * shrink + tl.sum(share * level[:, None], 0), rise, x


@triton.jit
def forward(  # noqa: C901, PLR0915 - kinds of targets are resolved at compile time
    logits: Strided,
    levels: tl.tensor,
    of: Gaussians | Planes,
    maps: Strided,
    nearest: tl.tensor,
    out: OfPixels,
    pixels: tl.tensor,
    bins: tl.constexpr,
    kind: tl.constexpr,
    block_k: tl.constexpr,
    window_k: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """Write `out` for block_p pixels of one image."""
    image, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * block_p
    inside = first + tl.arange(0, block_p) < pixels
    spot = image * pixels + first + tl.arange(0, block_p)
    here = logits.start + image * logits.b + first.to(tl.int64) * logits.p
    begin, end = bins, bins
    if kind == GAUSSIAN:
        valid, place, near, away, begin, end = standing(of, spot, inside, bins, block_k, window_k)
    if kind == GIVEN:
        map_here, map_spread = given(maps, nearest, image, first, inside, block_k)
    if kind == STORED:
        planes_here, map_norm, rest = stored(of, image, first, inside, bins)
    top, none = tl.full([block_p], LOWEST, tl.float32), tl.zeros([block_p], tl.float32)
    # Sums over the target map T: of T, of T ln T, and of T (logit - top)
    total, moment, weight, entropy, cross = none, none, none, none, none
    for first_bin in range(0, begin, block_k):
        bin_number, spread, known = _tile(logits, first_bin, inside, block_k, bins)
        x = tl.load(here + spread, mask=known, other=float("-inf")).to(tl.float32)
        level = tl.load(levels + tl.minimum(bin_number, bins - 1))
        top, total, moment, rise, x = _add(x, level, top, total, moment)
        here += block_k * logits.k
        if kind == GIVEN:
            found = sums(tl.load(map_here + map_spread, mask=known, other=0.0).to(tl.float32), x, rise, weight)
            weight, entropy, cross = weight + found[0], entropy + found[1], cross + found[2]
            map_here += block_k * maps.k
        if kind == STORED:
            found = sums(stored_tile(of, planes_here, map_norm, rest, bin_number, known), x, rise, weight)
            weight, entropy, cross = weight + found[0], entropy + found[1], cross + found[2]
    if kind == GAUSSIAN:
        for first_bin in range(begin, end, window_k):
            bin_number, spread, known = _tile(logits, first_bin, inside, window_k, bins)
            x = tl.load(here + spread, mask=known, other=float("-inf")).to(tl.float32)
            level = tl.load(levels + tl.minimum(bin_number, bins - 1))
            top, total, moment, rise, x = _add(x, level, top, total, moment)
            here += window_k * logits.k
            found = sums(gaussian_mass(of, bin_number, place, near, away, bins), x, rise, weight)
            weight, entropy, cross = weight + found[0], entropy + found[1], cross + found[2]
        for first_bin in range(end, bins, block_k):
            bin_number, spread, known = _tile(logits, first_bin, inside, block_k, bins)
            x = tl.load(here + spread, mask=known, other=float("-inf")).to(tl.float32)
            level = tl.load(levels + tl.minimum(bin_number, bins - 1))
            top, total, moment, rise, x = _add(x, level, top, total, moment)
            here += block_k * logits.k
            cross -= lost(rise, weight)
    tl.store(out.largest + spot, top, mask=inside)
    tl.store(out.scale + spot, 1.0 / total, mask=inside)
    tl.store(out.mean + spot, moment / total, mask=inside)
    if kind == GAUSSIAN:
        valid = valid & (weight > 0.0)
        norm = 1.0 / tl.where(valid, weight, 1.0)
        nats = (entropy - cross) * norm + tl.log(norm) + tl.log(total)
        tl.store(out.kl_nats + spot, tl.where(valid, nats, 0.0), mask=inside)
        tl.store(out.mass + spot, tl.where(valid, 1.0, 0.0), mask=inside)
        tl.store(out.norm + spot, tl.where(valid, norm, 0.0), mask=inside)
    if kind >= GIVEN:
        valid = (weight > 0.0) & (weight < float("inf"))
        nats = entropy - cross + weight * tl.log(total)
        tl.store(out.kl_nats + spot, tl.where(valid, nats, 0.0), mask=inside)
        tl.store(out.mass + spot, tl.where(valid, weight, 0.0), mask=inside)


@triton.jit
def backward(  # noqa: C901, PLR0915 - as above
    logits: Strided,
    gradient: Strided,
    levels: tl.tensor,
    of: Gaussians | Planes,
    maps: Strided,
    nearest: tl.tensor,
    out: OfPixels,
    of_mean: tl.tensor,
    of_kl: tl.tensor,
    pixels: tl.tensor,
    bins: tl.constexpr,
    kind: tl.constexpr,
    block_k: tl.constexpr,
    window_k: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """Write `gradient` for block_p pixels of one image, from those of mean and KL (B, P), which may be None."""
    image, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * block_p
    inside = first + tl.arange(0, block_p) < pixels
    spot = image * pixels + first + tl.arange(0, block_p)
    here = logits.start + image * logits.b + first.to(tl.int64) * logits.p
    there = gradient.start + image * gradient.b + first.to(tl.int64) * gradient.p
    top = tl.load(out.largest + spot, mask=inside, other=0.0)
    scale = tl.load(out.scale + spot, mask=inside, other=0.0)
    # d mean / d logit = S (c - mean), d KL / d logit = mass S - T: the gradient is S (offset + slope c) - pull T
    slope, offset = tl.zeros([block_p], tl.float32), tl.zeros([block_p], tl.float32)
    if of_mean is not None:
        slope = tl.load(of_mean + spot, mask=inside, other=0.0) * scale
        offset = -slope * tl.load(out.mean + spot, mask=inside, other=0.0)
    begin, end = bins, bins
    if kind == GAUSSIAN:
        place, near, away, begin, end = standing(of, spot, inside, bins, block_k, window_k)[1:]
        norm = tl.load(out.norm + spot, mask=inside, other=0.0)
        pull = tl.load(of_kl + spot, mask=inside, other=0.0)
        offset += tl.where(norm > 0.0, pull * scale, 0.0)
        pull *= norm
    if kind >= GIVEN:
        mass = tl.load(out.mass + spot, mask=inside, other=0.0)
        pull = tl.load(of_kl + spot, mask=inside, other=0.0)
        offset += pull * mass * scale
    if kind == GIVEN:
        map_here, map_spread = given(maps, nearest, image, first, inside, block_k)
    if kind == STORED:
        planes_here, map_norm, rest = stored(of, image, first, inside, bins)
    for first_bin in range(0, begin, block_k):
        bin_number, spread, known = _tile(logits, first_bin, inside, block_k, bins)
        back = _tile(gradient, first_bin, inside, block_k, bins)[1]
        found = _of_softmax(here + spread, known, levels, bin_number, top, slope, offset, bins)
        if kind == GIVEN:
            known_map = known & (mass > 0.0)[None, :]
            found -= tl.load(map_here + map_spread, mask=known_map, other=0.0).to(tl.float32) * pull[None, :]
            map_here += block_k * maps.k
        if kind == STORED:
            found -= stored_tile(of, planes_here, map_norm, rest, bin_number, known) * pull[None, :]
        tl.store(there + back, found, mask=known)
        here += block_k * logits.k
        there += block_k * gradient.k
    if kind == GAUSSIAN:
        for first_bin in range(begin, end, window_k):
            bin_number, spread, known = _tile(logits, first_bin, inside, window_k, bins)
            back = _tile(gradient, first_bin, inside, window_k, bins)[1]
            found = _of_softmax(here + spread, known, levels, bin_number, top, slope, offset, bins)
            found -= gaussian_mass(of, bin_number, place, near, away, bins) * pull[None, :]
            tl.store(there + back, found, mask=known)
            here += window_k * logits.k
            there += window_k * gradient.k
        for first_bin in range(end, bins, block_k):
            bin_number, spread, known = _tile(logits, first_bin, inside, block_k, bins)
            back = _tile(gradient, first_bin, inside, block_k, bins)[1]
            found = _of_softmax(here + spread, known, levels, bin_number, top, slope, offset, bins)
            tl.store(there + back, found, mask=known)
            here += block_k * logits.k
            there += block_k * gradient.k


@triton.jit
def _of_softmax(
    tile: tl.tensor,
    known: tl.tensor,
    levels: tl.tensor,
    bin_number: tl.tensor,
    top: tl.tensor,
    slope: tl.tensor,
    offset: tl.tensor,
    bins: tl.constexpr,
) -> tl.tensor:
    """Return S (offset + slope c) of a tile of logits (k, p): the gradient without the term of the target map."""
    x = tl.load(tile, mask=known, other=float("-inf")).to(tl.float32)
    level = tl.load(levels + tl.minimum(bin_number, bins - 1))[:, None]
    return tl.exp(x - top[None, :]) * (offset[None, :] + slope[None, :] * level)
