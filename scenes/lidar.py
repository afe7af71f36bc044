"""A rotating LiDAR that samples a rendered depth map: rows of beams, gaps, noise, limited range.

Shape legend: H, W pixels, B beams, A azimuth steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .camera import F32, Camera

RANGE_LIMIT_M = 80.0
RANGE_NOISE_M = 0.02
TOP_BEAM_RAD = math.radians(2.0)
BOTTOM_BEAM_RAD = math.radians(-40.0)
# Steps are in pixels rather than degrees, so that the density does not depend on the size of the picture. About 4 % of
# the pixels are valid, in rows five pixels apart, as in KITTI.
BEAM_STEP_PX = 4.9
AZIMUTH_STEP_PX = 2.15


def scan(depth_m: F32, camera: Camera, seed: tuple[int, ...]) -> F32:
    """Return planar depth (H, W) in metres at the pixels that the beams hit, 0 elsewhere.

    The LiDAR is upright at the position of the camera, so it sees no surface that the camera does not see.

    Args:
        depth_m: (H, W) exact planar depth, infinite (or 0) for sky.
        camera: the camera that `depth_m` belongs to.
        seed: for the noise and the gaps.
    """
    rng = np.random.default_rng(seed)
    height, width = depth_m.shape
    elevation = np.arange(TOP_BEAM_RAD, BOTTOM_BEAM_RAD, -BEAM_STEP_PX / camera.focal_px)
    reach = math.atan(0.55 * width / camera.focal_px)
    azimuth = np.arange(-reach, reach, AZIMUTH_STEP_PX / camera.focal_px) + camera.yaw_rad
    # Each beam has its own firing time and mounting error.
    elevation += rng.normal(0, 0.04, elevation.shape) * BEAM_STEP_PX / camera.focal_px
    shift = rng.uniform(0, AZIMUTH_STEP_PX / camera.focal_px, elevation.shape)
    up, around = elevation[:, None], azimuth + shift[:, None]
    world = np.stack([np.sin(around) * np.cos(up), np.sin(up) + 0 * around, np.cos(around) * np.cos(up)], axis=-1)
    in_camera = camera.to_camera(world + np.array(camera.position_m))
    forward = np.maximum(in_camera[..., 2], 1e-6)
    column = np.rint(camera.focal_px * in_camera[..., 0] / forward + camera.cx_px).astype(np.int64)
    row = np.rint(camera.focal_px * in_camera[..., 1] / forward + camera.cy_px).astype(np.int64)
    inside = (in_camera[..., 2] > 1e-3) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    row, column = row[inside], column[inside]
    depth = depth_m[row, column].astype(np.float64)
    across, down = (column - camera.cx_px) / camera.focal_px, (row - camera.cy_px) / camera.focal_px
    range_m = depth * np.sqrt(1 + across**2 + down**2)
    # Weak echoes are lost: few nearby, a third at the range limit.
    lost = rng.random(range_m.shape) < 0.04 + 0.3 * np.clip(range_m / RANGE_LIMIT_M, 0, 1) ** 2
    noise_m = np.clip(rng.normal(0, RANGE_NOISE_M, range_m.shape), -3 * RANGE_NOISE_M, 3 * RANGE_NOISE_M)
    valid = (depth > 0) & (range_m <= RANGE_LIMIT_M) & ~lost
    out = np.zeros((height, width), dtype=np.float32)
    out[row[valid], column[valid]] = (depth * (1 + noise_m / np.maximum(range_m, 0.1)))[valid]
    return out
