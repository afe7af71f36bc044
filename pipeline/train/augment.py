"""How training varies a sample: one joint geometry for image, teacher and truth, and colours for the image alone.

Nothing here draws by itself: a generator is handed in, so that what is drawn depends on seed, epoch and sample alone.

Shape legend: H, W pixels of the training crop, h w of any map over it.
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

COLOUR_RANGE = (0.9, 1.1)


@dataclass(frozen=True)
class Augmentation:
    """What is varied in training; the defaults change nothing."""

    crop_px: tuple[int, int] | None = None
    """(H, W) of a random crop; None keeps the whole view."""
    rotate_deg: float = 0.0
    """Half of the range of rotation, used with probability 1/2."""
    flip: bool = False
    """Mirror with probability 1/2."""
    colour: bool = False
    """Gamma, brightness and colour balance from 0.9 to 1.1, with probability 1/2; on the image alone."""


class Geometry(NamedTuple):
    """Where each pixel of a training crop comes from: rotate about the centre, mirror, crop, in this order."""

    angle_rad: float
    mirrored: bool
    top: int
    left: int
    size_px: tuple[int, int]

    @classmethod
    def draw(cls, augmentation: Augmentation, view_px: tuple[int, int], random: np.random.Generator) -> Geometry:
        """Choose at random. Raises PipelineError where the view is smaller than the crop."""
        size = augmentation.crop_px or view_px
        if size[0] > view_px[0] or size[1] > view_px[1]:
            raise PipelineError(
                f"`crop_px={size[0]}x{size[1]}` is larger than the view, {view_px[0]}x{view_px[1]} px: choose less"
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
        """(rows, columns), each (h, w), in the view's pixels, of a grid of `out_px` laid evenly over the crop."""
        (row_down, row_right), (column_down, column_right) = self._positions(view_px, out_px)
        return row_down + row_right, column_down + column_right

    def _positions(
        self, view_px: tuple[int, int], out_px: tuple[int, int]
    ) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """`source_positions` as the sums they are: of what goes down (h, 1) and what goes right (1, w)."""
        rows = self.top + (np.arange(out_px[0]) + 0.5) * (self.size_px[0] / out_px[0]) - 0.5
        columns = self.left + (np.arange(out_px[1]) + 0.5) * (self.size_px[1] / out_px[1]) - 0.5
        if self.mirrored:
            columns = view_px[1] - 1 - columns
        centre_row, centre_column = (view_px[0] - 1) / 2, (view_px[1] - 1) / 2
        down, right = rows[:, None] - centre_row, columns[None, :] - centre_column
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        return (centre_row + cos * down, sin * right), (centre_column - sin * down, cos * right)

    def of_map(
        self, values: NDArray[Any], view_px: tuple[int, int], out_px: tuple[int, int], outside: float
    ) -> NDArray[Any]:
        """Nearest values (..., h, w) of a map (..., any size) that covers the view; `outside` beyond its edge.

        Nearest, because a depth between two surfaces belongs to neither. The map may have its own resolution.
        """
        height, width = values.shape[-2:]
        if self._plain(out_px) and (height, width) == view_px:
            part = values[..., self.top : self.top + out_px[0], self._columns(view_px)]
            return np.ascontiguousarray(part[..., ::-1] if self.mirrored else part)
        rows, columns = self.source_positions(view_px, out_px)
        row, column = _whole(rows, height / view_px[0]), _whole(columns, width / view_px[1])
        # A negative number is a large one without its sign: one comparison for both edges.
        inside = (row.view(np.uint32) < height) & (column.view(np.uint32) < width)
        row *= width
        row += column
        flat = values.reshape(*values.shape[:-2], height * width)
        taken: NDArray[Any] = flat.take(row, axis=-1, mode="clip")  # clipped where it is outside, and then not used
        np.copyto(taken, np.asarray(outside, values.dtype), where=~inside)
        return taken

    def of_image(self, image: NDArray[np.uint8]) -> Tensor:
        """Bilinear image (3, H, W) uint8 of an image (view H, view W, 3); black beyond its edge."""
        view_px = (image.shape[0], image.shape[1])
        if self._plain(self.size_px):
            part = image[self.top : self.top + self.size_px[0], self._columns(view_px)]
            pixels = torch.from_numpy(part).permute(2, 0, 1)
            return (pixels.flip(-1) if self.mirrored else pixels).contiguous()
        (row_down, row_right), (column_down, column_right) = self._positions(view_px, self.size_px)
        grid = np.empty((*self.size_px, 2), np.float32)  # -1 to 1 over the view, as grid_sample wants it
        span_row, span_column = (view_px[0] - 1) / 2, (view_px[1] - 1) / 2
        np.add(column_down / span_column - 1, column_right / span_column, out=grid[..., 0], casting="same_kind")
        np.add(row_down / span_row - 1, row_right / span_row, out=grid[..., 1], casting="same_kind")
        pixels = torch.from_numpy(image).float().permute(2, 0, 1)  # a pixel's colours stay side by side in memory
        turned: Tensor = F.grid_sample(pixels[None], torch.from_numpy(grid)[None], align_corners=True)[0]
        return turned.round_().to(torch.uint8)

    def _plain(self, out_px: tuple[int, int]) -> bool:
        return self.angle_rad == 0 and out_px == self.size_px

    def _columns(self, view_px: tuple[int, int]) -> slice:
        left = view_px[1] - self.left - self.size_px[1] if self.mirrored else self.left
        return slice(left, left + self.size_px[1])


def _whole(positions: NDArray[np.float64], scale: float) -> NDArray[np.int32]:
    """The pixel of a map that a position in the view's pixels lies in; the positions are used up."""
    positions += 0.5
    if scale != 1:
        positions *= scale
    return np.floor(positions, out=positions).astype(np.int32)


class Colour(NamedTuple):
    """How the colours of one image are varied."""

    gamma: float
    scale: tuple[float, float, float]
    """Brightness and balance of red, green and blue."""

    @classmethod
    def draw(cls, random: np.random.Generator) -> Colour | None:
        """Gamma, brightness and colour balance, with probability 1/2."""
        gamma, brightness = random.uniform(*COLOUR_RANGE, 2)
        red, green, blue = (brightness * random.uniform(*COLOUR_RANGE, 3)).tolist()
        return None if random.random() < 0.5 else cls(float(gamma), (red, green, blue))

    def table(self) -> Tensor:
        """(3, 1, 256) float32 in 0..1: what each value of each colour becomes."""
        scale = torch.tensor(self.scale, dtype=torch.float32).view(3, 1, 1)
        return plain_table().pow(self.gamma).mul_(scale).clamp_(0, 1)


@functools.cache
def plain_table() -> Tensor:
    """(3, 1, 256) float32: each value of each colour, from 0..255 to 0..1."""
    return (torch.arange(256, dtype=torch.float32) / 255).repeat(3, 1, 1)


def by_table(images: Tensor, tables: Tensor) -> Tensor:
    """Images (B, 3, H, W) uint8 as their tables (B, 3, 1, 256) have each of their values."""
    found = torch.empty(images.shape, dtype=tables.dtype, device=images.device)
    # One by one: the indexes of a whole batch would take eight times its memory
    for image, table, out in zip(images.flatten(2), tables.flatten(2), found.flatten(2), strict=True):
        torch.gather(table, 1, image.long(), out=out)
    return found
