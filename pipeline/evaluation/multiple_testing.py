"""Holm's correction of p values for the number of comparisons (Holm 1979)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .significance import Difference


def corrected_p_values(differences: Sequence[Difference]) -> list[float | None]:
    """Return the p value of each difference, corrected by `holm`; None for a difference without one."""
    p_values = [difference.p_value for difference in differences if difference.p_value is not None]
    corrected = iter(holm(p_values))
    return [None if difference.p_value is None else next(corrected) for difference in differences]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm 1979), in the given order.

    Of m values, the smallest is multiplied by m, the next by m - 1, and so on; no corrected value is smaller than the
    one before, or larger than 1. Rejecting all at or below 0.05 keeps the chance of any false rejection at 5 %.

    Raises PipelineError for a value outside of 0 to 1.
    """
    for p_value in p_values:
        if not 0 <= p_value <= 1:
            raise PipelineError(f"p value {p_value}: expected 0 to 1")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
