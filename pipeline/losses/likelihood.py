"""Likelihood of ground truth under a depth probability map: how a network learns maps that mean something.

It stands apart from the losses that distil, so that changing those leaves teachers that were trained with this alone.

Shape legend: B batch, K bins, H W pixels of the target, h w of the logits, P valid pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..common.distributed import all_sum
from ..depth.bins import bin_centers
from ..depth.dpm import expected_depth
from .base import DepthLoss, LossSettings, Maps, is_valid, scale_invariant, widened

if TYPE_CHECKING:
    from collections.abc import Sequence


class LikelihoodLoss(DepthLoss):
    """Mean -ln p(truth), plus the scale-invariant log error of the expected depth.

    The truth is shared by the two bins whose centres are nearest, so that its expectation is the truth itself. No
    width is prescribed: where the image leaves depth open the map is wide, and at an edge it has two peaks. Every
    valid pixel of the target counts, at the logit it falls on, so that sparse truth is used whole.

    Terms: "loss", "nll_nats", "si".
    """

    def _terms(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Maps | None) -> dict[str, Tensor]:
        assert target_dpm is None, "ground truth is one depth, not a distribution"
        log_student = torch.log_softmax(widened(logits), dim=1)
        target_m = target_depth_m[:, 0, self.skip_rows :]
        batch, row, column = is_valid(target_m).nonzero(as_tuple=True)
        truth_m = target_m[batch, row, column]
        centers_m = bin_centers(self.bin_edges_m).to(truth_m)
        upper = torch.searchsorted(centers_m, truth_m).clamp(1, len(centers_m) - 1)
        share = ((truth_m - centers_m[upper - 1]) / (centers_m[upper] - centers_m[upper - 1])).clamp(0, 1)
        (height, width), (rows, columns) = logits.shape[2:], target_depth_m.shape[2:]
        row = (row + self.skip_rows) * height // rows
        column = column * width // columns
        # Flat: its gradient is then summed in one order. That of indexing by four is summed by threads as they come,
        # and several pixels of the truth fall on one logit.
        place = ((batch * len(centers_m) + upper) * height + row) * width + column
        flat = log_student.reshape(-1)
        low, high = flat.gather(0, place - height * width), flat.gather(0, place)
        total, count = all_sum((low + share * (high - low)).sum(), is_valid(target_m).sum())
        nll_nats = -total / count.clamp_min(1)
        si = scale_invariant(*self._depths(expected_depth(log_student.exp(), self.bin_edges_m), target_depth_m))
        return {"loss": nll_nats + si, "nll_nats": nll_nats, "si": si}


def build_loss(
    name: str,  # noqa: ARG001 - one call for every module
    bin_edges_m: Tensor | Sequence[float],
    settings: LossSettings,
) -> LikelihoodLoss:
    """Build `nll`. See `registry.build_loss`."""
    return LikelihoodLoss(bin_edges_m, settings.skip_rows)
