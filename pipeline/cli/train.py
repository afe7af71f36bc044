"""`pipeline train-student` and `pipeline train-teacher`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .console import Console, echo
from .data_set import DATA_SET, DataFields, check_usage
from .options import (
    DEVICE,
    OUT,
    PATH,
    REQUIRE_LICENCE,
    SIZE,
    SOURCE,
    STORE,
    STORE_CACHE,
    TRUTH,
    PipelineCommand,
    many,
    option,
    source_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..train.mixed_data import DataSet

TRAINING = many(
    option(
        "--student",
        default="mobilenetv2",
        help="Network, such as mobilenetv2-lean or timm:NAME; docs/students.md lists them.",
    ),
    option(
        "--encoder-weights",
        type=PATH,
        metavar="FILE",
        help="Initial encoder weights in torchvision's layout; random if omitted.",
    ),
    option(
        "--init",
        type=PATH,
        metavar="RUN",
        help="Start from the weights of a finished run of the same student. If its bins or head differ, all layers but "
        "the last are used.",
    ),
    option(
        "--head",
        default="dpm",
        help="dpm predicts a depth probability map; gaussian and laplace two numbers, a distribution of ln depth; "
        "depth predicts depth alone.",
    ),
    option(
        "--readout",
        help="How depth is read from the map in the loss and afterwards: mean or geometric. If omitted, mean; "
        "geometric for gaussian and laplace.",
    ),
    option("--epochs", default=24, help="Passes over the split."),
    option("--batch-size", default=16, help="Images in one step, over all parts and processes."),
    option(
        "--accumulate",
        default=1,
        help="Split each batch into N parts to save memory. Batch norms and losses are then computed over each part; "
        "the gradient is that of their mean loss.",
    ),
    option(
        "--add",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Add a term to the loss: gradient (weight 0.5), trim (fraction 0.1), confidence (exponent 1), sky (far or "
        "ignore), texture (weight 0.1). Can be repeated; docs/method.md has the formulas.",
    ),
    option("--learning-rate", default=1e-3, help="Peak of the one-cycle schedule."),
    option("--weight-decay", default=0.01, help="Weight decay of AdamW."),
    option(
        "--ema",
        default=0.0,
        help="Decay of a moving average of the weights, such as 0.999, to validate and save. 0 keeps none.",
    ),
    option("--crop", "crop_px", type=SIZE, help="Size of random crops; the source's default if omitted."),
    option("--rotate-deg", type=float, help="Largest rotation in degrees; the source's default if omitted."),
    option("--flip/--no-flip", default=True, help="Mirror half of the samples at random."),
    option("--colour/--no-colour", default=True, help="Vary the colors of half of the images at random."),
    option("--sigma-m", type=float, help="Standard deviation of Gaussian maps in metres; the store's if omitted."),
    option(
        "--sigma-bins",
        type=float,
        help="Standard deviation in bins instead of metres: with log bins it is a fraction of the depth.",
    ),
    option(
        "--centred/--no-centred",
        default=False,
        help="Shift each Gaussian so that the mean of its map equals the depth, also at the ends of the range.",
    ),
    option("--weight", default=0.1, help="Weight of the KL term in the TIE-KD loss."),
    option("--skip-rows", type=int, help="Top rows that the loss ignores; the source's default if omitted."),
    option("--images", type=PATH, help="Output of cache-images: the same pixels, faster to read."),
    option("--seed", default=0, help="Seed of initial weights, sampling and augmentation."),
    option("--precision", default="auto", help="auto, float32, bfloat16 or float16."),
    option("--validation-split", help="Split to measure after each epoch."),
    option("--validation-images", default=32, help="Images of that split to use, evenly spaced."),
    option(
        "--workers",
        type=int,
        help="Loader processes; 0 is one thread. If omitted, 0 on a CPU, and measured on a GPU.",
    ),
    option(
        "--loss-kernel",
        default="auto",
        type=click.Choice(["auto", "blocks", "triton"]),
        help="Implementation of the loss: Triton on a GPU that has it (extra triton), PyTorch in blocks elsewhere.",
    ),
    option("--compile", "compiled", is_flag=True, help="Compile the network with torch.compile, then train faster."),
    option(
        "--fuse-head/--no-fuse-head",
        default=None,
        help="Compute the last layer inside the loss: a fraction of the memory. Default on a CPU, where it is faster.",
    ),
    option(
        "--deterministic",
        is_flag=True,
        help="Use only deterministic algorithms: the same weights from the same run on the same GPU.",
    ),
    option(
        "--checkpoint-every-s",
        type=click.FloatRange(min=0),
        default=120.0,
        help="Seconds between checkpoints; a killed run loses the work since the last.",
    ),
    TRUTH,
    DEVICE,
    OUT,
)


@click.command(cls=PipelineCommand)
@source_options(required=False)
@option("--store", "store_path", type=STORE, help="The teacher's store, or its URL.")
@option(
    "--data",
    type=DATA_SET,
    multiple=True,
    help="A data set, in place of --source, --split and --store; repeat it to train on several. WEIGHT is its relative "
    "probability, n**0.2 for n samples if omitted. Commas within braces do not separate.",
)
@STORE_CACHE
@option("--flips-store", type=STORE, help="Output of cache-teacher --cache-flips, to learn mirrored crops from.")
@option(
    "--maps",
    default="auto",
    type=click.Choice(["auto", "stored", "from-depth"]),
    help="Target maps: stored in the store, or Gaussians from its depth; auto is stored if there are any.",
)
@option("--bins", help="Bins of maps from depth, as in cache-teacher; the store's if omitted.")
@option(
    "--loss",
    default="tiekd",
    help="tiekd, tiekd-released, dpm, ssim, mse, si, ssim+si, ssim+mse, ssi, ssi+grad, nll, nll+ssim; truth-LOSS uses "
    "ground truth.",
)
@TRAINING
@REQUIRE_LICENCE
def train_student(
    store_path: str | Path | None,
    data: tuple[DataFields, ...],
    store_cache: Path | None,
    flips_store: str | Path | None,
    **flags: Any,
) -> None:
    """Stage two: train a student from a store, without the teacher and its packages.

    \b
    Example: pipeline train-student --source kitti:ROOT --split ROOT/splits/train.txt \\
               --store train.zarr --student mobilenetv2 --loss tiekd --out runs/mobilenetv2
             pipeline train-student --source folder:DIR --split all --store mine.zarr \\
               --student mobilenetv2 --init runs/mobilenetv2 --learning-rate 1e-4 --out runs/tuned
             torchrun --nproc-per-node 4 -m pipeline.cli.main train-student ...

    \b
    Example: pipeline train-student --source kitti:ROOT --split ROOT/splits/train.txt --store train.zarr \\
               --loss tiekd --add gradient=0.5 --add confidence --add sky=ignore --add trim=0.1 --out runs/terms

    \b
    Example: pipeline train-student --data kitti:KITTI,KITTI/splits/train.txt,kitti.zarr \\
               --data nyu:NYU,train,nyu.zarr,2 --bins log:64:0.5:80 --crop 352x480 --skip-rows 0 --out runs/two

    With --data the student learns from several data sets at once, which may have different views, teachers and bins:
    docs/students.md.

    With --loss truth-si the student learns from ground truth alone, for comparison; the store gives only the bins and
    the view. A student of a relative-depth store predicts relative depth, which is evaluated after alignment; use
    `pipeline store align` first for metres. Ctrl-C saves a checkpoint; run the same command again to continue.

    With `torchrun`, one process per GPU, the processes divide each batch. The result equals that of one process up to
    rounding.
    """
    from ..sources.registry import open_source
    from ..store import open_store
    from ..train.mixed_data import DataSet

    check_usage(data, store_path, flips_store, **flags)
    flips = None if flips_store is None else open_store(flips_store, cache=store_cache)
    data_sets = [
        DataSet(open_source(each.source_name), each.split, open_store(each.store, cache=store_cache), each.weight)
        for each in data
    ]
    store = None if store_path is None else open_store(store_path, cache=store_cache)
    _train(store=store, flips=flips, data=data_sets, **flags)


@click.command(cls=PipelineCommand)
@SOURCE
@option("--view", help="As in cache-teacher.")
@option("--bins", help="As in cache-teacher.")
@option("--loss", default="nll", help="nll (likelihood of the truth under the map), si, tiekd ...")
@TRAINING
def train_teacher(loss: str, **flags: Any) -> None:
    """Train a network on ground truth, to use as a teacher: --teacher checkpoint:RUN.

    \b
    Example: pipeline train-teacher --source scenes:data/scenes --split train --student lean-large \\
               --out runs/teacher
    """
    _train(store=None, flips=None, data=(), loss=f"truth-{loss}", **flags)


RUN_OPTIONS = ("device", "workers", "loss_kernel", "compiled", "deterministic", "fuse_head", "checkpoint_every_s")
"""Flags of how a run is computed, which are not part of its configuration."""


def _train(
    *,
    source_name: str | None,
    split: str | None,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    store: Any,
    flips: Any,
    data: Sequence[DataSet],
    images: Path | None,
    out: Path,
    validation_split: str | None,
    **flags: Any,
) -> None:
    from ..common.distributed import rank
    from ..sources.registry import open_source
    from ..store.images.reader import open_images
    from ..train.options import TrainOptions
    from ..train.run import Validation, train_network

    is_first = rank() == 0  # only rank 0 prints
    source = None if source_name is None else open_source(source_name, truth, invalid or ())
    validation = None
    if source_name is not None and validation_split:
        # Against the source's default ground truth, also if --truth trains on a sparse one
        validation = Validation(open_source(source_name, None, invalid or ()), validation_split)
    run_options = {name: flags.pop(name) for name in RUN_OPTIONS}
    run_options["require_licence"] = flags.pop("require_licence", ())  # train-teacher has none
    options = TrainOptions(**flags)
    try:
        metrics = train_network(
            source,
            split,
            out,
            options,
            store=store,
            data=data,
            flips=flips,
            images=None if images is None else open_images(images),
            truth=truth,
            validation=validation,
            progress=Console() if is_first else None,
            **run_options,
        )
    except KeyboardInterrupt:
        if is_first:
            raise
        click.get_current_context().exit(130)
    if is_first:
        echo(f"{out}: {options.student} {_summary_text(metrics)}")


def _summary_text(metrics: dict[str, Any]) -> str:
    last = metrics["last_epoch"]
    validation = f", validation AbsRel {last['val_abs_rel']:.4f}" if "val_abs_rel" in last else ""
    return (
        f"({metrics['parameters'] / 1e6:.2f} M parameters), {metrics['steps']} steps in {metrics['seconds']:.0f} s, "
        f"{metrics['images_per_second']:.1f} training img/s, last loss {last['train_loss']:.3f}{validation}"
    )
