"""`pipeline report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from .console import Console, echo, table
from .options import OUT, OVERWRITE, PATH, SOURCE, STORE, TRUTH, PipelineCommand, option


class MetricsType(click.ParamType["Path | tuple[str, Path]"]):
    """A result, with the name of its run or `teacher`, written [NAME=]FILE."""

    name = "[NAME=]FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | tuple[str, Path]:
        """Parse `tiekd=m/run7.json`; a file may have `=` in its name."""
        if not isinstance(value, str):
            return cast("Path | tuple[str, Path]", value)
        name, equals, file = value.partition("=")
        if Path(value).exists() or not equals or "/" in name:
            return Path(value)
        if not name or not file:
            self.fail(f"{value!r}: expected NAME=FILE, such as tiekd=m/run7.json", param, ctx)
        return name, Path(file)


@click.command(cls=PipelineCommand)
@click.argument("runs", nargs=-1, required=True, type=PATH)
@SOURCE
@TRUTH
@option("--store", "store_path", type=STORE, required=True, help="The teacher's store.")
@option(
    "--metrics",
    "metrics_paths",
    multiple=True,
    type=MetricsType(),
    help="Result of evaluate-student or -teacher, or a folder of them; repeatable. NAME is a run's name, or teacher.",
)
@option("--frames", default=4, help="Number of frames to show, evenly spaced over the split.")
@OUT
@OVERWRITE
def report(
    runs: tuple[Path, ...],
    source_name: str,
    split: str,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    store_path: str | Path,
    metrics_paths: tuple[Path | tuple[str, Path], ...],
    frames: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Write an HTML page about students: a table, training curves, images and maps.

    \b
    Example: pipeline report runs/tiekd runs/truth --store train.zarr --source scenes:data/scenes \\
               --split test --metrics metrics/tiekd.json --out report.html
    """
    from ..report.page import write_report
    from ..sources.registry import open_source
    from ..store import open_store

    head, rows = write_report(
        out,
        runs=list(runs),
        store=open_store(store_path),
        source=open_source(source_name, truth, invalid or ()),
        split=split,
        metrics_paths=list(metrics_paths),
        frames=frames,
        overwrite=overwrite,
        progress=Console(),
    )
    echo(table(head, rows))
    echo(f"{out}: open it in a browser; it needs no network")
