"""Write the report: one self-contained HTML file, byte-identical for the same inputs."""

from __future__ import annotations

import os
import re
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ..common.fileio import printable, write_durably
from ..common.outputs import refuse_existing
from ..common.progress import Silent
from ..errors import OptionError, PipelineError
from ..networks.saved_run import has_map
from ..sources.splits import evenly
from .frames import frame_facts, number_in
from .identity import THIS_STORE, THIS_TEACHER, learned_from_what
from .load import read_results
from .panels import frame_panel
from .plots import SERIES, epoch_plot, finite_line, loss_plot
from .table import COLUMNS, comparable, headline, lineage, page_table, teacher_name, terminal_table
from .uncertainty import COLUMNS as UNCERTAINTY_COLUMNS
from .uncertainty import uncertainty_section
from .units import choose_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..common.progress import Progress
    from ..sources.base import Source
    from ..store import Store
    from .model import Measured, RunResult
    from .units import DepthUnits

TEMPLATE = "page.html.j2"
_PACKAGES = ("tiekd-pipeline", "torch", "numpy", "matplotlib", "pillow", "jinja2")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_VALIDATION = (("val_abs_rel", "AbsRel"), ("val_rmse", "RMSE (m)"), ("val_delta1", "δ1"))


def write_report(
    out: Path,
    *,
    runs: list[Path],
    store: Store,
    source: Source,
    split: str,
    metrics_paths: Sequence[Path | tuple[str, Path]],
    frames: int = 4,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Write a page about students of one teacher; return the header and rows of its table for the terminal.

    Args:
        out: must not exist, unless `overwrite`.
        runs: finished runs with the view of the store; a directory's name is the run's name on the page.
        store: the teacher's store. It and all runs have the same kind of depth: metres, or relative.
        source: source of the frames.
        split: its frames are sampled evenly. Frames missing from the store are drawn without the teacher.
        metrics_paths: JSON of evaluate-student, RUN.json for a run RUN; and of evaluate-teacher, teacher.json. Or
            folders of them, or (RUN, file).
        frames: how many frames to draw.
        overwrite: replace an existing `out`.
        progress: receives an update after each map.

    Raises PipelineError for bad input, before anything is written.
    """
    progress = progress or Silent()
    refuse_existing(out, overwrite=overwrite)
    if not runs:
        raise PipelineError("no runs given; expected one or more directories from `pipeline train-student`")
    if frames < 1:
        raise OptionError("frames", frames, "1 or more")
    samples = evenly(source.samples(split), frames)
    results, teacher = read_results(runs, metrics_paths, store)
    units = choose_units(store, results)
    lines = page_table(results, teacher, store)
    if not comparable(results, teacher):
        progress.note("the metrics differ in protocol, frames or coverage, so they are not compared")
    absent = sum(number_in(store, sample.id) is None for sample in samples)
    if absent:
        progress.note(f"{absent} of {len(samples)} frames are not in {store.name}; they are drawn without the teacher")
    panels = []
    with progress.task("report", len(samples) * (len(results) + 1), "map") as task:
        for sample in samples:
            facts = frame_facts(store, source, sample, results, units, task)
            panels.append(frame_panel(facts, [result.name for result in results], store.spec.dpm_kind, units))
    text = _render(
        names=[result.name for result in results],
        series=SERIES,
        teacher=teacher_name(store),
        lines=lines,
        columns=COLUMNS,
        lineage=lineage(results, store),
        of_this_teacher=any(learned_from_what(run.run.config, store) in {THIS_STORE, THIS_TEACHER} for run in results),
        headline=headline(results, teacher),
        protocols=_protocols(results, teacher),
        mirrored=any(result.measured and result.measured.protocol.get("flip_average") for result in results),
        tiles=_tiles(results, teacher, store, units),
        curves=_curves(results),
        losses=sorted({str(result.run.config.get("loss")) for result in results}),
        devices=sorted({str(result.training.get("device")) for result in results if result.training.get("device")}),
        panels=panels,
        uncertainty=uncertainty_section(results),
        uncertainty_columns=UNCERTAINTY_COLUMNS,
        without_map=[result.name for result in results if not has_map(result.run.config)],
        store=_store_facts(store, units),
        source=source.name,
        split=Path(split).stem if os.sep in split else split,
        versions=_versions(),
        metrics=[_metrics_flag(given) for given in metrics_paths],
        frames=frames,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, text.encode())
    return terminal_table(lines)


def _render(**values: Any) -> str:  # noqa: ANN401 - values of any type
    # Names and ids come from untrusted stores, so everything is escaped.
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_without_controls,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(**values)


def _without_controls(value: Any) -> Any:  # noqa: ANN401 - any value of the page
    """Escape control characters, which reorder text or, in a terminal, move the cursor."""
    return type(value)(_CONTROLS.sub(lambda match: printable(match[0]), value)) if isinstance(value, str) else value


def _metrics_flag(given: Path | tuple[str, Path]) -> str:
    """A value of --metrics, without its folder."""
    return f"{given[0]}={given[1].name}" if isinstance(given, tuple) else given.name


def _store_facts(store: Store, units: DepthUnits) -> dict[str, Any]:
    """Facts of the store. Its directory's name, never the path."""
    spec = store.spec
    size_bytes = sum(size for size, _ in store.manifest.values())
    return {
        "name": Path(store.name).name,
        "images": len(store),
        "sample_kb": size_bytes / len(store) / 1e3,
        "bins": len(units.bin_edges_m) - 1,
        "low_m": units.bin_edges_m[0],
        "high_m": units.bin_edges_m[-1],
        "depth_space": spec.depth_space,
        "relative": units.relative is not None,
        "aligned": None if store.accepted is None else [int(store.accepted.sum())],
        "kind": spec.dpm_kind,
        "sigma": f"{units.sigma_m or 0:g} m" if units.sigma_bins is None else f"{units.sigma_bins:g} bins",
        "view": spec.view,
        "view_px": spec.view_size_px,
        "own_px": store.layout.size_px,
        "source": spec.source["name"],
        "error": spec.max_rel_error,
        "licence": spec.teacher.get("licence") or "not stated",
        "data_licence": spec.extras.data_licence or "not stated",
    }


def _tiles(
    results: Sequence[RunResult], teacher: Measured | None, store: Store, units: DepthUnits
) -> list[tuple[str, str]]:
    """Figures at the top of the page: (figure, label)."""
    facts = _store_facts(store, units)
    tiles = [(f"{facts['images']:,}", "images cached once"), (f"{facts['sample_kb']:.1f} KB", "per cached sample")]
    measured = [(result.measured.metrics["abs_rel"], result.name) for result in results if result.measured is not None]
    if measured and comparable(results, teacher):
        error, name = min(measured)
        tiles.append((f"{error:.4f}", f"AbsRel of {name}" + (", the best student" if len(measured) > 1 else "")))
    if teacher is not None:
        tiles.append((f"{teacher.metrics['abs_rel']:.4f}", "AbsRel of the teacher"))
    return tiles


def _protocols(results: Sequence[RunResult], teacher: Measured | None) -> list[tuple[str, str]]:
    """(protocol, names of its results), each protocol once."""
    protocols: dict[str, list[str]] = {}
    for name, measured in [("the teacher", teacher), *((result.name, result.measured) for result in results)]:
        if measured is not None:
            protocols.setdefault(measured.protocol_text(), []).append(name)
    return [(protocol, "" if len(protocols) == 1 else ", ".join(names)) for protocol, names in protocols.items()]


def _curves(results: Sequence[RunResult]) -> list[tuple[str, Any]]:
    """(title, plot) of each plot that has data."""
    curves = []
    losses = [finite_line(number, result.steps) for number, result in enumerate(results)]
    if any(losses):
        curves.append(("Training loss", loss_plot([line for line in losses if line is not None])))
    for key, title in _VALIDATION:
        lines = [
            finite_line(number, [(row["epoch"] + 1, row[key]) for row in result.epochs if key in row])
            for number, result in enumerate(results)
        ]
        if any(lines):
            curves.append((f"Validation {title}", epoch_plot(title, [line for line in lines if line is not None])))
    return curves


def _versions() -> list[tuple[str, str]]:
    versions = []
    for name in _PACKAGES:
        try:
            versions.append((name, version(name)))
        except PackageNotFoundError:  # run from a source tree
            versions.append((name, "unknown"))
    return versions
