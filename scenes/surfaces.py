"""Positions and normals of samples on solids, and helpers for textures.

Shape legend: n samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .shapes import Kind, Solids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .camera import F32


@dataclass
class Hits:
    """Samples on solids."""

    local: F32
    """(3, n) points in the frame of the solid, -1 to 1."""
    metres: F32
    """(3, n) the same in metres from the solid's centre."""
    point_m: F32
    """(3, n) world points."""
    normal: F32
    """(3, n) unit, world."""
    face: NDArray[np.int8]
    """+-1, +-2 or +-3 for the sides of a box at +-x, +-y, +-z; 0 for round solids."""
    footprint_m: F32
    """(n) width of a pixel at the hit."""
    half_m: F32
    """(3, n) half sizes of the solid."""
    color: F32
    color2: F32
    extra: F32
    """(6, n) parameters of the material."""


@dataclass
class Surface:
    """Appearance of samples, as a texture returns it."""

    albedo: F32
    """(3, n) linear."""
    gloss: F32
    """(n) reflectivity, 0 to 1."""
    glow: F32
    """(n) emitted light, in units of albedo."""


def surface_hits(solids: Solids, ids: NDArray[np.int64], point_m: F32, footprint_m: F32) -> Hits:
    """Return positions of samples (n) on their solids, with outward normals."""
    matrix = solids.local_from_world.astype(np.float32)
    centered = point_m - solids.center_m.astype(np.float32)[:, ids]
    local = np.empty_like(point_m)
    for i in range(3):
        local[i] = sum(matrix[i, j].take(ids) * centered[j] for j in range(3))
    taper = solids.taper.astype(np.float32)[:, ids]
    kinds = np.array([int(kind) for kind in solids.kind])[ids]
    gradient, face = _box_gradient(local, taper)
    ellipsoids = kinds == Kind.ELLIPSOID
    gradient[:, ellipsoids] = local[:, ellipsoids]
    cylinders = kinds == Kind.CYLINDER
    gradient[:, cylinders] = _tube_gradient(local[:, cylinders], taper[0, cylinders])
    face[kinds != Kind.BOX] = 0
    normal = np.empty_like(point_m)
    for i in range(3):
        normal[i] = sum(matrix[j, i].take(ids) * gradient[j] for j in range(3))
    normal /= np.sqrt((normal * normal).sum(axis=0))
    half_m = solids.half_m.astype(np.float32)[:, ids]
    return Hits(
        local, local * half_m, point_m, normal, face, footprint_m, half_m,
        solids.color[:, ids], solids.color2[:, ids], solids.extra[:, ids],
    )  # fmt: skip


def _box_gradient(local: F32, taper: F32) -> tuple[F32, NDArray[np.int8]]:
    x, y, z = local
    narrow = (1 + y) / 2
    outside = np.stack([
        np.abs(x) - 1 + taper[0] * narrow,
        np.abs(y) - 1,
        z - 1 + taper[1] * narrow,
        -z - 1 + taper[2] * narrow,
    ])  # fmt: skip
    side = outside.argmax(axis=0)
    gradient = np.zeros_like(local)
    gradient[0] = np.where(side == 0, np.sign(x), 0)
    gradient[2] = np.where(side == 2, 1, np.where(side == 3, -1, 0))
    lean = np.where(side == 0, taper[0], np.where(side == 2, taper[1], taper[2])) / 2
    gradient[1] = np.where(side == 1, np.sign(y), lean)
    face = np.where(side == 0, np.sign(x), np.where(side == 1, 2 * np.sign(y), np.where(side == 2, 3, -3)))
    return gradient, face.astype(np.int8)


def _tube_gradient(local: F32, taper: F32) -> F32:
    x, y, z = local
    fall = taper / 2
    radius = 1 - fall - fall * y
    capped = (np.abs(y) > 0.999) & (x * x + z * z < 0.998 * radius * radius)
    return np.stack([np.where(capped, 0, x), np.where(capped, np.sign(y), fall * radius), np.where(capped, 0, z)])


def coverage(distance_m: F32, footprint_m: F32) -> F32:
    """Return 1 inside (negative distance) and 0 outside, with an edge one pixel wide."""
    return np.clip(0.5 - distance_m / np.maximum(footprint_m, 1e-4), 0, 1)


def mix(first: F32 | float, second: F32 | float, weight: F32 | float) -> F32:
    """Interpolate from `first` at weight 0 to `second` at 1."""
    return np.asarray(first + weight * (second - first))
