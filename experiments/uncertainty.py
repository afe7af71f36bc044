"""Compare the uncertainty of students from different losses, with and without a depth probability map.

Run `python experiments/uncertainty.py` after the study `street`. It evaluates some students of that study with all
seeds and writes experiments/results/uncertainty.json and uncertainty.md: errors sorted by uncertainty (AURC, AUSE),
and prediction intervals against the truth. The constant interval is fitted on every second test frame and measured
on the others.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.common.fileio import pretty_json, write_durably
from pipeline.evaluation.protocol import choose_protocol
from pipeline.evaluation.run import evaluate_student
from pipeline.evaluation.study_file import read_study
from pipeline.networks.saved_run import load_run
from pipeline.sources.registry import open_source

ROOT = Path(__file__).parents[1]
STUDENTS = (
    "tiekd",
    "tiekd-gaussian",
    "released",
    "dpm",
    "ssim+si",
    "truth-si",
    "regression-ssim+si",
    "regression-truth-si",
)
HEAD = ["", "AbsRel", "AURC", "AUSE, map", "AUSE, flip", "ECE", "truth in 90 %", "width at 90 %", "constant width"]
COLUMNS = ("abs_rel", "aurc", "ause_map", "ause_flip", "ece", "observed_90", "width_at_90", "constant_width_at_90")


def table_row(uncertainty: dict, frames: int, abs_rel: float) -> dict[str, float | None]:
    """Return the figures of one evaluation that the table shows."""
    measures, intervals = uncertainty["measures"], uncertainty["intervals"]
    map_intervals = intervals.get("map")
    best = measures["entropy"] if map_intervals else measures["flip"]
    at_90 = intervals["constant"]["equal"]["observed"].index(0.9)
    return {
        "frames": frames,
        "abs_rel": abs_rel,
        "aurc": best["aurc"],
        "ause_map": measures["entropy"]["ause"] if map_intervals else None,
        "ause_flip": measures["flip"]["ause"],
        "ece": map_intervals["ece"] if map_intervals else None,
        "observed_90": map_intervals["observed"][map_intervals["nominal"].index(0.9)] if map_intervals else None,
        "width_at_90": map_intervals["equal"]["width"][at_90] if map_intervals else None,
        "constant_width_at_90": intervals["constant"]["equal"]["width"][at_90],
    }


def mean_over_seeds(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Average each figure; None where no seed has it."""
    columns = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
    return {key: float(np.mean(values)) if values else None for key, values in columns.items()}


def table(students: dict[str, dict[str, float | None]]) -> str:
    """Return the Markdown table."""
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)]]
    for name, row in students.items():
        lines.append([f"`{name}`", *("" if row[key] is None else f"{row[key]:.3f}" for key in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Evaluate the students, print the table and write the results."""
    study = read_study(ROOT / "experiments/params.yaml", "street")
    source = open_source(study.evaluate["source"])
    protocol = choose_protocol("plain", source, study.evaluate["max-depth-m"])
    ids = [sample.id for sample in source.samples("test")]
    students: dict[str, dict[str, float | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        halves = [Path(folder) / "calibrate.txt", Path(folder) / "measure.txt"]
        for half, path in enumerate(halves):
            path.write_text("".join(f"{sample_id}\n" for sample_id in ids[half::2]))
        for name in STUDENTS:
            rows = []
            for seed in study.seeds:
                run = load_run(ROOT / f"data/experiments/runs/street/{name}-{seed}")
                result = evaluate_student(
                    run, source, str(halves[1]), protocol, uncertainty=True, calibration_split=str(halves[0])
                )
                rows.append(table_row(result["uncertainty"], result["frames"], result["metrics"]["abs_rel"]))
            students[name] = mean_over_seeds(rows)
    text = table(students)
    print(text)
    write_durably(ROOT / "experiments/results/uncertainty.json", pretty_json(students))
    write_durably(ROOT / "experiments/results/uncertainty.md", text.encode())


if __name__ == "__main__":
    sys.exit(main())
