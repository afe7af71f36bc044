"""Measure one student for the protocol: all readouts and the fitted constant in one pass over the test frames.

Shape legend: B batch, H W pixels of the view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.depth.edges import COLUMNS as EDGE_COLUMNS
from pipeline.depth.edges import edge_metrics
from pipeline.depth.metrics import depth_metrics
from pipeline.depth.readout import READOUTS
from pipeline.depth.scale import ScaleFit
from pipeline.depth.uncertainty import UncertaintyMeter, Views
from pipeline.evaluation.protocol import choose_protocol
from pipeline.networks.predict import predict_outputs, resize_to
from pipeline.networks.reader import default_readout
from pipeline.networks.saved_run import load_run, view_of
from pipeline.sources.frames import frames_in_batches, images_of
from pipeline.sources.registry import open_source
from pipeline.sources.splits import evenly
from pipeline.sources.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.depth.metrics import Protocol
    from pipeline.networks.reader import Reader
    from pipeline.networks.saved_run import LoadedRun
    from pipeline.sources.base import Sample, Source
    from pipeline.sources.frames import Frame

PRIMARY = ("abs_rel", "delta1", "rmse")
BATCH = 8


@dataclass(frozen=True)
class TestSet:
    """Frames to measure on."""

    source: str
    split: str
    max_depth_m: float | None = None
    protocol: str = "plain"


@dataclass
class _Frames:
    """Metrics of each frame, by name."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}


def measure_student(
    run_folder: Path, test: TestSet, scale: dict[str, Any], shifted: TestSet | None, readouts: Sequence[str]
) -> dict[str, Any]:
    """Return the measurements of a student as JSON.

    Args:
        run_folder: the run.
        test: frames of the kind that it was trained on.
        scale: where to fit the constant: `source`, `split`, `truth` and number of `frames`.
        shifted: frames of another kind.
        readouts: ways to read its maps; only the run's own for a student of a response loss: its maps mean nothing.

    Returns `readouts`: for each, the `factor` that was fitted, `frames` with the primary metrics of each test frame, as
    read and (`scaled_...`) with the factor, and means on the `shifted` frames; and `secondary` and
    `shifted_secondary`, for the first readout.
    """
    run = load_run(run_folder)
    readers = {name: run.reader(readout=name) for name in readouts}
    factors = _factors(run, readers, scale)
    frames, secondary = _measure(run, readers, factors, test)
    result: dict[str, Any] = {
        "readouts": {
            name: {
                "factor": round(factors[name], 6),
                "frames": frames[name].values,
            }
            for name in readers
        },
        "secondary": secondary,
    }
    if shifted is not None:
        other, result["shifted_secondary"] = _measure(run, readers, factors, shifted)
        for name in readers:
            result["readouts"][name]["shifted"] = other[name].means()
    return result


def _factors(run: LoadedRun, readers: dict[str, Reader], scale: dict[str, Any]) -> dict[str, float]:
    """Fit a constant for each readout on training frames."""
    source = open_source(scale["source"], scale.get("truth"))
    protocol = choose_protocol(scale.get("protocol", "plain"), source, scale.get("max_depth_m"))
    fits = {name: ScaleFit() for name in readers}
    for frame, depths_m, _ in _predictions(
        run, readers, source, evenly(source.samples(scale["split"]), scale["frames"])
    ):
        assert frame.truth_m is not None
        mask = protocol.mask(frame.truth_m)
        for name, fit in fits.items():
            fit.add(depths_m[name][mask], frame.truth_m[mask])
    return {name: fit.factor() for name, fit in fits.items()}


def _measure(
    run: LoadedRun, readers: dict[str, Reader], factors: dict[str, float], test: TestSet
) -> tuple[dict[str, _Frames], dict[str, Any]]:
    """Return the metrics of each frame for each readout, and secondary metrics for the first readout."""
    source = open_source(test.source)
    protocol = choose_protocol(test.protocol, source, test.max_depth_m)
    meter, edges = UncertaintyMeter(run.bin_edges_m), _Frames()
    frames = {name: _Frames() for name in readers}
    first = next(iter(readers))
    for frame, depths_m, maps in _predictions(run, readers, source, source.samples(test.split)):
        assert frame.truth_m is not None
        mask = protocol.mask(frame.truth_m)
        for name in readers:
            frames[name].add(_primary(depths_m[name], frame.truth_m, mask, protocol, factors[name]))
        predicted_m = protocol.clamp(depths_m[first])
        found = edge_metrics(predicted_m, frame.truth_m, mask)
        edges.add({column: found[column] for column in EDGE_COLUMNS if column in found})
        _add(meter, predicted_m, frame.truth_m, mask, maps, depths_m[first])
    return frames, {**edges.means(), **_uncertainty(meter.result())}


