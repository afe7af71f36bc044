"""`pipeline cache-images`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import Console, echo
from .options import OUT, SOURCE, PipelineCommand, option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PipelineCommand)
@SOURCE
@OUT
@option("--view", help="View of the teacher's store; the source's default if omitted.")
@option(
    "--samples-per-shard",
    default=64,
    type=click.IntRange(1, 2**16),
    help="Samples in a shard; an interruption loses at most one shard.",
)
@option("--workers", type=click.IntRange(min=1), help="Threads for reading and encoding; one per core if omitted.")
def cache_images(
    source_name: str, split: str, out: Path, view: str | None, samples_per_shard: int, workers: int | None
) -> None:
    """Decode a split's images once, for `train-student --images`: the same pixels, several times faster to read.

    \b
    Example: pipeline cache-images --source kitti:ROOT --split ROOT/splits/train.txt --out images.zarr
             pipeline train-student ... --images images.zarr

    Useful for PNG images, whose cache takes about the same disk space. JPEG images gain little, and their cache takes
    five times the space. Run the same command again to continue an interrupted run.

    The cache holds copies of the images: share it only if their licence allows it.
    """
    from ..cache.images import cache_images as write_cache
    from ..sources.registry import open_source

    summary = write_cache(
        open_source(source_name),
        split,
        out,
        view=view,
        samples_per_shard=samples_per_shard,
        workers=workers,
        progress=Console(),
    )
    resumed = f" ({summary.samples_before} of them before)" if summary.samples_before else ""
    echo(f"{out}: {summary.samples} images{resumed}, {summary.bytes_in_all / summary.samples / 1e3:.0f} KB each")
