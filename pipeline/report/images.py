"""Arrays as pictures inside the page: colour scales, and lossless PNGs as data URIs.

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

LEAST_APART = 12.0
"""Percent of a colour bar: nearer texts would touch."""
WIDEST_PX = 640
"""Wider pictures are made smaller."""
DEPTH_COLORS, ERROR_COLORS, DOUBT_COLORS = "magma_r", "RdBu_r", "viridis"
_NO_VALUE = 255
"""The palette's last entry is transparent: the page's own ground shows where there is no value."""
_STOPS = 16
_DENSE_SHARE = 0.9


@dataclass(frozen=True)
class Scale:
    """Numbers to colours, the same for all pictures that are to be compared."""

    colors: str
    """A matplotlib colormap."""
    low: float
    high: float
    logarithmic: bool = False

    def unit(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Values (H, W) as 0 at the scale's low end and 1 at its high end, clamped; NaN stays."""
        low, high, wide = self.low, self.high, values.astype(np.float64)
        if self.logarithmic:
            low, high = math.log(low), math.log(high)
            wide = np.log(np.maximum(wide, self.low))
        return np.clip((wide - low) / (high - low), 0, 1)

    def gradient(self) -> str:
        """CSS colour stops from low to high."""
        rows = mpl.colormaps[self.colors](np.linspace(0, 1, _STOPS), bytes=True)
        return ", ".join(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in rows)

    def ticks(self, unit: str) -> list[tuple[float, str]]:
        """(place in percent, text) of a few round numbers, each text with `unit` (`%` multiplies by 100)."""
        if self.logarithmic:
            found = _round_numbers(self.low, self.high)
        else:
            steps = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
            found = [float(step) for step in steps if self.low <= step <= self.high]
        factor, gap = (100, "") if unit == "%" else (1, "\N{NO-BREAK SPACE}")
        places = self.unit(np.array(found)) * 100
        apart = np.diff(places, prepend=-np.inf)
        while apart.size > 2 and apart[1:].min() < LEAST_APART:  # every other one, until their texts do not touch
            found, places = found[::2], places[::2]
            apart = np.diff(places, prepend=-np.inf)
        return [
            (round(float(place), 2), f"{value * factor:.3g}{gap}{unit}".replace("-", "\N{MINUS SIGN}"))
            for place, value in zip(places, found, strict=True)
        ]


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 ... between two numbers, at most six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    inside = [value for value in found if low <= value <= high]
    return (inside or [low, high])[-6:]


def depth_scale(depths_m: list[NDArray[np.float32]]) -> Scale:
    """Logarithmic, over all but the extreme hundredths of the depths (metres)."""
    low, high = _range(depths_m, 1, 99)
    low = max(low, 1e-3)
    return Scale(DEPTH_COLORS, low, max(high, low * 1.1), logarithmic=True)


def error_scale(errors: list[NDArray[np.float32]]) -> Scale:
    """Symmetric about 0, a round number that most relative errors stay within."""
    _, high = _range([np.abs(one) for one in errors], 0, 95)
    reach = next((step for step in (0.05, 0.1, 0.2, 0.3, 0.5) if high <= step), 1.0)
    return Scale(ERROR_COLORS, -reach, reach)


def entropy_scale(entropies_nats: list[NDArray[np.float32]]) -> Scale:
    """From 0 to what nearly all pixels stay below."""
    _, high = _range(entropies_nats, 0, 99.5)
    return Scale(DOUBT_COLORS, 0.0, max(high, 0.1))


def width_scale(widths: list[NDArray[np.float32]]) -> Scale:
    """Logarithmic, over all but the extreme hundredths of the widths by depth."""
    low, high = _range(widths, 1, 99)
    low = max(low, 1e-3)
    return Scale(DOUBT_COLORS, low, max(high, low * 1.1), logarithmic=True)


def _range(arrays: list[NDArray[np.float32]], low: float, high: float) -> tuple[float, float]:
    values = np.concatenate([np.empty(0), *(array[np.isfinite(array)] for array in arrays)])
    if not values.size:
        return 1.0, 2.0
    found = np.percentile(values, [low, high])
    return float(found[0]), float(found[1])


def is_dense(truth_m: NDArray[np.float32]) -> bool:
    """Whether ground truth (H, W) covers areas, holes such as the sky aside, and not only points or scan lines."""
    known = np.isfinite(truth_m)
    if not known.any():
        return False
    beside = (known[:, 1:] & known[:, :-1]).sum() + (known[1:] & known[:-1]).sum()
    return bool(beside >= _DENSE_SHARE * (known[:, 1:].sum() + known[1:].sum()))


def spread(values: NDArray[np.float32], reach_px: int = 1) -> NDArray[np.float32]:
    """Sparse values (H, W) grown into their empty neighbours, so that dots can be seen; known ones stay."""
    grown = values.copy()
    for _ in range(reach_px):
        padded = np.pad(grown, 1, constant_values=np.nan)
        height, width = grown.shape
        for down, right in ((0, 1), (2, 1), (1, 0), (1, 2), (0, 0), (0, 2), (2, 0), (2, 2)):
            beside = padded[down : down + height, right : right + width]
            grown = np.where(np.isnan(grown), beside, grown)
    return grown


def map_uri(values: NDArray[np.floating], scale: Scale) -> str:
    """A map (H, W) as a data URI; transparent where it is NaN. Wide maps are sampled at nearest centres."""
    unit = scale.unit(_sampled(values))
    missing = np.isnan(unit)
    places = np.where(missing, _NO_VALUE, np.rint(np.nan_to_num(unit) * (_NO_VALUE - 1))).astype(np.uint8)
    colors = mpl.colormaps[scale.colors](np.linspace(0, 1, _NO_VALUE), bytes=True)[:, :3]
    picture = Image.fromarray(places)
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
