"""`pipeline train-student` and `pipeline train-teacher`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .console import Console, echo
from .options import DEVICE, OUT, PATH, SIZE, SOURCE, STORE, STORE_CACHE, TRUTH, PlainCommand, many, option

if TYPE_CHECKING:
    from pathlib import Path


TRAINING = many(
    option(
        "--student", default="mobilenetv2", help="A name of docs/students.md, such as mobilenetv2-lean, or timm:NAME."
    ),
    option(
        "--encoder-weights",
        type=PATH,
        metavar="FILE",
        help="ImageNet weights in torchvision's layout, for the encoder to start from; random if left out.",
    ),
    option(
        "--head",
        default="dpm",
        help="dpm: a depth probability map; depth: plain regression, for comparison, with a loss of depth alone.",
    ),
    option("--epochs", default=24),
    option("--batch-size", default=16, help="Images of one step, over all parts and processes."),
    option(
        "--accumulate",
        default=1,
        help="Equal parts in which a batch goes through the network, to fit the memory. Batch norms and losses then "
        "see each part on its own; the gradient is that of the mean of the parts' losses.",
    ),
    option("--learning-rate", default=1e-3, help="Peak of the one-cycle schedule."),
    option("--weight-decay", default=0.01),
    option(
        "--ema",
        default=0.0,
        help="Decay of a moving average of the weights, such as 0.999: it is validated and saved. 0 keeps none.",
    ),
    option("--crop", "crop_px", type=SIZE, help="Random crop; the source's custom if left out."),
    option("--rotate-deg", type=float, help="Half of the range of rotation; the source's custom if left out."),
    option("--flip/--no-flip", default=True, help="Mirror half of the samples."),
    option("--colour/--no-colour", default=True, help="Vary the colours of half of the images."),
    option("--sigma-m", type=float, help="Width of the Gaussian map; the store's if left out."),
    option(
        "--sigma-bins",
        type=float,
        help="The same counted in bins, as wide beside the depth near and far over log bins; give one of the two.",
    ),
    option(
        "--centred/--no-centred",
        default=False,
        help="Move each Gaussian so that the mean of its map is the depth itself, also near the ends of the range.",
    ),
    option("--weight", default=0.1, help="Share of the KL in the TIE-KD loss."),
    option("--skip-rows", type=int, help="Top rows that the loss leaves out; the source's custom if left out."),
    option("--images", type=PATH, help="What cache-images wrote: the same pixels, quicker to read."),
    option("--seed", default=0),
    option("--precision", default="auto", help="auto, float32, bfloat16 or float16."),
    option("--validation-split", help="Split to measure after each epoch."),
    option("--validation-images", default=32, help="How many of it, spread evenly."),
    option("--workers", type=int, help="Loader processes; 0 is one thread. 0 on a CPU and 8 with a GPU if left out."),
    option(
        "--loss-kernel",
        default="blocks",
        type=click.Choice(["blocks", "triton"]),
        help="What computes the loss: torch, block by block, or on a CUDA device Triton (extra triton; untimed).",
    ),
    option(
        "--checkpoint-every-s",
        type=click.FloatRange(min=0),
        default=120.0,
        help="Seconds between two checkpoints; what came after the last is what a killed run has to do again.",
    ),
    TRUTH,
    DEVICE,
    OUT,
)


@click.command(cls=PlainCommand)
@SOURCE
@option("--store", "store_path", type=STORE, required=True, help="The teacher's store, or its URL.")
@STORE_CACHE
@option("--flips-store", type=STORE, help="What cache-teacher --cache-flips wrote beside it: teaches mirrored crops.")
@option(
    "--maps",
    default="auto",
    type=click.Choice(["auto", "stored", "from-depth"]),
    help="stored: the store's sparse maps; from-depth: Gaussians about its depth; auto: stored if there are any.",
)
@option("--bins", help="Of maps made from depth, as in cache-teacher; the store's if left out.")
@option(
    "--loss",
    default="tiekd",
    help="tiekd, tiekd-released, dpm, ssim, mse, si, ssim+si, ssim+mse, ssi, ssi+grad; truth-LOSS learns from ground "
    "truth.",
)
@TRAINING
def train_student(
    store_path: str | Path, store_cache: Path | None, flips_store: str | Path | None, **flags: Any
) -> None:
    """Stage two: train a student from a store. The teacher is not needed, nor any of its packages.

    \b
    Example: pipeline train-student --source kitti:ROOT --split ROOT/splits/train.txt \\
               --store train.zarr --student mobilenetv2 --loss tiekd --out runs/mobilenetv2

    With --loss truth-si the student learns from ground truth alone, for comparison; the store then gives no more
    than the bins and the view. From a store of relative depth it learns each image's shape, to be measured after
    alignment; from one that `pipeline store align` wrote it learns metres. Ctrl-C leaves a checkpoint; the same command
    goes on from it.

    Several processes, each with a GPU of its own: torchrun --nproc-per-node 4 -m pipeline.cli.main train-student ...
    They share each batch, and come to the result of one process but for rounding.
    """
    from ..store import open_store

    flips = None if flips_store is None else open_store(flips_store, cache=store_cache)
    _train(store=open_store(store_path, cache=store_cache), flips=flips, **flags)


@click.command(cls=PlainCommand)
@SOURCE
@option("--view", help="As in cache-teacher.")
@option("--bins", help="As in cache-teacher.")
@option("--loss", default="nll", help="nll (likelihood of the truth under the map), si, tiekd ...")
@TRAINING
def train_teacher(loss: str, **flags: Any) -> None:
    """Train a network on ground truth, to be a teacher afterwards: --teacher checkpoint:RUN.

    \b
    Example: pipeline train-teacher --source scenes:data/scenes --split train --student lean-large \\
               --out runs/teacher
    """
    _train(store=None, flips=None, loss=f"truth-{loss}", **flags)


def _train(
    *,
    source_name: str,
    split: str,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    store: Any,
    flips: Any,
    images: Path | None,
    out: Path,
    device: str,
    workers: int | None,
    loss_kernel: str,
    checkpoint_every_s: float,
    validation_split: str | None,
    **flags: Any,
) -> None:
    from ..common.distributed import rank
    from ..sources.registry import open_source
    from ..store.images.reader import open_images
    from ..train.options import TrainOptions
    from ..train.run import Validation, train_network

    first = rank() == 0  # of several processes it alone says what all of them do
    source = open_source(source_name, truth, invalid or ())
    # What is learned from may be sparse; what is measured against is the source's own ground truth.
    judge = open_source(source_name, None, invalid or ()) if validation_split else None
    validation = Validation(judge, validation_split) if judge and validation_split else None
    options = TrainOptions(**flags)
    try:
        metrics = train_network(
            source,
            split,
            out,
            options,
            store=store,
            flips=flips,
            images=None if images is None else open_images(images),
            truth=truth,
            validation=validation,
            device=device,
            workers=workers,
            loss_kernel=loss_kernel,
            checkpoint_every_s=checkpoint_every_s,
            progress=Console() if first else None,
        )
    except KeyboardInterrupt:
        if first:
            raise
        click.get_current_context().exit(130)
    if not first:
        return
    last = metrics["last_epoch"]
    measured = f", validation AbsRel {last['val_abs_rel']:.4f}" if "val_abs_rel" in last else ""
    echo(
        f"{out}: {options.student} ({metrics['parameters'] / 1e6:.2f} M parameters), {metrics['steps']} steps in "
        f"{metrics['seconds']:.0f} s, {metrics['images_per_second']:.1f} training img/s, "
        f"last loss {last['train_loss']:.3f}"
        f"{measured}"
    )
