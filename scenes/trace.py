"""Traces rays to the first surface, and shadow rays to the sun.

A solid is tested only on the samples that its hull can cover on the screen, nearest solids first, and skipped if all of
these have nearer hits. The same holds for its shadow volume.

Shape legend: R sample rows, W columns, P solids, n rays.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import noise
from .camera import BOX_EDGES, F32, F64, SWEPT_EDGES, Camera
from .shapes import Kind, Material, Numbers, Solids, Span, box_span, cylinder_span, ellipsoid_span

SKY, GROUND = -2, -1
LEAVES_PER_M = 8.0
Ids = NDArray[np.int16]


class Backdrop(Protocol):
    """Surface behind all solids: a road, or the shell of a room."""

    def hit_m(self, origin_m: tuple[float, float, float], rays: F32) -> F32:
        """Return depth (...) at which rays (3, ...) meet it; infinite for a miss."""
        ...


def mixed(row: F64, x: Numbers, y: Numbers, z: Numbers) -> Numbers:
    """Multiply row and vector without zero terms: most solids turn around y only."""
    terms = [np.float32(w) * v for w, v in zip(row, (x, y, z), strict=True) if abs(w) > 1e-12]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def span_of(solids: Solids, number: int, origin: list[Numbers], direction: list[Numbers]) -> Span:
    """Return entry and exit parameters of rays in the frame of a solid; entry > exit is a miss."""
    taper = solids.taper[:, number]
    kind = solids.kind[number]
    if kind is Kind.BOX:
        return box_span(origin, direction, (float(taper[0]), float(taper[1]), float(taper[2])))
    if kind is Kind.ELLIPSOID:
        return ellipsoid_span(origin, direction)
    return cylinder_span(origin, direction, float(taper[0]))


def leaf_gaps(local: list[Numbers], direction: list[Numbers], seed: float, half_m: F64) -> NDArray[np.bool_]:
    """Return where a crown has a hole: mostly at its outline, which becomes ragged.

    Args:
        local: hit points in the solid's frame.
        direction: the directions of view in the same frame.
        seed: selects the pattern, in [0, 1).
        half_m: (3,) half sizes of the solid; gaps have the same size in metres on all trees.
    """
    x, y, z = local
    dx, dy, dz = direction
    facing = -(x * dx + y * dy + z * dz) / np.sqrt(dx * dx + dy * dy + dz * dz)
    scale = [np.float32(LEAVES_PER_M * half) for half in half_m]
    pattern = noise.nearest_in_space(x * scale[0] + np.float32(seed * 999), y * scale[1], z * scale[2])
    return np.asarray((facing < 0.36 + 0.26 * pattern) | (pattern > 1.7))


def first_hits(camera: Camera, rays: F32, first_row: int, solids: Solids, backdrop: Backdrop) -> tuple[F32, Ids]:
    """Return depth (R, W) in metres, infinite for sky, and ids: the number of a solid, GROUND or SKY.

    `rays` (3, R, W) start at sample row `first_row` of the whole image.
    """
    depth = backdrop.hit_m(camera.position_m, rays)
    ids = np.where(np.isfinite(depth), GROUND, SKY).astype(np.int16)
    if not solids.rows:
        return depth, ids
    rects, nearest_m = camera.sample_rects(solids.vertices_m(), BOX_EDGES)
    rows = np.clip(rects[:, :2] - first_row, 0, rays.shape[1])
    origin_m = np.array(camera.position_m)
    for number in np.argsort(nearest_m, kind="stable"):
        (top, bottom), (left, right) = rows[number], rects[number, 2:]
        if top >= bottom or left >= right:
            continue
        window = (slice(top, bottom), slice(left, right))
        current = depth[window]
        if current.max() < nearest_m[number]:
            continue
        to_local = solids.local_from_world[..., number]
        start = (to_local * (origin_m - solids.center_m[:, number])).sum(axis=1)
        origin: list[Numbers] = [np.float32(value) for value in start]  # type: ignore[misc]
        window_rays = rays[:, window[0], window[1]]
        direction = [mixed(to_local[i], *window_rays) for i in range(3)]
        near, far = span_of(solids, int(number), origin, direction)
        hit = (near <= far) & (near > 0) & (near < current)
        if not hit.any():
            continue
        where = np.nonzero(hit)
        hit_depths = near[where]
        if solids.material[number] == Material.LEAF and solids.kind[number] is not Kind.BOX:
            hit_directions = [part[where] for part in direction]
            local = [o + hit_depths * d for o, d in zip(origin, hit_directions, strict=True)]
            sight = _sight(camera, local, hit_directions, to_local, solids.center_m[:, number])
            visible = ~leaf_gaps(local, sight, float(solids.extra[0, number]), solids.half_m[:, number])
            where, hit_depths = (where[0][visible], where[1][visible]), hit_depths[visible]
        current[where] = hit_depths
        ids[window][where] = number
    return depth, ids


def _sight(camera: Camera, local: list[Numbers], rays: list[Numbers], to_local: F64, center_m: F64) -> list[Numbers]:
    """Return directions, of any length, in which the gaps between leaves at points `local` are seen."""
    if camera.leaves_from_m is None:
        return rays
    start = (to_local * (np.array(camera.leaves_from_m) - center_m)).sum(axis=1)
    return [at - np.float32(value) for at, value in zip(local, start, strict=True)]


def sunlit(
    camera: Camera, first_row: int, points_m: F32, facing: NDArray[np.bool_], solids: Solids, sun: F64
) -> NDArray[np.bool_]:
    """Return which samples (R, W) the sun reaches.

    Args:
        camera: bounds the shadows on the screen.
        first_row: sample row of the whole image at which the arrays start.
        points_m: (3, R, W) point of each sample; arbitrary where `facing` is false.
        facing: (R, W) samples whose surface faces the sun.
        solids: possible blockers.
        sun: (3,) unit vector towards the sun.
    """
    lit = facing.copy()
    if not solids.rows:
        return lit
    corners = solids.vertices_m()
    landed = corners - sun * (corners[..., 1:2] / sun[1])
    rects, _ = camera.sample_rects(np.concatenate([corners, landed], axis=1), SWEPT_EDGES)
    rows = np.clip(rects[:, :2] - first_row, 0, lit.shape[0])
    # Seen from the sun, a solid and its shadow have the same outline; two coordinates across the light bound it.
    across = np.array([[sun[2], 0.0, -sun[0]], [-sun[0] * sun[1], sun[0] ** 2 + sun[2] ** 2, -sun[1] * sun[2]]])
    plan = [sum(np.float32(axis[i]) * points_m[i] for i in range(3)) for axis in across]
    bounds = [(corners * axis).sum(axis=-1) for axis in across]
    low, high = [b.min(axis=1) for b in bounds], [b.max(axis=1) for b in bounds]
    for number, row in enumerate(solids.rows):
        (top, bottom), (left, right) = rows[number], rects[number, 2:]
        if not row.casts or top >= bottom or left >= right:
            continue
        window = (slice(top, bottom), slice(left, right))
        candidates = lit[window].copy()
        for coordinate in range(2):
            values = plan[coordinate][window]
            candidates &= values > low[coordinate][number]
            candidates &= values < high[coordinate][number]
        where = np.nonzero(candidates)
        if len(where[0]) == 0:
            continue
        dark = _shadowed(solids, number, [points_m[i][window][where] for i in range(3)], sun)
        lit[window][where[0][dark], where[1][dark]] = False
    return lit


def _shadowed(solids: Solids, number: int, points_m: list[F32], sun: F64) -> NDArray[np.bool_]:
    """Return which points (n), given by coordinate, lie in the shadow of a solid."""
    row, to_local = solids.rows[number], solids.local_from_world[..., number]
    shifted = [points_m[i] - np.float32(solids.center_m[i, number]) for i in range(3)]
    origin = [mixed(to_local[i], *shifted) for i in range(3)]
    direction: list[Numbers] = [np.float32((to_local[i] * sun).sum()) for i in range(3)]  # type: ignore[misc]
    near, far = span_of(solids, number, origin, direction)
    dark = (near <= far) & (far > _bias_m(row.material))
    if row.material is Material.LEAF and row.kind is not Kind.BOX:
        local: list[Any] = [o + near * d for o, d in zip(origin, direction, strict=True)]
        with np.errstate(invalid="ignore"):
            dark &= ~leaf_gaps(local, direction, float(solids.extra[0, number]), solids.half_m[:, number])
    return dark


def _bias_m(material: Material) -> float:
    """Return the length of a solid that a shadow ray must cross: more than rounding, and some depth of a crown."""
    return 0.15 if material is Material.LEAF else 0.02
