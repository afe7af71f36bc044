"""Whether students know when they are wrong: what `evaluate-student --uncertainty` wrote, as a table and plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from .model import MEASURES, Doubt
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


class DoubtSection(NamedTuple):
    """The part of the page."""

    lead: Markup
    lines: list[Line]
    plots: list[tuple[str, Markup]]
    """(title, plot)"""
    constant: bool
    """Whether intervals of constant width were fitted."""


def doubt_section(results: Sequence[RunResult]) -> DoubtSection | None:
    """Table and plots of the students whose metrics hold `uncertainty`; None if there are none."""
    known = [
        (series, result, result.measured.doubt)
        for series, result in enumerate(results)
        if result.measured is not None and result.measured.doubt is not None
    ]
    if not known:
        return None
    values = [_values(result, doubt) for _, result, doubt in known]
    best = best_of(COLUMNS, values) if comparable(results, None) and len(known) > 1 else {}
    lines = [
        Line(result.name, _sorted_by(doubt), series, [cell_of(column, one, best) for column in COLUMNS])
        for (series, result, doubt), one in zip(known, values, strict=True)
    ]
    plots = []
    top = max(max(one.risk) for _, _, doubt in known for one in doubt.measures.values())
    for name, title in MEASURES.items():
        having = [(series, doubt) for series, _, doubt in known if name in doubt.measures]
        if having:
            curves = [
                Trace(series, doubt.coverages, doubt.measures[kind].risk, dashed=kind == "oracle")
                for series, doubt in having
                for kind in (name, "oracle")
            ]
            plots.append((f"Error by coverage: sorted by {title}", coverage_plot(curves, top)))
    traces = [
        (Trace(series, one.nominal, one.observed, dashed=kind == "constant"), one)
        for series, _, doubt in known
        for kind, one in doubt.intervals.items()
    ]
    if traces:
        plots.append(("Truth inside central intervals", interval_plot([trace for trace, _ in traces])))
        widths = [trace._replace(x=one.observed, y=one.width) for trace, one in traces]
        plots.append(("What holding the truth costs in width", width_plot(widths)))
    constant = any("constant" in doubt.intervals for _, _, doubt in known)
    return DoubtSection(_lead([(result.name, doubt) for _, result, doubt in known]), lines, plots, constant)


def _main(doubt: Doubt) -> str:
    """The measure that speaks for a student: entropy if it has a map."""
    return "entropy" if "entropy" in doubt.measures else "flip"


def _sorted_by(doubt: Doubt) -> str:
    return "by entropy" if _main(doubt) == "entropy" else "no map: by the mirrored image's difference"


def _values(result: RunResult, doubt: Doubt) -> dict[str, float]:
    assert result.measured is not None
    main = doubt.measures[_main(doubt)]
    found: dict[str, float | None] = {
        "abs_rel": result.measured.metrics["abs_rel"],
        "aurc": main.aurc,
        "ause": main.ause,
        "flip": doubt.measures["flip"].ause,
        "spearman": main.spearman,
    }
    if "map" in doubt.intervals:
        own = doubt.intervals["map"]
        held, width = own.at(0.9)
        found |= {"ece": own.ece, "held": 100 * held, "width": width, "equal": own.equal_width}
    if "constant" in doubt.intervals:
        found["constant"] = doubt.intervals["constant"].equal_width
    return {name: value for name, value in found.items() if value is not None}


def _lead(known: Sequence[tuple[str, Doubt]]) -> Markup:
    """In a sentence, whose doubt is worth most."""
    name, doubt = min(known, key=lambda pair: pair[1].measures[_main(pair[1])].ause)
    main = doubt.measures[_main(doubt)]
    half, whole = (float(np.interp(share, doubt.coverages, main.risk)) for share in (0.5, 1.0))
    oracle = float(np.interp(0.5, doubt.coverages, doubt.measures["oracle"].risk))
    by = "the entropy of its maps" if _main(doubt) == "entropy" else "its difference from the mirrored image"
    said = Markup(
        "{} <strong>{}</strong>: of the half of the pixels where it is most certain by {}, depth is off by {}, of all "
        "by {}; whoever knew the errors would pick a half that is off by {}."
    )
    first = "The student that knows best when it is wrong is" if len(known) > 1 else "There is"
    return said.format(first, name, by, f"{half:.1%}", f"{whole:.1%}", f"{oracle:.1%}")
