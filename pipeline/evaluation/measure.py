"""Measure the predictions of a network or a store over a split.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..depth.edges import COLUMNS as EDGE_COLUMNS
from ..depth.edges import edge_metrics
from ..depth.metrics import METRICS, depth_metrics, mean_metrics, unit_hint, unit_ratio
from ..errors import PipelineError
from ..sources.frames import frames_in_batches
from .coverage import Coverage
from .identity import measurement_terms
from .protocol import protocol_depth
from .teacher import check_comparable, mean_teacher_metrics, teacher_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..depth.metrics import Protocol
    from ..depth.uncertainty import UncertaintyMeter, Views
    from ..sources.base import Sample, Source
    from ..sources.frames import Frame
    from ..sources.view import View
    from ..store import Store

    Predict = Callable[[list[Frame]], list["Prediction"]]


class Prediction(NamedTuple):
    """Depth of a frame, and the parts of it that uncertainty is measured from."""

    depth_m: NDArray[np.float32]
    """(H, W) metres"""
    views: Views | None = None


@dataclass(frozen=True)
class EvaluationData:
    """A split to evaluate on, and the protocol."""

    source: Source
    split: str
    view: View
    protocol: Protocol
    batch_size: int
    progress: Progress

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """Samples of the split, listed once."""
        return self.source.samples(self.split)

    def predictions(
        self, predict: Predict, samples: Sequence[Sample] | None = None
    ) -> Iterator[tuple[Frame, Prediction]]:
        """Yield each frame of the split, or of some samples of it, with its prediction."""
        samples = self.samples if samples is None else samples
        for frames in frames_in_batches(self.source, samples, self.view, self.batch_size):
            yield from zip(frames, predict(frames), strict=True)


def measure(
    data: EvaluationData, predict: Predict, store: Store | None = None, meter: UncertaintyMeter | None = None
) -> dict[str, Any]:
    """Return metrics over a split, and rows of each image, as JSON.

    With `store`, also compare with the teacher. With `meter`, also count the uncertainty of each prediction.

    Raises PipelineError if no image has both ground truth within the protocol and a prediction there.
    """
    protocol = data.protocol
    rows: list[dict[str, Any]] = []
    ratios: list[float] = []
    coverage = Coverage()
    if store is not None:
        check_comparable(store, data.samples, protocol)
    with data.progress.task("evaluate", len(data.samples), "img") as task:
        for frame, prediction in data.predictions(predict):
            if protocol.align == "none" and frame.truth_m is not None:
                ratios.append(unit_ratio(prediction.depth_m, frame.truth_m))
            rows.append(_row(frame, prediction, protocol, coverage, store, meter))
            task.update()
    hint = unit_hint(ratios)
    if hint is not None:
        data.progress.note(hint)
    with_truth = [{name: row[name] for name in METRICS} for row in rows if "abs_rel" in row]
    if not with_truth:
        raise PipelineError(_nothing_measured(data.split, protocol, coverage))
    without_truth = sum("coverage" not in row for row in rows)
    result = {
        **measurement_terms(data.source, data.split, protocol),
        "frames": len(with_truth),
        "frames_without_truth": without_truth,
        "frames_without_prediction": len(rows) - without_truth - len(with_truth),
        "coverage": coverage.fraction,
        "metrics": mean_metrics(with_truth),
    }
    with_edges = [{name: row[name] for name in EDGE_COLUMNS} for row in rows if EDGE_COLUMNS[0] in row]
    if with_edges:
        result["edges"] = {**mean_metrics(with_edges), "frames": len(with_edges)}
    if store is not None:
        result |= mean_teacher_metrics(rows, store)
    return result | {"per_image": rows}


def _row(
    frame: Frame,
    prediction: Prediction,
    protocol: Protocol,
    coverage: Coverage,
    store: Store | None,
    meter: UncertaintyMeter | None,
) -> dict[str, Any]:
    """Metrics of one frame. Without ground truth to align to, only its id."""
    row: dict[str, Any] = {"id": frame.sample.id}
    predicted_m = protocol_depth(prediction.depth_m, frame, protocol)
    row |= coverage.add(predicted_m, frame.truth_m, protocol)
    if predicted_m is None:
        return row
    row |= _truth_metrics(predicted_m, frame, protocol, meter, prediction.views)
    if store is not None:
        row |= teacher_metrics(predicted_m, frame, protocol, store)
    return row


def _truth_metrics(
    predicted_m: NDArray[np.float64],
    frame: Frame,
    protocol: Protocol,
    meter: UncertaintyMeter | None,
    views: Views | None,
) -> dict[str, float]:
    """Metrics of a frame against ground truth; empty without ground truth within the protocol."""
    if frame.truth_m is None:
        return {}
    mask = protocol.mask(frame.truth_m) & np.isfinite(predicted_m)
    if not mask.any():
        return {}
    row = depth_metrics(predicted_m, frame.truth_m, mask)
    row |= edge_metrics(predicted_m, frame.truth_m, mask)
    if meter is not None and views is not None:
        row |= meter.add(predicted_m, frame.truth_m, mask, views)
    return row


def _nothing_measured(split: str, protocol: Protocol, coverage: Coverage) -> str:
    if coverage.valid_px:
        return f"no image of split {split!r} has a prediction at any of its {coverage.valid_px} pixels of ground truth"
    return (
        f"no image of split {split!r} has ground truth within protocol {protocol.name}: use another split or protocol"
    )
