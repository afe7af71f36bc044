"""A student as one ONNX file: its metadata, and how to run it.

The file maps an image to metres, or to relative depth if the run learned that: normalization, reading depth from the
network's outputs and upsampling are inside. Its metadata describes everything else that is needed to run it.

Shape legend: B batch, H W pixels of the view.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.fileio import open_regular, parse_json, printable, sha256_bytes
from ..common.licences import DATA, TEACHER
from ..depth.relative import METRIC, depth_space_of
from ..errors import MissingDependencyError, PipelineError
from ..networks.saved_run import TRAINED_FOCAL, licences_of_run, trained_focal_px
from ..sources.intrinsics import MAX_FOCAL_PX
from ..sources.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = "tiekd-student-1"
INPUT, DEPTH, RELATIVE_DEPTH = "image", "depth_m", "relative_depth"
OF_MAP = ("entropy_nats", "low_m", "high_m")
"""Additional outputs of a file exported with uncertainty."""
MAX_BYTES = 2**30
"""The largest student has 320 MB; the limit of the format is 2 GB."""
CPU = "CPUExecutionProvider"


def import_onnx(name: str) -> Any:  # noqa: ANN401 - a module
    """Import a module of the extra `onnx`. Raises MissingDependencyError with the command that installs it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(name.partition(".")[0], "onnx", f"ONNX ({error})") from error


@dataclass(frozen=True)
class Card:
    """Metadata of a file."""

    name: str
    view: View
    """Which part of an image the network takes, and at which size."""
    bin_edges_m: tuple[float, ...]
    """(K + 1,)"""
    weights_sha256: str
    """Digest of the exported run's weights."""
    precision: str
    """`float32` or `int8`."""
    trained_focal_px: float | None
    """Focal length of the training samples, in pixels of the training view; None if unknown."""
    facts: dict[str, str]
    """All metadata of the file."""

    @property
    def depth_space(self) -> str:
        """What its depth means."""
        return self.facts.get("depth_space", METRIC)

    @property
    def depth_range_m(self) -> tuple[float, float]:
        """First and last edge of the bins."""
        return self.bin_edges_m[0], self.bin_edges_m[-1]


