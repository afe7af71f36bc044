"""Risk-coverage curves, rank correlation, and quantiles of errors.

Shape legend: P pixels of an image, C coverages, L quantile levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

COVERAGES = tuple(step / 20 for step in range(1, 21))
MIN_DEPTH_M = 1e-3
"""Smallest depth to divide by."""
_ERROR_EDGES = np.concatenate([[0.0], np.geomspace(1e-6, 1e3, 9 * 512 + 1)])  # steps of 0.45 %


class Curve(NamedTuple):
    """Risk-coverage curve of an image."""

    risk: Array
    """(C,) mean error of the most certain fraction of pixels, for each of COVERAGES"""
    aurc: float
    """Area under the curve: the mean of the risk over the 1 to P most certain pixels."""


def relative_difference(depth_m: NDArray[np.floating], other_m: NDArray[np.floating]) -> Array:
    """Return |depth - other| / depth, of any shape."""
    wide = depth_m.astype(np.float64)
    difference: Array = np.abs(wide - other_m.astype(np.float64)) / np.maximum(wide, MIN_DEPTH_M)
    return difference


def risk_coverage(uncertainty: Array, error: Array) -> Curve:
    """Return the risk-coverage curve of errors (P,) sorted by uncertainty (P,).

    Pixels of equal uncertainty all get their mean error. The error as uncertainty gives the oracle curve; a constant
    uncertainty gives the mean error at every coverage.
    """
    _, group, count = np.unique(uncertainty, return_inverse=True, return_counts=True)
    shared = np.bincount(group, error) / count
    sums = np.concatenate([[0.0], np.cumsum(np.repeat(shared, count))])
    counts = np.arange(len(sums), dtype=np.float64)
    covered = np.array(COVERAGES) * len(error)
    return Curve(np.interp(covered, counts, sums) / covered, float(np.mean(sums[1:] / counts[1:])))


def spearman(x: Array, y: Array) -> float | None:
    """Return the Spearman correlation of two (P,), with mean ranks for ties; None if either is constant."""
    ranks = []
    for values in (x, y):
        _, group, count = np.unique(values, return_inverse=True, return_counts=True)
        if len(count) < 2:
            return None
        middle = np.cumsum(count) - (count - 1) / 2
        ranks.append(middle[group] - (len(values) + 1) / 2)
    return float(ranks[0] @ ranks[1] / np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))


class ErrorHistogram:
    """Histogram of relative errors in which every image has the same weight.

    Its bins span 1e-6 to 1000; quantiles are exact to 0.45 %.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._fractions = np.zeros(len(_ERROR_EDGES))

    def add(self, relative: Array) -> None:
        """Add the errors (P,) of one image."""
        indices = np.minimum(np.searchsorted(_ERROR_EDGES, relative), len(_ERROR_EDGES) - 1)
        self._fractions += np.bincount(indices, minlength=len(_ERROR_EDGES)) / len(relative)
        self.frames += 1

    def quantiles(self, levels: tuple[float, ...]) -> Array:
        """Return the quantiles (L,) of the errors. Raises PipelineError if no image was added."""
        if not self.frames:
            raise PipelineError(
                "no image to fit intervals on: expected at least one with ground truth inside the protocol's crop"
            )
        cdf = np.cumsum(self._fractions) / self.frames
        errors: Array = np.interp(levels, cdf, _ERROR_EDGES)
        return errors


def constant_widths(errors: Array) -> Array:
    """Return the widths (L,), relative to depth, of the intervals depth (1 - q) to depth (1 + q), cut off at 0."""
    widths: Array = errors + np.minimum(errors, 1)
    return widths
