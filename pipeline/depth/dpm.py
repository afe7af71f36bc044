"""Depth probability maps (DPM): from depth to a map over bins, and from a map to depth, entropy and intervals.

Shape legend: B batch, K bins, H W pixels, N pixels beyond the range.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import PipelineError
from .bins import bin_centers

RELEASED_SIGMA_M = 0.5
"""The released combined loss always uses this sigma and ignores that of its configurations."""

_FAR_SIGMAS = 4.0  # further beyond the range, float32 masses underflow and need `_far_mass`
_CLAMP_SIGMAS = 1e6  # at this distance the end bin has all mass; also makes infinite depth finite
_CENTER_REACH_SIGMAS = 8.0  # how far beyond the range a centered Gaussian may be
_CENTER_KNOTS = 4096
_CENTER_STEPS = 48  # bisections: from 100 m to below 1 pm
_RELEASED_FLOOR = 1e-16
_RELEASED_DEAD = -1000.0


@torch.no_grad()
def gaussian_dpm(depth_m: Tensor, bin_edges_m: Tensor, sigma_m: float, *, centered: bool = False) -> Tensor:
    """Return the mass of N(depth, sigma) in each bin, renormalized over the range.

    Source: arXiv 2402.14340, equation 2, as its figure shows it.

    Args:
        depth_m: (B, 1, H, W) float32 or float64 metres on any device; NaN is invalid.
        bin_edges_m: (K + 1,) edges, ascending.
        sigma_m: standard deviation, positive.
        centered: shift each Gaussian so that the mean of its map is the depth. Otherwise the range cuts off
            Gaussians at its ends, which moves their means inward, and a Gaussian narrower than its bin has the mean of
            the bin.

    Returns:
        (B, K, H, W) of the type of `depth_m`, without gradient. Sums to 1 over K; all zeros at invalid pixels. A depth
        outside the range gives the tail of its Gaussian, in the limit all in the end bin.

    Raises PipelineError for an invalid shape or sigma.
    """
    mean, axis = gaussian_means(depth_m, bin_edges_m, sigma_m, in_bins=False, centered=centered)
    return gaussian_mass(mean, axis.to(mean).view(1, -1, 1, 1), (float(axis[0]), float(axis[-1])), sigma_m)


@torch.no_grad()
def bin_gaussian_dpm(depth_m: Tensor, bin_edges_m: Tensor, sigma_bins: float, *, centered: bool = False) -> Tensor:
    """Return a Gaussian map of a width in bins; with log bins its width is proportional to depth.

    Depth and edges are converted to bin coordinates: 0 at the first edge, K at the last, linear within each bin and
    beyond the ends. The map is the mass of N(coordinate, sigma_bins). With linear bins this is `gaussian_dpm`.

    Shapes, types, invalid pixels, `centered` and errors as in `gaussian_dpm`.
    """
    mean, axis = gaussian_means(depth_m, bin_edges_m, sigma_bins, in_bins=True, centered=centered)
    return gaussian_mass(mean, axis.to(mean).view(1, -1, 1, 1), (float(axis[0]), float(axis[-1])), sigma_bins)


def gaussian_means(
    depth_m: Tensor, bin_edges_m: Tensor, sigma: float, *, in_bins: bool, centered: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean of the Gaussian of each depth, (B, 1, H, W), and the edges (K + 1,) in the same unit.

    The unit, also of sigma, is metres or, with `in_bins`, bin coordinates. Shapes, types, `centered` and errors as in
    `gaussian_dpm`.
    """
    _check_depth(depth_m)
    if not (math.isfinite(sigma) and sigma > 0):
        raise PipelineError(f"`sigma_{'bins' if in_bins else 'm'}={sigma}` must be positive and finite")
    axis = torch.arange(len(bin_edges_m), dtype=torch.float64) if in_bins else bin_edges_m
    if centered:
        return _centered_means(depth_m, bin_edges_m, sigma, in_bins=in_bins), axis
    return (_bin_coordinate(depth_m, bin_edges_m) if in_bins else depth_m), axis


