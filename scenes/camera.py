"""A pinhole camera: its rays, and the pixels that a solid can cover.

World axes: x to the right, y up, z forward along the road, metres; the road lies at y = 0. Pixel centres have
integer coordinates, so a point at (x, y, z) in the camera is seen at column `focal * x / z + cx`.

Shape legend: H, W pixels, R sample rows (3 per pixel row), N solids, V vertices, E edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The names state the dtype. The type checker sees Any, since it cannot follow the promotion of scalars in NumPy.
F32 = NDArray[Any]
F64 = NDArray[Any]

# (row, column) of each sample within its pixel. The middle one is the pixel's centre, whose depth is the ground truth,
# so one pass gives antialiased colour and exact depth.
SAMPLES_PX = ((-1 / 3, 1 / 3), (0.0, 0.0), (1 / 3, -1 / 3))
NEAR_M = 0.1
_BOX = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(_BOX[a] - _BOX[b]).sum() == 2]
BOX_VERTICES = _BOX
BOX_EDGES = np.array(_EDGES)
# Edges of a box, of its copy shifted along the sun's rays, and between both: the hull of the shadow volume.
SWEPT_EDGES = np.concatenate([BOX_EDGES, BOX_EDGES + 8, np.stack([np.arange(8), np.arange(8) + 8], axis=1)])


@dataclass(frozen=True)
class Camera:
    """Pose and intrinsics. Positive pitch looks down, positive yaw to the right."""

    size_px: tuple[int, int]
    focal_px: float
    cx_px: float
    cy_px: float
    position_m: tuple[float, float, float]
    yaw_rad: float
    pitch_rad: float
    roll_rad: float
    leaves_from_m: tuple[float, float, float] | None = None
    """Where the gaps between leaves are seen from; None for `position_m`. The gaps depend on the direction of view, and
    both cameras of a pair must see the same ones."""

    @property
    def world_from_camera(self) -> F64:
        """Rotation (3, 3) whose columns are the camera's right, down and forward axes in the world."""
        sin_yaw, cos_yaw = math.sin(self.yaw_rad), math.cos(self.yaw_rad)
        sin_pitch, cos_pitch = math.sin(self.pitch_rad), math.cos(self.pitch_rad)
        forward = np.array([sin_yaw * cos_pitch, -sin_pitch, cos_yaw * cos_pitch])
        level_right = np.array([cos_yaw, 0.0, -sin_yaw])
        level_down = -np.array([sin_yaw * sin_pitch, cos_pitch, cos_yaw * sin_pitch])
        sin_roll, cos_roll = math.sin(self.roll_rad), math.cos(self.roll_rad)
        right = cos_roll * level_right + sin_roll * level_down
        down = cos_roll * level_down - sin_roll * level_right
        return np.stack([right, down, forward], axis=1)

    def moved_right(self, distance_m: float) -> Camera:
        """Return the right camera of a rectified pair, whose left one is this camera."""
        x, y, z = np.array(self.position_m) + distance_m * self.world_from_camera[:, 0]
        return replace(self, position_m=(float(x), float(y), float(z)), leaves_from_m=self.position_m)

    def rays(self, first_row: int, last_row: int) -> F32:
        """Return world directions (3, R, W) of the samples of pixel rows [first, last).

        Their component along the optical axis is 1, so the parameter of a ray at a hit is the planar depth in metres.
        """
        offsets = np.array(SAMPLES_PX)
        rows = (np.arange(first_row, last_row)[:, None] + offsets[:, 0]).reshape(-1)
        columns = np.arange(self.size_px[1]) + np.tile(offsets[:, 1], last_row - first_row)[:, None]
        across = (columns - self.cx_px) / self.focal_px
        down = ((rows - self.cy_px) / self.focal_px)[:, None]
        turn = self.world_from_camera
        return np.stack([turn[i, 0] * across + turn[i, 1] * down + turn[i, 2] for i in range(3)]).astype(np.float32)

    def to_camera(self, points_m: F64) -> F64:
        """Convert world points (..., 3) to camera axes: right, down, forward."""
        centered = points_m - np.array(self.position_m)
        turn = self.world_from_camera
        # Element-wise, since a matrix product of this size would start BLAS threads in every worker.
        return np.stack([(centered * turn[:, i]).sum(axis=-1) for i in range(3)], axis=-1)

    def sample_rects(self, vertices_m: F64, edges: NDArray[np.int64]) -> tuple[NDArray[np.int64], F64]:
        """Bound convex hulls on the sample grid of the whole image.

        Args:
            vertices_m: (N, V, 3) world points.
            edges: (E, 2) pairs of vertices that include every edge of the hull.

        Returns:
            (N, 4) first row, end row, first column, end column of samples (empty when not in view), and (N,)
            the nearest depth in metres.
        """
        in_camera = self.to_camera(vertices_m)
        start, stop = in_camera[:, edges[:, 0]], in_camera[:, edges[:, 1]]
        rise = stop[..., 2] - start[..., 2]
        crosses = (start[..., 2] < NEAR_M) != (stop[..., 2] < NEAR_M)
        fraction = (NEAR_M - start[..., 2]) / np.where(crosses, rise, 1.0)
        cut = start + np.where(crosses, fraction, 0.0)[..., None] * (stop - start)
        points = np.concatenate([in_camera, cut], axis=1)
        valid = np.concatenate([in_camera[..., 2] >= NEAR_M, crosses], axis=1)
        depth_m = np.maximum(points[..., 2], NEAR_M)
        column = self.focal_px * points[..., 0] / depth_m + self.cx_px
        row = len(SAMPLES_PX) * (self.focal_px * points[..., 1] / depth_m + self.cy_px) + 1
        height, width = self.size_px

        def bounds(value: F64, slack: float, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            low = np.where(valid, value, np.inf).min(axis=1) - slack
            high = np.where(valid, value, -np.inf).max(axis=1) + slack
            return (
                np.ceil(np.clip(low, 0, size)).astype(np.int64),
                np.floor(np.clip(high, -1, size - 1)).astype(np.int64) + 1,
            )

        top, bottom = bounds(row, 0.01, len(SAMPLES_PX) * height)
        left, right = bounds(column, 0.35, width)
        return np.stack([top, bottom, left, right], axis=1), np.maximum(in_camera[..., 2].min(axis=1), NEAR_M)


def draw_camera(seed: int, index: int, size_px: tuple[int, int]) -> Camera:
    """Draw the camera of one frame at x = 0; `draw_scene` moves it to its lane."""
    rng = np.random.default_rng([seed, index, 1])
    height, width = size_px
    # 0.50-0.64 of the width is 76-90 degrees across, as in KITTI. The height counts as well, so that a tall picture
    # does not become a fisheye.
    focal_px = float(rng.uniform(0.50, 0.64)) * max(width, 1.2 * height)
    pitch_rad = math.radians(rng.uniform(-0.5, 3.5))
    horizon_px = float(rng.uniform(0.40, 0.50)) * height
    return Camera(
        size_px=size_px,
        focal_px=focal_px,
        cx_px=(width - 1) / 2 + float(rng.uniform(-0.01, 0.01)) * width,
        # As in KITTI, the picture is a crop of a taller one; the crop sets the height of the horizon.
        cy_px=horizon_px + focal_px * math.tan(pitch_rad),
        position_m=(0.0, float(rng.uniform(1.35, 2.05)), 0.0),
        yaw_rad=math.radians(rng.normal(0.0, 1.8)),
        pitch_rad=pitch_rad,
        roll_rad=math.radians(rng.normal(0.0, 0.6)),
    )
