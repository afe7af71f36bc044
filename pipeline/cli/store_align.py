"""`pipeline store align`: convert a relative-depth store to metres, by ground truth or another store, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import Console, echo
from .options import OUT, RANGE, STORE, TRUTH, PipelineCommand, option

if TYPE_CHECKING:
    from pathlib import Path

    from ..cache.align import AlignOptions
    from ..store.tools.alignment_summary import AlignmentSummary

MAX_IDS = 3


@click.command(cls=PipelineCommand)
@click.argument("path", metavar="STORE", type=STORE)
@option("--source", "source_name", metavar="KIND:ROOT", help="Data set that the store was made from.")
@option("--split", help="Split with their ground truth: the store's, or a larger one.")
@TRUTH
@option("--to", metavar="STORE", type=STORE, help="Metric or aligned store to align to, in place of ground truth.")
@OUT
@option(
    "--min-points",
    default=100,
    type=click.IntRange(min=2),
    help="Reject an image with fewer pixels of ground truth, or of --to.",
)
@option(
    "--max-residual",
    default=0.25,
    type=click.FloatRange(min=0, min_open=True),
    help="Reject an image whose median relative error after alignment is larger.",
)
@option(
    "--depth-range-m",
    default="0.1:300",
    type=RANGE,
    help="Range of aligned depth; values outside are clipped when read.",
)
@option("--undo", is_flag=True, help="Write the store as it was before alignment, with the same bytes.")
def align(
    path: str | Path,
    source_name: str | None,
    split: str | None,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    to: str | Path | None,
    out: Path,
    min_points: int,
    max_residual: float,
    depth_range_m: tuple[float, float],
    *,
    undo: bool,
) -> None:
    """Align a relative-depth store to ground truth or to a metric store, image by image, so that it reads in metres.

    \b
    Example: pipeline store align relative.zarr --source kitti:ROOT \\
               --split ROOT/splits/train.txt --out aligned.zarr
             pipeline store align relative.zarr --to metric.zarr --out both.zarr
             pipeline store align aligned.zarr --undo --out relative.zarr

    Sparse ground truth is enough. --to takes the metres of another teacher's store, of the same images and view.
    Scale and shift are fitted robustly in the teacher's depth space. Rejected images are listed with the reason, and
    are NaN in metres. The teacher's own numbers are copied unchanged.
    """
    from ..cache.align import AlignOptions

    given = bool(source_name or split or truth or invalid)
    if undo:
        if given or to:
            raise click.UsageError(
                "--undo needs no ground truth: leave --source, --split, --truth, --invalid and --to out"
            )
        _undo(path, out)
        return
    if to is not None and given:
        raise click.UsageError("--to takes the place of ground truth: leave --source, --split, --truth, --invalid out")
    options = AlignOptions(min_points, max_residual, depth_range_m)
    if to is not None:
        summary = _to_store(path, to, out, options)
    elif source_name is None or split is None:
        raise click.UsageError("give the ground truth with --source and --split, a metric store with --to, or --undo")
    else:
        summary = _to_truth(path, source_name, split, truth, invalid or (), out, options)
    echo(f"{out}: {summary.describe()}")
    for reason, ids in summary.rejected.items():
        more = len(ids) - MAX_IDS
        echo(f"  {reason}: {', '.join(ids[:MAX_IDS])}{f' and {more} more' if more > 0 else ''}")


def _undo(path: str | Path, out: Path) -> None:
    from ..cache.align import unalign_store
    from ..store import open_store

    count = unalign_store(open_store(path), out, Console())
    echo(f"{out}: {count} samples, as before alignment")


def _to_store(path: str | Path, to: str | Path, out: Path, options: AlignOptions) -> AlignmentSummary:
    from ..cache.align_to_store import align_to_store
    from ..store import open_store

    return align_to_store(open_store(path), open_store(to), out, options, Console())


def _to_truth(
    path: str | Path,
    source_name: str,
    split: str,
    truth: str | None,
    invalid: tuple[float, ...],
    out: Path,
    options: AlignOptions,
) -> AlignmentSummary:
    from ..cache.align import align_store
    from ..sources.registry import open_source
    from ..store import open_store

    store = open_store(path)
    return align_store(store, open_source(source_name, truth, invalid), split, out, options, Console())
