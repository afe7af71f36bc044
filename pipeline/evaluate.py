"""A student, or a teacher's cached depth, against ground truth; and a student against its teacher.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .dataset import upsampled
from .fileio import CsvTable, pretty_json, write_durably
from .metrics import METRICS, PROTOCOLS, depth_metrics, mean_metrics
from .predict import frames_in_batches, images_of, predict_depth_m
from .progress import Silent
from .sources.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from .metrics import Protocol
    from .predict import Frame
    from .progress import Progress
    from .sources.base import Source
    from .store import Store
    from .students.run import LoadedRun

TEACHER_TOP_ROW = 110
"""Rows above this are left out of a comparison with the teacher under KITTI's protocol: no LiDAR reaches them."""
CSV_COLUMNS = ("id", *METRICS, "teacher_abs_rel", "teacher_rmse", "teacher_delta1")


def choose_protocol(name: str | None, source: Source, max_m: float | None = None) -> Protocol:
    """Return the named protocol, or the source's own. Raises ValueError for an unknown one."""
    name = name or source.customs.protocol
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if max_m is not None:
        if protocol.max_m is not None and protocol.max_m != max_m:
            raise ValueError(f"protocol {name} has a cap of {protocol.max_m:g} m: leave --max-depth-m out")
        return replace(protocol, max_m=max_m)
    return protocol


def evaluate_student(
    run: LoadedRun,
    source: Source,
    split: str,
    protocol: Protocol,
    *,
    store: Store | None = None,
    device: torch.device | None = None,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a trained student over a split, and with `store` its likeness to the teacher.

    Returns a JSON value: `protocol`, `frames`, `frames_without_truth`, `metrics`, perhaps `against_teacher`, and
    `per_image` rows. Raises ValueError for a split with no truth inside the protocol, and for input at fault.
    """
    device = device or torch.device("cpu")
    network = run.network.to(device)
    edges_m = torch.from_numpy(run.bin_edges_m).to(device)

    def predict(frames: list[Frame]) -> NDArray[np.float32]:
        depth_m = predict_depth_m(network, images_of(frames, device), edges_m, flip_average=protocol.flip_average)
        predicted: NDArray[np.float32] = depth_m.cpu().numpy()
        return predicted

    view = View.parse(run.config["view"])
    return _evaluate(source, split, view, protocol, predict, store, batch_size, progress or Silent())


def evaluate_teacher(
    store: Store, source: Source, split: str, protocol: Protocol, progress: Progress | None = None
) -> dict[str, Any]:
    """Metrics of the teacher's cached depth over a split; the same JSON value as `evaluate_student` gives.

    Raises ValueError where the store lacks a sample, or holds depth that is not metric.
    """
    view = View.parse(store.spec.view)

    def predict(frames: list[Frame]) -> NDArray[np.float32]:
        return np.stack([_teacher_m(store, frame) for frame in frames])

    # A cached map cannot be mirrored and averaged; the protocol that is reported says so.
    protocol = replace(protocol, flip_average=False)
    return _evaluate(source, split, view, protocol, predict, None, 8, progress or Silent())


def _teacher_m(store: Store, frame: Frame) -> NDArray[np.float32]:
    """The cached depth (H, W) for a frame, if it is the image that the teacher saw."""
    number = store.index_of(frame.sample.id)
    if store.image_sha256[number].tobytes().hex() != frame.image_sha256:
        raise ValueError(
            f"{frame.sample.image_path} is not the image that the teacher saw (sha256): {store.name} was made from "
            "other images; use those, or run `pipeline cache-teacher` over these"
        )
    return upsampled(store.depth_m(number), (frame.image.shape[0], frame.image.shape[1]))


def _evaluate(
    source: Source,
    split: str,
    view: View,
    protocol: Protocol,
    predict: Callable[[list[Frame]], NDArray[np.float32]],
    store: Store | None,
    batch_size: int,
    progress: Progress,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    without_truth = 0
    top_row = TEACHER_TOP_ROW if protocol.crop == "garg" else 0
    samples = source.samples(split)
    if store is not None:
        for sample in samples:
            store.index_of(sample.id)  # a store of another split is refused before any work
    with progress.task("evaluate", len(samples), "img") as task:
        for frame, depth_m in _predictions(source, split, view, batch_size, predict):
            row: dict[str, Any] = {"id": frame.sample.id}
            predicted_m = protocol.clamp(depth_m)
            mask = None if frame.truth_m is None else protocol.mask(frame.truth_m) & np.isfinite(depth_m)
            if mask is None or frame.truth_m is None or not mask.any():
                without_truth += 1
            else:
                row |= depth_metrics(predicted_m, frame.truth_m, mask)
            if store is not None:
                teacher_m = _teacher_m(store, frame)
                seen = np.isfinite(teacher_m) & np.isfinite(depth_m)
                seen[:top_row] = False
                if seen.any():
                    alike = depth_metrics(predicted_m, protocol.clamp(teacher_m), seen)
                    row |= {f"teacher_{name}": value for name, value in alike.items()}
            rows.append(row)
            task.update()
    with_truth = [{name: row[name] for name in METRICS} for row in rows if "abs_rel" in row]
    if not with_truth:
        raise ValueError(
            f"no image of split {split!r} has ground truth within protocol {protocol.name}: use another split or "
            "protocol"
        )
    result: dict[str, Any] = {
        "protocol": protocol.as_json(),
        "source": source.name,
        "frames": len(with_truth),
        "frames_without_truth": without_truth,
        "metrics": mean_metrics(with_truth),
    }
    if store is not None:
        alike_rows = [{name: row[f"teacher_{name}"] for name in METRICS} for row in rows if "teacher_abs_rel" in row]
        result["against_teacher"] = mean_metrics(alike_rows)
    return result | {"per_image": rows}


def _predictions(
    source: Source,
    split: str,
    view: View,
    batch_size: int,
    predict: Callable[[list[Frame]], NDArray[np.float32]],
) -> Iterator[tuple[Frame, NDArray[np.float32]]]:
    for frames in frames_in_batches(source, source.samples(split), view, batch_size):
        yield from zip(frames, predict(frames), strict=True)


def write_result(result: dict[str, Any], out: Path) -> None:
    """Write a result as JSON without its rows, and the rows as CSV beside it (`metrics.json`, `metrics.csv`)."""
    kept = {name: value for name, value in result.items() if name != "per_image"}
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = CsvTable(out.with_suffix(".csv"))
    rows.rows = [{name: row.get(name) for name in CSV_COLUMNS} for row in result["per_image"]]
    rows.write()
    write_durably(out, pretty_json(kept))
