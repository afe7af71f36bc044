"""Whether a data set has anything to learn from, told before hours go into it.

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

FIRST = 8
"""So many samples are looked at without telling of it."""
SAME = 1e-5
"""Depths that differ by less of their size are one: those of a constant map are, once it is resized."""


def check_something_to_learn(data: TrainingData, progress: Progress | None = None) -> None:
    """Look at samples in turn until two depths differ; usually that is the first one.

    Raises PipelineError, with the figure, where no pixel of any sample has a value, or all have the same.
    """
    seen = _Seen()
    if any(seen.varies(data.whole_target_m(number)) for number in range(min(FIRST, len(data)))):
        return
    if len(data) > FIRST:
        with (progress or Silent()).task("look for depth to learn", len(data), "sample", done=FIRST) as task:
            for number in range(FIRST, len(data)):
                if seen.varies(data.whole_target_m(number)):
                    return
                task.update()
    what = f"the ground truth {truth_name(data.source)}" if data.store is None else data.store.name
    if math.isinf(seen.low):
        nothing = "no value" if data.relative is None else "no value, or the only one of their sample"
        raise PipelineError(
            f"nothing to learn from {what}: 100 % of the {seen.pixels} pixels of its {len(data)} samples have "
            f"{nothing}; look at its unit, at what is declared invalid, and at how its files were written"
        )
    raise PipelineError(
        f"nothing to learn from {what}: every pixel with a value, in all of its {len(data)} samples, has the depth "
        f"{seen.high:g}; expected depth that varies: look at how its files were written"
    )


class _Seen:
    """The depths of samples so far."""

    def __init__(self) -> None:
        self.low, self.high, self.pixels = math.inf, -math.inf, 0

    def varies(self, target: NDArray[np.float32]) -> bool:
        """Whether depth differs, of the samples before and this one (H, W) together."""
        known = target[np.isfinite(target)]
        self.pixels += target.size
        if known.size:
            self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))
        return self.high - self.low > SAME * abs(self.high)
