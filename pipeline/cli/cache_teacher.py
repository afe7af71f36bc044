"""`pipeline cache-teacher`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MissingDependencyError
from .console import Console, echo
from .options import DEVICE, INVALID, OUT, RANGE, SIZE, SOURCE, PlainCommand, many, option

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..cache.cluster import Cluster
    from ..cache.cluster_worker import WorkerConfig
    from ..cache.flips import StoreMaker
    from ..cache.run import CacheSummary
    from ..sources.base import Source
    from ..teachers.options import TeacherOptions


TEACHER_KINDS = (
    "checkpoint:RUN, ensemble:KIND:WHAT,KIND:WHAT, ensemble:FILE.json, litert:FILE, onnx:FILE, predictions:DIR, "
    "python:module:factory, torchscript:FILE or transformers:DIR_OR_ID."
)
TEACHER_FLAGS = many(
    option("--metres-per-unit", help="Scale of predictions: mm, kitti, tiekd-kitti, tiekd-nyu, 80/65535, 0.001 ..."),
    option("--depth-space", help="What the teacher's numbers mean, if it does not say: metric_m ..."),
    option("--licence", help="Licence of the teacher's output; goes into the store."),
    option("--precision", default="auto", help="auto, float32, bfloat16 or float16."),
    option("--revision", help="Revision of a model of a hub."),
    option("--input-size", type=SIZE, help="What the teacher sees, or saw (predictions), if it is not its own custom."),
    option("--normalise", help="Pixels of a file's network: imagenet, half, unit, bytes, or MEAN/STD."),
    option("--channels", type=click.Choice(["rgb", "bgr"]), help="Order of the input channels of a file's network."),
    option("--output", help="Which output of a file's network is depth, where it has several."),
    option("--invalid", type=INVALID, help="Numbers of predictions that say no value, such as 65535."),
    option("--drop-nonpositive", is_flag=True, help="Take a network's depth of 0 or less as no value, and count it."),
    option("--flip-average", is_flag=True, help="Mix each answer with that for the mirrored image: a real map."),
    option("--trust-code", is_flag=True, help="Let code that comes with the weights run."),
)


GAP_SAMPLES = 64
"""So many samples tell how far the mirrored answers are from the answers for mirrored images."""
PLAIN_FLAGS = (
    "channels",
    "depth_space",
    "drop_nonpositive",
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
    """Take TEACHER_FLAGS out of a command's flags. Raises PipelineError for a scale that is none."""
    from ..teachers.options import TeacherOptions
    from ..teachers.predictions import parse_metres_per_unit

    scale, invalid = flags.pop("metres_per_unit"), flags.pop("invalid")
    return TeacherOptions(
        metres_per_unit=None if scale is None else parse_metres_per_unit(scale),
        input_size_px=flags.pop("input_size"),
        invalid=invalid or (),
        **{name: flags.pop(name) for name in PLAIN_FLAGS},
    )


def with_bins_to_mix_in(
    options: TeacherOptions, teacher_name: str, source: Source, bins: str | None, sigma_m: float | None
) -> TeacherOptions:
    """Add the bins and the sigma, asked for or customary, in which a teacher's answers are mixed, if they are."""
    if not options.flip_average and not teacher_name.startswith("ensemble:"):
        return options
    from ..cache.plan import edges_or_default

    return replace(
        options,
        map_edges_m=edges_or_default(source, bins),
        map_sigma_m=source.customs.sigma_m if sigma_m is None else sigma_m,
    )


