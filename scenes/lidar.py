"""A rotating scanner that samples a rendered depth map: rows of beams, gaps, range noise, a limited range.

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
# Steps in pixels, not degrees: a real scanner would leave a small picture full and a large one nearly empty.
# These make about 4 % of the pixels of a wide picture valid, in rows five pixels apart, as KITTI's scanner does on
# its full pictures.
BEAM_STEP_PX = 4.9
AZIMUTH_STEP_PX = 2.15


def scan(depth_m: F32, camera: Camera, seed: tuple[int, ...]) -> F32:
    """What the scanner reports, as planar depth (H, W) in metres at the pixels it hit, 0 elsewhere.

    The scanner stands upright at the camera's own place, so it sees no surface that the camera does not.

    Args:
        depth_m: (H, W) exact planar depth, infinite (or 0) for sky.
        camera: the camera that `depth_m` belongs to.
        seed: of the noise and the gaps.
    """
    rng = np.random.default_rng(seed)
    height, width = depth_m.shape
    elevation = np.arange(TOP_BEAM_RAD, BOTTOM_BEAM_RAD, -BEAM_STEP_PX / camera.focal_px)
    reach = math.atan(0.55 * width / camera.focal_px)
    azimuth = np.arange(-reach, reach, AZIMUTH_STEP_PX / camera.focal_px) + camera.yaw_rad
    # Each beam fires a little earlier or later than its neighbour, and none is mounted quite true.
    elevation += rng.normal(0, 0.04, elevation.shape) * BEAM_STEP_PX / camera.focal_px
    shift = rng.uniform(0, AZIMUTH_STEP_PX / camera.focal_px, elevation.shape)
    up, around = elevation[:, None], azimuth + shift[:, None]
    world = np.stack([np.sin(around) * np.cos(up), np.sin(up) + 0 * around, np.cos(around) * np.cos(up)], axis=-1)
    seen = camera.to_camera(world + np.array(camera.position_m))
    forward = np.maximum(seen[..., 2], 1e-6)
    column = np.rint(camera.focal_px * seen[..., 0] / forward + camera.cx_px).astype(np.int64)
    row = np.rint(camera.focal_px * seen[..., 1] / forward + camera.cy_px).astype(np.int64)
    inside = (seen[..., 2] > 1e-3) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    row, column = row[inside], column[inside]
    depth = depth_m[row, column].astype(np.float64)
    across, down = (column - camera.cx_px) / camera.focal_px, (row - camera.cy_px) / camera.focal_px
    range_m = depth * np.sqrt(1 + across**2 + down**2)
    # Weak echoes are lost: few nearby, a third at the end of the range.
    lost = rng.random(range_m.shape) < 0.04 + 0.3 * np.clip(range_m / RANGE_LIMIT_M, 0, 1) ** 2
    noise_m = np.clip(rng.normal(0, RANGE_NOISE_M, range_m.shape), -3 * RANGE_NOISE_M, 3 * RANGE_NOISE_M)
    kept = (depth > 0) & (range_m <= RANGE_LIMIT_M) & ~lost
    out = np.zeros((height, width), dtype=np.float32)
    out[row[kept], column[kept]] = (depth * (1 + noise_m / np.maximum(range_m, 0.1)))[kept]
    return out
