"""Likelihood of ground truth under a depth probability map, to train teachers.

A module without the distillation losses: dvc.yaml does not retrain teachers when those change.

Shape legend: B batch, K bins, H W pixels of the target, h w of the logits, P valid pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..depth.bins import bin_centers
from ..depth.readout import read_depth
from .base import DepthLoss, LossSettings, Maps, is_valid, widened
from .means import mean_where, scale_invariant

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Pixels(NamedTuple):
    depth_m: Tensor
    """(B, 1, h, w)"""
    log_maps: Tensor
    """(B, K, h, w) ln of the student's maps"""


class LikelihoodLoss(DepthLoss):
    """Mean -ln p(truth), plus the scale-invariant log error of the depth that `readout` reads.

    The truth is split between the two bins with the nearest centers, so that the mean of the target is the truth. The
    width of the map is learned: wide where depth is ambiguous, with two peaks at edges. Every valid pixel of the target
    is used, at the logit that it falls on, so no point of a sparse truth is lost.

    Terms: "loss", "nll_nats", "si".
    """

    def _pixels(
        self,
        logits: Tensor,
        target_depth_m: Tensor,  # noqa: ARG002 - common signature
        target_dpm: Maps | None,
    ) -> _Pixels:
        assert target_dpm is None, "ground truth is one depth, not a distribution"
        log_student = torch.log_softmax(widened(logits), dim=1)
        return _Pixels(read_depth(log_student.exp(), self.bin_edges_m, self.readout), log_student)

    def _means(self, pixels: _Pixels, target_depth_m: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
        log_student = pixels.log_maps
        target_m = target_depth_m[:, 0, self.skip_rows :]
        batch, row, column = is_valid(target_m).nonzero(as_tuple=True)
        truth_m = target_m[batch, row, column]
        kept = self._kept_rows(weights)
        truth_weights = None if kept is None else kept[batch, 0, row, column]
        centers_m = bin_centers(self.bin_edges_m).to(truth_m)
        upper = torch.searchsorted(centers_m, truth_m).clamp(1, len(centers_m) - 1)
        fraction = ((truth_m - centers_m[upper - 1]) / (centers_m[upper] - centers_m[upper - 1])).clamp(0, 1)
        (height, width), (rows, columns) = log_student.shape[2:], target_depth_m.shape[2:]
        row = (row + self.skip_rows) * height // rows
        column = column * width // columns
        # Flat index: the gradient of gather adds up pixels that fall on one logit in a fixed order; that of indexing
        # with four tensors does not.
        index = ((batch * len(centers_m) + upper) * height + row) * width + column
        flat = log_student.reshape(-1)
        low, high = flat.gather(0, index - height * width), flat.gather(0, index)
        log_p = low + fraction * (high - low)
        nll_nats = -mean_where(torch.ones_like(log_p, dtype=torch.bool), log_p, truth_weights)
        si = scale_invariant(*self.depths(pixels.depth_m, target_depth_m), kept)
        return {"loss": nll_nats + si, "nll_nats": nll_nats, "si": si}


def build_loss(
    name: str,  # noqa: ARG001 - common signature
    bin_edges_m: Tensor | Sequence[float],
    settings: LossSettings,
) -> LikelihoodLoss:
    """Build `nll`. See `registry.build_loss`."""
    return LikelihoodLoss(bin_edges_m, settings.skip_rows, readout=settings.readout)
