"""Columns of an aligned store: how each sample was aligned to ground truth, checked on reading."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...depth.alignment import Fit, Verdict
from ...errors import DamagedStoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray


PREFIX = "align_"


class AlignmentColumns:
    """Columns `sample/align_*` of an aligned store."""

    def __init__(self, rows: Callable[[str], NDArray[np.generic]]) -> None:
        self._scale, self._shift, self._points, self._residual, self._verdict = (
            rows(PREFIX + name) for name in Fit._fields
        )
        self.accepted: NDArray[np.bool_] = self._verdict == Verdict.ACCEPTED

    def __getitem__(self, number: int) -> Fit:
        """Return the fit of a sample. Raises DamagedStoreError for an invalid row."""
        code = int(self._verdict[number])
        if code not in set(Verdict):
            raise DamagedStoreError(f"invalid verdict {code}: expected at most {max(Verdict)}")
        scale, shift, residual = (float(column[number]) for column in (self._scale, self._shift, self._residual))
        fit = Fit(scale, shift, int(self._points[number]), residual, Verdict(code))
        if fit.verdict == Verdict.ACCEPTED:
            valid = 0 < scale < math.inf and math.isfinite(shift) and math.isfinite(residual)
        else:
            valid = math.isnan(scale) and math.isnan(shift)
        if not valid or fit.points < 0 or residual < 0 or math.isinf(residual):
            raise DamagedStoreError(f"invalid alignment {fit}: expected a positive scale and finite numbers")
        return fit


def row_of_fit(fit: Fit) -> dict[str, float | int | None]:
    """Return a fit as columns of the journal: NaN becomes None, as JSON has no NaN."""
    return {
        PREFIX + name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in {**fit._asdict(), "verdict": int(fit.verdict)}.items()
    }
