"""Evaluation result, in memory and as files: NAME.json with the means, NAME.csv with a row for each image."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.fileio import CsvTable, pretty_json, read_json, write_durably
from ..common.outputs import already_exists, named_after, refuse_existing
from ..depth.edges import COLUMNS as EDGE_COLUMNS
from ..depth.metrics import METRICS
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CSV_COLUMNS = (
    "id",
    *METRICS,
    "coverage",
    "teacher_abs_rel",
    "teacher_rmse",
    "teacher_delta1",
    "teacher_coverage",
    *EDGE_COLUMNS,
)
UNCERTAINTY_COLUMNS = ("entropy_nats", "ause_entropy", "ause_flip", "coverage_90")
IDENTITY = ("measured", "protocol", "source", "truth", "split", "split_sha256", "scale_split_sha256")
"""Fields that identify a measurement: a result may overwrite one of the same measurement."""


class EvaluationResult:
    """Metrics of a student or a store over the images of a split.

    Attributes:
        values: content of the JSON file, and `per_image` with the rows of the CSV file.

    Example:
        >>> import pipeline as tiekd
        >>> source = tiekd.open_source("scenes", "scenes")
        >>> result = tiekd.evaluate(tiekd.open_store("train.zarr"), source, "train")
        >>> result.save("teacher.json")
        >>> tiekd.EvaluationResult.load("teacher.json").metrics == result.metrics
        True
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __repr__(self) -> str:
        means = ", ".join(
            f"{name}={self.metrics[name]:.4f}" for name in ("abs_rel", "rmse", "delta1") if name in self.metrics
        )
        return f"<EvaluationResult of {self.frames} frames: {means}>"

    @property
    def metrics(self) -> dict[str, float]:
        """Means over images: `abs_rel`, `sq_rel`, `rmse` (metres), `rmse_log`, `log10`, `silog`, `delta1` ..."""
        return dict(self.values["metrics"])

    @property
    def protocol(self) -> dict[str, Any]:
        """Crop, depth range in metres, alignment and flip average."""
        return dict(self.values["protocol"])

    @property
    def source(self) -> str:
        """Kind of data set."""
        return str(self.values["source"])

    @property
    def truth(self) -> str | None:
        """Name of the ground truth; None in a file of an older version."""
        truth = self.values.get("truth")
        return None if truth is None else str(truth)

    @property
    def frames(self) -> int:
        """Images with ground truth and a prediction."""
        return int(self.values["frames"])

    @property
    def coverage(self) -> float | None:
        """Fraction of the valid ground truth with a prediction; None in a file of an older version."""
        coverage = self.values.get("coverage")
        return None if coverage is None else float(coverage)

    @property
    def against_teacher(self) -> dict[str, float] | None:
        """The same metrics with the teacher's depth as the reference, if a store was given."""
        return self.values.get("against_teacher")

    @property
    def edges(self) -> dict[str, float] | None:
        """`edge_abs_rel` and `edge_f1` within 5 px of depth edges, and `frames`; None without dense ground truth."""
        return self.values.get("edges")

    @property
    def scale(self) -> dict[str, Any] | None:
        """The constant that predictions were multiplied by: `factor`, `split`, `frames`; None if there was none."""
        return self.values.get("scale")

    @property
    def uncertainty(self) -> dict[str, Any] | None:
        """AUSE (Ilg et al. 2018), risk-coverage curves and calibration of intervals, if measured."""
        return self.values.get("uncertainty")

    @property
    def per_image(self) -> list[dict[str, Any]]:
        """A row for each image: `id`, and metrics if it has ground truth."""
        return list(self.values.get("per_image", []))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the means to `path` and the rows to a CSV file of the same name (`metrics.json`, `metrics.csv`).

        Raises PipelineError if a file of another measurement exists, unless `overwrite` is True.
        """
        out = Path(path)
        check_target(out, {name: self.values[name] for name in IDENTITY if name in self.values}, overwrite=overwrite)
        write_result(self.values, out)

    @classmethod
    def load(cls, path: str | Path, *, rows: bool = True) -> EvaluationResult:
        """Read a file from `save` or `pipeline evaluate-student`; with `rows`, also the CSV file.

        Raises PipelineError for a file that is missing, damaged or not an evaluation result.
        """
        out = Path(path)
        values = checked(read_json(out, "evaluation"), out)
        if rows:
            table = CsvTable(existing_rows_path(out))
            table.read(lambda row: bool(row.get("id")))
            values["per_image"] = [_numbers(row, table.path) for row in table.rows]
        return cls(values)

    def mean_of(self, names: Sequence[str], path: Path) -> dict[str, float]:
        """Return the means of the named metrics. Raises PipelineError if one is missing."""
        missing = [name for name in names if name not in self.values["metrics"]]
        if missing:
            raise PipelineError(f"evaluation {path} has no {', '.join(missing)}; expected {WRITTEN_BY}")
        return {name: float(self.values["metrics"][name]) for name in names}


WRITTEN_BY = "a file from `pipeline evaluate-student` or `pipeline evaluate-teacher`"


def checked(value: Any, path: Path) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return the fields of a result. Raises PipelineError that names the file and the bad field."""
    if not isinstance(value, dict):
        raise PipelineError(f"evaluation {path} is a JSON {type(value).__name__}; expected {WRITTEN_BY}")
    types: dict[str, tuple[type, ...]] = {"protocol": (dict,), "source": (str,), "metrics": (dict,)}
    types |= {name: (dict,) for name in ("against_teacher", "uncertainty") if value.get(name) is not None}
    types |= {name: (int, float) for name in ("coverage", "frames") if value.get(name) is not None}
    for name, allowed in types.items():
        if not isinstance(value.get(name), allowed):
            raise PipelineError(f"evaluation {path}: {name} is {str(value.get(name))[:80]!r}, expected {WRITTEN_BY}")
    for name, mean in value["metrics"].items():
        if not isinstance(mean, int | float):
            raise PipelineError(f"evaluation {path}: metric {name} is {str(mean)[:80]!r}, expected {WRITTEN_BY}")
    return value


