"""Align a relative-depth store to the metres of another teacher's store: structure from one, scale from the other.

The fit, its verdicts and the written columns are those of `align`; the other store takes the place of ground truth.

Shape legend: h w pixels of a teacher's own output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..depth.alignment import NO_TRUTH, Fit, fit
from ..depth.resize import nearest
from ..errors import PipelineError
from .align import AlignOptions, check_relative, median_m, write_aligned

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..store import Store
    from ..store.tools.alignment_summary import AlignmentSummary

DIGEST = 12
"""Characters of the other store's digest that the alignment records."""


class _Pair(NamedTuple):
    values: NDArray[np.float32]
    """(h, w) in the depth space of the aligned store."""
    metres: NDArray[np.float32]
    """(h, w) of the other store, NaN where it has none."""


def align_to_store(
    store: Store,
    other: Store,
    out: Path,
    options: AlignOptions | None = None,
    progress: Progress | None = None,
) -> AlignmentSummary:
    """Write the store `out`: `store` with every sample aligned to the metres of `other`, or left out with a reason.

    `other` is metric or aligned, holds all samples of `store`, made from the same images and the same view; it may
    hold more, in any order. Pixels where both have a value are compared at the smaller resolution, along each side; a
    sample without metres in `other` is left out. Replaces an alignment of `store`. Resumes an interrupted call.

    Raises PipelineError for metric depth in `store`, no metres in `other`, another view, missing samples, other
    images, or an existing `out`, and DamagedStoreError for a damaged sample.
    """
    options = options or AlignOptions()
    check_relative(store)
    numbers = _matching(store, other)
    space = store.spec.depth_space

    def request(number: int) -> _Pair:
        return _Pair(store.depth(number), other.depth_m(int(numbers[number])))

    def fit_pair(pair: _Pair) -> tuple[Fit, float]:
        if not np.isfinite(pair.metres).any():
            return NO_TRUTH, math.nan
        size_px = (min(pair.values.shape[0], pair.metres.shape[0]), min(pair.values.shape[1], pair.metres.shape[1]))
        metres = nearest(pair.metres, size_px)
        fitted = fit(
            nearest(pair.values, size_px),
            metres,
            space,
            min_points=options.min_points,
            max_residual=options.max_residual,
        )
        return fitted, median_m(metres)

    truth = f"store {other.spec.teacher['name']} {other.manifest_sha256[:DIGEST]}"
    return write_aligned(store, truth, request, fit_pair, out, options, progress)


def _matching(store: Store, other: Store) -> NDArray[np.int64]:
    """Return the positions (N,) in `other` of the samples of `store`. Raises PipelineError as `align_to_store`."""
    if not other.is_metric:
        raise PipelineError(
            f"{other.name} holds {other.spec.depth_space}, which is not in metres: give the store of a metric teacher, "
            "or one that `pipeline store align` wrote"
        )
    views = [(each.spec.view, each.spec.view_size_px) for each in (store, other)]
    if views[0] != views[1]:
        (view, (height, width)), (other_view, (other_height, other_width)) = views
        raise PipelineError(
            f"{store.name} has the view {view}, {height}x{width} px, and {other.name} the view {other_view}, "
            f"{other_height}x{other_width} px: expected the same; run `pipeline cache-teacher` for one of them with "
            "the `view` of the other"
        )
    numbers = other.indexes_of(store.ids)
    store.check_same_images(np.arange(len(store)), other, numbers, "run both teachers on the same images")
    return numbers
