"""Evaluate a student, or the cached depth of a teacher, against ground truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..common.progress import Silent
from ..depth.uncertainty import UncertaintyMeter, Views
from ..errors import PipelineError
from ..networks.predict import predict_depth_m, predict_views
from ..networks.saved_run import has_map, view_of
from ..sources.frames import images_of
from ..sources.view import View
from .calibration import fit_error_spread, fit_scale
from .identity import run_identity, store_identity
from .measure import EvaluationData, Prediction, measure
from .protocol import store_protocol
from .teacher import teacher_depth_m

if TYPE_CHECKING:
    from ..common.progress import Progress
    from ..depth.metrics import Protocol
    from ..networks.saved_run import LoadedRun
    from ..sources.base import Source
    from ..sources.frames import Frame
    from ..store import Store
    from .measure import Predict

TEACHER_BATCH = 8


def evaluate_student(
    run: LoadedRun,
    source: Source,
    split: str,
    protocol: Protocol,
    *,
    store: Store | None = None,
    uncertainty: bool = False,
    calibration_split: str | None = None,
    readout: str | None = None,
    view: str | None = None,
    device: torch.device | None = None,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a student over a split.

    A relative student is aligned to the ground truth of each image first, and so is a relative teacher.

    Args:
        run: the student.
        source: images and ground truth.
        split: name of a split of the source, or a list file.
        protocol: from `choose_protocol`.
        store: also compare with the teacher's depth in this store.
        uncertainty: also measure uncertainty, from the map and from a prediction of the mirrored image. Other results
            do not change.
        calibration_split: with `uncertainty`, split of other images to fit intervals of constant relative width on.
        readout: how to read depth from the map, one of `readout.READOUTS`; None is the run's.
        view: view of the images; None is that of training. A student of several data sets takes that of the data set
            of `source`, or of the first.
        device: device of the network; None is the CPU.
        batch_size: images per batch.
        progress: where to report progress.

    Returns the result as JSON: `measured`, `protocol`, `source`, `truth`, `split`, `split_sha256`, `frames`,
    `frames_without_truth`, `frames_without_prediction`, `coverage` (fraction of the valid ground truth with a
    prediction), `metrics`; `edges` with dense ground truth, `scale` with a fitted constant; optionally
    `against_teacher`, `teacher` and `uncertainty` (`UncertaintyMeter.result`); and
    `per_image`.

    Raises PipelineError if no image has ground truth within the protocol, if the calibration split shares images with
    the split, and for invalid input.
    """
    if uncertainty and protocol.align != "none":
        raise PipelineError(
            f"`uncertainty` needs metric depth, but the depth is aligned to ground truth (`align={protocol.align}`): "
            "leave one of the two out"
        )
    if store is not None and protocol.scale_split is not None:
        raise PipelineError(
            f"`scale_split={protocol.scale_split}` multiplies the student's depth but not the teacher's: leave it or "
            "`store` out"
        )
    if uncertainty and protocol.scale_split is not None:
        raise PipelineError(
            f"`scale_split={protocol.scale_split}` changes depth but not its intervals: leave it or `uncertainty` out"
        )
    if not uncertainty and calibration_split is not None:
        raise PipelineError(f"`calibration_split={calibration_split}` is only used with `uncertainty`: add it")
    student = _Student(run, protocol, device or torch.device("cpu"), readout)
    chosen = View.parse(view or view_of(run.config, source.name))
    data = EvaluationData(source, split, chosen, protocol, batch_size, progress or Silent())
    identity = {"measured": run_identity(run, readout, view)}
    if not uncertainty:
        return identity | _measure_scaled(data, student.predict, store)
    spread = None if calibration_split is None else fit_error_spread(data, calibration_split, student.predict)
    meter = UncertaintyMeter(run.bin_edges_m, spread)
    result = identity | measure(data, student.predict_with_uncertainty, store, meter)
    result["uncertainty"] = meter.result()
    if "constant" in result["uncertainty"]["intervals"]:
        result["uncertainty"]["intervals"]["constant"]["calibration"]["split"] = calibration_split
    return result


def evaluate_teacher(
    store: Store, source: Source, split: str, protocol: Protocol, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate the teacher's cached depth over a split; returns the same JSON as `evaluate_student`.

    The depth of a relative teacher is aligned to the ground truth of each image, as `protocol.align` says. Raises
    PipelineError if the store lacks a sample.
    """

    def predict(frames: list[Frame]) -> list[Prediction]:
        return [Prediction(teacher_depth_m(store, frame)) for frame in frames]

    view = View.parse(store.spec.view)
    data = EvaluationData(source, split, view, store_protocol(protocol), TEACHER_BATCH, progress or Silent())
    return {"measured": store_identity(store)} | _measure_scaled(data, predict)


def _measure_scaled(data: EvaluationData, predict: Predict, store: Store | None = None) -> dict[str, Any]:
    """Measure predictions, multiplied by one constant if the protocol has one; adds `scale` to the result."""
    if data.protocol.scale_split is None:
        return measure(data, predict, store)
    fit = fit_scale(data, predict)
    factor = fit.factor()

    def scaled(frames: list[Frame]) -> list[Prediction]:
        return [Prediction(np.float32(factor) * prediction.depth_m) for prediction in predict(frames)]

    result = measure(data, scaled, store)
    return result | {"scale": {"factor": factor, "split": data.protocol.scale_split, "frames": fit.frames}}


class _Student:
    """A student on a device, for one protocol."""

    def __init__(self, run: LoadedRun, protocol: Protocol, device: torch.device, readout: str | None) -> None:
        self.network = run.network.to(device)
        self.reader = run.reader(device, readout)
        self.device = device
        self.flip_average = protocol.flip_average
        self.has_map = has_map(run.config)

    def predict(self, frames: list[Frame]) -> list[Prediction]:
        """Predict the depth of frames of one size."""
        images = images_of(frames, self.device)
        depth_m = predict_depth_m(self.network, images, self.reader, flip_average=self.flip_average)
        return [Prediction(depth) for depth in depth_m.cpu().numpy()]

    def predict_with_uncertainty(self, frames: list[Frame]) -> list[Prediction]:
        """Predict the depth of frames of one size, with map and mirrored prediction."""
        images = images_of(frames, self.device)
        views = predict_views(self.network, images, self.reader, flip_average=self.flip_average)
        depth_m, direct_m, mirrored_m = (each.cpu().numpy() for each in views[1:])
        maps = views.maps if self.has_map else [None] * len(frames)
        return [
            Prediction(depth_m[index], Views(maps[index], direct_m[index], mirrored_m[index]))
            for index in range(len(frames))
        ]
