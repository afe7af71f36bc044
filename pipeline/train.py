"""Stage two: train a student from a store, with no teacher in memory; or a network on ground truth.

A run lies in a hidden directory beside its target until it is finished, with a checkpoint now and then; the same
call goes on from the last one, and comes to the same weights as if it had never stopped.

Shape legend: B batch, K bins, H W pixels of the training crop, h w of the logits.
"""

from __future__ import annotations

import io
import math
import resource
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from .dataset import Augmentation, EpochOrder, TrainingData, collate, dense_maps
from .device import autocast_type, choose_device
from .fileio import CsvTable, pretty_json, sync_directory, write_durably
from .interrupt import Interrupted, stop_flag
from .predict import validate
from .progress import Silent
from .recipe import Recipe, TrainOptions
from .sources.view import View
from .store.sparse import weight_table
from .students.build import build_student
from .students.run import CONFIG, METRICS, WEIGHTS, normalise, save_weights

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from .dataset import Item
    from .progress import Progress, Task
    from .sources.base import Sample, Source
    from .store import Store

BETAS = (0.95, 0.99)
DIV_FACTOR = 25
FINAL_DIV_FACTOR = 100
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY_S = 120.0
MAX_LOGGED_STEPS = 20_000
"""A longer run logs every n-th step, so that its table does not grow with the data set."""


class Validation(NamedTuple):
    """What each epoch is judged on."""

    source: Source
    split: str


