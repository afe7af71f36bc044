"""Target maps, computed for a block of pixels at a time, so that full-size maps are never in memory.

Shape legend: B batch, K bins, M planes of a sparse map, h w pixels of the logits, P = h w, n pixels of a block, W bins
of a window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth.dpm import gaussian_mass, gaussian_means

if TYPE_CHECKING:
    from .base import StoredMaps

REACH_SIGMAS = {torch.float32: 6.0, torch.float64: 9.0}
"""Sigmas from its mean at which a Gaussian is cut off. The mass beyond is 2e-9 and 2e-19, below the precision."""
MAX_WINDOW_FRACTION = 0.5
"""Windows of more than this fraction of the bins cost more to gather than they save."""


class Block(NamedTuple):
    """Maps of n pixels."""

    maps: Tensor
    """(W, n) probabilities of the bins in each pixel's window; zeros where there is no map"""
    bins: Tensor | None
    """(W, n) int64 indices of these bins, unique in each pixel; None if W is K"""


class GaussianTarget:
    """Gaussian maps from depth, computed only in a window of bins around the mean.

    Args:
        depth_m: (B, 1, h, w) float32 or float64 metres; NaN is an invalid pixel.
        bin_edges_m: (K + 1,) ascending.
        sigma: standard deviation, in metres or, with `in_bins`, in bins.
        in_bins: whether the map is that of `dpm.bin_gaussian_dpm`.
        centered: as in `dpm.gaussian_dpm`.

    Raises PipelineError for an invalid shape or sigma.
    """

    def __init__(self, depth_m: Tensor, bin_edges_m: Tensor, sigma: float, *, in_bins: bool, centered: bool) -> None:
        mean, axis = gaussian_means(depth_m, bin_edges_m, sigma, in_bins=in_bins, centered=centered)
        self.sigma = sigma
        self.mean = mean.flatten(2)
        self.edges = axis.to(mean.device, mean.dtype, non_blocking=True)
        self.ends = (float(axis[0]), float(axis[-1]))
        self.reach = REACH_SIGMAS[mean.dtype] * sigma
        self.bin_count = len(axis) - 1
        self.width = _window_width(axis, self.reach)
        if self.width > MAX_WINDOW_FRACTION * self.bin_count:
            self.width = self.bin_count
        self.steps = torch.arange(self.width + 1, device=mean.device)[:, None]

    def block(self, image: int, begin: int, end: int) -> Block:
        """Return the maps of pixels `begin` to `end` of an image of the batch."""
        mean = self.mean[image, :, begin:end]
        nearest = mean.clamp(*self.ends).nan_to_num(self.ends[0])
        if self.width == self.bin_count:
            edges, bins = self.edges[:, None], None
        else:
            first = torch.searchsorted(self.edges, nearest - self.reach).sub_(1)
            bins = first.clamp_(0, self.bin_count - self.width) + self.steps
            edges, bins = self.edges[bins], bins[:-1]
        # Bins further out get zero width: tails that underflow (denormals) take a CPU ten times as long.
        edges = edges.clamp(nearest - self.reach, nearest + self.reach)
        mass = gaussian_mass(mean[:, None, None], edges[None, :, None], self.ends, self.sigma)
        return Block(mass[0, :, 0], bins)


def _window_width(edges: Tensor, reach: float) -> int:
    """Return the largest number of bins that an interval of twice the reach overlaps, plus one for rounding."""
    # The worst interval begins just below an edge: it overlaps the bin before, and the most bins after
    last = torch.searchsorted(edges, edges[1:] + 2 * reach, right=True).sub_(1).clamp_(max=len(edges) - 2)
    most = int((last - torch.arange(len(edges) - 1)).max()) + 2
    return min(most, len(edges) - 1)


class GivenTarget:
    """Given maps (B, K, h, w), or of another size and resized by nearest neighbor.

    Pixels whose map contains NaN or is all zeros have no map.
    """

    def __init__(self, maps: Tensor, size: torch.Size, dtype: torch.dtype) -> None:
        self.maps, self.dtype = maps.detach().flatten(2), dtype
        self.nearest = None
        if maps.shape[2:] != size:
            indices = torch.arange(maps.shape[2] * maps.shape[3], dtype=torch.float64, device=maps.device)
            indices = F.interpolate(indices.view(1, 1, *maps.shape[2:]), size, mode="nearest-exact")
            self.nearest = indices.flatten().long()

    def block(self, image: int, begin: int, end: int) -> Block:
        """Return the maps of pixels `begin` to `end` of an image of the batch."""
        image_maps = self.maps[image]
        maps = image_maps[:, begin:end] if self.nearest is None else image_maps[:, self.nearest[begin:end]]
        maps = maps.to(self.dtype)
        mass = maps.sum(dim=0)
        valid = mass.isfinite() & (mass > 0)
        return Block(maps if bool(valid.all()) else maps.where(valid, 0.0), None)


class StoredTarget:
    """Sparse maps of a store, decoded a block at a time. Same computation as `store.sparse.decode_sparse`."""

    def __init__(self, stored: StoredMaps, dtype: torch.dtype) -> None:
        self.stored, self.table = stored, stored.table.to(dtype)

    def block(self, image: int, begin: int, end: int) -> Block:
        """Return the maps of pixels `begin` to `end` of an image of the batch."""
        bins = self.stored.bins
        gap, weight = (codes[image].flatten(1)[:, begin:end] for codes in (self.stored.gap, self.stored.weight))
        present = gap.bool()  # torch has no comparison for uint16
        # Unused planes write to an extra row, which is cut off
        indices = torch.where(present, _running_sum(gap) - 1, bins)
        count = present.sum(0)
        rest = self.table[self.stored.tail[image].flatten()[begin:end].long()] / (bins - count).clamp(min=1)
        dense = rest.expand(bins + 1, -1).clone()
        dense.scatter_(0, indices, self.table.expand(len(weight), -1).gather(1, weight.long()))
        maps = dense[:bins] * (count > 0)
        return Block(maps / maps.sum(0).clamp(min=torch.finfo(maps.dtype).tiny), None)


def _running_sum(rows: Tensor) -> Tensor:
    """Return `rows.cumsum(0)` in int64, ten times faster on a CPU if rows are a power of two apart in memory."""
    height, width = rows.shape
    padded = torch.empty(height, width + 8, dtype=torch.int64, device=rows.device)[:, :width]  # one more cache line
    return padded.copy_(rows).cumsum_(0)


AnyTarget: TypeAlias = GaussianTarget | GivenTarget | StoredTarget
