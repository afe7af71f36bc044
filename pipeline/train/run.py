"""Stage two: train a student from a store, with no teacher in memory; or a network on ground truth.

A run lies in a hidden directory beside its target until it is finished, with a checkpoint now and then; the same
call goes on from the last one, and comes to the same weights as if it had never stopped. Under `torchrun` several
processes are one run: each has a share of every batch, and the first alone writes.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import distributed as collective
from ..common.device import choose_device, is_out_of_memory
from ..common.fileio import pretty_json, write_durably
from ..common.locks import locked
from ..common.own_files import make_folder, make_own_folder, sync_directory
from ..common.progress import Silent
from ..common.signals import Interrupted, stop_flag
from ..common.unfinished import note_others, partial_folder
from ..errors import PipelineError
from ..networks.saved_run import CONFIG
from ..sources.sample_table import SampleTable
from .checkpoint import CHECKPOINT
from .config import Recipe
from .learnable import check_something_to_learn
from .trainer import Training, Validation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ..common.progress import Progress
    from ..sources.base import Source
    from ..store import Store
    from ..store.images.reader import ImageCache
    from .options import TrainOptions

__all__ = ["CHECKPOINT_EVERY_S", "Validation", "train_network"]

CHECKPOINT_EVERY_S = 120.0


def train_network(
    source: Source,
    split: str,
    out: Path,
    options: TrainOptions,
    *,
    store: Store | None = None,
    flips: Store | None = None,
    images: ImageCache | None = None,
    truth: str | None = None,
    validation: Validation | None = None,
    device: str = "auto",
    workers: int | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    loss_kernel: str = "blocks",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a network on a store's targets, or with `store` None on ground truth; returns the run's metrics.

    `flips` holds what the same teacher said of the mirrored images; without it a mirrored crop is taught the mirrored
    answer. `images` are those of the split, decoded before; they change nothing but the time, so a run may go on with
    or without them. `loss_kernel` is one of `blockwise.KERNELS`, and changes nothing but the time and the last bits.

    Of the processes that `torchrun` started, the first returns them, and the others an empty dictionary.

    Raises PipelineError for input at fault, and Interrupted after Ctrl-C or SIGTERM, once a checkpoint is written.
    In either case the same call goes on from the last checkpoint.
    """
    progress = progress or Silent()
    _refuse_existing(out)
    processes = collective.world_size()
    place = choose_device(device, collective.local_rank() if processes > 1 else None)
    samples = SampleTable(source.samples(split))
    if store is not None and not options.on_truth:
        samples = _taught(samples, [one for one in (store, flips) if one is not None], progress)
    recipe = Recipe.make(options, source, samples, store, truth, flips)
    loss = recipe.build_loss()
    loss.use_kernel(loss_kernel, place)
    partial = partial_folder(out, recipe.as_json())
    # From here on Ctrl-C ends a step first, and leaves a checkpoint
    with collective.together(place), stop_flag() as stopped, _the_only_run(out, progress):
        collective.check_agreement("what to train", int(recipe.digest()[:12], 16))
        if collective.rank() == 0:
            note_others(partial, out, CONFIG, recipe.as_json(), CHECKPOINT, progress)
            make_own_folder(partial)
            write_durably(partial / CONFIG, pretty_json(recipe.as_json()))
        collective.barrier()
        teacher = None if options.on_truth else store
        run = Training(source, samples, recipe, loss, teacher, flips, images, validation, place, partial)
        collective.check_agreement("the checkpoint to go on from", run.step)
        if run.step == 0:
            check_something_to_learn(run.data, progress)
        if run.step:
            progress.note(f"going on from step {run.step} of {run.total_steps} in {partial}")
        with progress.task("train", run.total_steps, "step", done=run.step) as task:
            try:
                finished = run.train(workers, checkpoint_every_s, stopped, task)
            except Exception as error:
                if is_out_of_memory(error):
                    raise _too_little_memory(run, partial) from error
                raise
        if not finished:
            raise Interrupted(
                f"stopped at step {run.step} of {run.total_steps}; run the same command again to go on from {partial}"
            )
        if collective.rank() > 0:
            return {}
        metrics = run.finish()
        partial.rename(out)
        sync_directory(out.parent)
    return metrics


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise PipelineError(f"{out} exists: a finished run is never written over; remove it or choose another `out`")


@contextmanager
def _the_only_run(out: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a run's target, where it is written. Raises PipelineError where another command has it."""
    if collective.rank() > 0:
        yield
        return
    make_folder(out.parent)
    with locked(out, progress):
        _refuse_existing(out)  # another may have finished while we came to the lock
        yield


def _too_little_memory(run: Training, partial: Path) -> PipelineError:
    options = run.options
    return PipelineError(
        f"out of memory on {run.device} at step {run.step} of {run.total_steps}, with `batch_size` "
        f"{options.batch_size} in {options.accumulate} parts: use more parts (`accumulate`), a smaller `batch_size` or "
        "`crop_px`; or make memory free and run the same command again, which goes on from the last checkpoint in "
        f"{partial}"
    )


def _taught(samples: SampleTable, stores: Sequence[Store], progress: Progress) -> SampleTable:
    """Those whose alignment to ground truth was accepted in every store; all, where no store is an aligned one."""
    kept = np.ones(len(samples), bool)
    for store in stores:
        if store.accepted is not None:
            kept &= store.accepted[store.indexes_of(samples.ids)]
    if kept.all():
        return samples
    if not kept.any():
        raise PipelineError(
            f"{stores[0].name}: the alignment of every sample of the split was rejected (`pipeline store info` tells "
            "why); align it to other ground truth, or train on the store that it was made from"
        )
    progress.note(f"{np.sum(~kept)} of {len(samples)} samples could not be aligned, and are left out")
    return SampleTable([samples[int(number)] for number in np.flatnonzero(kept)])
