"""Compare the students of the protocol (docs/protocol.md) and format the tables of docs/experiments.md.

Shape legend: S seeds, F test frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import results_file
from code_version import ROOT, training_sha256

from pipeline.evaluation.multiple_testing import corrected_p_values
from pipeline.evaluation.significance import MIN_BLOCKS, paired_difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

RESULTS = ROOT / "experiments/results"
WORLDS = ("street", "fog", "rooms")
PRIMARY = {"abs_rel": "AbsRel", "delta1": "δ1", "rmse": "RMSE"}
DECIDING, REPEATING = tuple(range(8)), tuple(range(8, 16))
LARGEST_LOSS_PERCENT = 1.0
"""A win in one metric may cost at most this much in the two others, by the end of their intervals."""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Reading:
    """A student, and how its map is read."""

    student: str
    readout: str
    is_only: bool = False
    """Whether it is the only readout of the student, and needs no name."""

    def __str__(self) -> str:
        return self.student if self.is_only else f"{self.student}, {self.readout}"


def reading(text: str) -> Reading:
    """Parse `tiekd@geometric`; without a readout, the mean."""
    student, _, readout = text.partition("@")
    return Reading(student, readout or "mean", is_only=not readout)


@cache
def results(world: str, student: str) -> dict[int, dict[str, Any]]:
    """Results of a student by seed; empty if there are none."""
    content = results_file.read(RESULTS / world / f"{student}.json")
    return {int(seed): kept for seed, kept in content["seeds"].items()}


def seeds_with(world: str, students: Iterable[str], seeds: Sequence[int]) -> list[int]:
    """The seeds for which every student has a result."""
    return [seed for seed in seeds if all(seed in results(world, student) for student in students)]


def values(world: str, of: Reading, metric: str, seeds: Sequence[int]) -> NDArray[np.float64]:
    """A metric (S, F) of each test frame; `scaled_` metrics are with the fitted constant."""
    found = results(world, of.student)
    whole = np.array([found[seed]["readouts"][of.readout]["frames"][metric] for seed in seeds], np.float64)
    return whole * results_file.unit_of(metric)


@dataclass(frozen=True)
class Change:
    """Difference of one metric between two students, in percent of the second's; positive is better."""

    better: float
    low: float
    high: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Two students, over paired seeds and frames."""

    seeds: int
    changes: dict[str, Change]
    """For each of PRIMARY."""

    @property
    def verdict(self) -> str:
        """`win`, `loss`, or `-`: better in one metric by a corrected p value, and at most 1 % worse in the others."""
        if _wins([(change.better, change.low, change.p_holm) for change in self.changes.values()]):
            return "win"
        if _wins([(-change.better, -change.high, change.p_holm) for change in self.changes.values()]):
            return "loss"
        return "-"


def _wins(changes: list[tuple[float, float, float]]) -> bool:
    """Whether (better, low, p) of one metric show a gain, while the low ends of all others are above the limit."""
    return any(
        better > 0
        and p_value < SIGNIFICANT
        and all(low > -LARGEST_LOSS_PERCENT for number, (_, low, _) in enumerate(changes) if number != index)
        for index, (better, _, p_value) in enumerate(changes)
    )


def compare(world: str, first: Reading, second: Reading, seeds: Sequence[int], prefix: str = "") -> Comparison | None:
    """Compare two students, with p values corrected over the three metrics; None for fewer than two common seeds."""
    common = seeds_with(world, {first.student, second.student}, seeds)
    if len(common) < 2:
        return None
    found = {}
    for metric in PRIMARY:
        one, other = (values(world, of, prefix + metric, common) for of in (first, second))
        sign = 1 if metric == "delta1" else -1
        percent = 100 / float(other.mean())
        found[metric] = paired_difference(sign * percent * (one - other), np.zeros(one.shape[1]))
    corrected = corrected_p_values(list(found.values()))
    changes = {}
    for (metric, difference), p_value in zip(found.items(), corrected, strict=True):
        assert difference.low is not None
        assert difference.high is not None
        assert p_value is not None
        changes[metric] = Change(difference.difference, difference.low, difference.high, p_value)
    return Comparison(len(common), changes)


def halves(
    world: str, of: Reading, metric: str, seeds_each: int, splits: int, *, frames: bool = True, seed: int = 0
) -> tuple[int, int]:
    """Count over random disjoint sets of seeds of one student: intervals of their difference that contain 0, and all.

    The two sets are independent samples of one recipe, so a 95 % interval for other seeds should contain 0 in 95 % of
    the cases. Without `frames` the interval is of seeds alone, like the sets; with them it also covers other test
    frames, which the sets have in common, and should contain 0 more often.
    """
    available = sorted(results(world, of.student))
    if len(available) < 2 * seeds_each:
        return 0, 0
    whole = values(world, of, metric, available)
    if not frames:
        whole = whole.mean(axis=1, keepdims=True).repeat(MIN_BLOCKS, axis=1)  # frames without a difference
    random = np.random.default_rng(seed)
    inside = 0
    for _ in range(splits):
        order = random.permutation(len(available))
        one, other = whole[order[:seeds_each]], whole[order[seeds_each : 2 * seeds_each]]
        difference = paired_difference(one, other, draws=2000, seed=int(random.integers(2**31)))
        assert difference.low is not None
        assert difference.high is not None
        inside += difference.low <= 0 <= difference.high
    return inside, splits


def made_with(world: str, students: Iterable[str]) -> str:
    """A sentence on the code that made the results, and whether losses, students or trainer have changed since."""
    of_student = [list(results(world, student).values()) for student in students]
    found = [measured for measurements in of_student for measured in measurements]
    several = any(len({measured["store"] for measured in measurements}) > 1 for measurements in of_student)
    commits = sorted({measured["commit"] for measured in found})
    stale = {measured["training_sha256"] for measured in found} != {training_sha256()}
    changed = " **Losses, students or trainer have changed since.**" if stale else ""
    retrained = " The seeds learned from stores of several trainings of the teacher." if several else ""
    return f"Commit {', '.join(commits)}, torch {found[0]['torch']}.{retrained}{changed}"


def mean_of(world: str, of: Reading, metric: str, seeds: Sequence[int]) -> float:
    """Mean of a metric over frames and seeds."""
    found = results(world, of.student)
    return fmean(found[seed]["readouts"][of.readout]["means"][metric] for seed in seeds)


def factor_of(world: str, of: Reading, seeds: Sequence[int]) -> float:
    """Mean over seeds of the fitted constant."""
    found = results(world, of.student)
    return fmean(found[seed]["readouts"][of.readout]["factor"] for seed in seeds)


def own_readout(world: str, student: str) -> str:
    """Return the readout that a student was trained with: the first of its results."""
    return str(next(iter(next(iter(results(world, student).values()))["readouts"])))


def secondary(world: str, student: str, seeds: Sequence[int], part: str, *keys: str) -> float | None:
    """Mean over seeds of a secondary metric, of `secondary` or `shifted_secondary`; None where there is none."""
    numbers = []
    for seed in seeds:
        value: Any = results(world, student)[seed].get(part)
        for key in keys:
            value = None if value is None else value.get(key)
        if value is not None:
            numbers.append(float(value))
    return fmean(numbers) if numbers else None


def worst_range(world: str, student: str, seeds: Sequence[int], part: str = "secondary") -> tuple[float, str] | None:
    """Largest ECE, mean over seeds, of the ranges of predicted depth with 2 % of the pixels or more; and the range."""
    by_range: dict[tuple[float, float | None], list[float]] = {}
    for seed in seeds:
        for low, high, fraction, ece in (results(world, student)[seed].get(part) or {}).get("ece_by_range", []):
            if fraction >= 0.02:
                by_range.setdefault((low, high), []).append(ece)
    means = {limits: fmean(found) for limits, found in by_range.items() if len(found) >= len(seeds) / 2}
    if not means:
        return None
    low, high = max(means, key=lambda limits: means[limits])
    return means[low, high], f"{low:g}-{high:g} m" if high is not None else f"> {low:g} m"
