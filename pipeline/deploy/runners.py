"""Predictors for a folder of images: a run in PyTorch, or its ONNX file.

Shape legend: B batch, h w pixels of the view.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..common.device import choose_device
from ..depth.readout import DEFAULT
from ..depth.relative import depth_space_of
from ..errors import PipelineError
from ..networks.predict import predict_depth_m
from ..networks.saved_run import load_run, trained_focal_px, view_of
from ..sources.view import View
from .onnx_model import open_onnx

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ..networks.saved_run import LoadedRun
    from .onnx_model import OnnxStudent


class RunPredictor:
    """A finished run on a device. `size_px` resizes its view."""

    def __init__(
        self,
        run: LoadedRun,
        device: torch.device,
        size_px: tuple[int, int] | None = None,
        readout: str | None = None,
    ) -> None:
        self.view = _resized(View.parse(view_of(run.config)), size_px)
        self.depth_space = depth_space_of(run.config)
        self.facts: dict[str, Any] = {"name": str(run.config["student"]), "weights_sha256": run.weights_sha256}
        self.trained_focal_px = trained_focal_px(run.config)
        self.depth_range_m = float(run.bin_edges_m[0]), float(run.bin_edges_m[-1])
        self._network = run.network.to(device)
        self._reader = run.reader(device, readout)
        if self._reader.readout != DEFAULT:
            self.facts["readout"] = self._reader.readout
        self._device = device

    def predict_m(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Depth (B, h, w) metres for images (B, h, w, 3), without a flip average."""
        tensor = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
        depth_m = predict_depth_m(self._network, tensor, self._reader, flip_average=False)
        array: NDArray[np.float32] = depth_m.cpu().numpy()
        return array


class OnnxPredictor:
    """An exported file on the CPU. Raises PipelineError if `size_px` differs from the file's fixed size."""

    def __init__(self, student: OnnxStudent, size_px: tuple[int, int] | None = None) -> None:
        card = student.card
        self.view = _resized(card.view, size_px)
        if student.size_px is not None and self.view.resize_px != student.size_px:
            height, width = student.size_px
            raise PipelineError(
                f"{student.name} takes {height}x{width} px only; omit `size_px`, or export the run again with it"
            )
        self.depth_space = card.depth_space
        self.facts: dict[str, Any] = {
            "name": card.name,
            "weights_sha256": card.weights_sha256,
            "onnx_sha256": student.sha256,
            "precision": card.precision,
            **({"readout": card.facts["readout"]} if "readout" in card.facts else {}),
        }
        self.trained_focal_px = card.trained_focal_px
        self.depth_range_m = card.depth_range_m
        self._student = student

    def predict_m(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Depth (B, h, w) metres for images (B, h, w, 3)."""
        return self._student.predict_m(images)


def open_model(
    path: Path, size_px: tuple[int, int] | None = None, device: str = "auto", readout: str | None = None
) -> RunPredictor | OnnxPredictor:
    """Open a run's directory, or a file from `export_student`.

    `readout` is how to read depth from a run's map, if not as the run does. Raises PipelineError for anything else, and
    for an ONNX file with a GPU as `device`, or with a `readout`, which was chosen when it was exported.
    """
    if path.is_dir():
        return RunPredictor(load_run(path), choose_device(device), size_px, readout)
    if path.suffix != ".onnx" or not path.exists():
        load_run(path)  # raises an error that says what is wrong with the run
        raise AssertionError("load_run accepts directories only")
    if device not in {"auto", "cpu"}:
        raise PipelineError(f"`device={device}`: an ONNX file runs on the CPU; omit it, or give the run's directory")
    if readout is not None:
        raise PipelineError(f"`readout={readout}`: {path} was exported with its own; export the run again with another")
    return OnnxPredictor(open_onnx(path), size_px)


def _resized(view: View, size_px: tuple[int, int] | None) -> View:
    return view if size_px is None else replace(view, resize_px=size_px)
