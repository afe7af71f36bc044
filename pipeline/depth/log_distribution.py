"""Normal and Laplace distributions of the logarithm of depth: a map described by two numbers.

A network with such a head gives, for each pixel, the location and the logarithm of the scale of the distribution of
ln depth. Geometric mean and median are then exp(location).

Shape legend: B batch, K bins, H W pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = ("gaussian", "laplace")
OUTPUTS = 2
START_LOG_SCALE = -1.0
"""Log scale of an output of 0: a relative error of e^-1 = 37 %."""
LOG_SCALE_RANGE = (-6.0, 1.0)
"""Scales of ln depth from 0.25 % to a factor of 15. A likelihood without a lower limit grows forever on flat truth."""
MAX_LAPLACE_MEAN_SCALE = 0.9
"""Largest scale to read a mean with: that of exp(Laplace) is infinite from a scale of 1 on."""
_MIN_NEAR = 1e-6


class LogDistribution(NamedTuple):
    """Distribution of ln depth at each pixel."""

    family: str
    location: Tensor
    """(B, 1, H, W) median of ln depth"""
    log_scale: Tensor
    """(B, 1, H, W) ln of the standard deviation (gaussian) or of the mean absolute deviation (laplace)"""

    def nll_nats(self, depth_m: Tensor) -> Tensor:
        """Return -ln of the density of ln depth at depths (B, 1, H, W) in metres."""
        deviation = (depth_m.log() - self.location) * (-self.log_scale).exp()
        if self.family == "gaussian":
            return deviation.square() / 2 + self.log_scale + math.log(2 * math.pi) / 2
        return deviation.abs() + self.log_scale + math.log(2)

    def depth_m(self, readout: str, range_m: tuple[float, float]) -> Tensor:
        """Return depth (B, 1, H, W) by one of `readout.READOUTS`, clamped to the range in metres."""
        scale = self.log_scale.exp()
        if self.family == "gaussian":
            shift = {"mean": scale.square() / 2, "absrel": -scale.square()}.get(readout)
        else:
            scale = scale.clamp(max=MAX_LAPLACE_MEAN_SCALE)
            # Of the density times 1 / depth, a fraction of (1 + b) / 2 lies left of the location
            absrel = -scale / (1 - scale) * torch.log1p(scale)
            shift = {"mean": -torch.log1p(-scale.square()), "absrel": absrel}.get(readout)
        location = self.location if shift is None else self.location + shift
        return location.exp().clamp(*range_m)

    def maps(self, bin_edges_m: Tensor) -> Tensor:
        """Return the mass (B, K, H, W) in each bin; the end bins contain what lies beyond the range."""
        edges = bin_edges_m[1:-1].to(self.location).clamp_min(_MIN_NEAR).log().view(1, -1, 1, 1)
        deviation = (edges - self.location) * (-self.log_scale).exp()
        if self.family == "gaussian":
            inner = (1 + torch.erf(deviation / math.sqrt(2))) / 2  # ONNX has no ndtr
        else:
            half = (-deviation.abs()).exp() / 2
            inner = torch.where(deviation < 0, half, 1 - half)
        zeros = torch.zeros_like(self.location)
        return torch.cat([zeros, inner, zeros + 1], dim=1).diff(dim=1)


def log_distribution(outputs: Tensor, family: str, farthest_m: float) -> LogDistribution:
    """Return the distribution that a network's outputs (B, 2, H, W) describe.

    Outputs of 0 mean a tenth of the largest depth, -1 and 1 a hundredth and the largest depth. Raises OptionError for
    an unknown family.
    """
    if family not in FAMILIES:
        raise OptionError("head", family, f"one of {', '.join(FAMILIES)}")
    location = math.log(farthest_m / 10) + math.log(10) * outputs[:, :1]
    log_scale = (outputs[:, 1:] + START_LOG_SCALE).clamp(*LOG_SCALE_RANGE)
    return LogDistribution(family, location, log_scale)
