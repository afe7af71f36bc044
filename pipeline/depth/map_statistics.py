"""Statistics of maps at single pixels: entropy, widths of intervals, likelihood of the truth and where it lies.

Shape legend: K bins, h w pixels of the map, P pixels with truth, L levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..errors import PipelineError
from .bins import bin_centers
from .dpm import entropy_nats
from .risk_coverage import MIN_DEPTH_M

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Nominal mass of the central intervals."""
MIN_DENSITY = 1e-12
"""Density of ln depth that a map has at least, so that one empty bin does not make the mean infinite."""
_CHUNK = 2**14  # pixels; with 257 bins their maps take 34 MB


class MapStatistics(NamedTuple):
    """Uncertainty of maps at P pixels, and where the truth is in them."""

    entropy_nats: Array
    """(P,)"""
    deviation: Array
    """(P,) standard deviation / depth"""
    widths: Array
    """(P, L) width of the central interval of each level / depth"""
    nll_nats: Array
    """(P,) -ln of the density of ln depth at the truth"""
    truth_level: Array
    """(P,) mass of the smallest central interval that contains the truth, 0..1: |2 CDF(truth) - 1|"""


def map_at(dpm: Tensor, rows: NDArray[np.intp], columns: NDArray[np.intp], view_px: tuple[int, int]) -> Tensor:
    """Interpolate a map (K, h, w) at pixels of the view of size `view_px`: (P, K) float64.

    Bilinear, so that the mean of the result is the upsampled depth.
    """
    (top, bottom, down), (left, right, across) = (
        _interpolation(indices, map_size, view_size, dpm.device)
        for indices, map_size, view_size in zip((rows, columns), dpm.shape[1:], view_px, strict=True)
    )
    flat, width = dpm.flatten(1), dpm.shape[2]  # index_select is faster than two index tensors

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat.index_select(1, row * width + column).double()

    upper = torch.lerp(at(top, left), at(top, right), across)
    lower = torch.lerp(at(bottom, left), at(bottom, right), across)
    return torch.lerp(upper, lower, down).T.contiguous()


def _interpolation(
    indices: NDArray[np.intp], map_size: int, view_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two nearest indices of the map for indices of the view, and the weight of the second."""
    position = ((torch.from_numpy(indices).to(device).double() + 0.5) * (map_size / view_size) - 0.5).clamp_(
        0, map_size - 1
    )
    first = position.floor().long()
    return first, (first + 1).clamp_(max=map_size - 1), position - first


def map_statistics(
    dpm: Tensor,
    bin_edges_m: Array,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    view_px: tuple[int, int],
    truth_m: NDArray[np.floating],
    levels: tuple[float, ...] = LEVELS,
    depth_m: NDArray[np.floating] | None = None,
) -> MapStatistics:
    """Return statistics of a map (K, h, w) at P pixels of the view with truth (P,), a chunk of pixels at a time.

    The mass of each bin is spread evenly over it, as in `dpm.interval_m`. Widths are relative to `depth_m` (P,), which
    is read from the map in some way, or to the mean of the map if that is omitted. Raises PipelineError if K is not the
    number of bins.
    """
    if dpm.ndim != 3 or len(dpm) != len(bin_edges_m) - 1:
        raise PipelineError(f"map of shape {tuple(dpm.shape)}: expected (K, h, w) with K = {len(bin_edges_m) - 1} bins")
    edges = torch.from_numpy(bin_edges_m).to(dpm.device).double()
    parts = []
    for start in range(0, len(rows), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        maps = map_at(dpm, rows[chunk], columns[chunk], view_px)
        truth = torch.from_numpy(truth_m[chunk].astype(np.float64)).to(dpm.device)
        divisor = None if depth_m is None else torch.from_numpy(depth_m[chunk].astype(np.float64)).to(dpm.device)
        parts.append([part.cpu().numpy() for part in _statistics(maps, edges, truth, levels, divisor)])
    return MapStatistics(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _statistics(
    maps: Tensor, edges: Tensor, truth_m: Tensor, levels: tuple[float, ...], divisor_m: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the fields of `MapStatistics` for maps (P, K) as tensors."""
    maps = maps / maps.sum(dim=1, keepdim=True)
    centers = bin_centers(edges)
    depth_m = maps @ centers
    variance = (maps * (centers - depth_m[:, None]) ** 2).sum(dim=1)
    cdf = torch.nn.functional.pad(maps.cumsum(dim=1), (1, 0))
    cdf[:, -1] = 1  # without rounding
    mass = torch.tensor(levels, dtype=torch.float64, device=maps.device)
    tails = torch.cat([(1 - mass) / 2, (1 + mass) / 2]).expand(len(maps), -1).contiguous()
    ends_m = _quantiles_m(cdf, edges, tails)
    widths_m = ends_m[:, len(levels) :] - ends_m[:, : len(levels)]
    bins = (torch.searchsorted(edges, truth_m, right=True) - 1).clamp(0, len(centers) - 1)[:, None]
    fraction = ((truth_m[:, None] - edges[bins]) / (edges[bins + 1] - edges[bins])).clamp(0, 1)
    below = (cdf.gather(1, bins) + fraction * (cdf.gather(1, bins + 1) - cdf.gather(1, bins)))[:, 0]
    divisor_m = (depth_m if divisor_m is None else divisor_m).clamp_min(MIN_DEPTH_M)
    entropy = entropy_nats(maps[:, :, None, None])[:, 0, 0, 0]
    density = maps.gather(1, bins) / (edges[bins + 1] - edges[bins]) * truth_m[:, None]
    nll = -density[:, 0].clamp_min(MIN_DENSITY).log()
    return entropy, variance.sqrt() / divisor_m, widths_m / divisor_m[:, None], nll, (2 * below - 1).abs()


def _quantiles_m(cdf: Tensor, edges: Tensor, levels: Tensor) -> Tensor:
    """Return quantiles (P, L) in metres at levels (P, L), for CDFs (P, K + 1) at the edges."""
    bins = torch.searchsorted(cdf[:, 1:].contiguous(), levels).clamp_(max=cdf.shape[1] - 2)
    before = cdf.gather(1, bins)
    mass = (cdf.gather(1, bins + 1) - before).clamp_min(torch.finfo(torch.float64).tiny)
    left = edges.take(bins)  # faster than edges[bins]
    return left + ((levels - before) / mass).clamp(0, 1) * (edges.take(bins + 1) - left)
