"""Scale- and shift-invariant losses, for relative teachers and students.

They compare disparity, or depth if the teacher is relative in depth. Source: MiDaS (Ranftl et al. 2020,
arXiv 1907.01341), equations 5, 6 and 11.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..common.distributed import all_sum
from ..depth import readout as readouts
from ..depth.relative import in_own_space
from .blockwise import FusedLoss, fused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .base import LossSettings, Maps

GRADIENT_WEIGHT = 0.5
SCALES = 4
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

    def _terms(
        self,
        logits: Tensor,
        target_depth_m: Tensor,
        target_dpm: Maps | None,  # noqa: ARG002 - common signature
    ) -> dict[str, Tensor]:
        student_m = fused(logits, self.bin_edges_m, kernel=self.kernel, readout=self.readout).depth_m
        depth_m, target_m, valid = self._depths(student_m, target_depth_m)
        student, teacher = (_normalized(in_own_space(depth, self.depth_space), valid) for depth in (depth_m, target_m))
        difference = torch.where(valid, student - teacher, 0.0)
        total, count = all_sum(difference.abs().sum(), valid.sum())
        terms = {"ssi": total / count.clamp_min(1)}
        loss = terms["ssi"]
        if self.gradients:
            terms["gradient"] = _gradients(difference, valid)
            loss = loss + GRADIENT_WEIGHT * terms["gradient"]
        return {"loss": loss, **terms}


def _normalized(values: Tensor, valid: Tensor) -> Tensor:
    """Return (values - median) / mean absolute deviation of values (B, 1, H, W), over the valid pixels of an image."""
    masked = values.masked_fill(~valid, torch.nan).flatten(1)
    median = masked.nanmedian(dim=1).values.nan_to_num().view(-1, 1, 1, 1)
    centered = torch.where(valid, values - median, 0.0)
    counts = valid.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
    deviation = centered.abs().sum(dim=(1, 2, 3), keepdim=True) / counts
    return centered / deviation.clamp_min(MIN_DEVIATION)


def _gradients(difference: Tensor, valid: Tensor) -> Tensor:
    """Return the sum over scales of the mean |d/dx| + |d/dy| over pairs of valid pixels."""
    scales = []
    for scale in range(SCALES):
        step = 2**scale
        coarse, coarse_valid = difference[..., ::step, ::step], valid[..., ::step, ::step]
        down = (coarse[..., 1:, :] - coarse[..., :-1, :]).abs() * (coarse_valid[..., 1:, :] & coarse_valid[..., :-1, :])
        right = (coarse[..., 1:] - coarse[..., :-1]).abs() * (coarse_valid[..., 1:] & coarse_valid[..., :-1])
        total, count = all_sum(down.sum() + right.sum(), coarse_valid.sum())
        scales.append(total / count.clamp_min(1))
    return torch.stack(scales).sum()


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], settings: LossSettings) -> ScaleShiftInvariantLoss:
    """Build `ssi` or `ssi+grad`. See `registry.build_loss`."""
    return ScaleShiftInvariantLoss(
        bin_edges_m, gradients=name == "ssi+grad", skip_rows=settings.skip_rows, readout=settings.readout
    )
