"""Term `trim`: the worst pixels of each image are left out of the base loss.

Shape legend: B batch, H W pixels of the target, P = H W.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..objective import Target, TargetTerm

if TYPE_CHECKING:
    from ..base import DepthLoss
    from ..objective import Step

MILLION = 10**6


class TrimTerm(TargetTerm):
    """Targets of the fraction q of an image's valid pixels with the largest error become invalid.

    The error is `DepthLoss.errors`: |ln D - ln T|; |s - t| for the losses that do not depend on scale and shift. Of n
    valid pixels whose weight is not 0, floor(q n) are left out; of equal errors, the pixel that comes first.
    """

    needs_prediction = True

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.per_million = round(fraction * MILLION)  # whole numbers: 0.29 * 100 is below 29

    def change(self, target: Target, step: Step) -> Target:
        """Return the target with NaN at the worst pixels."""
        errors = step.loss.errors(step.pixels, target.depth_m).flatten(1)
        if target.weights is not None:
            errors = errors.masked_fill(target.weights.flatten(1) == 0, math.nan)
        counts = errors.isfinite().sum(dim=1, keepdim=True)
        left_out = counts * self.per_million // MILLION
        order = errors.nan_to_num(-1.0).argsort(dim=1, descending=True, stable=True)
        is_worst = torch.arange(errors.shape[1], device=errors.device) < left_out
        worst = torch.zeros_like(is_worst).scatter(1, order, is_worst).view(target.depth_m.shape)
        return target._replace(depth_m=target.depth_m.masked_fill(worst, math.nan))


def build_term(value: float, loss: DepthLoss) -> TrimTerm:  # noqa: ARG001 - common signature
    """Build the term with the fraction `value`. See `registry.build_terms`."""
    return TrimTerm(value)
