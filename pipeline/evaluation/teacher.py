"""Cached depth of a teacher as a prediction, and as the reference of a student.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..depth.metrics import METRICS, depth_metrics, mean_metrics
from ..depth.relative import WHOLE, Range
from ..depth.resize import upsampled
from ..errors import PipelineError
from .identity import store_identity
from .protocol import protocol_depth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..depth.metrics import Protocol
    from ..sources.base import Sample
    from ..sources.frames import Frame
    from ..store import Store

KITTI_SKIPPED_FRACTION = 110 / 352
"""Fraction of rows at the top that a comparison with the teacher skips with the Garg crop: no LiDAR point is there.
110 of the 352 rows of the KB crop, as in the paper."""
RELATIVE_RANGE = (1.0, 100.0)
"""Range of relative depth before alignment, whose result does not depend on it."""


def check_comparable(store: Store, samples: Sequence[Sample], protocol: Protocol) -> None:
    """Raise PipelineError if a student cannot be compared with a store, or if the store lacks a sample."""
    if protocol.align == "none" and not store.is_metric:
        raise PipelineError(
            f"{store.name} holds {store.spec.depth_space}, but the student is measured in metres: compare with a store "
            "that was aligned to ground truth, or leave `store` out"
        )
    store.indexes_of([sample.id for sample in samples])


def teacher_depth_m(store: Store, frame: Frame) -> NDArray[np.float32]:
    """Return the cached depth (H, W) of a frame: metres, or relative depth for a relative store.

    Raises PipelineError if the store was made from another image.
    """
    number = store.index_of(frame.sample.id)
    store.check_image(number, frame.sample.image_path, frame.image_sha256)
    size_px = (frame.image.shape[0], frame.image.shape[1])
    if store.is_metric:
        return upsampled(store.depth_m(number), size_px)
    return Range(store.spec.depth_space, *RELATIVE_RANGE).of(upsampled(store.depth(number), size_px), WHOLE)


def teacher_metrics(
    predicted_m: NDArray[np.float64], frame: Frame, protocol: Protocol, store: Store
) -> dict[str, float]:
    """Metrics of a frame (H, W) with the teacher's depth as the reference, named `teacher_...`.

    `teacher_coverage` is the fraction of pixels with both values; it is the only metric if there are none.
    """
    teacher_m = protocol_depth(teacher_depth_m(store, frame), frame, protocol)
    if teacher_m is None:
        return {"teacher_coverage": 0.0}
    top = round((KITTI_SKIPPED_FRACTION if protocol.crop == "garg" else 0) * len(teacher_m))
    valid = np.isfinite(teacher_m) & np.isfinite(predicted_m)
    valid[:top] = False
    coverage = {"teacher_coverage": float(np.count_nonzero(valid) / valid[top:].size)}
    if not valid.any():
        return coverage
    metrics = depth_metrics(predicted_m, teacher_m, valid)
    return {f"teacher_{name}": value for name, value in metrics.items()} | coverage


def mean_teacher_metrics(rows: Sequence[dict[str, Any]], store: Store) -> dict[str, Any]:
    """Means of `teacher_metrics` over frames, and the identity of the teacher."""
    compared = [{name: row[f"teacher_{name}"] for name in METRICS} for row in rows if "teacher_abs_rel" in row]
    if not compared:
        return {}
    coverages = [row["teacher_coverage"] for row in rows if "teacher_coverage" in row]
    return {
        "against_teacher": {**mean_metrics(compared), "coverage": math.fsum(coverages) / len(coverages)},
        "teacher": store_identity(store),
    }
