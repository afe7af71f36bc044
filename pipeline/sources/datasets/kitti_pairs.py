"""The color stereo pairs of KITTI: image_02 is left, image_03 right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import PipelineError
from ..readers.images import read_image_with_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from .kitti_velodyne import Camera

LEFT, RIGHT = "image_02", "image_03"


def read_right_of(image_path: str) -> NDArray[np.uint8]:
    """Return the right image (H, W, 3) of a left one. Raises PipelineError if it is missing or damaged."""
    before, left, after = image_path.rpartition(f"/{LEFT}/")
    assert left, "baseline_of_pair is None for other images"
    return read_image_with_sha256(f"{before}/{RIGHT}/{after}")[0]


def baseline_of_pair(image_path: str, calibration: Mapping[str, Camera]) -> float | None:
    """Return the baseline in metres of a left image; None for another image, or without calibration.

    Raises PipelineError for cameras that are not rectified to one focal length and row.
    """
    if f"/{LEFT}/" not in image_path or not calibration:
        return None
    left, right = calibration[LEFT], calibration[RIGHT]
    if left.size_px != right.size_px or left.intrinsics != right.intrinsics:
        raise PipelineError(
            f"{image_path}: P_rect_02 and P_rect_03 of its day's calib_cam_to_cam.txt have different intrinsics, "
            "expected those of a rectified pair; copy the file again"
        )
    return right.offset_m - left.offset_m
