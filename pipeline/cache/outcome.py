"""Check a finished run of stage one: whether the depth is usable, and whether it fits the bins and the stored range.

Figures come from the journal, so they cover all samples, also those of earlier or other processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..depth.spaces import DISPARITY
from ..errors import PipelineError
from ..store.format.codec import LogCodec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from ..store.format.spec import StoreSpec
    from ..store.write.journal import ShardRecord

WARN_SHARE = 0.01


@dataclass(frozen=True)
class Outside:
    """Fractions of a metric store's depth, over its pixels with a value."""

    bins: float
    bins_m: tuple[float, float]
    codes: float
    codes_m: tuple[float, float]

    def describe(self) -> str:
        """Return a sentence for the summary."""
        return (
            f"{self.bins:.3%} of depth outside the bins ({_span(self.bins_m)}), {self.codes:.3%} outside the stored "
            f"range ({_span(self.codes_m)})"
        )


def row_of(spec: StoreSpec, depth: NDArray[np.float32]) -> dict[str, float | int]:
    """Return the journal columns that `check` needs, from a sample's depth (h, w)."""
    known = depth[np.isfinite(depth)]
    constant = not known.size or known.min() == known.max()
    outside = 0.0
    if spec.depth_space == "metric_m" and known.size:
        outside = float(np.mean((known < spec.bin_edges[0]) | (known > spec.bin_edges[-1])))
    return {"outside_bins_share": outside, "is_constant": int(constant)}


def check(spec: StoreSpec, records: Sequence[ShardRecord]) -> tuple[Outside | None, list[str]]:
    """Return the fractions outside the ranges of a metric store, and warnings about them.

    Raises PipelineError if no pixel has a value, every one of several samples is constant, or all depth is outside the
    bins or the stored range. Samples made by an earlier release have no figures about bins and constants.
    """
    invalid, clipped = column(records, "invalid_share"), column(records, "clipped_share")
    name = spec.teacher.get("name")
    if (invalid >= 1).all():
        raise PipelineError(
            f"teacher {name!r} has no value at any pixel of {len(invalid)} samples, so there is nothing to learn: "
            "check its output, its unit, and which numbers are declared missing"
        )
    recorded = [record for record in records if {"is_constant", "outside_bins_share"} <= set(record.rows)]
    constant = column(recorded, "is_constant")
    if len(recorded) == len(records) and len(constant) > 1 and constant.all():
        raise PipelineError(
            f"teacher {name!r} predicted a constant for each of {len(constant)} samples, so there is nothing to learn: "
            "check its input (normalization, channels) and its output"
        )
    if spec.depth_space == DISPARITY or not isinstance(codec := spec.depth_codec(), LogCodec):
        return None, []
    valid = 1 - column(recorded, "invalid_share")
    outside_bins = column(recorded, "outside_bins_share")
    outside = Outside(
        float((outside_bins * valid).sum() / valid.sum()) if valid.sum() else 0.0,
        (spec.bin_edges[0], spec.bin_edges[-1]),
        min(float(clipped.sum() / (1 - invalid).sum()), 1.0),
        (codec.lo_m, codec.hi_m),
    )
    everything = {
        "the bins": valid.any() and len(recorded) == len(records) and bool((outside_bins[valid > 0] >= 1).all()),
        "the stored range": outside.codes > 1 - 1e-6,
    }
    remedy = "check the unit (`metres_per_unit`), `bins` and `depth_range_m`"
    for what, is_all in everything.items():
        if is_all:
            raise PipelineError(f"all depth of teacher {name!r} is outside {what} ({outside.describe()}): {remedy}")
    if max(outside.bins, outside.codes) > WARN_SHARE:
        return outside, [f"warning: {outside.describe()}, clipped to the nearest end: {remedy}"]
    return outside, []


def column(records: Iterable[ShardRecord], name: str) -> NDArray[np.float64]:
    """Return a journal column of all samples."""
    parts = [np.array(record.rows[name], np.float64) for record in records]
    return np.concatenate(parts) if parts else np.zeros(0)


def _span(ends_m: tuple[float, float]) -> str:
    return f"{ends_m[0]:g} to {ends_m[1]:g} m"
