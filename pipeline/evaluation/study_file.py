"""Read a study file: YAML with studies under the key `studies`.

    studies:
      street:
        train: {source: ..., split: train, store: ..., epochs: 6}   # flags of train-student for all runs
        evaluate: {source: ..., split: test, protocol: plain}       # flags of evaluate-student
        seeds: [0, 1, 2]
        block: 1                                 # consecutive frames that are alike (video), for the intervals
        teachers: {exact: exact.json}            # results of evaluate-teacher to show in the tables
        runs:
          tiekd: {loss: tiekd}                   # flags of one run, which override those of `train`
          ssim: {loss: ssim}
        tables:
          losses: {title: "Losses", first: tiekd, runs: [ssim], metric: delta1}   # each run is compared with the first

Files are named after runs and teachers, so their names have only characters that are safe in file names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..common.fileio import pretty_json
from ..errors import PipelineError
from .study_yaml import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEYS = {"train", "evaluate", "seeds", "block", "teachers", "runs", "tables"}
TABLE_NEEDS = {"first", "runs"}
TABLE_KEYS = TABLE_NEEDS | {"title", "metric"}
METRIC = "abs_rel"
"""Metric of the intervals, and the default metric of a table."""
HEADS = {"abs_rel": "AbsRel", "rmse": "RMSE", "delta1": "δ1"}
"""Metrics that a table can compare, and their column heads."""
MAX_NAME_BYTES = 100
NAME = re.compile(r"\w[\w .,+=@%-]*")
FLAG = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class Table:
    """Runs of one table; each is compared with the first."""

    name: str
    title: str
    first: str
    runs: tuple[str, ...]
    metric: str
    """Metric to compare."""


@dataclass(frozen=True)
class Run:
    """One student with one seed: flags of train-student and evaluate-student."""

    name: str
    seed: int
    train: dict[str, Any]
    evaluate: dict[str, Any]

    @property
    def stem(self) -> str:
        """Name of its files, without suffix."""
        return f"{self.name}-{self.seed}"

    def flags_json(self) -> bytes:
        """Return the flags as JSON; they are stored next to the run's files."""
        return pretty_json({"train": self.train, "evaluate": self.evaluate})


@dataclass(frozen=True)
class Study:
    """One study of a study file."""

    name: str
    train: dict[str, Any]
    evaluate: dict[str, Any]
    seeds: tuple[int, ...]
    block: int
    teachers: dict[str, str]
    runs: dict[str, dict[str, Any]]
    tables: tuple[Table, ...]

    def __post_init__(self) -> None:
        for what, names in (("run", self.runs), ("teacher", self.teachers)):
            for name in names:
                _check_name(name, f"study {self.name!r}: {what}")
        duplicates = [seed for seed in self.seeds if self.seeds.count(seed) > 1]
        if duplicates:
            raise PipelineError(f"study {self.name!r}: duplicate seed {duplicates[0]}; list each seed once")

    def runs_to_do(self) -> list[Run]:
        """Return all runs, seed by seed: an interrupted study then has complete tables with fewer seeds."""
        return [
            Run(name, seed, {**self.train, **flags, "seed": seed}, self.evaluate)
            for seed in self.seeds
            for name, flags in self.runs.items()
        ]


def read_study(path: Path, name: str) -> Study:
    """Read one study of a YAML file. Raises PipelineError that names the file, the study and the key."""
    studies = _mapping(read_yaml(path).get("studies"), f"study file {path}: studies")
    if name not in studies:
        raise PipelineError(f"study {name!r} is not in {path}: expected one of {', '.join(map(str, studies))}")
    where = f"study {name!r} of {path}"
    section = studies[name]
    if not isinstance(section, dict) or not section.get("runs"):
        raise PipelineError(
            f"{where}: expected a mapping with `runs`, as pipeline/evaluation/study_file.py describes it"
        )
    unknown = sorted(map(str, set(section) - KEYS))
    if unknown:
        raise PipelineError(f"{where}: key {unknown[0]!r}, expected one of {', '.join(sorted(KEYS))}")
    runs = {
        _text(run, f"{where}: run"): _flags(flags, f"{where}: run {run!r}")
        for run, flags in _mapping(section["runs"], f"{where}: runs").items()
    }
    teachers = {
        _text(teacher, f"{where}: teacher"): _text(file, f"{where}: teacher {teacher!r}")
        for teacher, file in _mapping(section.get("teachers"), f"{where}: teachers").items()
    }
    tables = tuple(
        _table(_text(table, f"{where}: table"), values, runs, where)
        for table, values in _mapping(section.get("tables"), f"{where}: tables").items()
    )
    return Study(
        name=name,
        train=_flags(section.get("train"), f"{where}: train"),
        evaluate=_flags(section.get("evaluate"), f"{where}: evaluate"),
        seeds=_seeds(section.get("seeds", [0]), where),
        block=_block(section.get("block", 1), where),
        teachers=teachers,
        runs=runs,
        tables=tables,
    )


