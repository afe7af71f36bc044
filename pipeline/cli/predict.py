"""`pipeline predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import Console, echo
from .options import DEVICE, OUT, PATH, RANGE, READOUT, SIZE, PipelineCommand, option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PipelineCommand)
@click.argument("model", type=PATH)
@click.argument("images", type=PATH)
@OUT
@option("--size", "size_px", type=SIZE, help="Input size of the network, if not the run's.")
@option(
    "--depth-png",
    default="256",
    type=click.Choice(["256", "mm", "none"]),
    help="16-bit PNG of metres times 256 (up to 256 m), or millimetres (up to 65 m).",
)
@option(
    "--npy", is_flag=True, help="Write float32 .npy in metres, or in the teacher's depth space for a relative student."
)
@option("--colour", is_flag=True, help="Write colored depth images.")
@option(
    "--colour-range", "colour_range_m", type=RANGE, help="Range of the colors in metres; that of the bins if omitted."
)
@option(
    "--grid",
    default="image",
    type=click.Choice(["image", "view"]),
    help="Size of the files: the whole image, or the network's view of it.",
)
@option(
    "--focal-px",
    type=float,
    help="Focal length of the images' camera, in their pixels: depth is rescaled from that of the training images.",
)
@READOUT
@option("--batch-size", default=4, help="Images in a batch.")
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
    focal_px: float | None,
    readout: str | None,
    batch_size: int,
    device: str,
) -> None:
    """Predict depth of images. MODEL is a run or an exported ONNX file, IMAGES a folder or one image.

    \b
    Example: pipeline predict student.onnx photos --out depth --colour

    The output folder can be a teacher: --teacher predictions:depth. If the run's view is a part of the image, pixels
    outside are 0 (NaN in .npy); --grid view writes the view alone. Run the same command again to continue an
    interrupted one.
    """
    from ..deploy.predict_folder import FolderOptions, predict_folder
    from ..deploy.runners import open_model

    options = FolderOptions(depth_png, npy, colour, colour_range_m, grid, batch_size, focal_px)
    done = predict_folder(open_model(model, size_px, device, readout), images, out, options, Console())
    far = f"; {done.beyond} pixels are too far for the PNG format and are 0" if done.beyond else ""
    echo(f"{out}: {done.images} images{far}")
