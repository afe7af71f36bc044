"""`pipeline train-student` and `pipeline train-teacher`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .console import Console
from .plain import DEVICE, OUT, SIZE, SOURCE, STORE, STORE_CACHE, TRUTH, PlainCommand, many, option

if TYPE_CHECKING:
    from pathlib import Path


TRAINING = many(
    option("--student", default="mobilenetv2", help="mobilenetv2, resnet18, resnet50, lean or lean-large."),
    option("--epochs", default=24),
    option("--batch-size", default=16),
    option("--learning-rate", default=1e-3, help="Peak of the one-cycle schedule."),
    option("--weight-decay", default=0.01),
    option("--crop", "crop_px", type=SIZE, help="Random crop; the source's custom if left out."),
    option("--rotate-deg", type=float, help="Half of the range of rotation; the source's custom if left out."),
    option("--flip/--no-flip", default=True, help="Mirror half of the samples."),
    option("--colour/--no-colour", default=True, help="Vary the colours of half of the images."),
    option("--sigma-m", type=float, help="Width of the Gaussian map; the store's if left out."),
    option("--weight", default=0.1, help="Share of the KL in the TIE-KD loss."),
    option("--skip-rows", type=int, help="Top rows that the loss leaves out; the source's custom if left out."),
    option("--seed", default=0),
    option("--precision", default="auto", help="auto, float32 or bfloat16."),
    option("--validation-split", help="Split to measure after each epoch."),
    option("--validation-images", default=32, help="How many of it, spread evenly."),
    option("--workers", type=int, help="Loader processes; 0 on a CPU and 8 with a GPU if left out."),
    TRUTH,
    DEVICE,
    OUT,
)


@click.command(cls=PlainCommand)
@SOURCE
@option("--store", "store_path", type=STORE, required=True, help="The teacher's store, or its URL.")
@STORE_CACHE
@option(
    "--maps",
    default="auto",
    type=click.Choice(["auto", "stored", "from-depth"]),
    help="stored: the store's sparse maps; from-depth: Gaussians about its depth; auto: stored if there are any.",
)
@option(
    "--loss",
    default="tiekd",
    help="tiekd, tiekd-released, dpm, ssim, mse, si, ssim+si, ssim+mse; truth-LOSS learns from ground truth.",
)
@TRAINING
def train_student(store_path: str | Path, store_cache: Path | None, **flags: Any) -> None:
    """Stage two: train a student from a store. The teacher is not needed, nor any of its packages.

    \b
    Example: pipeline train-student --source kitti:ROOT --split ROOT/splits/train.txt \\
               --store train.zarr --student mobilenetv2 --loss tiekd --out runs/mobilenetv2

    With --loss truth-si the student learns from ground truth alone, for comparison; the store then gives no more
    than the bins and the view. Ctrl-C leaves a checkpoint; the same command goes on from it.
    """
    from ..store import open_store

    _train(store=open_store(store_path, cache=store_cache), **flags)


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
    _train(store=None, loss=f"truth-{loss}", **flags)


def _train(
    *,
    source_name: str,
    split: str,
    truth: str | None,
    store: Any,
    out: Path,
    device: str,
    workers: int | None,
    validation_split: str | None,
    **flags: Any,
) -> None:
    from ..recipe import TrainOptions
    from ..sources.registry import open_source
    from ..train import Validation, train_network

    source = open_source(source_name, truth)
    # What is learned from may be sparse; what is measured against is the source's own ground truth.
    validation = Validation(open_source(source_name), validation_split) if validation_split else None
    options = TrainOptions(**flags)
    metrics = train_network(
        source,
        split,
        out,
        options,
        store=store,
        truth=truth,
        validation=validation,
        device=device,
        workers=workers,
        progress=Console(),
    )
    last = metrics["last_epoch"]
    measured = f", validation AbsRel {last['val_abs_rel']:.4f}" if "val_abs_rel" in last else ""
    click.echo(
        f"{out}: {options.student} ({metrics['parameters'] / 1e6:.2f} M parameters), {metrics['steps']} steps in "
        f"{metrics['seconds']:.0f} s, {metrics['images_per_second']:.1f} img/s, last loss {last['train_loss']:.3f}"
        f"{measured}"
    )
