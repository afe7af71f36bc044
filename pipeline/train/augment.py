"""Data augmentation: one geometry for image, teacher depth and ground truth; color jitter for the image.

All random numbers come from the generator that the caller passes in.

Shape legend: H, W pixels of the training crop; h, w of a map over the crop.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..sources.intrinsics import Intrinsics

JITTER_RANGE = (0.9, 1.1)


@dataclass(frozen=True)
class Augmentation:
    """Augmentations to apply; the defaults change nothing."""

    crop_px: tuple[int, int] | None = None
    """(H, W) of a random crop; None keeps the full view."""
    rotate_deg: float = 0.0
    """Rotate by up to this angle either way, with probability 1/2."""
    flip: bool = False
    """Mirror horizontally, with probability 1/2."""
    color: bool = False
    """Jitter gamma, brightness and color balance by 0.9 to 1.1, with probability 1/2."""


class Geometry(NamedTuple):
    """Rotation about the center, then mirroring, then a crop."""

    angle_rad: float
    mirrored: bool
    top: int
    left: int
    size_px: tuple[int, int]

    @classmethod
    def draw(cls, augmentation: Augmentation, view_px: tuple[int, int], random: np.random.Generator) -> Geometry:
        """Draw a geometry for a view of (H, W) pixels. Raises PipelineError if the crop does not fit into the view."""
        size = augmentation.crop_px or view_px
        if size[0] > view_px[0] or size[1] > view_px[1]:
            raise PipelineError(
                f"`crop_px={size[0]}x{size[1]}` is larger than the view of {view_px[0]}x{view_px[1]} px: use a smaller "
                "crop"
            )
        angle = np.deg2rad(random.uniform(-augmentation.rotate_deg, augmentation.rotate_deg))
        rotated = random.random() < 0.5
        mirrored = random.random() < 0.5
        top = int(random.integers(view_px[0] - size[0] + 1))
        left = int(random.integers(view_px[1] - size[1] + 1))
        return cls(float(angle) if rotated else 0.0, augmentation.flip and mirrored, top, left, size)

    def source_positions(
        self, view_px: tuple[int, int], out_px: tuple[int, int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return rows and columns (h, w) in view pixels for an even grid of `out_px` (h, w) points over the crop."""
        (row_down, row_right), (column_down, column_right) = self._position_terms(view_px, out_px)
        return row_down + row_right, column_down + column_right

    def _position_terms(
        self, view_px: tuple[int, int], out_px: tuple[int, int]
    ) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """The terms that `source_positions` sums: for rows and columns each, one (h, 1) and one (1, w)."""
        rows = self.top + (np.arange(out_px[0]) + 0.5) * (self.size_px[0] / out_px[0]) - 0.5
        columns = self.left + (np.arange(out_px[1]) + 0.5) * (self.size_px[1] / out_px[1]) - 0.5
        if self.mirrored:
            columns = view_px[1] - 1 - columns
        center_row, center_column = (view_px[0] - 1) / 2, (view_px[1] - 1) / 2
        down, right = rows[:, None] - center_row, columns[None, :] - center_column
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        return (center_row + cos * down, sin * right), (center_column - sin * down, cos * right)

    def of_intrinsics(self, intrinsics: Intrinsics, view_px: tuple[int, int]) -> Intrinsics:
        """Return the intrinsics of the crop, given those of the view (H, W).

        A rotated image is that of a camera turned about its axis, exactly if the focal lengths are equal.
        """
        center_row, center_column = (view_px[0] - 1) / 2, (view_px[1] - 1) / 2
        down, right = intrinsics.cy_px - center_row, intrinsics.cx_px - center_column
        cos, sin = float(np.cos(self.angle_rad)), float(np.sin(self.angle_rad))
        row, column = center_row + cos * down - sin * right, center_column + sin * down + cos * right
        turned = intrinsics._replace(cx_px=column, cy_px=row)
        mirrored = turned.mirrored(view_px[1]) if self.mirrored else turned
        return mirrored.cropped(self.top, self.left)

    def warp_map(
        self, values: NDArray[Any], view_px: tuple[int, int], out_px: tuple[int, int], outside: float
    ) -> NDArray[Any]:
        """Sample a map (..., any size) of the whole view to (..., h, w), with `outside` beyond the view's edge.

        Takes the nearest value: depth interpolated between two surfaces belongs to neither.
        """
        height, width = values.shape[-2:]
        if self._is_crop(out_px) and (height, width) == view_px:
            crop = values[..., self.top : self.top + out_px[0], self._columns(view_px)]
            return np.ascontiguousarray(crop[..., ::-1] if self.mirrored else crop)
        rows, columns = self.source_positions(view_px, out_px)
        row, column = _pixel_index(rows, height / view_px[0]), _pixel_index(columns, width / view_px[1])
        # As unsigned, a negative index is large: one comparison checks both edges.
        inside = (row.view(np.uint32) < height) & (column.view(np.uint32) < width)
        row *= width
        row += column
        flat = values.reshape(*values.shape[:-2], height * width)
        warped: NDArray[Any] = flat.take(row, axis=-1, mode="clip")
        np.copyto(warped, np.asarray(outside, values.dtype), where=~inside)
        return warped

    def warp_image(self, image: NDArray[np.uint8]) -> Tensor:
        """Sample an image (view H, view W, 3) bilinearly to (3, H, W) uint8, black beyond its edge."""
        view_px = (image.shape[0], image.shape[1])
        if self._is_crop(self.size_px):
            crop = image[self.top : self.top + self.size_px[0], self._columns(view_px)]
            pixels = torch.from_numpy(crop).permute(2, 0, 1)
            return (pixels.flip(-1) if self.mirrored else pixels).contiguous()
        (row_down, row_right), (column_down, column_right) = self._position_terms(view_px, self.size_px)
        grid = np.empty((*self.size_px, 2), np.float32)  # -1 to 1 over the view, for grid_sample
        span_row, span_column = (view_px[0] - 1) / 2, (view_px[1] - 1) / 2
        np.add(column_down / span_column - 1, column_right / span_column, out=grid[..., 0], casting="same_kind")
        np.add(row_down / span_row - 1, row_right / span_row, out=grid[..., 1], casting="same_kind")
        pixels = torch.from_numpy(image).float().permute(2, 0, 1)  # channels last in memory
        warped: Tensor = F.grid_sample(pixels[None], torch.from_numpy(grid)[None], align_corners=True)[0]
        return warped.round_().to(torch.uint8)

    def _is_crop(self, out_px: tuple[int, int]) -> bool:
        """Whether slicing is enough: no rotation and no change of resolution."""
        return self.angle_rad == 0 and out_px == self.size_px

    def _columns(self, view_px: tuple[int, int]) -> slice:
        left = view_px[1] - self.left - self.size_px[1] if self.mirrored else self.left
        return slice(left, left + self.size_px[1])


