"""How the samples of a store were aligned to ground truth: its columns, checked, and what they come to."""

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
    """The columns `sample/align_*` of a store that is aligned."""

    def __init__(self, rows: Callable[[str], NDArray[np.generic]]) -> None:
        self._scale, self._shift, self._points, self._residual, self._verdict = (
            rows(PREFIX + name) for name in Fit._fields
        )
        self.accepted: NDArray[np.bool_] = self._verdict == Verdict.ACCEPTED

    def __getitem__(self, number: int) -> Fit:
        """Raises DamagedStoreError for a row that no fit can have."""
        code = int(self._verdict[number])
        if code not in set(Verdict):
            raise DamagedStoreError(f"verdict {code}: expected at most {max(Verdict)}")
        scale, shift, residual = (float(one[number]) for one in (self._scale, self._shift, self._residual))
        found = Fit(scale, shift, int(self._points[number]), residual, Verdict(code))
        if found.verdict == Verdict.ACCEPTED:
            sound = 0 < scale < math.inf and math.isfinite(shift) and math.isfinite(residual)
        else:
            sound = math.isnan(scale) and math.isnan(shift)
        if not sound or found.points < 0 or residual < 0 or math.isinf(residual):
            raise DamagedStoreError(f"an alignment {found}: expected finite numbers, scale above 0, or none")
        return found


def row_of_fit(found: Fit) -> dict[str, float | int | None]:
    """Columns of a fit as the journal takes them: JSON has no NaN, so that is None."""
    return {
        PREFIX + name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in {**found._asdict(), "verdict": int(found.verdict)}.items()
    }
