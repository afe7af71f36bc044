"""Do students know when they are wrong? Maps of TIE-KD beside those of other losses, and regression without a map.

`python experiments/doubt.py` after the study `street`: measures some of its students with all seeds, and writes
experiments/results/doubt.json and doubt.md: errors sorted by doubt (AURC, AUSE), and intervals against the truth.
The constant interval of each is fitted on every second test frame and held against the others.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.common.fileio import pretty_json, write_durably
from pipeline.evaluation.run import choose_protocol, evaluate_student
from pipeline.evaluation.study import read_study
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


def facts(uncertainty: dict, frames: int, abs_rel: float) -> dict[str, float | None]:
    """The figures of one evaluation that the table shows."""
    measures, intervals = uncertainty["measures"], uncertainty["intervals"]
    of_map = intervals.get("map")
    best = measures["entropy"] if of_map else measures["flip"]
    at_90 = intervals["constant"]["equal"]["observed"].index(0.9)
    return {
        "frames": frames,
        "abs_rel": abs_rel,
        "aurc": best["aurc"],
        "ause_map": measures["entropy"]["ause"] if of_map else None,
        "ause_flip": measures["flip"]["ause"],
        "ece": of_map["ece"] if of_map else None,
        "observed_90": of_map["observed"][of_map["nominal"].index(0.9)] if of_map else None,
        "width_at_90": of_map["equal"]["width"][at_90] if of_map else None,
        "constant_width_at_90": intervals["constant"]["equal"]["width"][at_90],
    }


def main() -> None:
    """Measure, print and write."""
    study = read_study(ROOT / "experiments/params.yaml", "street")
    source = open_source(study.evaluate["source"])
    protocol = choose_protocol("plain", source, study.evaluate["max-depth-m"])
    ids = [sample.id for sample in source.samples("test")]
    found: dict[str, dict[str, float | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        halves = [Path(folder) / "calibrate.txt", Path(folder) / "measure.txt"]
        for half, path in enumerate(halves):
            path.write_text("".join(f"{one}\n" for one in ids[half::2]))
        for name in STUDENTS:
            rows = []
            for seed in study.seeds:
                run = load_run(ROOT / f"data/experiments/runs/street/{name}-{seed}")
                result = evaluate_student(
                    run, source, str(halves[1]), protocol, uncertainty=True, calibration_split=str(halves[0])
                )
                rows.append(facts(result["uncertainty"], result["frames"], result["metrics"]["abs_rel"]))
            known = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
            found[name] = {key: float(np.mean(values)) if values else None for key, values in known.items()}
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)]]
    for name, row in found.items():
        cells = [row["abs_rel"], row["aurc"], row["ause_map"], row["ause_flip"], row["ece"], row["observed_90"]]
        cells += [row["width_at_90"], row["constant_width_at_90"]]
        lines.append([f"`{name}`", *("" if cell is None else f"{cell:.3f}" for cell in cells)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    print(text)
    write_durably(ROOT / "experiments/results/doubt.json", pretty_json(found))
    write_durably(ROOT / "experiments/results/doubt.md", text.encode())


if __name__ == "__main__":
    sys.exit(main())
