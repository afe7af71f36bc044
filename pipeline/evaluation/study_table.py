"""Format the results of a study as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..common.fileio import printable
from .coverage import coverage_text
from .significance import enough, too_few
from .study_file import HEADS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def markdown(results: Mapping[str, Any]) -> str:
    """Format what `study.gather` returned, for docs/experiments.md. Coverage is shown where it is not 100 %."""
    seeds, frames, block = len(results["seeds"]), results["frames"], results["block"]
    parts = []
    for name, table in results["tables"].items():
        against = f"{HEADS[table['metric']]} against {table['first']}"
        head = ["", "AbsRel", f"95 % interval, {seeds} seeds", "RMSE", "δ1", "to teacher", against, "p", "coverage"]
        runs = [table["first"], *table["against_first"]]
        rows = [_teacher_row(teacher, metrics) for teacher, metrics in results["teachers"].items()]
        rows += [_row(run, results["runs"][run], table["against_first"].get(run)) for run in runs]
        if all(row[-1] in {"", "100 %"} for row in rows):
            head, rows = head[:-1], [row[:-1] for row in rows]
        few = "" if enough(frames, block) else f"\n\n{too_few(frames, block)}"
        parts.append(f"<!-- {results['study']}:{name} -->\n**{table['title']}**\n\n{markdown_table(head, rows)}{few}")
    return printable("\n\n".join(parts) + "\n")


def _teacher_row(name: str, metrics: Mapping[str, float]) -> list[str]:
    values = [f"{metrics['abs_rel']:.4f}", "", f"{metrics['rmse']:.3f}", f"{metrics['delta1']:.4f}"]
    return [f"*{name}*", *values, "", "", "", _coverage(metrics)]


def _coverage(result: Mapping[str, Any]) -> str:
    return "" if result.get("coverage") is None else coverage_text(result["coverage"])


def _row(name: str, run: Mapping[str, Any], against: Mapping[str, float] | None) -> list[str]:
    metrics = run["metrics"]
    to_teacher = "" if run["abs_rel_to_teacher"] is None else f"{run['abs_rel_to_teacher']:.4f}"
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
        to_teacher,
        difference,
        p_value,
        _coverage(run),
    ]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
