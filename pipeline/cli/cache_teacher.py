"""`pipeline cache-teacher`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MissingDependencyError
from .console import Console, echo
from .options import DEVICE, INVALID, OUT, PATH, RANGE, SIZE, SOURCE, PipelineCommand, many, option

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from ..cache.cluster import Cluster
    from ..cache.cluster_worker import WorkerConfig
    from ..cache.flips import StoreMaker
    from ..cache.run import CacheSummary
    from ..common.profile import Profile
    from ..sources.base import Source
    from ..teachers.options import TeacherOptions


TEACHER_KINDS = (
    "checkpoint:RUN, ensemble:KIND:WHAT,KIND:WHAT, ensemble:FILE.json, litert:FILE, onnx:FILE, predictions:DIR, "
    "python:module:factory, torchscript:FILE or transformers:DIR_OR_ID."
)
TEACHER_FLAGS = many(
    option("--metres-per-unit", help="Scale of predictions: mm, kitti, tiekd-kitti, tiekd-nyu, 80/65535, 0.001 ..."),
    option(
        "--depth-space",
        help="Meaning of the teacher's numbers, if it does not state it: metric_m, affine_disparity ...",
    ),
    option("--licence", help="Licence of the teacher's output, recorded in the store."),
    option("--precision", default="auto", help="auto, float32, bfloat16 or float16."),
    option("--revision", help="Revision of a model on the hub."),
    option("--input-size", type=SIZE, help="Input size of the teacher, or of saved predictions, if not its default."),
    option("--normalise", help="Input normalization of a network file: imagenet, half, unit, bytes, or MEAN/STD."),
    option("--channels", type=click.Choice(["rgb", "bgr"]), help="Channel order of a network file's input."),
    option(
        "--output",
        help="Which output of a network file is depth, if it has several; or depth=NAME,confidence=NAME,sky=NAME.",
    ),
    option("--invalid", type=INVALID, help="Numbers in prediction files that mean no value, such as 65535."),
    option("--readout", help="How a checkpoint's depth is read from its map: mean, geometric, median or absrel."),
    option(
        "--focal-px",
        type=float,
        help="Focal length of the original images, for a teacher that depends on it; the source's if omitted.",
    ),
    option(
        "--canonical-focal-px",
        type=float,
        help="A network file predicts depth for a camera of this focal length; the store holds metres of the real one.",
    ),
    option("--drop-nonpositive", is_flag=True, help="Treat predicted depth of 0 or less as no value, and count it."),
    option(
        "--flip-average", is_flag=True, help="Average each prediction with that of the mirrored image, into one map."
    ),
    option("--trust-code", is_flag=True, help="Allow code that comes with the weights to run."),
)


GAP_SAMPLES = 64
"""Number of samples to compare mirrored predictions on."""
UNCHANGED_FLAGS = (
    "canonical_focal_px",
    "channels",
    "depth_space",
    "drop_nonpositive",
    "flip_average",
    "focal_px",
    "licence",
    "normalise",
    "output",
    "precision",
    "readout",
    "revision",
    "trust_code",
)
"""Flags of TEACHER_FLAGS that are fields of TeacherOptions with the same value."""


def options_of_flags(flags: dict[str, Any]) -> TeacherOptions:
    """Take TEACHER_FLAGS out of a command's flags. Raises PipelineError for an invalid scale."""
    from ..teachers.options import TeacherOptions
    from ..teachers.predictions import parse_metres_per_unit

    scale, invalid = flags.pop("metres_per_unit"), flags.pop("invalid")
    return TeacherOptions(
        metres_per_unit=None if scale is None else parse_metres_per_unit(scale),
        input_size_px=flags.pop("input_size"),
        invalid=invalid or (),
        **{name: flags.pop(name) for name in UNCHANGED_FLAGS},
    )


def with_averaging_bins(
    options: TeacherOptions, teacher_name: str, source: Source, bins: str | None, sigma_m: float | None
) -> TeacherOptions:
    """Add the bins and sigma of averaged maps, if the teacher averages predictions."""
    if not options.flip_average and not teacher_name.startswith("ensemble:"):
        return options
    from ..cache.plan import edges_or_default

    return replace(
        options,
        map_edges_m=edges_or_default(source, bins),
        map_sigma_m=source.defaults.sigma_m if sigma_m is None else sigma_m,
    )


