"""Rebinning of maps by mass, from a teacher's own depth bins to a store's bins. No I/O.

A map gives the probability mass of each bin, spread evenly within the bin. So its CDF over depth is piecewise linear,
and the CDF's values at the store's edges give the mass of each of the store's bins.

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
"""Pixels in a block: 20 MB of working memory with 257 bins, whatever the size of the map."""
SUM_TOLERANCE = 1e-6
SMALLEST = 1e-300
"""Replaces 0 in a logarithm that is multiplied by 0."""


class RebinCost(NamedTuple):
    """Difference between a map and its rebinned form, as means over pixels."""

    kl_nats: float
    """KL divergence of the teacher's density from the rebinned one, within the store's range."""
    depth_fraction: float
    """Relative change of the mean depth: mass is spread evenly over each bin, and coarse bins move its mean."""
    clipped_fraction: float
    """Mass outside of the store's range, which is added to the first and last bins."""


UNCHANGED = RebinCost(0.0, 0.0, 0.0)


def rebin(
    dpm: NDArray[np.float32], bin_edges_m: NDArray[np.floating], onto_m: NDArray[np.float64]
) -> tuple[NDArray[np.float32], RebinCost]:
    """Rebin a map (K, h, w) from its own bins to the bins between `onto_m` (L + 1,).

    Args:
        dpm: probabilities that sum to 1 over K; NaN where a pixel has no map.
        bin_edges_m: (K + 1,) or (K + 1, h, w). Equal edges are allowed: the bin's mass is at one depth.
        onto_m: ascending.

    Returns:
        The map (L, h, w) float32, and its difference. If the bins are the same, the unchanged map.

    Computed in float64, a block of pixels at a time. Raises PipelineError for edges that do not fit the map.
    """
    check_edges(bin_edges_m, dpm.shape[0], dpm.shape[1:], known=np.logical_not(np.isnan(dpm).any(axis=0)))
    if are_bins(bin_edges_m, onto_m):
        return dpm, UNCHANGED
    masses = dpm.reshape(len(dpm), -1)
    edges_m = bin_edges_m.reshape(len(bin_edges_m), -1)
    rebinned = np.empty((len(onto_m) - 1, masses.shape[1]), np.float32)
    sums = np.zeros(3)
    pixels = 0
    for start in range(0, masses.shape[1], PIXELS_AT_ONCE):
        block = slice(start, start + PIXELS_AT_ONCE)
        mass = masses[:, block].astype(np.float64)
        edges = edges_m[:, block if edges_m.shape[1] > 1 else slice(None)].astype(np.float64)
        over = rebin_mass(mass, edges, onto_m)
        rebinned[:, block] = over
        known = ~np.isnan(over[0])
        costs = _costs(mass, edges, over, onto_m)
        sums += [float(each[known].sum()) for each in costs]
        pixels += int(known.sum())
    return rebinned.reshape(-1, *dpm.shape[1:]), RebinCost(*(sums / max(pixels, 1)).tolist())


