"""Fit prediction intervals of constant relative width on a calibration split."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..depth.risk_coverage import ErrorHistogram, relative_difference
from ..errors import PipelineError

if TYPE_CHECKING:
    from .measure import EvaluationData, Predict


def fit_error_spread(data: EvaluationData, split: str, predict: Predict) -> ErrorHistogram:
    """Collect relative errors |truth - prediction| / prediction over a calibration split.

    Raises PipelineError if the split shares images with the evaluated one, or has no ground truth.
    """
    protocol = data.protocol
    calibration = replace(data, split=split)
    shared = {sample.id for sample in calibration.samples} & {sample.id for sample in data.samples}
    if shared:
        raise PipelineError(
            f"calibration split {split!r} shares {len(shared)} images with split {data.split!r} ({min(shared)!r}): "
            "use a `calibration_split` of other images"
        )
    spread = ErrorHistogram()
    with data.progress.task("calibrate", len(calibration.samples), "img") as task:
        for frame, prediction in calibration.predictions(predict):
            if frame.truth_m is not None:
                mask = protocol.mask(frame.truth_m) & np.isfinite(prediction.depth_m)
                if mask.any():
                    spread.add(relative_difference(protocol.clamp(prediction.depth_m)[mask], frame.truth_m[mask]))
            task.update()
    if not spread.frames:
        raise PipelineError(
            f"no image of calibration split {split!r} has ground truth within protocol {protocol.name}: use another "
            "`calibration_split`"
        )
    return spread
