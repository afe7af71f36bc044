"""Read evaluation results and join those that are comparable: same protocol, source, coverage and frames.

Shape legend: S seeds, F frames.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import combinations
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

MEAN_TOLERANCE = 1e-9
"""Relative difference allowed between the mean of the rows and the mean in the JSON file; both have all digits."""
MAY_DIFFER = "flip_average"
"""Protocol field that may differ: a teacher's cached depth cannot be averaged with a mirrored prediction."""


@dataclass(frozen=True)
class Result:
    """One metric of one evaluation, for each image with ground truth."""

    path: Path
    protocol: dict[str, Any]
    source: str
    truth: str | None
    """Name of the ground truth; None in a file of an older version."""
    by_id: dict[str, float]
    """Image id -> metric, in the order of the split."""
    coverage: float | None = None
    """Fraction of the valid ground truth with a prediction; None in a file of an older version."""
    unpredicted: frozenset[str] = frozenset()
    """Ids of images with ground truth but no prediction there, so without a metric."""


@dataclass(frozen=True)
class Group:
    """One network: its evaluations, one for each seed, over the same frames in the same order."""

    name: str
    paths: tuple[Path, ...]
    values: NDArray[np.float64]
    """(S, F) of one metric."""
    coverage: float | None
    """Mean over the evaluations; None if one is unknown."""


@dataclass(frozen=True)
class Comparable:
    """Groups with the same protocol, source and frames."""

    protocol: dict[str, Any]
    source: str
    ids: tuple[str, ...]
    """Ids of the F frames."""
    groups: tuple[Group, ...]
    flip_averages: dict[str, bool]
    """Whether each group averages with the mirrored prediction."""
    left_out: int
    """Number of frames without a prediction in some evaluation."""


def read_result(path: Path, metric: str) -> Result:
    """Read one metric of an evaluation.

    Raises PipelineError for a file that is missing, damaged or not an evaluation, and if JSON and CSV disagree.
    """
    result = EvaluationResult.load(path, rows=False)
    mean = result.mean_of([metric], path)[metric]
    table = CsvTable(existing_rows_path(path))
    try:
        table.read(lambda row: bool(row[metric] or row.get("coverage")))  # a row without ground truth has neither
        unpredicted = frozenset(row["id"] for row in table.rows if not row[metric])
        rows = [row for row in table.rows if row[metric]]
        by_id = {row["id"]: float(row[metric]) for row in rows}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"rows {table.path}: {error}; expected the columns id and {metric}, of numbers") from None
    if len(by_id) != len(rows):
        raise PipelineError(f"rows {table.path}: {len(rows)} rows of {len(by_id)} images; expected each image once")
    if not by_id or not math.isclose(math.fsum(by_id.values()) / len(by_id), mean, rel_tol=MEAN_TOLERANCE):
        raise PipelineError(f"rows {table.path} do not have the mean {metric} of {path}: evaluate again to write both")
    protocol = result.protocol
    if "scale_split_sha256" in result.values:
        protocol["scale_split_sha256"] = result.values["scale_split_sha256"]
    return Result(path, protocol, result.source, result.truth, by_id, result.coverage, unpredicted)


def join(
    groups: Sequence[tuple[str, Sequence[Path]]], metric: str, *, seeds_known: bool = False, any_coverage: bool = False
) -> Comparable:
    """Read the evaluations of each group (name, files) and check that they are comparable.

    Frames are sorted by id in natural order (2 before 10), so that blocks of video are consecutive.

    Args:
        groups: name and files of each network, one file for each seed.
        metric: name of the metric to read.
        seeds_known: accept two files of a group with the same numbers. Otherwise they are refused as one run listed
            twice; two seeds give the same numbers only if both networks collapsed.
        any_coverage: accept different coverages, and leave out the frames that an evaluation has no prediction of.

    Raises PipelineError naming the first difference in protocol, source, coverage or frames, and for a name or file
    that is listed twice.
    """
    names = [name for name, _ in groups]
    paths = [path for _, files in groups for path in files]
    for duplicate in (*_duplicates(names), *_duplicates([str(path.resolve()) for path in paths])):
        raise PipelineError(f"{duplicate} is given twice: list each name and each file once")
    results = [[read_result(path, metric) for path in files] for _, files in groups]
    flat = [result for of_group in results for result in of_group]
    first = flat[0]
    for result in flat:
        _check_terms(first, result)
    left_out: frozenset[str] = frozenset()
    if any_coverage:
        left_out = left_out.union(*(result.unpredicted for result in flat))
    else:
        _check_coverage(flat)
    for result in flat:
        _check_frames(first, result, left_out)
    ids = tuple(sorted(first.by_id.keys() - left_out, key=natural_key))
    if not ids:
        raise PipelineError("no frame has a prediction in every evaluation: compare fewer evaluations")
    joined = []
    for name, of_group in zip(names, results, strict=True):
        values = np.array([[result.by_id[sample] for sample in ids] for result in of_group])
        if len(ids) > 1 and not seeds_known:
            _check_seeds_differ(name, of_group, values)
        joined.append(Group(name, tuple(result.path for result in of_group), values, _mean_coverage(of_group)))
    flips = {name: bool(of_group[0].protocol.get(MAY_DIFFER)) for name, of_group in zip(names, results, strict=True)}
    return Comparable(first.protocol, first.source, ids, tuple(joined), flips, len(left_out))


