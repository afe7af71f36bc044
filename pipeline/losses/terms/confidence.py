"""Term `confidence`: pixels weigh as much as the teacher is confident.

Shape legend: B batch, H W pixels of the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..objective import Target, TargetTerm

if TYPE_CHECKING:
    from ..base import DepthLoss
    from ..objective import Step


class ConfidenceTerm(TargetTerm):
    """Weights are the stored confidence (B, 1, H, W) in 0..1 to the power of the exponent."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def change(self, target: Target, step: Step) -> Target:
        """Return the target with these weights."""
        weights = step.signals["confidence"] ** self.exponent
        return target._replace(weights=weights if target.weights is None else target.weights * weights)


def build_term(value: float, loss: DepthLoss) -> ConfidenceTerm:  # noqa: ARG001 - common signature
    """Build the term with the exponent `value`. See `registry.build_terms`."""
    return ConfidenceTerm(value)
