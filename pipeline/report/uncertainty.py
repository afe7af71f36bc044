"""Results of `evaluate-student --uncertainty` as a table and plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from .model import MEASURES, Uncertainty
from .table import Column, Line, best_of, cell_of, comparable
from .uncertainty_plots import Trace, coverage_plot, interval_plot, width_plot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import RunResult

_NINETY = "90\N{NO-BREAK SPACE}%"
COLUMNS = (
    Column("abs_rel", "AbsRel", 4, better="lower"),
    Column("aurc", "AURC", 4, better="lower"),
    Column("ause", "AUSE", 3, better="lower"),
    Column("flip", "AUSE by mirror", 3, better="lower"),
    Column("spearman", "rank corr.", 3, better="higher"),
    Column("ece", "ECE", 3, better="lower"),
    Column("held", f"truth in {_NINETY}", 1, " %"),
    Column("width", f"width of {_NINETY}", 2),
    Column("equal", f"width that holds {_NINETY}", 2, better="lower"),
    Column("constant", f"constant width that holds {_NINETY}", 2),
)


class UncertaintySection(NamedTuple):
    """The uncertainty section of the page."""

    lead: Markup
    lines: list[Line]
    plots: list[tuple[str, Markup]]
    """(title, plot)"""
    intervals: bool
    """Whether any student has intervals."""
    constant: bool
    """Whether intervals of constant width were fitted."""


def uncertainty_section(results: Sequence[RunResult]) -> UncertaintySection | None:
    """Table and plots of the students with `uncertainty` in their metrics; None without such students."""
    measured = [
        (series, result, result.measured.uncertainty)
        for series, result in enumerate(results)
        if result.measured is not None and result.measured.uncertainty is not None
    ]
    if not measured:
        return None
    values = [_values(result, uncertainty) for _, result, uncertainty in measured]
    best = best_of(COLUMNS, values) if comparable(results, None) and len(measured) > 1 else {}
    lines = [
        Line(result.name, _sorted_by(uncertainty), series, [cell_of(column, row, best) for column in COLUMNS])
        for (series, result, uncertainty), row in zip(measured, values, strict=True)
    ]
    plots = []
    top = max(max(measure.risk) for _, _, uncertainty in measured for measure in uncertainty.measures.values())
    for name, title in MEASURES.items():
        with_measure = [(series, uncertainty) for series, _, uncertainty in measured if name in uncertainty.measures]
        if with_measure:
            curves = [
                Trace(series, uncertainty.coverages, uncertainty.measures[kind].risk, dashed=kind == "oracle")
                for series, uncertainty in with_measure
                for kind in (name, "oracle")
            ]
            plots.append((f"Error by coverage, sorted by {title}", coverage_plot(curves, top)))
    traces = [
        (Trace(series, interval.nominal, interval.observed, dashed=kind == "constant"), interval)
        for series, _, uncertainty in measured
        for kind, interval in uncertainty.intervals.items()
    ]
    if traces:
        plots.append(("Calibration of central intervals", interval_plot([trace for trace, _ in traces])))
        widths = [trace._replace(x=interval.observed, y=interval.width) for trace, interval in traces]
        plots.append(("Interval width by truth inside", width_plot(widths)))
    constant = any("constant" in uncertainty.intervals for _, _, uncertainty in measured)
    lead = _lead([(result.name, uncertainty) for _, result, uncertainty in measured])
    return UncertaintySection(lead, lines, plots, bool(traces), constant)


def _main(uncertainty: Uncertainty) -> str:
    """Name of a student's main measure: entropy if it has a map, else the flip difference."""
    return "entropy" if "entropy" in uncertainty.measures else "flip"


def _sorted_by(uncertainty: Uncertainty) -> str:
    return "by entropy" if _main(uncertainty) == "entropy" else "no map: by difference from the mirrored image"


def _values(result: RunResult, uncertainty: Uncertainty) -> dict[str, float]:
    assert result.measured is not None
    main = uncertainty.measures[_main(uncertainty)]
    values: dict[str, float | None] = {
        "abs_rel": result.measured.metrics["abs_rel"],
        "aurc": main.aurc,
        "ause": main.ause,
        "flip": uncertainty.measures["flip"].ause,
        "spearman": main.spearman,
    }
    if "map" in uncertainty.intervals:
        own = uncertainty.intervals["map"]
        held, width = own.at(0.9)
        values |= {"ece": own.ece, "held": 100 * held, "width": width, "equal": own.equal_width}
    if "constant" in uncertainty.intervals:
        values["constant"] = uncertainty.intervals["constant"].equal_width
    return {name: value for name, value in values.items() if value is not None}


def _lead(students: Sequence[tuple[str, Uncertainty]]) -> Markup:
    """A sentence about the student with the lowest AUSE."""
    name, uncertainty = min(students, key=lambda pair: pair[1].measures[_main(pair[1])].ause)
    main = uncertainty.measures[_main(uncertainty)]
    half, whole = (float(np.interp(fraction, uncertainty.coverages, main.risk)) for fraction in (0.5, 1.0))
    oracle = float(np.interp(0.5, uncertainty.coverages, uncertainty.measures["oracle"].risk))
    by = "entropy" if _main(uncertainty) == "entropy" else "difference from the mirrored image"
    text = Markup(
        "{} <strong>{}</strong>. AbsRel is {} on the most confident half of the pixels (by {}), {} on all pixels, "
        "and {} on the half with the smallest errors."
    )
    first = "The student with the best uncertainty is" if len(students) > 1 else "One student has uncertainty results:"
    return text.format(first, name, f"{half:.1%}", by, f"{whole:.1%}", f"{oracle:.1%}")
