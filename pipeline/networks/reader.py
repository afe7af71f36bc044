"""Read the outputs of a network: as maps, and as one depth per pixel.

Shape legend: B batch, C outputs of the network, K bins, h w pixels of the outputs.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch

from ..depth import log_distribution
from ..depth.log_distribution import FAMILIES
from ..depth.readout import DEFAULT, check_readout, read_depth
from ..errors import OptionError, PipelineError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor

HEADS = {
    "dpm": "a depth probability map: one logit per bin",
    "depth": "depth alone",
    "gaussian": "a normal distribution of ln depth: two outputs",
    "laplace": "a Laplace distribution of ln depth: two outputs",
}
MAP_HEAD = "dpm"


def outputs_of(head: str, bin_count: int) -> int:
    """Return the number of outputs C of a network with K = `bin_count` bins."""
    return log_distribution.OUTPUTS if head in FAMILIES else bin_count


def default_readout(head: str) -> str:
    """Return how a head is read unless a readout is chosen: `geometric` where two outputs describe ln depth."""
    return "geometric" if head in FAMILIES else DEFAULT


def check_head_readout(head: str, readout: str) -> None:
    """Raise PipelineError for an unknown head or readout, and for one depth that would be read in another way."""
    if head not in HEADS:
        raise OptionError("head", head, f"one of {', '.join(HEADS)}")
    check_readout(readout)
    if head == "depth" and readout != DEFAULT:
        raise PipelineError(
            f"`readout={readout}` needs a distribution, but this network predicts one depth (`head=depth`): leave "
            "`readout` out"
        )


class Reader:
    """Reads the outputs of a network with a given head.

    Raises PipelineError for a head and a readout that do not fit together.
    """

    def __init__(self, bin_edges_m: Tensor, head: str = MAP_HEAD, readout: str | None = None) -> None:
        self.bin_edges_m = bin_edges_m
        """(K + 1,) float64, on the device of the outputs."""
        self.head = head
        self.readout = readout or default_readout(head)
        check_head_readout(head, self.readout)
        if self.readout in {"geometric", "absrel"} and not bin_edges_m[0] + bin_edges_m[1] > 0:
            raise PipelineError(
                f"`readout={self.readout}` needs bins of positive depth, got {bin_edges_m.tolist()[:3]}"
            )
        self.outputs = outputs_of(head, len(bin_edges_m) - 1)
        self._range_m = float(bin_edges_m[0]), float(bin_edges_m[-1])

    @classmethod
    def of(cls, config: Mapping[str, Any], bin_edges_m: Tensor, readout: str | None = None) -> Reader:
        """Return the reader of a run, from its configuration; `readout` overrides the run's."""
        return cls(bin_edges_m, str(config.get("head") or MAP_HEAD), readout or config.get("readout"))

    def maps(self, outputs: Tensor) -> Tensor:
        """Return maps (B, K, h, w), float32, of outputs (B, C, h, w)."""
        if self.head in FAMILIES:
            return self._distribution(outputs).maps(self.bin_edges_m)
        return torch.softmax(outputs.float(), dim=1)

    def depth_m(self, outputs: Tensor, maps: Tensor | None = None) -> Tensor:
        """Return depth (B, 1, h, w) in metres of outputs (B, C, h, w); `maps` are theirs, if they are known already."""
        if self.head in FAMILIES:
            return self._distribution(outputs).depth_m(self.readout, self._range_m)
        return read_depth(self.maps(outputs) if maps is None else maps, self.bin_edges_m, self.readout)

    def with_edges(self, bin_edges_m: Tensor) -> Reader:
        """Return this reader with the same edges in another tensor."""
        other = copy(self)
        other.bin_edges_m = bin_edges_m
        return other

    def _distribution(self, outputs: Tensor) -> log_distribution.LogDistribution:
        return log_distribution.log_distribution(outputs.float(), self.head, self._range_m[1])