def natural_key(text: str) -> tuple[tuple[str, int, str], ...]:
    """Key that sorts text in natural order: `frame-2` before `frame-10`."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", text)
    numbered = ((words, number.lstrip("0")) for words, number in parts)
    return (*((words, len(number), number) for words, number in numbered), (text, 0, ""))


def _duplicates(values: Sequence[str]) -> list[str]:
    return [value for index, value in enumerate(values) if value in values[:index]]


def _mean_coverage(results: Sequence[Result]) -> float | None:
    known = [result.coverage for result in results if result.coverage is not None]
    return math.fsum(known) / len(known) if len(known) == len(results) else None


def _check_seeds_differ(name: str, results: Sequence[Result], values: NDArray[np.float64]) -> None:
    """Raise PipelineError if two evaluations of a group have the same values (S, F)."""
    for (i, one), (j, other) in combinations(enumerate(results), 2):
        if np.array_equal(values[i], values[j]):
            raise PipelineError(
                f"{one.path} and {other.path} hold the same numbers, so they are not two seeds: list each run of "
                f"{name} once"
            )


def _check_coverage(results: Sequence[Result]) -> None:
    """Raise PipelineError if coverages differ: errors are smaller where only easy pixels have a prediction."""
    known = [(result.coverage, result.path) for result in results if result.coverage is not None]
    if known and (most := max(known))[0] - (least := min(known))[0] > SAME_COVERAGE + 1e-9:
        raise PipelineError(
            f"{least[1]} covers {least[0]:.2%} of the valid ground truth, {most[1]} {most[0]:.2%}, so their metrics "
            "are over different pixels; compare predictions of equal coverage, or add `any_coverage`"
        )


def _check_terms(first: Result, other: Result) -> None:
    """Raise PipelineError naming the first difference in protocol, source or ground truth."""
    where = f"{other.path} cannot be compared with {first.path}"
    for name in dict.fromkeys(["name", *first.protocol, *other.protocol]):
        value, expected = other.protocol.get(name), first.protocol.get(name)
        if value != expected and name != MAY_DIFFER:
            raise PipelineError(
                f"{where}: protocol {name} is {value}, not {expected}; evaluate both with the same `protocol` and "
                "`max_depth_m`"
            )
    if other.source != first.source:
        raise PipelineError(f"{where}: source is {other.source}, not {first.source}; evaluate both on one source")
    if None not in {other.truth, first.truth} and other.truth != first.truth:
        raise PipelineError(
            f"{where}: ground truth is {other.truth}, not {first.truth}; evaluate both with one `truth`"
        )


def _check_frames(first: Result, other: Result, left_out: frozenset[str]) -> None:
    """Raise PipelineError naming the first frame that one of two evaluations lacks."""
    where = f"{other.path} cannot be compared with {first.path}"
    for result, counterpart in ((first, other), (other, first)):
        missing = (sample for sample in result.by_id if sample not in counterpart.by_id and sample not in left_out)
        absent = next(missing, None)
        if absent in counterpart.unpredicted:
            raise PipelineError(
                f"{where}: {counterpart.path} has no prediction of frame {absent!r}; add `any_coverage` to leave such "
                "frames out"
            )
        if absent is not None:
            raise PipelineError(
                f"{where}: {counterpart.path} has no ground truth or no row for frame {absent!r} of {result.path}; "
                "evaluate both with the same `split` and `truth`"
            )
