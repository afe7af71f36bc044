"""Files of a run, and how they are read. Nothing is pickled.

    RUN/config.json           configuration
    RUN/student.safetensors   weights
    RUN/steps.csv             loss and its parts, one row per step
    RUN/epochs.csv            validation metrics, one row per epoch
    RUN/metrics.json          final metrics

A run at its final path is complete. During training it is in the hidden directory `.NAME.HASH.partial` next to it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..common.fileio import open_regular, printable, read_json, sha256_file, write_durably
from ..common.licences import DATA, TEACHER, united
from ..depth.spaces import check_depth_space
from ..errors import PipelineError
from ..sources.intrinsics import MAX_FOCAL_PX
from .reader import Reader
from .registry import build_student

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CONFIG = "config.json"
WEIGHTS = "student.safetensors"
METRICS = "metrics.json"
TRAINED_FOCAL = "trained_focal_px"
"""Key of a configuration: `median`, `min` and `max` of the training samples' focal lengths, in pixels of the view."""
DATA_SETS = "data"
"""Key of the configuration of a run on several data sets: a list with `source`, `store`, `view` ... of each."""
REQUIRED = ("student", "bin_edges_m")
FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "student": str,
    "view": str,
    "source": str,
    "loss": str,
    "add": list,
    "head": str,
    "readout": str,
    "depth_space": str,
    "truth_of": str,
    "ids_sha256": str,
    "flips": str,
    "store": dict,
    "sigma_m": (int, float),
    "sigma_bins": (int, float),
    "epochs": int,
    "samples": int,
    TRAINED_FOCAL: dict,
    DATA_SETS: list,
}
"""Types of fields in a configuration. Fields may be missing or null."""
MAX_BINS = 4096
MAX_EDGE_M = 1e12
MAX_HEADER_BYTES = 2**20
"""Limit for the header of a weights file. The largest student has 50 KB; parsed, a header takes 20 times its size."""
MAX_WEIGHTS_BYTES = 2**29
"""The largest student with 4096 bins has 320 MB."""


@dataclass(frozen=True)
class LoadedRun:
    """A complete run, ready to predict."""

    network: nn.Module
    """In eval mode, on the CPU: ImageNet-normalized images (B, 3, H, W) to outputs (B, C, h, w)."""
    bin_edges_m: NDArray[np.float64]
    """(K + 1,)"""
    weights_sha256: str
    config: dict[str, Any]

    def reader(self, device: torch.device | str = "cpu", readout: str | None = None) -> Reader:
        """Return the reader of the network's outputs on a device; `readout` overrides the run's."""
        return Reader.of(self.config, torch.from_numpy(self.bin_edges_m).to(device), readout)


def has_map(config: Mapping[str, Any]) -> bool:
    """Return whether the maps of a run are distributions; with `head=depth` they only encode one depth."""
    return bool(config.get("head", "dpm") != "depth")


def licences_of_run(config: dict[str, Any]) -> dict[str, str | None]:
    """Return the licences that a run depends on, None where not stated; empty for one of ground truth alone."""
    stores = [each.get("store") for each in config.get(DATA_SETS) or [config]]
    if not all(isinstance(store, dict) for store in stores):
        return {}
    return {
        TEACHER: united((store.get("teacher") or {}).get("licence") for store in stores),
        DATA: united(store.get("data_licence") for store in stores),
    }


def view_of(config: Mapping[str, Any], source: str | None = None) -> str:
    """Return the view of a run as text, for images of the source of this name.

    A run on several data sets has the view of those with this source, or of the first if none has it. Raises
    PipelineError if those of this source differ, and if a run has none; such a run can still be a teacher.
    """
    views = {each["view"] for each in config.get(DATA_SETS) or [] if each["source"] == source}
    if len(views) > 1:
        raise PipelineError(
            f"the run learned from several data sets of source {source!r}, with the views {', '.join(sorted(views))}: "
            "say which one with `view`"
        )
    if views:
        return str(views.pop())
    view = config.get("view")  # a string, see `_check_config`
    if view is None:
        raise PipelineError(f"view is missing in the run's {CONFIG}; expected a configuration written by train-student")
    return str(view)


def trained_focal_px(config: Mapping[str, Any]) -> float | None:
    """Return the focal length that a run was trained at, in pixels of its view; None if it does not record it.

    It is the median of the training samples. Raises PipelineError for a configuration without a positive number.
    """
    stated = config.get(TRAINED_FOCAL)  # a dictionary, see `_check_config`
    if stated is None:
        return None
    median = stated.get("median")
    if isinstance(median, bool) or not isinstance(median, int | float) or not 0 < median < MAX_FOCAL_PX:
        raise PipelineError(
            f"{TRAINED_FOCAL} {str(stated)[:80]} in the run's {CONFIG}; expected a positive `median` as written by "
            "train-student"
        )
    return float(median)


