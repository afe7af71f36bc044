"""A study file, read and checked: YAML, with studies below `studies`.

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

Names of runs and teachers become names of files, so they are plain words. YAML of a few lines can stand for more than a
memory holds (aliases of aliases): it is measured before it is built.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from ..common.fileio import JSON_DEPTH, open_regular, pretty_json
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEYS = {"train", "evaluate", "seeds", "block", "teachers", "runs", "tables"}
TABLE_NEEDS = {"first", "runs"}
TABLE_KEYS = TABLE_NEEDS | {"title", "metric"}
METRIC = "abs_rel"
"""What intervals are taken of; and differences, where a table names no other."""
HEADS = {"abs_rel": "AbsRel", "rmse": "RMSE", "delta1": "δ1"}
"""What differences can be taken of, and how it is called."""


MAX_FILE_BYTES = 2**20
MAX_NODES = 100_000
"""Of a study file with its aliases written out; those of this project have a few thousand."""
MAX_NAME_BYTES = 100
NAME = re.compile(r"\w[\w .,+=@%-]*")
FLAG = re.compile(r"[a-z0-9][a-z0-9-]*")


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

    def __post_init__(self) -> None:
        for kind, names in (("run", self.runs), ("teacher", self.teachers)):
            for name in names:
                _check_name(name, f"study {self.name!r}: {kind}")
        twice = [seed for seed in self.seeds if self.seeds.count(seed) > 1]
        if twice:
            raise PipelineError(f"study {self.name!r}: seed {twice[0]} is there twice, expected each seed once")

    def runs_to_do(self) -> list[Run]:
        """Every run of every seed, seed by seed, so that an early end leaves whole tables of fewer seeds."""
        return [
            Run(name, seed, {**self.train, **flags, "seed": seed}, self.evaluate)
            for seed in self.seeds
            for name, flags in self.runs.items()
        ]


def read_study(path: Path, name: str) -> Study:
    """Read a study of a YAML file. Raises PipelineError naming what is wrong with it."""
    studies = _mapping(_read_yaml(path).get("studies"), f"study file {path}: studies")
    if name not in studies:
        raise PipelineError(f"study {name!r} is not in {path}: expected one of: {', '.join(map(str, studies))}")
    where = f"study {name!r} of {path}"
    section = studies[name]
    if not isinstance(section, dict) or not section.get("runs"):
        raise PipelineError(
            f"{where}: expected a mapping with `runs`, see the head of pipeline/evaluation/study_file.py"
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
    seeds = section.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise PipelineError(f"{where}: seeds {seeds!r}, expected a list of whole numbers such as [0, 1, 2]")
    block = section.get("block", 1)
    if type(block) is not int or block < 1:
        raise PipelineError(f"{where}: block {block!r}, expected a whole number of frames, 1 or more")
    return Study(
        name=name,
        train=_flags(section.get("train"), f"{where}: train"),
        evaluate=_flags(section.get("evaluate"), f"{where}: evaluate"),
        seeds=tuple(seeds),
        block=block,
        teachers=teachers,
        runs=runs,
        tables=tuple(
            _table(_text(table, f"{where}: table"), said, runs, where)
            for table, said in _mapping(section.get("tables"), f"{where}: tables").items()
        ),
    )


def _table(name: str, said: Any, runs: Iterable[str], where: str) -> Table:  # noqa: ANN401 - any YAML value
    where = f"{where}: table {name!r}"
    if not isinstance(said, dict) or set(said) - TABLE_KEYS or not set(said) >= TABLE_NEEDS:
        keys = sorted(map(str, said)) if isinstance(said, dict) else said
        raise PipelineError(f"{where} has {keys}, expected first and runs, perhaps with title and metric")
    if not isinstance(said["runs"], list):
        raise PipelineError(f"{where}: runs {said['runs']!r}, expected a list of names of runs")
    first, *others = (_text(run, f"{where}: run") for run in (said["first"], *said["runs"]))
    absent = [run for run in (first, *others) if run not in runs]
    if absent:
        raise PipelineError(f"{where} names run {absent[0]!r}, expected one of {', '.join(runs)}")
    metric = said.get("metric", METRIC)
    if not isinstance(metric, str) or metric not in HEADS:
        raise PipelineError(f"{where}: metric {metric!r}, expected one of {', '.join(HEADS)}")
    return Table(name, _text(said.get("title", name), f"{where}: title"), first, tuple(others), metric)


def _mapping(value: Any, where: str) -> dict[Any, Any]:  # noqa: ANN401 - any YAML value
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PipelineError(f"{where}: {str(value)[:80]!r}, expected a mapping")
    return value


def _text(value: Any, where: str) -> str:  # noqa: ANN401 - any YAML value
    """A text; of a number what was written. Raises PipelineError for `yes` too, which YAML reads as true."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PipelineError(f"{where}: {str(value)[:80]!r}, expected a text (in quotes if it is yes or no)")
    return str(value)


