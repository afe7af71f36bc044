"""Does a wrong scale of whole images keep AUSE high? Run `python experiments/image_scale.py` after the students.

Compares AUSE as read with AUSE after each image was multiplied by the ratio of the medians of truth and prediction, for
the first seeds of two students. Writes experiments/results/image_scale.md.
"""

from __future__ import annotations

import os
import sys
from statistics import fmean

import yaml
from analysis import RESULTS, WORLDS
from code_version import ROOT
from measure import TestSet, ause_of

from pipeline.evaluation.study_table import markdown_table
from pipeline.networks.saved_run import load_run

STUDENTS = ("tiekd-geometric", "gaussian-geometric")
SEEDS = range(4)


def main() -> None:
    """Write the table."""
    os.chdir(ROOT)
    worlds = yaml.safe_load((ROOT / "experiments/params.yaml").read_text())["worlds"]
    rows = []
    for world in WORLDS:
        test = TestSet(**worlds[world]["test"])
        for student in STUDENTS:
            runs = [load_run(ROOT / f"data/experiments/runs/{world}/{student}-{seed}") for seed in SEEDS]
            means = [fmean(ause_of(run, test, align=align) for run in runs) for align in ("none", "median")]
            rows.append([f"`{student}`", world, *(f"{mean:.3f}" for mean in means)])
    text = markdown_table(["student", "world", "AUSE", "AUSE, each image's median aligned"], rows) + "\n"
    (RESULTS / "image_scale.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
