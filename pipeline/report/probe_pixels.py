"""Choose the pixels of a frame whose maps the page draws. Deterministic.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MARGIN_ROWS, _MARGIN_COLUMNS = 0.1, 0.04
"""Fraction of each side that is excluded: a label there would be cut off."""
_MIN_DISTANCE = 0.07
"""Distance between probe pixels, as a fraction of the width."""
_NEAR_ROW, _NEAR_COLUMN = 0.85, 0.5
_FAR_PERCENTILE = 95


class ProbePixel(NamedTuple):
    """A pixel of the view and why it was chosen."""

    row: int
    column: int
    why: str


class Criteria(NamedTuple):
    """What probe pixels are chosen by, all (H, W), NaN where missing."""

    depth_m: NDArray[np.float32]
    """Ground truth if there is any, else the teacher's depth."""
    uncertainty: NDArray[np.float32]
    """The teacher's entropy, or its depth steps if its maps have a fixed width."""
    uncertainty_why: str
    error: NDArray[np.float32]
    """Relative error of the first student."""
    error_why: str
    allowed: NDArray[np.bool_]
    """Pixels that may be chosen."""


def choose_probe_pixels(criteria: Criteria) -> list[ProbePixel]:
    """Choose a near, an uncertain, a far and a wrong pixel; fewer if no pixel is left."""
    height, width = criteria.allowed.shape
    rows, columns = np.mgrid[0:height, 0:width]
    inset_rows, inset_columns = max(1, int(_MARGIN_ROWS * height)), max(1, int(_MARGIN_COLUMNS * width))
    free = criteria.allowed.copy()
    free[:inset_rows] = free[height - inset_rows :] = False
    free[:, :inset_columns] = free[:, width - inset_columns :] = False
    from_near = np.hypot((rows - _NEAR_ROW * height) / height, (columns - _NEAR_COLUMN * width) / width)
    free_m = criteria.depth_m[free]
    far_m = float(np.percentile(free_m, _FAR_PERCENTILE)) if free_m.size else 0.0
    probe_pixels: list[ProbePixel] = []
    for cost, why in (
        (from_near, "Near ground"),
        (-criteria.uncertainty, criteria.uncertainty_why),
        (np.abs(np.log(np.maximum(criteria.depth_m, 1e-3) / max(far_m, 1e-3))), "Far away"),
        (-np.abs(criteria.error), criteria.error_why),
    ):
        costs = np.where(free & np.isfinite(cost), cost, np.inf)
        best = int(np.argmin(costs))
        row, column = divmod(best, width)
        if not np.isfinite(costs[row, column]):
            continue
        probe_pixels.append(ProbePixel(row, column, why))
        free &= np.hypot(rows - row, columns - column) > _MIN_DISTANCE * width
    return probe_pixels


def depth_step(depth_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """Change of log depth (H, W) from each pixel to its right and lower neighbors."""
    logs = np.log(np.maximum(depth_m, 1e-3))
    step = np.zeros_like(logs)
    step[:, :-1] += np.abs(np.diff(logs, axis=1))
    step[:-1] += np.abs(np.diff(logs, axis=0))
    return step
