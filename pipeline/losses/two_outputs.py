"""Likelihood of depth under a normal or Laplace distribution of ln depth, for students of two outputs.

Shape legend: B batch, H W pixels of the target, h w of the outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth.log_distribution import FAMILIES, OUTPUTS, LogDistribution, log_distribution
from ..errors import OptionError, PipelineError
from .base import DepthLoss, LossSettings, Maps, is_valid
from .means import mean_where
from .response import ssim_loss
from .tiekd import SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = ("nll", "nll+ssim")
READOUT = "geometric"


class _Pixels(NamedTuple):
    """Depth, and location and log scale of the distribution of ln depth; all (B, 1, h, w)."""

    depth_m: Tensor
    location: Tensor
    log_scale: Tensor


class TwoOutputLoss(DepthLoss):
    """Negative log likelihood of depth under the student's distribution of ln depth.

    `nll`: its mean over valid pixels. `nll+ssim`: 10 (w NLL + (1 - w) (1 - mean SSIM)), the TIE-KD loss with the
    likelihood in place of the divergence of maps. The two outputs are upsampled (bilinear) to the target, so every
    valid pixel counts. SSIM compares the geometric mean, exp(location).

    Terms: "loss", "nll_nats" (of ln depth), and "ssim_loss" for `nll+ssim`.

    Args:
        bin_edges_m: (K + 1,) ascending; only the range is used.
        family: `gaussian` or `laplace`.
        kind: one of KINDS.
        weight: w, weight of the likelihood in `nll+ssim`.
        skip_rows: top rows of the target to ignore.

    Source: Nix and Weigend 1994 for the normal distribution; ours for its use on ln depth and with SSIM.
    """

    def __init__(
        self,
        bin_edges_m: Tensor | Sequence[float],
        family: str = "gaussian",
        kind: str = "nll",
        weight: float = 0.1,
        skip_rows: int = 0,
    ) -> None:
        super().__init__(bin_edges_m, skip_rows, readout=READOUT)
        if family not in FAMILIES:
            raise OptionError("head", family, f"one of {', '.join(FAMILIES)} for `loss={kind}`")
        if kind not in KINDS:
            raise PipelineError(f"`loss={kind}` does not fit `head={family}`: expected one of {', '.join(KINDS)}")
        if not 0 <= weight <= 1:
            raise OptionError("weight", weight, "a number from 0 to 1")
        self.family, self.kind, self.weight = family, kind, weight
        self.outputs = OUTPUTS

    def _pixels(
        self,
        logits: Tensor,
        target_depth_m: Tensor,  # noqa: ARG002 - common signature
        target_dpm: Maps | None,  # noqa: ARG002 - as above
    ) -> _Pixels:
        outputs = logits if logits.dtype == torch.float64 else logits.float()
        student = log_distribution(outputs, self.family, self.range_m[1])
        return _Pixels(student.depth_m(READOUT, self.range_m), student.location, student.log_scale)

    def _means(self, pixels: _Pixels, target_depth_m: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
        location, log_scale = (self._upsampled(value, target_depth_m) for value in pixels[1:])
        weights = self._kept_rows(weights)
        target_m = target_depth_m[:, :, self.skip_rows :]
        valid = is_valid(target_m)
        target_m = target_m.where(valid, 1.0).clamp(*self.range_m)
        nll_nats = mean_where(valid, LogDistribution(self.family, location, log_scale).nll_nats(target_m), weights)
        if self.kind == "nll":
            return {"loss": nll_nats, "nll_nats": nll_nats}
        ssim = ssim_loss(*self.depths(pixels.depth_m, target_depth_m), weights)
        loss = SCALE * (self.weight * nll_nats + (1 - self.weight) * ssim)
        return {"loss": loss, "nll_nats": nll_nats, "ssim_loss": ssim}

    def _upsampled(self, values: Tensor, target: Tensor) -> Tensor:
        """Resize values (B, 1, h, w) to the target, and leave the ignored rows out."""
        if values.shape[2:] != target.shape[2:]:
            values = F.interpolate(values, target.shape[2:], mode="bilinear", align_corners=False)
        return values[:, :, self.skip_rows :]


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], settings: LossSettings) -> TwoOutputLoss:
    """Build a `TwoOutputLoss`. See `registry.build_loss`."""
    return TwoOutputLoss(bin_edges_m, settings.head, name, settings.weight, settings.skip_rows)
