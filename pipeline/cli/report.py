"""`pipeline report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import Console, echo, table
from .plain import OUT, OVERWRITE, PATH, SOURCE, STORE, TRUTH, PlainCommand, option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PlainCommand)
@click.argument("runs", nargs=-1, required=True, type=PATH)
@SOURCE
@TRUTH
@option("--store", "store_path", type=STORE, required=True, help="The teacher's store.")
@option(
    "--metrics",
    "metrics_paths",
    multiple=True,
    type=PATH,
    help="JSON of evaluate-student or -teacher, repeatable.",
)
@option("--frames", default=4, help="How many frames to show, spread evenly over the split.")
@OUT
@OVERWRITE
def report(
    runs: tuple[Path, ...],
    source_name: str,
    split: str,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    store_path: str | Path,
    metrics_paths: tuple[Path, ...],
    frames: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Write a page that shows what students learned: curves, pictures, maps, and one table.

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
