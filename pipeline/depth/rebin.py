"""Maps carried over by mass, from a teacher's own depth bins onto a store's. No I/O.

A map says how much of a pixel lies in each bin; within a bin it is spread evenly. So the share below any depth (the
CDF) is piecewise linear, and its values at the store's edges give each of the store's bins exactly what overlaps it.

Shape legend: B batch, K bins of the teacher, L bins of the store, h w pixels, P pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXELS_AT_ONCE = 2048
"""Of 257 bins, what is in work then takes some 20 MB, whatever the size of the map."""
SUM_TOLERANCE = 1e-6
SMALLEST = 1e-300
"""In place of 0 within a logarithm whose factor is 0."""


class CarryCost(NamedTuple):
    """How far carried maps are from those that they came from: means over pixels."""

    kl_nats: float
    """KL divergence of the teacher's density from the carried one, of what lies within the store's range."""
    depth_share: float
    """Change of the map's mean depth, as a share of it: bins spread mass evenly, and coarse ones move it."""
    clipped_share: float
    """Mass beyond the store's range, which went to the bins at its ends."""


UNCHANGED = CarryCost(0.0, 0.0, 0.0)


def carry(
    dpm: NDArray[np.float32], bin_edges_m: NDArray[np.floating], onto_m: NDArray[np.float64]
) -> tuple[NDArray[np.float32], CarryCost]:
    """Carry a map (K, h, w) over bins of its own onto the bins between `onto_m` (L + 1,).

    Args:
        dpm: probabilities that sum to 1 over K; NaN where a pixel has no map.
        bin_edges_m: (K + 1,) or (K + 1, h, w). They may touch: a bin without width is all at one depth.
        onto_m: ascending.

    Returns:
        The map (L, h, w) float32, and what it cost. The very same map, at no cost, where the bins are the same.

    Computed in float64, a block of pixels at a time. Raises PipelineError for edges that are none of this map.
    """
    check_edges(bin_edges_m, dpm.shape[0], dpm.shape[1:], known=np.logical_not(np.isnan(dpm).any(axis=0)))
    if are_bins(bin_edges_m, onto_m):
        return dpm, UNCHANGED
    masses = dpm.reshape(len(dpm), -1)
    edges_m = bin_edges_m.reshape(len(bin_edges_m), -1)
    carried = np.empty((len(onto_m) - 1, masses.shape[1]), np.float32)
    sums = np.zeros(3)
    pixels = 0
    for start in range(0, masses.shape[1], PIXELS_AT_ONCE):
        block = slice(start, start + PIXELS_AT_ONCE)
        mass = masses[:, block].astype(np.float64)
        edges = edges_m[:, block if edges_m.shape[1] > 1 else slice(None)].astype(np.float64)
        over = carry_mass(mass, edges, onto_m)
        carried[:, block] = over
        known = ~np.isnan(over[0])
        costs = _costs(mass, edges, over, onto_m)
        sums += [float(each[known].sum()) for each in costs]
        pixels += int(known.sum())
    return carried.reshape(-1, *dpm.shape[1:]), CarryCost(*(sums / max(pixels, 1)).tolist())


