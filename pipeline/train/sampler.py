"""Batch sampler of a run: the order of samples depends on seed and epoch, not on workers or interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yield one rank's part of each batch as (epoch, index) keys, in an order drawn from seed and epoch.

    A batch is split into `accumulate` equal parts, and each part into `world_size` equal pieces, one a rank. So a batch
    holds the same samples for any number of processes. An incomplete last batch is dropped.

    Args:
        samples: number of samples in the split.
        batch_size: samples in a batch, over all ranks.
        seed: seed of the order.
        accumulate: parts in which a batch goes through the network.
        rank: rank of this process.
        world_size: number of processes.

    Raises PipelineError where a batch cannot be split into equal pieces.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, *, accumulate: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        pieces = accumulate * world_size
        if batch_size % pieces:
            raise PipelineError(
                f"`batch_size={batch_size}` must be a multiple of {pieces}, which is `accumulate={accumulate}` times "
                f"{world_size} processes"
            )
        if samples < batch_size and pieces > 1:
            raise PipelineError(
                f"`batch_size={batch_size}` is more than the {samples} samples of the split, which then have to be "
                f"split into {pieces} equal pieces: use a smaller `batch_size`"
            )
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.accumulate, self.rank, self.world_size = accumulate, rank, world_size
        self.epoch = 0
        self.first_batch = 0
        self._permutation: tuple[int, NDArray[np.int64]] | None = None

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch, and the batch to start from when a run resumes."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return max(1, self.samples // self.batch_size)

    def batch_indices(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """Return the sample indices of a whole batch, over all ranks."""
        return self._indices(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _indices(self, epoch: int) -> NDArray[np.int64]:
        """All indices in the epoch's order, cached for one epoch: permuting ten million takes half a second."""
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return self._permutation[1]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first_batch, len(self)):
            pieces = self.batch_indices(self.epoch, batch).reshape(self.accumulate, self.world_size, -1)
            yield [(self.epoch, int(index)) for index in pieces[:, self.rank].reshape(-1)]