class OnnxStudent:
    """A loaded file, ready to predict on the CPU."""

    def __init__(self, data: bytes, name: str, threads: int = 0) -> None:
        """Load the bytes of a file; `name` is for errors. `threads=0` uses one thread per core."""
        runtime = import_onnx("onnxruntime")
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3  # warnings are about onnxruntime's own optimizations
        try:
            self._session = runtime.InferenceSession(data, settings, providers=[CPU])
        except Exception as error:  # onnxruntime's error classes are not public
            raise PipelineError(
                f"{name}: onnxruntime cannot load it ({str(error)[:300]}); expected a file from "
                "`pipeline export-student`"
            ) from error
        self.name = name
        self.sha256 = sha256_bytes(data)
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.card = _card(self._session.get_modelmeta().custom_metadata_map, name)
        shapes = {node.name: node.shape for node in self._session.get_inputs()}
        expected = depth_output(self.card.depth_space)
        if list(shapes) != [INPUT] or len(shapes[INPUT]) != 4 or self.outputs[:1] != [expected]:
            raise PipelineError(
                f"{name} has inputs {', '.join(shapes)} and outputs {', '.join(self.outputs)}; expected input "
                f"{INPUT} and first output {expected}; export it with `pipeline export-student`"
            )
        height, width = shapes[INPUT][2:]
        self.size_px = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        """Fixed (H, W) of the input; None for any size."""

    def run(self, images: NDArray[np.float32], outputs: Sequence[str] = ()) -> list[NDArray[np.float32]]:
        """Outputs (B, H, W), by default depth, for images (B, 3, H, W) float32 RGB in 0..1.

        Raises PipelineError for a size that the file does not take.
        """
        if self.size_px is not None and images.shape[2:] != self.size_px:
            size, expected = ("x".join(map(str, shape)) for shape in (images.shape[2:], self.size_px))
            raise PipelineError(
                f"{self.name} takes images of {expected} px, got {size}; export it without `size_px`, or with "
                f"`size_px={size}`"
            )
        values: list[NDArray[np.float32]] = self._session.run(list(outputs or self.outputs[:1]), {INPUT: images})
        return [value[:, 0] for value in values]

    def predict_m(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Depth (B, H, W) metres for images (B, H, W, 3) uint8 RGB, as the card's view shows them."""
        return self.run(as_input(images))[0]


def depth_output(depth_space: str) -> str:
    """Name of the depth output."""
    return DEPTH if depth_space == METRIC else RELATIVE_DEPTH


def as_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images (B, H, W, 3) uint8 as input of a file: (B, 3, H, W) float32 in 0..1."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def open_onnx(path: Path, threads: int = 0) -> OnnxStudent:
    """Open a file from `export_student`. Raises PipelineError for any other file, ImportError without onnxruntime."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise PipelineError(f"{path}: {size} bytes, expected an ONNX file of at most {MAX_BYTES}")
            # Load from memory: a model loaded by path may read other files of this machine as weights.
            data = file.read(MAX_BYTES)
    except OSError as error:
        raise PipelineError(f"{path}: {error.strerror}; expected a file from `pipeline export-student`") from error
    return OnnxStudent(data, str(path), threads)


def _card(facts: dict[str, str], name: str) -> Card:
    if facts.get("format") != FORMAT:
        raise PipelineError(
            f"{name}: metadata format {printable(str(facts.get('format')))[:80]!r}, expected {FORMAT!r}; export the "
            "run with `pipeline export-student`"
        )
    try:
        edges = [float(value) for value in parse_json(facts["bin_edges_m"].encode())]
        if len(edges) < 3 or np.any(np.diff(edges) <= 0):
            raise PipelineError("bin_edges_m: expected ascending numbers")
        focal_px = float(facts[TRAINED_FOCAL]) if TRAINED_FOCAL in facts else None
        if focal_px is not None and not 0 < focal_px < MAX_FOCAL_PX:
            raise PipelineError(f"{TRAINED_FOCAL} {focal_px}: expected a positive number")
        return Card(
            name=facts["name"],
            view=View.parse(facts["view"]),
            bin_edges_m=tuple(edges),
            weights_sha256=facts["weights_sha256"],
            precision=facts["precision"],
            trained_focal_px=focal_px,
            facts=facts,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"{name}: metadata {printable(str(error))[:300]}; export the run again") from error


def metadata(run_config: dict[str, Any], edges_m: Sequence[float], weights_sha256: str, view: View) -> dict[str, str]:
    """Metadata of a float file, as text, without what the run does not state."""
    teacher = (run_config.get("store") or {}).get("teacher")
    facts = {
        "format": FORMAT,
        "name": str(run_config["student"]),
        "view": str(view),
        "image": "RGB in 0..1, float32; normalisation is inside",
        "depth_space": depth_space_of(run_config),
        "head": str(run_config.get("head", "dpm")),
        "bin_edges_m": json.dumps([float(edge) for edge in edges_m]),
        "depth_range_m": f"{edges_m[0]:g}:{edges_m[-1]:g}",
        "precision": "float32",
        "weights_sha256": weights_sha256,
    }
    focal_px = trained_focal_px(run_config)
    if focal_px is not None:
        facts[TRAINED_FOCAL] = repr(focal_px)
    if "loss" in run_config:
        facts["loss"] = str(run_config["loss"])
    if teacher is not None:
        facts["teacher"] = json.dumps(teacher, sort_keys=True)
        licences = licences_of_run(run_config)
        if licences[TEACHER]:
            facts["licence"] = f"of {TEACHER}: {licences[TEACHER]}"
        if licences[DATA]:
            facts["data_licence"] = str(licences[DATA])
    return facts
