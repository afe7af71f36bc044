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
    from ..sources.base import Sample, Source
    from ..sources.sample_table import SampleTable
    from ..store import Store
    from ..store.images.reader import ImageCache

SAMPLES = 1000
"""Samples of the summary, spread evenly; with EXIF each is a file to open."""
READ_SAMPLES = 64
"""The same where neither a store nor an image cache has the sizes of the images, so that each must be decoded."""


def summarize_focal_px(
    source: Source,
    samples: SampleTable,
    view: str,
    store: Store | None,
    images: ImageCache | None,
    progress: Progress,
) -> dict[str, float] | None:
    """Return `median`, `min` and `max` of the focal lengths, in pixels of the view, of up to SAMPLES training samples.

    None where one is unknown; a note says so if a file is damaged, since training itself needs no focal length.
    """
    cached = store if store is not None else images
    count = SAMPLES if cached is not None else READ_SAMPLES
    chosen = evenly(samples, count)
    sizes_px = None if cached is None else _sizes_px(cached, chosen)
    focals_px = []
    try:
        for number, sample in enumerate(chosen):
            image_px = source.read_image(sample)[0].shape[:2] if sizes_px is None else sizes_px[number].tolist()
            camera = intrinsics_of_view(source, sample, View.parse(view), (image_px[0], image_px[1]))
            if camera is None or not camera.has_focal:
                return None
            focals_px.append(camera.focal_px)
    except PipelineError as error:
        progress.note(f"the run does not record a focal length: {error}")
        return None
    return {"median": float(np.median(focals_px)), "min": min(focals_px), "max": max(focals_px)}


def _sizes_px(cached: Store | ImageCache, samples: Sequence[Sample]) -> NDArray[np.int32]:
    """Return (height, width) of each whole image."""
    column: NDArray[np.int32] = cached.rows("image_size_px")
    return column[cached.indexes_of([sample.id for sample in samples])]
