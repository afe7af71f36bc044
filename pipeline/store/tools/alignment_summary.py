"""Summary of how an aligned store's samples were aligned to ground truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...depth.alignment import REASONS, Verdict

if TYPE_CHECKING:
    from ..read.store import Store

QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


class AlignmentSummary(NamedTuple):
    """Summary of an aligned store."""

    samples: int
    accepted: int
    rejected: dict[str, list[str]]
    """Ids of rejected samples by reason."""
    residual: dict[str, float]
    """Quantiles of accepted residuals, named as in QUANTILES; empty if none was accepted."""

    def describe(self) -> str:
        """Return one line of text."""
        text = f"{self.accepted} of {self.samples} samples accepted"
        if self.residual:
            text += ", relative residual " + ", ".join(f"{name} {value:.4f}" for name, value in self.residual.items())
        if self.rejected:
            text += "; rejected: " + ", ".join(f"{len(ids)} {reason}" for reason, ids in self.rejected.items())
        return text


def summarize(store: Store) -> AlignmentSummary:
    """Summarize an aligned store. Raises DamagedStoreError for an invalid row."""
    fits = [store.alignment(number) for number in range(len(store))]
    residuals = [fit.residual for fit in fits if fit.verdict == Verdict.ACCEPTED]
    rejected: dict[str, list[str]] = {}
    for name, fit in zip(store.ids, fits, strict=True):
        if fit.verdict != Verdict.ACCEPTED:
            rejected.setdefault(REASONS[fit.verdict], []).append(name)
    return AlignmentSummary(
        samples=len(fits),
        accepted=len(residuals),
        rejected=rejected,
        residual={name: float(np.quantile(residuals, level)) for name, level in QUANTILES.items()} if residuals else {},
    )
