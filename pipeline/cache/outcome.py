"""What a run of stage one made, looked at as a whole: is there anything to learn, and did the ranges fit.

Figures come from the rows of the journal, so that they are of all samples, whoever made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
        """For people."""
        return (
            f"{self.bins:.3%} of depth outside of the bins ({_span(self.bins_m)}), {self.codes:.3%} outside of the "
            f"stored range ({_span(self.codes_m)})"
        )


def row_of(spec: StoreSpec, depth: NDArray[np.float32]) -> dict[str, float | int]:
    """Columns of the journal that `check` needs of a sample's depth (h, w)."""
    known = depth[np.isfinite(depth)]
    constant = not known.size or known.min() == known.max()
    outside = 0.0
    if spec.depth_space == "metric_m" and known.size:
        outside = float(np.mean((known < spec.bin_edges[0]) | (known > spec.bin_edges[-1])))
    return {"outside_bins_share": outside, "is_constant": int(constant)}


def check(spec: StoreSpec, records: Sequence[ShardRecord]) -> tuple[Outside | None, list[str]]:
    """Fractions outside of the ranges of a metric store, and warnings about them.

    Raises PipelineError where no sample has anything to learn from: no value, or one constant each; or where all depth
    is outside of the bins, or of the codes' range. One sample alone may be constant. Samples that an earlier release
    made say nothing of bins and constants.
    """
    invalid, clipped = column(records, "invalid_share"), column(records, "clipped_share")
    name = spec.teacher.get("name")
    if (invalid >= 1).all():
        raise PipelineError(
            f"teacher {name!r} gave no value at 100 % of the pixels of {len(invalid)} samples: nothing to learn; look "
            "at what it gives, its unit, and what is declared to be no value"
        )
    told = [record for record in records if {"is_constant", "outside_bins_share"} <= set(record.rows)]
    constant = column(told, "is_constant")
    if len(told) == len(records) and len(constant) > 1 and constant.all():
        raise PipelineError(
            f"teacher {name!r} gave one constant for all pixels of each of {len(constant)} samples: there is nothing "
            "to learn; look at its input (normalisation, channels) and at its output"
        )
    if not isinstance(codec := spec.depth_codec(), LogCodec):
        return None, []
    known = 1 - column(told, "invalid_share")
    share = column(told, "outside_bins_share")
    outside = Outside(
        float((share * known).sum() / known.sum()) if known.sum() else 0.0,
        (spec.bin_edges[0], spec.bin_edges[-1]),
        min(float(clipped.sum() / (1 - invalid).sum()), 1.0),
        (codec.lo_m, codec.hi_m),
    )
    everything = {
        "the bins": known.any() and len(told) == len(records) and bool((share[known > 0] >= 1).all()),
        "the stored range": outside.codes > 1 - 1e-6,
    }
    remedy = "another unit (`metres_per_unit`), `bins` or `depth_range_m`?"
    for what, is_all in everything.items():
        if is_all:
            raise PipelineError(f"all depth of teacher {name!r} is outside of {what}: {outside.describe()}; {remedy}")
    if max(outside.bins, outside.codes) > WARN_SHARE:
        return outside, [f"warning: {outside.describe()}; it is learned as the nearest end: {remedy}"]
    return outside, []


def column(records: Iterable[ShardRecord], name: str) -> NDArray[np.float64]:
    """A column of all samples of some records."""
    parts = [np.array(record.rows[name], np.float64) for record in records]
    return np.concatenate(parts) if parts else np.zeros(0)


def _span(ends_m: tuple[float, float]) -> str:
    return f"{ends_m[0]:g} to {ends_m[1]:g} m"
