"""A study: many students that differ in a few flags, over several seeds, and what the differences are worth.

A study stands in a YAML file, below `studies`:

    studies:
      street:
        train: {source: ..., split: train, store: ..., epochs: 6}   # flags that all runs share
        evaluate: {source: ..., split: test, protocol: plain}
        seeds: [0, 1, 2]
        block: 1                                 # frames in a row that are alike (video), for the intervals
        teachers: {exact: exact.json}            # results of evaluate-teacher, shown in the tables
        runs:
          tiekd: {loss: tiekd}                   # flags of its own, over those of `train`
          ssim: {loss: ssim}
        tables:
          losses: {title: "Losses", first: tiekd, runs: [ssim], metric: delta1}   # all are compared with the first

It knows nothing of processes or of the command line: `cli/study.py` runs what `Study.runs_to_do` lists.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from .fileio import pretty_json, read_json, write_durably
from .metrics import METRICS
from .results import join
from .significance import corrected_p_values, enough, mean_interval, paired_difference, too_few

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .results import Group

KEYS = {"train", "evaluate", "seeds", "block", "teachers", "runs", "tables"}
TABLE_NEEDS = {"first", "runs"}
TABLE_KEYS = TABLE_NEEDS | {"title", "metric"}
METRIC = "abs_rel"
"""What intervals are taken of; and differences, where a table names no other."""
HEADS = {"abs_rel": "AbsRel", "rmse": "RMSE", "delta1": "δ1"}
"""What differences can be taken of, and how it is called."""


@dataclass(frozen=True)
class Table:
    """Runs beside each other; all are compared with the first."""

    name: str
    title: str
    first: str
    runs: tuple[str, ...]
    metric: str
    """Of the differences."""


@dataclass(frozen=True)
class Run:
    """One student of one seed: the flags of the two commands that make and measure it."""

    name: str
    seed: int
    train: dict[str, Any]
    evaluate: dict[str, Any]

    @property
    def stem(self) -> str:
        """Name of its files."""
        return f"{self.name}-{self.seed}"

    def flags_json(self) -> bytes:
        """What its files were made with, kept beside them."""
        return pretty_json({"train": self.train, "evaluate": self.evaluate})


@dataclass(frozen=True)
class Study:
    """A section of a study file, checked."""

    name: str
    train: dict[str, Any]
    evaluate: dict[str, Any]
    seeds: tuple[int, ...]
    block: int
    teachers: dict[str, str]
    runs: dict[str, dict[str, Any]]
    tables: tuple[Table, ...]

    def runs_to_do(self) -> list[Run]:
        """Every run of every seed, seed by seed, so that an early end leaves whole tables of fewer seeds."""
        return [
            Run(name, seed, {**self.train, **flags, "seed": seed}, self.evaluate)
            for seed in self.seeds
            for name, flags in self.runs.items()
        ]


def read_study(path: Path, name: str) -> Study:
    """Read a study of a YAML file. Raises ValueError naming what is wrong with it."""
    try:
        studies = yaml.safe_load(path.read_text(encoding="utf-8"))["studies"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"study file {path}: {error}; expected YAML with a section `studies`") from error
    if not isinstance(studies, dict) or name not in studies:
        raise ValueError(f"study {name!r} is not in {path}: expected one of: {', '.join(studies or [])}")
    section = studies[name]
    where = f"study {name!r} of {path}"
    if not isinstance(section, dict) or not section.get("runs"):
        raise ValueError(f"{where}: expected a mapping with `runs`, see the head of pipeline/study.py")
    unknown = sorted(set(section) - KEYS)
    if unknown:
        raise ValueError(f"{where}: key {unknown[0]!r}, expected one of {', '.join(sorted(KEYS))}")
    runs = {str(run): dict(flags or {}) for run, flags in section["runs"].items()}
    seeds = section.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"{where}: seeds {seeds!r}, expected a list of whole numbers such as [0, 1, 2]")
    tables = []
    for table, said in section.get("tables", {}).items():
        if not isinstance(said, dict) or set(said) - TABLE_KEYS or not set(said) >= TABLE_NEEDS:
            keys = sorted(map(str, said)) if isinstance(said, dict) else said
            raise ValueError(
                f"{where}: table {table!r} has {keys}, expected first and runs, perhaps with title and metric"
            )
        listed = [said["first"], *said["runs"]]
        absent = [run for run in listed if run not in runs]
        if absent:
            raise ValueError(f"{where}: table {table!r} names run {absent[0]!r}, expected one of {', '.join(runs)}")
        metric = said.get("metric", METRIC)
        if metric not in HEADS:
            raise ValueError(f"{where}: table {table!r}: metric {metric!r}, expected one of {', '.join(HEADS)}")
        tables.append(Table(table, said.get("title", table), said["first"], tuple(said["runs"]), metric))
    return Study(
        name=name,
        train=section.get("train", {}),
        evaluate=section.get("evaluate", {}),
        seeds=tuple(seeds),
        block=int(section.get("block", 1)),
        teachers=section.get("teachers", {}),
        runs=runs,
        tables=tuple(tables),
    )


def unfinished(study: Study, folder: Path) -> list[Run]:
    """Runs that are still to do; what was made with other flags than theirs is removed first."""
    todo = []
    for run in study.runs_to_do():
        described, result = folder / f"{run.stem}.flags.json", folder / f"{run.stem}.json"
        if not described.exists() or described.read_bytes() != run.flags_json():
            result.unlink(missing_ok=True)
            shutil.rmtree(folder / run.stem, ignore_errors=True)
            write_durably(described, run.flags_json())
        if not result.exists():
            todo.append(run)
    return todo


@dataclass(frozen=True)
class _Measured:
    """Results of one run over its seeds."""

    per_image: dict[str, NDArray[np.float64]]
    """(S, F) of each metric in HEADS."""
    means: dict[str, float]
    to_teacher: float | None
    seconds: float
    parameters: int


def gather(study: Study, folder: Path) -> dict[str, Any]:
    """Everything that the study found, as JSON: for each table its rows, with intervals and differences.

    Args:
        study: its runs lie in `folder`, as STEM/ (the run) and STEM.json with STEM.csv (its evaluation).
        folder: of a finished study.

    Raises ValueError where a result is absent, or was measured over other frames.
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
        "teachers": {name: read_json(folder / file, "metrics")["metrics"] for name, file in study.teachers.items()},
        "runs": {
            name: {
                "flags": study.runs[name],
                "parameters": run.parameters,
                "train_seconds": round(run.seconds, 1),
                "metrics": run.means,
                "abs_rel_to_teacher": run.to_teacher,
                **_interval(run, study.block),
            }
            for name, run in found.items()
        },
        "tables": {table.name: _compare(table, found, study.block) for table in study.tables},
    }


