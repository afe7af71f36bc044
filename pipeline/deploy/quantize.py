"""A student's ONNX file in int8, and what that costs: in accuracy, and in milliseconds.

Static quantisation with QDQ nodes: weights int8 for each channel, activations uint8, ranges from real images. The tail
from the softmax on stays in float: with 256 levels of probability the depth is off by 3.2 % at the median, with a
float tail by 0.5 % (the demo's student). Weights take 7 of their 8 bits: a CPU without VNNI instructions adds two
products in 16 bits, and would saturate there, so that one file would give two depths on two machines.

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
LEAST_ROUNDS = 3
PATIENCE_S = 20.0
"""A large student at full size takes seconds an image: then fewer rounds must do."""


def int8_of(data: bytes, calibration: ProbeImages, describe: Callable[[Any], None], progress: Progress) -> bytes:
    """The quantised file of a float file's bytes; `describe` puts the metadata in."""
    onnx, quantization = import_onnx("onnx"), import_onnx("onnxruntime.quantization")
    shape_inference = import_onnx("onnxruntime.quantization.shape_inference")
    progress.note(f"calibrating int8 on {calibration.origin}")
    with tempfile.TemporaryDirectory() as folder, _quietly():
        whole, prepared, small = (Path(folder) / name for name in ("whole.onnx", "prepared.onnx", "small.onnx"))
        whole.write_bytes(data)
        # Folds what can be folded, so that no range is taken of what will not be there.
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
            # The least and the largest value: by percentile or entropy no better here, and histograms of every
            # activation of a large student do not fit in memory.
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_exclude=_tail(onnx.load(str(prepared))),
        )
        model = onnx.load(str(small))
    describe(model)
    found: bytes = model.SerializeToString(deterministic=True)
    return found


def _reader(quantization: Any, calibration: ProbeImages) -> Any:  # noqa: ANN401 - onnxruntime has no types
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # a class that is known when it runs
        """Hands the images over, one at a time: they need not be of one size."""

        def __init__(self) -> None:
            self.left = iter(calibration.images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            one = next(self.left, None)
            return None if one is None else {INPUT: as_input(one.image[None])}

    return Reader()


def _tail(model: Any) -> list[str]:  # noqa: ANN401 - onnx has no types
    """Names of the last softmax and all nodes after it, in a graph whose nodes are in order."""
    kinds = [node.op_type for node in model.graph.node]
    assert "Softmax" in kinds, "every student ends in a map"
    last = len(kinds) - 1 - kinds[::-1].index("Softmax")
    return [node.name for node in model.graph.node[last:]]


def loss_of_int8(whole: OnnxStudent, small: OnnxStudent, given: ProbeImages, progress: Progress) -> dict[str, Any]:
    """What int8 costs over images; a JSON value.

    `against_float`: median and 99th percentile of the relative difference of depth over all pixels. `metrics`, where
    there is truth: those of both files by the images' protocol.
    """
    protocol = replace(given.protocol, align=ALIGN[whole.card.depth_space])
    relative: list[NDArray[np.float32]] = []
    rows: dict[str, list[dict[str, float]]] = {"float32": [], "int8": []}
    with progress.task("compare int8", len(given.images), "img") as task:
        for one in given.images:
            depths_m = {
                "float32": whole.predict_m(one.image[None])[0],
                "int8": small.predict_m(one.image[None])[0],
            }
            relative.append((np.abs(depths_m["int8"] - depths_m["float32"]) / depths_m["float32"]).ravel())
            mask = None if one.truth_m is None else protocol.mask(one.truth_m)
            if mask is not None and one.truth_m is not None and mask.any():
                for name, depth_m in depths_m.items():
                    rows[name].append(depth_metrics(protocol.prepared(depth_m, one.truth_m, mask), one.truth_m, mask))
            task.update()
    median, high = np.quantile(np.concatenate(relative), [0.5, 0.99])
    found: dict[str, Any] = {
        "images": len(given.images),
        "against_float": {"median": float(median), "p99": float(high)},
    }
    if rows["int8"]:
        means = {name: mean_metrics(each) for name, each in rows.items()}
        found["metrics"] = {"protocol": protocol.as_json(), "frames": len(rows["int8"]), **means}
    return found


def latencies_ms(students: Mapping[str, OnnxStudent], image: NDArray[np.uint8]) -> dict[str, Any]:
    """Median time of one image (H, W, 3) on one thread, students in turn; a JSON value."""
    given = as_input(image[None])
    for student in students.values():
        student.run(given)
    times: dict[str, list[float]] = {name: [] for name in students}
    begin = time.perf_counter()
    rounds = 0
    while rounds < ROUNDS and (rounds < LEAST_ROUNDS or time.perf_counter() - begin < PATIENCE_S):
        for name, student in students.items():
            start = time.perf_counter()
            student.run(given)
            times[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    medians = {f"{name}_ms": float(np.median(each)) for name, each in times.items()}
    return {"threads": 1, "rounds": rounds, "size_px": list(image.shape[:2]), **medians}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without onnxruntime's advice, which goes to the root logger, and its sums over ranges that nothing uses.

    Entropy has an infinite constant in its tail; its range is taken, and left, for the tail stays in float.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with np.errstate(invalid="ignore"):
            yield
    finally:
        logging.disable(before)
