"""The table of results, for the terminal and the page, and its summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from ..depth.metrics import LOWER_IS_BETTER, METRICS
from ..depth.readout import DEFAULT
from ..evaluation.coverage import SAME_COVERAGE
from ..networks.reader import MAP_HEAD
from ..networks.saved_run import DATA_SETS
from .identity import OTHER, THIS_STORE, THIS_TEACHER, TRUTH, learned_from_what

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..store import Store
    from .model import Measured, RunResult

DASH = "–"  # noqa: RUF001 - an en dash marks an empty cell


class Column(NamedTuple):
    """A column of the table."""

    key: str
    head: str
    digits: int
    unit: str = ""
    better: str = ""
    """`lower`, `higher`, or empty."""
    brief: bool = False
    """Whether the terminal's table has it too."""


class Cell(NamedTuple):
    """A formatted number, and whether it is the best of all students."""

    text: str
    best: bool = False


class Line(NamedTuple):
    """A row of the page's table. `color` is a series number, None for the teacher."""

    name: str
    learned: str
    color: int | None
    cells: list[Cell]


_HEADS = {
    "abs_rel": ("AbsRel", 4),
    "rmse": ("RMSE", 3),
    "delta1": ("δ1", 4),
    "sq_rel": ("SqRel", 3),
    "rmse_log": ("RMSElog", 4),
    "log10": ("log10", 4),
    "silog": ("SILog", 2),
    "delta2": ("δ2", 4),
    "delta3": ("δ3", 4),
}
_BRIEF = ("abs_rel", "rmse", "delta1")
assert set(_HEADS) == set(METRICS)

COLUMNS = (
    Column("parameters", "parameters", 2, " M", brief=True),
    *(
        Column(key, head, digits, better="lower" if key in LOWER_IS_BETTER else "higher", brief=key in _BRIEF)
        for key, (head, digits) in _HEADS.items()
    ),
    Column("coverage", "coverage (%)", 1),
    Column("alike", "AbsRel to teacher", 4, better="lower", brief=True),
    Column("speed", "training img/s", 1, brief=True),
)


def comparable(results: Sequence[RunResult], teacher: Measured | None) -> bool:
    """Whether all metrics share protocol, split, number of frames and coverage."""
    all_measured = [entry for entry in (*(result.measured for result in results), teacher) if entry is not None]
    coverages = [entry.coverage for entry in all_measured if entry.coverage is not None]
    same_coverage = not coverages or max(coverages) - min(coverages) <= SAME_COVERAGE
    splits = {entry.split[1] for entry in all_measured if entry.split is not None}
    return same_coverage and len(splits) <= 1 and len({entry.measured_how() for entry in all_measured}) <= 1


def page_table(results: Sequence[RunResult], teacher: Measured | None, store: Store) -> list[Line]:
    """Rows with every column, the teacher first if it has metrics."""
    values = [_values(result) for result in results]
    best = best_of(COLUMNS, values) if comparable(results, teacher) and len(results) > 1 else {}
    lines = []
    if teacher is not None:
        cells = [cell_of(column, _of_measured(teacher), {}) for column in COLUMNS]
        lines.append(Line(teacher_name(store), "", None, cells))
    for series, (result, row) in enumerate(zip(results, values, strict=True)):
        cells = [cell_of(column, row, best) for column in COLUMNS]
        lines.append(Line(result.name, learned_from(result, store), series, cells))
    return lines


def terminal_table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the columns for the terminal."""
    brief = [number for number, column in enumerate(COLUMNS) if column.brief]
    names = [f"{line.name} (teacher)" if line.color is None else line.name for line in lines]
    rows = [[name, *(line.cells[number].text for number in brief)] for name, line in zip(names, lines, strict=True)]
    return ["", *(COLUMNS[number].head for number in brief)], rows


def teacher_name(store: Store) -> str:
    """The teacher's name in the store."""
    return str(store.spec.teacher.get("name") or "teacher")


