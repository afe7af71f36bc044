"""Depth probability maps (DPM): depth bins, and the way from depth to probability and back. No I/O.

Shape legend: B batch, K bins, H W pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import PipelineError
from .bins import bin_centers

RELEASED_SIGMA_M = 0.5
"""The released combined loss always uses this sigma, whatever its configs say."""

_FAR_SIGMAS = 4.0  # beyond the range by this much, float32 masses underflow and need the scaled form
_CLAMP_SIGMAS = 1e6  # at this distance the end bin has everything; it also makes an infinite depth finite
_CENTER_REACH_SIGMAS = 8.0  # how far beyond the range a Gaussian may stand to bring its map's mean to the end
_CENTER_KNOTS = 4096
_CENTER_STEPS = 48  # halvings: from a range of 100 m to under a picometre
_RELEASED_FLOOR = 1e-16
_RELEASED_DEAD = -1000.0


@torch.no_grad()
def gaussian_dpm(depth_m: Tensor, bin_edges_m: Tensor, sigma_m: float, *, centered: bool = False) -> Tensor:
    """Mass of N(depth, sigma) in each bin, renormalised over the range (the paper's Eq. 2 as drawn).

    Args:
        depth_m: (B, 1, H, W) float32 or float64 metres on any device. NaN is an invalid pixel.
        bin_edges_m: (K + 1,) edges, ascending.
        sigma_m: standard deviation, more than 0.
        centered: move each Gaussian so that the mean of its map is the depth. As it is, a map near an end
            of the range is cut off there, and its mean lies further inside; and where the Gaussian is narrower than
            the bins, the mean is that of the bin.

    Returns:
        (B, K, H, W) of depth's type. Sums to 1 over K; at invalid pixels it is all zeros. A depth outside the
        range, however far, gives the Gaussian's tail inside it: in the limit all in the end bin. No gradient.

    Raises PipelineError for a wrong shape or sigma.
    """
    place, axis = gaussian_places(depth_m, bin_edges_m, sigma_m, in_bins=False, centered=centered)
    return gaussian_mass(place, axis.to(place).view(1, -1, 1, 1), (float(axis[0]), float(axis[-1])), sigma_m)


@torch.no_grad()
def bin_gaussian_dpm(depth_m: Tensor, bin_edges_m: Tensor, sigma_bins: float, *, centered: bool = False) -> Tensor:
    """A Gaussian whose width is counted in bins: over log bins it is as wide, beside the depth, near and far.

    The depth is taken to the bins' own coordinate (0 at the first edge, K at the last, linear within a bin and beyond
    the ends), and the mass of N(coordinate, sigma_bins) is taken there. Over linear bins this is `gaussian_dpm`.

    Shapes, types, invalid pixels, `centered` and errors as in `gaussian_dpm`.
    """
    place, axis = gaussian_places(depth_m, bin_edges_m, sigma_bins, in_bins=True, centered=centered)
    return gaussian_mass(place, axis.to(place).view(1, -1, 1, 1), (float(axis[0]), float(axis[-1])), sigma_bins)


def gaussian_places(
    depth_m: Tensor, bin_edges_m: Tensor, sigma: float, *, in_bins: bool, centered: bool
) -> tuple[Tensor, Tensor]:
    """Where the Gaussian of each depth stands, (B, 1, H, W), and the edges (K + 1,) on the same axis.

    The axis is depth in metres, or the bins' own coordinate; sigma is counted on it. Shapes, types, `centered` and
    errors as in `gaussian_dpm`.
    """
    _check_depth(depth_m)
    if not (math.isfinite(sigma) and sigma > 0):
        raise PipelineError(f"sigma_{'bins' if in_bins else 'm'} {sigma}: expected a finite number above 0")
    axis = torch.arange(len(bin_edges_m), dtype=torch.float64) if in_bins else bin_edges_m
    if centered:
        return _centered_place(depth_m, bin_edges_m, sigma, in_bins=in_bins), axis
    return (_bin_coordinate(depth_m, bin_edges_m) if in_bins else depth_m), axis


def gaussian_mass(place: Tensor, edges: Tensor, ends: tuple[float, float], sigma: float) -> Tensor:
    """Mass of N(place, sigma) between neighbouring edges, of sum 1; zeros where the place is NaN.

    Args:
        place: (B, 1, H, W).
        edges: (1, K + 1, 1, 1), or (B, K + 1, H, W) where each pixel has its own.
        ends: of the whole range. Beyond them, edges must include the nearer one.
        sigma: standard deviation, in the unit of place and edges.

    Returns:
        (B, K, H, W).
    """
    lo, hi = ends
    unit = sigma * math.sqrt(2)  # erfc's own
    place = place.clamp(lo - _CLAMP_SIGMAS * sigma, hi + _CLAMP_SIGMAS * sigma)  # NaN stays NaN
    z = (edges - place).div_(unit)
    # Twice the tail beyond each edge, on the edge's own side of the depth, so that small masses keep their
    # digits; the sign tells the side. Two edges on one side differ by the mass between; across, 2 is missing.
    tails = z.abs().erfc_().copysign_(z)
    del z
    mass = tails[:, :-1] - tails[:, 1:]
    mass.add_(tails[:, :-1].signbit() & ~tails[:, 1:].signbit(), alpha=2)
    del tails
    far = (place < lo - _FAR_SIGMAS * sigma) | (place > hi + _FAR_SIGMAS * sigma)
    if bool(far.any()):
        where = far.squeeze(1)
        own = edges.expand(place.shape[0], -1, *place.shape[2:]).movedim(1, -1)[where]
        mass.movedim(1, -1)[where] = _far_mass(place[far], own, ends, unit)
    mass.div_(mass.sum(dim=1, keepdim=True))
    return torch.where(place.isnan(), 0.0, mass) if bool(place.isnan().any()) else mass


def _far_mass(place: Tensor, edges: Tensor, ends: tuple[float, float], unit: float) -> Tensor:
    """Masses (N, K) for places (N,) beyond the range, without the factor that makes them underflow.

    erfc(x) = exp(-x^2) erfcx(x). Dividing by exp(-n^2), n being the nearest edge's x, leaves
    exp(-(x - n)(x + n)), which is 1 at the nearest edge.
    """
    near = place.clamp(*ends)
    x = (edges - place[:, None]).abs() / unit
    n = (near - place).abs()[:, None] / unit
    beyond = (edges - near[:, None]).abs() / unit  # x - n, but exact
    tails: Tensor = torch.special.erfcx(x) * torch.exp(-beyond * (x + n))
    return (tails[:, :-1] - tails[:, 1:]).abs()


def _bin_coordinate(depth_m: Tensor, bin_edges_m: Tensor) -> Tensor:
    edges = bin_edges_m.to(depth_m)
    index = torch.searchsorted(edges, depth_m.nan_to_num(0.0)).sub_(1).clamp_(0, len(edges) - 2)
    return index + (depth_m - edges[index]) / (edges[index + 1] - edges[index])


def _centered_place(depth_m: Tensor, bin_edges_m: Tensor, sigma: float, *, in_bins: bool) -> Tensor:
    """Where a Gaussian has to stand so that the mean of its map is `depth_m`; NaN stays NaN.

    Far from the ends of the range, and where bins are not much wider than the Gaussian, this is the depth itself.
    Near the ends it lies further out, by up to 8 sigma. A depth beyond the outermost centres, which no map has as its
    mean, is taken for the nearest that one has. In metres, or in the bins' coordinate.
    """
    means_m, places = _centring(tuple(bin_edges_m.tolist()), sigma, in_bins, depth_m.dtype, depth_m.device)
    flat_m = depth_m.reshape(-1).clamp(means_m[0], means_m[-1])
    after = torch.searchsorted(means_m, flat_m.nan_to_num(0.0)).clamp(1, len(means_m) - 1)
    before_m = means_m[after - 1]
    share = (flat_m - before_m) / (means_m[after] - before_m)
    return torch.lerp(places[after - 1], places[after], share).view_as(depth_m)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # a cached tensor of a validation run could not be used in training
def _centring(
    edges_m: tuple[float, ...], sigma: float, in_bins: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Means of maps in metres, ascending, and where the Gaussian of each stands: a table to interpolate in."""
    edges = torch.tensor(edges_m, dtype=torch.float64)
    axis = torch.arange(len(edges), dtype=torch.float64) if in_bins else edges
    centers_m = bin_centers(edges)
    per_gap = max(1, min(16, _CENTER_KNOTS // len(centers_m)))
    shares = torch.arange(per_gap, dtype=torch.float64) / per_gap
    knots_m = torch.cat([torch.lerp(centers_m[:-1, None], centers_m[1:, None], shares).flatten(), centers_m[-1:]])
    nearest, farthest = axis[:1] - _CENTER_REACH_SIGMAS * sigma, axis[-1:] + _CENTER_REACH_SIGMAS * sigma

    def mean_m(place: Tensor) -> Tensor:
        return expected_depth(gaussian_dpm(place.view(1, 1, 1, -1), axis, sigma), edges).flatten()

    least_m, most_m = mean_m(nearest), mean_m(farthest)
    low, high = nearest.expand_as(knots_m), farthest.expand_as(knots_m)
    for _ in range(_CENTER_STEPS):  # the mean rises with the place: halve the interval around the right one
        middle = (low + high) / 2
        too_far = mean_m(middle) > knots_m
        low, high = torch.where(too_far, low, middle), torch.where(too_far, middle, high)
    reached = (knots_m > least_m) & (knots_m < most_m)
    means_m = torch.cat([least_m, knots_m[reached], most_m])
    places = torch.cat([nearest, low[reached], farthest])
    return means_m.to(device, dtype), places.to(device, dtype)


@torch.no_grad()
def released_dpm(depth_m: Tensor, bin_edges_m: Tensor, sigma_m: float = RELEASED_SIGMA_M) -> Tensor:
    """Teacher map of the released code (`l_dpm_loss.py`): a softmax over densities, nearly flat where alive.

    The density N(centre; depth, sigma) is set to -1000 where it is below 1e-16, then goes through a softmax.
    A depth so far outside that every bin is dead gives a uniform map, as it does there.

    Shapes, types, invalid pixels and errors as in `gaussian_dpm`.
    """
    _check_depth(depth_m)
    if not (math.isfinite(sigma_m) and sigma_m > 0):
        raise PipelineError(f"sigma_m {sigma_m}: expected a finite number above 0")
    centers = bin_centers(bin_edges_m.to(depth_m)).view(1, -1, 1, 1)
    density = (centers - depth_m).square_().div_(-2 * sigma_m**2).exp_()
    density.div_(math.sqrt(2 * math.pi) * sigma_m)
    density.masked_fill_(density < _RELEASED_FLOOR, _RELEASED_DEAD)
    dpm = torch.softmax(density, dim=1)
    return torch.where(depth_m.isnan(), 0.0, dpm)


def expected_depth(probabilities: Tensor, bin_edges_m: Tensor) -> Tensor:
    """Depth (B, 1, H, W) in metres: sum of p_i c_i over maps (B, K, H, W). 0 where a map is all zeros.

    Raises PipelineError where K is not the number of bins.
    """
    _check_bins(probabilities, bin_edges_m)
    centers = bin_centers(bin_edges_m).to(probabilities)
    # Not a matmul: TF32, where someone allowed it, would leave depth three digits.
    return (probabilities * centers.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)


def expected_depth_of_logits(logits: Tensor, bin_edges_m: Tensor) -> Tensor:
    """Depth (B, 1, H, W) in metres of a student's logits (B, K, H, W): the mean under their softmax."""
    return expected_depth(torch.softmax(logits, dim=1), bin_edges_m)


def entropy_nats(probabilities: Tensor) -> Tensor:
    """Shannon entropy (B, 1, H, W) in nats of maps (B, K, H, W): 0 is certain, ln K knows nothing."""
    entropies: Tensor = torch.special.entr(probabilities)
    return entropies.sum(dim=1, keepdim=True)


def interval_m(probabilities: Tensor, bin_edges_m: Tensor, mass: float = 0.9) -> tuple[Tensor, Tensor]:
    """Central interval that holds `mass`: lower and upper depth (B, 1, H, W) in metres.

    Quantiles (1 - mass) / 2 and (1 + mass) / 2 by linear interpolation in the CDF, that is, with each bin's
    mass spread evenly over the bin. NaN where a map is all zeros, invalid.

    Raises PipelineError unless 0 < mass < 1, or where K is not the number of bins.
    """
    if not 0 < mass < 1:
        raise PipelineError(f"interval mass {mass}: expected more than 0 and less than 1")
    _check_bins(probabilities, bin_edges_m)
    edges = bin_edges_m.to(probabilities)
    cdf = probabilities.cumsum(dim=1)
    total = cdf[:, -1:]
    lower = _quantile_m(cdf, probabilities, edges, total * ((1 - mass) / 2))
    upper = _quantile_m(cdf, probabilities, edges, total * ((1 + mass) / 2))
    return lower.where(total > 0, math.nan), upper.where(total > 0, math.nan)


def _quantile_m(cdf: Tensor, probabilities: Tensor, edges: Tensor, level: Tensor) -> Tensor:
    """Depth (B, 1, H, W) at which the CDF reaches `level` (B, 1, H, W)."""
    index = (cdf < level).sum(dim=1, keepdim=True).clamp_(max=cdf.shape[1] - 1)
    bin_mass = probabilities.gather(1, index)
    before = cdf.gather(1, index) - bin_mass
    share = ((level - before) / bin_mass.clamp_min(torch.finfo(cdf.dtype).tiny)).clamp(0, 1)
    return edges[index] + share * (edges[index + 1] - edges[index])


def _check_depth(depth_m: Tensor) -> None:
    if depth_m.ndim != 4 or depth_m.shape[1] != 1:
        raise PipelineError(f"depth of shape {tuple(depth_m.shape)}: expected (B, 1, H, W)")


def _check_bins(maps: Tensor, bin_edges_m: Tensor) -> None:
    count = bin_edges_m.numel() - 1
    if maps.ndim != 4 or maps.shape[1] != count:
        raise PipelineError(f"maps of shape {tuple(maps.shape)}: expected (B, {count}, H, W) for {count} bins")
