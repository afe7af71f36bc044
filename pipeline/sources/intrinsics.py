"""Camera intrinsics, and how a view changes them.

Pixel centers have integer coordinates, the first 0, as in OpenCV and in KITTI's calibration files.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Intrinsics(NamedTuple):
    """Pinhole camera of an image, in pixels of that image. NaN is an unknown value."""

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float

    @classmethod
    def of_focal(cls, focal_px: float) -> Intrinsics:
        """Return intrinsics of square pixels with an unknown principal point."""
        return cls(focal_px, focal_px, math.nan, math.nan)

    @property
    def has_focal(self) -> bool:
        """Whether both focal lengths are known."""
        return math.isfinite(self.fx_px) and math.isfinite(self.fy_px)

    def cropped(self, top_px: int, left_px: int) -> Intrinsics:
        """Return the intrinsics of a crop that begins at this row and column."""
        return self._replace(cx_px=self.cx_px - left_px, cy_px=self.cy_px - top_px)

    def resized(self, size_px: tuple[int, int], new_size_px: tuple[int, int]) -> Intrinsics:
        """Return the intrinsics of an image (height, width) resized to another size."""
        y, x = new_size_px[0] / size_px[0], new_size_px[1] / size_px[1]
        # Half a pixel: the border of the image, not the center of its first pixel, stays at the same place
        return Intrinsics(self.fx_px * x, self.fy_px * y, (self.cx_px + 0.5) * x - 0.5, (self.cy_px + 0.5) * y - 0.5)

    def mirrored(self, width_px: int) -> Intrinsics:
        """Return the intrinsics of the image flipped left to right."""
        return self._replace(cx_px=width_px - 1 - self.cx_px)
