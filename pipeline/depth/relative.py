"""Relative depth: the target of students of relative-depth teachers.

A relative-depth teacher has another scale, and perhaps shift, in each image. Its values are mapped to one range for all
images: 1 for the nearest pixels, the last bin edge for the farthest. The result is positive, increases with
distance, and is an affine function of the teacher's values in their depth space. In a relative run all depths are
relative, also where a name ends in `_m`.

Shape legend: H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor

    Numbers = TypeVar("Numbers", Tensor, NDArray[np.float32], NDArray[np.float64])

METRIC = "metric_m"
BINS = {"affine_disparity": "inverse:64:1:100", "affine_depth": "linear:64:1:100", "scale_invariant": "log:64:1:100"}
"""Bins of relative depth, evenly spaced in the depth space of the teacher."""
SIGMA_BINS = 1.0
"""Width of the Gaussian map of a relative target, in bins."""
ROBUST = (2.0, 98.0)
"""Percentiles that are mapped to the ends of the range, as in Marigold (Ke et al. 2024, section 3.1); minimum and
maximum depend on single pixels."""
WHOLE = (0.0, 100.0)
MIN_PIXELS = 16
"""Smallest number of valid pixels to determine the range of an image."""
ALIGN = {METRIC: "none", "affine_disparity": "disparity", "affine_depth": "depth", "scale_invariant": "scale"}
"""Alignment to metric truth before evaluation (`metrics.Protocol.align`)."""


class Range(NamedTuple):
    """Depth space and range of the relative depth that a run learns."""

    depth_space: str
    """Depth space of the teacher."""
    near: float
    far: float
    """First and last edge of the bins."""

    def of(self, values: NDArray[np.float32], percentiles: tuple[float, float] = ROBUST) -> NDArray[np.float32]:
        """Return the relative depth (H, W) of a teacher's values (H, W); NaN stays NaN.

        The two percentiles are mapped to the ends of the range, and values beyond them are clipped. For
        `scale_invariant`, where only ratios have a meaning, the median is mapped to the geometric mean of the ends
        instead. All NaN if there are fewer than 16 values or all are equal.
        """
        finite = values[np.isfinite(values)].astype(np.float64)
        invalid = np.full(values.shape, np.nan, np.float32)
        if finite.size < MIN_PIXELS:
            return invalid
        if self.depth_space == "scale_invariant":
            median = float(np.median(finite))
            if median <= 0:
                return invalid
            relative = values * ((self.near * self.far) ** 0.5 / median)
            return np.asarray(np.clip(relative, self.near, self.far), np.float32)
        low, high = np.percentile(finite, percentiles)
        if not high > low:
            return invalid
        fraction = np.clip((values - low) / (high - low), 0.0, 1.0)
        if self.depth_space == "affine_disparity":
            return np.asarray(1 / (1 / self.far + fraction * (1 / self.near - 1 / self.far)), np.float32)
        return np.asarray(self.near + fraction * (self.far - self.near), np.float32)


def in_own_space(relative: Numbers, depth_space: str) -> Numbers:
    """Convert relative depth, of any shape, to what is affine in the teacher's values: disparity or depth."""
    if depth_space not in {METRIC, "affine_disparity"}:
        return relative
    return 1 / relative  # type: ignore[return-value]  # NumPy's type hints say that 1 / float32 is float64; it is float32


def depth_space_of(config: Mapping[str, Any]) -> str:
    """Return the depth space of a run, from its configuration; `metric_m` by default."""
    return str(config.get("depth_space", METRIC))
