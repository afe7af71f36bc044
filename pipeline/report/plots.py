"""Curves as inline SVG that uses the colors and font of the page, light or dark.

Names of runs are never drawn here, because matplotlib reads `$` as mathematics. The page has the legends.
"""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from .model import Belief

SERIES = 8
"""Number of student colors on the page; a ninth student gets the first color again."""
MAX_POINTS = 400
_SMOOTHED_FRACTION = 0.03
_TAIL = 0.004
INK, _LINE, _TEACHER = "#010203", "#010204", "#010205"
_SERIES = [f"#0103{number:02x}" for number in range(SERIES)]
_CSS = {INK: "currentColor", _LINE: "var(--line)", _TEACHER: "var(--teacher)"} | {
    color: f"var(--c{number})" for number, color in enumerate(_SERIES)
}
"""Placeholder colors -> CSS colors of the page."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "path.simplify": True,
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


class Line(NamedTuple):
    """A student's curve; `series` is its color."""

    series: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def series_color(series: int) -> str:
    """Placeholder for a student's color."""
    return _SERIES[series % SERIES]


def loss_plot(lines: Sequence[Line]) -> Markup:
    """Training loss by step: as logged (faint) and smoothed. Logarithmic if losses span a factor above 4."""

    def draw(axes: Axes) -> None:
        for line in lines:
            color = series_color(line.series)
            smooth = _smoothed(line.y)
            every = max(1, len(line.x) // MAX_POINTS)
            axes.plot(line.x[::every], line.y[::every], color=color, alpha=0.25, linewidth=0.8)
            axes.plot(line.x[::every], smooth[::every], color=color, linewidth=1.6)
        values = np.concatenate([line.y for line in lines])
        if values.min() > 0 and values.max() > 4 * values.min():
            logarithmic(axes, "y")
        axes.set_xlabel("step")

    return svg("Training loss by step", (4.0, 2.4), draw)


def epoch_plot(name: str, lines: Sequence[Line]) -> Markup:
    """A validation metric by epoch."""

    def draw(axes: Axes) -> None:
        for line in lines:
            axes.plot(line.x, line.y, color=series_color(line.series), linewidth=1.6, marker="o", markersize=3)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))

    return svg(f"{name} on validation images by epoch", (4.0, 2.4), draw)


def belief_plot(
    teacher: Belief | None, students: Sequence[Belief | None], truth_m: float | None, what: str = "depth (m)"
) -> Markup:
    """Maps at one pixel: density over depth (the teacher's as an area), with expected depths and truth.

    A network without a map is drawn as its depth only. The depth axis, labelled `what`, is logarithmic if bin widths
    grow with depth.
    """
    beliefs = [belief for belief in (teacher, *students) if belief is not None]
    mapped = [belief for belief in beliefs if belief.probability is not None]
    grows = bool(mapped) and _grows(mapped[0].bin_edges_m)

    def draw(axes: Axes) -> None:
        for belief, series in [(teacher, None), *((student, series) for series, student in enumerate(students))]:
            if belief is None:
                continue
            color = _TEACHER if series is None else series_color(series)
            if belief.probability is not None:
                density = _density(belief.probability, belief.bin_edges_m, logarithmic=grows)
                if series is None:
                    axes.stairs(density, belief.bin_edges_m, fill=True, color=color, alpha=0.45, linewidth=0)
                else:
                    axes.stairs(density, belief.bin_edges_m, color=color, linewidth=1.4, baseline=None)
            axes.axvline(belief.expected_m, color=color, linewidth=1.1, linestyle=(0, (2, 2)))
        if truth_m is not None:
            axes.axvline(truth_m, color=INK, linewidth=1.2)
        if grows:
            logarithmic(axes, "x")
        axes.set_xlim(*_window(beliefs, truth_m, logarithmic=grows))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(NullLocator())
        axes.set_xlabel(what)

    return svg("Depth probability maps at one pixel", (2.5, 1.5), draw)


def _density(
    probability: NDArray[np.float32], edges_m: NDArray[np.float64], *, logarithmic: bool
) -> NDArray[np.float64]:
    """Probability divided by the width of the bin on the axis, so that every map has area 1."""
    widths = np.diff(np.log(np.maximum(edges_m, 1e-6)) if logarithmic else edges_m)
    return probability.astype(np.float64) / widths


def _grows(edges_m: NDArray[np.float64]) -> bool:
    widths = np.diff(edges_m)
    return bool(edges_m[0] > 0 and widths[-1] > 1.5 * widths[0])


def _window(beliefs: Sequence[Belief], truth_m: float | None, *, logarithmic: bool) -> tuple[float, float]:
    """The part of the depth axis in which something happens."""
    ends = [] if truth_m is None else [truth_m]
    for belief in beliefs:
        if belief.probability is not None:
            reached = np.cumsum(belief.probability)
            first, last = np.searchsorted(reached, (_TAIL * reached[-1], (1 - _TAIL) * reached[-1]))
            ends += [belief.bin_edges_m[first], belief.bin_edges_m[min(last + 1, len(belief.bin_edges_m) - 1)]]
        ends.append(belief.expected_m)
    low, high = (float(min(ends)), float(max(ends))) if ends else (1.0, 10.0)
    if logarithmic:
        low = max(low, 1e-3)
        room = max((high / low) ** 0.06, 1.02)
        return low / room, high * room
    room = max(0.06 * (high - low), 0.01)
    return low - room, high + room


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moving average; the window narrows towards the ends."""
    reach = max(1, int(_SMOOTHED_FRACTION * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    indices = np.arange(len(values))
    around = np.minimum(np.minimum(indices, len(values) - 1 - indices), reach)
    return np.asarray((sums[indices + around + 1] - sums[indices - around]) / (2 * around + 1))


def logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis with decimal labels at 1, 2 and 5."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def svg(label: str, size_inch: tuple[float, float], draw: Any) -> Markup:  # noqa: ANN401 - a function of Axes
    """The figure that `draw` draws, as inline SVG; `label` is for screen readers."""
    # Start from the default style, because a user's matplotlibrc must not change the page.
    with matplotlib.style.context(["default", _STYLE | {"svg.hashsalt": label}]):
        figure = Figure(size_inch, layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(file.getvalue(), label)


def _inline(text: str, label: str) -> Markup:
    """An SVG file as inline SVG: without prolog and group ids, with the colors of the page."""
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="([\d. ]+)"', text)
    assert box is not None
    text = text[text.index(">") + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z]\w*_\d+"', "", text)
    for color, css in _CSS.items():
        text = text.replace(color, css)
    text = re.sub(r"\n\s*", "\n", text)
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box[1], label)
    return opening + Markup(text.strip())  # noqa: S704 - matplotlib's own output, without user text


def finite_line(series: int, pairs: Sequence[tuple[float, float]]) -> Line | None:
    """A line of the finite pairs; None if there are none."""
    finite = [pair for pair in pairs if all(math.isfinite(value) for value in pair)]
    if not finite:
        return None
    x, y = np.array(finite, np.float64).T
    return Line(series, x, y)
