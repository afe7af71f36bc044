"""How the samples of an aligned store were brought to metres, as a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...depth.alignment import REASONS, Verdict

if TYPE_CHECKING:
    from ..read.store import Store

QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


class AlignmentSummary(NamedTuple):
    """What an aligned store has come to."""

    samples: int
    accepted: int
    rejected: dict[str, list[str]]
    """Ids of those that were not accepted, by the reason; reasons that did not occur are left out."""
    residual: dict[str, float]
    """Quantiles of the accepted ones' residuals, as QUANTILES names them; empty where there are none."""

    def describe(self) -> str:
        """One line for people."""
        text = f"{self.accepted} of {self.samples} samples accepted"
        if self.residual:
            text += ", relative residual " + ", ".join(f"{name} {value:.4f}" for name, value in self.residual.items())
        if self.rejected:
            text += "; rejected: " + ", ".join(f"{len(ids)} {reason}" for reason, ids in self.rejected.items())
        return text


def summarize(store: Store) -> AlignmentSummary:
    """Sum an aligned store up. Raises DamagedStoreError for a row that no fit can have."""
    fits = [store.alignment(number) for number in range(len(store))]
    residuals = [one.residual for one in fits if one.verdict == Verdict.ACCEPTED]
    rejected: dict[str, list[str]] = {}
    for name, one in zip(store.ids, fits, strict=True):
        if one.verdict != Verdict.ACCEPTED:
            rejected.setdefault(REASONS[one.verdict], []).append(name)
    return AlignmentSummary(
        samples=len(fits),
        accepted=len(residuals),
        rejected=rejected,
        residual={name: float(np.quantile(residuals, share)) for name, share in QUANTILES.items()} if residuals else {},
    )
