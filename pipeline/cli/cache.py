"""`pipeline cache-teacher`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .console import Console
from .plain import DEVICE, OUT, RANGE, SIZE, SOURCE, PlainCommand, many, option

if TYPE_CHECKING:
    from pathlib import Path

    from ..teachers.registry import TeacherOptions


TEACHER_KINDS = (
    "checkpoint:RUN, ensemble:..., litert:FILE, onnx:FILE, predictions:DIR, python:module:factory, torchscript:FILE or "
    "transformers:DIR_OR_ID."
)
TEACHER_FLAGS = many(
    option("--metres-per-unit", help="Scale of predictions: mm, kitti, tiekd-kitti, 80/65535, 0.001 ..."),
    option("--depth-space", help="What the teacher's numbers mean, if it does not say: metric_m ..."),
    option("--licence", help="Licence of the teacher's output; goes into the store."),
    option("--precision", default="auto", help="auto, float32, bfloat16 or float16."),
    option("--revision", help="Revision of a model of a hub."),
    option("--input-size", type=SIZE, help="What the teacher sees, if it is not its own custom."),
    option("--normalise", help="Pixels of a file's network: imagenet, half, unit, bytes, or MEAN/STD."),
    option("--channels", type=click.Choice(["rgb", "bgr"]), help="Order of the input channels of a file's network."),
    option("--output", help="Which output of a file's network is depth, where it has several."),
    option("--flip-average", is_flag=True, help="Mix each answer with that for the mirrored image: a real map."),
    option("--trust-code", is_flag=True, help="Let code that comes with the weights run."),
)


PLAIN_FLAGS = (
    "channels",
    "depth_space",
    "flip_average",
    "licence",
    "normalise",
    "output",
    "precision",
    "revision",
    "trust_code",
)
"""Those of TEACHER_FLAGS that are passed on as they are."""


def options_of_flags(flags: dict[str, Any]) -> TeacherOptions:
    """Take TEACHER_FLAGS out of a command's flags. Raises ValueError for a scale that is none."""
    from ..teachers.predictions import parse_metres_per_unit
    from ..teachers.registry import TeacherOptions

    scale = flags.pop("metres_per_unit")
    return TeacherOptions(
        metres_per_unit=None if scale is None else parse_metres_per_unit(scale),
        input_size_px=flags.pop("input_size"),
        **{name: flags.pop(name) for name in PLAIN_FLAGS},
    )


@click.command(cls=PlainCommand)
@SOURCE
@option("--teacher", "teacher_name", required=True, metavar="KIND:WHAT", help=TEACHER_KINDS)
@OUT
@option(
    "--view",
    help="full, kb, center:HxW, each perhaps with ,resize:HxW; a checkpoint's own, or the source's custom, if absent.",
)
@option("--bins", help="kitti, nyu or SPACING:COUNT:LO:HI in metres; the source's custom if left out.")
@option("--sigma-m", type=float, help="Width of the Gaussian map in metres; the source's custom if left out.")
@option(
    "--dpm",
    default="auto",
    type=click.Choice(["auto", "gaussian", "sparse", "dense"]),
    help="Which maps to store; auto is sparse for a teacher that emits maps, else gaussian.",
)
@option("--max-rel-error", default=5e-4, help="Largest relative error of stored depth.")
@option("--depth-range-m", default="0.1:300", type=RANGE, help="Depth beyond it is clipped, and counted.")
@option("--max-dpm-kl", default=0.01, help="Largest mean error of sparse maps, in nats.")
@option("--samples-per-shard", type=int, help="What an interruption can cost at most; 128 if left out, 8 for dense.")
@option("--batch-size", default=8, help="Images that the teacher sees at once.")
@option("--workers", type=int, help="Threads that read and encode; one a core if left out.")
@TEACHER_FLAGS
@DEVICE
def cache_teacher(source_name: str, split: str, teacher_name: str, out: Path, device: str, **flags: Any) -> None:
    """Stage one: run a teacher once over a split, and write its depth and maps to a store.

    \b
    Example: pipeline cache-teacher --source kitti:ROOT --split ROOT/splits/train.txt \\
               --teacher predictions:DIR --metres-per-unit tiekd-kitti --out train.zarr

    Interrupted runs go on where they stopped, when the same command is given again.
    """
    from ..cache import cache_teacher as run
    from ..device import choose_device
    from ..plan import CacheOptions
    from ..sources.registry import open_source
    from ..store.lock import refuse_existing
    from ..teachers.registry import open_teacher

    chosen = choose_device(device)
    source = open_source(source_name)
    source.samples(split)  # a missing split is told before a heavy teacher is loaded
    teacher_options = options_of_flags(flags)
    refuse_existing(out)  # before a heavy teacher is loaded
    teacher = open_teacher(teacher_name, device=chosen, options=teacher_options)
    done = run(source, split, teacher, out, CacheOptions(**flags), Console())
    now = done.samples - done.samples_before
    click.echo(
        f"{out}: {done.samples} samples of {done.size_px[0]}x{done.size_px[1]} px, "
        f"largest error {done.max_rel_error:.4%}, {done.clipped_share:.3%} clipped, {done.invalid_share:.3%} without a "
        f"value\n{now} in {done.seconds:.1f} s ({now / max(done.seconds, 1e-9):.1f} img/s), "
        f"{done.bytes_written / max(now, 1) / 1e3:.1f} KB each"
    )
