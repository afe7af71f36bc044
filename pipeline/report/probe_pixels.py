"""Which pixels of a frame are worth a closer look. No chance in it: the same frame gives the same pixels.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MARGIN_ROWS, _MARGIN_COLUMNS = 0.1, 0.04
"""Share of each side that is left out: a mark there would be cut off."""
_APART = 0.07
"""Marks keep this share of the width between them."""
_NEAR_ROW, _NEAR_COLUMN = 0.85, 0.5
_FAR_PERCENTILE = 95


class Mark(NamedTuple):
    """A pixel of the view and why it was chosen."""

    row: int
    column: int
    why: str


class Reasons(NamedTuple):
    """What marks are chosen by, all (H, W); NaN where it is not known."""

    depth_m: NDArray[np.float32]
    """Ground truth where it is known, else the teacher's depth."""
    doubt: NDArray[np.float32]
    """The teacher's entropy, or the step in its depth where its maps hold no doubt of their own."""
    doubt_why: str
    error: NDArray[np.float32]
    """Relative error of the first student."""
    error_why: str
    allowed: NDArray[np.bool_]
    """Pixels that may be chosen."""


def choose_marks(reasons: Reasons) -> list[Mark]:
    """One pixel on near ground, one in the teacher's greatest doubt, one far, one of the greatest error.

    Fewer where no pixel is left.
    """
    height, width = reasons.allowed.shape
    rows, columns = np.mgrid[0:height, 0:width]
    inset_rows, inset_columns = max(1, int(_MARGIN_ROWS * height)), max(1, int(_MARGIN_COLUMNS * width))
    free = reasons.allowed.copy()
    free[:inset_rows] = free[height - inset_rows :] = False
    free[:, :inset_columns] = free[:, width - inset_columns :] = False
    from_near = np.hypot((rows - _NEAR_ROW * height) / height, (columns - _NEAR_COLUMN * width) / width)
    known_m = reasons.depth_m[free]
    far_m = float(np.percentile(known_m, _FAR_PERCENTILE)) if known_m.size else 0.0
    marks: list[Mark] = []
    for badness, why in (
        (from_near, "Near ground"),
        (-reasons.doubt, reasons.doubt_why),
        (np.abs(np.log(np.maximum(reasons.depth_m, 1e-3) / max(far_m, 1e-3))), "Far away"),
        (-np.abs(reasons.error), reasons.error_why),
    ):
        wanted = np.where(free & np.isfinite(badness), badness, np.inf)
        best = int(np.argmin(wanted))  # the first of equals
        row, column = divmod(best, width)
        if not np.isfinite(wanted[row, column]):
            continue
        marks.append(Mark(row, column, why))
        free &= np.hypot(rows - row, columns - column) > _APART * width
    return marks


def depth_step(depth_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much the logarithm of depth (H, W) changes from each pixel to its neighbours right and below."""
    logs = np.log(np.maximum(depth_m, 1e-3))
    step = np.zeros_like(logs)
    step[:, :-1] += np.abs(np.diff(logs, axis=1))
    step[:-1] += np.abs(np.diff(logs, axis=0))
    return step