def gaussian_mass(mean: Tensor, edges: Tensor, ends: tuple[float, float], sigma: float) -> Tensor:
    """Return the mass of N(mean, sigma) between adjacent edges, normalized to 1; zeros where the mean is NaN.

    Args:
        mean: (B, 1, H, W).
        edges: (1, K + 1, 1, 1), or (B, K + 1, H, W) if pixels have different edges.
        ends: lower and upper end of the range. For a mean beyond an end, `edges` must include that end.
        sigma: standard deviation, in the unit of mean and edges.

    Returns:
        (B, K, H, W).
    """
    lo, hi = ends
    unit = sigma * math.sqrt(2)  # unit of the argument of erfc
    mean = mean.clamp(lo - _CLAMP_SIGMAS * sigma, hi + _CLAMP_SIGMAS * sigma)  # keeps NaN
    z = (edges - mean).div_(unit)
    # tails = sign(z) erfc(|z|): twice the mass beyond each edge, seen from the mean. Unlike erf near 1, small tails
    # keep their digits. Between two edges on one side of the mean lies the difference; with the mean between, 2 more.
    tails = z.abs().erfc_().copysign_(z)
    del z
    mass = tails[:, :-1] - tails[:, 1:]
    mass.add_(tails[:, :-1].signbit() & ~tails[:, 1:].signbit(), alpha=2)
    del tails
    far = (mean < lo - _FAR_SIGMAS * sigma) | (mean > hi + _FAR_SIGMAS * sigma)
    if bool(far.any()):
        pixels = far.squeeze(1)
        far_edges = edges.expand(mean.shape[0], -1, *mean.shape[2:]).movedim(1, -1)[pixels]
        mass.movedim(1, -1)[pixels] = _far_mass(mean[far], far_edges, ends, unit)
    mass.div_(mass.sum(dim=1, keepdim=True))
    return torch.where(mean.isnan(), 0.0, mass) if bool(mean.isnan().any()) else mass


def _far_mass(mean: Tensor, edges: Tensor, ends: tuple[float, float], unit: float) -> Tensor:
    """Return masses (N, K) for means (N,) beyond the range, scaled so that they do not underflow.

    erfc(x) = exp(-x^2) erfcx(x). With n the x of the nearest edge, division by exp(-n^2) leaves
    exp(-(x - n)(x + n)), which is 1 at the nearest edge.
    """
    near = mean.clamp(*ends)
    x = (edges - mean[:, None]).abs() / unit
    n = (near - mean).abs()[:, None] / unit
    beyond = (edges - near[:, None]).abs() / unit  # x - n, but exact
    tails: Tensor = torch.special.erfcx(x) * torch.exp(-beyond * (x + n))
    return (tails[:, :-1] - tails[:, 1:]).abs()


def _bin_coordinate(depth_m: Tensor, bin_edges_m: Tensor) -> Tensor:
    """Return depth (B, 1, H, W) in bins: 0 at the first edge, K at the last, linear within each bin; keeps NaN."""
    edges = bin_edges_m.to(depth_m.device, depth_m.dtype, non_blocking=True)
    index = torch.searchsorted(edges, depth_m.nan_to_num(0.0)).sub_(1).clamp_(0, len(edges) - 2)
    return index + (depth_m - edges[index]) / (edges[index + 1] - edges[index])


