"""Depth bins: their text form, edges and centers.

Shape legend: K bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PipelineError

SPACINGS = ("linear", "log", "inverse")
PRESETS = {"kitti": "linear:257:0.001:80", "nyu": "linear:49:0.001:10"}
_MAX_BINS = 4096  # a map of 4096 bins over 352x1216 pixels is 7 GB: more is a typing error


@dataclass(frozen=True)
class Bins:
    """Bins of depth, written `spacing:count:lo:hi`; lo and hi in metres. Raises PipelineError for an invalid field."""

    spacing: str
    count: int
    lo: float
    hi: float

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise PipelineError(f"bin spacing {self.spacing!r}: expected one of {', '.join(SPACINGS)}")
        if not 2 <= self.count <= _MAX_BINS:
            raise PipelineError(f"{self.count} bins: expected 2 to {_MAX_BINS}")
        if not (math.isfinite(self.lo) and math.isfinite(self.hi) and self.lo < self.hi):
            raise PipelineError(
                f"bin range {self.lo:g} to {self.hi:g} m: expected two finite depths in ascending order"
            )
        if self.lo < 0 or (self.lo == 0 and self.spacing != "linear"):
            least = "at least 0" if self.spacing == "linear" else "more than 0"
            raise PipelineError(f"{self.spacing} bins from {self.lo:g} m: the first edge must be {least}")

    def __str__(self) -> str:
        return f"{self.spacing}:{self.count}:{_shortest(self.lo)}:{_shortest(self.hi)}"

    def edges(self) -> Tensor:
        """Return the edges in metres, (K + 1,) float64, ascending."""
        return bin_edges(self.count, self.lo, self.hi, self.spacing)


def _shortest(value: float) -> str:
    """Return the shortest text that parses to the same number, without a trailing `.0`."""
    return repr(float(value)).removesuffix(".0")


def parse_bins(text: str) -> Bins:
    """Parse `SPACING:COUNT:LO:HI` (metres) or the name of a preset. `str()` of the result gives the text back.

    Raises PipelineError for a text in another form or for bins out of range.
    """
    fields = PRESETS.get(text, text).split(":")
    try:
        spacing, count_text, lo_text, hi_text = fields
        count, lo, hi = int(count_text), float(lo_text), float(hi_text)
    except ValueError:
        form = f"SPACING:COUNT:LO:HI, such as log:128:0.1:100, or one of {', '.join(PRESETS)}"
        raise PipelineError(f"bins {text!r}: expected {form}") from None
    return Bins(spacing, count, lo, hi)


def bin_edges(count: int, lo: float, hi: float, spacing: str = "linear") -> Tensor:
    """Return the edges of `count` bins from `lo` to `hi` metres: (K + 1,) float64, ascending, with exact ends.

    Bins are of equal width (`linear`, as `linspace` in the released code), equal ratio (`log`) or equal width in
    1 / depth (`inverse`). Raises PipelineError for an unknown spacing, or a count or range out of bounds.
    """
    Bins(spacing, count, lo, hi)  # checks its arguments
    if spacing == "linear":
        return torch.linspace(lo, hi, count + 1, dtype=torch.float64)
    if spacing == "log":
        edges = torch.linspace(math.log(lo), math.log(hi), count + 1, dtype=torch.float64).exp()
    else:
        edges = torch.linspace(1 / lo, 1 / hi, count + 1, dtype=torch.float64).reciprocal()
    edges[0], edges[-1] = lo, hi
    return edges


def bin_centers(bin_edges_m: Tensor) -> Tensor:
    """Return the midpoints (K,) of edges (K + 1,), in metres."""
    return (bin_edges_m[:-1] + bin_edges_m[1:]) / 2
