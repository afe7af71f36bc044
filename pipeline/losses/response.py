"""Response losses, the paper's baselines on depth alone: SSIM, MSE, SI and their sums.

Shape legend: B batch, K bins, H W pixels of the target, h w of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..depth import readout as readouts
from ..errors import PipelineError
from .blockwise import Fused, FusedLoss, fused
from .means import mean_where, scale_invariant
from .ssim import ssim_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .base import LossSettings, Maps

SSIM_WEIGHT = 1.5
"""Weight of SSIM in sums with SI or MSE."""


class ResponseLoss(FusedLoss):
    """Loss on depth alone.

    `ssim`: 1 - mean SSIM. `mse`: mean squared error. `si`: sqrt(var(g) + 0.15 mean(g)^2) with
    g = ln(d + 1e-3) - ln(t + 1e-3) over all valid pixels of the batch, with the unbiased variance.
    `ssim+si` and `ssim+mse` weigh SSIM by 1.5. The teacher's map is not used.

    Terms: "loss", and its parts among "ssim_loss", "mse_m2", "si".

    Source: released `si_loss.py` and `ssim_si_loss.py`.
    """

    def __init__(
        self,
        bin_edges_m: Tensor | Sequence[float],
        kind: str = "ssim",
        skip_rows: int = 0,
        *,
        readout: str = readouts.DEFAULT,
    ) -> None:
        super().__init__(bin_edges_m, skip_rows, readout=readout)
        kinds = ("ssim", "mse", "si", "ssim+si", "ssim+mse")
        if kind not in kinds:
            raise PipelineError(f"kind {kind!r}: expected one of {', '.join(kinds)}")
        self.kind = kind

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
        names = self.kind.split("+")
        parts: dict[str, Tensor] = {}
        if "ssim" in names:
            parts["ssim_loss"] = ssim_loss(depth_m, target_m, valid, weights)
        if "mse" in names:
            parts["mse_m2"] = mean_where(valid, (depth_m - target_m).square(), weights)
        if "si" in names:
            parts["si"] = scale_invariant(depth_m, target_m, valid, weights)
        ssim_weight = 1.0 if self.kind == "ssim" else SSIM_WEIGHT
        weighted = [part * (ssim_weight if name == "ssim_loss" else 1) for name, part in parts.items()]
        return {"loss": torch.stack(weighted).sum(), **parts}


def ssim_loss(
    depth_m: Tensor, target_m: Tensor, valid: Tensor, weights: Tensor | None = None, *, released: bool = False
) -> Tensor:
    """Return 1 - mean SSIM over valid pixels of depth (B, 1, H, W) in metres; `released` as in `ssim_map`.

    Weights apply to the mean alone: the window of a pixel compares its neighbors whatever their weight.
    """
    return mean_where(valid, 1 - ssim_map(depth_m, target_m, released=released), weights)


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], settings: LossSettings) -> ResponseLoss:
    """Build a `ResponseLoss`. See `registry.build_loss`."""
    return ResponseLoss(bin_edges_m, name, settings.skip_rows, readout=settings.readout)
