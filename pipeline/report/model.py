"""What the page shows, as data: results of runs, uncertainty, distributions at probe pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import PipelineError
from ..networks.saved_run import LoadedRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from ..networks.saved_run import LoadedRun

    Part = Callable[[slice, slice], Tensor]


class Belief(NamedTuple):
    """A network's map at one pixel."""

    probability: NDArray[np.float32] | None
    """(K,); None for a network that gives one depth and no map"""
    bin_edges_m: NDArray[np.float64]
    """(K + 1,)"""
    expected_m: float


MEASURES = {
    "entropy": "entropy",
    "width": "the 90 % interval's width",
    "deviation": "the standard deviation",
    "flip": "the mirrored image's difference",
}
"""What is read of a file, and what the page calls it."""
_MOST = 1000  # points of a curve; ours have 20


class Measure(NamedTuple):
    """How well a measure of doubt sorts the errors."""

    risk: list[float]
    """For each of the coverages."""
    aurc: float
    ause: float
    spearman: float | None


class Interval(NamedTuple):
    """How often a kind of interval holds the truth; `width` is by depth."""

    nominal: list[float]
    observed: list[float]
    width: list[float]
    ece: float
    equal_width: float | None
    """Width at which 90 % of the truth are inside; None where none is wide enough."""

    def at(self, nominal: float) -> tuple[float, float]:
        """Observed share and width at a nominal mass, between those that were measured."""
        return float(np.interp(nominal, self.nominal, self.observed)), float(
            np.interp(nominal, self.nominal, self.width)
        )


class Doubt(NamedTuple):
    """All of it for one student."""

    coverages: list[float]
    measures: dict[str, Measure]
    """Keys of MEASURES, those that the student has, and `oracle`."""
    intervals: dict[str, Interval]
    """`map`, `constant`, or neither."""


def read_doubt(value: Any) -> Doubt:  # noqa: ANN401 - any JSON value
    """Read the `uncertainty` of a metrics file. Raises KeyError, TypeError or ValueError for what is none."""
    coverages = _numbers(value["coverages"])
    measures = {}
    for name in (*MEASURES, "oracle"):
        if name in value["measures"] or name in {"oracle", "flip"}:  # every student has these two
            one = value["measures"][name]
            alike = one.get("spearman")
            risk = _numbers(one["risk"], len(coverages))
            measures[name] = Measure(
                risk, float(one["aurc"]), float(one["ause"]), None if alike is None else float(alike)
            )
    intervals = {}
    for name in ("map", "constant"):
        if name in value["intervals"]:
            one = value["intervals"][name]
            nominal = _numbers(one["nominal"])
            observed, width = (_numbers(one[key], len(nominal)) for key in ("observed", "width"))
            equal = dict(zip(_numbers(one["equal"]["observed"]), one["equal"]["width"], strict=True))[0.9]
            wide_enough = None if equal is None else float(equal)
            intervals[name] = Interval(nominal, observed, width, float(one["ece"]), wide_enough)
    return Doubt(coverages, measures, intervals)


def _numbers(values: Any, count: int | None = None) -> list[float]:  # noqa: ANN401 - any JSON value
    if not isinstance(values, list) or not 1 < len(values) <= _MOST or (count is not None and len(values) != count):
        raise PipelineError(f"expected a list of {count or f'2 to {_MOST}'} numbers")
    return [float(one) for one in values]


@dataclass(frozen=True)
class Measured:
    """What `evaluate-student` or `evaluate-teacher` wrote."""

    protocol: dict[str, Any]
    source: str
    truth: str | None
    """Which ground truth; None of an evaluation that does not say."""
    frames: int
    metrics: dict[str, float]
    against_teacher: dict[str, float] | None
    coverage: float | None
    """Fraction of the valid truth that had a prediction; None of an evaluation that does not say."""
    split: tuple[str, str] | None
    """Its name and the sha256 of its ids; None of an evaluation that does not say."""
    measured: dict[str, str]
    """Which run or store was measured; empty in older evaluations."""
    teacher: dict[str, str]
    """Which teacher it was compared with; empty in older evaluations."""
    doubt: Doubt | None = None
    """Whether it knows when it is wrong, where that was asked for."""

    def measured_how(self) -> tuple[object, ...]:
        """What two results must share to be compared. The flip average is the student's alone, so it may differ."""
        protocol = {name: value for name, value in self.protocol.items() if name != "flip_average"}
        return self.source, self.truth, self.frames, tuple(sorted(protocol.items(), key=lambda item: item[0]))

    def protocol_text(self) -> str:
        """The protocol in words."""
        said = self.protocol
        cap = "no upper limit" if said.get("max_m") is None else f"below {said['max_m']:g} m"
        crop = "whole view" if said.get("crop") in {None, "none"} else f"{said['crop']} crop"
        align = said.get("align", "none")
        aligned = "" if align == "none" else f", each image aligned to its truth: {align}"
        split = "" if self.split is None else f", split {self.split[0]}"
        return f"{said.get('name')} ({crop}, truth {cap}{aligned}), {self.frames} frames of {self.source}{split}"


@dataclass(frozen=True)
class RunResult:
    """A finished run, how its training went, and its metrics if they were given."""

    name: str
    run: LoadedRun
    training: dict[str, Any]
    """The run's own metrics.json."""
    steps: list[tuple[float, float]]
    """(step, loss)"""
    epochs: list[dict[str, float]]
    """Validation; the epoch counts from 0."""
    measured: Measured | None

    @property
    def from_truth(self) -> bool:
        """Whether it learned from ground truth alone."""
        return self.run.config.get("truth_of") is not None
