"""AdamW with a one-cycle schedule, gradient clipping, mixed precision and an average of the weights (EMA)."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..common.device import autocast_type
from ..common.distributed import average_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from .options import TrainOptions

# As in the released TIE-KD configs
BETAS = (0.95, 0.99)
DIV_FACTOR = 25
FINAL_DIV_FACTOR = 100
INITIAL_LOSS_SCALE = 65536.0
"""Of float16; GradScaler halves it after each overflow."""
MIN_LOSS_SCALE = 1.0
"""A gradient that overflows at a smaller scale is not the scale's fault."""


class Optimizer:
    """Update a network's weights.

    One step: `zero_grad`; `autocast` and `backward` for each part of the batch; `clip_gradients`; `step`.

    Args:
        network: network to train, on its device.
        options: learning rate, weight decay, clipping, precision and EMA decay.
        total_steps: length of the schedule.
        device: device of the network.
        objective: its parameters, of terms that have any, are trained with the network. They are not averaged.

    Attributes:
        average: the averaged weights (`average.module`), or None without EMA.

    Raises PipelineError for an unknown precision.
    """

    def __init__(
        self,
        network: nn.Module,
        options: TrainOptions,
        total_steps: int,
        device: torch.device,
        objective: nn.Module | None = None,
    ) -> None:
        self.network, self.device = network, device
        self.objective = nn.Module() if objective is None else objective
        self.parameters = [*network.parameters(), *self.objective.parameters()]
        self.clip_norm = options.clip_norm
        self.autocast_dtype = autocast_type(options.precision, device)
        # fused takes a third of foreach's time on a CPU. A checkpoint written with foreach resumes with foreach.
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, betas=BETAS, weight_decay=options.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.adamw,
            options.learning_rate,
            total_steps=total_steps + 1,
            div_factor=DIV_FACTOR,
            final_div_factor=FINAL_DIV_FACTOR,
            cycle_momentum=False,
        )
        self.scaler = torch.amp.GradScaler(
            device.type, INITIAL_LOSS_SCALE, enabled=self.autocast_dtype is torch.float16
        )
        self.decay = options.ema
        self.average: AveragedModel | None = None
        if options.ema:
            # Also average the buffers: the latest running statistics of a norm, which AveragedModel copies by default,
            # do not fit the averaged weights.
            self.average = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True)

    @property
    def trained_network(self) -> nn.Module:
        """The network to validate and save: the averaged weights with EMA, else the current ones."""
        return self.network if self.average is None else self.average.module

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def autocast(self) -> torch.autocast:
        """Context for the forward pass."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one part of the batch, whose loss is already divided by the number of parts."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch does not annotate it

    def clip_gradients(self) -> Tensor:
        """Average the gradients over ranks and clip their norm; returns the norm before clipping."""
        average_gradients(self.parameters)
        self.scaler.unscale_(self.adamw)
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)

    def can_step(self, norm: float) -> bool:
        """Whether `step` may follow gradients of this norm: if it is finite, or a float16 overflow.

        After an overflow, `step` keeps the weights and lowers the loss scale, down to `MIN_LOSS_SCALE`.
        """
        return math.isfinite(norm) or (self.scaler.is_enabled() and self.scaler.get_scale() >= MIN_LOSS_SCALE)

    def step(self) -> None:
        """Update the weights, their average and the learning rate."""
        self.scaler.step(self.adamw)
        self.scaler.update()
        with warnings.catch_warnings():
            # GradScaler may skip float16's first step, and the schedule then warns that it is ahead
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def nonfinite_weight(self) -> str | None:
        """Name of a weight or running statistic that is not finite, or None."""
        state = {**self.network.state_dict(), **self.objective.state_dict()}
        return next((name for name, value in state.items() if not bool(value.isfinite().all())), None)

    def state_dict(self) -> dict[str, Any]:
        """State that the next step depends on. The keys are those of checkpoints on disk."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.adamw.state_dict(),
            "schedule": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        of_terms = self.objective.state_dict()
        return {**state, "objective": of_terms} if of_terms else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.objective.load_state_dict(state.get("objective", {}))
        self.adamw.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _average(self, averages: Any, weights: Any, _: Any) -> None:  # noqa: ANN401 - AveragedModel's call
        """EMA with a decay that grows from 2/11 to `decay`, so that a short run forgets its initial weights."""
        assert self.average is not None
        count = int(self.average.n_averaged)
        get_ema_multi_avg_fn(min(self.decay, (1 + count) / (10 + count)))(averages, weights, count)  # type: ignore[no-untyped-call]
