"""Coverage: the fraction of valid ground truth with a prediction. Predicting only easy pixels gives small errors.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..depth.metrics import Protocol

SAME_COVERAGE = 0.001
"""Largest difference in coverage between comparable evaluations: 0.1 percentage points."""


class Coverage:
    """Count pixels of valid ground truth, and those with a prediction, over the frames of a split."""

    def __init__(self) -> None:
        self.valid_px = self.predicted_px = 0

    @property
    def fraction(self) -> float:
        """Coverage of all frames so far, 0 to 1."""
        return self.predicted_px / max(1, self.valid_px)

    def add(
        self, predicted_m: NDArray[np.float64] | None, truth_m: NDArray[np.float32] | None, protocol: Protocol
    ) -> dict[str, float]:
        """Add a frame's depth and ground truth (H, W), NaN where unknown.

        Returns the `coverage` of the frame; empty without ground truth within the protocol.
        """
        if truth_m is None or not (valid := protocol.mask(truth_m)).any():
            return {}
        valid_px = int(np.count_nonzero(valid))
        predicted_px = 0 if predicted_m is None else int(np.count_nonzero(valid & np.isfinite(predicted_m)))
        self.valid_px += valid_px
        self.predicted_px += predicted_px
        return {"coverage": predicted_px / valid_px}


def coverage_text(coverage: float | None) -> str:
    """Format a coverage in percent; 100 % only if it is complete."""
    if coverage is None:
        return "unknown"
    return f"{min(100 * coverage, 99.99):.2f} %" if coverage < 1 else "100 %"
