"""The command `python -m scenes OUT`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.console import Console, echo
from pipeline.cli.options import PATH, SIZE, PipelineCommand, option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PipelineCommand)
@click.argument("out", type=PATH)
@option(
    "--world",
    type=click.Choice(("street", "fog", "rooms")),
    default="street",
    help="Streets of a town; the same in fog, seen from a truck; or furnished rooms.",
)
@option("--count", default=400, help="Number of frames.")
@option("--size", default="128x416", type=SIZE, help="Height and width in pixels.")
@option("--seed", default=0, help="Seed of the town or of the rooms.")
@option("--test-share", default=0.15, help="Fraction of the frames in the split `test`.")
@option(
    "--baseline-m",
    type=float,
    help="Also render right images, from a second camera this many metres to the right. Default: none.",
)
@option("--workers", type=int, help="Number of processes. Default: all cores.")
def make_scenes(
    out: Path,
    world: str,
    count: int,
    size: tuple[int, int],
    seed: int,
    test_share: float,
    baseline_m: float | None,
    workers: int | None,
) -> None:
    """Render streets or rooms with exact depth into a data-set folder.

    \b
    Example: python -m scenes data/scenes --count 400 --size 128x416 --seed 0
             python -m scenes data/rooms --world rooms --count 400 --size 96x128
             python -m scenes data/pairs --count 400 --baseline-m 0.54
    """
    from .dataset import make_scenes as render

    render(
        out,
        count=count,
        world=world,
        size_px=size,
        seed=seed,
        test_share=test_share,
        baseline_m=baseline_m,
        workers=workers,
        progress=Console(),
    )
    echo(f"{out}: {count} frames of {size[0]}x{size[1]} px; use with --source scenes:{out}")


if __name__ == "__main__":
    make_scenes(prog_name="python -m scenes")
