"""Rectified stereo pairs: a source's right images and the distance of its cameras.

A sample is the left image. A point at depth z on column x of it is on column x - fx * baseline / z of the right image,
in the same row.

Shape legend: H, W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..errors import PipelineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .base import Sample, Source


@runtime_checkable
class StereoSource(Protocol):
    """A source that may have pairs. Optional."""

    def read_right(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the right image (H, W, 3) uint8 RGB. Raises PipelineError if it is missing or damaged."""
        ...

    def baseline_m(self, sample: Sample) -> float | None:
        """Return the distance of the cameras in metres; None for a sample without a pair."""
        ...


def baseline_of(source: Source, sample: Sample) -> float | None:
    """Return the baseline of a sample in metres; None if the source has no pairs, or none for this sample."""
    return source.baseline_m(sample) if isinstance(source, StereoSource) else None


def read_right(source: Source, sample: Sample, left_px: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the right image (H, W, 3) uint8 RGB of a sample, whose left image has `left_px` (height, width).

    Raises PipelineError for a sample without a pair, a missing right image, and one of another size.
    """
    if not isinstance(source, StereoSource) or source.baseline_m(sample) is None:
        raise PipelineError(
            f"source {source.name!r} has no right image for {sample.id!r}: expected a data set of rectified stereo "
            "pairs with their calibration, such as kitti, kitti-raw (image_02), vkitti2 (Camera_0) or scenes rendered "
            "with a baseline"
        )
    right = source.read_right(sample)
    if right.shape[:2] != left_px:
        raise PipelineError(
            f"{sample.id}: its right image has {right.shape[0]}x{right.shape[1]} px, the left one "
            f"{left_px[0]}x{left_px[1]} px; expected a rectified pair of one size"
        )
    return right
