"""Tables of docs/experiments.md from the results of the protocol."""

from __future__ import annotations

import json
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING

from analysis import (
    DECIDING,
    PRIMARY,
    REPEATING,
    RESULTS,
    WORLDS,
    Comparison,
    compare,
    made_with,
    mean_of,
    reading,
    results,
    secondary,
    seeds_with,
    worst_range,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    return found


def _text(head: Sequence[str], rows: Sequence[Sequence[str]], after: str = "") -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + (f"\n\n{after}" if after else "")


def _seeds(world: str) -> list[int]:
    return seeds_with(world, STUDENTS, (*DECIDING, *REPEATING))


def accuracy_table(world: str) -> str:
    """Accuracy of each student, as read and with one fitted constant."""
    seeds = _seeds(world)
    head = ["student", "AbsRel", "δ1", "RMSE", "constant", "AbsRel *", "δ1 *", "RMSE *"]
    rows = [_teacher_row(world, name) for name in ("", "-geometric")]
    for of in map(reading, ACCURACY):
        factor = fmean(results(world, of.student)[seed]["readouts"][of.readout]["factor"] for seed in seeds)
        row = [f"`{of.student}`" + ("" if str(of) == of.student else f", {of.readout}")]
        for prefix in ("", "scaled_"):
            row += [
                f"{mean_of(world, of, prefix + 'abs_rel', seeds):.4f}",
                f"{mean_of(world, of, prefix + 'delta1', seeds):.4f}",
            ]
            row.append(f"{mean_of(world, of, prefix + 'rmse', seeds):.3f}")
        rows.append([*row[:4], f"{factor:.3f}", *row[4:]])
    return _text(head, rows, f"Means of {len(seeds)} seeds. {made_with(world, STUDENTS)}")


def _teacher_row(world: str, name: str) -> list[str]:
    metrics = json.loads((RESULTS / "teachers" / f"{world}{name}.json").read_text())["metrics"]
    read = "geometric" if name else "mean"
    return [
        f"*teacher, {read}*",
        f"{metrics['abs_rel']:.4f}",
        f"{metrics['delta1']:.4f}",
        f"{metrics['rmse']:.3f}",
        *[""] * 4,
    ]


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


def uncertainty_table(world: str) -> str:
    """What each student's uncertainty is worth, at home and on the shifted domain."""
    seeds = _seeds(world)
    head = [
        "student",
        "error",
        "error of the most certain half",
        "AURC",
        "AUSE",
        "NLL",
        "ECE",
        "largest ECE of a range",
        "truth in 90 %",
        "width of 90 %",
    ]
    rows = []
    for part, where in (("secondary", ""), ("shifted_secondary", " (shifted)")):
        for student in UNCERTAIN:
            if secondary(world, student, seeds, part, "risk") is None:
                continue
            numbers = [
                secondary(world, student, seeds, part, *keys)
                for keys in (
                    ("risk",),
                    ("entropy", "risk_of_half"),
                    ("entropy", "aurc"),
                    ("entropy", "ause"),
                    ("nll_nats",),
                    ("ece",),
                )
            ]
            worst = worst_range(world, student, seeds, part)
            held, width = (secondary(world, student, seeds, part, key) for key in ("coverage_90", "width_90"))
            cells = ["" if number is None else f"{number:.3f}" for number in numbers]
            cells.append("" if worst is None else f"{worst[0]:.3f} ({worst[1]})")
            cells += ["" if held is None else f"{100 * held:.1f} %", "" if width is None else f"{width:.2f}"]
            rows.append([f"`{student}`{where}", *cells])
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
            cells.append(", ".join("" if number is None else f"{number:.3f}" for number in numbers))
        rows.append([f"`{student}`", *cells])
    return _text(head, rows)


def own_readout(student: str) -> str:
    """Return the readout that a student was trained with."""
    return "geometric" if student in {"gaussian", "gaussian-geometric", "tiekd-geometric"} else "mean"