@click.command(cls=PlainCommand)
@SOURCE
@option("--teacher", "teacher_name", required=True, metavar="KIND:WHAT", help=TEACHER_KINDS)
@OUT
@option(
    "--view",
    help="full, kb, center:HxW, each perhaps with ,resize:HxW; a checkpoint's own, or the source's custom, if absent.",
)
@option("--bins", help="kitti, nyu or SPACING:COUNT:LO:HI in metres; the teacher's, or else the source's, if left out.")
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
@option("--accept-noise", is_flag=True, help="Store a teacher that differs from itself, asked again or in a batch.")
@option("--workers", type=int, help="Threads that read and encode; one a core if left out.")
@option("--cache-flips", is_flag=True, help="Ask about the mirrored images too, into OUT.mirrored, for --flips-store.")
@option(
    "--scheduler",
    metavar="ADDRESS|local:N",
    help="Let workers do it: N processes here, or those of a dask scheduler, one a GPU, on a disk that all share.",
)
@option(
    "--profile",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a Chrome trace of what each thread did when, and print what fraction of the time each part waited.",
)
@TEACHER_FLAGS
@DEVICE
def cache_teacher(
    source_name: str,
    split: str,
    teacher_name: str,
    out: Path,
    device: str,
    *,
    cache_flips: bool,
    scheduler: str | None,
    profile: Path | None,
    **flags: Any,
) -> None:
    """Stage one: run a teacher once over a split, and write its depth and maps to a store.

    \b
    Example: pipeline cache-teacher --source kitti:ROOT --split ROOT/splits/train.txt \\
               --teacher predictions:DIR --metres-per-unit tiekd-kitti --out train.zarr

    Interrupted runs go on where they stopped, when the same command is given again.

    With --scheduler each worker makes whole files of the store and may be killed, or join, at any time; the store has
    the bytes that one process writes. local:N starts N processes, of which each takes a GPU; for several machines run
    `dask scheduler` on one and, for each GPU, CUDA_VISIBLE_DEVICES=I `dask worker ADDRESS --nthreads 2` on all.
    """
    import torch

    from ..cache.cluster_worker import WorkerConfig
    from ..cache.flips import LocalMaker, make_both, mirrored_path
    from ..cache.plan import CacheOptions
    from ..common.device import choose_device
    from ..common.outputs import refuse_existing as refuse_existing_file
    from ..common.profile import Profile
    from ..sources.registry import open_source
    from ..store.write.lock import refuse_existing
    from ..teachers.registry import open_teacher

    source = open_source(source_name)
    source.samples(split)  # a missing split is told before a heavy teacher is loaded
    teacher_options = with_bins_to_mix_in(
        options_of_flags(flags), teacher_name, source, flags["bins"], flags["sigma_m"]
    )
    if not cache_flips or mirrored_path(out).exists():
        refuse_existing(out)  # as above
    if profile is not None:
        if scheduler is not None:
            raise click.UsageError("--profile records one process: expected it without --scheduler")
        refuse_existing_file(profile, option="profile")
    options, console, recorder = CacheOptions(**flags), Console(), Profile(record=profile is not None)
    with ExitStack() as stack:
        maker: StoreMaker
        if scheduler is None:
            teacher = open_teacher(teacher_name, device=choose_device(device), options=teacher_options)
            maker = LocalMaker(source, split, teacher, recorder)
        else:
            config = WorkerConfig(
                source_name, split, teacher_name, teacher_options, device, str(Path.cwd()), torch.get_num_threads()
            )
            maker = stack.enter_context(_cluster(scheduler, config))
        done = make_both(maker, out, options, console) if cache_flips else (maker.cache(out, options, console), None)
    for place, one in zip((out, mirrored_path(out)), done, strict=True):
        if one is not None:
            echo(f"{place}: {_told(one)}")
    if cache_flips:
        echo(_gap(out))
    if profile is not None:
        recorder.write(profile)
        waiting = ", ".join(f"{part} {fraction:.0%}" for part, fraction in recorder.waiting().items())
        echo(f"{profile}: open it in https://ui.perfetto.dev; fraction of the time that each part waited: {waiting}")


def _cluster(scheduler: str, config: WorkerConfig) -> AbstractContextManager[Cluster]:
    """Workers by their scheduler. Raises PipelineError where the package is absent."""
    try:
        from ..cache.cluster import cluster_of
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "distributed":
            raise
        raise MissingDependencyError("distributed", "cluster", f"`scheduler={scheduler}`") from error
    return cluster_of(scheduler, config)


def _gap(out: Path) -> str:
    """How far the teacher's mirrored answers are from its answers for mirrored images, for people."""
    from ..cache.flips import mirrored_path
    from ..store import open_store
    from ..store.tools.diff import compare_stores

    found = compare_stores(open_store(out), open_store(mirrored_path(out)), GAP_SAMPLES)
    return (
        f"its answers for {found.compared} mirrored images differ from its answers, mirrored, by "
        f"{found.median_rel_difference:.2%} (median), {found.max_rel_difference:.0%} at most"
    )


def _told(done: CacheSummary) -> str:
    """What a run did, for people."""
    now = done.samples - done.samples_before
    held = (
        f"{done.samples} samples of {done.size_px[0]}x{done.size_px[1]} px, largest error {done.max_rel_error:.4%}, "
        f"{done.clipped_share:.3%} clipped, {done.invalid_share:.3%} without a value\n"
    )
    if done.outside:
        held += f"{done.outside.describe()}\n"
    if done.dropped:
        held += f"0 or less, taken as no value: {done.dropped[0]:,} pixels in {done.dropped[1]} samples\n"
    if done.carried:
        held += (
            f"maps carried over at {done.carried.kl_nats:.2g} nats (mean), expected depth moved by "
            f"{done.carried.depth_share:.2%}, {done.carried.clipped_share:.3%} of mass clipped to the range\n"
        )
    return held + (
        f"{now} in {done.seconds:.1f} s ({now / max(done.seconds, 1e-9):.1f} img/s), "
        f"{done.sample_bytes / 1e3:.1f} KB each"
    )
