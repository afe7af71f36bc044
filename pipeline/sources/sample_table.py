"""Rows of a split as a few arrays, which forked loader workers share.

As Python objects a row takes 400 bytes, and each worker copies the rows that it reads, because Python writes reference
counts into them. Reading an array writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from .base import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable

TEXT = np.dtypes.StringDType(na_object=None)
"""Strings of any length in one block of memory, or None."""


class SampleTable(Sequence[Sample]):
    """The rows of a split; each access builds a `Sample`. Picklable."""

    @staticmethod
    def of(samples: Sequence[Sample]) -> SampleTable:
        """Return the rows as a table, unchanged if they are one."""
        return samples if isinstance(samples, SampleTable) else SampleTable(samples)

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._ids = np.array([sample.id for sample in samples], TEXT)
        self._images = _Paths(sample.image_path for sample in samples)
        self._truths = _Paths(sample.truth_path for sample in samples)
        self._focals_px = np.array([np.nan if sample.focal_px is None else sample.focal_px for sample in samples])

    @property
    def ids(self) -> list[str]:
        """The id of each row."""
        ids: list[str] = self._ids.tolist()
        return ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.row(index % len(self))

    def row(self, index: int) -> Sample:
        """Return a row by its number from 0."""
        image_path, focal_px = self._images[index], float(self._focals_px[index])
        assert image_path is not None
        return Sample(self._ids[index], image_path, self._truths[index], None if np.isnan(focal_px) else focal_px)


class _Paths:
    """Paths, stored without their common prefix."""

    def __init__(self, paths: Iterable[str | None]) -> None:
        listed = list(paths)
        present = [path for path in listed if path is not None]
        self.prefix = os.path.commonprefix([min(present), max(present)]) if present else ""  # noqa: RUF071 - characters
        self.rest = np.array([None if path is None else path[len(self.prefix) :] for path in listed], TEXT)

    def __getitem__(self, index: int) -> str | None:
        rest: str | None = self.rest[index]
        return None if rest is None else self.prefix + rest