def _check_name(name: str, where: str) -> None:
    if not NAME.fullmatch(name) or name[-1] in " ." or len(name.encode()) > MAX_NAME_BYTES:
        raise PipelineError(
            f"{where} {name[:200]!r}: expected a plain word of at most {MAX_NAME_BYTES} bytes (letters, digits, and "
            "._-+=,@% after the first), because its files are named by it"
        )


def _flags(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401 - any YAML value
    """Flags of a command, as {name: text, number or boolean}."""
    flags = _mapping(value, where)
    for name, given in flags.items():
        if not isinstance(name, str) or not FLAG.fullmatch(name):
            raise PipelineError(
                f"{where}: flag {str(name)[:80]!r}, expected a name such as batch-size, without dashes before"
            )
        if not isinstance(given, str | int | float):
            raise PipelineError(f"{where}: flag {name}: {str(given)[:80]!r}, expected a text, a number, true or false")
    return dict(flags)


def _read_yaml(path: Path) -> dict[Any, Any]:
    """The top of a study file. Raises PipelineError."""
    where = f"study file {path}"
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PipelineError(f"{where}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise PipelineError(f"{where}: more than {MAX_FILE_BYTES} bytes, which a study file does not need")
    try:
        text = data.decode()
        _measure(text)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise PipelineError(f"{where}: {error}; expected YAML with a section `studies`") from error
    if not isinstance(value, dict) or "studies" not in value:
        raise PipelineError(f"{where}: no section `studies`; expected YAML with a section `studies`")
    return value


class _Node:
    """A list or mapping while its events come."""

    def __init__(self, anchor: str | None, *, mapping: bool) -> None:
        self.anchor, self.mapping = anchor, mapping
        self.nodes, self.children = 1, 0
        self.keys: set[str] = set()

    def add(self, nodes: int, key: str | None) -> None:
        """Count a child. Raises PipelineError for a key that is there already."""
        if self.mapping and self.children % 2 == 0 and key is not None and key != "<<":
            if key in self.keys:
                raise PipelineError(f"key {key[:80]!r} is there twice")
            self.keys.add(key)
        self.children += 1
        self.nodes += nodes


def _measure(text: str) -> None:
    """Raise PipelineError for YAML of more than MAX_NODES with its aliases written out, or of a key twice.

    Merged mappings and aliases of aliases grow as powers, and only when they are built: so the events are counted.
    """
    sizes: dict[str, int] = {}
    stack = [_Node(None, mapping=False)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        nodes, key, anchor = 1, None, getattr(event, "anchor", None)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append(_Node(anchor, mapping=isinstance(event, yaml.MappingStartEvent)))
            if len(stack) > JSON_DEPTH:
                raise PipelineError(f"nested deeper than {JSON_DEPTH}")
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = stack.pop()
            nodes, anchor = done.nodes, done.anchor
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise PipelineError(f"alias *{anchor} is of what it stands in, or of nothing before it")
            nodes, anchor = sizes[anchor], None
        elif isinstance(event, yaml.ScalarEvent):
            nodes, key = 1 + len(event.value) // 16, event.value
        else:
            continue
        stack[-1].add(nodes, key)
        if anchor is not None:
            sizes[anchor] = nodes
        if stack[-1].nodes > MAX_NODES:
            raise PipelineError(f"with its aliases it stands for more than {MAX_NODES} values")
