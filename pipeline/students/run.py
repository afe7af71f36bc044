"""How a trained network lies on disk, and how it is read back. No pickle anywhere.

    RUN/config.json           everything that made it
    RUN/student.safetensors   its weights
    RUN/steps.csv             loss and its parts, a row a step
    RUN/epochs.csv            validation, a row an epoch
    RUN/metrics.json          the end of training in a few numbers

A run at its final path is complete; while it is trained it lies in `.NAME.HASH.partial` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..fileio import read_json, sha256_file, write_durably
from .build import build_student

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CONFIG = "config.json"
WEIGHTS = "student.safetensors"
METRICS = "metrics.json"


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to predict."""

    network: nn.Module
    """In eval mode, on the CPU: images (B, 3, H, W), ImageNet-normalised, to logits (B, K, h, w)."""
    bin_edges_m: NDArray[np.float64]
    """(K + 1,)"""
    weights_sha256: str
    config: dict[str, Any]


def normalise(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in 0..1 as the networks want them (ImageNet mean and deviation)."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights and buffers durably."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_durably(path, safetensors.torch.save(tensors))


def load_run(run: Path) -> LoadedRun:
    """Read a finished run. Raises ValueError for a directory that is none, or whose weights do not fit."""
    if not (run / CONFIG).is_file():
        partial = sorted(run.parent.glob(f".{run.name}.*.partial")) if run.parent.is_dir() else []
        hint = f"; {partial[0]} is unfinished: run its training command again" if partial else ""
        raise ValueError(f"{run} is no finished run (it has no {CONFIG}){hint}")
    config = read_json(run / CONFIG, "run configuration")
    try:
        edges = np.array(config["bin_edges_m"], np.float64)
        network = build_student(config["student"], len(edges) - 1)
        weights = safetensors.torch.load_file(run / WEIGHTS)
        network.load_state_dict(weights, strict=True)
    except (KeyError, TypeError, RuntimeError, OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{run}: {error}; expected a directory written by train-student") from error
    return LoadedRun(network.eval(), edges, sha256_file(run / WEIGHTS), config)
