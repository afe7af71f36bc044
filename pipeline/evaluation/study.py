"""A study: many students that differ in a few flags, over several seeds, and what the differences are worth.

`study_file` reads what is asked for. This knows nothing of processes or of the command line: `cli/study.py` runs what
`Study.runs_to_do` lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.fileio import open_regular, printable, read_json, write_durably
from ..common.own_files import remove_own
from ..common.progress import Silent
from ..depth.metrics import METRICS
from .coverage import coverage_text
from .result import EvaluationResult
from .results import join
from .significance import corrected_p_values, enough, mean_interval, paired_difference, too_few
from .study_file import HEADS, METRIC
from .study_file import Study as Study  # noqa: PLC0414 - to be had from here too
from .study_file import read_study as read_study  # noqa: PLC0414 - as above

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from .results import Group
    from .study_file import Run, Table


def unfinished(study: Study, folder: Path, progress: Progress | None = None) -> list[Run]:
    """Runs that are still to do; what was made with other flags than theirs is removed first, and noted."""
    todo = []
    for run in study.runs_to_do():
        described, result = folder / f"{run.stem}.flags.json", folder / f"{run.stem}.json"
        before = _content(described)
        if before != run.flags_json():
            if before is not None and (result.exists() or (folder / run.stem).exists()):
                (progress or Silent()).note(f"{folder / run.stem} was made with other flags: it is made again")
            for made in (result, result.with_suffix(".csv"), folder / run.stem):
                remove_own(made)
            write_durably(described, run.flags_json())
        if not result.exists():
            todo.append(run)
    return todo


def _content(path: Path) -> bytes | None:
    if not path.exists():
        return None
    with open_regular(path) as file:
        return file.read()


def read_teacher(path: Path) -> dict[str, Any]:
    """Metrics of a result of `evaluate-teacher`, and its coverage if stated. Raises PipelineError for another file."""
    result = EvaluationResult.load(path, rows=False)
    metrics: dict[str, Any] = result.mean_of(list(HEADS), path)
    return metrics if result.coverage is None else {**metrics, "coverage": result.coverage}


@dataclass(frozen=True)
class _Measured:
    """Results of one run over its seeds."""

    per_image: dict[str, NDArray[np.float64]]
    """(S, F) of each metric in HEADS."""
    means: dict[str, float]
    to_teacher: float | None
    coverage: float | None
    seconds: float
    parameters: int


def gather(study: Study, folder: Path) -> dict[str, Any]:
    """Everything that the study found, as JSON: for each table its rows, with intervals and differences.

    Args:
        study: its runs lie in `folder`, as STEM/ (the run) and STEM.json with STEM.csv (its evaluation).
        folder: of a finished study.

    Raises PipelineError where a result is absent, or was measured over other frames.
    """
    stems = {name: [f"{name}-{seed}" for seed in study.seeds] for name in study.runs}
    files = [(name, [folder / f"{stem}.json" for stem in listed]) for name, listed in stems.items()]
    joined = {metric: join(files, metric, seeds_known=True) for metric in HEADS}
    first = joined[METRIC]
    found = {}
    for number, group in enumerate(first.groups):
        per_image = {metric: one.groups[number].values for metric, one in joined.items()}
        found[group.name] = _read_run(group, per_image, folder, stems[group.name])
    return {
        "study": study.name,
        "seeds": list(study.seeds),
        "frames": len(first.ids),
        "protocol": first.protocol,
        "block": study.block,
        "train": study.train,
        "evaluate": study.evaluate,
        "teachers": {name: read_teacher(folder / file) for name, file in study.teachers.items()},
        "runs": {
            name: {
                "flags": study.runs[name],
                "parameters": run.parameters,
                "train_seconds": round(run.seconds, 1),
                "metrics": run.means,
                "abs_rel_to_teacher": run.to_teacher,
                "coverage": run.coverage,
                **_interval(run, study.block),
            }
            for name, run in found.items()
        },
        "tables": {table.name: _compare(table, found, study.block) for table in study.tables},
    }


def _read_run(group: Group, per_image: dict[str, NDArray[np.float64]], folder: Path, stems: Sequence[str]) -> _Measured:
    results = [EvaluationResult.load(path, rows=False) for path in group.paths]
    trained = [read_json(folder / stem / "metrics.json", "metrics of a run") for stem in stems]
    alike = [result.against_teacher[METRIC] for result in results if result.against_teacher is not None]
    return _Measured(
        per_image=per_image,
        means={key: float(np.mean([result.metrics[key] for result in results])) for key in METRICS},
        to_teacher=float(np.mean(alike)) if alike else None,
        coverage=group.coverage,
        seconds=float(np.mean([one["seconds"] for one in trained])),
        parameters=int(trained[0]["parameters"]),
    )


def _interval(run: _Measured, block: int) -> dict[str, Any]:
    found = mean_interval(run.per_image[METRIC], block=block)
    return {"low": found.low, "high": found.high, "seeds_sd": found.seeds_sd}


def _compare(table: Table, found: Mapping[str, _Measured], block: int) -> dict[str, Any]:
    """Each run of a table against its first, p values corrected for their number (Holm).

    Seeds are paired as frames are: a seed decides the first weights, the order of samples and how they are varied, so
    that runs of one seed are good or bad together. What is judged is the difference, seed by seed.
    """
    base = found[table.first].per_image[table.metric]
    nothing = np.zeros(base.shape[1])
    differences = [
        paired_difference(found[name].per_image[table.metric] - base, nothing, block=block) for name in table.runs
    ]
    corrected = corrected_p_values(differences)
    percent = 100 / float(base.mean())
    return {
        "title": table.title,
        "first": table.first,
        "metric": table.metric,
        "against_first": {
            name: {
                "difference_percent": percent * one.difference,
                "low_percent": None if one.low is None else percent * one.low,
                "high_percent": None if one.high is None else percent * one.high,
                "p_holm": p,
            }
            for name, one, p in zip(table.runs, differences, corrected, strict=True)
        },
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of `gather`'s result, for docs/experiments.md. Coverage has a column where it is not 100 %."""
    seeds, frames, block = len(results["seeds"]), results["frames"], results["block"]
    parts = []
    for name, table in results["tables"].items():
        against = f"{HEADS[table['metric']]} against {table['first']}"
        head = ["", "AbsRel", f"95 % interval, {seeds} seeds", "RMSE", "δ1", "to teacher", against, "p", "coverage"]
        listed = [table["first"], *table["against_first"]]
        rows = [_teacher_row(teacher, metrics) for teacher, metrics in results["teachers"].items()]
        rows += [_row(run, results["runs"][run], table["against_first"].get(run)) for run in listed]
        if all(row[-1] in {"", "100 %"} for row in rows):
            head, rows = head[:-1], [row[:-1] for row in rows]
        few = "" if enough(frames, block) else f"\n\n{too_few(frames, block)}"
        parts.append(f"<!-- {results['study']}:{name} -->\n**{table['title']}**\n\n{_table(head, rows)}{few}")
    return printable("\n\n".join(parts) + "\n")