def _add(
    meter: UncertaintyMeter,
    predicted_m: NDArray[np.float64],
    truth_m: NDArray[np.float32],
    mask: NDArray[np.bool_],
    maps: torch.Tensor,
    depth_m: NDArray[np.float32],
) -> None:
    """Add a frame at every second row and column, which takes a quarter of the time.

    Without a mirrored prediction: the flip difference is not part of the protocol.
    """
    some = np.zeros_like(mask)
    some[::2, ::2] = mask[::2, ::2]
    if some.any():
        meter.add(predicted_m, truth_m, some, Views(maps, depth_m, depth_m))


def ause_of(run: LoadedRun, test: TestSet, align: str) -> float:
    """Return AUSE by entropy of a student as it was trained to be read, with its depth aligned as `metrics.ALIGNS`."""
    source = open_source(test.source)
    protocol = choose_protocol(test.protocol, source, test.max_depth_m, align)
    meter = UncertaintyMeter(run.bin_edges_m)
    for frame, depths_m, maps in _predictions(run, {"own": run.reader()}, source, source.samples(test.split)):
        assert frame.truth_m is not None
        mask = protocol.mask(frame.truth_m)
        predicted_m = protocol.prepared(depths_m["own"], frame.truth_m, mask)
        _add(meter, predicted_m, frame.truth_m, mask, maps, depths_m["own"])
    return float(meter.result()["measures"]["entropy"]["ause"])


def _primary(
    depth_m: NDArray[np.float32],
    truth_m: NDArray[np.float32],
    mask: NDArray[np.bool_],
    protocol: Protocol,
    factor: float,
) -> dict[str, float]:
    as_read = depth_metrics(protocol.clamp(depth_m), truth_m, mask)
    scaled = depth_metrics(protocol.clamp(depth_m * factor), truth_m, mask)
    return {**{name: as_read[name] for name in PRIMARY}, **{f"scaled_{name}": scaled[name] for name in PRIMARY}}


def _uncertainty(result: dict[str, Any]) -> dict[str, Any]:
    """Keep what the tables show: ranking by entropy and by interval width, and calibration."""
    intervals = result["intervals"].get("map")
    measures = result["measures"]
    kept: dict[str, Any] = {"risk": measures["oracle"]["risk"][-1]}
    for name in ("entropy", "width", "deviation", "oracle"):
        if name in measures:
            half = measures[name]["risk"][result["coverages"].index(0.5)]
            kept[name] = {"aurc": measures[name]["aurc"], "ause": measures[name]["ause"], "risk_of_half": half}
    if intervals:
        kept |= {
            "nll_nats": intervals["nll_nats"],
            "ece": intervals["ece"],
            "coverage_90": intervals["observed"][intervals["nominal"].index(0.9)],
            "width_90": intervals["width"][intervals["nominal"].index(0.9)],
            "ece_by_range": [
                [part["from_m"], part["to_m"], part["fraction"], part["ece"]] for part in intervals["by_range"]
            ],
        }
    return kept


def _predictions(
    run: LoadedRun, readers: dict[str, Reader], source: Source, samples: Sequence[Sample]
) -> Iterator[tuple[Frame, dict[str, NDArray[np.float32]], torch.Tensor]]:
    """Yield each frame with the depth (H, W) of each readout, and its map (K, h, w)."""
    for frames in frames_in_batches(source, samples, View.parse(view_of(run.config)), BATCH):
        images = images_of(frames, torch.device("cpu"))
        outputs = predict_outputs(run.network, images)
        maps = next(iter(readers.values())).maps(outputs)
        depths_m = {name: resize_to(images, reader.depth_m(outputs, maps)).numpy() for name, reader in readers.items()}
        for index, frame in enumerate(frames):
            yield frame, {name: depth_m[index] for name, depth_m in depths_m.items()}, maps[index]


def readouts_of(loss: str, head: str, readout: str | None) -> tuple[str, ...]:
    """Return the readouts that a student can be read with, the one it was trained with first."""
    own = readout or default_readout(head)
    if head == "depth" or loss.removeprefix("truth-") in {"ssim", "si", "mse", "ssim+si", "ssim+mse"}:
        return (own,)
    others = READOUTS if head == "dpm" else ("geometric", "mean", "absrel")
    return (own, *(name for name in others if name != own))
