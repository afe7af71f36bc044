"""Errors sorted by doubt, and how far errors reach: risk-coverage curves, rank correlation, quantiles. No I/O.

Shape legend: P pixels of an image, C coverages, L shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

COVERAGES = tuple(step / 20 for step in range(1, 21))
LEAST_M = 1e-3
"""A smaller depth divides as if it were this one."""
_ERROR_EDGES = np.concatenate([[0.0], np.geomspace(1e-6, 1e3, 9 * 512 + 1)])  # steps of 0.45 %


class Curve(NamedTuple):
    """Error of the most certain pixels of an image."""

    risk: Array
    """(C,) mean error of the most certain share, for each of COVERAGES"""
    aurc: float
    """Area under risk by coverage: the mean over 1 to P pixels."""


def relative_difference(depth_m: NDArray[np.floating], other_m: NDArray[np.floating]) -> Array:
    """|depth - other| / depth of any shape: how far a prediction and that of the mirrored image are apart."""
    wide = depth_m.astype(np.float64)
    found: Array = np.abs(wide - other_m.astype(np.float64)) / np.maximum(wide, LEAST_M)
    return found


def risk_coverage(doubt: Array, error: Array) -> Curve:
    """Mean error (P,) of the least doubtful pixels. Pixels of equal doubt share their mean error, in no order.

    So `doubt` that is the error gives the oracle's curve, and one that is constant gives the plain mean everywhere.
    """
    _, group, count = np.unique(doubt, return_inverse=True, return_counts=True)
    shared = np.bincount(group, error) / count
    sums = np.concatenate([[0.0], np.cumsum(np.repeat(shared, count))])
    places = np.arange(len(sums), dtype=np.float64)
    wanted = np.array(COVERAGES) * len(error)
    return Curve(np.interp(wanted, places, sums) / wanted, float(np.mean(sums[1:] / places[1:])))


def spearman(one: Array, other: Array) -> float | None:
    """Rank correlation of two (P,), equals having their mean rank; None where either is constant."""
    ranks = []
    for values in (one, other):
        _, group, count = np.unique(values, return_inverse=True, return_counts=True)
        if len(count) < 2:
            return None
        middle = np.cumsum(count) - (count - 1) / 2
        ranks.append(middle[group] - (len(values) + 1) / 2)
    return float(ranks[0] @ ranks[1] / np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))


class ErrorSpread:
    """How large relative errors are over many images, each counting the same: a histogram of fixed size.

    Quantiles are exact to 0.45 %; errors from 1e-6 to 1000 are told apart.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._share = np.zeros(len(_ERROR_EDGES))

    def add(self, relative: Array) -> None:
        """Add the errors (P,) of one image."""
        places = np.minimum(np.searchsorted(_ERROR_EDGES, relative), len(_ERROR_EDGES) - 1)
        self._share += np.bincount(places, minlength=len(_ERROR_EDGES)) / len(relative)
        self.frames += 1

    def quantiles(self, shares: tuple[float, ...]) -> Array:
        """Errors (L,) that the shares of the pixels stay within. Raises PipelineError before the first image."""
        if not self.frames:
            raise PipelineError("no image to fit intervals on: expected one or more with ground truth in the protocol")
        below = np.cumsum(self._share) / self.frames
        found: Array = np.interp(shares, below, _ERROR_EDGES)
        return found


def constant_widths(errors: Array) -> Array:
    """Widths (L,) of the intervals depth (1 - q) to depth (1 + q), by depth; no depth is below 0."""
    found: Array = errors + np.minimum(errors, 1)
    return found
