"""The focal length that a run is trained at, which `predict` needs for images of another camera."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PipelineError
from ..sources.intrinsics import intrinsics_of_view
from ..sources.splits import evenly
from ..sources.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..sources.base import Sample
    from ..store import Store
    from ..store.images.reader import ImageCache
    from .config import Recipe
    from .mixed_data import Part

SAMPLES = 1000
"""Samples of the summary, spread evenly; with EXIF each is a file to open."""
READ_SAMPLES = 64
"""The same where neither a store nor an image cache has the sizes of the images, so that each must be decoded."""


def summarize_focal_px(
    recipe: Recipe, parts: Sequence[Part], images: ImageCache | None, progress: Progress
) -> dict[str, float] | None:
    """Return `median`, `min` and `max` of the focal lengths, in pixels of the view, of up to SAMPLES training samples.

    Of several data sets, up to SAMPLES each; the median then counts each by its probability. None where one is
    unknown; a note says so if a file is damaged, since training itself needs no focal length.
    """
    focals_px = []
    try:
        for part, mine in zip(parts, recipe.data_sets, strict=True):
            of_part = _focals_px(part, View.parse(mine.view), images)
            if of_part is None:
                return None
            focals_px.append(of_part)
    except PipelineError as error:
        progress.note(f"the run does not record a focal length: {error}")
        return None
    median = _median(focals_px, [mine.probability for mine in recipe.data_sets])
    return {"median": median, "min": min(map(min, focals_px)), "max": max(map(max, focals_px))}


def _median(values: Sequence[Sequence[float]], probabilities: Sequence[float]) -> float:
    """Return the median of data sets that are drawn from with these probabilities."""
    if len(values) == 1:
        return float(np.median(values[0]))
    weights = [np.full(len(own), each / len(own)) for own, each in zip(values, probabilities, strict=True)]
    together = np.concatenate([*map(np.asarray, values)])
    return float(np.quantile(together, 0.5, weights=np.concatenate(weights), method="inverted_cdf"))


def _focals_px(part: Part, view: View, images: ImageCache | None) -> list[float] | None:
    """Return the focal lengths of samples of a data set, in pixels of the view; None where one is unknown."""
    cached = part.store if part.store is not None else images
    count = SAMPLES if cached is not None else READ_SAMPLES
    chosen = evenly(part.samples, count)
    sizes_px = None if cached is None else _sizes_px(cached, chosen)
    focals_px = []
    for number, sample in enumerate(chosen):
        image_px = part.source.read_image(sample)[0].shape[:2] if sizes_px is None else sizes_px[number].tolist()
        camera = intrinsics_of_view(part.source, sample, view, (image_px[0], image_px[1]))
        if camera is None or not camera.has_focal:
            return None
        focals_px.append(camera.focal_px)
    return focals_px


def _sizes_px(cached: Store | ImageCache, samples: Sequence[Sample]) -> NDArray[np.int32]:
    """Return (height, width) of each whole image."""
    column: NDArray[np.int32] = cached.rows("image_size_px")
    return column[cached.indexes_of([sample.id for sample in samples])]
