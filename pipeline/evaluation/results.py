"""Results of evaluations read back from disk, and joined where they can be compared: same protocol, source and frames.

An evaluation is NAME.json with the means, and NAME.csv beside it with a row for each image (`result_files`).

Shape legend: S seeds, F frames.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.fileio import CsvTable
from ..errors import PipelineError
from .coverage import SAME_COVERAGE
from .result import EvaluationResult, existing_rows_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SAME_MEAN = 1e-9
"""Relative: how far the mean of the rows may be from the one in the JSON. Both were written to all digits."""
OF_ONE_SIDE = "flip_average"
"""The field of a protocol that may differ: a teacher's cached depth cannot be mirrored and averaged."""


@dataclass(frozen=True)
class Result:
    """One evaluation of one network: a metric of each image with ground truth, and under which terms."""

    path: Path
    protocol: dict[str, Any]
    source: str
    truth: str | None
    """Which ground truth; None of an evaluation that does not say."""
    by_id: dict[str, float]
    """Image id -> metric, in the order of the split."""
    coverage: float | None = None
    """Fraction of the valid truth that had a prediction; None of an evaluation that does not say."""
    unpredicted: frozenset[str] = frozenset()
    """Images with ground truth and no prediction where it is; they have no metric."""


@dataclass(frozen=True)
class Group:
    """One student: its evaluations, one for each seed, over the same frames in the same order."""

    name: str
    paths: tuple[Path, ...]
    values: NDArray[np.float64]
    """(S, F) of one metric."""
    coverage: float | None
    """Mean over its evaluations; None where one does not say."""


@dataclass(frozen=True)
class Comparable:
    """Groups that were measured alike."""

    protocol: dict[str, Any]
    source: str
    ids: tuple[str, ...]
    """Of the F frames."""
    groups: tuple[Group, ...]
    flip_averages: dict[str, bool]
    """Of each group; they may differ."""
    left_out: int
    """Frames that one of the evaluations has no prediction of."""


def read_result(path: Path, metric: str) -> Result:
    """Read one metric of an evaluation.

    Raises PipelineError where a file is absent or damaged, is no evaluation, or JSON and CSV do not belong together.
    """
    result = EvaluationResult.load(path, rows=False)
    mean = result.mean_of([metric], path)[metric]
    rows = CsvTable(existing_rows_path(path))
    try:
        rows.read(lambda row: bool(row[metric] or row.get("coverage")))  # those without ground truth have neither
        unpredicted = frozenset(row["id"] for row in rows.rows if not row[metric])
        rows.rows = [row for row in rows.rows if row[metric]]
        by_id = {row["id"]: float(row[metric]) for row in rows.rows}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"rows {rows.path}: {error}; expected columns id and {metric}, of numbers") from None
    if len(by_id) != len(rows.rows):
        raise PipelineError(f"rows {rows.path}: {len(rows.rows)} rows of {len(by_id)} images; expected each image once")
    if not by_id or not math.isclose(math.fsum(by_id.values()) / len(by_id), mean, rel_tol=SAME_MEAN):
        raise PipelineError(f"rows {rows.path} do not have the mean {metric} of {path}: evaluate again, to write both")
    return Result(path, result.protocol, result.source, result.truth, by_id, result.coverage, unpredicted)