def carry_mass(
    mass: NDArray[np.float64], bin_edges_m: NDArray[np.float64], onto_m: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Masses (L, P) in the bins between `onto_m` (L + 1,) of masses (K, P) over edges (K + 1, 1) or (K + 1, P).

    What lies beyond `onto_m` goes to its first and last bin, so that the sum stays what it was. NaN stays NaN.
    """
    below = _mass_below(mass, bin_edges_m, onto_m)
    below[0], below[-1] = 0, mass.sum(axis=0)
    over = np.diff(below, axis=0)
    # The sum along K and its parts round differently by 1e-16, which must not show as a negative mass.
    np.maximum(over, 0, out=over)
    over[:, np.isnan(below[-1])] = np.nan
    return over


def _mass_below(
    mass: NDArray[np.float64], bin_edges_m: NDArray[np.float64], at_m: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mass (L + 1, P) below each depth of `at_m` (L + 1,): the CDF, linear within each bin."""
    bins, pixels = mass.shape
    begun = np.zeros((bins + 1, pixels))  # mass below each edge
    np.cumsum(mass, axis=0, out=begun[1:])
    width_m = np.diff(bin_edges_m, axis=0)
    density = np.zeros((bins + 1, pixels))  # none beyond the last edge, and none within a bin that has no width
    np.divide(mass, width_m, out=density[:-1], where=np.broadcast_to(width_m > 0, mass.shape))
    if bin_edges_m.shape[1] == 1:
        holder = np.maximum(np.searchsorted(bin_edges_m[:, 0], at_m, side="right") - 1, 0)
        into_m = np.maximum(at_m[:, None] - bin_edges_m[holder], 0)
        below: NDArray[np.float64] = begun[holder] + into_m * density[holder]
        return below
    # Which bin holds each depth: as many edges lie at or below it, counted from where each edge lies among the depths.
    columns = np.arange(pixels)
    place = np.searchsorted(at_m, bin_edges_m)
    counts = np.bincount((place * pixels + columns).ravel(), minlength=(len(at_m) + 1) * pixels)
    holders = np.cumsum(counts.reshape(-1, pixels)[:-1], axis=0)
    holders = np.maximum(holders - 1, 0) * pixels + columns
    into_m = at_m[:, None] - bin_edges_m.take(holders)
    np.maximum(into_m, 0, out=into_m)  # before the first edge
    below = into_m
    below *= density.take(holders)
    below += begun.take(holders)
    return below


def _costs(
    mass: NDArray[np.float64], bin_edges_m: NDArray[np.float64], over: NDArray[np.float64], onto_m: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Divergence in nats, share by which the mean depth moved, and clipped mass, each (P,).

    On the union of both edges the densities p / w and q / W are constant, and the masses m between two of these edges
    add up to the overlaps, so that sum m ln((p / w) / (q / W)) = sum p ln(p / w) - sum q ln(q / W).
    """
    low, high = bin_edges_m[:-1], bin_edges_m[1:]
    # The edges of a network are float32: no bin is known to be narrower than a step of that.
    width_m = np.maximum(high - low, np.spacing(np.abs(high).astype(np.float32)).astype(np.float64))
    overlap_m = np.minimum(high, onto_m[-1]) - np.maximum(low, onto_m[0])
    share = np.where(high > low, np.clip(overlap_m / width_m, 0, 1), overlap_m >= 0)
    inside = mass * share
    kept = over.copy()  # without what was clipped
    kept[0] -= (mass * np.where(high > low, np.clip((onto_m[0] - low) / width_m, 0, 1), low < onto_m[0])).sum(axis=0)
    kept[-1] -= (mass * np.where(high > low, np.clip((high - onto_m[-1]) / width_m, 0, 1), low > onto_m[-1])).sum(
        axis=0
    )
    own = (inside * np.log(np.maximum(mass, SMALLEST) / width_m)).sum(axis=0)
    theirs = (kept * np.log(np.maximum(kept, SMALLEST) / np.diff(onto_m)[:, None])).sum(axis=0)
    total = mass.sum(axis=0)
    mean_m = (mass * (low + high) / 2).sum(axis=0) / total
    moved = np.abs(((onto_m[:-1] + onto_m[1:]) / 2) @ over / total - mean_m) / np.abs(mean_m)
    return np.maximum(own - theirs, 0), moved, 1 - inside.sum(axis=0) / total


def are_bins(bin_edges_m: NDArray[np.floating], onto_m: NDArray[np.float64]) -> bool:
    """Whether edges (K + 1,) or (K + 1, h, w) are those of `onto_m` (L + 1,) at every pixel."""
    if len(bin_edges_m) != len(onto_m):
        return False
    return bool((bin_edges_m.reshape(len(onto_m), -1) == onto_m[:, None]).all())


def check_edges(
    bin_edges_m: NDArray[np.floating], bins: int, size_px: tuple[int, ...], known: NDArray[np.bool_] | None = None
) -> None:
    """Raise PipelineError for what are no edges of a map of `bins` bins over (h, w) pixels.

    They are (K + 1,) or (K + 1, h, w), finite and never descending; and some distance apart from first to last.
    `known` (h, w) are the pixels that count.
    """
    if bin_edges_m.shape not in {(bins + 1,), (bins + 1, *size_px)}:
        height, width = size_px
        raise PipelineError(
            f"bin edges of shape {bin_edges_m.shape} for a map of {bins} bins over {height}x{width} px: expected "
            f"({bins + 1},), or ({bins + 1}, {height}, {width}) where each pixel has its own"
        )
    edges_m = bin_edges_m[:, known] if known is not None and bin_edges_m.ndim == 3 else bin_edges_m
    if not np.isfinite(edges_m).all():
        raise PipelineError(
            f"{np.count_nonzero(~np.isfinite(edges_m))} bin edges are NaN or infinite: expected finite metres"
        )
    if (np.diff(edges_m, axis=0) < 0).any() or not (edges_m[-1] > edges_m[0]).all():
        raise PipelineError(
            "bin edges descend: expected each at or above the one before; sort them, or sum up widths "
            "(pipeline.depth.rebin.widths_to_edges)"
        )


def widths_to_edges(widths: Tensor, lo_m: float, hi_m: float) -> Tensor:
    """Edges (B, K + 1) float64 in metres of an image's adaptive bins, from their widths (B, K), none negative.

    AdaBins (Bhat, Alhashim, Wonka 2021): widths are normalised to sum 1 (its eq. 1) and laid side by side over the
    range, so that bin i has its centre at lo + (hi - lo) (b_i / 2 + sum of those before) (eq. 2); its depth is
    the sum of p_i c_i (eq. 3). Raises PipelineError for widths or a range that make no bins.
    """
    if widths.ndim != 2 or not bool((widths >= 0).all()) or not bool((widths.sum(dim=1) > 0).all()):
        raise PipelineError(
            f"widths of shape {tuple(widths.shape)}: expected (B, K), none negative or NaN, sum above 0"
        )
    if not lo_m < hi_m:
        raise PipelineError(f"range {lo_m:g} to {hi_m:g} m: expected two depths, ascending")
    wide = widths.double()
    ends = (wide / wide.sum(dim=1, keepdim=True)).cumsum(dim=1).clamp(max=1)
    ends[:, -1] = 1  # and not 1 - 1e-16
    return lo_m + (hi_m - lo_m) * torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=1)


def ordinal_to_mass(beyond: Tensor) -> Tensor:
    """Masses (B, K, h, w) of ordinal answers (B, K - 1, h, w): the probability that depth is beyond each inner edge.

    DORN (Fu et al. 2018) gives P^k = P(l > k) for its K labels l, that is P(depth > t_(k+1)) (its eq. 2 and 3): give
    P^0 to P^(K-2), as beyond the last edge there is nothing. Its thresholds are t_k = exp(ln a + ln(b / a) k / K)
    (eq. 1), which is `bin_edges(K, a, b, "log")`; its network is shown depth shifted by xi, so take that off.

    Nothing makes a network's answers descend over k, so they are sorted first: that keeps their sum, by which
    such networks choose a label. Raises PipelineError for what are no probabilities.
    """
    if beyond.ndim != 4 or not bool(((beyond >= 0) & (beyond <= 1)).all()):
        raise PipelineError(f"ordinal answers of shape {tuple(beyond.shape)}: expected (B, K - 1, h, w), from 0 to 1")
    ordered = beyond.sort(dim=1, descending=True).values
    ends = torch.ones_like(ordered[:, :1])
    return torch.cat([ends, ordered], dim=1) - torch.cat([ordered, torch.zeros_like(ends)], dim=1)