def learned_from(result: RunResult, store: Store) -> str:
    """A run's student, training data, loss with terms, and epochs; its head and readout unless map and mean."""
    config = result.run.config
    source = learned_from_what(config, store)
    if source == TRUTH:
        truth = config.get("truth_of")
        data = f"{truth} ground truth" if truth and truth != "default" else "ground truth"
    elif source == OTHER:
        stated = config.get("store")
        card = stated.get("teacher") if isinstance(stated, dict) else None
        name = card.get("name") if isinstance(card, dict) else None
        same = " of the same name" if name == teacher_name(store) else ""
        data = f"another teacher{same}, {name or 'unknown'}"
    else:
        data = "the teacher" if source == THIS_STORE else "another store of the teacher"
    others = len(config.get(DATA_SETS) or [config]) - 1
    data += f" and {others} more {'data set' if others == 1 else 'data sets'}" if others else ""
    epochs = result.training.get("epochs") or config.get("epochs")
    loss = " + ".join([str(config.get("loss")), *map(str, config.get("add") or ())])
    text = f"{config.get('student')} on {data}, loss {loss}"
    text += f", {epochs} {'epoch' if epochs == 1 else 'epochs'}" if epochs else ""
    reader = result.run.reader(readout=result.readout)
    text += "" if reader.head == MAP_HEAD else f", head {reader.head}"
    return text if reader.readout == DEFAULT else f"{text}, depth read as {reader.readout}"


_SOURCES = {
    THIS_STORE: "learned from this store",
    THIS_TEACHER: "learned from another store of this teacher",
    OTHER: "learned from another teacher",
    TRUTH: "learned from ground truth",
}


def lineage(results: Sequence[RunResult], store: Store) -> Markup:
    """A sentence that lists what each student learned from."""
    parts = []
    for source, verb in _SOURCES.items():
        names = [result.name for result in results if learned_from_what(result.run.config, store) == source]
        if names:
            listed = [Markup("<strong>{}</strong>").format(name) for name in names]
            joined = Markup(", ").join(listed[:-1]) + Markup(" and ") + listed[-1] if len(listed) > 1 else listed[0]
            parts.append(joined + " " + verb)
    return Markup("; ").join(parts) + "."


def headline(results: Sequence[RunResult], teacher: Measured | None) -> Markup:
    """A summary: the best student against ground truth, and how it compares."""
    measured = [(result.measured.metrics["abs_rel"], result) for result in results if result.measured is not None]
    if not measured:
        return Markup("No metrics of students were given, so this page shows training curves and pictures only.")
    if not comparable(results, teacher):
        return Markup("The metrics differ in protocol, frames or coverage, so the students are not ranked.")
    error, best = min(measured, key=lambda pair: pair[0])
    others = [pair for pair in measured if pair[1].from_truth != best.from_truth]
    subject = "The best student against ground truth is" if len(measured) > 1 else "One student has metrics:"
    text = Markup("{} <strong>{}</strong>").format(subject, best.name)
    if best.from_truth:
        text += ", which learned from ground truth"
    text += f". Its mean relative error (AbsRel) is {error:.1%}"
    if others and not best.from_truth:
        other_error, other = min(others, key=lambda pair: pair[0])
        less = Markup(", {} than <strong>{}</strong>, which learned from ground truth")
        text += less.format(_less(error, other_error), other.name)
    text += "."
    if others and best.from_truth:
        other_error, other = min(others, key=lambda pair: pair[0])
        next_best = Markup(" The best student of a teacher is <strong>{}</strong> with {}.")
        text += next_best.format(other.name, f"{other_error:.1%}")
    if teacher is not None:
        text += f" The teacher's error is {teacher.metrics['abs_rel']:.1%}."
    return text


def _less(error: float, other: float) -> str:
    fraction = 1 - error / other if other else 0.0
    return f"{fraction:.0%} lower" if fraction >= 0.005 else "no lower"


def _values(result: RunResult) -> dict[str, float]:
    values: dict[str, float] = {}
    for key, name, unit in (("parameters", "parameters", 1e6), ("speed", "images_per_second", 1.0)):
        value = result.training.get(name) if isinstance(result.training, dict) else None
        if isinstance(value, (int, float)):
            values[key] = value / unit
    if result.measured is not None:
        values |= _of_measured(result.measured)
        if result.measured.against_teacher is not None:
            values["alike"] = result.measured.against_teacher["abs_rel"]
    return values


def _of_measured(measured: Measured) -> dict[str, float]:
    return measured.metrics | ({} if measured.coverage is None else {"coverage": 100 * measured.coverage})


def best_of(columns: Sequence[Column], values: Sequence[dict[str, float]]) -> dict[str, float]:
    """The best value of each ranked column with more than one value."""
    best = {}
    for column in columns:
        cells = [row[column.key] for row in values if column.key in row]
        if column.better and len(cells) > 1:
            best[column.key] = min(cells) if column.better == "lower" else max(cells)
    return best


def cell_of(column: Column, row: dict[str, float], best: dict[str, float]) -> Cell:
    """A number in the format of its column; a dash if it is missing."""
    value = row.get(column.key)
    if value is None:
        return Cell(DASH)
    return Cell(f"{value:.{column.digits}f}{column.unit}", best=best.get(column.key) == value)
