"""Stage two: train a student from a store with no teacher in memory, or a network on ground truth.

A run stays in a hidden folder next to its target, with checkpoints, until it is finished. The same call resumes it, and
ends with the same weights as an uninterrupted run. Under `torchrun`, several processes train one run: each gets a part
of every batch, and rank 0 writes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import distributed as collective
from ..common.device import choose_device, is_out_of_memory
from ..common.device import deterministic as deterministic_algorithms
from ..common.fileio import pretty_json, write_durably
from ..common.licences import DATA, TEACHER, check_licences
from ..common.outputs import locked_target, publish, refuse_existing_target
from ..common.own_files import make_own_folder
from ..common.progress import Silent
from ..common.signals import Interrupted, stop_flag
from ..common.unfinished import note_others, partial_folder
from ..depth.relative import METRIC
from ..errors import PipelineError
from ..networks.saved_run import CONFIG, TRAINED_FOCAL
from ..sources.sample_table import SampleTable
from .build import build_objective
from .checkpoint import CHECKPOINT
from .compatibility import check_one_or_several
from .config import Recipe
from .focal import summarize_focal_px
from .learnable import check_targets_vary
from .mixed_data import MixedData, Part
from .mixed_recipe import mixed_recipe
from .trainer import Trainer, Validation

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from ..common.progress import Progress
    from ..networks.initial import InitialWeights
    from ..sources.base import Source
    from ..store import Store
    from ..store.images.reader import ImageCache
    from .mixed_data import DataSet
    from .options import TrainOptions

__all__ = ["CHECKPOINT_EVERY_S", "Validation", "train_network"]

CHECKPOINT_EVERY_S = 120.0


def train_network(
    source: Source | None,
    split: str | None,
    out: Path,
    options: TrainOptions,
    *,
    store: Store | None = None,
    data: Sequence[DataSet] = (),
    flips: Store | None = None,
    images: ImageCache | None = None,
    truth: str | None = None,
    validation: Validation | None = None,
    device: str = "auto",
    workers: int | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    loss_kernel: str = "auto",
    compiled: bool = False,
    deterministic: bool = False,
    fuse_head: bool | None = None,
    require_licence: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a network on a store, or on ground truth if `store` is None. Returns the metrics of the run.

    Under `torchrun`, ranks above 0 return an empty dictionary.

    Args:
        source: images, and ground truth; None with `data`.
        split: name of a split of the source, or a list file; None with `data`.
        out: folder of the run; must not exist.
        options: see `TrainOptions`.
        store: cached teacher.
        data: several data sets to train on at once, each with its source, split and store, in place of these. They
            exclude `flips`, `images`, `truth` and `validation`.
        flips: the same teacher's store of the mirrored view; without it, mirrored crops take the mirrored prediction.
        images: image cache of the split. It does not change the result, so a run may resume with or without it.
        truth: which ground truth to learn from, if there are several.
        validation: measure this split after each epoch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: loader processes. None: none on a CPU, whose cores the network needs; on a GPU as many as the first
            steps show to be needed.
        checkpoint_every_s: seconds between checkpoints.
        loss_kernel: `auto` (triton on a GPU that has it) or one of `blockwise.KERNELS`; changes speed, and results by
            rounding.
        compiled: compile the network with torch.compile, which takes a minute or more and then makes steps faster;
            changes results by rounding.
        deterministic: use only deterministic algorithms: the same run on the same GPU and versions has the same
            weights. A run on a CPU has them anyway.
        fuse_head: compute the network's last layer inside the loss, so that whole logits are never in memory; changes
            results by rounding. None: on a CPU, where it is also faster, for every loss that can.
        require_licence: patterns, such as `apache-*`, of which the licences of the store's teacher and of its images
            must each match one.
        progress: where to report progress.

    Raises PipelineError for invalid input, and Interrupted after Ctrl-C or SIGTERM, once a checkpoint is written. The
    same call then resumes from the last checkpoint.
    """
    progress = progress or Silent()
    refuse_existing_target(out)
    run_device = choose_device(device, collective.local_rank() if collective.world_size() > 1 else None)
    check_one_or_several(
        data,
        {"source": source, "split": split, "store": store},
        {"flips_store": flips, "images": images, "truth": truth, "validation_split": validation},
    )
    if data:
        parts = [_part(*each, None, require_licence, progress) for each in data]
        recipe = mixed_recipe(options, parts, progress)
    else:
        assert source is not None
        assert split is not None
        teacher = None if options.on_truth else store
        parts = [_part(source, split, teacher, None, flips, require_licence, progress)]
        recipe = Recipe.make(options, source, parts[0].samples, store, truth, flips)
    objective = build_objective(recipe)
    objective.loss.use_kernel(loss_kernel, run_device)
    partial = partial_folder(out, recipe.as_json())
    # Inside, Ctrl-C sets `stopped`: the step ends and a checkpoint is written
    lock = locked_target(out, progress) if collective.rank() == 0 else nullcontext()
    with deterministic_algorithms(enabled=deterministic), collective.together(run_device), stop_flag() as stopped, lock:
        config = recipe.as_json()
        if collective.rank() == 0 and recipe.depth_space == METRIC:
            focal_px = summarize_focal_px(recipe, parts, images, progress)
            config |= {} if focal_px is None else {TRAINED_FOCAL: focal_px}
        _prepare_folder(partial, out, recipe, config, progress)
        trainer = Trainer(
            parts,
            recipe,
            objective,
            flips,
            images,
            validation,
            run_device,
            partial,
            compiled=compiled,
            fuse_head=fuse_head,
        )
        collective.check_agreement("the checkpoint to resume from", trainer.step)
        if trainer.step == 0:
            for each in trainer.data.parts if isinstance(trainer.data, MixedData) else [trainer.data]:
                check_targets_vary(each, progress)
            if recipe.init is not None:
                progress.note(_init_text(options, recipe.init))
        else:
            progress.note(f"resuming from step {trainer.step} of {trainer.total_steps} in {partial}")
        _fit(trainer, workers, checkpoint_every_s, stopped, progress)
        if collective.rank() > 0:
            return {}
        metrics = trainer.finish()
        publish(partial, out)
    return metrics


