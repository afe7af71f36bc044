"""Means over the valid pixels of all ranks, with or without weights.

Shape legend: B batch, H W pixels of the target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.distributed import all_sum

SI_MEAN_WEIGHT = 0.15
SI_EPSILON_M = 1e-3
MIN_FREEDOM = 1e-6
"""Smallest degrees of freedom of a weighted variance, as a fraction of the sum of weights: one pixel has none."""


def mean_where(valid: Tensor, values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over valid pixels, with weights of at least 0; 0, differentiable, if there are none."""
    if weights is None:
        total, count = all_sum(torch.where(valid, values, 0.0).sum(), valid.sum())
        return total / count.clamp_min(1)
    weights = torch.where(valid, weights, 0.0)
    total, mass = all_sum((weights * torch.where(valid, values, 0.0)).sum(), weights.sum())
    return total / torch.where(mass > 0, mass, 1.0)


def scale_invariant(depth_m: Tensor, target_m: Tensor, valid: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return sqrt(var(g) + 0.15 mean(g)^2) over valid pixels, g being the log ratio; 0, differentiable, if g is 0.

    The variance is the unbiased one; that with weights w has sum w - sum w^2 / sum w degrees of freedom.
    """
    log_ratio = torch.log(depth_m + SI_EPSILON_M) - torch.log(target_m + SI_EPSILON_M)
    mean = mean_where(valid, log_ratio, weights)
    if weights is None:
        squares, count = all_sum(torch.where(valid, (log_ratio - mean).square(), 0.0).sum(), valid.sum())
        variance = squares / (count - 1).clamp_min(1)
    else:
        weights = torch.where(valid, weights, 0.0)
        squares, mass, mass2 = all_sum(
            (weights * torch.where(valid, (log_ratio - mean).square(), 0.0)).sum(),
            weights.sum(),
            weights.square().sum(),
        )
        mass = torch.where(mass > 0, mass, 1.0)
        variance = squares / (mass - mass2 / mass).clamp_min(MIN_FREEDOM * mass)
    inner = variance + SI_MEAN_WEIGHT * mean.square()
    # The gradient of a root is infinite at 0
    return torch.where(inner > 0, inner, 1.0).sqrt() * (inner > 0)
