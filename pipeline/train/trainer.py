"""The loop of stage two, and all that it needs to go on as if it had never stopped.

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
from ..losses.base import StoredMaps
from ..networks.predict import validate
from ..networks.pretrained import load_encoder_weights
from ..networks.registry import build_student
from ..networks.saved_run import METRICS, WEIGHTS, normalise, save_weights
from ..sources.view import View
from ..store.format.sparse import weight_table
from .augment import by_table
from .checkpoint import Checkpoint
from .dataset import Augmentation, TrainingData, cut
from .loader import Batches
from .optimizer import Optimizer
from .sampler import EpochBatchSampler

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from ..common.progress import Task
    from ..losses.base import DepthLoss
    from ..sources.base import Sample, Source
    from ..store import Store
    from ..store.images.reader import ImageCache
    from .config import Recipe
    from .dataset import Item

IMAGES = "images_manifest_sha256"
"""In a checkpoint: which image cache a run read from, so that another does not go on with it."""
MAX_NAMED = 32
"""So many samples of a batch that went wrong are named."""
MAX_LOGGED_STEPS = 20_000
"""A longer run logs every n-th step, so that its table does not grow with the data set."""


class Validation(NamedTuple):
    """What each epoch is judged on."""

    source: Source
    split: str


class Training:
    """The state of one run, which `checkpoint.pt` holds whole."""

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        recipe: Recipe,
        loss: DepthLoss,
        store: Store | None,
        flips: Store | None,
        images: ImageCache | None,
        validation: Validation | None,
        device: torch.device,
        folder: Path,
    ) -> None:
        options = recipe.options
        self.recipe, self.options, self.device, self.folder = recipe, options, device, folder
        self.validation = validation
        self.view = View.parse(recipe.view)
        torch.manual_seed(options.seed)
        self.loss = loss
        student = build_student(options.student, len(recipe.bin_edges_m) - 1)
        if options.encoder_weights is not None:
            sha256 = load_encoder_weights(student, options.encoder_weights)
            if sha256 != recipe.encoder_sha256:
                raise PipelineError(f"{options.encoder_weights} changed while it was read: run the same command again")
        collective.share_norms(student)
        self.network = student.to(device)
        self.edges_m = torch.tensor(recipe.bin_edges_m, dtype=torch.float64)
        augmentation = Augmentation(recipe.crop_px, recipe.rotate_deg, options.flip, options.colour)
        self.sampler = EpochBatchSampler(
            len(samples),
            options.batch_size,
            options.seed,
            accumulate=options.accumulate,
            rank=collective.rank(),
            world_size=collective.world_size(),
        )
        self.data = TrainingData(
            source,
            samples,
            self.view,
            store=store,
            maps_px=None,
            augmentation=augmentation,
            seed=options.seed,
            relative=recipe.relative,
            flips=flips,
            images=images,
        )
        if recipe.stored_maps:
            assert store is not None
            self.data.maps_px = self._logits_px()
            self.weights = torch.from_numpy(weight_table(store.spec.weight_bits)).to(device)
        self.total_steps = options.epochs * len(self.sampler)
        self.batch_images = min(options.batch_size, len(samples))  # a smaller split is one smaller batch
        self.optimizer = Optimizer(self.network, options, self.total_steps, device)
        self.log_every = -(-self.total_steps // MAX_LOGGED_STEPS)
        self.step = 0
        self.epoch_loss = 0.0
        self.seconds = 0.0
        self.images_sha256 = None if images is None else images.manifest_sha256
        self.checkpoint = Checkpoint(folder)
        self._go_on(images)

    def _go_on(self, images: ImageCache | None) -> None:
        """Take up the checkpoint, if there is one. Raises PipelineError for one that does not serve."""
        try:
            state = self.checkpoint.read(self.device, len(self.sampler))
            if state is None:
                return
            self.optimizer.load_state_dict(state)
            self.step, self.epoch_loss, self.seconds = state["step"], state["epoch_loss"], state["seconds"]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            what = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)[:200]
            raise PipelineError(
                f"{self.checkpoint.path}: cannot go on from it ({what}): it or the tables beside it are cut or "
                f"damaged; remove {self.folder} to start from step 0"
            ) from error
        before = state.get(IMAGES)
        if images is not None and before not in {None, self.images_sha256}:
            raise PipelineError(
                f"{images.name} holds other images than the image cache that this run began with: give that one, "
                f"leave `images` out, or remove {self.folder} to start from step 0"
            )
        self.images_sha256 = before or self.images_sha256

    def _logits_px(self) -> tuple[int, int]:
        """(h, w) of the student's logits for a training crop."""
        height, width = self.data[0, 0].image.shape[1:]
        self.network.eval()
        with torch.inference_mode():
            logits = self.network(torch.zeros(1, 3, height, width, device=self.device))
        return logits.shape[2], logits.shape[3]

    def save(self) -> None:
        """Write the checkpoint. Raises PipelineError, and keeps the last one, where weights are no longer finite."""
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

    def train(self, workers: int | None, every_s: float, stopped: threading.Event, task: Task) -> bool:
        """Train to the end, or until `stopped` is set, with a checkpoint every so many seconds.

        Returns whether the end was reached.
        """
        batches = Batches(self.data, self.sampler, workers, self.device)
        waits = Waits()
        images, epochs = self.batch_images, self.options.epochs
        saved = begin = time.monotonic()
        while self.step < self.total_steps:
            epoch, first_batch = divmod(self.step, len(self.sampler))
            self.sampler.set_epoch(epoch, first_batch)
            self.network.train()
            for batch in waits.before_each("data", batches):
                with waits.while_at("network"):
                    row = self._one_step(batch)
                self.epoch_loss += row["loss"]
                if self.step % self.log_every == 0:
                    self.checkpoint.steps.rows.append({"step": self.step, "epoch": epoch, **row})
                self.step += 1
                task.update(1, img_each=images, epoch=f"{epoch + 1}/{epochs}", loss=row["loss"], waits_for=waits)
                if self.step % len(self.sampler) == 0:
                    with waits.while_at("validation"):
                        self._end_epoch(epoch)
                now = time.monotonic()
                stop = collective.any_of(stopped.is_set())
                if stop or now - saved > every_s:
                    self.seconds, begin = self.seconds + now - begin, now
                    with waits.while_at("writing"):
                        self.save()
                    saved = now
                if stop:
                    collective.barrier()  # once one process has ended, torchrun does not let the first write on
                    return False
        self.seconds += time.monotonic() - begin
        return True

    def _one_step(self, batch: Item) -> dict[str, float]:
        """Move the weights by one batch; returns what the table says of it.

        Raises PipelineError, before any weight has moved, where the loss or its gradient is not finite.
        """
        # What a network draws, such as dropout, depends on seed and step alone, like all that is drawn here
        key = [self.options.seed, self.step, collective.rank()]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        learning_rate = self.optimizer.learning_rate
        self.optimizer.zero_grad()
        parts = self.options.accumulate
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in cut(batch, parts):
            terms = self._terms(part)
            self.optimizer.backward(terms["loss"] / parts)
            total = total + torch.stack([value.detach().double() for value in terms.values()])
        *values, norm = torch.cat([total / parts, self.optimizer.clip_gradients().double()[None]]).tolist()
        row = dict(zip(terms, values, strict=True))
        if not math.isfinite(row["loss"]):
            self._refuse(f"the loss is {row['loss']}", self.step)
        if not self.optimizer.can_step(norm):
            self._refuse(f"the gradient's norm is {norm}", self.step)
        self.optimizer.step()
        return {"learning_rate": learning_rate, **row}

    def _terms(self, part: Item) -> dict[str, Tensor]:
        """The loss of a part of a batch, and its terms."""
        on_device = [None if one is None else one.to(self.device, non_blocking=True) for one in part]
        part = type(part)(*on_device)  # type: ignore[arg-type]  # image and depth are never None
        maps = None
        if self.recipe.stored_maps:
            assert part.gap is not None
            assert part.weight is not None
            assert part.tail is not None
            maps = StoredMaps(part.gap, part.weight, part.tail, len(self.edges_m) - 1, self.weights)
        with self.optimizer.autocast():
            logits = self.network(by_table(part.image, normalise(part.colours)))
        return self.loss.terms(logits, part.target_depth_m, maps)

    def _check_weights(self) -> None:
        broken = self.optimizer.nonfinite_weight()
        if broken is not None:
            self._refuse(f"{broken} is no longer finite", self.step - 1)

    def _refuse(self, what: str, step: int) -> NoReturn:
        numbers = self.sampler.batch_indices(*divmod(step, len(self.sampler)))
        ids = [self.data.samples[number].id for number in numbers[:MAX_NAMED]]
        more = f" and {len(numbers) - MAX_NAMED} more" if len(numbers) > MAX_NAMED else ""
        raise PipelineError(
            f"{what} at step {step} (samples {', '.join(ids)}{more}): lower `learning_rate`, or use `precision` "
            "float32, or look at these samples; the last checkpoint is kept"
        )

    def _end_epoch(self, epoch: int) -> None:
        row: dict[str, Any] = {"epoch": epoch, "train_loss": self.epoch_loss / len(self.sampler)}
        self.epoch_loss = 0.0
        if self.validation and collective.rank() == 0:
            network = self.optimizer.trained_network.eval()
            source, split = self.validation
            count = self.options.validation_images
            edges_m = self.edges_m.to(self.device)
            align = ALIGN[self.recipe.depth_space]
            found = validate(network, edges_m, source, split, self.view, count, self.device, align)
            row |= {f"val_{name}": value for name, value in found.items()}
            self.network.train()
        self.checkpoint.epochs.rows.append(row)

    def finish(self) -> dict[str, Any]:
        """Write weights, tables and metrics, and remove the checkpoint."""
        self._check_weights()
        self.checkpoint.write_tables()
        save_weights(self.optimizer.trained_network, self.folder / WEIGHTS)
        images = self.total_steps * self.batch_images
        metrics = {
            "epochs": self.options.epochs,
            "steps": self.total_steps,
            "parameters": sum(part.numel() for part in self.network.parameters()),
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
