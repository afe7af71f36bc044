"""The table of results, for the terminal and for the page, and the sentence that sums it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from ..depth.metrics import LOWER_IS_BETTER, METRICS
from ..evaluation.coverage import SAME_COVERAGE
from .identity import OTHER, THIS_STORE, THIS_TEACHER, TRUTH, learned_from_what

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..store import Store
    from .model import Measured, RunResult

DASH = "–"  # noqa: RUF001 - an en dash is what tables use for nothing


class Column(NamedTuple):
    """One number of each network."""

    key: str
    head: str
    digits: int
    unit: str = ""
    better: str = ""
    """`lower`, `higher`, or nothing where neither is."""
    brief: bool = False
    """Whether the terminal shows it too."""


class Cell(NamedTuple):
    """A number as it is shown, and whether it is the best of all students."""

    text: str
    best: bool = False


class Line(NamedTuple):
    """A row of the page's table. `colour` is a series number, or None for the teacher."""

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
    """Whether all metrics were taken in the same way, over the same number of frames and the same part of the truth."""
    taken = [one for one in (*(result.measured for result in results), teacher) if one is not None]
    covered = [one.coverage for one in taken if one.coverage is not None]
    alike = not covered or max(covered) - min(covered) <= SAME_COVERAGE
    splits = {one.split[1] for one in taken if one.split is not None}
    return alike and len(splits) <= 1 and len({one.measured_how() for one in taken}) <= 1


def page_table(results: Sequence[RunResult], teacher: Measured | None, store: Store) -> list[Line]:
    """Rows with every column; the teacher's comes first, if its metrics are known."""
    values = [_values(result) for result in results]
    best = best_of(COLUMNS, values) if comparable(results, teacher) and len(results) > 1 else {}
    lines = []
    if teacher is not None:
        cells = [cell_of(column, _of_measured(teacher), {}) for column in COLUMNS]
        lines.append(Line(teacher_name(store), "", None, cells))
    for number, (result, known) in enumerate(zip(results, values, strict=True)):
        cells = [cell_of(column, known, best) for column in COLUMNS]
        lines.append(Line(result.name, learned_from(result, store), number, cells))
    return lines


def terminal_table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the columns that fit into a terminal."""
    brief = [number for number, column in enumerate(COLUMNS) if column.brief]
    names = [f"{line.name} (teacher)" if line.color is None else line.name for line in lines]
    rows = [[name, *(line.cells[number].text for number in brief)] for name, line in zip(names, lines, strict=True)]
    return ["", *(COLUMNS[number].head for number in brief)], rows


def teacher_name(store: Store) -> str:
    """What the store calls its teacher."""
    return str(store.spec.teacher.get("name") or "teacher")


def learned_from(result: RunResult, store: Store) -> str:
    """What a run learned from, by which loss, and how long."""
    config = result.run.config
    source = learned_from_what(config, store)
    if source == TRUTH:
        kind = config.get("truth_of")
        what = f"{kind} ground truth" if kind and kind != "default" else "ground truth"
    elif source == OTHER:
        stated = config.get("store")
        card = stated.get("teacher") if isinstance(stated, dict) else None
        name = card.get("name") if isinstance(card, dict) else None
        same = " of the same name" if name == teacher_name(store) else ""
        what = f"another teacher{same}, {name or 'unknown'}"
    else:
        what = "the teacher" if source == THIS_STORE else "another store of the teacher"
    epochs = result.training.get("epochs") or config.get("epochs")
    said = f"{config.get('student')} on {what}, loss {config.get('loss')}"
    return f"{said}, {epochs} {'epoch' if epochs == 1 else 'epochs'}" if epochs else said


_SOURCES = {
    THIS_STORE: "learned from this store",
    THIS_TEACHER: "learned from another store of this teacher",
    OTHER: "learned from another teacher",
    TRUTH: "learned from ground truth",
}


def lineage(results: Sequence[RunResult], store: Store) -> Markup:
    """A sentence of who learned from what."""
    parts = []
    for source, verb in _SOURCES.items():
        names = [result.name for result in results if learned_from_what(result.run.config, store) == source]
        if names:
            listed = [Markup("<strong>{}</strong>").format(name) for name in names]
            joined = Markup(", ").join(listed[:-1]) + Markup(" and ") + listed[-1] if len(listed) > 1 else listed[0]
            parts.append(joined + " " + verb)
    return Markup("; ").join(parts) + "."


def headline(results: Sequence[RunResult], teacher: Measured | None) -> Markup:
    """Which student is best against ground truth, and how it compares."""
    measured = [(result.measured.metrics["abs_rel"], result) for result in results if result.measured is not None]
    if not measured:
        return Markup("No metrics of a student were given, so this page shows training and pictures only.")
    if not comparable(results, teacher):
        return Markup("The metrics were not all taken in the same way, so no student is called the best.")
    error, best = min(measured, key=lambda pair: pair[0])
    others = [pair for pair in measured if pair[1].from_truth != best.from_truth]
    said = Markup("Against ground truth {} <strong>{}</strong>").format(
        "the best student is" if len(measured) > 1 else "there is", best.name
    )
    if best.from_truth:
        said += ", which learned from it instead of from a teacher"
    said += f": its depth is off by {error:.1%} on average (AbsRel)"
    if others and not best.from_truth:
        other_error, other = min(others, key=lambda pair: pair[0])
        less = Markup(", {} than <strong>{}</strong>, which learned from ground truth and not from a teacher")
        said += less.format(_less(error, other_error), other.name)
    said += "."
    if others and best.from_truth:
        other_error, other = min(others, key=lambda pair: pair[0])
        next_best = Markup(" Of those that a teacher taught, <strong>{}</strong> is best, with {}.")
        said += next_best.format(other.name, f"{other_error:.1%}")
    if teacher is not None:
        said += f" The teacher itself is off by {teacher.metrics['abs_rel']:.1%}."
    return said


def _less(error: float, other: float) -> str:
    share = 1 - error / other if other else 0.0
    return f"{share:.0%} less" if share >= 0.005 else "no less"


def _values(result: RunResult) -> dict[str, float]:
    known: dict[str, float] = {}
    for key, name, unit in (("parameters", "parameters", 1e6), ("speed", "images_per_second", 1.0)):
        value = result.training.get(name) if isinstance(result.training, dict) else None
        if isinstance(value, (int, float)):
            known[key] = value / unit
    if result.measured is not None:
        known |= _of_measured(result.measured)
        if result.measured.against_teacher is not None:
            known["alike"] = result.measured.against_teacher["abs_rel"]
    return known


def _of_measured(measured: Measured) -> dict[str, float]:
    return measured.metrics | ({} if measured.coverage is None else {"coverage": 100 * measured.coverage})


def best_of(columns: Sequence[Column], values: Sequence[dict[str, float]]) -> dict[str, float]:
    """The best value of each column that has a better end and more than one value."""
    best = {}
    for column in columns:
        known = [one[column.key] for one in values if column.key in one]
        if column.better and len(known) > 1:
            best[column.key] = min(known) if column.better == "lower" else max(known)
    return best


def cell_of(column: Column, known: dict[str, float], best: dict[str, float]) -> Cell:
    """A number as its column shows it; a dash where it is not known."""
    value = known.get(column.key)
    if value is None:
        return Cell(DASH)
    return Cell(f"{value:.{column.digits}f}{column.unit}", best=best.get(column.key) == value)
