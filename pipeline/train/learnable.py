"""Check that the targets of a split vary before hours of training on them.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..common.progress import Silent
from ..errors import PipelineError
from ..sources.base import truth_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..common.progress import Progress
    from .dataset import TrainingData

SILENT_SAMPLES = 8
"""Samples that are read before progress is printed."""
RELATIVE_TOLERANCE = 1e-5
"""Depths that differ by less count as equal: resizing a constant map changes it by rounding."""


def check_targets_vary(data: TrainingData, progress: Progress | None = None) -> None:
    """Read samples in order until two depths differ; the first sample is usually enough.

    Raises PipelineError if no pixel of any sample has a value, or if all have the same value.
    """
    depths = _DepthRange()
    if any(depths.add(data.whole_target_m(index)) for index in range(min(SILENT_SAMPLES, len(data)))):
        return
    if len(data) > SILENT_SAMPLES:
        with (progress or Silent()).task("check targets", len(data), "sample", done=SILENT_SAMPLES) as task:
            for index in range(SILENT_SAMPLES, len(data)):
                if depths.add(data.whole_target_m(index)):
                    return
                task.update()
    target = f"the ground truth {truth_name(data.source)}" if data.store is None else data.store.name
    if math.isinf(depths.low):
        reason = "invalid" if data.relative is None else "invalid, or constant within their sample"
        reason += "".join(
            {"sky": ", or sky", "confidence": ", or of no confidence"}.get(name, "") for name in data.signals
        )
        raise PipelineError(
            f"nothing to learn from {target}: all {depths.pixels} pixels of its {len(data)} samples are {reason}; "
            "check its unit, the values declared invalid, and how the files were written"
        )
    raise PipelineError(
        f"nothing to learn from {target}: every valid pixel of its {len(data)} samples has the depth {depths.high:g}, "
        "but depth has to vary; check how the files were written"
    )


class _DepthRange:
    """Smallest and largest depth so far."""

    def __init__(self) -> None:
        self.low, self.high, self.pixels = math.inf, -math.inf, 0

    def add(self, target: NDArray[np.float32]) -> bool:
        """Add a sample (H, W). Returns whether the depths so far differ."""
        valid = target[np.isfinite(target)]
        self.pixels += target.size
        if valid.size:
            self.low, self.high = min(self.low, float(valid.min())), max(self.high, float(valid.max()))
        return self.high - self.low > RELATIVE_TOLERANCE * abs(self.high)
