"""The files of an evaluation: NAME.json with the means, and NAME.csv beside it, a row for each image."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ..common.fileio import CsvTable, pretty_json, read_json, write_durably
from ..common.outputs import named_after, refuse_existing
from ..depth.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CSV_COLUMNS = ("id", *METRICS, "coverage", "teacher_abs_rel", "teacher_rmse", "teacher_delta1", "teacher_coverage")
DOUBT_COLUMNS = ("entropy_nats", "ause_entropy", "ause_flip", "coverage_90")


def rows_path(out: Path) -> Path:
    """The CSV file of a result's rows, beside its JSON."""
    return named_after(out, ".csv")


def check_target(out: Path, facts: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse to lose what is at a result's place, unless it is the same measurement (`facts`) made before.

    Raises ValueError naming the first thing that differs.
    """
    rows = rows_path(out)
    refuse_existing(out, rows, overwrite=True)
    if overwrite or not (os.path.lexists(out) or os.path.lexists(rows)):
        return
    if not out.is_file():
        refuse_existing(out, rows)
    before = read_json(out, "result")
    if not isinstance(before, dict):
        before = {}
    for name, value in facts.items():
        if before.get(name) != value:
            raise ValueError(
                f"{out} already exists, with {name} {json.dumps(before.get(name))} and not {json.dumps(value)}; choose "
                "another --out, or add --overwrite"
            )


def write_result(result: dict[str, Any], out: Path) -> None:
    """Write a result as JSON without its rows, and the rows as CSV beside it (`metrics.json`, `metrics.csv`)."""
    kept = {name: value for name, value in result.items() if name != "per_image"}
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = CsvTable(rows_path(out))
    columns = CSV_COLUMNS + (DOUBT_COLUMNS if "uncertainty" in result else ())
    rows.rows = [{name: row.get(name) for name in columns} for row in result["per_image"]]
    rows.write()
    write_durably(out, pretty_json(kept))
