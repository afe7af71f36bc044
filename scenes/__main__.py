"""`python -m scenes OUT`: renders a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.console import Console, echo
from pipeline.cli.options import PATH, SIZE, PlainCommand, option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PlainCommand)
@click.argument("out", type=PATH)
@option("--world", type=click.Choice(("street", "rooms")), default="street", help="A town, or furnished rooms.")
@option("--count", default=400, help="Number of frames.")
@option("--size", default="128x416", type=SIZE, help="Pixels.")
@option("--seed", default=0, help="Another seed is another town, or other rooms.")
@option("--test-share", default=0.15, help="Part of the frames that the split `test` takes.")
@option("--workers", type=int, help="Processes; all cores if left out.")
def make_scenes(
    out: Path, world: str, count: int, size: tuple[int, int], seed: int, test_share: float, workers: int | None
) -> None:
    """Render driving-like scenes, or rooms, with exact depth into a data-set folder.

    \b
    Example: python -m scenes data/scenes --count 400 --size 128x416 --seed 0
             python -m scenes data/rooms --world rooms --count 400 --size 96x128
    """
    from .dataset import make_scenes as render

    render(
        out,
        count=count,
        world=world,
        size_px=size,
        seed=seed,
        test_share=test_share,
        workers=workers,
        progress=Console(),
    )
    echo(f"{out}: {count} frames of {size[0]}x{size[1]} px; use it as scenes:{out}")


if __name__ == "__main__":
    make_scenes(prog_name="python -m scenes")
