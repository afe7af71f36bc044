"""Ground truth of a view, at any resolution.

Shape legend: H, W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PipelineError
from .view import same_aspect

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .base import Sample, Source
    from .view import View


def read_truth_of_view_m(
    source: Source, sample: Sample, view: View, image_px: tuple[int, int]
) -> NDArray[np.float32] | None:
    """Return ground truth (H, W) metres of a view; None if the row has none. Raises PipelineError as `of_view_m`."""
    truth_m = source.read_truth_m(sample)
    return None if truth_m is None else of_view_m(truth_m, sample, view, image_px)


def of_view_m(
    truth_m: NDArray[np.float32], sample: Sample, view: View, image_px: tuple[int, int], *, own_pixels: bool = False
) -> NDArray[np.float32]:
    """Return ground truth (H, W) metres of a view of an image of `image_px` (height, width), NaN without a measurement.

    Truth at another resolution than the image is sampled by nearest pixel. With `own_pixels` it keeps its own
    resolution, without the view's resize.

    Raises PipelineError, naming the file, for truth of another aspect ratio than the image, and for an image smaller
    than the view.
    """
    where = sample.truth_path or f"ground truth of {sample.id}"
    if not same_aspect(truth_m.shape, image_px):
        raise PipelineError(
            f"{where}: ground truth has {truth_m.shape[0]}x{truth_m.shape[1]} px, its image {sample.image_path} "
            f"{image_px[0]}x{image_px[1]} px; expected the same aspect ratio. Crop or pad one as the other"
        )
    try:
        return view.of_depth(truth_m, image_px, own_pixels=own_pixels)
    except ValueError as error:
        raise PipelineError(f"{where}: {error}") from error