def train_network(
    source: Source,
    split: str,
    out: Path,
    options: TrainOptions,
    *,
    store: Store | None = None,
    truth: str | None = None,
    validation: Validation | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a network on a store's targets, or with `store` None on ground truth; returns the run's metrics.

    Raises ValueError for input at fault, and Interrupted after Ctrl-C or SIGTERM, once a checkpoint is written.
    In either case the same call goes on from the last checkpoint.
    """
    progress = progress or Silent()
    if out.exists():
        raise ValueError(f"{out} exists: a finished run is never written over; remove it or choose another --out")
    samples = source.samples(split)
    recipe = Recipe.make(options, source, samples, store, truth)
    partial = out.with_name(f".{out.name}.{recipe.digest()[:12]}.partial")
    with stop_flag() as stopped:  # from here on Ctrl-C ends a step first, and leaves a checkpoint
        partial.mkdir(parents=True, exist_ok=True)
        write_durably(partial / CONFIG, pretty_json(recipe.as_json()))
        teacher = None if options.on_truth else store
        run = _Training(source, samples, recipe, teacher, validation, choose_device(device), partial)
        if run.step:
            progress.note(f"going on from step {run.step} of {run.total_steps} in {partial}")
        with progress.task("train", run.total_steps, "step", done=run.step) as task:
            finished = run.train(workers, stopped, task)
    if not finished:
        raise Interrupted(
            f"stopped at step {run.step} of {run.total_steps}; run the same command again to go on from {partial}"
        )
    metrics = run.finish()
    partial.rename(out)
    sync_directory(out.parent)
    return metrics


class _Training:
    """The state of one run, which `checkpoint.pt` holds whole."""

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        recipe: Recipe,
        store: Store | None,
        validation: Validation | None,
        device: torch.device,
        folder: Path,
    ) -> None:
        options = recipe.options
        self.recipe, self.options, self.device, self.folder = recipe, options, device, folder
        self.validation = validation
        self.view = View.parse(recipe.view)
        torch.manual_seed(options.seed)
        self.loss = recipe.build_loss()
        self.network = build_student(options.student, len(recipe.bin_edges_m) - 1).to(device)
        self.edges_m = torch.tensor(recipe.bin_edges_m, dtype=torch.float64)
        augmentation = Augmentation(recipe.crop_px, recipe.rotate_deg, options.flip, options.colour)
        self.order = EpochOrder(len(samples), options.batch_size, options.seed)
        self.data = TrainingData(
            source,
            samples,
            self.view,
            store=store,
            maps_px=None,
            augmentation=augmentation,
            seed=options.seed,
        )
        if recipe.stored_maps:
            assert store is not None
            self.data.maps_px = self._logits_px()
            self.weights = torch.from_numpy(weight_table(store.spec.weight_bits)).to(device)
        self.total_steps = options.epochs * len(self.order)
        # foreach: one kernel for all parameters, also on the CPU
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=options.learning_rate,
            betas=BETAS,
            weight_decay=options.weight_decay,
            foreach=True,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            options.learning_rate,
            total_steps=self.total_steps + 1,
            div_factor=DIV_FACTOR,
            final_div_factor=FINAL_DIV_FACTOR,
            cycle_momentum=False,
        )
        self.log_every = -(-self.total_steps // MAX_LOGGED_STEPS)
        self.step = 0
        self.epoch_loss = 0.0
        self.seconds = 0.0
        self.steps = CsvTable(folder / "steps.csv")
        self.epochs = CsvTable(folder / "epochs.csv")
        if (folder / CHECKPOINT).exists():
            self._load()

    def _logits_px(self) -> tuple[int, int]:
        """(h, w) of the student's logits for a training crop."""
        height, width = self.data[0, 0].image.shape[1:]
        self.network.eval()
        with torch.inference_mode():
            logits = self.network(torch.zeros(1, 3, height, width, device=self.device))
        return logits.shape[2], logits.shape[3]

    # --- checkpoints -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint; what it says is true of the tables too."""
        self.steps.write()
        self.epochs.write()
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "epoch_loss": self.epoch_loss,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
        }
        data = io.BytesIO()
        torch.save(state, data)
        write_durably(self.folder / CHECKPOINT, data.getvalue())

    def _load(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, weights_only=True, map_location=self.device)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.epoch_loss, self.seconds = state["step"], state["epoch_loss"], state["seconds"]
        torch.set_rng_state(state["random"].cpu())
        self.steps.read(lambda row: int(row["step"]) < self.step)
        self.epochs.read(lambda row: (int(row["epoch"]) + 1) * len(self.order) <= self.step)

    # --- training ----------------------------------------------------------------------------------------------

    def train(self, workers: int | None, stopped: threading.Event, task: Task) -> bool:
        """Train to the end, or until `stopped` is set; returns whether the end was reached."""
        if workers is None:
            # On a CPU the network has every core, and reading in turn with it costs less than contending with it.
            workers = 0 if self.device.type == "cpu" else 8
        loader = DataLoader(
            self.data,
            batch_sampler=self.order,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        saved = begin = time.monotonic()
        while self.step < self.total_steps:
            epoch, first_batch = divmod(self.step, len(self.order))
            self.order.start_at(epoch, first_batch)
            self.network.train()
            for batch in loader:
                row = self._one_step(batch)
                self.epoch_loss += row["loss"]
                if self.step % self.log_every == 0:
                    self.steps.rows.append({"step": self.step, "epoch": epoch, **row})
                self.step += 1
                task.update(1, epoch=f"{epoch + 1}/{self.options.epochs}", loss=f"{row['loss']:.3f}")
                if self.step % len(self.order) == 0:
                    self._end_epoch(epoch)
                now = time.monotonic()
                if stopped.is_set() or now - saved > CHECKPOINT_EVERY_S:
                    self.seconds, begin = self.seconds + now - begin, now
                    self.save()
                    saved = now
                if stopped.is_set():
                    return False
        self.seconds += time.monotonic() - begin
        return True

    def _one_step(self, batch: Item) -> dict[str, float]:
        images = normalise(batch.image.to(self.device, non_blocking=True))
        target_m = batch.target_depth_m.to(self.device, non_blocking=True)
        maps = None
        if self.recipe.stored_maps:
            on_device = [part.to(self.device, non_blocking=True) for part in batch if part is not None]
            maps = dense_maps(type(batch)(*on_device), len(self.edges_m) - 1, self.weights)
        cast = autocast_type(self.options.precision, self.device)
        with torch.autocast(self.device.type, dtype=cast, enabled=cast is not None):
            logits = self.network(images)
        terms = self.loss.terms(logits, target_m, maps)
        loss = float(terms["loss"].detach())
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {self.step}: lower --learning-rate, or use --precision float32; "
                "the last checkpoint is kept"
            )
        learning_rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return {
            "learning_rate": learning_rate,
            **{name: float(value.detach()) for name, value in terms.items()},
        }

    def _end_epoch(self, epoch: int) -> None:
        row: dict[str, Any] = {"epoch": epoch, "train_loss": self.epoch_loss / len(self.order)}
        self.epoch_loss = 0.0
        if self.validation:
            self.network.eval()
            source, split = self.validation
            count = self.options.validation_images
            edges_m = self.edges_m.to(self.device)
            found = validate(self.network, edges_m, source, split, self.view, count, self.device)
            row |= {f"val_{name}": value for name, value in found.items()}
            self.network.train()
        self.epochs.rows.append(row)

    def finish(self) -> dict[str, Any]:
        """Write weights, tables and metrics, and remove the checkpoint."""
        self.steps.write()
        self.epochs.write()
        save_weights(self.network, self.folder / WEIGHTS)
        images = self.total_steps * self.options.batch_size
        metrics = {
            "epochs": self.options.epochs,
            "steps": self.total_steps,
            "parameters": sum(part.numel() for part in self.network.parameters()),
            "seconds": round(self.seconds, 2),
            "images_per_second": round(images / max(self.seconds, 1e-9), 2),
            "peak_memory_mb": round(_peak_memory_bytes(self.device) / 2**20, 1),
            "device": self.device.type,
            "last_epoch": {name: value for name, value in self.epochs.rows[-1].items() if name != "epoch"},
        }
        write_durably(self.folder / METRICS, pretty_json(metrics))
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return metrics


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
