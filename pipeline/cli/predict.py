"""`pipeline predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import Console, echo
from .options import DEVICE, OUT, PATH, RANGE, SIZE, PlainCommand, option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PlainCommand)
@click.argument("model", type=PATH)
@click.argument("images", type=PATH)
@OUT
@option("--size", "size_px", type=SIZE, help="What the network sees, if it is not the run's own view size.")
@option(
    "--depth-png",
    default="256",
    type=click.Choice(["256", "mm", "none"]),
    help="16 bits: metres times 256 (up to 256 m), or millimetres (up to 65 m).",
)
@option("--npy", is_flag=True, help="Write float32 as .npy: metres; of a relative student, what its teacher gave.")
@option("--colour", is_flag=True, help="Write pictures for people.")
@option("--colour-range", "colour_range_m", type=RANGE, help="Metres from light to dark; the bins' if left out.")
@option(
    "--grid",
    default="image",
    type=click.Choice(["image", "view"]),
    help="Files as large as the image, or as what the network saw of it.",
)
@option("--batch-size", default=4)
@DEVICE
def predict(
    model: Path,
    images: Path,
    out: Path,
    size_px: tuple[int, int] | None,
    depth_png: str,
    npy: bool,
    colour: bool,
    colour_range_m: tuple[float, float] | None,
    grid: str,
    batch_size: int,
    device: str,
) -> None:
    """Write the depth of images: MODEL is a run or a file of export-student, IMAGES a folder or one image.

    \b
    Example: pipeline predict student.onnx photos --out depth --colour

    A folder of predictions can teach: --teacher predictions:depth. Where the run's view is a part of the image, pixels
    around it are 0 (NaN in .npy), and to teach with that view they are left out by --grid view.
    Interrupted work goes on where it stopped, when the same command is given again.
    """
    from ..deploy.predict_folder import FolderOptions, predict_folder
    from ..deploy.runners import open_model

    options = FolderOptions(depth_png, npy, colour, colour_range_m, grid, batch_size)
    done = predict_folder(open_model(model, size_px, device), images, out, options, Console())
    far = f"; {done.beyond} pixels are farther than the PNG holds, and are 0" if done.beyond else ""
    echo(f"{out}: {done.images} images{far}")
