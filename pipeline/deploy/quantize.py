"""Quantize a student's ONNX file to int8, and measure the cost in accuracy and time.

Static quantization with QDQ nodes: int8 weights per channel, uint8 activations, ranges from real images. The tail from
the softmax on stays in float (of two outputs, from the last convolution on): with 256 levels of probability, depth
differs by 3.2 % at the median, with a float tail by 0.5 % (the demo's student). Weights use 7 of 8 bits: CPUs without
VNNI instructions add two products in 16 bits, which would saturate and give other depths than on CPUs with VNNI.

Shape legend: H W pixels of the view.
"""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..depth.metrics import depth_metrics, mean_metrics
from ..depth.relative import ALIGN
from .onnx_model import INPUT, as_input, import_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from .onnx_model import OnnxStudent
    from .parity import ProbeImages

ROUNDS = 15
MIN_ROUNDS = 3
MAX_TIMING_S = 20.0
"""A large student at full size takes seconds per image and is timed over fewer rounds."""


def int8_of(data: bytes, calibration: ProbeImages, describe: Callable[[Any], None], progress: Progress) -> bytes:
    """Quantize the bytes of a float file; `describe` sets the metadata."""
    onnx, quantization = import_onnx("onnx"), import_onnx("onnxruntime.quantization")
    shape_inference = import_onnx("onnxruntime.quantization.shape_inference")
    progress.note(f"calibrating int8 on {calibration.origin}")
    with tempfile.TemporaryDirectory() as folder, _quietly():
        whole, prepared, small = (Path(folder) / name for name in ("whole.onnx", "prepared.onnx", "small.onnx"))
        whole.write_bytes(data)
        # Folds constants, so that only remaining nodes get ranges.
        shape_inference.quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(small),
            _reader(quantization, calibration),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            # Percentile and entropy are no better, and their histograms of a large student's activations exceed
            # memory.
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_exclude=_tail(onnx.load(str(prepared))),
        )
        model = onnx.load(str(small))
    describe(model)
    quantized: bytes = model.SerializeToString(deterministic=True)
    return quantized


def _reader(quantization: Any, calibration: ProbeImages) -> Any:  # noqa: ANN401 - onnxruntime has no types
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # a class from a lazy import
        """Yield images one by one; sizes may differ."""

        def __init__(self) -> None:
            self.left = iter(calibration.images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            probe = next(self.left, None)
            return None if probe is None else {INPUT: as_input(probe.image[None])}

    return Reader()


def _tail(model: Any) -> list[str]:  # noqa: ANN401 - onnx has no types
    """Names of the last softmax and all nodes after it, in a graph in topological order.

    Without a softmax, of the last convolution on: its two outputs have different ranges, and 256 levels are too few.
    """
    op_types = [node.op_type for node in model.graph.node]
    begin = "Softmax" if "Softmax" in op_types else "Conv"
    last = len(op_types) - 1 - op_types[::-1].index(begin)
    return [node.name for node in model.graph.node[last:]]


def loss_of_int8(whole: OnnxStudent, small: OnnxStudent, given: ProbeImages, progress: Progress) -> dict[str, Any]:
    """Compare int8 with float over images; return a JSON value.

    `against_float`: median and 99th percentile of the relative difference of depth over all pixels. `metrics`, if
    there is truth: metrics of both files by the protocol of the images.
    """
    protocol = replace(given.protocol, align=ALIGN[whole.card.depth_space])
    relative: list[NDArray[np.float32]] = []
    rows: dict[str, list[dict[str, float]]] = {"float32": [], "int8": []}
    with progress.task("compare int8", len(given.images), "img") as task:
        for probe in given.images:
            depths_m = {
                "float32": whole.predict_m(probe.image[None])[0],
                "int8": small.predict_m(probe.image[None])[0],
            }
            relative.append((np.abs(depths_m["int8"] - depths_m["float32"]) / depths_m["float32"]).ravel())
            mask = None if probe.truth_m is None else protocol.mask(probe.truth_m)
            if mask is not None and probe.truth_m is not None and mask.any():
                for name, depth_m in depths_m.items():
                    rows[name].append(
                        depth_metrics(protocol.prepared(depth_m, probe.truth_m, mask), probe.truth_m, mask)
                    )
            task.update()
    median, high = np.quantile(np.concatenate(relative), [0.5, 0.99])
    result: dict[str, Any] = {
        "images": len(given.images),
        "against_float": {"median": float(median), "p99": float(high)},
    }
    if rows["int8"]:
        means = {name: mean_metrics(each) for name, each in rows.items()}
        result["metrics"] = {"protocol": protocol.as_json(), "frames": len(rows["int8"]), **means}
    return result


def latencies_ms(students: Mapping[str, OnnxStudent], image: NDArray[np.uint8]) -> dict[str, Any]:
    """Median time of one image (H, W, 3) on one thread, alternating students; a JSON value."""
    batch = as_input(image[None])
    for student in students.values():
        student.run(batch)
    times: dict[str, list[float]] = {name: [] for name in students}
    begin = time.perf_counter()
    rounds = 0
    while rounds < ROUNDS and (rounds < MIN_ROUNDS or time.perf_counter() - begin < MAX_TIMING_S):
        for name, student in students.items():
            start = time.perf_counter()
            student.run(batch)
            times[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    medians = {f"{name}_ms": float(np.median(each)) for name, each in times.items()}
    return {"threads": 1, "rounds": rounds, "size_px": list(image.shape[:2]), **medians}


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence onnxruntime's advice in the root logger, and invalid-value warnings from ranges.

    The entropy output has an infinite constant; its range is computed but not used, because the tail stays in float.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with np.errstate(invalid="ignore"):
            yield
    finally:
        logging.disable(before)
