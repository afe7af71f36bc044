"""Read the loss of a step from the device, on a GPU one step later, so that the next step is queued meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor


class StepValues(NamedTuple):
    """Values of one step, on their way to the host."""

    step: int
    epoch: int
    learning_rate: float
    names: tuple[str, ...]
    """Of the loss and its terms."""
    values: Tensor
    """(N + 1,) float64 on the host: loss, terms, and the norm of the gradient."""
    copied: torch.cuda.Event | None
    """When `values` has arrived; None if it has."""

    @classmethod
    def of(cls, step: int, epoch: int, learning_rate: float, names: tuple[str, ...], values: Tensor) -> StepValues:
        """Start to copy `values` (N + 1,) from the device."""
        if not values.is_cuda:
            return cls(step, epoch, learning_rate, names, values, None)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return cls(step, epoch, learning_rate, names, host, copied)

    def read(self) -> tuple[dict[str, float], float]:
        """Wait for the values; return learning rate, loss and its terms by name, and the norm."""
        if self.copied is not None:
            self.copied.synchronize()
        *terms, norm = self.values.tolist()
        return {"learning_rate": self.learning_rate, **dict(zip(self.names, terms, strict=True))}, norm
