"""Results of a study: students that differ in a few flags, over several seeds, compared with intervals and p values.

`study_file` reads the study; `cli/study.py` runs its commands; `study_table` formats the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.fileio import open_regular, read_json, write_durably
from ..common.own_files import remove_own
from ..common.progress import Silent
from ..depth.metrics import METRICS
from .comparison import join
from .multiple_testing import corrected_p_values
from .result import EvaluationResult
from .significance import mean_interval, paired_difference
from .study_file import HEADS, METRIC

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from .comparison import Group
    from .study_file import Run, Study, Table


def unfinished(study: Study, folder: Path, progress: Progress | None = None) -> list[Run]:
    """Return the runs without a result. Removes, with a note, what was made with other flags."""
    todo = []
    for run in study.runs_to_do():
        flags, result = folder / f"{run.stem}.flags.json", folder / f"{run.stem}.json"
        before = _content(flags)
        if before != run.flags_json():
            if before is not None and (result.exists() or (folder / run.stem).exists()):
                (progress or Silent()).note(f"{folder / run.stem} was made with other flags; running it again")
            for stale in (result, result.with_suffix(".csv"), folder / run.stem):
                remove_own(stale)
            write_durably(flags, run.flags_json())
        if not result.exists():
            todo.append(run)
    return todo


def _content(path: Path) -> bytes | None:
    if not path.exists():
        return None
    with open_regular(path) as file:
        return file.read()


def read_teacher(path: Path) -> dict[str, Any]:
    """Read metrics and coverage from a result of `evaluate-teacher`. Raises PipelineError for another file."""
    result = EvaluationResult.load(path, rows=False)
    metrics: dict[str, Any] = result.mean_of(list(HEADS), path)
    return metrics if result.coverage is None else {**metrics, "coverage": result.coverage}


@dataclass(frozen=True)
class _RunResults:
    """Results of one run over its seeds."""

    per_image: dict[str, NDArray[np.float64]]
    """(S, F) of each metric in HEADS."""
    means: dict[str, float]
    to_teacher: float | None
    coverage: float | None
    seconds: float
    parameters: int


def gather(study: Study, folder: Path) -> dict[str, Any]:
    """Return the results of a finished study as JSON: its runs with intervals, its tables with differences.

    Args:
        study: the study.
        folder: for each run and seed, it holds STEM/ (the run), and STEM.json and STEM.csv (its evaluation).

    Raises PipelineError if a result is missing or was measured over other frames.
    """
    stems = {name: [f"{name}-{seed}" for seed in study.seeds] for name in study.runs}
    files = [(name, [folder / f"{stem}.json" for stem in of_run]) for name, of_run in stems.items()]
    joined = {metric: join(files, metric, seeds_known=True) for metric in HEADS}
    main = joined[METRIC]
    runs = {}
    for index, group in enumerate(main.groups):
        per_image = {metric: comparable.groups[index].values for metric, comparable in joined.items()}
        runs[group.name] = _read_run(group, per_image, folder, stems[group.name])
    return {
        "study": study.name,
        "seeds": list(study.seeds),
        "frames": len(main.ids),
        "protocol": main.protocol,
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
            for name, run in runs.items()
        },
        "tables": {table.name: _compare(table, runs, study.block) for table in study.tables},
    }


def _read_run(
    group: Group, per_image: dict[str, NDArray[np.float64]], folder: Path, stems: Sequence[str]
) -> _RunResults:
    results = [EvaluationResult.load(path, rows=False) for path in group.paths]
    trained = [read_json(folder / stem / "metrics.json", "metrics of a run") for stem in stems]
    to_teacher = [result.against_teacher[METRIC] for result in results if result.against_teacher is not None]
    return _RunResults(
        per_image=per_image,
        means={key: float(np.mean([result.metrics[key] for result in results])) for key in METRICS},
        to_teacher=float(np.mean(to_teacher)) if to_teacher else None,
        coverage=group.coverage,
        seconds=float(np.mean([metrics["seconds"] for metrics in trained])),
        parameters=int(trained[0]["parameters"]),
    )


def _interval(run: _RunResults, block: int) -> dict[str, Any]:
    mean = mean_interval(run.per_image[METRIC], block=block)
    return {"low": mean.low, "high": mean.high, "seeds_sd": mean.seeds_sd}


def _compare(table: Table, runs: Mapping[str, _RunResults], block: int) -> dict[str, Any]:
    """Compare each run of a table with its first, with p values corrected by Holm.

    Seeds are paired like frames: a seed decides initial weights, order and augmentation, so runs of one seed vary
    together. The test is on the difference of each seed.
    """
    base = runs[table.first].per_image[table.metric]
    zeros = np.zeros(base.shape[1])
    differences = [
        paired_difference(runs[name].per_image[table.metric] - base, zeros, block=block) for name in table.runs
    ]
    corrected = corrected_p_values(differences)
    percent = 100 / float(base.mean())
    return {
        "title": table.title,
        "first": table.first,
        "metric": table.metric,
        "against_first": {
            name: {
                "difference_percent": percent * difference.difference,
                "low_percent": None if difference.low is None else percent * difference.low,
                "high_percent": None if difference.high is None else percent * difference.high,
                "p_holm": p_holm,
            }
            for name, difference, p_holm in zip(table.runs, differences, corrected, strict=True)
        },
    }
