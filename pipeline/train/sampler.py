"""Batch sampler of a run: the order of samples depends on seed and epoch, not on workers or interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
        self._draws: tuple[int, NDArray[np.int64]] | None = None

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch, and the batch to start from when a run resumes."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return max(1, self.samples // self.batch_size)

    def batch_indices(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """Return the sample indices of a whole batch, over all ranks."""
        return self._draws_of_batch(epoch, batch) % self.samples

    def _draws_of_batch(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """Draws of a batch, cached for one epoch: permuting ten million samples takes half a second."""
        if self._draws is None or self._draws[0] != epoch:
            self._draws = epoch, self._draw(np.random.default_rng([self.seed, epoch]))
        return self._draws[1][batch * self.batch_size : (batch + 1) * self.batch_size]

    def _draw(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Draw the order of an epoch."""
        return random.permutation(self.samples)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first_batch, len(self)):
            pieces = self._draws_of_batch(self.epoch, batch).reshape(self.accumulate, self.world_size, -1)
            yield [(self.epoch, int(index)) for index in pieces[:, self.rank].reshape(-1)]


class MixedBatchSampler(EpochBatchSampler):
    """Yield keys of several data sets: an epoch has as many draws as they have samples together.

    Each draw takes a data set by its probability. A data set gives all its samples in random order before it gives one
    again; the order depends on seed and epoch alone. A key is (epoch, draw), where draw is the sample's index over all
    data sets plus `samples` for each time that the epoch already gave the sample.

    Args:
        sizes: number of samples in each data set.
        probabilities: of each data set; they sum to 1.
        batch_size, seed, accumulate, rank, world_size: as for EpochBatchSampler.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        probabilities: Sequence[float],
        batch_size: int,
        seed: int,
        *,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(sum(sizes), batch_size, seed, accumulate=accumulate, rank=rank, world_size=world_size)
        self.sizes, self.probabilities = sizes, probabilities

    def _draw(self, random: np.random.Generator) -> NDArray[np.int64]:
        upper = np.cumsum(self.probabilities)[:-1]
        # In place, to keep one number for each draw: first ~data set, which is negative, then its sample
        draws = ~np.searchsorted(upper, random.random(self.samples), side="right").astype(np.int64, copy=False)
        first = 0
        for number, size in enumerate(self.sizes):
            mine = draws == ~number
            draws[mine] = first + self._draws_of_one(size, int(mine.sum()), random)
            first += size
        return draws

    def _draws_of_one(self, size: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Draw `count` of `size` samples: one permutation after the other, each `samples` higher than the last."""
        rounds = -(-count // size)
        indices = random.permuted(np.broadcast_to(np.arange(size), (rounds, size)), axis=1)
        indices += self.samples * np.arange(rounds)[:, None]
        drawn: NDArray[np.int64] = indices.reshape(-1)[:count]
        return drawn
