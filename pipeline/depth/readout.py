"""Readouts: how a depth probability map becomes one depth.

Each readout is the best guess under one error. Let p be the map and c the bin centers:

    mean       sum_i p_i c_i              smallest expected squared error (RMSE); the paper's
    geometric  exp(sum_i p_i ln c_i)      smallest expected squared error of ln depth (RMSE log)
    median     half of the mass below     smallest expected absolute error
    absrel     median of p_i / c_i        smallest expected |depth - truth| / truth (AbsRel)

They agree for a narrow map, and are in this order from far to near for a wide one, except that geometric mean and
median may change places.

Shape legend: B batch, K bins, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import OptionError
from .bins import bin_centers
from .dpm import expected_depth, quantile_m

if TYPE_CHECKING:
    from torch import Tensor

READOUTS = {
    "mean": "mean of the map, as in the paper",
    "geometric": "geometric mean of the map",
    "median": "median of the map",
    "absrel": "the depth with the smallest expected relative error",
}
TRAINABLE = ("mean", "geometric")
"""Readouts that a loss can use. The gradient of a median is 1 / density, infinite where a map has a gap."""
DEFAULT = "mean"


def check_readout(name: str) -> None:
    """Raise OptionError unless `name` is in READOUTS."""
    if name not in READOUTS:
        raise OptionError("readout", name, f"one of {', '.join(READOUTS)}")


def read_depth(maps: Tensor, bin_edges_m: Tensor, readout: str = DEFAULT) -> Tensor:
    """Return depth (B, 1, H, W) in metres of maps (B, K, H, W); 0 where a map is all zeros.

    Medians spread the mass of each bin evenly over it. Raises PipelineError if K is not the number of bins, and
    OptionError for an unknown readout.
    """
    check_readout(readout)
    if readout == "mean":
        return expected_depth(maps, bin_edges_m)
    centers = bin_centers(bin_edges_m).to(maps).view(1, -1, 1, 1)
    if readout == "geometric":
        depth_m = (maps * centers.log()).sum(dim=1, keepdim=True).exp()
    else:
        depth_m = quantile_m(maps if readout == "median" else maps / centers, bin_edges_m, 0.5)
    return depth_m.where((maps > 0).any(dim=1, keepdim=True), 0.0)


def levels_of(bin_edges_m: Tensor, readout: str) -> Tensor:
    """Return levels (K,): their mean under a map is the depth, or its logarithm for `geometric`.

    Raises OptionError for a readout that is not in TRAINABLE.
    """
    if readout not in TRAINABLE:
        raise OptionError("readout", readout, f"one of {', '.join(TRAINABLE)} in a loss; choose another in evaluation")
    centers = bin_centers(bin_edges_m)
    return centers.log() if readout == "geometric" else centers


def depth_of_mean(mean: Tensor, readout: str) -> Tensor:
    """Return the depth of the mean of `levels_of`, in metres."""
    return mean.exp() if readout == "geometric" else mean
