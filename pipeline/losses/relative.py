"""Losses that know no scale and no shift: for relative teachers, and for students that are to be relative.

As MiDaS has them (Ranftl et al. 2020, arXiv 1907.01341, equations 5, 6 and 11), on disparity, or on depth where the
teacher is relative in depth.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..common.distributed import all_sum
from ..depth.relative import in_own_space
from .blockwise import FusedLoss, fused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .base import LossSettings, Maps

GRADIENT_WEIGHT = 0.5
SCALES = 4
LEAST_DEVIATION = 1e-6
"""Of an image's disparity: what is flatter has no shape to compare, and is not blown up."""


class ScaleShiftInvariantLoss(FusedLoss):
    """Mean |s - t|, both without their median and divided by their mean deviation from it, image by image.

    With `gradients`, 0.5 times the gradients of s - t are added, along rows and columns at four scales, each a half of
    the one before: edges are to lie where the teacher's lie. A DPM of the teacher is not used.

    Terms: "loss", "ssi", and perhaps "gradient".
    """

    def __init__(self, bin_edges_m: Tensor | Sequence[float], *, gradients: bool = False, skip_rows: int = 0) -> None:
        super().__init__(bin_edges_m, skip_rows)
        self.gradients = gradients

    def _terms(
        self,
        logits: Tensor,
        target_depth_m: Tensor,
        target_dpm: Maps | None,  # noqa: ARG002 - one call for every loss
    ) -> dict[str, Tensor]:
        student_m = fused(logits, self.bin_edges_m, kernel=self.kernel).depth_m
        depth_m, target_m, valid = self._depths(student_m, target_depth_m)
        student, teacher = (_without_scale(in_own_space(one, self.depth_space), valid) for one in (depth_m, target_m))
        off = torch.where(valid, student - teacher, 0.0)
        total, count = all_sum(off.abs().sum(), valid.sum())
        terms = {"ssi": total / count.clamp_min(1)}
        loss = terms["ssi"]
        if self.gradients:
            terms["gradient"] = _gradients(off, valid)
            loss = loss + GRADIENT_WEIGHT * terms["gradient"]
        return {"loss": loss, **terms}


def _without_scale(values: Tensor, valid: Tensor) -> Tensor:
    """Values (B, 1, H, W) without their median, by their mean deviation from it, both over an image's valid pixels."""
    known = values.masked_fill(~valid, torch.nan).flatten(1)
    middle = known.nanmedian(dim=1).values.nan_to_num().view(-1, 1, 1, 1)
    around = torch.where(valid, values - middle, 0.0)
    counts = valid.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
    deviation = around.abs().sum(dim=(1, 2, 3), keepdim=True) / counts
    return around / deviation.clamp_min(LEAST_DEVIATION)


def _gradients(off: Tensor, valid: Tensor) -> Tensor:
    """Sum over the scales of mean |d/dx| + |d/dy|, over pairs of valid pixels."""
    scales = []
    for scale in range(SCALES):
        step = 2**scale
        coarse, known = off[..., ::step, ::step], valid[..., ::step, ::step]
        down = (coarse[..., 1:, :] - coarse[..., :-1, :]).abs() * (known[..., 1:, :] & known[..., :-1, :])
        right = (coarse[..., 1:] - coarse[..., :-1]).abs() * (known[..., 1:] & known[..., :-1])
        total, count = all_sum(down.sum() + right.sum(), known.sum())
        scales.append(total / count.clamp_min(1))
    return torch.stack(scales).sum()


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], settings: LossSettings) -> ScaleShiftInvariantLoss:
    """Build `ssi` or `ssi+grad`. See `registry.build_loss`."""
    return ScaleShiftInvariantLoss(bin_edges_m, gradients=name == "ssi+grad", skip_rows=settings.skip_rows)
