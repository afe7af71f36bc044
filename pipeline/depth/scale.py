"""One constant that depth is multiplied by, fitted on ground truth.

Networks read with the mean of a map predict too far for a relative error, and each by another factor. A constant that
is fitted on training frames removes that before methods are compared.

Shape legend: P pixels of an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOG_STEP = 1e-3
_LOG_REACH = 7.0  # a factor of 1100


class ScaleFit:
    """Finds the factor s with the smallest mean |s depth - truth| / truth, every image with the same weight.

    That is the weighted median of truth / depth with weights depth / truth. It is found on a histogram of the
    logarithm, in steps of 0.1 % and interpolated within a step, so that memory does not grow with the data set.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._edges = np.arange(-_LOG_REACH, _LOG_REACH + _LOG_STEP, _LOG_STEP)
        self._weights = np.zeros(len(self._edges) + 1)

    def add(self, depth_m: NDArray[np.floating], truth_m: NDArray[np.floating]) -> None:
        """Add an image: depth and truth (P,) in metres where both are valid. Does nothing for no pixels."""
        if not depth_m.size:
            return
        log_ratio = np.log(truth_m.astype(np.float64)) - np.log(depth_m.astype(np.float64))
        bins = np.searchsorted(self._edges, log_ratio)
        weights = np.exp(-log_ratio) / log_ratio.size
        self._weights += np.bincount(bins, weights, minlength=len(self._weights))
        self.frames += 1

    def factor(self) -> float:
        """Return the factor. Raises PipelineError if no image with truth was added."""
        if not self.frames:
            raise PipelineError("no image to fit a scale on: expected at least one with ground truth in the protocol")
        below = np.cumsum(self._weights)[:-1] / self._weights.sum()
        return float(np.exp(np.interp(0.5, below, self._edges)))
