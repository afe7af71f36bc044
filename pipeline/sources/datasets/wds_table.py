"""The rows of a split of tar shards as a few arrays, as in `sample_table`: 60 bytes and the id for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import PipelineError
from ..base import Sample
from ..readers.arrays import ARRAY_SUFFIXES
from ..readers.images import IMAGE_SUFFIXES
from ..sample_table import SampleTable
from .wds_rows import NO_TRUTH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .wds_rows import ShardRows


class WdsTable(SampleTable):
    """Rows of shards. A row's paths name its shard and its bytes in it: `ROOT/train-000.tar[1536:22016]/a/0001.jpg`.

    Raises PipelineError for an id that is in two shards.
    """

    def __init__(self, root: Path, shards: Sequence[str], rows: Sequence[ShardRows], truth: str) -> None:
        self._root, self._shards, self._truth = str(root), list(shards), truth
        self._ids = np.concatenate([of_shard.ids for of_shard in rows])
        self._places = np.concatenate([of_shard.places for of_shard in rows])
        self._first_rows = np.cumsum([0, *(len(of_shard.ids) for of_shard in rows)])
        self._check_unique()

    def row(self, index: int) -> Sample:
        """Return a row by its number from 0."""
        sample_id: str = self._ids[index]
        place: tuple[int, ...] = self._places[index].item()
        image, image_end, image_suffix, truth, truth_end, truth_suffix = place
        shard = f"{self._root}/{self._shards[self._shard_of(index)]}"
        truth_path = None
        if truth != NO_TRUTH:
            truth_path = f"{shard}[{truth}:{truth_end}]/{sample_id}.{self._truth}{ARRAY_SUFFIXES[truth_suffix]}"
        return Sample(
            sample_id, f"{shard}[{image}:{image_end}]/{sample_id}{IMAGE_SUFFIXES[image_suffix]}", truth_path, None
        )

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._first_rows, index, side="right")) - 1

    def _check_unique(self) -> None:
        # Hashes sort faster than strings, and take less memory than a set; equal ones are compared as strings
        hashes = np.fromiter(map(hash, self._ids), np.int64, len(self._ids))
        order = np.argsort(hashes, kind="stable")
        repeated = np.flatnonzero(np.diff(hashes[order]) == 0)
        seen: dict[str, int] = {}
        for second in np.unique(order[np.concatenate([repeated, repeated + 1])]).tolist():
            first = seen.setdefault(self._ids[second], second)
            if first != second:
                names = [self._shards[self._shard_of(index)] for index in (first, second)]
                raise PipelineError(
                    f"source wds:{self._root}: duplicate key {self._ids[second]!r} in {names[0]} and {names[1]}; an id "
                    "must name one image: put each shard's members into a folder of its own, or leave one shard out"
                )
