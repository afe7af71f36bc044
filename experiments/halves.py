"""Check the intervals of the protocol: experiments/results/halves.md. Takes two minutes.

Two disjoint sets of seeds of one student are two runs of one recipe, so the interval of their difference should contain
0 in 95 % of the cases. See `analysis.halves`.
"""

from __future__ import annotations

import sys

from analysis import PRIMARY, RESULTS, WORLDS, Reading, halves, own_readout
from protocol_tables import STUDENTS

SPLITS = 400
SEEDS_EACH = (3, 5, 8)


def main() -> None:
    """Write the table."""
    head = ["seeds in each set", *WORLDS, "all", "all, of other frames too"]
    lines = [head, ["---:"] * len(head)]
    for count in SEEDS_EACH:
        fractions = [fraction([world], count) for world in WORLDS]
        both = [fraction(WORLDS, count), fraction(WORLDS, count, frames=True)]
        lines.append([str(count), *(f"{100 * value:.1f} %" for value in (*fractions, *both))])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    (RESULTS / "halves.md").write_text(text)
    print(text)


def fraction(worlds: tuple[str, ...] | list[str], count: int, *, frames: bool = False) -> float:
    """Fraction of intervals that contain 0, over students and metrics."""
    found = [
        halves(world, Reading(student, own_readout(world, student)), metric, count, SPLITS, frames=frames)
        for world in worlds
        for student in STUDENTS
        for metric in PRIMARY
    ]
    return sum(inside for inside, _ in found) / sum(total for _, total in found)


if __name__ == "__main__":
    sys.exit(main())