@click.command(cls=PipelineCommand)
@SOURCE
@option("--teacher", "teacher_name", required=True, metavar="KIND:WHAT", help=TEACHER_KINDS)
@OUT
@option(
    "--view",
    help="Crop: full, kb or center:HxW, optionally with ,resize:HxW. The checkpoint's or source's default if omitted.",
)
@option(
    "--bins",
    help="Depth bins: kitti, nyu or SPACING:COUNT:LO:HI in metres. The teacher's or source's default if omitted.",
)
@option("--sigma-m", type=float, help="Standard deviation of Gaussian maps in metres; the source's default if omitted.")
@option(
    "--dpm",
    default="auto",
    type=click.Choice(["auto", "gaussian", "sparse", "dense"]),
    help="Kind of maps to store; auto is sparse for a teacher that predicts maps, else gaussian.",
)
@option(
    "--grade",
    help="Largest relative error of stored depth: archive is 0.05 %, the default; training is 1 %, for students alone, "
    "in half of the bytes.",
)
@option("--max-rel-error", type=float, help="Largest relative error of stored depth, instead of --grade.")
@option(
    "--depth-range-m",
    default="0.1:300",
    type=RANGE,
    help="Range of stored depth; depth outside is clipped and counted.",
)
@option("--max-dpm-kl", default=0.01, help="Largest mean KL divergence of sparse maps, in nats.")
@option(
    "--samples-per-shard",
    type=int,
    help="Samples in a shard; an interruption loses at most one. 128 if omitted, 8 for dense.",
)
@option(
    "--compression-level",
    type=click.IntRange(1, 9),
    default=5,
    help="1 is fast to write; 9 is small and fast to read, for a store that is read many times.",
)
@option("--batch-size", default=8, help="Images in a batch of the teacher.")
@option(
    "--accept-noise",
    is_flag=True,
    help="Accept a teacher whose predictions change from call to call or with the batch.",
)
@option("--workers", type=int, help="Threads for reading and encoding; one per core if omitted.")
@option(
    "--cache-flips", is_flag=True, help="Also cache mirrored images, in OUT.mirrored, for train-student --flips-store."
)
@option(
    "--scheduler",
    metavar="ADDRESS|local:N",
    help="Use dask workers: N local processes, or those of a scheduler, one per GPU, on a shared disk.",
)
@option(
    "--profile",
    type=PATH,
    metavar="FILE",
    help="Write a Chrome trace of all threads, and print the fraction of time that each part waited.",
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
    """Stage one: run a teacher once over a split and write its depth and maps to a store.

    \b
    Example: pipeline cache-teacher --source kitti:ROOT --split ROOT/splits/train.txt \\
               --teacher predictions:DIR --metres-per-unit tiekd-kitti --out train.zarr
             pipeline cache-teacher ... --teacher python:my_teacher:load --scheduler local:4

    Run the same command again to continue an interrupted run. With --scheduler, dask workers write the store. A worker
    may join or be killed at any time; the store has the same bytes as from one process. local:N starts N workers, one
    per GPU. For several machines start these first, the second line for each GPU, and pass the scheduler's ADDRESS:

    \b
        dask scheduler
        CUDA_VISIBLE_DEVICES=0 dask worker ADDRESS --nthreads 2
    """
    import torch

    from ..cache.cluster_worker import WorkerConfig
    from ..cache.flips import make_both
    from ..cache.plan import CacheOptions
    from ..common.profile import Profile
    from ..sources.registry import open_source

    source = open_source(source_name)
    source.samples(split)  # a missing split fails before a heavy teacher is loaded
    teacher_options = with_averaging_bins(
        options_of_flags(flags), teacher_name, source, flags["bins"], flags["sigma_m"]
    )
    _check_outputs(out, profile, scheduler, cache_flips=cache_flips)  # likewise
    options, console, recorder = CacheOptions(**flags), Console(), Profile(record=profile is not None)
    config = WorkerConfig(
        source_name, split, teacher_name, teacher_options, device, str(Path.cwd()), torch.get_num_threads()
    )
    with _maker(source, config, scheduler, recorder) as maker:
        done = make_both(maker, out, options, console) if cache_flips else (maker.cache(out, options, console), None)
    _print_summaries(out, done, cache_flips=cache_flips)
    if profile is not None:
        _write_profile(recorder, profile)


def _check_outputs(out: Path, profile: Path | None, scheduler: str | None, *, cache_flips: bool) -> None:
    """Refuse outputs that exist. Raises UsageError for --profile with --scheduler."""
    from ..cache.flips import mirrored_path
    from ..common.outputs import refuse_existing as refuse_existing_file
    from ..store.write.lock import refuse_existing

    if not cache_flips or mirrored_path(out).exists():
        refuse_existing(out)
    if profile is not None:
        if scheduler is not None:
            raise click.UsageError("--profile records one process: leave it or --scheduler out")
        refuse_existing_file(profile, option="profile")


def _maker(
    source: Source, config: WorkerConfig, scheduler: str | None, recorder: Profile
) -> AbstractContextManager[StoreMaker]:
    """Return the writer of stores: this process, or the workers of a scheduler."""
    from ..cache.flips import LocalMaker
    from ..common.device import choose_device
    from ..teachers.registry import open_teacher

    if scheduler is not None:
        return _cluster(scheduler, config)
    device = choose_device(config.device)
    teacher = open_teacher(config.teacher_name, device=device, options=config.teacher_options)
    return nullcontext(LocalMaker(source, config.split, teacher, recorder))


def _cluster(scheduler: str, config: WorkerConfig) -> AbstractContextManager[Cluster]:
    """Return the workers of a scheduler. Raises MissingDependencyError without the package."""
    try:
        from ..cache.cluster import cluster_of
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "distributed":
            raise
        raise MissingDependencyError("distributed", "cluster", f"`scheduler={scheduler}`") from error
    return cluster_of(scheduler, config)


def _write_profile(recorder: Profile, path: Path) -> None:
    recorder.write(path)
    waiting = ", ".join(f"{part} {fraction:.0%}" for part, fraction in recorder.waiting().items())
    echo(f"{path}: open it in https://ui.perfetto.dev; fraction of the time that each part waited: {waiting}")


def _print_summaries(out: Path, done: Iterable[CacheSummary | None], *, cache_flips: bool) -> None:
    """Describe the stores that were written: of the images, and of the mirrored images."""
    from ..cache.flips import mirrored_path

    for path, summary in zip((out, mirrored_path(out)), done, strict=True):
        if summary is not None:
            echo(f"{path}: {_summary_text(summary)}")
    if cache_flips:
        echo(_mirrored_difference(out))


def _mirrored_difference(out: Path) -> str:
    """Describe the difference between mirrored predictions and predictions of mirrored images."""
    from ..cache.flips import mirrored_path
    from ..store import open_store
    from ..store.tools.diff import compare_stores

    difference = compare_stores(open_store(out), open_store(mirrored_path(out)), GAP_SAMPLES)
    return (
        f"predictions of {difference.compared} mirrored images differ from mirrored predictions by "
        f"{difference.median_rel_difference:.2%} (median), at most {difference.max_rel_difference:.0%}"
    )


def _summary_text(done: CacheSummary) -> str:
    now = done.samples - done.samples_before
    text = (
        f"{done.samples} samples of {done.size_px[0]}x{done.size_px[1]} px, largest error {done.max_rel_error:.4%}, "
        f"{done.clipped_share:.3%} clipped, {done.invalid_share:.3%} without a value\n"
    )
    if done.outside:
        text += f"{done.outside.describe()}\n"
    if done.dropped:
        text += f"0 or less, treated as no value: {done.dropped[0]:,} pixels in {done.dropped[1]} samples\n"
    if done.rebinned:
        text += (
            f"maps rebinned at {done.rebinned.kl_nats:.2g} nats (mean), expected depth moved by "
            f"{done.rebinned.depth_fraction:.2%}, {done.rebinned.clipped_fraction:.3%} of mass clipped to the range\n"
        )
    return text + (
        f"{now} in {done.seconds:.1f} s ({now / max(done.seconds, 1e-9):.1f} img/s), "
        f"{done.sample_bytes / 1e3:.1f} KB each"
    )
