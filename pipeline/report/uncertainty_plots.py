"""Plots of uncertainty: error by coverage, calibration of intervals, and their width."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from matplotlib.ticker import PercentFormatter

from .plots import INK, logarithmic, series_color, svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes

_SIZE_INCH = (4.0, 2.4)
_DASHES = (0, (3, 2))


class Trace(NamedTuple):
    """A student's curve; `series` is its color."""

    series: int
    x: list[float]
    y: list[float]
    dashed: bool = False


def _draw(axes: Axes, traces: Sequence[Trace], marker: str = "") -> None:
    for trace in traces:
        style = {"linestyle": _DASHES, "linewidth": 1.1} if trace.dashed else {"linewidth": 1.6}
        axes.plot(trace.x, trace.y, color=series_color(trace.series), marker=marker, markersize=2.5, **style)


def coverage_plot(traces: Sequence[Trace], top: float) -> Markup:
    """Error of the most confident fraction of the pixels, up to `top`, and each student's mean error (faint)."""

    def draw(axes: Axes) -> None:
        for trace in traces:
            if not trace.dashed:
                axes.axhline(trace.y[-1], color=series_color(trace.series), alpha=0.3, linewidth=0.8)
        _draw(axes, traces)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.05 * top if top > 0 else 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("fraction of pixels, most confident first")
        axes.set_ylabel("AbsRel")

    return svg("Error of the most confident fraction of the pixels", _SIZE_INCH, draw)


def interval_plot(traces: Sequence[Trace]) -> Markup:
    """Fraction of truth inside central intervals by their mass, with the diagonal of perfect calibration."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.6, linewidth=0.8)
        _draw(axes, traces, "o")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("mass of the interval")
        axes.set_ylabel("truth inside")

    return svg("Fraction of truth inside central intervals by their mass", _SIZE_INCH, draw)


def width_plot(traces: Sequence[Trace]) -> Markup:
    """Mean width of intervals relative to depth, by the fraction of truth inside; narrower is better."""

    def draw(axes: Axes) -> None:
        _draw(axes, traces, "o")
        if min(min(trace.y) for trace in traces) > 0:
            logarithmic(axes, "y")
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("truth inside")
        axes.set_ylabel("width / depth")

    return svg("Mean width of intervals by the fraction of truth inside", _SIZE_INCH, draw)
