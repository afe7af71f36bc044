r"""OpenCV's semi-global matching of stereo pairs: disparity in pixels, with a left-right check.

It has no network and no weights: a teacher for data sets of rectified pairs (kitti, kitti-raw, vkitti2), and what a
stereo network has to be better than. Where left and right disagree, or nothing matches, disparity is 0, which
`--drop-nonpositive` stores as missing. OpenCV is Apache-2.0.

    pip install opencv-python-headless
    pipeline cache-teacher --teacher python:sgbm:teacher --drop-nonpositive --source kitti:ROOT --split train \
        --out sgbm.zarr

Settings: 128 disparities, blocks of 3 px, and the penalties P1, P2 that OpenCV's documentation gives for them.

Shape legend: B batch, H W pixels of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

DISPARITIES = 128
BLOCK_PX = 3
MAX_DIFFERENCE_PX, MAX_DIFFERENCE = 1.0, 0.05
"""The disparities of left and right may differ by either: pixels, or a fraction."""


class Sgbm:
    """Called with left and right views (B, 3, H, W) in 0..1; returns disparity (B, H, W) in pixels, 0 where unknown."""

    card: ClassVar[dict[str, Any]] = {
        "name": "opencv-sgbm",
        "depth_space": "disparity_px",
        "weights": [],
        "revision": cv2.__version__,
        "licence": "Apache-2.0",
        "inputs": ["right"],
    }

    def __init__(self) -> None:
        self._matcher = cv2.StereoSGBM_create(
            minDisparity=0,
            numDisparities=DISPARITIES,
            blockSize=BLOCK_PX,
            P1=8 * 3 * BLOCK_PX**2,
            P2=32 * 3 * BLOCK_PX**2,
            uniquenessRatio=10,
            speckleWindowSize=100,
            speckleRange=2,
        )

    def __call__(self, images: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Match each pair."""
        pairs = zip(_bytes(images), _bytes(right), strict=True)
        return torch.stack([torch.from_numpy(self._checked(*pair)) for pair in pairs])

    def _checked(self, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the disparity (H, W) of a pair, 0 where that of the right image contradicts it."""
        of_left = self._disparity_px(left, right)
        # Mirrored, the right image is the left one of a pair
        of_right = self._disparity_px(right[:, ::-1], left[:, ::-1])[:, ::-1]
        rows, columns = np.mgrid[: left.shape[0], : left.shape[1]]
        match = np.rint(columns - of_left).astype(int)
        there = of_right[rows, match.clip(0, left.shape[1] - 1)]
        allowed_px = np.maximum(MAX_DIFFERENCE_PX, MAX_DIFFERENCE * of_left)
        agrees = (of_left > 0) & (match >= 0) & (there > 0) & (np.abs(of_left - there) <= allowed_px)
        return np.where(agrees, of_left, np.float32(0)).astype(np.float32)

    def _disparity_px(self, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return disparity (H, W), 0 or less where nothing matches."""
        # OpenCV does not match the first DISPARITIES columns, so these are added
        padded = [
            cv2.copyMakeBorder(np.ascontiguousarray(image), 0, 0, DISPARITIES, 0, cv2.BORDER_REPLICATE)
            for image in (left, right)
        ]
        sixteenths: NDArray[np.int16] = self._matcher.compute(*padded)
        return sixteenths[:, DISPARITIES:].astype(np.float32) / np.float32(16)


def _bytes(images: torch.Tensor) -> NDArray[np.uint8]:
    """Return images (B, H, W, 3) uint8."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def teacher() -> Sgbm:
    """Return the teacher, for `--teacher python:sgbm:teacher`."""
    return Sgbm()
