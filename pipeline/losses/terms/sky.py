"""Term `sky`: what to learn where the teacher sees sky, which has no depth.

Shape legend: B batch, H W pixels of the target.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..objective import Target, TargetTerm
from ..registry import IS_SKY

if TYPE_CHECKING:
    from ..base import DepthLoss
    from ..objective import Step


class SkyTerm(TargetTerm):
    """Pixels of sky have one depth as their target, or none if it is NaN."""

    def __init__(self, depth_m: float) -> None:
        super().__init__()
        self.depth_m = depth_m

    def change(self, target: Target, step: Step) -> Target:
        """Return the target with this depth at pixels of sky."""
        is_sky = step.signals["sky"] >= IS_SKY
        return target._replace(depth_m=target.depth_m.masked_fill(is_sky, self.depth_m))


def build_term(value: str, loss: DepthLoss) -> SkyTerm:
    """Build the term: `far` is the far end of the bins, `ignore` no target. See `registry.build_terms`."""
    return SkyTerm(loss.range_m[1] if value == "far" else math.nan)
