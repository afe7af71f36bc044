"""Term `texture`: depth should not change with texture and light.

Each image is split into reflectance and illumination (Retinex) with a guided filter (He et al. 2013), both are varied,
and the student's depth of the varied image is compared with that of the image. The idea is that of Scent-Depth
(arXiv 2410.06982); the formulas and constants are ours.

Shape legend: B batch, H W pixels of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import log_depth
from ..means import mean_where
from ..objective import LossTerm

if TYPE_CHECKING:
    from ..base import DepthLoss
    from ..objective import Step

RADIUS_PX = 15
"""Of the windows of the guided filter: they are 31x31."""
EDGE = 1e-3
"""Variance of brightness from which on the guided filter keeps an edge."""
EPSILON = 1e-3
EXPONENTS = (0.6, 1.6)
MAX_BLUR_PX = 1.5
BLUR_REACH = 4
MAX_NOISE = 0.05


class TextureTerm(LossTerm):
    """Mean |ln D(I) - ln D(jittered I)| over all pixels; D(I) is a fixed target, without gradient."""

    def value(self, step: Step) -> Tensor:
        """Return the unweighted scalar."""
        with torch.no_grad():
            jittered = retinex_jitter(step.images)
        difference = log_depth(step.depth_m.detach()) - log_depth(step.predict(jittered))
        return mean_where(torch.ones_like(difference, dtype=torch.bool), difference.abs())


def retinex_jitter(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in 0..1 with other texture and light.

    L is the illumination, R = I / (L + 0.001) the reflectance; the result is R^g L^h, with g and h uniform in 0.6..1.6,
    then blurred by up to 1.5 px and with noise of a standard deviation of up to 0.05. The random numbers of each image
    are torch's, of the device.
    """
    light = illumination(images)
    draws = torch.rand(4, len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    low, high = EXPONENTS
    g, h = low + (high - low) * draws[:2]
    varied = (images / (light + EPSILON)) ** g * light**h
    blurred = _blurred(varied.clamp_(0, 1), MAX_BLUR_PX * draws[2])
    return (blurred + MAX_NOISE * draws[3] * torch.randn_like(blurred)).clamp_(0, 1)


def illumination(images: Tensor) -> Tensor:
    """Return the illumination (B, 1, H, W): the largest channel, smoothed by the guided filter with itself as guide."""
    brightness = images.amax(dim=1, keepdim=True)
    means = _box_mean(torch.cat([brightness, brightness.square()], dim=1))
    mean, mean_square = means[:, :1], means[:, 1:]
    variance = (mean_square - mean.square()).clamp_min(0)
    slope = variance / (variance + EDGE)
    offset = mean - slope * mean
    means = _box_mean(torch.cat([slope, offset], dim=1))
    return (means[:, :1] * brightness + means[:, 1:]).clamp_min(0)


def _box_mean(maps: Tensor) -> Tensor:
    """Return the mean (B, C, H, W) of each pixel's window, without what lies outside of the image.

    Rows, then columns: 62 additions a pixel instead of 961.
    """
    for window in ((1, 2 * RADIUS_PX + 1), (2 * RADIUS_PX + 1, 1)):
        padding = (window[0] // 2, window[1] // 2)
        maps = F.avg_pool2d(maps, window, 1, padding, count_include_pad=False)
    return maps


def _blurred(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Return images (B, 3, H, W) blurred by a Gaussian of sigma (B, 1, 1, 1), with edge pixels repeated."""
    steps = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-(steps**2) / (2 * sigma_px.clamp_min(1e-3) ** 2))  # (B, 1, 1, taps)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    for dimension, padding in ((3, (BLUR_REACH, BLUR_REACH, 0, 0)), (2, (0, 0, BLUR_REACH, BLUR_REACH))):
        padded, size = F.pad(images, padding, mode="replicate"), images.shape[dimension]
        images = torch.zeros_like(images)
        for tap in range(len(steps)):
            images.addcmul_(padded.narrow(dimension, tap, size), weights[..., tap : tap + 1])
    return images


def build_term(value: float, loss: DepthLoss) -> TextureTerm:  # noqa: ARG001 - common signature
    """Build the term with the weight `value`. See `registry.build_terms`."""
    return TextureTerm(value)
