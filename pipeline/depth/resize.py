"""Resizing of depth maps.

Shape legend: H, W and h, w pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from numpy.typing import NDArray


def upsampled(depth_m: NDArray[np.float32], size_px: tuple[int, int]) -> NDArray[np.float32]:
    """Resize depth (h, w) to `size_px` = (H, W), bilinear. NaN spreads to every pixel interpolated from it."""
    if depth_m.shape == size_px:
        return depth_m
    resized = F.interpolate(torch.from_numpy(depth_m)[None, None], size_px, mode="bilinear", align_corners=False)
    larger: NDArray[np.float32] = resized[0, 0].numpy()
    return larger


def nearest(depth: NDArray[np.float32], size_px: tuple[int, int]) -> NDArray[np.float32]:
    """Resize depth (h, w) to `size_px` = (H, W): the pixel at each center, so no depth between surfaces appears."""
    rows, columns = (
        ((2 * np.arange(new) + 1) * old // (2 * new)) for new, old in zip(size_px, depth.shape, strict=True)
    )
    resized: NDArray[np.float32] = depth[rows[:, None], columns]
    return resized