def rebin_mass(
    mass: NDArray[np.float64], bin_edges_m: NDArray[np.float64], onto_m: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rebin masses (K, P) over edges (K + 1, 1) or (K + 1, P) to masses (L, P) between `onto_m` (L + 1,).

    Mass outside of `onto_m` is added to the first and last bins, so that the sum is unchanged. NaN stays NaN.
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
    density = np.zeros((bins + 1, pixels))  # 0 beyond the last edge and in a bin without width
    np.divide(mass, width_m, out=density[:-1], where=np.broadcast_to(width_m > 0, mass.shape))
    if bin_edges_m.shape[1] == 1:
        holder = np.maximum(np.searchsorted(bin_edges_m[:, 0], at_m, side="right") - 1, 0)
        into_m = np.maximum(at_m[:, None] - bin_edges_m[holder], 0)
        below: NDArray[np.float64] = begun[holder] + into_m * density[holder]
        return below
    # The bin of each depth is the number of edges at or below it, counted from each edge's position among the depths.
    columns = np.arange(pixels)
    positions = np.searchsorted(at_m, bin_edges_m)
    counts = np.bincount((positions * pixels + columns).ravel(), minlength=(len(at_m) + 1) * pixels)
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
    """Return the divergence in nats, the relative change of the mean depth, and the clipped mass, each (P,).

    On the union of both edges the densities p / w and q / W are constant, and the masses m between two of these edges
    add up to the overlaps, so that sum m ln((p / w) / (q / W)) = sum p ln(p / w) - sum q ln(q / W).
    """
    low, high = bin_edges_m[:-1], bin_edges_m[1:]
    # A network's edges are float32: no bin is narrower than a step of float32.
    width_m = np.maximum(high - low, np.spacing(np.abs(high).astype(np.float32)).astype(np.float64))
    overlap_m = np.minimum(high, onto_m[-1]) - np.maximum(low, onto_m[0])
    fraction_inside = np.where(high > low, np.clip(overlap_m / width_m, 0, 1), overlap_m >= 0)
    inside = mass * fraction_inside
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
    """Return whether edges (K + 1,) or (K + 1, h, w) equal `onto_m` (L + 1,) at every pixel."""
    if len(bin_edges_m) != len(onto_m):
        return False
    return bool((bin_edges_m.reshape(len(onto_m), -1) == onto_m[:, None]).all())


def check_edges(
    bin_edges_m: NDArray[np.floating], bins: int, size_px: tuple[int, ...], known: NDArray[np.bool_] | None = None
) -> None:
    """Raise PipelineError for edges that do not fit a map of `bins` bins over (h, w) pixels.

    Edges are (K + 1,) or (K + 1, h, w), finite, not descending, with the last above the first. `known` (h, w) selects
    the pixels to check.
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
            "bin edges descend: expected ascending edges; sort them, or sum up widths "
            "(pipeline.depth.rebin.widths_to_edges)"
        )


def widths_to_edges(widths: Tensor, lo_m: float, hi_m: float) -> Tensor:
    """Edges (B, K + 1) float64 in metres of an image's adaptive bins, from their widths (B, K), none negative.

    AdaBins (Bhat, Alhashim, Wonka 2021): widths are normalized to sum 1 (its eq. 1) and placed one after another over
    the range, so that bin i has its center at lo + (hi - lo) (b_i / 2 + sum of the widths before) (eq. 2); its depth is
    the sum of p_i c_i (eq. 3). Raises PipelineError for invalid widths or range.
    """
    if widths.ndim != 2 or not bool((widths >= 0).all()) or not bool((widths.sum(dim=1) > 0).all()):
        raise PipelineError(
            f"widths of shape {tuple(widths.shape)}: expected (B, K), none negative or NaN, sum above 0"
        )
    if not lo_m < hi_m:
        raise PipelineError(f"range {lo_m:g} to {hi_m:g} m: expected two depths, ascending")
    wide = widths.double()
    ends = (wide / wide.sum(dim=1, keepdim=True)).cumsum(dim=1).clamp(max=1)
    ends[:, -1] = 1  # exactly, not 1 - 1e-16
    return lo_m + (hi_m - lo_m) * torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=1)


def ordinal_to_mass(beyond: Tensor) -> Tensor:
    """Convert ordinal predictions (B, K - 1, h, w), P(depth beyond each inner edge), to masses (B, K, h, w).

    DORN (Fu et al. 2018) gives P^k = P(l > k) for its K labels l, that is P(depth > t_(k+1)) (its eq. 2 and 3): give
    P^0 to P^(K-2), since nothing is beyond the last edge. Its thresholds are t_k = exp(ln a + ln(b / a) k / K)
    (eq. 1), which is `bin_edges(K, a, b, "log")`; its network learns depth shifted by xi: subtract it.

    A network's predictions need not descend over k, so they are sorted first. Sorting keeps their sum, by which such
    networks choose a label. Raises PipelineError for values outside of 0 to 1.
    """
    if beyond.ndim != 4 or not bool(((beyond >= 0) & (beyond <= 1)).all()):
        raise PipelineError(
            f"ordinal predictions of shape {tuple(beyond.shape)}: expected (B, K - 1, h, w), from 0 to 1"
        )
    ordered = beyond.sort(dim=1, descending=True).values
    ends = torch.ones_like(ordered[:, :1])
    return torch.cat([ends, ordered], dim=1) - torch.cat([ordered, torch.zeros_like(ends)], dim=1)
