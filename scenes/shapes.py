"""Solids and their intersections with rays.

Every solid has a local frame that scales it to the cube |x|, |y|, |z| <= 1, so three intersections are enough: tapered
boxes (houses, roofs, car bodies), ellipsoids (crowns, heads) and tapered cylinders (wheels, poles, limbs). An affine
map keeps the parameter of a ray, so the parameter in the local frame is the depth in the world.

Shape legend: P solids, n rays (any shape that broadcasts).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .camera import BOX_VERTICES, F32, F64

Numbers = NDArray[Any]
"""Coordinates of rays: arrays, or 0-d arrays if equal for all rays."""
Triple = tuple[float, float, float]
Span = tuple[Numbers, Numbers]


class Kind(IntEnum):
    """Shape of a solid."""

    BOX = 0
    ELLIPSOID = 1
    CYLINDER = 2


class Material(IntEnum):
    """Texture of a solid (textures.py; indoors finishes.py)."""

    PLAIN = 0
    PAINT = 1
    CABIN = 2
    WHEEL = 3
    FACADE = 4
    ROOF = 5
    LEAF = 6
    BARK = 7
    SIGN = 8
    GLOW = 9
    WOOD = 10
    FABRIC = 11
    BOOKS = 12
    PICTURE = 13
    SCREEN = 14
    PANE = 15
    TILES = 16
    CARPET = 17
    WALL = 18
    FRONTS = 19
    FOLDS = 20
    METAL = 21


@dataclass
class Solid:
    """A solid. `turn` has the local axes as columns; `taper` narrows it towards local y = +1.

    A box tapers by (both sides in x, front z = +1, back z = -1), a cylinder by the first number; 1 makes an edge or a
    point. The material defines the meaning of `extra`.
    """

    kind: Kind
    center_m: F64
    half_m: F64
    turn: F64
    material: Material
    color: Triple
    color2: Triple = (0.0, 0.0, 0.0)
    taper: Triple = (0.0, 0.0, 0.0)
    extra: tuple[float, ...] = ()
    casts: bool = True


@dataclass
class Solids:
    """All solids of a scene as arrays; the last axis is the solid."""

    rows: list[Solid]
    kind: list[Kind] = field(init=False)
    center_m: F64 = field(init=False)
    half_m: F64 = field(init=False)
    turn: F64 = field(init=False)
    local_from_world: F64 = field(init=False)
    taper: F64 = field(init=False)
    material: NDArray[np.int64] = field(init=False)
    color: F32 = field(init=False)
    color2: F32 = field(init=False)
    extra: F32 = field(init=False)

    def __post_init__(self) -> None:
        rows = self.rows
        self.kind = [row.kind for row in rows]
        self.center_m = np.array([row.center_m for row in rows]).reshape(-1, 3).T
        self.half_m = np.array([row.half_m for row in rows]).reshape(-1, 3).T
        self.turn = np.array([row.turn for row in rows]).reshape(-1, 3, 3).transpose(1, 2, 0)
        self.local_from_world = self.turn.transpose(1, 0, 2) / self.half_m[:, None]
        self.taper = np.array([row.taper for row in rows]).reshape(-1, 3).T
        self.material = np.array([row.material for row in rows], dtype=np.int64)
        self.color = np.array([row.color for row in rows], dtype=np.float32).reshape(-1, 3).T
        self.color2 = np.array([row.color2 for row in rows], dtype=np.float32).reshape(-1, 3).T
        padded = [(*row.extra, *[0.0] * 6)[:6] for row in rows]
        self.extra = np.array(padded, dtype=np.float32).reshape(-1, 6).T

    def vertices_m(self) -> F64:
        """Return the world corners (P, 8, 3) of the bounding boxes."""
        arms = self.turn * self.half_m[None]
        offset = sum(BOX_VERTICES[:, axis, None, None] * arms[:, axis].T for axis in range(3))
        return np.asarray(self.center_m.T + offset).transpose(1, 0, 2)


def plane_y(origin_y: Numbers | float, slope_y: Numbers, level_m: float) -> Numbers:
    """Return the parameter at which a ray from above meets the plane y = level; infinite for a miss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(slope_y < -1e-6, (level_m - origin_y) / slope_y, np.inf)


