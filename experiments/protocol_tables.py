"""Tables of docs/experiments.md from the results of the protocol."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from analysis import (
    DECIDING,
    PRIMARY,
    REPEATING,
    RESULTS,
    WORLDS,
    Comparison,
    Reading,
    compare,
    factor_of,
    made_with,
    mean_of,
    reading,
    results,
    secondary,
    seeds_with,
    worst_range,
)

from pipeline.evaluation.study_table import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ACCURACY = (
    "tiekd@mean",
    "tiekd@geometric",
    "tiekd@median",
    "tiekd@absrel",
    "ssim+si",
    "gaussian@geometric",
    "gaussian@absrel",
    "tiekd-geometric@geometric",
    "tiekd-geometric@absrel",
    "ssim+si-geometric",
    "gaussian-geometric@geometric",
    "truth-si",
)
COMPARED = (
    ("tiekd@mean", "ssim+si"),
    ("tiekd@geometric", "ssim+si"),
    ("gaussian@geometric", "ssim+si"),
    ("ssim+si-geometric", "ssim+si"),
    ("tiekd-geometric@geometric", "ssim+si-geometric"),
    ("gaussian-geometric@geometric", "ssim+si-geometric"),
    ("tiekd-geometric@geometric", "gaussian-geometric@geometric"),
    ("ssim+si", "truth-si"),
)
UNCERTAIN = ("tiekd", "tiekd-geometric", "gaussian", "gaussian-geometric", "ssim+si", "truth-si")
MORE = (
    ("tiekd-stored@mean", "tiekd@mean", WORLDS),
    ("tiekd-error-1@geometric", "tiekd-geometric@geometric", WORLDS),
    ("gaussian-nll@geometric", "gaussian@geometric", WORLDS),
    ("laplace@geometric", "gaussian@geometric", WORLDS),
    ("nyu-released@mean", "nyu-gaussian@mean", ("rooms",)),
    ("nyu-gaussian@mean", "ssim+si", ("rooms",)),
)
"""Comparisons beyond the deciding family, with one set of seeds."""
SHOWN = {"abs_rel": 4, "delta1": 4, "rmse": 3}
"""Metrics of an accuracy table, and their decimal places."""
KITTI = ("tiekd", "tiekd-log", "ssim+si", "gaussian", "truth-si")
STUDENTS = ("tiekd", "ssim+si", "gaussian", "tiekd-geometric", "ssim+si-geometric", "gaussian-geometric", "truth-si")


@cache
def tables() -> dict[str, str]:
    """Return each table by its name in the pages."""
    found = {}
    for world in WORLDS:
        found[f"protocol:{world}"] = accuracy_table(world)
        found[f"protocol:{world}-uncertainty"] = uncertainty_table(world)
    found["protocol:compared"] = comparison_table("scaled_")
    found["protocol:compared-as-read"] = comparison_table("")
    found["protocol:edges"] = edge_table()
    found["more:compared"] = more_table()
    found["more:uncertainty"] = more_uncertainty_table()
    found["more:kitti"] = kitti_table()
    return found


def _text(head: Sequence[str], rows: Sequence[Sequence[str]], after: str = "") -> str:
    return markdown_table(head, rows) + (f"\n\n{after}" if after else "")


def _seeds(world: str) -> list[int]:
    return seeds_with(world, STUDENTS, (*DECIDING, *REPEATING))


def accuracy_table(world: str) -> str:
    """Accuracy of each student, as read and with one fitted constant."""
    seeds = _seeds(world)
    head = ["student", "AbsRel", "δ1", "RMSE", "constant", "AbsRel *", "δ1 *", "RMSE *"]
    rows = [_teacher_row(world, name) for name in ("", "-geometric")]
    for of in map(reading, ACCURACY):
        name = f"`{of.student}`" + ("" if of.is_only else f", {of.readout}")
        rows.append([name, *_accuracy(world, of, seeds)])
    return _text(head, rows, f"Means of {len(seeds)} seeds. {made_with(world, STUDENTS)}")


def _accuracy(world: str, of: Reading, seeds: Sequence[int]) -> list[str]:
    """Metrics as read, the fitted constant, and metrics with it."""
    as_read, scaled = (
        _shown({name: mean_of(world, of, prefix + name, seeds) for name in SHOWN}) for prefix in ("", "scaled_")
    )
    return [*as_read, f"{factor_of(world, of, seeds):.3f}", *scaled]


def _shown(metrics: Mapping[str, float]) -> list[str]:
    return [f"{metrics[name]:.{digits}f}" for name, digits in SHOWN.items()]


def _teacher_row(world: str, name: str) -> list[str]:
    metrics = json.loads((RESULTS / "teachers" / f"{world}{name}.json").read_text())["metrics"]
    read = "geometric" if name else "mean"
    return [f"*teacher, {read}*", *_shown(metrics), *[""] * 4]


def comparison_table(prefix: str) -> str:
    """The comparisons that decide, by both sets of seeds."""
    head = ["", "world", "AbsRel", "δ1", "RMSE", "seeds 0-7", "seeds 8-15", "stands"]
    rows = []
    for first, second in COMPARED:
        for world in WORLDS:
            one, other = reading(first), reading(second)
            sets = [compare(world, one, other, seeds, prefix) for seeds in (DECIDING, REPEATING)]
            whole = compare(world, one, other, (*DECIDING, *REPEATING), prefix)
            if whole is None:
                continue
            verdicts = [found.verdict if found else "not run" for found in sets]
            stands = verdicts[0] if verdicts[0] == verdicts[1] else "no"
            rows.append([f"`{one}` against `{other}`", world, *_changes(whole), *verdicts, stands])
    return _text(head, rows)


def _changes(comparison: Comparison) -> list[str]:
    found = (comparison.changes[metric] for metric in PRIMARY)
    return [f"{change.better:+.1f} ({change.low:+.1f} to {change.high:+.1f})" for change in found]


CALIBRATION = ["AUSE", "NLL", "ECE", "largest ECE of a range", "truth in 90 %", "width of 90 %"]


def _calibration(world: str, student: str, seeds: Sequence[int], part: str) -> list[str]:
    """Cells of CALIBRATION."""
    keys = (("entropy", "ause"), ("nll_nats",), ("ece",))
    cells = [_number(secondary(world, student, seeds, part, *key)) for key in keys]
    worst = worst_range(world, student, seeds, part)
    held, width = (secondary(world, student, seeds, part, key) for key in ("coverage_90", "width_90"))
    cells.append("" if worst is None else f"{worst[0]:.3f} ({worst[1]})")
    return [*cells, "" if held is None else f"{100 * held:.1f} %", _number(width, 2)]


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def uncertainty_table(world: str) -> str:
    """What each student's uncertainty is worth, at home and on the shifted domain."""
    seeds = _seeds(world)
    head = ["student", "error", "error of the most certain half", "AURC", *CALIBRATION]
    rows = []
    for part, where in (("secondary", ""), ("shifted_secondary", " (shifted)")):
        for student in UNCERTAIN:
            if secondary(world, student, seeds, part, "risk") is None:
                continue
            keys = (("risk",), ("entropy", "risk_of_half"), ("entropy", "aurc"))
            errors = [_number(secondary(world, student, seeds, part, *key)) for key in keys]
            rows.append([f"`{student}`{where}", *errors, *_calibration(world, student, seeds, part)])
    return _text(head, rows, f"Means of {len(seeds)} seeds.")


