"""Structural similarity (SSIM) of two depth maps in metres, with zero padding.

Forward and backward work on strips of rows: about twenty float64 maps are needed, which at full size are a fifth of the
size of the logits.

Shape legend: B batch, H W pixels, R rows of a strip.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

REACH = 5
"""The window is 11x11."""
SIGMA_PX = 1.5
C1 = 0.01**2
C2 = 0.03**2
STRIP_PIXELS = 2**15
"""Pixels of a strip on a CPU: 256 KB for a float64 map. A GPU processes whole maps, to launch fewer kernels."""


def ssim_map(x: Tensor, y: Tensor, *, released: bool = False) -> Tensor:
    """Return the SSIM at every pixel of maps x and y (B, 1, H, W), in their shape and type; differentiable in x.

    11x11 Gaussian window of sigma 1.5 px, zero padding, C1 = 0.01^2 and C2 = 0.03^2. `released` takes absolute values
    of both variances and of the covariance, as the released `ssim.py` does, which rewards an inverted slope like a
    correct one.

    Sums are float64 if the device supports it: a variance is a difference of squares of up to 80^2, whose rounding in
    float32 is about C2 = 0.0009. TF32, the default of cuDNN, is worse.
    """
    similarity: Tensor = _Ssim.apply(x, y, released)  # type: ignore[no-untyped-call]  # torch has no annotation
    return similarity


class _Parts(NamedTuple):
    """Factors of SSIM = n1 n2 / (d1 d2), all (B, R, W)."""

    mu_x: Tensor
    mu_y: Tensor
    n1: Tensor
    n2: Tensor
    d1: Tensor
    d2: Tensor
    slope_variance: Tensor | float
    """derivative of the clamped or absolute variance of x: 0 where clamped, -1 where negated"""
    slope_covariance: Tensor | float


def _parts(x: Tensor, y: Tensor, *, released: bool) -> _Parts:
    """Return the factors of SSIM for padded maps (B, R + 10, W + 10)."""
    mu_x, mu_y, xx, yy, xy = _means(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    mu_xx, mu_yy, mu_xy = mu_x * mu_x, mu_y * mu_y, mu_x * mu_y
    var_x, var_y, covariance = xx.sub_(mu_xx), yy.sub_(mu_yy), xy.sub_(mu_xy)
    n1, d1 = 2 * mu_xy + C1, mu_xx + mu_yy + C1
    if released:
        variances = var_x.abs() + var_y.abs()
        return _Parts(mu_x, mu_y, n1, 2 * covariance.abs() + C2, d1, variances + C2, var_x.sign(), covariance.sign())
    variances = var_x.clamp_min(0) + var_y.clamp_min(0)  # negative only by rounding
    return _Parts(mu_x, mu_y, n1, 2 * covariance + C2, d1, variances + C2, (var_x >= 0).to(x.dtype), 1.0)


def _slopes(parts: _Parts) -> Tensor:
    """Return the derivatives (3, B, R, W) of SSIM in the window means of x, x^2 and xy."""
    below = parts.d1 * parts.d2
    of_product = 2 * parts.n1 * parts.slope_covariance / below
    similar = parts.n1 * parts.n2 / below
    of_square = -similar * parts.slope_variance / parts.d2
    of_mean = 2 * (parts.mu_y * parts.n2 / below - parts.mu_x * similar / parts.d1)
    of_mean -= parts.mu_y * of_product + 2 * parts.mu_x * of_square
    return torch.stack([of_mean, of_square, of_product])


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, released: bool) -> Tensor:  # noqa: ANN401 - autograd's shape
        similarity = torch.empty_like(x, memory_format=torch.contiguous_format)
        batch, _, height, width = x.shape
        # Saved for backward, which would otherwise recompute five of eight window means
        saved = (batch, height, width) if ctx.needs_input_grad[0] else (0, 0, 0)
        slopes = torch.empty(3, *saved, dtype=_work_type(x), device=x.device)
        for begin, end in _strips(x):
            around = (begin - REACH, end + REACH)
            parts = _parts(_rows(x[:, 0], *around), _rows(y[:, 0], *around), released=released)
            similarity[:, 0, begin:end] = parts.n1 * parts.n2 / (parts.d1 * parts.d2)
            if ctx.needs_input_grad[0]:
                slopes[:, :, begin:end] = _slopes(parts)
        ctx.save_for_backward(x, y, slopes)
        return similarity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_map: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - as above
        x, y, slopes = ctx.saved_tensors
        gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
        for begin, end in _strips(x):
            # A pixel is in the windows of rows up to 5 px away
            around = (begin - REACH, end + REACH)
            direct, twice, crossed = _means(_rows(slopes, *around) * _rows(of_map[:, 0], *around)).unbind()
            here_x, here_y = (maps[:, 0, begin:end].to(slopes.dtype) for maps in (x, y))
            gradient[:, 0, begin:end] = direct + 2 * here_x * twice + here_y * crossed
        return gradient, None, None


def _strips(maps: Tensor) -> list[tuple[int, int]]:
    """Return the first row of each strip and the row after its last."""
    batch, _, height, width = maps.shape
    rows = max(STRIP_PIXELS // max(batch * width, 1), 4 * REACH) if maps.device.type == "cpu" else max(height, 1)
    return [(begin, min(begin + rows, height)) for begin in range(0, height, rows)]


def _work_type(maps: Tensor) -> torch.dtype:
    return torch.float32 if maps.device.type == "mps" else torch.float64  # MPS has no float64


def _rows(maps: Tensor, begin: int, end: int) -> Tensor:
    """Return rows of maps (..., H, W) as (..., end - begin, W + 10), zero-padded, in the type of the sums."""
    height = maps.shape[-2]
    some = maps[..., max(begin, 0) : min(end, height), :].to(_work_type(maps))
    return F.pad(some, (REACH, REACH, max(-begin, 0), max(end - height, 0)))


def _means(maps: Tensor) -> Tensor:
    """Windowed means (..., R, W) of maps (..., R + 10, W + 10): shifted copies added up along rows, then columns.

    A tenth of the time of two products with banded matrices, and a fiftieth of that of two float64 `conv2d`.
    """
    for dimension in (-1, -2):
        count = maps.shape[dimension] - 2 * REACH
        means = maps.narrow(dimension, REACH, count) * _weights()[0]
        for step, weight in enumerate(_weights()[1:], 1):
            for begin in (REACH - step, REACH + step):
                means.add_(maps.narrow(dimension, begin, count), alpha=weight)
        maps = means
    return maps


@cache
def _weights() -> list[float]:
    """Return the weights of the window along one axis, from the center outwards."""
    taps = [math.exp(-(step**2) / (2 * SIGMA_PX**2)) for step in range(REACH + 1)]
    total = taps[0] + 2 * math.fsum(taps[1:])
    return [tap / total for tap in taps]