def normalize(images: Tensor) -> Tensor:
    """Normalize images (B, 3, H, W) in 0..1 by the mean and standard deviation of ImageNet."""
    mean, std = _imagenet(images.device)
    return (images - mean) / std


@cache
@torch.inference_mode(mode=False)  # training cannot use inference tensors cached by a prediction
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (1, 3, 1, 1); kept, since each copy to a GPU waits for it."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights and buffers of a network, with fsync."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_durably(path, safetensors.torch.save(tensors))


def load_run(run: Path) -> LoadedRun:
    """Read a complete run. Raises PipelineError for another directory, or weights that do not match."""
    if not (run / CONFIG).is_file():
        partial = sorted(run.parent.glob(f".{run.name}.*.partial")) if run.parent.is_dir() else []
        hint = f"; {partial[0]} is incomplete: run its training command again" if partial else ""
        raise PipelineError(f"{run} is not a complete run: {CONFIG} is missing{hint}")
    config = read_json(run / CONFIG, "run configuration")
    _check_config(config, run)
    try:
        edges = _edges(config["bin_edges_m"])
        check_safetensors(run / WEIGHTS)
        weights = safetensors.torch.load_file(run / WEIGHTS)
        outputs = Reader.of(config, torch.from_numpy(edges)).outputs
        network = build_student(config["student"], outputs)
        network.load_state_dict(weights, strict=True)
    except (KeyError, TypeError, RuntimeError, OSError, ValueError, safetensors.SafetensorError) as error:
        reason = printable(str(error))[:2000]  # torch lists every tensor of the file
        raise PipelineError(f"{run}: {reason}; expected a directory written by train-student") from error
    return LoadedRun(network.eval(), edges, sha256_file(run / WEIGHTS), config)


def _check_config(config: object, run: Path) -> None:
    """Raise PipelineError for an untrusted configuration with fields of a wrong type."""
    if not isinstance(config, dict):
        raise PipelineError(f"{run / CONFIG}: {type(config).__name__}, expected an object as written by train-student")
    for name in REQUIRED:
        if name not in config:
            raise PipelineError(f"{run / CONFIG}: {name} is missing; expected a configuration written by train-student")
    for name, types in FIELD_TYPES.items():
        value = config.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            raise PipelineError(
                f"{run / CONFIG}: {name} {str(value)[:80]!r}, expected a configuration written by train-student"
            )
    if (space := config.get("depth_space")) is not None:
        check_depth_space(space)
    _check_store(config.get("store") or {}, run)
    for each in config.get(DATA_SETS) or []:
        if not isinstance(each, dict) or not all(isinstance(each.get(name), str) for name in ("source", "view")):
            raise PipelineError(
                f"{run / CONFIG}: {DATA_SETS} has {str(each)[:80]!r}, expected a configuration written by train-student"
            )
        _check_store(each.get("store"), run)


def _check_store(store: object, run: Path) -> None:
    if (
        not isinstance(store, dict)
        or not isinstance(store.get("teacher", {}), dict)
        or not isinstance(store.get("digest", ""), str)
    ):
        raise PipelineError(
            f"{run / CONFIG}: store {str(store)[:80]!r}, expected a configuration written by train-student"
        )


def _edges(values: object) -> NDArray[np.float64]:
    """Return the bin edges of an untrusted configuration. Raises PipelineError if they are invalid."""
    if not isinstance(values, list) or not 3 <= len(values) <= MAX_BINS + 1:
        raise PipelineError(f"bin_edges_m: expected a list of 3 to {MAX_BINS + 1} numbers")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise PipelineError("bin_edges_m: expected only numbers")
    edges = np.array(values, np.float64)
    if np.any(np.diff(edges) <= 0) or np.abs(edges).max() > MAX_EDGE_M:
        raise PipelineError(f"bin_edges_m: expected ascending numbers up to {MAX_EDGE_M:g}")
    return edges


def check_safetensors(path: Path) -> None:
    """Check the declared sizes of a safetensors file before it is read. Raises OSError or ValueError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = int.from_bytes(file.read(8), "little")
    if size > MAX_WEIGHTS_BYTES or header > min(size, MAX_HEADER_BYTES):
        raise PipelineError(
            f"{path.name} has {size} bytes and declares a header of {header} bytes: expected a safetensors file of at "
            f"most {MAX_WEIGHTS_BYTES} bytes with a header of at most {MAX_HEADER_BYTES}"
        )