def _read_run(group: Group, per_image: dict[str, NDArray[np.float64]], folder: Path, stems: Sequence[str]) -> _Measured:
    results = [read_json(path, "metrics") for path in group.paths]
    trained = [read_json(folder / stem / "metrics.json", "metrics of a run") for stem in stems]
    alike = [result["against_teacher"][METRIC] for result in results if "against_teacher" in result]
    return _Measured(
        per_image=per_image,
        means={key: float(np.mean([result["metrics"][key] for result in results])) for key in METRICS},
        to_teacher=float(np.mean(alike)) if alike else None,
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
    """The tables of `gather`'s result, for docs/experiments.md."""
    seeds = len(results["seeds"])
    parts = []
    for name, table in results["tables"].items():
        against = f"{HEADS[table['metric']]} against {table['first']}"
        head = ["", "AbsRel", f"95 % interval, {seeds} seeds", "RMSE", "δ1", "to teacher", against, "p"]
        listed = [table["first"], *table["against_first"]]
        rows = [_teacher_row(teacher, metrics) for teacher, metrics in results["teachers"].items()]
        rows += [_row(run, results["runs"][run], table["against_first"].get(run)) for run in listed]
        few = (
            "" if enough(results["frames"], results["block"]) else f"\n\n{too_few(results['frames'], results['block'])}"
        )
        parts.append(f"<!-- {results['study']}:{name} -->\n**{table['title']}**\n\n{_table(head, rows)}{few}")
    return "\n\n".join(parts) + "\n"


def _teacher_row(name: str, metrics: Mapping[str, float]) -> list[str]:
    values = [f"{metrics['abs_rel']:.4f}", "", f"{metrics['rmse']:.3f}", f"{metrics['delta1']:.4f}"]
    return [f"*{name}*", *values, "", "", ""]


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
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
