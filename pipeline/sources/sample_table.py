"""Rows of a split as a few arrays, for a process that keeps them as long as it lives.

As Python's objects a row takes 400 bytes, and a forked loader worker copies what it looks at, because Python writes a
reference count into it. Arrays are read without being written to, so all workers of a machine share them.
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
"""Texts of any length in one block of memory, or None."""


class SampleTable(Sequence[Sample]):
    """The rows of a split, each made anew when it is asked for. Picklable."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._ids = np.array([sample.id for sample in samples], TEXT)
        self._images = _Paths(sample.image_path for sample in samples)
        self._truths = _Paths(sample.truth_path for sample in samples)
        self._focals_px = np.array([np.nan if one.focal_px is None else one.focal_px for one in samples], np.float64)

    @property
    def ids(self) -> list[str]:
        """The id of each row."""
        found: list[str] = self._ids.tolist()
        return found

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...
    def __getitem__(self, number: int | slice) -> Sample | list[Sample]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        image_path, focal_px = self._images[number], float(self._focals_px[number])
        assert image_path is not None
        return Sample(self._ids[number], image_path, self._truths[number], None if np.isnan(focal_px) else focal_px)


class _Paths:
    """Paths, of which what all begin with is kept once."""

    def __init__(self, paths: Iterable[str | None]) -> None:
        listed = list(paths)
        known = [path for path in listed if path is not None]
        self.begin = os.path.commonprefix([min(known), max(known)]) if known else ""  # noqa: RUF071 - of letters
        self.rest = np.array([None if path is None else path[len(self.begin) :] for path in listed], TEXT)

    def __getitem__(self, number: int) -> str | None:
        rest: str | None = self.rest[number]
        return None if rest is None else self.begin + rest
