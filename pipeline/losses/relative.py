"""Scale- and shift-invariant losses, for relative teachers and students.

They compare disparity, or depth if the teacher is relative in depth. Source: MiDaS (Ranftl et al. 2020,
arXiv 1907.01341), equations 5, 6 and 11.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..depth import readout as readouts
from ..depth.relative import in_own_space
from .blockwise import Fused, FusedLoss, fused
from .gradients import multiscale_gradients
from .means import mean_where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .base import LossSettings, Maps

GRADIENT_WEIGHT = 0.5
MIN_DEVIATION = 1e-6
"""Smallest deviation to divide by, so that noise of a flat image is not amplified."""


class ScaleShiftInvariantLoss(FusedLoss):
    """Mean |s - t|, with s and t normalized in each image: minus the median, divided by the mean absolute deviation.

    `gradients` adds 0.5 times the absolute gradients of s - t along rows and columns, at four scales that each halve
    the resolution, which aligns edges. The teacher's map is not used.

    Terms: "loss", "ssi", and "gradient" if enabled.
    """

    def __init__(
        self,
        bin_edges_m: Tensor | Sequence[float],
        *,
        gradients: bool = False,
        skip_rows: int = 0,
        readout: str = readouts.DEFAULT,
    ) -> None:
        super().__init__(bin_edges_m, skip_rows, readout=readout)
        self.gradients = gradients

    def _pixels(
        self,
        logits: Tensor,
        target_depth_m: Tensor,  # noqa: ARG002 - common signature
        target_dpm: Maps | None,  # noqa: ARG002 - as above
    ) -> Fused:
        return fused(logits, self.bin_edges_m, kernel=self.kernel, readout=self.readout)

    def _means(self, pixels: Fused, target_depth_m: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
        depth_m, target_m, valid = self.depths(pixels.depth_m, target_depth_m)
        weights = self._kept_rows(weights)
        difference = self._difference(depth_m, target_m, valid, weights)
        terms = {"ssi": mean_where(valid, difference.abs(), weights)}
        loss = terms["ssi"]
        if self.gradients:
            terms["gradient"] = multiscale_gradients(difference, valid, weights)
            loss = loss + GRADIENT_WEIGHT * terms["gradient"]
        return {"loss": loss, **terms}

    def _errors(self, depth_m: Tensor, target_m: Tensor, valid: Tensor) -> Tensor:
        """Return |s - t|: the logarithm of depth has no meaning if a shift is free."""
        return self._difference(depth_m, target_m, valid, None).abs()

    def _difference(self, depth_m: Tensor, target_m: Tensor, valid: Tensor, weights: Tensor | None) -> Tensor:
        """Return s - t, 0 at invalid pixels."""
        student, teacher = (
            _normalized(in_own_space(depth, self.depth_space), valid, weights) for depth in (depth_m, target_m)
        )
        return torch.where(valid, student - teacher, 0.0)


def _normalized(values: Tensor, valid: Tensor, weights: Tensor | None) -> Tensor:
    """Return (values - median) / mean absolute deviation of values (B, 1, H, W), over the valid pixels of an image.

    With weights, both are weighted.
    """
    if weights is None:
        masked = values.masked_fill(~valid, torch.nan).flatten(1)
        median = masked.nanmedian(dim=1).values.nan_to_num().view(-1, 1, 1, 1)
        centered = torch.where(valid, values - median, 0.0)
        counts = valid.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
        deviation = centered.abs().sum(dim=(1, 2, 3), keepdim=True) / counts
    else:
        weights = torch.where(valid, weights, 0.0)
        centered = torch.where(valid, values - _weighted_median(values, weights), 0.0)
        mass = weights.sum(dim=(1, 2, 3), keepdim=True)
        deviation = (weights * centered.abs()).sum(dim=(1, 2, 3), keepdim=True) / torch.where(mass > 0, mass, 1.0)
    return centered / deviation.clamp_min(MIN_DEVIATION)


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Return the smallest value (B, 1, 1, 1) of an image such that it and those below have half of the weight.

    With equal weights it is the lower of two medians, as torch's. Values of weight 0 do not count.
    """
    flat, order = values.masked_fill(weights == 0, math.inf).flatten(1).sort(dim=1)
    # Float32 sums of a million weights would lose pixels
    sums = weights.flatten(1).gather(1, order).double().cumsum(dim=1)
    below = (sums < sums[:, -1:] / 2).sum(dim=1, keepdim=True)
    return flat.gather(1, below).nan_to_num(0.0, 0.0).view(-1, 1, 1, 1)


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], settings: LossSettings) -> ScaleShiftInvariantLoss:
    """Build `ssi` or `ssi+grad`. See `registry.build_loss`."""
    return ScaleShiftInvariantLoss(
        bin_edges_m, gradients=name == "ssi+grad", skip_rows=settings.skip_rows, readout=settings.readout
    )