def join(
    groups: Sequence[tuple[str, Sequence[Path]]], metric: str, *, seeds_known: bool = False, any_coverage: bool = False
) -> Comparable:
    """Read the evaluations of each group (name, files), if all can be compared.

    Frames are brought into the natural order of their ids (2 before 10), in which blocks of video are.

    Raises PipelineError where protocol, source, coverage or frames differ, naming the first difference; for a name or
    file that is given twice; and where two files of a group hold the same
    numbers, which two seeds hardly do (networks that gave up and say the same of every image): with `seeds_known` it is
    known that they are two seeds. With `any_coverage` coverage may differ, and frames that one has no prediction of are
    left out of all.
    """
    names = [name for name, _ in groups]
    paths = [path for _, listed in groups for path in listed]
    for twice in (*_twice(names), *_twice([str(path.resolve()) for path in paths])):
        raise PipelineError(f"{twice} is given twice: name each student, and each of its files, once")
    results = [[read_result(path, metric) for path in listed] for _, listed in groups]
    first = results[0][0]
    everyone = [result for listed in results for result in listed]
    for result in everyone:
        _check_terms(first, result)
    if not any_coverage:
        _check_coverage(everyone)
    left_out = (
        frozenset[str]().union(*(result.unpredicted for result in everyone)) if any_coverage else frozenset[str]()
    )
    for result in everyone:
        _check_frames(first, result, left_out)
    ids = tuple(sorted(first.by_id.keys() - left_out, key=natural_key))
    if not ids:
        raise PipelineError("no frame has a prediction in every evaluation: compare fewer of them")
    joined = []
    for (name, _), listed in zip(groups, results, strict=True):
        values = np.array([[result.by_id[sample] for sample in ids] for result in listed])
        for place, row in enumerate(values):
            for before in range(place):
                if len(ids) > 1 and not seeds_known and np.array_equal(row, values[before]):
                    raise PipelineError(
                        f"{listed[before].path} and {listed[place].path} hold the same numbers, which two seeds never "
                        f"do: list each run of {name} once"
                    )
        joined.append(Group(name, tuple(result.path for result in listed), values, _mean_coverage(listed)))
    flips = {name: bool(listed[0].protocol.get(OF_ONE_SIDE)) for name, listed in zip(names, results, strict=True)}
    return Comparable(first.protocol, first.source, ids, tuple(joined), flips, len(left_out))


def natural_key(text: str) -> tuple[tuple[str, int, str], ...]:
    """What sorts text as people count: `frame-2` before `frame-10`."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", text)
    numbered = ((words, number.lstrip("0")) for words, number in parts)
    return (*((words, len(number), number) for words, number in numbered), (text, 0, ""))


def _twice(values: Sequence[str]) -> list[str]:
    return [value for place, value in enumerate(values) if value in values[:place]]


def _mean_coverage(listed: Sequence[Result]) -> float | None:
    known = [result.coverage for result in listed if result.coverage is not None]
    return math.fsum(known) / len(known) if len(known) == len(listed) else None


def _check_coverage(results: Sequence[Result]) -> None:
    """Refuse metrics over other parts of the truth: errors are small where only what is easy has a prediction."""
    known = [(result.coverage, result.path) for result in results if result.coverage is not None]
    if known and (most := max(known))[0] - (least := min(known))[0] > SAME_COVERAGE + 1e-9:
        raise PipelineError(
            f"{least[1]} covers {least[0]:.2%} of the valid truth and {most[1]} {most[0]:.2%}: their metrics are over "
            "other pixels. Compare predictions of equal coverage, or add `any_coverage`"
        )


def _check_terms(first: Result, other: Result) -> None:
    """Raise PipelineError naming the first thing that two evaluations differ in."""
    where = f"{other.path} cannot be compared with {first.path}"
    for name in dict.fromkeys(["name", *first.protocol, *other.protocol]):
        here, there = other.protocol.get(name), first.protocol.get(name)
        if here != there and name != OF_ONE_SIDE:
            raise PipelineError(
                f"{where}: protocol {name} {here} and not {there}; evaluate both with the same `protocol` and "
                "`max_depth_m`"
            )
    if other.source != first.source:
        raise PipelineError(f"{where}: source {other.source} and not {first.source}; evaluate both on one source")
    if None not in {other.truth, first.truth} and other.truth != first.truth:
        raise PipelineError(
            f"{where}: ground truth {other.truth} and not {first.truth}; evaluate both with one `truth`"
        )


def _check_frames(first: Result, other: Result, left_out: frozenset[str]) -> None:
    """Raise PipelineError naming the first frame that one of two evaluations lacks."""
    where = f"{other.path} cannot be compared with {first.path}"
    for one, another in ((first, other), (other, first)):
        absent = next((sample for sample in one.by_id if sample not in another.by_id and sample not in left_out), None)
        if absent in another.unpredicted:
            raise PipelineError(
                f"{where}: {another.path} has no prediction of frame {absent!r}; leave it out with `any_coverage`"
            )
        if absent is not None:
            raise PipelineError(
                f"{where}: {another.path} has no ground truth or no row for frame {absent!r} of {one.path}; evaluate "
                "both with the same `split` and `truth`"
            )