def _teacher_row(name: str, metrics: Mapping[str, float]) -> list[str]:
    values = [f"{metrics['abs_rel']:.4f}", "", f"{metrics['rmse']:.3f}", f"{metrics['delta1']:.4f}"]
    return [f"*{name}*", *values, "", "", "", _coverage(metrics)]


def _coverage(stated: Mapping[str, Any]) -> str:
    return "" if stated.get("coverage") is None else coverage_text(stated["coverage"])


def _row(name: str, run: Mapping[str, Any], against: Mapping[str, float] | None) -> list[str]:
    metrics = run["metrics"]
    alike = "" if run["abs_rel_to_teacher"] is None else f"{run['abs_rel_to_teacher']:.4f}"
    difference = p_value = ""
    if against is not None:
        low, high = against["low_percent"], against["high_percent"]
        difference = f"{against['difference_percent']:+.1f} %"
        if low is not None and against["p_holm"] is not None:
            difference += f" ({low:+.1f} to {high:+.1f})"
            p_value = f"{against['p_holm']:.3f}" if against["p_holm"] >= 0.001 else "< 0.001"
    return [
        f"`{name}`",
        f"{metrics['abs_rel']:.4f}",
        "" if run["low"] is None else f"{run['low']:.4f}-{run['high']:.4f}",
        f"{metrics['rmse']:.3f}",
        f"{metrics['delta1']:.4f}",
        alike,
        difference,
        p_value,
        _coverage(run),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