def edge_table() -> str:
    """Error and F1 near edges."""
    head = ["student", *(f"{world}: error, F1" for world in WORLDS)]
    rows = []
    for student in STUDENTS:
        cells = []
        for world in WORLDS:
            seeds = _seeds(world)
            numbers = [secondary(world, student, seeds, "secondary", key) for key in ("edge_abs_rel", "edge_f1")]
            cells.append(", ".join(map(_number, numbers)))
        rows.append([f"`{student}`", *cells])
    return _text(head, rows)


def more_table() -> str:
    """Comparisons with one set of seeds."""
    head = ["", "world", "seeds", "AbsRel *", "δ1 *", "RMSE *", "AbsRel as read", "verdict"]
    rows = []
    for first, second, worlds in MORE:
        for world in worlds:
            one, other = reading(first), reading(second)
            scaled, read = (compare(world, one, other, DECIDING, prefix) for prefix in ("scaled_", ""))
            if scaled is not None and read is not None:
                cells = [*_changes(scaled), _changes(read)[0], scaled.verdict]
                rows.append([f"`{one}` against `{other}`", world, str(scaled.seeds), *cells])
    students = [reading(text).student for row in MORE for text in row[:2]]
    return _text(head, rows, made_with("rooms", students))


def more_uncertainty_table() -> str:
    """What the uncertainty of further students is worth."""
    rows = []
    for student in ("tiekd", "tiekd-stored", "gaussian", "gaussian-nll", "laplace"):
        for world in WORLDS:
            seeds = seeds_with(world, {student}, DECIDING)
            rows.append([f"`{student}`", world, str(len(seeds)), *_calibration(world, student, seeds, "secondary")])
    return _text(["student", "world", "seeds", *CALIBRATION], rows)


def kitti_table() -> str:
    """Students of real frames, by readout."""
    head = ["student", "read as", "AbsRel", "δ1", "RMSE", "constant", "AbsRel *", "δ1 *", "RMSE *"]
    rows, seeds = [], seeds_with("kitti", KITTI, DECIDING)
    for student in KITTI:
        rows += [
            [f"`{student}`", readout, *_accuracy("kitti", Reading(student, readout), seeds)]
            for readout in results("kitti", student)[seeds[0]]["readouts"]
        ]
    return _text(head, rows, f"Means of {len(seeds)} seeds. {made_with('kitti', KITTI)}")