def _centered_means(depth_m: Tensor, bin_edges_m: Tensor, sigma: float, *, in_bins: bool) -> Tensor:
    """Return where to put each Gaussian (metres or bin coordinates) so that its map's expected depth is `depth_m`.

    A map is a Gaussian cut off at the ends of the range. Far from them, with bins not much wider than sigma, this is
    the depth itself; near them it is up to 8 sigma further out. Depth beyond the outermost bin centers cannot be the
    expected depth of a map, and is clamped. Keeps NaN.
    """
    map_means_m, means = _centering_table(tuple(bin_edges_m.tolist()), sigma, in_bins, depth_m.dtype, depth_m.device)
    flat_m = depth_m.reshape(-1).clamp(map_means_m[0], map_means_m[-1])
    after = torch.searchsorted(map_means_m, flat_m.nan_to_num(0.0)).clamp(1, len(map_means_m) - 1)
    before_m = map_means_m[after - 1]
    fraction = (flat_m - before_m) / (map_means_m[after] - before_m)
    return torch.lerp(means[after - 1], means[after], fraction).view_as(depth_m)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # training cannot use inference tensors cached by a validation run
def _centering_table(
    edges_m: tuple[float, ...], sigma: float, in_bins: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return a table to interpolate: means of maps in metres, ascending, and the means of their Gaussians."""
    edges = torch.tensor(edges_m, dtype=torch.float64)
    axis = torch.arange(len(edges), dtype=torch.float64) if in_bins else edges
    centers_m = bin_centers(edges)
    per_gap = max(1, min(16, _CENTER_KNOTS // len(centers_m)))
    fractions = torch.arange(per_gap, dtype=torch.float64) / per_gap
    knots_m = torch.cat([torch.lerp(centers_m[:-1, None], centers_m[1:, None], fractions).flatten(), centers_m[-1:]])
    nearest, farthest = axis[:1] - _CENTER_REACH_SIGMAS * sigma, axis[-1:] + _CENTER_REACH_SIGMAS * sigma

    def map_mean_m(mean: Tensor) -> Tensor:
        maps = gaussian_dpm(mean.view(1, 1, 1, -1), axis, sigma)  # mean, edges and sigma in metres, or all in bins
        return expected_depth(maps, edges).flatten()

    lowest_m, highest_m = map_mean_m(nearest), map_mean_m(farthest)
    low, high = nearest.expand_as(knots_m), farthest.expand_as(knots_m)
    for _ in range(_CENTER_STEPS):  # bisection: the mean of the map increases with the mean of the Gaussian
        middle = (low + high) / 2
        too_far = map_mean_m(middle) > knots_m
        low, high = torch.where(too_far, low, middle), torch.where(too_far, middle, high)
    reached = (knots_m > lowest_m) & (knots_m < highest_m)
    map_means_m = torch.cat([lowest_m, knots_m[reached], highest_m])
    means = torch.cat([nearest, low[reached], farthest])
    return map_means_m.to(device, dtype), means.to(device, dtype)


@torch.no_grad()
def released_dpm(depth_m: Tensor, bin_edges_m: Tensor, sigma_m: float = RELEASED_SIGMA_M) -> Tensor:
    """Return the teacher map of the released code (`l_dpm_loss.py`): a softmax over densities, nearly flat.

    The density N(center; depth, sigma) is set to -1000 where it is below 1e-16 before the softmax. As in the released
    code, a depth so far outside the range that all bins are below 1e-16 gives a uniform map.

    Shapes, types, invalid pixels and errors as in `gaussian_dpm`.
    """
    _check_depth(depth_m)
    if not (math.isfinite(sigma_m) and sigma_m > 0):
        raise PipelineError(f"`sigma_m={sigma_m}` must be positive and finite")
    centers = bin_centers(bin_edges_m.to(depth_m)).view(1, -1, 1, 1)
    density = (centers - depth_m).square_().div_(-2 * sigma_m**2).exp_()
    density.div_(math.sqrt(2 * math.pi) * sigma_m)
    density.masked_fill_(density < _RELEASED_FLOOR, _RELEASED_DEAD)
    dpm = torch.softmax(density, dim=1)
    return torch.where(depth_m.isnan(), 0.0, dpm)


def expected_depth(probabilities: Tensor, bin_edges_m: Tensor) -> Tensor:
    """Return depth (B, 1, H, W) in metres, sum_i p_i c_i, of maps (B, K, H, W); 0 where a map is all zeros.

    Raises PipelineError if K is not the number of bins.
    """
    _check_bins(probabilities, bin_edges_m)
    centers = bin_centers(bin_edges_m).to(probabilities)
    # Not a matmul: TF32, if the user enabled it, keeps only three digits.
    return (probabilities * centers.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)


def expected_depth_of_logits(logits: Tensor, bin_edges_m: Tensor) -> Tensor:
    """Return depth (B, 1, H, W) in metres of logits (B, K, H, W): the mean of their softmax."""
    return expected_depth(torch.softmax(logits, dim=1), bin_edges_m)


def entropy_nats(probabilities: Tensor) -> Tensor:
    """Return the Shannon entropy (B, 1, H, W) in nats of maps (B, K, H, W), from 0 (certain) to ln K (uniform)."""
    entropies: Tensor = torch.special.entr(probabilities)
    return entropies.sum(dim=1, keepdim=True)


def interval_m(probabilities: Tensor, bin_edges_m: Tensor, mass: float = 0.9) -> tuple[Tensor, Tensor]:
    """Return the ends (B, 1, H, W) in metres of the central interval that contains `mass` of maps (B, K, H, W).

    They are the quantiles (1 - mass) / 2 and (1 + mass) / 2, with the mass of each bin spread evenly over it. NaN where
    a map is all zeros.

    Raises PipelineError unless 0 < mass < 1, or if K is not the number of bins.
    """
    if not 0 < mass < 1:
        raise PipelineError(f"`mass={mass}` must be between 0 and 1, exclusive")
    _check_bins(probabilities, bin_edges_m)
    edges = bin_edges_m.to(probabilities)
    cdf = probabilities.cumsum(dim=1)
    total = cdf[:, -1:]
    lower = _quantile_m(cdf, probabilities, edges, total * ((1 - mass) / 2))
    upper = _quantile_m(cdf, probabilities, edges, total * ((1 + mass) / 2))
    return lower.where(total > 0, math.nan), upper.where(total > 0, math.nan)


def quantile_m(weights: Tensor, bin_edges_m: Tensor, level: float) -> Tensor:
    """Return the depth (B, 1, H, W) in metres below which the fraction `level` of weights (B, K, H, W) lies.

    The weight of each bin is spread evenly over it; the weights need not sum to 1. Raises PipelineError if K is not the
    number of bins.
    """
    _check_bins(weights, bin_edges_m)
    cdf = weights.cumsum(dim=1)
    return _quantile_m(cdf, weights, bin_edges_m.to(weights), cdf[:, -1:] * level)


def _quantile_m(cdf: Tensor, probabilities: Tensor, edges: Tensor, level: Tensor) -> Tensor:
    """Return depth (B, 1, H, W) at which the CDF reaches `level` (B, 1, H, W)."""
    index = (cdf < level).sum(dim=1, keepdim=True).clamp_(max=cdf.shape[1] - 1)
    bin_mass = probabilities.gather(1, index)
    before = cdf.gather(1, index) - bin_mass
    fraction = ((level - before) / bin_mass.clamp_min(torch.finfo(cdf.dtype).tiny)).clamp(0, 1)
    return edges[index] + fraction * (edges[index + 1] - edges[index])


def _check_depth(depth_m: Tensor) -> None:
    if depth_m.ndim != 4 or depth_m.shape[1] != 1:
        raise PipelineError(f"depth of shape {tuple(depth_m.shape)}: expected (B, 1, H, W)")


def _check_bins(maps: Tensor, bin_edges_m: Tensor) -> None:
    count = bin_edges_m.numel() - 1
    if maps.ndim != 4 or maps.shape[1] != count:
        raise PipelineError(f"maps of shape {tuple(maps.shape)}: expected (B, {count}, H, W) for {count} bins")
