"""Several data sets to train on at once, each with its own source, store and view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from ..errors import PipelineError
from .dataset import Item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..sources.base import Source
    from ..sources.sample_table import SampleTable
    from ..store import Store
    from .dataset import TrainingData


class DataSet(NamedTuple):
    """One of several data sets to train on."""

    source: Source
    split: str
    """Name of a split of the source, or a list file."""
    store: Store
    """Cached teacher of the split's images."""
    weight: float | None = None
    """Relative probability of its samples together; None is n**0.2 for n samples."""


def data_sets(given: Sequence[Sequence[Any]]) -> list[DataSet]:
    """Return data sets given as (source, split, store) or (source, split, store, weight).

    Raises PipelineError for an entry of another length.
    """
    for entry in given:
        if not isinstance(entry, tuple | list) or len(entry) not in {3, 4}:
            raise PipelineError(
                f"`data`: {str(entry)[:200]!r}, expected a list of (source, split, store) or (source, split, store, "
                "weight)"
            )
    return [DataSet(*entry) for entry in given]


class Part(NamedTuple):
    """The samples of one data set that are trained on."""

    source: Source
    samples: SampleTable
    store: Store | None
    """None learns from ground truth."""
    weight: float | None = None


class MixedData(Dataset[Item]):
    """Samples of several data sets, with keys (epoch, draw) from `MixedBatchSampler`.

    The index of a sample is its index in its data set plus the number of samples in those before. Each draw augments a
    sample differently, also within an epoch.

    Args:
        parts: the data sets; their crops have one size.
        seed: seed of the augmentations.
    """

    def __init__(self, parts: Sequence[TrainingData], seed: int) -> None:
        self.parts = parts
        self.seed = seed
        self.ends = np.cumsum([len(part) for part in parts])
        """Index after the last sample of each data set."""

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, draw = key
        times, index = divmod(draw, len(self))
        part, own_index = self._find(index)
        return part.item(own_index, np.random.default_rng([self.seed, epoch, index, times]))

    def sample_id(self, index: int) -> str:
        """Return the id of a sample and the last part of the name of its store, for errors."""
        part, own_index = self._find(index)
        assert part.store is not None
        return f"{part.sample_id(own_index)} of {part.store.name.rpartition('/')[2]}"

    def _find(self, index: int) -> tuple[TrainingData, int]:
        """Return the data set of a sample, and its index there."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        part = self.parts[number]
        return part, index - int(self.ends[number]) + len(part)
