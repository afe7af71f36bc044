"""In which order a run sees its samples: by seed and epoch alone, whoever of several processes takes which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, number) in an order that depends on seed and epoch alone.

    Of each batch it yields the share of one process: of each of the batch's equal parts, which go through the
    network one after another, an equal piece.

    Args:
        samples: in the split.
        batch_size: samples of a batch, over all processes.
        seed: decides the order.
        parts: how many a batch has.
        process: number of this process, from 0.
        processes: how many share each batch.

    Raises PipelineError where a batch cannot be divided so.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, *, parts: int = 1, process: int = 0, processes: int = 1
    ) -> None:
        pieces = parts * processes
        if batch_size % pieces:
            raise PipelineError(
                f"`batch_size={batch_size}`: expected a multiple of {pieces}, that is of `accumulate={parts}` times "
                f"the number of processes, {processes}"
            )
        if samples < batch_size and pieces > 1:
            raise PipelineError(
                f"`batch_size={batch_size}` is more than the {samples} samples of the split, which cannot be divided "
                f"by {pieces} then: choose a smaller"
            )
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.parts, self.process, self.processes = parts, process, processes
        self.epoch = 0
        self.first_batch = 0
        self._drawn: tuple[int, NDArray[np.int64]] | None = None

    def start_at(self, epoch: int, first_batch: int) -> None:
        """Choose the epoch, and the batch to begin with (after an interruption)."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return max(1, self.samples // self.batch_size)

    def numbers(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """Numbers of the samples of a whole batch, over all processes."""
        return self._order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """All numbers as the epoch has them. To draw ten million takes half a second, so the last one is kept."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return self._drawn[1]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first_batch, len(self)):
            pieces = self.numbers(self.epoch, batch).reshape(self.parts, self.processes, -1)
            yield [(self.epoch, int(number)) for number in pieces[:, self.process].reshape(-1)]
