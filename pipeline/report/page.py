"""Writes the page: one HTML file that holds everything, loads nothing, and is the same for the same inputs."""

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
from .panels import exhibit
from .plots import SERIES, epoch_plot, finite_line, loss_plot
from .table import COLUMNS, comparable, headline, lineage, page_table, teacher_name, terminal_table
from .uncertainty import COLUMNS as DOUBT_COLUMNS
from .uncertainty import doubt_section
from .units import choose_shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..common.progress import Progress
    from ..sources.base import Source
    from ..store import Store
    from .model import Measured, RunResult
    from .units import Shown

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
    """Write the page `out` about students of one teacher; returns head and rows of its table for the terminal.

    Args:
        out: must not exist, unless `overwrite`.
        runs: finished runs, whose view is the store's; the name of each directory is the name on the page.
        store: of the teacher, with the frames that are shown. All runs learned metres, or all its relative depth.
        source: of these frames.
        split: `frames` frames of it are shown, spread evenly; without the teacher those that the store lacks.
        metrics_paths: JSON of evaluate-student, RUN.json for a run RUN; and of evaluate-teacher, teacher.json. Or
            folders of them, or (RUN, file).
        frames: 1 or more.
        overwrite: whether a file at `out` is written over.
        progress: told of each map that is computed.

    Raises PipelineError for input that is at fault, naming it; nothing is written then.
    """
    progress = progress or Silent()
    refuse_existing(out, overwrite=overwrite)
    if not runs:
        raise PipelineError("no run to report on: give one or more directories that train-student wrote")
    if frames < 1:
        raise OptionError("frames", frames, "1 or more")
    samples = evenly(source.samples(split), frames)
    results, teacher = read_results(runs, metrics_paths, store)
    shown = choose_shown(store, results)
    lines = page_table(results, teacher, store)
    if not comparable(results, teacher):
        progress.note("the metrics were taken by different protocols, or over different frames or parts of the truth")
    absent = sum(number_in(store, sample.id) is None for sample in samples)
    if absent:
        progress.note(f"{store.name} lacks {absent} of the {len(samples)} frames: they are shown without the teacher")
    exhibits = []
    with progress.task("report", len(samples) * (len(results) + 1), "map") as task:
        for sample in samples:
            facts = frame_facts(store, source, sample, results, shown, task)
            exhibits.append(exhibit(facts, [result.name for result in results], store.spec.dpm_kind, shown))
    text = _render(
        names=[result.name for result in results],
        series=SERIES,
        teacher=teacher_name(store),
        lines=lines,
        columns=COLUMNS,
        lineage=lineage(results, store),
        of_this_teacher=any(learned_from_what(one.run.config, store) in {THIS_STORE, THIS_TEACHER} for one in results),
        headline=headline(results, teacher),
        protocols=_protocols(results, teacher),
        mirrored=any(result.measured and result.measured.protocol.get("flip_average") for result in results),
        tiles=_tiles(results, teacher, store, shown),
        curves=_curves(results),
        losses=sorted({str(result.run.config.get("loss")) for result in results}),
        devices=sorted({str(result.training.get("device")) for result in results if result.training.get("device")}),
        exhibits=exhibits,
        doubt=doubt_section(results),
        doubt_columns=DOUBT_COLUMNS,
        without_map=[result.name for result in results if not has_map(result.run.config)],
        store=_store_facts(store, shown),
        source=source.name,
        split=Path(split).stem if os.sep in split else split,
        versions=_versions(),
        metrics=[_metrics_flag(given) for given in metrics_paths],
        frames=frames,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, text.encode())
    return terminal_table(lines)


def _render(**values: Any) -> str:  # noqa: ANN401 - whatever the template names
    # Names and ids come from strangers' stores: everything is escaped.
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
    """Escape what would reorder a line or, were the page printed in a terminal, move its cursor."""
    return type(value)(_CONTROLS.sub(lambda found: printable(found[0]), value)) if isinstance(value, str) else value


def _metrics_flag(given: Path | tuple[str, Path]) -> str:
    """A value of --metrics, without the folder that it lies in."""
    return f"{given[0]}={given[1].name}" if isinstance(given, tuple) else given.name


def _store_facts(store: Store, shown: Shown) -> dict[str, Any]:
    """What the page says of the store. Its directory's name, never the path."""
    spec = store.spec
    size_bytes = sum(size for size, _ in store.manifest.values())
    return {
        "name": Path(store.name).name,
        "images": len(store),
        "sample_kb": size_bytes / len(store) / 1e3,
        "bins": len(shown.bin_edges_m) - 1,
        "low_m": shown.bin_edges_m[0],
        "high_m": shown.bin_edges_m[-1],
        "depth_space": spec.depth_space,
        "relative": shown.relative is not None,
        "aligned": None if store.accepted is None else [int(store.accepted.sum())],
        "kind": spec.dpm_kind,
        "sigma": f"{shown.sigma_m or 0:g} m" if shown.sigma_bins is None else f"{shown.sigma_bins:g} bins",
        "view": spec.view,
        "view_px": spec.view_size_px,
        "own_px": store.layout.size_px,
        "source": spec.source["name"],
        "error": spec.max_rel_error,
    }


def _tiles(results: Sequence[RunResult], teacher: Measured | None, store: Store, shown: Shown) -> list[tuple[str, str]]:
    """The few figures that stand out at the top: (figure, what it is)."""
    facts = _store_facts(store, shown)
    tiles = [(f"{facts['images']:,}", "images cached once"), (f"{facts['sample_kb']:.1f} KB", "per cached sample")]
    measured = [(result.measured.metrics["abs_rel"], result.name) for result in results if result.measured is not None]
    if measured and comparable(results, teacher):
        error, name = min(measured)
        tiles.append((f"{error:.4f}", f"AbsRel of {name}" + (", the best student" if len(measured) > 1 else "")))
    if teacher is not None:
        tiles.append((f"{teacher.metrics['abs_rel']:.4f}", "AbsRel of the teacher"))
    return tiles


def _protocols(results: Sequence[RunResult], teacher: Measured | None) -> list[tuple[str, str]]:
    """(how metrics were taken, for whom), each way once."""
    ways: dict[str, list[str]] = {}
    for name, measured in [("the teacher", teacher), *((result.name, result.measured) for result in results)]:
        if measured is not None:
            ways.setdefault(measured.protocol_text(), []).append(name)
    return [(way, "" if len(ways) == 1 else ", ".join(names)) for way, names in ways.items()]


def _curves(results: Sequence[RunResult]) -> list[tuple[str, Any]]:
    """(title, plot) of each plot that has anything to show."""
    curves = []
    losses = [finite_line(number, result.steps) for number, result in enumerate(results)]
    if any(losses):
        curves.append(("Training loss", loss_plot([line for line in losses if line is not None])))
    for key, title in _VALIDATION:
        found = [
            finite_line(number, [(row["epoch"] + 1, row[key]) for row in result.epochs if key in row])
            for number, result in enumerate(results)
        ]
        if any(found):
            curves.append((f"Validation {title}", epoch_plot(title, [line for line in found if line is not None])))
    return curves


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # run from a source tree that was never installed
            found.append((name, "unknown"))
    return found
