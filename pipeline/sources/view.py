"""The part of an image that both stages use: a crop, then an optional resize. The store records it.

Written as `full`, `kb` (352x1216 at the bottom center, as in the KITTI benchmark) or `center:HxW`, each optionally
followed by `,resize:HxW` and `,mirror`.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .intrinsics import Intrinsics

KB_SIZE_PX = (352, 1216)
ALIKE_PX = 2.0
"""One pixel at each of two borders. ScanNet (depth 480x640, images 968x1296) needs 1.98."""
LIMIT_AREA_PX = 2**25
"""As `images.LIMIT_PIXELS`: 2**28 float pixels and their network activations take gigabytes."""
LIMIT_PX = 2**14  # a view may come from a stranger's store, and a resize allocates its size


@dataclass(frozen=True)
class View:
    """A crop and an optional resize, both (height, width) in pixels, and an optional horizontal flip."""

    crop: str = "full"
    """`full`, `kb` or `center`."""
    crop_size_px: tuple[int, int] | None = None
    resize_px: tuple[int, int] | None = None
    mirror: bool = False

    @classmethod
    def parse(cls, text: str) -> View:
        """Parse the text form. Raises PipelineError for any other text."""
        match = re.fullmatch(r"(full|kb|center:(\d+)x(\d+))(?:,resize:(\d+)x(\d+))?(,mirror)?", text)
        if match is None:
            raise PipelineError(
                f"view {text!r}: expected full, kb or center:HxW (pixels), optionally followed by ,resize:HxW and "
                ",mirror"
            )
        crop, height, width, resize_height, resize_width, mirror = match.groups()
        resize = (int(resize_height), int(resize_width)) if resize_height else None
        size = (int(height), int(width)) if height else None
        if any(side > LIMIT_PX for side in (*(size or ()), *(resize or ()))):
            raise PipelineError(f"view {text!r}: expected sides of at most {LIMIT_PX} pixels")
        if resize and resize[0] * resize[1] > LIMIT_AREA_PX:
            raise PipelineError(
                f"view {text!r}: {resize[0]}x{resize[1]} px, expected at most {LIMIT_AREA_PX} pixels in total"
            )
        if (resize and 0 in resize) or (size and 0 in size):
            raise PipelineError(f"view {text!r}: sides must be positive, got 0 pixels")
        if crop == "kb":
            return cls("kb", KB_SIZE_PX, resize, bool(mirror))
        return cls("center" if size else "full", size, resize, bool(mirror))

    def __str__(self) -> str:
        crop = f"center:{_size(self.crop_size_px)}" if self.crop == "center" and self.crop_size_px else self.crop
        resize = f",resize:{_size(self.resize_px)}" if self.resize_px else ""
        return f"{crop}{resize}{',mirror' if self.mirror else ''}"

    def box_px(self, height_px: int, width_px: int) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the crop in an image of the given size.

        Raises PipelineError if the image is smaller than the crop.
        """
        if self.crop_size_px is None:
            return 0, 0, height_px, width_px
        height, width = self.crop_size_px
        if height_px < height or width_px < width:
            raise PipelineError(
                f"an image of {height_px}x{width_px} px is smaller than the view {self} "
                f"({height}x{width} px); choose a smaller one with `view`"
            )
        top = height_px - height if self.crop == "kb" else (height_px - height) // 2
        return top, (width_px - width) // 2, height, width

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return (height, width) of the view of an image of the given size."""
        return self.resize_px or self.box_px(height_px, width_px)[2:]

    def of_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop an image (H, W, 3) uint8 and resize it (bilinear with antialiasing)."""
        top, left, height, width = self.box_px(*image.shape[:2])
        view = image[top : top + height, left : left + width]
        if self.resize_px and self.resize_px != (height, width):
            resized = Image.fromarray(view).resize(self.resize_px[::-1], Image.Resampling.BILINEAR)
            view = np.array(resized)  # a copy: torch refuses the read-only array of asarray
        return np.ascontiguousarray(view[:, ::-1] if self.mirror else view)

    def of_depth(
        self, depth: NDArray[np.float32], image_px: tuple[int, int], *, own_pixels: bool = False
    ) -> NDArray[np.float32]:
        """Crop and resize depth (any H, W) of a whole image of `image_px`, by nearest pixel.

        The result has the size of the view; with `own_pixels` it is the crop at the depth's own resolution. Raises
        PipelineError as `box_px`.
        """
        top, left, height, width = self.box_px(*image_px)
        size = self.size_px(*image_px)
        if own_pixels:
            sides = zip((height, width), depth.shape, image_px, strict=True)
            size_of_crop = [max(1, round(side * own / whole)) for side, own, whole in sides]
            size = (size_of_crop[0], size_of_crop[1])
        if depth.shape == image_px and size == (height, width):
            view = depth[top : top + height, left : left + width]
        else:
            rows = _nearest(top, height, size[0], image_px[0], depth.shape[0])
            columns = _nearest(left, width, size[1], image_px[1], depth.shape[1])
            view = depth[rows[:, None], columns]
        return np.ascontiguousarray(view[:, ::-1] if self.mirror else view)

    def of_intrinsics(self, intrinsics: Intrinsics, image_px: tuple[int, int]) -> Intrinsics:
        """Return the intrinsics of the view of an image of `image_px`, given those of the image.

        Raises PipelineError as `box_px`.
        """
        top, left, height, width = self.box_px(*image_px)
        size = self.size_px(*image_px)
        of_view = intrinsics.cropped(top, left).resized((height, width), size)
        return of_view.mirrored(size[1]) if self.mirror else of_view


def aspect_off_px(one_px: tuple[int, ...], other_px: tuple[int, ...]) -> float:
    """Return by how many pixels of the smaller size two sizes (height, width) differ in aspect."""
    (height, width), (large_height, large_width) = sorted((one_px, other_px), key=math.prod)
    return min(abs(height - large_height * width / large_width), abs(width - large_width * height / large_height))


def same_aspect(one_px: tuple[int, ...], other_px: tuple[int, ...]) -> bool:
    """Whether two sizes (height, width) have one aspect: centered on each other, each border agrees within a pixel."""
    return aspect_off_px(one_px, other_px) <= ALIKE_PX


def _nearest(crop_start: int, crop_length: int, samples: int, image_px: int, source_px: int) -> NDArray[np.intp]:
    """Return the pixels of a side of `source_px`, which shows an image side of `image_px`, nearest to a crop's samples.

    The crop begins at `crop_start` and has `crop_length` image pixels; `samples` are spread evenly over it.
    """
    positions = (np.arange(samples) + 0.5) * crop_length / samples
    if source_px == image_px:
        return crop_start + positions.astype(np.intp)
    return np.minimum((crop_start + positions) * source_px / image_px, source_px - 1).astype(np.intp)


def _size(size_px: tuple[int, int] | None) -> str:
    assert size_px is not None
    return f"{size_px[0]}x{size_px[1]}"
