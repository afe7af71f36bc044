"""The training loop, with checkpoints that resume to the same weights.

Shape legend: B batch, K bins, H W pixels of the training crop, h w of the logits.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import torch

from ..common import distributed as collective
from ..common.device import is_out_of_memory, peak_memory_bytes
from ..common.fileio import pretty_json, printable, write_durably
from ..common.progress import Waits
from ..depth.relative import ALIGN
from ..errors import PipelineError
from ..networks.predict import validate
from ..networks.reader import Reader
from ..networks.saved_run import METRICS, WEIGHTS, save_weights
from ..sources.view import View
from ..store.format.sparse import weight_table
from .build import build_data, build_network, build_sampler
from .checkpoint import Checkpoint
from .dataset import split_batch
from .forward import Forward
from .loader import MEASURED_STEPS, Batches, workers_for
from .optimizer import Optimizer
from .step_values import StepValues

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from ..common.progress import Progress, Task
    from ..losses.objective import Objective
    from ..networks.registry import Student
    from ..sources.base import Source
    from ..store import Store
    from ..store.images.reader import ImageCache
    from .config import Recipe
    from .dataset import Item
    from .mixed_data import Part

IMAGES = "images_manifest_sha256"
"""Checkpoint key: the image cache of the run, so that it does not resume with another."""
DEFERS = {"cuda"}
"""Types of devices whose values are read one step later."""
MEASURES_WORKERS = {"cuda"}
"""Types of devices for which the number of loader processes is measured. On a CPU the network needs the cores."""
MAX_NAMED_SAMPLES = 32
"""In an error about a batch."""
MAX_LOGGED_STEPS = 20_000
"""A longer run logs every n-th step, so that its table does not grow with the data set."""


class Validation(NamedTuple):
    """Split to measure after each epoch."""

    source: Source
    split: str


class Trainer:
    """One run: network, optimizer, data and tables. Resumes from the checkpoint in `folder` if there is one."""

    def __init__(
        self,
        parts: Sequence[Part],
        recipe: Recipe,
        objective: Objective,
        flips: Store | None,
        images: ImageCache | None,
        validation: Validation | None,
        device: torch.device,
        folder: Path,
        *,
        compiled: bool = False,
        fuse_head: bool | None = None,
    ) -> None:
        options = recipe.options
        self.recipe, self.options, self.device, self.folder = recipe, options, device, folder
        self.validation = validation
        self.view = View.parse(recipe.view)
        self.objective = objective.to(device)
        self.network: Student = build_network(recipe).to(device)
        self.defers = device.type in DEFERS
        if device.type == "cuda":  # its convolutions are faster in this layout
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.edges_m = torch.tensor(recipe.bin_edges_m, dtype=torch.float64)
        self.sampler = build_sampler(recipe)
        self.data = build_data(recipe, parts, flips, images, self.network, device)
        self.total_steps = options.epochs * len(self.sampler)
        self.images_per_step = min(options.batch_size, self.sampler.samples)  # a smaller split is one smaller batch
        self.optimizer = Optimizer(self.network, options, self.total_steps, device, self.objective)
        takes_lazy_logits = objective.loss.takes_lazy_logits
        if fuse_head and not takes_lazy_logits:
            raise PipelineError(f"`fuse_head`: loss {options.loss!r} needs whole logits; omit it")
        table = None
        if recipe.stored_maps:
            store = parts[0].store  # of several, all encode maps alike
            assert store is not None
            table = torch.from_numpy(weight_table(store.spec.weight_bits)).to(device)
        self.forward = Forward(
            self.network,
            self.objective,
            self.optimizer.autocast,
            table,
            device,
            # On a CPU it is faster; on a GPU it was not compared with the Triton kernel, which needs whole logits.
            fuse_head=takes_lazy_logits and device.type == "cpu" if fuse_head is None else fuse_head,
            compiled=compiled,
        )
        self.log_every = -(-self.total_steps // MAX_LOGGED_STEPS)
        self.step = 0
        self.epoch_loss = 0.0
        self.loss_value: float | None = None
        self.unread: StepValues | None = None
        """The last step, if its values are still on their way from the device."""
        self.seconds = 0.0
        self.images_sha256 = None if images is None else images.manifest_sha256
        self.checkpoint = Checkpoint(folder)
        self._resume(images)

    def _resume(self, images: ImageCache | None) -> None:
        """Load the checkpoint, if there is one. Raises PipelineError if it is damaged or of another image cache."""
        try:
            state = self.checkpoint.read(self.device, len(self.sampler))
            if state is None:
                return
            self.optimizer.load_state_dict(state)
            self.step, self.epoch_loss, self.seconds = state["step"], state["epoch_loss"], state["seconds"]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)[:200]
            raise PipelineError(
                f"cannot resume from {self.checkpoint.path} ({reason}): the checkpoint or a table next to it is "
                f"damaged; remove {self.folder} to start from step 0"
            ) from error
        before = state.get(IMAGES)
        if images is not None and before not in {None, self.images_sha256}:
            raise PipelineError(
                f"{images.name} is not the image cache that this run began with: give that one, leave `images` out, or "
                f"remove {self.folder} to start from step 0"
            )
        self.images_sha256 = before or self.images_sha256

    def save(self) -> None:
        """Write a checkpoint on rank 0. Raises PipelineError, and keeps the last one, if a weight is not finite."""
        if collective.rank() > 0:
            return
        self._check_weights()
        progress = {
            "step": self.step,
            "epoch_loss": self.epoch_loss,
            "seconds": self.seconds,
            IMAGES: self.images_sha256,
        }
        self.checkpoint.write({**self.optimizer.state_dict(), **progress})

    def fit(
        self,
        workers: int | None,
        checkpoint_every_s: float,
        stopped: threading.Event,
        task: Task,
        progress: Progress | None = None,
    ) -> bool:
        """Train to the end, or until `stopped` is set. Returns whether the end was reached."""
        measures = workers is None and self.device.type in MEASURES_WORKERS
        batches = Batches(self.data, self.sampler, workers or 0, self.device)
        waits = Waits()
        begun_at, counted = self.step, Waits()
        saved = begin = time.monotonic()
        while self.step < self.total_steps:
            epoch, first_batch = divmod(self.step, len(self.sampler))
            self.sampler.set_epoch(epoch, first_batch)
            self.network.train()
            for batch in waits.before_each("data", batches):
                with waits.while_at("network"):
                    self._train_step(batch, epoch)
                self.step += 1
                if self.step % len(self.sampler) == 0:
                    self._read_values()
                    with waits.while_at("validation"):
                        self._end_epoch(epoch)
                task.update(
                    1,
                    img_each=self.images_per_step,
                    epoch=f"{epoch + 1}/{self.options.epochs}",
                    waits_for=waits,
                    **({} if self.loss_value is None else {"loss": self.loss_value}),
                )
                now = time.monotonic()
                stop = collective.any_of(stopped.is_set())
                if stop or now - saved > checkpoint_every_s:
                    self.seconds, begin = self.seconds + now - begin, now
                    self._read_values()
                    with waits.while_at("writing"):
                        self.save()
                    saved = now
                if stop:
                    collective.barrier()  # torchrun ends the other ranks as soon as one exits: rank 0 may be writing
                    return False
                if measures and self.step == begun_at + 1:  # the first step is slower than the others
                    self._read_values()
                    counted = Waits(waits)
                if measures and self.step == begun_at + 1 + MEASURED_STEPS:
                    self._read_values()
                    measures = False
                    read_s, step_s = (waits[name] - counted.get(name, 0.0) for name in ("data", "network"))
                    chosen = workers_for(read_s, step_s, collective.processes_here())
                    if progress is not None:
                        progress.note(
                            f"reading a batch takes {read_s / MEASURED_STEPS:.3f} s and a step "
                            f"{step_s / MEASURED_STEPS:.3f} s: {chosen} loader processes (choose with `workers`)"
                        )
                    batches = Batches(self.data, self.sampler, chosen, self.device)
                    break  # go on in this epoch
        self._read_values()
        self.seconds += time.monotonic() - begin
        return True

    def _train_step(self, batch: Item, epoch: int) -> None:
        """Update the weights with one batch.

        Raises PipelineError if the loss or its gradient is not finite: before the update, or on a GPU after the next
        one, since reading them would wait for the GPU. The last checkpoint is kept.
        """
        # Dropout and the like depend on seed, step and rank alone, so that a resumed run draws the same numbers
        key = [self.options.seed, self.step, collective.rank()]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        learning_rate = self.optimizer.learning_rate
        self.optimizer.zero_grad()
        parts = self.options.accumulate
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in split_batch(batch, parts):
            terms = self.forward.terms(part)
            self.optimizer.backward(terms["loss"] / parts)
            total = total + torch.stack([value.detach().double() for value in terms.values()])
        values = torch.cat([total / parts, self.optimizer.clip_gradients().double()[None]])
        before = self.unread
        self.unread = StepValues.of(self.step, epoch, learning_rate, tuple(terms), values)
        if not self.defers:
            self._read_values()
        self.optimizer.step()
        if before is not None and self.defers:
            self._check_and_log(before)

    def _read_values(self) -> None:
        """Check and log the last step, if it is not yet."""
        if self.unread is not None:
            values, self.unread = self.unread, None
            self._check_and_log(values)

    def _check_and_log(self, values: StepValues) -> None:
        row, norm = values.read()
        if not math.isfinite(row["loss"]):
            self._fail(f"the loss is {row['loss']}", values.step)
        if not self.optimizer.can_step(norm):
            self._fail(f"the gradient norm is {norm}", values.step)
        self.loss_value = row["loss"]
        self.epoch_loss += row["loss"]
        if values.step % self.log_every == 0:
            self.checkpoint.steps.rows.append({"step": values.step, "epoch": values.epoch, **row})

    def _check_weights(self) -> None:
        name = self.optimizer.nonfinite_weight()
        if name is not None:
            self._fail(f"{name} is not finite", self.step - 1)

    def _fail(self, problem: str, step: int) -> NoReturn:
        """Raise PipelineError naming the samples of the step's batch."""
        indices = self.sampler.batch_indices(*divmod(step, len(self.sampler)))
        ids = [self.data.sample_id(int(index)) for index in indices[:MAX_NAMED_SAMPLES]]
        more = f" and {len(indices) - MAX_NAMED_SAMPLES} more" if len(indices) > MAX_NAMED_SAMPLES else ""
        raise PipelineError(
            f"{problem} at step {step} (samples {', '.join(ids)}{more}): lower `learning_rate`, use "
            "`precision=float32`, or check these samples; the last checkpoint is kept"
        )

    def _end_epoch(self, epoch: int) -> None:
        """Validate on rank 0 and add a row to the table of epochs."""
        row: dict[str, Any] = {"epoch": epoch, "train_loss": self.epoch_loss / len(self.sampler)}
        self.epoch_loss = 0.0
        if self.validation and collective.rank() == 0:
            metrics = validate(
                self.optimizer.trained_network.eval(),
                Reader(self.edges_m.to(self.device), self.options.head, self.recipe.readout),
                self.validation.source,
                self.validation.split,
                self.view,
                self.options.validation_images,
                self.device,
                ALIGN[self.recipe.depth_space],
            )
            row |= {f"val_{name}": value for name, value in metrics.items()}
            self.network.train()
        self.checkpoint.epochs.rows.append(row)

    def finish(self) -> dict[str, Any]:
        """Write weights, tables and metrics, and remove the checkpoint. Returns the metrics."""
        self._check_weights()
        self.checkpoint.write_tables()
        save_weights(self.optimizer.trained_network, self.folder / WEIGHTS)
        images = self.total_steps * self.images_per_step
        metrics = {
            "epochs": self.options.epochs,
            "steps": self.total_steps,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "seconds": round(self.seconds, 2),
            "images_per_second": round(images / max(self.seconds, 1e-9), 2),
            "peak_memory_mb": round(peak_memory_bytes(self.device) / 2**20, 1),
            "device": self.device.type,
            "processes": collective.world_size(),
            "last_epoch": {name: value for name, value in self.checkpoint.epochs.rows[-1].items() if name != "epoch"},
        }
        write_durably(self.folder / METRICS, pretty_json(metrics))
        self.checkpoint.remove()
        return metrics
