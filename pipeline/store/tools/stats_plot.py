"""Plot `store_statistics` as a PNG: depth, errors, invalid and clipped pixels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import write_durably

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

BLUE, ORANGE = "#2f6f9f", "#d9822b"
MAX_POINTS = 2000
SIZE_INCHES = (9.0, 6.5)
DPI = 110


def write_picture(statistics: dict[str, Any], path: Path) -> None:
    """Write the result of `store_statistics` as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    (depth, error), (invalid, clipped) = figure.subplots(2, 2)
    # matplotlib parses `$` as mathematics.
    name = str(statistics["teacher"]).replace("$", r"\$")
    height, width = statistics["size_px"]
    figure.suptitle(f"{name}: {statistics['samples']} samples of {height}x{width} px", fontsize=11)
    _depth(depth, statistics)
    each = statistics["each_sample"]
    allowed = 100 * statistics["max_rel_error_allowed"]
    error.hist(100 * np.array(each["max_rel_error"]), bins=50, range=(0, 1.1 * allowed), color=BLUE)
    error.axvline(allowed, color=ORANGE, label=f"allowed {allowed:.3g} %")
    error.set(xlabel="largest relative error of a sample [%]", ylabel="samples", title="Error")
    error.legend(frameon=False)
    _fractions(invalid, each["invalid_share"], "Invalid pixels")
    _fractions(clipped, each["clipped_share"], "Clipped pixels")
    for axes in (depth, error, invalid, clipped):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    write_durably(path, out.getvalue())


def _depth(axes: Axes, statistics: dict[str, Any]) -> None:
    edges, pixels = (np.array(statistics["histogram"][name]) for name in ("edges", "pixels"))
    axes.set(ylabel="fraction of pixels [%]", xlabel=f"depth [{statistics['unit']}]", title="Depth")
    if not pixels.size:
        axes.text(0.5, 0.5, "no valid pixels", ha="center", transform=axes.transAxes)
        return
    axes.stairs(100 * pixels / pixels.sum(), edges, fill=True, color=BLUE)
    median = statistics["depth"]["median"]
    axes.axvline(median, color=ORANGE, label=f"median {median:.3g}")
    axes.legend(frameon=False)
    if statistics["unit"] == "m":
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _fractions(axes: Axes, fractions: list[float], title: str) -> None:
    """Plot a fraction per sample in the store's order; of many samples, the largest of each group."""
    values = 100 * np.array(fractions)
    step = -(-len(values) // MAX_POINTS)
    points = np.maximum.reduceat(values, np.arange(0, len(values), step))
    axes.plot(np.arange(len(points)) * step, points, ".", color=BLUE, markersize=4)
    axes.axhline(values.mean(), color=ORANGE, label=f"mean {values.mean():.3g} %")
    axes.set(xlabel="sample, in the store's order", ylabel="[%]", title=title)
    axes.set_ylim(0, 1.15 * float(values.max()) or 1)
    axes.legend(frameon=False)
