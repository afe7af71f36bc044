"""How weights move: AdamW on a one-cycle schedule, clipped gradients, mixed precision, a moving average of weights."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..common.device import autocast_type
from ..common.distributed import average_gradients

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .options import TrainOptions

BETAS = (0.95, 0.99)
DIV_FACTOR = 25
FINAL_DIV_FACTOR = 100
FIRST_SCALE = 65536.0
"""float16's gradients are made so many times as large, and half as many after each overflow."""
LEAST_SCALE = 1.0
"""What still overflows below it is not the scale's fault."""


class Optimiser:
    """Moves a network's weights.

    A step is `begin`, then `autocast` and `backward` for each part of the batch, then `clip`, then `move`.

    Args:
        network: what is trained, on its device.
        options: learning rate, weight decay, clipping, precision and decay of the average.
        total_steps: length of the schedule.
        device: the network's.

    Attributes:
        average: holds the average of the weights as `average.module`, or None.

    Raises PipelineError for an unknown precision.
    """

    def __init__(self, network: nn.Module, options: TrainOptions, total_steps: int, device: torch.device) -> None:
        self.network, self.device = network, device
        self.clip_norm = options.clip_norm
        self.cast = autocast_type(options.precision, device)
        # fused: a third of foreach's time on a CPU. A state that foreach has left goes on with foreach, bit for bit.
        self.adamw = torch.optim.AdamW(
            network.parameters(), lr=options.learning_rate, betas=BETAS, weight_decay=options.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.adamw,
            options.learning_rate,
            total_steps=total_steps + 1,
            div_factor=DIV_FACTOR,
            final_div_factor=FINAL_DIV_FACTOR,
            cycle_momentum=False,
        )
        self.scaler = torch.amp.GradScaler(device.type, FIRST_SCALE, enabled=self.cast is torch.float16)
        self.decay = options.ema
        self.average: AveragedModel | None = None
        if options.ema:
            # Buffers are averaged like weights: a norm's running statistics are of what the weights of their time
            # gave. The latest ones, which AveragedModel would otherwise copy, do not fit older weights.
            self.average = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True)

    @property
    def result(self) -> nn.Module:
        """The network that training has come to: the average where there is one."""
        return self.network if self.average is None else self.average.module

    @property
    def learning_rate(self) -> float:
        """That of the coming step."""
        return float(self.schedule.get_last_lr()[0])

    def begin(self) -> None:
        """Forget the last step's gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def autocast(self) -> torch.autocast:
        """Context in which the network runs."""
        return torch.autocast(self.device.type, dtype=self.cast, enabled=self.cast is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part's share of the loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch does not annotate it

    def clip(self) -> Tensor:
        """Put the processes' gradients together, and limit their norm; returns the norm before that."""
        average_gradients(self.network.parameters())
        self.scaler.unscale_(self.adamw)
        return torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)

    def tolerates(self, norm: float) -> bool:
        """Whether `move` can be called after gradients of this norm.

        It can where they are finite. With float16 some steps overflow; `move` then leaves the weights and lowers
        the scale, unless the scale is low already.
        """
        return math.isfinite(norm) or (self.scaler.is_enabled() and self.scaler.get_scale() >= LEAST_SCALE)

    def move(self) -> None:
        """Change the weights, their average, and the learning rate."""
        self.scaler.step(self.adamw)
        self.scaler.update()
        with warnings.catch_warnings():
            # float16's very first step may overflow, and is left out: the schedule counts it all the same
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def broken_weight(self) -> str | None:
        """Name of a weight or running statistic that is not finite, if there is one: such a state must not be kept."""
        state = self.network.state_dict().items()
        return next((name for name, value in state if not bool(value.isfinite().all())), None)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.adamw.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.adamw.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _average(self, averages: Any, weights: Any, _: Any) -> None:  # noqa: ANN401 - AveragedModel's call
        """Average with a decay that grows from 2/11 to `decay`, so that a short run forgets how it began."""
        assert self.average is not None
        count = int(self.average.n_averaged)
        get_ema_multi_avg_fn(min(self.decay, (1 + count) / (10 + count)))(averages, weights, count)  # type: ignore[no-untyped-call]