def _seeds(value: Any, where: str) -> tuple[int, ...]:  # noqa: ANN401 - any YAML value
    if not isinstance(value, list) or not value or not all(type(seed) is int for seed in value):
        raise PipelineError(f"{where}: seeds {value!r}, expected a list of whole numbers such as [0, 1, 2]")
    return tuple(value)


def _block(value: Any, where: str) -> int:  # noqa: ANN401 - any YAML value
    if type(value) is not int or value < 1:
        raise PipelineError(f"{where}: block {value!r}, expected a whole number of frames, at least 1")
    return value


def _table(name: str, table: Any, runs: Iterable[str], where: str) -> Table:  # noqa: ANN401 - any YAML value
    where = f"{where}: table {name!r}"
    if not isinstance(table, dict) or set(table) - TABLE_KEYS or not set(table) >= TABLE_NEEDS:
        keys = sorted(map(str, table)) if isinstance(table, dict) else table
        raise PipelineError(f"{where} has {keys}, expected first and runs, and optionally title and metric")
    if not isinstance(table["runs"], list):
        raise PipelineError(f"{where}: runs {table['runs']!r}, expected a list of names of runs")
    first, *others = (_text(run, f"{where}: run") for run in (table["first"], *table["runs"]))
    unknown = [run for run in (first, *others) if run not in runs]
    if unknown:
        raise PipelineError(f"{where}: run {unknown[0]!r}, expected one of {', '.join(runs)}")
    metric = table.get("metric", METRIC)
    if not isinstance(metric, str) or metric not in HEADS:
        raise PipelineError(f"{where}: metric {metric!r}, expected one of {', '.join(HEADS)}")
    return Table(name, _text(table.get("title", name), f"{where}: title"), first, tuple(others), metric)


def _mapping(value: Any, where: str) -> dict[Any, Any]:  # noqa: ANN401 - any YAML value
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PipelineError(f"{where}: {str(value)[:80]!r}, expected a mapping")
    return value


def _text(value: Any, where: str) -> str:  # noqa: ANN401 - any YAML value
    """A string, or a number as a string. Raises PipelineError for `yes` and `no`, which YAML reads as booleans."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PipelineError(f"{where}: {str(value)[:80]!r}, expected a string (in quotes if it is yes or no)")
    return str(value)


def _check_name(name: str, where: str) -> None:
    if not NAME.fullmatch(name) or name[-1] in " ." or len(name.encode()) > MAX_NAME_BYTES:
        raise PipelineError(
            f"{where} {name[:200]!r}: its files have this name, so expected at most {MAX_NAME_BYTES} bytes of letters, "
            "digits, spaces and ._-+=,@%, starting with a letter or digit"
        )


def _flags(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401 - any YAML value
    """Flags of a command: {name: string, number or boolean}."""
    flags = _mapping(value, where)
    for name, flag in flags.items():
        if not isinstance(name, str) or not FLAG.fullmatch(name):
            raise PipelineError(
                f"{where}: flag {str(name)[:80]!r}, expected a name without leading dashes, such as batch-size"
            )
        if not isinstance(flag, str | int | float):
            raise PipelineError(f"{where}: flag {name}: {str(flag)[:80]!r}, expected a string, number, true or false")
    return dict(flags)