def _pixel_index(positions: NDArray[np.float64], scale: float) -> NDArray[np.int32]:
    """Pixel of a map at a position in view pixels. Changes `positions` in place."""
    positions += 0.5
    if scale != 1:
        positions *= scale
    return np.floor(positions, out=positions).astype(np.int32)


class ColorJitter(NamedTuple):
    """Gamma, brightness and color balance of one image."""

    gamma: float
    scale: tuple[float, float, float]
    """Factors for red, green and blue: brightness times balance."""

    @classmethod
    def draw(cls, random: np.random.Generator) -> ColorJitter | None:
        """Draw a jitter with probability 1/2, else None."""
        gamma, brightness = random.uniform(*JITTER_RANGE, 2)
        red, green, blue = (brightness * random.uniform(*JITTER_RANGE, 3)).tolist()
        return None if random.random() < 0.5 else cls(float(gamma), (red, green, blue))

    def table(self) -> Tensor:
        """Return the jitter as a color table (3, 1, 256) float32 in 0..1."""
        scale = torch.tensor(self.scale, dtype=torch.float32).view(3, 1, 1)
        return identity_table().pow(self.gamma).mul_(scale).clamp_(0, 1)


@functools.cache
def identity_table() -> Tensor:
    """Return the color table (3, 1, 256) float32 that maps 0..255 to 0..1."""
    return (torch.arange(256, dtype=torch.float32) / 255).repeat(3, 1, 1)


def apply_tables(images: Tensor, tables: Tensor) -> Tensor:
    """Look up images (B, 3, H, W) uint8 in color tables (B, 3, 1, 256), one table for each image."""
    if images.is_cuda:  # few launches matter more than memory
        found = torch.gather(tables.flatten(2), 2, images.flatten(2).long()).view(images.shape)
        return found.contiguous(memory_format=torch.channels_last)
    result = torch.empty(images.shape, dtype=tables.dtype, device=images.device)
    # Image by image: int64 indices of a whole batch take eight times its memory
    for image, table, out in zip(images.flatten(2), tables.flatten(2), result.flatten(2), strict=True):
        torch.gather(table, 1, image.long(), out=out)
    return result
