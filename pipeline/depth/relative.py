"""Relative depth: what a student learns from a teacher whose numbers mean something within an image alone.

Each image's numbers are brought to one range that bins can cover, 1 for the nearest and the bins' last edge for the
farthest. The result is called relative depth. It is as arbitrary as the teacher's numbers were, but of one kind
whatever they were: positive, larger farther away, and an affine function away from them in their own space. In a
relative run every depth is one, also where a name says metres.

Shape legend: any; H, W pixels.
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
"""Bins of relative depth: even in what the teacher's numbers are even in."""
SIGMA_BINS = 1.0
"""Width of the Gaussian map of a relative target, in bins."""
ROBUST = (2.0, 98.0)
"""Percentiles that become the ends of the range, as Marigold has it (Ke et al. 2024, section 3.1): single pixels decide
minimum and maximum."""
WHOLE = (0.0, 100.0)
LEAST_PIXELS = 16
"""Fewer say nothing of an image's range."""
ALIGN = {METRIC: "none", "affine_disparity": "disparity", "affine_depth": "depth", "scale_invariant": "scale"}
"""How relative depth is brought to metres before it is measured (`metrics.Protocol.align`)."""


class Range(NamedTuple):
    """Which relative depth a run learns."""

    depth_space: str
    """The teacher's."""
    near: float
    far: float
    """First and last edge of the bins."""

    def of(self, values: NDArray[np.float32], percentiles: tuple[float, float] = ROBUST) -> NDArray[np.float32]:
        """Relative depth (H, W) of a teacher's numbers (H, W); NaN stays NaN.

        Numbers beyond the two percentiles become the ends of the range. For depth up to a scale, of which only ratios
        mean something, the median becomes the geometric middle of the range. NaN everywhere where the numbers are
        fewer than 16, or all the same: then there is no shape to learn.
        """
        known = values[np.isfinite(values)].astype(np.float64)
        nothing = np.full(values.shape, np.nan, np.float32)
        if known.size < LEAST_PIXELS:
            return nothing
        if self.depth_space == "scale_invariant":
            middle = float(np.median(known))
            if middle <= 0:
                return nothing
            relative = values * ((self.near * self.far) ** 0.5 / middle)
            return np.asarray(np.clip(relative, self.near, self.far), np.float32)
        low, high = np.percentile(known, percentiles)
        if not high > low:
            return nothing
        share = np.clip((values - low) / (high - low), 0.0, 1.0)
        if self.depth_space == "affine_disparity":
            return np.asarray(1 / (1 / self.far + share * (1 / self.near - 1 / self.far)), np.float32)
        return np.asarray(self.near + share * (self.far - self.near), np.float32)


def in_own_space(relative: Numbers, depth_space: str) -> Numbers:
    """What is an affine function of the teacher's numbers: relative disparity, or relative depth itself."""
    if depth_space not in {METRIC, "affine_disparity"}:
        return relative
    return 1 / relative  # type: ignore[return-value]  # NumPy's types widen float32 by a whole number, NumPy does not


def depth_space_of(config: Mapping[str, Any]) -> str:
    """What the depth of a run means; metres where its configuration does not say."""
    return str(config.get("depth_space", METRIC))
