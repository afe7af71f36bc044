"""Draw the comparisons of the protocol: docs/comparisons.png. Run `python experiments/protocol_plot.py`."""

from __future__ import annotations

import sys

import matplotlib as mpl
from analysis import DECIDING, LARGEST_LOSS_PERCENT, PRIMARY, REPEATING, WORLDS, compare, reading
from code_version import ROOT
from protocol_tables import COMPARED

mpl.use("Agg")
from matplotlib import pyplot as plt

COLORS = {"street": "#1f6fb4", "fog": "#6b7280", "rooms": "#c2571a"}
SETS = ((DECIDING, "o", "seeds 0-7"), (REPEATING, "s", "seeds 8-15"))


def main() -> None:
    """Draw a panel for each metric: a point and its 95 % interval for each comparison, world and set of seeds."""
    figure, panels = plt.subplots(1, len(PRIMARY), figsize=(13, 7.2), sharey=True, layout="constrained")
    for panel, (metric, title) in zip(panels, PRIMARY.items(), strict=True):
        for row, (first, second) in enumerate(COMPARED):
            for column, world in enumerate(WORLDS):
                for half, (seeds, marker, label) in enumerate(SETS):
                    found = compare(world, reading(first), reading(second), seeds, "scaled_")
                    if found is None:
                        continue
                    change = found.changes[metric]
                    y = row + (column - 1) * 0.26 + (half - 0.5) * 0.1
                    panel.plot([change.low, change.high], [y, y], color=COLORS[world], linewidth=1.4)
                    panel.plot(
                        change.better,
                        y,
                        marker,
                        color=COLORS[world],
                        markersize=4.5,
                        markerfacecolor=COLORS[world] if half == 0 else "white",
                        label=f"{world}, {label}" if row == 0 else None,
                    )
        panel.axvline(0, color="black", linewidth=0.8)
        panel.axvspan(-LARGEST_LOSS_PERCENT, 0, color="#d0d0d0", alpha=0.4, linewidth=0)
        panel.set_title(f"{title}, better by (%)")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        for row in range(len(COMPARED) - 1):
            panel.axhline(row + 0.5, color="#eeeeee", linewidth=0.8)
    panels[0].set_yticks(range(len(COMPARED)), [f"{reading(one)}\nagainst {reading(other)}" for one, other in COMPARED])
    panels[0].invert_yaxis()
    panels[-1].legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(ROOT / "docs/comparisons.png", dpi=100)


if __name__ == "__main__":
    sys.exit(main())
