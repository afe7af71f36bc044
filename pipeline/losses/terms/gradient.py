"""Term `gradient`: edges of ln depth at four scales, as MegaDepth (arXiv 1804.00607, equation 3) and MiDaS have it.

Shape legend: B batch, H W pixels of the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..base import log_depth
from ..gradients import multiscale_gradients
from ..objective import LossTerm

if TYPE_CHECKING:
    from torch import Tensor

    from ..base import DepthLoss
    from ..objective import Step


class GradientTerm(LossTerm):
    """Sum over four scales of mean(|dx r| + |dy r|), r = ln D - ln T, between neighbors that are both valid."""

    def value(self, step: Step) -> Tensor:
        """Return the unweighted scalar."""
        depth_m, target_m, valid = step.depths
        difference = torch.where(valid, log_depth(depth_m) - log_depth(target_m), 0.0)
        return multiscale_gradients(difference, valid)


def build_term(value: float, loss: DepthLoss) -> GradientTerm:  # noqa: ARG001 - common signature
    """Build the term with the weight `value`. See `registry.build_terms`."""
    return GradientTerm(value)
