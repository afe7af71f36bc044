"""Draw docs/timeline.png from a profile of `pipeline cache-teacher --profile FILE`.

    python docs/timeline.py FILE [--seconds BEGIN END] [--out FILE.png]

One row per thread, one color per part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLORS = {
    "read": "#4477aa",
    "prepare": "#66ccee",
    "stack": "#66ccee",
    "teacher": "#ee6677",
    "download": "#ccbb44",
    "encode": "#228833",
    "write": "#aa3377",
}


def main() -> None:
    """Draw the spans between two times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--seconds", type=float, nargs=2, default=(0.0, 1.5), metavar=("BEGIN", "END"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("timeline.png"))
    arguments = parser.parse_args()
    begin_s, end_s = arguments.seconds
    events = json.loads(arguments.profile.read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    names = {thread: name for thread, name in names.items() if name != "MainThread"}  # it tests the teacher
    spans = [event for event in events if event["ph"] == "X"]
    order = list(COLORS)
    first_part = {thread: min(order.index(span["name"]) for span in spans if span["tid"] == thread) for thread in names}
    threads = sorted(names, key=lambda thread: (first_part[thread], names[thread]))
    figure, axes = plt.subplots(figsize=(12, 0.4 * len(threads) + 1.1), dpi=100, layout="constrained")
    for row, thread in enumerate(threads):
        for span in spans:
            if span["tid"] == thread and begin_s * 1e6 < span["ts"] + span["dur"] and span["ts"] < end_s * 1e6:
                bar = (span["ts"] / 1e6, span["dur"] / 1e6)
                axes.broken_barh([bar], (row + 0.1, 0.8), facecolors=COLORS[span["name"]], edgecolor="white", lw=0.4)
    axes.set(xlim=(begin_s, end_s), xlabel="seconds", ylim=(len(threads), 0))
    axes.set_yticks([row + 0.5 for row in range(len(threads))], [names[thread] for thread in threads])
    axes.spines[["top", "right"]].set_visible(False)
    shown = [part for part in COLORS if any(span["name"] == part for span in spans)]
    axes.legend(
        [mpl.patches.Patch(color=COLORS[part]) for part in shown],
        shown,
        ncols=len(shown),
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
    )
    figure.savefig(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
