"""A student, or a teacher's cached depth, against ground truth; and a student against its teacher.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..common.fileio import canonical_json, sha256_bytes
from ..common.progress import Silent
from ..depth.metrics import METRICS, PROTOCOLS, depth_metrics, mean_metrics, unit_hint, unit_ratio
from ..depth.relative import ALIGN, METRIC, WHOLE, Range
from ..depth.resize import upsampled
from ..depth.risk_coverage import ErrorSpread, relative_difference
from ..depth.uncertainty import Look, UncertaintyMeter
from ..errors import PipelineError
from ..networks.predict import predict_depth_m, predict_looks
from ..networks.saved_run import has_map, view_of
from ..sources.base import truth_name
from ..sources.frames import frames_in_batches, images_of
from ..sources.view import View
from .coverage import Coverage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..depth.metrics import Protocol
    from ..networks.saved_run import LoadedRun
    from ..sources.base import Sample, Source
    from ..sources.frames import Frame
    from ..store import Store

TEACHER_TOP_SHARE = 110 / 352
"""The part of the rows, from the top, that a comparison with the teacher leaves out under KITTI's protocol: no LiDAR
reaches them. 110 of the KB crop's 352."""
RANGE = (1.0, 100.0)
"""Of a relative teacher's depth on its way to the alignment, which does not depend on it."""


class Predicted(NamedTuple):
    """A network's depth of a frame, and what it was made of where doubt is asked for."""

    depth_m: NDArray[np.float32]
    """(H, W) metres"""
    look: Look | None = None


