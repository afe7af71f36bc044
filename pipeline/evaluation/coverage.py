"""Over which part of the ground truth metrics are: a prediction of what is easy alone has small errors.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..depth.metrics import Protocol

SAME_COVERAGE = 0.001
"""How far the coverage of two evaluations may be apart: 0.1 points of a percentage."""


class Coverage:
    """How much of the valid truth had a prediction."""

    def __init__(self) -> None:
        self.valid_px = self.known_px = 0

    @property
    def fraction(self) -> float:
        """Of all pixels so far, from 0 to 1."""
        return self.known_px / max(1, self.valid_px)

    def add(
        self, predicted_m: NDArray[np.float64] | None, truth_m: NDArray[np.float32] | None, protocol: Protocol
    ) -> dict[str, float]:
        """Count a frame, its depth and truth (H, W), NaN where unknown.

        Returns its own fraction as `coverage`, nothing where it has no truth within the protocol.
        """
        if truth_m is None or not (valid := protocol.mask(truth_m)).any():
            return {}
        valid_px = int(np.count_nonzero(valid))
        known_px = 0 if predicted_m is None else int(np.count_nonzero(valid & np.isfinite(predicted_m)))
        self.valid_px, self.known_px = self.valid_px + valid_px, self.known_px + known_px
        return {"coverage": known_px / valid_px}


def coverage_text(coverage: float | None) -> str:
    """A coverage in percent; never 100 where some had none."""
    if coverage is None:
        return "unknown"
    return f"{min(100 * coverage, 99.99):.2f} %" if coverage < 1 else "100 %"
