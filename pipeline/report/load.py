"""Read the training curves and metrics of each run."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ..common.fileio import open_regular, read_json
from ..depth.metrics import METRICS
from ..errors import PipelineError
from ..evaluation.result import WRITTEN_BY, EvaluationResult
from ..networks.saved_run import METRICS as RUN_METRICS
from ..networks.saved_run import load_run, view_of
from ..sources.view import View
from .identity import is_of_teacher
from .model import Measured, RunResult, read_uncertainty

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..store import Store

_EVALUATE = "give the file of this run, or run `pipeline evaluate-student` again"
TEACHER_STEM = "teacher"
"""Stem of the teacher's metrics file, unless a run has this name."""


def read_results(
    runs: Sequence[Path], metrics_paths: Sequence[Path | tuple[str, Path]], store: Store
) -> tuple[list[RunResult], Measured | None]:
    """Read runs with their metrics, and the teacher's metrics if given.

    A metrics file is matched by its given name (name, file), or else by its stem, to a run's directory or to the
    teacher. Files of a folder that match nothing are ignored. Raises PipelineError for two runs of one name, a file
    that matches nothing or states other weights or another teacher, a run whose view is not the store's, and damaged
    files.
    """
    names = [run.resolve().name for run in runs]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise PipelineError(f"two runs are named {duplicates[0]!r}; rename one of the directories")
    metrics = _match(metrics_paths, names)
    view = View.parse(store.spec.view)
    results = []
    for path, name in zip(runs, names, strict=True):
        run = load_run(path)
        run_view = view_of(run.config, store.spec.source["name"])
        if View.parse(run_view) != view:
            raise PipelineError(
                f"run {path} uses view {run_view!r}, store {store.name} uses {store.spec.view!r}; "
                "use runs and a store of the same view"
            )
        measured = read_measured(metrics[name]) if name in metrics else None
        if measured is not None and measured.measured.get("weights_sha256", run.weights_sha256) != run.weights_sha256:
            raise PipelineError(f"metrics {metrics[name]} are of other weights than run {path}; {_EVALUATE}")
        if measured is not None and "store_digest" in measured.measured:
            raise PipelineError(f"metrics {metrics[name]} are of a teacher, not of run {path}; {_EVALUATE}")
        if measured is not None and not is_of_teacher(measured.teacher, store):
            measured = replace(measured, against_teacher=None)
        training = read_json(path / RUN_METRICS, "metrics of a run")
        steps = [(row["step"], row["loss"]) for row in _read_table(path / "steps.csv", ("step", "loss"))]
        results.append(RunResult(name, run, training, steps, _read_table(path / "epochs.csv", ("epoch",)), measured))
    of_teacher = metrics.get(TEACHER_STEM) if TEACHER_STEM not in names else None
    teacher = None if of_teacher is None else read_measured(of_teacher)
    if teacher is not None and ("weights_sha256" in teacher.measured or not is_of_teacher(teacher.measured, store)):
        raise PipelineError(
            f"metrics {of_teacher} are not of the teacher of {store.name}; omit them, or run "
            "`pipeline evaluate-teacher` on this store"
        )
    return results, teacher


def _match(metrics_paths: Sequence[Path | tuple[str, Path]], names: Sequence[str]) -> dict[str, Path]:
    """Metrics files by run name."""
    wanted = {*names, TEACHER_STEM}
    files: list[tuple[str, Path]] = []
    for given in metrics_paths:
        name, path = given if isinstance(given, tuple) else (given.stem, given)
        if path.is_dir() and not isinstance(given, tuple):
            files += [(file.stem, file) for file in sorted(path.glob("*.json")) if file.stem in wanted]
        elif name in wanted:
            files.append((name, path))
        else:
            expected = ", ".join([*names, TEACHER_STEM])
            raise PipelineError(
                f"metrics {path} match no run: {name!r} is not one of {expected}; name the run with `metrics=NAME=FILE`"
            )
    matched: dict[str, Path] = {}
    for name, path in files:
        if name in matched:
            raise PipelineError(f"metrics {matched[name]} and {path} are both for {name!r}; give one of them")
        matched[name] = path
    return matched


def read_measured(path: Path) -> Measured:
    """Read a metrics file. Raises PipelineError if it is not one."""
    result = EvaluationResult.load(path, rows=False)
    value, alike = result.values, result.against_teacher
    try:
        return Measured(
            protocol=result.protocol,
            source=result.source,
            truth=result.truth,
            frames=result.frames,
            metrics=result.mean_of(METRICS, path),
            coverage=result.coverage,
            split=None if "split" not in value else (str(value["split"]), str(value["split_sha256"])),
            measured=dict(value.get("measured") or {}),
            teacher=dict(value.get("teacher") or {}),
            against_teacher=None if alike is None else {name: float(alike[name]) for name in METRICS},
            uncertainty=None if result.uncertainty is None else read_uncertainty(result.uncertainty),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PipelineError(f"evaluation {path}: {error!r}; expected {WRITTEN_BY}") from error


def _read_table(path: Path, needed: Sequence[str]) -> list[dict[str, float]]:
    """Rows of a run's CSV without empty and non-finite cells; no rows if the file is missing."""
    if not path.is_file():
        return []
    with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
        try:
            rows = [{name: float(cell) for name, cell in row.items() if name and cell} for row in csv.DictReader(file)]
        except (ValueError, TypeError, csv.Error) as error:
            raise PipelineError(f"{path}: {error}; expected a CSV table from `pipeline train-student`") from error
    finite = [{name: cell for name, cell in row.items() if math.isfinite(cell)} for row in rows]
    return [row for row in finite if all(name in row for name in needed)]