def choose_protocol(
    name: str | None, source: Source, max_m: float | None = None, align: str | None = None, depth_space: str = METRIC
) -> Protocol:
    """Return the named protocol, or the source's own, with an alignment that suits what is measured.

    Raises PipelineError for an unknown one, and where relative depth is to be aligned otherwise than its teacher was
    relative: that would measure what nobody learned.
    """
    name = name or source.customs.protocol
    if name not in PROTOCOLS:
        raise PipelineError(f"protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
    own = ALIGN[depth_space]
    if align is not None and depth_space != METRIC and align != own:
        raise PipelineError(
            f"`align={align}`: this is {depth_space}, which is measured with `align={own}`: leave it out"
        )
    protocol = replace(PROTOCOLS[name], align=align or own)
    if max_m is not None:
        if protocol.max_m is not None and protocol.max_m != max_m:
            raise PipelineError(f"protocol {name} has a cap of {protocol.max_m:g} m: leave `max_depth_m` out")
        return replace(protocol, max_m=max_m)
    return protocol


def evaluate_student(
    run: LoadedRun,
    source: Source,
    split: str,
    protocol: Protocol,
    *,
    store: Store | None = None,
    uncertainty: bool = False,
    calibration_split: str | None = None,
    device: torch.device | None = None,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a trained student over a split, and with `store` its likeness to the teacher.

    With `uncertainty`, whether it knows when it is wrong too, for which each image is looked at mirrored as well; all
    other figures stay the same. Intervals of constant relative width are fitted on `calibration_split`, on whose
    depths' errors no test image has a say.

    A relative student is aligned to the truth of each image before it is measured; so is a relative teacher that
    it is compared with; images without truth then say nothing of either.

    Returns a JSON value: who and how (`measured`, `protocol`, `split`, ...), `frames`, `frames_without_truth`,
    `frames_without_prediction`, `coverage` (fraction of the valid truth that had a prediction), `metrics`, perhaps
    `against_teacher` and `uncertainty` (see `UncertaintyMeter.result`), and `per_image` rows.

    Raises PipelineError for a split with no truth
    inside the protocol, a calibration split that shares images with it, and for input at fault.
    """
    progress = progress or Silent()
    device = device or torch.device("cpu")
    network = run.network.to(device)
    edges_m = torch.from_numpy(run.bin_edges_m).to(device)
    view = View.parse(view_of(run.config))
    mapped = has_map(run.config)

    def predict(frames: list[Frame]) -> list[Predicted]:
        depth_m = predict_depth_m(network, images_of(frames, device), edges_m, flip_average=protocol.flip_average)
        return [Predicted(one) for one in depth_m.cpu().numpy()]

    def look(frames: list[Frame]) -> list[Predicted]:
        looks = predict_looks(network, images_of(frames, device), edges_m, flip_average=protocol.flip_average)
        depth_m, plain_m, mirrored_m = (each.cpu().numpy() for each in looks[1:])
        return [
            Predicted(depth_m[place], Look(looks.maps[place] if mapped else None, plain_m[place], mirrored_m[place]))
            for place in range(len(frames))
        ]

    if uncertainty and protocol.align != "none":
        raise PipelineError(
            f"`uncertainty`: doubt is measured in metres, and this is measured after alignment ({protocol.align}): "
            "leave one of the two out"
        )
    measured = {"measured": identity_of_run(run)}
    if not uncertainty:
        if calibration_split is not None:
            raise PipelineError(f"`calibration_split={calibration_split}`: it fits intervals, so add `uncertainty`")
        return measured | _evaluate(source, split, view, protocol, predict, store, None, batch_size, progress)
    spread = None
    if calibration_split is not None:
        spread = _error_spread(source, calibration_split, split, view, protocol, predict, batch_size, progress)
    meter = UncertaintyMeter(run.bin_edges_m, spread)
    result = measured | _evaluate(source, split, view, protocol, look, store, meter, batch_size, progress)
    result["uncertainty"] = meter.result()
    if "constant" in result["uncertainty"]["intervals"]:
        result["uncertainty"]["intervals"]["constant"]["calibration"]["split"] = calibration_split
    return result


def _error_spread(
    source: Source,
    split: str,
    measured: str,
    view: View,
    protocol: Protocol,
    predict: Callable[[list[Frame]], list[Predicted]],
    batch_size: int,
    progress: Progress,
) -> ErrorSpread:
    """Relative errors |truth - prediction| / prediction over a split that shares no image with the measured one."""
    samples = source.samples(split)
    shared = {sample.id for sample in samples} & {sample.id for sample in source.samples(measured)}
    if shared:
        raise PipelineError(
            f"calibration split {split!r} shares {len(shared)} images with split {measured!r} ({min(shared)!r}): "
            "choose one of other images for `calibration_split`"
        )
    spread = ErrorSpread()
    with progress.task("calibrate", len(samples), "img") as task:
        for frame, predicted in _predictions(source, split, view, batch_size, predict):
            if frame.truth_m is not None:
                mask = protocol.mask(frame.truth_m) & np.isfinite(predicted.depth_m)
                if mask.any():
                    spread.add(relative_difference(protocol.clamp(predicted.depth_m)[mask], frame.truth_m[mask]))
            task.update()
    if not spread.frames:
        raise PipelineError(
            f"no image of calibration split {split!r} has ground truth within protocol {protocol.name}: use another "
            "`calibration_split`"
        )
    return spread


def evaluate_teacher(
    store: Store, source: Source, split: str, protocol: Protocol, progress: Progress | None = None
) -> dict[str, Any]:
    """Metrics of the teacher's cached depth over a split; the same JSON value as `evaluate_student` gives.

    A relative teacher's is aligned to the truth of each image, as `protocol.align` says. Raises PipelineError where the
    store lacks a sample.
    """
    view = View.parse(store.spec.view)

    def predict(frames: list[Frame]) -> list[Predicted]:
        return [Predicted(_teacher_m(store, frame)) for frame in frames]

    found = _evaluate(source, split, view, of_store(protocol), predict, None, None, 8, progress or Silent())
    return {"measured": identity_of_store(store)} | found


def of_store(protocol: Protocol) -> Protocol:
    """The protocol as a store is measured by it: a cached map cannot be mirrored and averaged."""
    return replace(protocol, flip_average=False)


def _teacher_m(store: Store, frame: Frame) -> NDArray[np.float32]:
    """The cached depth (H, W) for a frame, if it is the image that the teacher saw; relative where the store is."""
    number = store.index_of(frame.sample.id)
    if store.image_sha256[number].tobytes().hex() != frame.image_sha256:
        raise PipelineError(
            f"{frame.sample.image_path} is not the image that the teacher saw (sha256): {store.name} was made from "
            "other images; use those, or run `pipeline cache-teacher` over these"
        )
    size_px = (frame.image.shape[0], frame.image.shape[1])
    if store.is_metric:
        return upsampled(store.depth_m(number), size_px)
    return Range(store.spec.depth_space, *RANGE).of(upsampled(store.depth(number), size_px), WHOLE)


def _evaluate(
    source: Source,
    split: str,
    view: View,
    protocol: Protocol,
    predict: Callable[[list[Frame]], list[Predicted]],
    store: Store | None,
    meter: UncertaintyMeter | None,
    batch_size: int,
    progress: Progress,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    ratios: list[float] = []
    coverage = Coverage()
    samples = source.samples(split)
    if store is not None:
        _check_store(store, samples, protocol)
    with progress.task("evaluate", len(samples), "img") as task:
        for frame, (depth_m, look) in _predictions(source, split, view, batch_size, predict):
            row: dict[str, Any] = {"id": frame.sample.id}
            if protocol.align == "none" and frame.truth_m is not None:
                ratios.append(unit_ratio(depth_m, frame.truth_m))
            predicted_m = _prepared(depth_m, frame, protocol)
            row |= coverage.add(predicted_m, frame.truth_m, protocol)
            if predicted_m is not None:
                row |= _against_truth(predicted_m, frame, protocol, meter, look)
                row |= {} if store is None else _against_teacher(predicted_m, frame, protocol, store)
            rows.append(row)
            task.update()
    hint = unit_hint(ratios)
    if hint is not None:
        progress.note(hint)
    with_truth = [{name: row[name] for name in METRICS} for row in rows if "abs_rel" in row]
    if not with_truth:
        raise PipelineError(_nothing_measured(split, protocol, coverage))
    without = sum("coverage" not in row for row in rows)
    result = {
        **measured_how(source, split, protocol),
        "frames": len(with_truth),
        "frames_without_truth": without,
        "frames_without_prediction": len(rows) - without - len(with_truth),
        "coverage": coverage.fraction,
        "metrics": mean_metrics(with_truth),
    }
    return result | ({} if store is None else _mean_likeness(rows, store)) | {"per_image": rows}


def measured_how(source: Source, split: str, protocol: Protocol) -> dict[str, Any]:
    """Under which terms something is measured: the part of a result that is known before the work."""
    ids = "\n".join(sample.id for sample in source.samples(split))
    return {
        "protocol": protocol.as_json(),
        "source": source.name,
        "truth": truth_name(source),
        "split": Path(split).name,
        "split_sha256": sha256_bytes(ids.encode()),
    }


def identity_of_run(run: LoadedRun) -> dict[str, str]:
    """Which student was measured, whatever its directory is called."""
    return {"weights_sha256": run.weights_sha256}


def identity_of_store(store: Store) -> dict[str, str]:
    """Which teacher was measured, or compared with: by what the store says of it, and by the store itself."""
    return {"store_digest": store.spec.digest(), "teacher_sha256": sha256_bytes(canonical_json(store.spec.teacher))}


def _nothing_measured(split: str, protocol: Protocol, coverage: Coverage) -> str:
    if coverage.valid_px:
        return (
            f"no image of split {split!r} has a prediction at any of its {coverage.valid_px} pixels with ground truth"
        )
    return (
        f"no image of split {split!r} has ground truth within protocol {protocol.name}: use another split or protocol"
    )


def _mean_likeness(rows: Sequence[dict[str, Any]], store: Store) -> dict[str, Any]:
    """Means of the metrics against a teacher, over which part of the frames they are, and which teacher it is."""
    alike = [{name: row[f"teacher_{name}"] for name in METRICS} for row in rows if "teacher_abs_rel" in row]
    if not alike:
        return {}
    covered = [row["teacher_coverage"] for row in rows if "teacher_coverage" in row]
    return {
        "against_teacher": {**mean_metrics(alike), "coverage": math.fsum(covered) / len(covered)},
        "teacher": identity_of_store(store),
    }


def _check_store(store: Store, samples: Sequence[Sample], protocol: Protocol) -> None:
    """Refuse, before any work, a store that cannot be compared with, or that is of another split."""
    if protocol.align == "none" and not store.is_metric:
        raise PipelineError(
            f"{store.name} holds {store.spec.depth_space}, and this is measured in metres: compare with a store that "
            "was aligned to ground truth, or leave `store` out"
        )
    store.indexes_of([sample.id for sample in samples])


def _against_truth(
    predicted_m: NDArray[np.float64],
    frame: Frame,
    protocol: Protocol,
    meter: UncertaintyMeter | None,
    look: Look | None,
) -> dict[str, float]:
    """Metrics of a frame, none where it has no truth within the protocol."""
    if frame.truth_m is None:
        return {}
    mask = protocol.mask(frame.truth_m) & np.isfinite(predicted_m)
    if not mask.any():
        return {}
    row = depth_metrics(predicted_m, frame.truth_m, mask)
    if meter is not None and look is not None:
        row |= meter.add(predicted_m, frame.truth_m, mask, look)
    return row


def _against_teacher(
    predicted_m: NDArray[np.float64], frame: Frame, protocol: Protocol, store: Store
) -> dict[str, float]:
    """Metrics of a frame with the teacher's depth for truth, and over which fraction of the pixels they are.

    The coverage alone where the teacher has no value.
    """
    teacher_m = _prepared(_teacher_m(store, frame), frame, protocol)
    if teacher_m is None:
        return {"teacher_coverage": 0.0}
    top = round((TEACHER_TOP_SHARE if protocol.crop == "garg" else 0) * len(teacher_m))
    seen = np.isfinite(teacher_m) & np.isfinite(predicted_m)
    seen[:top] = False
    covered = {"teacher_coverage": float(np.count_nonzero(seen) / seen[top:].size)}
    if not seen.any():
        return covered
    alike = depth_metrics(predicted_m, teacher_m, seen)
    return {f"teacher_{name}": value for name, value in alike.items()} | covered


def _prepared(depth_m: NDArray[np.float32], frame: Frame, protocol: Protocol) -> NDArray[np.float64] | None:
    """Depth (H, W) as it is measured; None where it is to be aligned and there is no truth to align it to."""
    if protocol.align == "none":
        return protocol.clamp(depth_m)
    if frame.truth_m is None:
        return None
    mask = protocol.mask(frame.truth_m) & np.isfinite(depth_m)
    return protocol.prepared(depth_m, frame.truth_m, mask) if mask.any() else None


def _predictions(
    source: Source,
    split: str,
    view: View,
    batch_size: int,
    predict: Callable[[list[Frame]], list[Predicted]],
) -> Iterator[tuple[Frame, Predicted]]:
    for frames in frames_in_batches(source, source.samples(split), view, batch_size):
        yield from zip(frames, predict(frames), strict=True)