def _init_text(options: TrainOptions, init: InitialWeights) -> str:
    if init.head == "loaded":
        return f"starting from the weights of {options.init}"
    return (
        f"starting from the weights of {options.init}, except for its last layer: that predicts another head, depth "
        "space or other bins, so this run begins with a random one"
    )


def _prepare_folder(partial: Path, out: Path, recipe: Recipe, config: dict[str, Any], progress: Progress) -> None:
    """Create the hidden folder with the configuration on rank 0, and let the other ranks wait for it.

    `config` is the recipe, and what follows from it and the source, which its digest does not count.
    """
    collective.check_agreement("what to train", int(recipe.digest()[:12], 16))
    if collective.rank() == 0:
        note_others(partial, out, CONFIG, config, CHECKPOINT, progress)
        make_own_folder(partial)
        write_durably(partial / CONFIG, pretty_json(config))
    collective.barrier()


def _fit(
    trainer: Trainer, workers: int | None, checkpoint_every_s: float, stopped: threading.Event, progress: Progress
) -> None:
    """Train to the end. Raises Interrupted after Ctrl-C, and PipelineError with advice if memory runs out."""
    with progress.task("train", trainer.total_steps, "step", done=trainer.step) as task:
        try:
            finished = trainer.fit(workers, checkpoint_every_s, stopped, task, progress)
        except Exception as error:
            if is_out_of_memory(error):
                raise _out_of_memory(trainer) from error
            raise
    if not finished:
        raise Interrupted(
            f"stopped at step {trainer.step} of {trainer.total_steps}; run the same command again to resume from "
            f"{trainer.folder}"
        )


def _out_of_memory(trainer: Trainer) -> PipelineError:
    options = trainer.options
    return PipelineError(
        f"out of memory on {trainer.device} at step {trainer.step} of {trainer.total_steps}, with "
        f"`batch_size={options.batch_size}` in `accumulate={options.accumulate}` parts: use more parts, a smaller "
        "`batch_size` or `crop_px`, or free memory; the same command resumes from the last checkpoint in "
        f"{trainer.folder}"
    )


def _part(
    source: Source,
    split: str,
    store: Store | None,
    weight: float | None,
    flips: Store | None,
    require_licence: Sequence[str],
    progress: Progress,
) -> Part:
    """Return the samples of a split to train on. Raises PipelineError if the store's licences are not allowed."""
    samples = SampleTable.of(source.samples(split))
    if store is not None:
        stated = {TEACHER: store.spec.teacher.get("licence"), DATA: store.spec.extras.data_licence}
        check_licences(store.name, stated, require_licence)
        samples = _accepted(samples, [store] if flips is None else [store, flips], progress)
    return Part(source, samples, store, weight)


def _accepted(samples: SampleTable, stores: Sequence[Store], progress: Progress) -> SampleTable:
    """Drop the samples whose alignment to ground truth was rejected in an aligned store."""
    accepted = np.ones(len(samples), bool)
    for store in stores:
        if store.accepted is not None:
            accepted &= store.accepted[store.indexes_of(samples.ids)]
    if accepted.all():
        return samples
    if not accepted.any():
        raise PipelineError(
            f"{stores[0].name}: the alignment of every sample of the split was rejected (see `pipeline store info`); "
            "align it to other ground truth, or train on the store before alignment"
        )
    progress.note(f"leaving out {np.sum(~accepted)} of {len(samples)} samples whose alignment was rejected")
    return SampleTable([samples[int(index)] for index in np.flatnonzero(accepted)])
