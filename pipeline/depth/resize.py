"""Resizing of depth maps.

Shape legend: H, W and h, w pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def upsampled(depth_m: NDArray[np.float32], size_px: tuple[int, int]) -> NDArray[np.float32]:
    """Resize depth (h, w) to `size_px` = (H, W), bilinear. NaN spreads to every pixel interpolated from it."""
    if depth_m.shape == size_px:
        return depth_m
    resized = F.interpolate(torch.from_numpy(depth_m)[None, None], size_px, mode="bilinear", align_corners=False)
    larger: NDArray[np.float32] = resized[0, 0].numpy()
    return larger
