"""Start a network from the weights of a trained run: fine-tuning on other data or with another loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..depth.log_distribution import FAMILIES
from ..depth.relative import depth_space_of
from ..errors import OptionError, PipelineError
from .reader import MAP_HEAD
from .saved_run import LoadedRun, load_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .registry import Student


@dataclass(frozen=True)
class InitialWeights:
    """What a run starts from, as its configuration records it. The path of the other run does not matter."""

    weights_sha256: str
    """Hash of the other run's file of weights."""
    head: str
    """`loaded`; or `fresh`, from the seed, because the other run's last layer predicts other outputs."""


def initial_weights(
    path: Path, student: str, head: str, bin_edges_m: Sequence[float], depth_space: str
) -> InitialWeights:
    """Describe what a run of `student` takes from the run at `path`.

    Its last layer is taken if its outputs mean the same: the same head, depth space and bins (the same largest depth,
    if the outputs describe ln depth). Raises PipelineError for another directory, and for a run of another student.
    """
    run = _load(path)
    trained = str(run.config["student"])
    if trained != student:
        raise OptionError(
            "init", str(path), f"a run of `student={student}`, but it is one of {trained!r}; use `student={trained}`"
        )
    same_head = (run.config.get("head") or MAP_HEAD) == head and depth_space_of(run.config) == depth_space
    edges_m = np.array(bin_edges_m)
    same_bins = run.bin_edges_m[-1] == edges_m[-1] if head in FAMILIES else np.array_equal(run.bin_edges_m, edges_m)
    return InitialWeights(run.weights_sha256, "loaded" if same_head and same_bins else "fresh")


def load_initial_weights(student: Student, path: Path, expected: InitialWeights) -> None:
    """Load the weights of the run at `path`, except for the last layer if it is to be `fresh`.

    Raises PipelineError if the run is not the `expected` one any more.
    """
    run = _load(path)
    if run.weights_sha256 != expected.weights_sha256:
        raise PipelineError(f"`init={path}` changed while it was read: run the same command again")
    weights = run.network.state_dict()
    if expected.head == "fresh":
        [head] = [name for name, module in student.named_modules() if module is student.head]
        own = student.state_dict()
        weights |= {name: own[name] for name in own if name.startswith(f"{head}.")}
    student.load_state_dict(weights, strict=True)


def _load(path: Path) -> LoadedRun:
    try:
        return load_run(path)
    except PipelineError as error:
        raise PipelineError(f"`init={path}`: {error}") from error
