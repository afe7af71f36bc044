"""Fit what is fitted on other images: one constant for depth, and intervals of constant relative width."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..depth.risk_coverage import ErrorHistogram, relative_difference
from ..depth.scale import ScaleFit
from ..errors import PipelineError
from .identity import scale_samples

if TYPE_CHECKING:
    from .measure import EvaluationData, Predict


def fit_scale(data: EvaluationData, predict: Predict) -> ScaleFit:
    """Fit the constant on images of `data.protocol.scale_split`, evenly spaced.

    Raises PipelineError if the split shares images with the evaluated one, or has no ground truth.
    """
    split = data.protocol.scale_split
    assert split is not None
    calibration = replace(data, split=split)
    _refuse_shared(data, calibration, "scale_split")
    fit, protocol = ScaleFit(), data.protocol
    chosen = scale_samples(calibration.samples)
    with data.progress.task("fit scale", len(chosen), "img") as task:
        for frame, prediction in calibration.predictions(predict, chosen):
            if frame.truth_m is not None:
                mask = protocol.mask(frame.truth_m) & (prediction.depth_m > 0) & np.isfinite(prediction.depth_m)
                fit.add(prediction.depth_m[mask], frame.truth_m[mask])
            task.update()
    if not fit.frames:
        raise PipelineError(
            f"no image of `scale_split={split}` has ground truth within protocol {protocol.name}: use another split"
        )
    return fit


def _refuse_shared(data: EvaluationData, calibration: EvaluationData, option: str) -> None:
    """Raise PipelineError if two splits share images."""
    shared = {sample.id for sample in calibration.samples} & {sample.id for sample in data.samples}
    if shared:
        raise PipelineError(
            f"`{option}={calibration.split}` shares {len(shared)} images with split {data.split!r} ({min(shared)!r}): "
            "use a split of other images"
        )


def fit_error_spread(data: EvaluationData, split: str, predict: Predict) -> ErrorHistogram:
    """Collect relative errors |truth - prediction| / prediction over a calibration split.

    Raises PipelineError if the split shares images with the evaluated one, or has no ground truth.
    """
    protocol = data.protocol
    calibration = replace(data, split=split)
    _refuse_shared(data, calibration, "calibration_split")
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