def rows_path(out: Path) -> Path:
    """Path of the CSV file that belongs to a JSON file."""
    return named_after(out, ".csv")


def existing_rows_path(out: Path) -> Path:
    """Path of the CSV file of an existing result. Raises PipelineError if there is none."""
    rows = rows_path(out)
    if not rows.exists():
        rows = out.with_suffix(".csv")  # older versions wrote there for a name without .json
    if not rows.exists() or rows == out:
        raise PipelineError(
            f"evaluation {out}: the file of its rows, {rows_path(out)}, is missing; keep both files together"
        )
    return rows


def check_target(out: Path, facts: Mapping[str, Any], *, overwrite: bool) -> None:
    """Raise PipelineError if files exist at `out`, unless they are a result of the same measurement (`facts`)."""
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
            differs = f"its {name} is {json.dumps(before.get(name))}, not {json.dumps(value)}"
            raise already_exists(out, f"{differs}; choose another `out`, or add `overwrite`")


def write_result(values: Mapping[str, Any], out: Path) -> None:
    """Write the means as JSON and the rows as CSV (`metrics.json`, `metrics.csv`)."""
    means = {name: value for name, value in values.items() if name != "per_image"}
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = CsvTable(rows_path(out))
    columns = CSV_COLUMNS + (UNCERTAINTY_COLUMNS if "uncertainty" in values else ())
    rows.rows = [{name: row.get(name) for name in columns} for row in values.get("per_image", [])]
    rows.write()
    write_durably(out, pretty_json(means))


def _numbers(row: Mapping[str, str], path: Path) -> dict[str, Any]:
    """A row of the CSV file with numbers, without empty cells."""
    try:
        return {name: cell if name == "id" else float(cell) for name, cell in row.items() if name and cell}
    except (TypeError, ValueError) as error:
        raise PipelineError(f"rows {path}: {error}; expected numbers in all columns but id") from None
