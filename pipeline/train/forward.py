"""Forward pass of a training step: from a part of a batch to the objective and its terms.

Shape legend: B batch, K bins, H W pixels of the training crop, h w of the logits.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..losses.base import LazyLogits, StoredMaps
from ..losses.objective import StepInputs
from ..networks.saved_run import normalize
from .augment import apply_tables
from .compiled import compile_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from ..losses.base import AnyLogits
    from ..losses.objective import Objective
    from ..networks.registry import Student
    from .dataset import Item


class Forward:
    """The student and its objective.

    Args:
        network: on its device.
        objective: on the same device.
        autocast: returns the context for the network.
        weight_table: table of the codes of stored maps (`StoredMaps`), on the device; None for maps from depth.
        fuse_head: whether the loss computes the network's last layer.
        compiled: whether to compile the network.
    """

    def __init__(
        self,
        network: Student,
        objective: Objective,
        autocast: Callable[[], torch.autocast],
        weight_table: Tensor | None,
        device: torch.device,
        *,
        fuse_head: bool,
        compiled: bool,
    ) -> None:
        self.network, self.objective, self.device = network, objective, device
        self.autocast, self.weight_table = autocast, weight_table
        self.fuse_head = fuse_head
        self.call: Callable[[Tensor], Tensor] = network.features if self.fuse_head else network
        if compiled:
            self.call = compile_network(self.call)

    def terms(self, part: Item) -> dict[str, Tensor]:
        """Return the loss of a part of a batch, and its terms."""
        part = part.to(self.device)
        inputs = StepInputs(
            self._logits(apply_tables(part.image, normalize(part.color_tables))),
            part.target_depth_m,
            self._maps(part),
            part.signals or {},
            read_images=lambda: apply_tables(part.image, part.color_tables),
            logits_of=self._second_logits,
        )
        return self.objective.terms(inputs)

    def _logits(self, normalized: Tensor) -> AnyLogits:
        with self.autocast():
            output = self.call(normalized)
        return LazyLogits.of(self.network.head, output) if self.fuse_head else output

    def _second_logits(self, images: Tensor) -> AnyLogits:
        with fixed_statistics(self.network):
            return self._logits(normalize(images))

    def _maps(self, part: Item) -> StoredMaps | None:
        if self.weight_table is None:
            return None
        assert part.gap is not None
        assert part.weight is not None
        assert part.tail is not None
        return StoredMaps(part.gap, part.weight, part.tail, self.network.head.out_channels, self.weight_table)


@contextmanager
def fixed_statistics(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms, which otherwise would be half those of jittered images."""
    norms = [norm for norm in network.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - the base class of all
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, batches in before:
        norm.momentum, norm.num_batches_tracked = 0.0, None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum, norm.num_batches_tracked = momentum, batches
