"""`pipeline cache-images`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import Console, echo
from .options import OUT, SOURCE, PlainCommand, option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PlainCommand)
@SOURCE
@OUT
@option("--view", help="The view that the store of depth has; the source's custom if left out.")
@option("--samples-per-shard", default=64, type=click.IntRange(1, 2**16), help="What an interruption can cost at most.")
@option("--workers", type=click.IntRange(min=1), help="Threads that read and encode; one a core if left out.")
def cache_images(
    source_name: str, split: str, out: Path, view: str | None, samples_per_shard: int, workers: int | None
) -> None:
    """Keep a split's images decoded, for `train-student --images`: the same pixels, several times faster to read.

    \b
    Example: pipeline cache-images --source kitti:ROOT --split ROOT/splits/train.txt --out images.zarr
             pipeline train-student ... --images images.zarr

    Worth it for PNG: it takes about the disk space that they take. JPEGs are a fifth of that, and gain little.
    Interrupted runs go on where they stopped. `pipeline store` info, verify, pack and unpack take the result too.

    These are somebody's images: keep them to yourself where their licence does not let you share copies.
    """
    from ..cache.images import cache_images as keep
    from ..sources.registry import open_source

    told = keep(
        open_source(source_name),
        split,
        out,
        view=view,
        samples_per_shard=samples_per_shard,
        workers=workers,
        progress=Console(),
    )
    went_on = f" ({told.samples_before} of them before)" if told.samples_before else ""
    echo(f"{out}: {told.samples} images{went_on}, {told.bytes_in_all / told.samples / 1e3:.0f} KB each")
