"""Camera intrinsics, and how a view changes them.

Pixel centers have integer coordinates, the first 0, as in OpenCV and in KITTI's calibration files.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import PipelineError
from .readers.images import TURNS
from .view import same_aspect

if TYPE_CHECKING:
    from .base import Sample, Source
    from .view import View

MAX_FOCAL_PX = 1e6


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

    @property
    def focal_px(self) -> float:
        """Mean of both focal lengths, which a network of a canonical camera is scaled by (as Metric3D does)."""
        return (self.fx_px + self.fy_px) / 2

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

    def of_copy(self, size_px: tuple[int, int], copy_px: tuple[int, int]) -> Intrinsics | None:
        """Return the intrinsics of a copy of an image of `size_px` (height, width), resized to `copy_px`.

        None if the copy has another aspect ratio: it is a crop, and nothing says where.
        """
        return self.resized(size_px, copy_px) if same_aspect(size_px, copy_px) else None

    def turned(self, orientation: int, size_px: tuple[int, int]) -> Intrinsics:
        """Return the intrinsics of an image file of `size_px` (height, width) turned upright as `images.TURNS` does."""
        if orientation == 1:
            return self
        corner = TURNS[orientation](np.array([[0, 1], [2, 3]]))  # pixels of the file: [row, column] in base 2
        rows_flipped, columns_flipped = divmod(int(corner[0, 0]), 2)
        height, width = size_px
        cx_px = width - 1 - self.cx_px if columns_flipped else self.cx_px
        cy_px = height - 1 - self.cy_px if rows_flipped else self.cy_px
        if abs(int(corner[0, 1]) - int(corner[0, 0])) == 2:  # the next pixel was in the next row
            return Intrinsics(self.fy_px, self.fx_px, cy_px, cx_px)
        return Intrinsics(self.fx_px, self.fy_px, cx_px, cy_px)


def intrinsics_of(source: Source, sample: Sample, image_px: tuple[int, int]) -> Intrinsics | None:
    """Return the intrinsics of an upright image of `image_px` (height, width); None if its source has none.

    A source without `read_intrinsics` has the focal length of its row alone. Raises PipelineError, naming the file,
    for intrinsics that are damaged or not of this image.
    """
    read: Any = getattr(source, "read_intrinsics", None)  # optional, see `Source`
    if read is not None:
        given: Intrinsics | None = read(sample, image_px)
    else:
        given = None if sample.focal_px is None else Intrinsics.of_focal(sample.focal_px)
    return None if given is None else checked(given, image_px, f"intrinsics of {sample.id}")


def intrinsics_of_view(source: Source, sample: Sample, view: View, image_px: tuple[int, int]) -> Intrinsics | None:
    """Return the intrinsics of the view of an image of `image_px`. As `intrinsics_of`."""
    whole = intrinsics_of(source, sample, image_px)
    return None if whole is None else view.of_intrinsics(whole, image_px)


def checked(camera: Intrinsics, image_px: tuple[int, int] | None, where: str) -> Intrinsics:
    """Return intrinsics of an image of `image_px` (height, width), None if not known, after checking them.

    NaN is an unknown value. Raises PipelineError, beginning with `where`, for a focal length that is not positive, and
    a principal point more than one image outside the image.
    """
    for name, value in (("fx", camera.fx_px), ("fy", camera.fy_px)):
        if not (math.isnan(value) or 0 < value < MAX_FOCAL_PX):
            raise PipelineError(f"{where}: {name} {value:g} px, expected a positive number below {MAX_FOCAL_PX:g}")
    for name, value, side in zip(
        ("cx", "cy"), camera[2:], (math.inf, math.inf) if image_px is None else image_px[::-1], strict=True
    ):
        if math.isinf(value) or value < -side or value > 2 * side:
            size = "" if image_px is None else f" for an image of {image_px[0]}x{image_px[1]} px"
            raise PipelineError(
                f"{where}: {name} {value:g} px{size}, expected {-side:g} to {2 * side:g}; are these the intrinsics of "
                "another resolution? Correct or remove them"
            )
    return camera
