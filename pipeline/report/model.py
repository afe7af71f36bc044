"""Data of the page: results of runs, uncertainty, distributions at probe pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..depth.readout import DEFAULT
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
"""Key in a metrics file -> name on the page."""
_MAX_POINTS = 1000  # of a curve; `evaluate-student` writes 20


class Measure(NamedTuple):
    """How well a measure of uncertainty ranks the errors."""

    risk: list[float]
    """For each of the coverages."""
    aurc: float
    ause: float
    spearman: float | None


class Interval(NamedTuple):
    """How often intervals contain the truth; `width` is relative to depth."""

    nominal: list[float]
    observed: list[float]
    width: list[float]
    ece: float
    equal_width: float | None
    """Width at which 90 % of the truth is inside; None if no interval is wide enough."""

    def at(self, nominal: float) -> tuple[float, float]:
        """Observed fraction and width at a nominal mass, interpolated."""
        return float(np.interp(nominal, self.nominal, self.observed)), float(
            np.interp(nominal, self.nominal, self.width)
        )


class Uncertainty(NamedTuple):
    """Uncertainty results of one student."""

    coverages: list[float]
    measures: dict[str, Measure]
    """Keys: those of MEASURES that the student has, and `oracle`."""
    intervals: dict[str, Interval]
    """`map`, `constant`, or neither."""


def read_uncertainty(value: Any) -> Uncertainty:  # noqa: ANN401 - any JSON value
    """Read the `uncertainty` of a metrics file. Raises KeyError, TypeError or ValueError for any other value."""
    coverages = _numbers(value["coverages"])
    measures = {}
    for name in (*MEASURES, "oracle"):
        if name in value["measures"] or name in {"oracle", "flip"}:  # every student has these two
            entry = value["measures"][name]
            spearman = None if entry.get("spearman") is None else float(entry["spearman"])
            risk = _numbers(entry["risk"], len(coverages))
            measures[name] = Measure(risk, float(entry["aurc"]), float(entry["ause"]), spearman)
    intervals = {}
    for name in ("map", "constant"):
        if name in value["intervals"]:
            entry = value["intervals"][name]
            nominal = _numbers(entry["nominal"])
            observed, width = (_numbers(entry[key], len(nominal)) for key in ("observed", "width"))
            equal = dict(zip(_numbers(entry["equal"]["observed"]), entry["equal"]["width"], strict=True))[0.9]
            equal_width = None if equal is None else float(equal)
            intervals[name] = Interval(nominal, observed, width, float(entry["ece"]), equal_width)
    return Uncertainty(coverages, measures, intervals)


def _numbers(values: Any, count: int | None = None) -> list[float]:  # noqa: ANN401 - any JSON value
    if (
        not isinstance(values, list)
        or not 1 < len(values) <= _MAX_POINTS
        or (count is not None and len(values) != count)
    ):
        raise PipelineError(f"expected a list of {count or f'2 to {_MAX_POINTS}'} numbers")
    return [float(value) for value in values]


@dataclass(frozen=True)
class Measured:
    """A result of `evaluate-student` or `evaluate-teacher`."""

    protocol: dict[str, Any]
    source: str
    truth: str | None
    """Which ground truth; None if the evaluation does not state it."""
    frames: int
    metrics: dict[str, float]
    against_teacher: dict[str, float] | None
    coverage: float | None
    """Fraction of the valid truth that had a prediction; None if the evaluation does not state it."""
    split: tuple[str, str] | None
    """Its name and the sha256 of its ids; None if the evaluation does not state it."""
    measured: dict[str, str]
    """Which run or store was measured; empty in older evaluations."""
    teacher: dict[str, str]
    """Which teacher it was compared with; empty in older evaluations."""
    uncertainty: Uncertainty | None = None
    """None without `--uncertainty`."""

    def measured_how(self) -> tuple[object, ...]:
        """What must be equal to compare two results. The flip average applies to students only, so it may differ."""
        protocol = {name: value for name, value in self.protocol.items() if name != "flip_average"}
        return self.source, self.truth, self.frames, tuple(sorted(protocol.items(), key=lambda item: item[0]))

    def protocol_text(self) -> str:
        """The protocol in words."""
        protocol = self.protocol
        cap = "no upper limit" if protocol.get("max_m") is None else f"below {protocol['max_m']:g} m"
        crop = "whole view" if protocol.get("crop") in {None, "none"} else f"{protocol['crop']} crop"
        align = protocol.get("align", "none")
        aligned = "" if align == "none" else f", each image aligned to its truth: {align}"
        scale = protocol.get("scale_split")
        aligned += "" if scale is None else f", depth times one constant fitted on split {scale}"
        split = "" if self.split is None else f", split {self.split[0]}"
        return f"{protocol.get('name')} ({crop}, truth {cap}{aligned}), {self.frames} frames of {self.source}{split}"


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
    def readout(self) -> str | None:
        """How depth was read from the maps in the metrics; None is as the run was trained."""
        if self.measured is None or "weights_sha256" not in self.measured.measured:
            return None
        return self.measured.measured.get("readout", DEFAULT)

    @property
    def from_truth(self) -> bool:
        """Whether it learned from ground truth alone."""
        return self.run.config.get("truth_of") is not None
