"""Differences of neighboring pixels at four scales.

Shape legend: B batch, H W pixels of the target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.distributed import all_sum

SCALES = 4


def multiscale_gradients(difference: Tensor, valid: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the sum over scales of the mean over valid pixels of |d/dx| + |d/dy| between pairs of valid pixels.

    Scale k takes every 2^k-th row and column. Source: MiDaS (arXiv 1907.01341), equation 11.

    Args:
        difference: (B, 1, H, W), finite everywhere.
        valid: (B, 1, H, W) bool.
        weights: (B, 1, H, W), at least 0. A pair has the smaller weight of its two pixels.
    """
    scales = []
    for scale in range(SCALES):
        step = 2**scale
        coarse, coarse_valid = difference[..., ::step, ::step], valid[..., ::step, ::step]
        down = (coarse[..., 1:, :] - coarse[..., :-1, :]).abs() * (coarse_valid[..., 1:, :] & coarse_valid[..., :-1, :])
        right = (coarse[..., 1:] - coarse[..., :-1]).abs() * (coarse_valid[..., 1:] & coarse_valid[..., :-1])
        if weights is None:
            total, count = all_sum(down.sum() + right.sum(), coarse_valid.sum())
            scales.append(total / count.clamp_min(1))
        else:
            coarse_weights = torch.where(coarse_valid, weights[..., ::step, ::step], 0.0)
            down = down * torch.minimum(coarse_weights[..., 1:, :], coarse_weights[..., :-1, :])
            right = right * torch.minimum(coarse_weights[..., 1:], coarse_weights[..., :-1])
            total, mass = all_sum(down.sum() + right.sum(), coarse_weights.sum())
            scales.append(total / torch.where(mass > 0, mass, 1.0))
    return torch.stack(scales).sum()
