"""Depth as files: 16-bit PNGs, and color pictures.

Shape legend: H W pixels of an image, h w of its view.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from ..depth.relative import METRIC

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..sources.view import View

MAX_UNITS = 65535
COLORS = "magma_r"
JPEG_QUALITY = 92


def on_image(view_m: NDArray[np.float32], view: View, size_px: tuple[int, int]) -> NDArray[np.float32]:
    """Depth (h, w) of a view on the pixels (H, W) of the image; NaN outside the view."""
    top, left, height, width = view.box_px(*size_px)
    if view.mirror:
        view_m = view_m[:, ::-1]
    if view_m.shape != (height, width):
        tensor = torch.from_numpy(np.ascontiguousarray(view_m))[None, None]
        view_m = F.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    if (height, width) == size_px:
        return view_m
    whole = np.full(size_px, np.nan, np.float32)
    whole[top : top + height, left : left + width] = view_m
    return whole


def depth_png(depth_m: NDArray[np.float32], metres_per_unit: float) -> tuple[bytes, int]:
    """Depth (H, W) as a 16-bit PNG, and the number of pixels beyond its range. These and NaN are 0 in the file.

    Depth below half a unit is written as 1.
    """
    units = np.rint(depth_m.astype(np.float64) / metres_per_unit)
    beyond = int((units > MAX_UNITS).sum())
    valid = np.isfinite(units) & (units <= MAX_UNITS)
    values = np.where(valid, np.maximum(np.nan_to_num(units, posinf=0.0), 1), 0).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue(), beyond


def color_jpeg(depth_m: NDArray[np.float32], range_m: tuple[float, float]) -> bytes:
    """Depth (H, W) as a picture on a logarithmic scale: near is light, far is dark, NaN is gray."""
    low, high = np.log(range_m)
    unit = np.clip((np.log(np.maximum(depth_m, range_m[0])) - low) / (high - low), 0, 1)
    rgb = mpl.colormaps[COLORS](np.nan_to_num(unit), bytes=True)[..., :3].copy()
    rgb[np.isnan(depth_m)] = 128
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def color_bar_jpeg(range_m: tuple[float, float], depth_space: str) -> bytes:
    """The color bar of `color_jpeg`."""
    figure = Figure(figsize=(6.0, 0.8), dpi=110, layout="constrained")
    colors = ScalarMappable(LogNorm(*range_m), COLORS)
    bar = figure.colorbar(
        colors,
        cax=figure.subplots(),
        orientation="horizontal",
        label="depth in metres" if depth_space == METRIC else "relative depth",
    )
    ticks = [depth_m for power in range(-3, 4) for depth_m in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    inside = [depth_m for depth_m in ticks if range_m[0] <= depth_m <= range_m[1]]
    bar.set_ticks(inside or list(range_m), minor=False)
    bar.set_ticks([], minor=True)
    bar.ax.set_xticklabels([f"{depth_m:g}" for depth_m in inside or range_m])
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", pil_kwargs={"quality": JPEG_QUALITY})
    return file.getvalue()
