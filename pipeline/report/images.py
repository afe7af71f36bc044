"""Color scales, and arrays as lossless PNGs in data URIs.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_LABEL_DISTANCE = 17.0
"""Minimum distance of labels, in percent of a color bar: 39 of 230 px, a label is up to 35 px wide."""
WIDEST_PX = 640
"""Wider pictures are downsized."""
DEPTH_COLORS, ERROR_COLORS, UNCERTAINTY_COLORS = "magma_r", "RdBu_r", "viridis"
_NO_VALUE = 255
"""The palette's last entry, for missing values, is transparent."""
_STOPS = 16
_DENSE_FRACTION = 0.9


@dataclass(frozen=True)
class Scale:
    """Map from numbers to colors, the same for all pictures that are compared."""

    colors: str
    """A matplotlib colormap."""
    low: float
    high: float
    logarithmic: bool = False

    def unit(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Values (H, W) scaled to 0..1 and clamped; NaN stays."""
        low, high, scaled = self.low, self.high, values.astype(np.float64)
        if self.logarithmic:
            low, high = math.log(low), math.log(high)
            scaled = np.log(np.maximum(scaled, self.low))
        return np.clip((scaled - low) / (high - low), 0, 1)

    def gradient(self) -> str:
        """CSS color stops from low to high."""
        rows = mpl.colormaps[self.colors](np.linspace(0, 1, _STOPS), bytes=True)
        return ", ".join(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in rows)

    def ticks(self, unit: str) -> list[tuple[float, str]]:
        """(position in percent, label) of a few round numbers; labels end in `unit` (`%` multiplies by 100)."""
        if self.logarithmic:
            values = _round_numbers(self.low, self.high)
        else:
            steps = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
            values = [float(step) for step in steps if self.low <= step <= self.high]
        factor, gap = (100, "") if unit == "%" else (1, "\N{NO-BREAK SPACE}")
        positions = self.unit(np.array(values)) * 100
        distances = np.diff(positions, prepend=-np.inf)
        while distances.size > 2 and distances[1:].min() < MIN_LABEL_DISTANCE:  # keep every other label
            values, positions = values[::2], positions[::2]
            distances = np.diff(positions, prepend=-np.inf)
        return [
            (round(float(position), 2), f"{value * factor:.3g}{gap}{unit}".replace("-", "\N{MINUS SIGN}"))
            for position, value in zip(positions, values, strict=True)
        ]


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 ... between two numbers, at most six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    inside = [value for value in numbers if low <= value <= high]
    return (inside or [low, high])[-6:]


def depth_scale(depths_m: list[NDArray[np.float32]]) -> Scale:
    """Logarithmic, from the 1st to the 99th percentile of depths."""
    low, high = _range(depths_m, 1, 99)
    low = max(low, 1e-3)
    return Scale(DEPTH_COLORS, low, max(high, low * 1.1), logarithmic=True)


def error_scale(errors: list[NDArray[np.float32]]) -> Scale:
    """Symmetric about 0, up to a round number above the 95th percentile of relative errors."""
    _, high = _range([np.abs(error) for error in errors], 0, 95)
    reach = next((step for step in (0.05, 0.1, 0.2, 0.3, 0.5) if high <= step), 1.0)
    return Scale(ERROR_COLORS, -reach, reach)


def entropy_scale(entropies_nats: list[NDArray[np.float32]]) -> Scale:
    """From 0 to the 99.5th percentile."""
    _, high = _range(entropies_nats, 0, 99.5)
    return Scale(UNCERTAINTY_COLORS, 0.0, max(high, 0.1))


def width_scale(widths: list[NDArray[np.float32]]) -> Scale:
    """Logarithmic, from the 1st to the 99th percentile of widths relative to depth."""
    low, high = _range(widths, 1, 99)
    low = max(low, 1e-3)
    return Scale(UNCERTAINTY_COLORS, low, max(high, low * 1.1), logarithmic=True)


def _range(arrays: list[NDArray[np.float32]], low: float, high: float) -> tuple[float, float]:
    values = np.concatenate([np.empty(0), *(array[np.isfinite(array)] for array in arrays)])
    if not values.size:
        return 1.0, 2.0
    ends = np.percentile(values, [low, high])
    return float(ends[0]), float(ends[1])


def is_dense(truth_m: NDArray[np.float32]) -> bool:
    """Whether ground truth (H, W) covers areas, except holes such as the sky, and not only points or scan lines."""
    known = np.isfinite(truth_m)
    if not known.any():
        return False
    neighbors = (known[:, 1:] & known[:, :-1]).sum() + (known[1:] & known[:-1]).sum()
    return bool(neighbors >= _DENSE_FRACTION * (known[:, 1:].sum() + known[1:].sum()))


def spread(values: NDArray[np.float32], reach_px: int = 1) -> NDArray[np.float32]:
    """Grow sparse values (H, W) into empty neighbors, to make dots visible; values stay."""
    grown = values.copy()
    for _ in range(reach_px):
        padded = np.pad(grown, 1, constant_values=np.nan)
        height, width = grown.shape
        for down, right in ((0, 1), (2, 1), (1, 0), (1, 2), (0, 0), (0, 2), (2, 0), (2, 2)):
            neighbor = padded[down : down + height, right : right + width]
            grown = np.where(np.isnan(grown), neighbor, grown)
    return grown


def map_uri(values: NDArray[np.floating], scale: Scale) -> str:
    """A map (H, W) as a data URI, transparent where NaN. Wide maps are downsized by nearest neighbor."""
    unit = scale.unit(_sampled(values))
    missing = np.isnan(unit)
    indices = np.where(missing, _NO_VALUE, np.rint(np.nan_to_num(unit) * (_NO_VALUE - 1))).astype(np.uint8)
    colors = mpl.colormaps[scale.colors](np.linspace(0, 1, _NO_VALUE), bytes=True)[:, :3]
    picture = Image.fromarray(indices)
    picture.putpalette([*colors.reshape(-1).tolist(), 128, 128, 128])
    return _uri(picture, transparency=_NO_VALUE if missing.any() else None)


def photo_uri(image: NDArray[np.uint8]) -> str:
    """An image (H, W, 3) as a data URI."""
    picture = Image.fromarray(image)
    if picture.width > WIDEST_PX:
        size = (WIDEST_PX, max(1, round(picture.height * WIDEST_PX / picture.width)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return _uri(picture, transparency=None)


def _sampled(values: NDArray[np.floating]) -> NDArray[np.floating]:
    height, width = values.shape
    if width <= WIDEST_PX:
        return values
    rows, columns = max(1, round(height * WIDEST_PX / width)), WIDEST_PX
    picked_rows = ((np.arange(rows) + 0.5) * height / rows).astype(np.intp)
    picked_columns = ((np.arange(columns) + 0.5) * width / columns).astype(np.intp)
    picked: NDArray[np.floating] = values[picked_rows[:, None], picked_columns]
    return picked


def _uri(picture: Image.Image, transparency: int | None) -> str:
    file = io.BytesIO()
    if transparency is None:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "PNG", optimize=True, transparency=transparency)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
