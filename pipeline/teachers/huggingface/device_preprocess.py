"""Prepare a transformers network's input on a GPU, with the bits of the library's Pillow processor.

Pillow resizes bytes with integer arithmetic (fixed-point weights, rounding after each of two passes), which a GPU
repeats exactly. The steps after resizing depend only on a byte and its channel, so the processor itself gives a table
of them. `DevicePreparation.matching` compares an image of noise bit by bit before this is used.

Source of the resize: Pillow's `src/libImaging/Resample.c`.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's input.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

FRACTION_BITS = 32 - 8 - 2
"""Of Pillow's weights."""
SUPPORT = {2: 1.0, 3: 2.0}
"""Pillow's number of a filter (bilinear, bicubic) -> the radius of its kernel in pixels."""
BICUBIC_A = -0.5


class PillowResize:
    """Resizes as `PIL.Image.resize` does, for 8-bit images.

    `dims` is the order of the two passes: 3 is along rows, 2 along columns. It depends on the sizes and on Pillow's
    version.
    """

    def __init__(
        self,
        size_px: tuple[int, int],
        resized_px: tuple[int, int],
        resample: int,
        device: torch.device,
        dims: tuple[int, int] = (3, 2),
    ) -> None:
        self._passes = [
            (dim, *_weights(size_px[dim - 2], resized_px[dim - 2], resample, device))
            for dim in dims
            if size_px[dim - 2] != resized_px[dim - 2]
        ]

    def __call__(self, images: Tensor) -> Tensor:
        """Resize images (B, C, H, W) uint8 to (B, C, h, w), uint8 values as int32."""
        values = images.int()
        for dim, pixels, weights in self._passes:
            values = _resized(values, dim, pixels, weights)
        return values


def _resized(values: Tensor, dim: int, pixels: Tensor, weights: Tensor) -> Tensor:
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    total = None
    for tap_pixels, tap_weights in zip(pixels, weights, strict=True):
        product = values.index_select(dim, tap_pixels).mul_(tap_weights.view(shape))
        total = product.add_(1 << (FRACTION_BITS - 1)) if total is None else total.add_(product)
    assert total is not None
    return (total >> FRACTION_BITS).clamp_(0, 255)


def _weights(side: int, resized: int, resample: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the source pixels and fixed-point weights (taps, resized) of each resized pixel."""
    scale = side / resized
    widening = max(scale, 1.0)
    radius = SUPPORT[resample] * widening
    taps = math.ceil(radius) * 2 + 1
    pixels = np.zeros((taps, resized), np.int64)
    weights = np.zeros((taps, resized), np.int32)
    for column in range(resized):
        center = (column + 0.5) * scale
        first = max(int(center - radius + 0.5), 0)
        count = min(int(center + radius + 0.5), side) - first
        raw = [_kernel((tap + first - center + 0.5) * (1.0 / widening), resample) for tap in range(count)]
        total = 0.0
        for weight in raw:  # in Pillow's order, for the same rounding
            total += weight
        for tap, weight in enumerate(raw):
            fixed = weight / total * (1 << FRACTION_BITS) if total else 0.0
            weights[tap, column] = int(fixed + (0.5 if fixed >= 0 else -0.5))
            pixels[tap, column] = first + tap
    used = int(np.flatnonzero(weights.any(axis=1)).max(initial=0)) + 1
    return torch.from_numpy(pixels[:used]).to(device), torch.from_numpy(weights[:used]).to(device)


def _kernel(x: float, resample: int) -> float:
    x = abs(x)
    if resample == 2:
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return ((BICUBIC_A + 2.0) * x - (BICUBIC_A + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * BICUBIC_A if x < 2.0 else 0.0


class DevicePreparation:
    """Resizes views and looks up the network's input values, on a device."""

    def __init__(self, resize: PillowResize, table: Tensor) -> None:
        self._resize = resize
        self._table = table
        """(3 * 256,) float32, by channel and byte."""
        self._offsets = torch.arange(0, 768, 256, dtype=torch.int32, device=table.device).view(3, 1, 1)

    def __call__(self, views: Tensor) -> Tensor:
        """Prepare views (B, H, W, 3) uint8 as inputs (B, 3, h, w) float32."""
        values = self._resize(views.permute(0, 3, 1, 2))
        values += self._offsets
        return self._table[values]

    @classmethod
    def matching(
        cls,
        process: Callable[..., Tensor],
        settings: dict[str, Any],
        size_px: tuple[int, int],
        device: torch.device,
    ) -> DevicePreparation | None:
        """Return a preparation of views (H, W) that repeats `process` bit by bit; None if there is none.

        `process` is the library's processor: images (B, 3, H, W) uint8 and changed settings -> (B, 3, h, w) float32;
        `settings` are its settings.
        """
        resample = settings.get("resample", 2)
        if resample not in SUPPORT:
            return None
        ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
        noise = np.random.default_rng(0).integers(0, 256, (1, 3, *size_px), np.uint8)
        try:
            table = process(ramp, do_resize=False)
            expected = process(torch.from_numpy(noise))
        except (ValueError, RuntimeError, TypeError):
            return None
        if table.shape != ramp.shape:
            return None
        resized_px = (expected.shape[-2], expected.shape[-1])
        views = torch.from_numpy(noise).permute(0, 2, 3, 1).to(device)
        for dims in ((3, 2), (2, 3)):
            resize = PillowResize(size_px, resized_px, resample, device, dims)
            preparation = cls(resize, table.reshape(-1).float().to(device))
            if torch.equal(preparation(views).cpu(), expected):
                return preparation
        return None
