"""How a trained network lies on disk, and how it is read back. No pickle anywhere.

    RUN/config.json           everything that made it
    RUN/student.safetensors   its weights
    RUN/steps.csv             loss and its parts, a row a step
    RUN/epochs.csv            validation, a row an epoch
    RUN/metrics.json          the end of training in a few numbers

A run at its final path is complete; while it is trained it lies in `.NAME.HASH.partial` beside it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..common.fileio import open_regular, printable, read_json, sha256_file, write_durably
from ..depth.spaces import check_depth_space
from ..errors import PipelineError
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
NEEDED = ("student", "bin_edges_m")
KINDS: dict[str, type | tuple[type, ...]] = {
    "student": str,
    "view": str,
    "source": str,
    "loss": str,
    "head": str,
    "depth_space": str,
    "truth_of": str,
    "ids_sha256": str,
    "flips": str,
    "store": dict,
    "sigma_m": (int, float),
    "sigma_bins": (int, float),
    "epochs": int,
    "samples": int,
}
"""Kinds of values in a configuration; what is left out, or null, is of no kind."""
MAX_BINS = 4096
MAX_EDGE_M = 1e12
MAX_HEADER_BYTES = 2**20
"""Of the weights file. The largest student's names and shapes take 50 KB; parsed, each byte takes twenty."""
MAX_WEIGHTS_BYTES = 2**29
"""The largest student with the most bins has 320 MB."""


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to predict."""

    network: nn.Module
    """In eval mode, on the CPU: images (B, 3, H, W), ImageNet-normalised, to logits (B, K, h, w)."""
    bin_edges_m: NDArray[np.float64]
    """(K + 1,)"""
    weights_sha256: str
    config: dict[str, Any]


def has_map(config: Mapping[str, Any]) -> bool:
    """Whether a run's network gives a map that means something: with the head `depth` it gives one depth alone."""
    return bool(config.get("head", "dpm") != "depth")


def view_of(config: Mapping[str, Any]) -> str:
    """Written form of a run's view. Raises ValueError for a configuration without one, which can teach all the same."""
    view = config.get("view")  # a text, see `_check_config`
    if view is None:
        raise ValueError(f"view is missing in the run's {CONFIG}; expected what train-student writes")
    return str(view)


def normalize(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in 0..1 as the networks want them (ImageNet mean and deviation)."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights and buffers durably."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_durably(path, safetensors.torch.save(tensors))


def load_run(run: Path) -> LoadedRun:
    """Read a finished run. Raises PipelineError for a directory that is none, or whose weights do not fit."""
    if not (run / CONFIG).is_file():
        partial = sorted(run.parent.glob(f".{run.name}.*.partial")) if run.parent.is_dir() else []
        hint = f"; {partial[0]} is unfinished: run its training command again" if partial else ""
        raise PipelineError(f"{run} is no finished run (it has no {CONFIG}){hint}")
    config = read_json(run / CONFIG, "run configuration")
    _check_config(config, run)
    try:
        edges = _edges(config["bin_edges_m"])
        check_safetensors(run / WEIGHTS)
        weights = safetensors.torch.load_file(run / WEIGHTS)
        network = build_student(config["student"], len(edges) - 1)
        network.load_state_dict(weights, strict=True)
    except (KeyError, TypeError, RuntimeError, OSError, ValueError, safetensors.SafetensorError) as error:
        what = printable(str(error))[:2000]  # torch names every tensor of the file
        raise PipelineError(f"{run}: {what}; expected a directory written by train-student") from error
    return LoadedRun(network.eval(), edges, sha256_file(run / WEIGHTS), config)


def _check_config(config: object, run: Path) -> None:
    """Refuse a configuration, perhaps of a stranger, whose values are not of the kind that others read.

    Raises PipelineError.
    """
    if not isinstance(config, dict):
        raise PipelineError(f"{run / CONFIG}: {type(config).__name__}, expected an object as train-student writes it")
    for name in NEEDED:
        if name not in config:
            raise PipelineError(f"{run / CONFIG}: {name} is missing; expected what train-student writes")
    for name, kinds in KINDS.items():
        value = config.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise PipelineError(f"{run / CONFIG}: {name} {str(value)[:80]!r}, expected what train-student writes")
    if (space := config.get("depth_space")) is not None:
        check_depth_space(space)
    store = config.get("store") or {}
    if not isinstance(store.get("teacher", {}), dict) or not isinstance(store.get("digest", ""), str):
        raise PipelineError(f"{run / CONFIG}: store {str(store)[:80]!r}, expected what train-student writes")


def _edges(values: object) -> NDArray[np.float64]:
    """Edges of a configuration that may come from anybody. Raises PipelineError for what are none."""
    if not isinstance(values, list) or not 3 <= len(values) <= MAX_BINS + 1:
        raise PipelineError(f"bin_edges_m: expected a list of 3 to {MAX_BINS + 1} numbers")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise PipelineError("bin_edges_m: expected numbers alone")
    edges = np.array(values, np.float64)
    if np.any(np.diff(edges) <= 0) or np.abs(edges).max() > MAX_EDGE_M:
        raise PipelineError(f"bin_edges_m: expected ascending numbers up to {MAX_EDGE_M:g}")
    return edges


def check_safetensors(path: Path) -> None:
    """Look at the sizes of a safetensors file before its own reader does. Raises OSError or ValueError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = int.from_bytes(file.read(8), "little")
    if size > MAX_WEIGHTS_BYTES or header > min(size, MAX_HEADER_BYTES):
        raise PipelineError(
            f"{path.name} of {size} bytes declares a header of {header}: expected safetensors of at most "
            f"{MAX_WEIGHTS_BYTES}, with a header of at most {MAX_HEADER_BYTES}"
        )
