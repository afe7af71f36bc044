"""What a student's maps are compared with, made a block of pixels at a time, so that no map exists as a whole.

Shape legend: B batch, K bins, M planes of a sparse map, h w pixels of the logits, P = h w, n pixels of a block, W bins
of a window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth.dpm import gaussian_mass, gaussian_places

if TYPE_CHECKING:
    from .base import StoredMaps

REACH_SIGMAS = {torch.float32: 6.0, torch.float64: 9.0}
"""How far from its middle a Gaussian is looked at. Beyond lies less than the type can tell from 0: 2e-9, 2e-19."""
WORTH_A_WINDOW = 0.5
"""Windows of more than this share of the bins cost more to gather than they save."""


class Block(NamedTuple):
    """Maps of n pixels."""

    maps: Tensor
    """(W, n) probability of the bins of each pixel's window; zeros where there is no map"""
    bins: Tensor | None
    """(W, n) int64 which bins these are, no bin twice in a pixel; None where W is K"""


class GaussianTarget:
    """Gaussian maps of a depth, of which only the bins within reach of the middle are ever computed.

    Args:
        depth_m: (B, 1, h, w) float32 or float64 metres; NaN is an invalid pixel.
        bin_edges_m: (K + 1,) ascending.
        sigma: standard deviation, in metres or, with `in_bins`, in bins.
        in_bins: as `dpm.bin_gaussian_dpm` has it.
        centered: as `dpm.gaussian_dpm` has it.

    Raises PipelineError for a wrong shape or sigma.
    """

    def __init__(self, depth_m: Tensor, bin_edges_m: Tensor, sigma: float, *, in_bins: bool, centered: bool) -> None:
        place, axis = gaussian_places(depth_m, bin_edges_m, sigma, in_bins=in_bins, centered=centered)
        self.sigma = sigma
        self.place = place.flatten(2)
        self.edges = axis.to(place)
        self.ends = (float(axis[0]), float(axis[-1]))
        self.reach = REACH_SIGMAS[place.dtype] * sigma
        self.bin_count = len(axis) - 1
        self.width = _window_width(axis, self.reach)
        if self.width > WORTH_A_WINDOW * self.bin_count:
            self.width = self.bin_count
        self.steps = torch.arange(self.width + 1, device=place.device)[:, None]

    def block(self, image: int, begin: int, end: int) -> Block:
        """Maps of pixels `begin` to `end` of an image of the batch."""
        place = self.place[image, :, begin:end]
        nearest = place.clamp(*self.ends).nan_to_num(self.ends[0])
        if self.width == self.bin_count:
            edges, bins = self.edges[:, None], None
        else:
            first = torch.searchsorted(self.edges, nearest - self.reach).sub_(1)
            bins = first.clamp_(0, self.bin_count - self.width) + self.steps
            edges, bins = self.edges[bins], bins[:-1]
        # Further out bins are of no width: tails that underflow take a processor ten times as long as others.
        edges = edges.clamp(nearest - self.reach, nearest + self.reach)
        mass = gaussian_mass(place[:, None, None], edges[None, :, None], self.ends, self.sigma)
        return Block(mass[0, :, 0], bins)


def _window_width(edges: Tensor, reach: float) -> int:
    """The most bins that any interval of twice the reach touches, and one for rounding."""
    # An interval that begins just below an edge touches the bin before it, and the most bins after it.
    last = torch.searchsorted(edges, edges[1:] + 2 * reach, right=True).sub_(1).clamp_(max=len(edges) - 2)
    most = int((last - torch.arange(len(edges) - 1)).max()) + 2
    return min(most, len(edges) - 1)


class GivenTarget:
    """Maps that are there, (B, K, h, w) or of another size, of which the pixel nearest to each centre is then taken.

    Pixels where a map holds a NaN, or nothing, have none.
    """

    def __init__(self, maps: Tensor, size: torch.Size, dtype: torch.dtype) -> None:
        self.maps, self.dtype = maps.detach().flatten(2), dtype
        self.nearest = None
        if maps.shape[2:] != size:
            numbers = torch.arange(maps.shape[2] * maps.shape[3], dtype=torch.float64, device=maps.device)
            numbers = F.interpolate(numbers.view(1, 1, *maps.shape[2:]), size, mode="nearest-exact")
            self.nearest = numbers.flatten().long()

    def block(self, image: int, begin: int, end: int) -> Block:
        """Maps of pixels `begin` to `end` of an image of the batch."""
        whole = self.maps[image]
        maps = whole[:, begin:end] if self.nearest is None else whole[:, self.nearest[begin:end]]
        maps = maps.to(self.dtype)
        mass = maps.sum(dim=0)
        valid = mass.isfinite() & (mass > 0)
        return Block(maps if bool(valid.all()) else maps.where(valid, 0.0), None)


class StoredTarget:
    """A store's sparse maps, spread over all bins a block at a time; mirrors `store.sparse.decode_sparse`."""

    def __init__(self, stored: StoredMaps, dtype: torch.dtype) -> None:
        self.stored, self.table = stored, stored.table.to(dtype)

    def block(self, image: int, begin: int, end: int) -> Block:
        """Maps of pixels `begin` to `end` of an image of the batch."""
        bins = self.stored.bins
        gap, weight = (one[image].flatten(1)[:, begin:end] for one in (self.stored.gap, self.stored.weight))
        present = gap.bool()  # of 16-bit steps, torch cannot tell which are above 0
        # Planes that a pixel does not use write to a row of their own, which is cut off.
        places = torch.where(present, _running_sum(gap) - 1, bins)
        count = present.sum(0)
        share = self.table[self.stored.tail[image].flatten()[begin:end].long()] / (bins - count).clamp(min=1)
        whole = share.expand(bins + 1, -1).clone()
        whole.scatter_(0, places, self.table.expand(len(weight), -1).gather(1, weight.long()))
        maps = whole[:bins] * (count > 0)
        return Block(maps / maps.sum(0).clamp(min=torch.finfo(maps.dtype).tiny), None)

    def dense(self) -> Tensor:
        """All maps (B, K, h, w), for what cannot take them block by block."""
        shape = self.stored.shape
        return torch.stack([self.block(image, 0, shape[2:].numel()).maps for image in range(shape[0])]).view(shape)


def _running_sum(rows: Tensor) -> Tensor:
    """`rows.cumsum(0)` in int64: on a CPU a tenth of the time where rows would lie a power of two apart in memory."""
    height, width = rows.shape
    apart = torch.empty(height, width + 8, dtype=torch.int64, device=rows.device)[:, :width]  # a cache line more
    return apart.copy_(rows).cumsum_(0)


AnyTarget: TypeAlias = GaussianTarget | GivenTarget | StoredTarget
