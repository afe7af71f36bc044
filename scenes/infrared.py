"""A structured-light depth camera: noise, holes, shadows at edges.

Its projector of infrared dots is next to the camera, as in the first Kinect.

Shape legend: H, W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import noise

if TYPE_CHECKING:
    from .camera import F32, Camera

RANGE_M = (0.5, 8.0)
PROJECTOR_M = 0.075
"""Distance of the projector to the right of the camera."""
LEAST_ECHO = 0.045
EDGE_FRACTION = 0.04
"""Step in depth between neighbours, as a fraction of depth, at which the matching of dots can fail."""
LOST_AT_EDGES = 0.4


def sigma_m(depth_m: F32) -> F32:
    """Return the standard deviation of a reading, quadratic in depth (Khoshelham, Nguyen and others)."""
    return np.asarray(0.0012 + 0.0019 * (depth_m - 0.4) ** 2)


def sense(depth_m: F32, echo: F32, camera: Camera, seed: tuple[int, ...]) -> F32:
    """Return the sensor's planar depth (H, W) in metres, 0 for no reading.

    Args:
        depth_m: (H, W) exact planar depth.
        echo: (H, W) fraction of infrared light that returns.
        camera: the camera that `depth_m` belongs to.
        seed: for the noise and the holes.
    """
    rng = np.random.default_rng(seed)
    height, width = depth_m.shape
    error = np.clip(rng.standard_normal(depth_m.shape), -3, 3) * sigma_m(depth_m)
    # Weak echoes fail in patches rather than single pixels; light weakens with distance.
    row, column = np.mgrid[:height, :width] * (128.0 / width)
    start = rng.uniform(0, noise.SIDE, 2)
    patchy = noise.blended(noise.fractal(), column * 2.5 + start[0], row * 2.5 + start[1])
    strength = echo / (0.6 + 0.12 * depth_m**2) * (1 + 0.3 * patchy)
    lost = strength < LEAST_ECHO
    far = np.float32(RANGE_M[1]) - 0.4 * np.clip(patchy, 0, 2)
    lost |= (depth_m < RANGE_M[0]) | (depth_m > far)
    lost |= _in_shadow(depth_m, camera)
    lost |= _at_edge(depth_m) & (rng.random(depth_m.shape) < LOST_AT_EDGES)
    return np.where(lost, 0, depth_m + error).astype(np.float32)


def _in_shadow(depth_m: F32, camera: Camera) -> F32:
    """Return whether something blocks the light of the projector."""
    # Column of each surface seen from the projector. A surface is hidden if another one to its right in the camera is
    # further left there.
    column_px = np.arange(depth_m.shape[1]) - camera.focal_px * PROJECTOR_M / depth_m
    leftmost = np.minimum.accumulate(column_px[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(column_px > leftmost + 0.5)


def _at_edge(depth_m: F32) -> F32:
    padded = np.pad(depth_m, 1, mode="edge")
    edges = np.zeros(depth_m.shape, dtype=np.bool_)
    for row, column in ((0, 1), (2, 1), (1, 0), (1, 2)):
        neighbor = padded[row : row + depth_m.shape[0], column : column + depth_m.shape[1]]
        # A slanted floor changes equally on both sides of a pixel, an edge on one side; curvature separates them.
        across = padded[2 - row : 2 - row + depth_m.shape[0], 2 - column : 2 - column + depth_m.shape[1]]
        edges |= np.abs(neighbor + across - 2 * depth_m) > EDGE_FRACTION * depth_m
    return edges