def _slab(origin: Numbers, direction: Numbers) -> Span:
    first, second = (-1 - origin) / direction, (1 - origin) / direction
    return np.minimum(first, second), np.maximum(first, second)


def box_span(origin: list[Numbers], direction: list[Numbers], taper: Triple = (0.0, 0.0, 0.0)) -> Span:
    """Return entry and exit parameters of the tapered unit box; entry > exit is a miss.

    Args:
        origin: local x, y, z of the starts, each (n) or 0-d.
        direction: local x, y, z of the directions, of any length.
        taper: fraction of the half width removed at y = +1: in x on both sides, at z = +1, at z = -1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = _slab(origin[1], direction[1])
        # fmin and fmax ignore the NaN of a ray inside a face.
        for axis, tapers in ((0, (taper[0], taper[0])), (2, (taper[1], taper[2]))):
            if tapers == (0.0, 0.0):
                enter, leave = _slab(origin[axis], direction[axis])
                near, far = np.fmax(near, enter), np.fmin(far, leave)
                continue
            for sign, cut in zip((1, -1), tapers, strict=True):
                # The face sign * p + cut / 2 * y = 1 - cut / 2; positive distance is outside.
                closing = sign * direction[axis] + cut / 2 * direction[1]
                distance = sign * origin[axis] + cut / 2 * origin[1] - (1 - cut / 2)
                at = -distance / closing
                near = np.fmax(near, np.where(closing < 0, at, -np.inf))
                far = np.fmin(
                    far, np.where(closing > 0, at, np.where((closing == 0) & (distance > 0), -np.inf, np.inf))
                )
    return near, far


def ellipsoid_span(origin: list[Numbers], direction: list[Numbers]) -> Span:
    """Return entry and exit parameters of the unit sphere; entry > exit is a miss. Shapes as in `box_span`."""
    # Double precision: far away the discriminant is a small difference of large numbers.
    x, y, z = (np.asarray(o, dtype=np.float64) for o in origin)
    dx, dy, dz = (np.asarray(d, dtype=np.float64) for d in direction)
    a, b, c = dx * dx + dy * dy + dz * dz, x * dx + y * dy + z * dz, x * x + y * y + z * z - 1
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0))
    return np.where(square > 0, (-b - root) / a, np.inf), np.where(square > 0, (-b + root) / a, -np.inf)


def cylinder_span(origin: list[Numbers], direction: list[Numbers], taper: float = 0.0) -> Span:
    """Return entry and exit parameters of the cylinder around y, |y| <= 1, with radius 1 below and 1 - taper on top.

    Entry > exit is a miss. Shapes as in `box_span`; `taper` is in [0, 1], and 1 is a cone.
    """
    x, y, z = (np.asarray(o, dtype=np.float64) for o in origin)
    dx, dy, dz = (np.asarray(d, dtype=np.float64) for d in direction)
    fall = taper / 2
    radius = 1 - fall - fall * y
    a = dx * dx + dz * dz - fall * fall * dy * dy
    a = np.where(a == 0, 1e-30, a)
    b = x * dx + z * dz + fall * dy * radius
    c = x * x + z * z - radius * radius
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # Form without cancellation: along the side of a cone `a` is almost zero and one root far away.
        sum_of = -(b + np.where(b < 0, -root, root))
        root_a, root_b = sum_of / a, c / sum_of
        near, far = _slab(y, dy)
    first, second = np.fmin(root_a, root_b), np.fmax(root_a, root_b)
    inside = a > 0
    # A ray steeper than the cone's side is inside beyond one root, on the side where the cone widens.
    steep_near = np.where((square < 0) | (dy > 0), -np.inf, second)
    steep_far = np.where((square < 0) | (dy < 0), np.inf, first)
    near = np.fmax(near, np.where(inside, np.where(square > 0, first, np.inf), steep_near))
    far = np.fmin(far, np.where(inside, np.where(square > 0, second, -np.inf), steep_far))
    return near, far
