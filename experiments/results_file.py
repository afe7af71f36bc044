"""Files of results: experiments/results/WORLD/STUDENT.json, small enough to commit.

    {"flags": {...}, "seeds": {"0": {"commit": ..., "readouts": {"mean": {"factor": 0.94, "frames": {...}, ...}}, ...}}}

Metrics of frames are whole numbers of UNITS, and only for the first readout, which the
student was trained with, and the geometric mean; of the others the means are kept.
"""

from __future__ import annotations

import json
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.common.fileio import write_durably

if TYPE_CHECKING:
    from pathlib import Path

UNITS = {"abs_rel": 1e-4, "delta1": 1e-4, "rmse": 1e-3}
"""Steps of the metrics of a frame; the difference of two students is a hundred times larger."""
SIGNIFICANT_DIGITS = 5


def packed(measured: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements of one seed as they are kept."""
    result = _rounded({name: value for name, value in measured.items() if name != "readouts"})
    result["readouts"] = {}
    for readout, found in measured["readouts"].items():
        frames = found["frames"]
        kept = {"factor": found["factor"], "means": _rounded({name: fmean(values) for name, values in frames.items()})}
        if readout in {next(iter(measured["readouts"])), "geometric"}:
            kept["frames"] = {
                name: [round(value / unit_of(name)) for value in values] for name, values in frames.items()
            }
        if "shifted" in found:
            kept["shifted"] = _rounded(found["shifted"])
        result["readouts"][readout] = kept
    return result


def unit_of(metric: str) -> float:
    """Return the step of a metric, also of one with the fitted constant."""
    return UNITS[metric.removeprefix("scaled_")]


def _rounded(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def read(path: Path) -> dict[str, Any]:
    """Return the content of a file of results; no seeds if there is none."""
    if not path.exists():
        return {"flags": None, "measured_on": None, "seeds": {}}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write(path: Path, flags: dict[str, Any], measured_on: dict[str, Any], seeds: dict[str, Any]) -> None:
    """Write a file with a line for each seed, for readable differences between commits."""
    in_order = sorted(seeds.items(), key=lambda item: int(item[0]))
    lines = [f"{json.dumps(seed)}: {json.dumps(kept, separators=(',', ':'))}" for seed, kept in in_order]
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(lines)
    head = f'"flags": {json.dumps(flags)},\n"measured_on": {json.dumps(measured_on)},\n"seeds"'
    write_durably(path, f"{{{head}: {{\n{body}\n}}}}\n".encode())
