"""Which surface each ray meets first, and which surfaces the sun does not reach.

A solid is tried only on the samples that its hull can cover on the screen, nearest solids first, and not at
all where everything it could cover is nearer already. The same for its shadow volume.

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
    """What stands behind all solids: a road, or the shell of a room."""

    def hit_m(self, origin_m: tuple[float, float, float], rays: F32) -> F32:
        """Depth (...) at which rays (3, ...) meet it, infinite where they do not."""
        ...


def mixed(row: F64, x: Numbers, y: Numbers, z: Numbers) -> Numbers:
    """Row times vector, leaving out zeros: most solids only turn about y."""
    terms = [np.float32(w) * v for w, v in zip(row, (x, y, z), strict=True) if abs(w) > 1e-12]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def span_of(solids: Solids, number: int, origin: list[Numbers], direction: list[Numbers]) -> Span:
    """Entry and exit parameters of rays in a solid's own frame; entry > exit means a miss."""
    taper = solids.taper[:, number]
    kind = solids.kind[number]
    if kind is Kind.BOX:
        return box_span(origin, direction, (float(taper[0]), float(taper[1]), float(taper[2])))
    if kind is Kind.ELLIPSOID:
        return ellipsoid_span(origin, direction)
    return cylinder_span(origin, direction, float(taper[0]))


def leaf_gaps(local: list[Numbers], direction: list[Numbers], seed: float, half_m: F64) -> NDArray[np.bool_]:
    """Where a crown's surface has a hole: mostly where it is seen edge-on, so that outlines become ragged.

    Args:
        local: hit points in the solid's frame.
        direction: the rays in the same frame.
        seed: which pattern, in [0, 1).
        half_m: (3,) the solid's half sizes; gaps are of one size in metres on all trees.
    """
    x, y, z = local
    dx, dy, dz = direction
    facing = -(x * dx + y * dy + z * dz) / np.sqrt(dx * dx + dy * dy + dz * dz)
    scale = [np.float32(LEAVES_PER_M * half) for half in half_m]
    pattern = noise.nearest_in_space(x * scale[0] + np.float32(seed * 999), y * scale[1], z * scale[2])
    return np.asarray((facing < 0.36 + 0.26 * pattern) | (pattern > 1.7))


def first_hits(camera: Camera, rays: F32, first_row: int, solids: Solids, backdrop: Backdrop) -> tuple[F32, Ids]:
    """Depth (R, W) in metres, infinite for sky, and what is seen: a solid's number, GROUND or SKY.

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
        known = depth[window]
        if known.max() < nearest_m[number]:
            continue
        to_local = solids.local_from_world[..., number]
        start = (to_local * (origin_m - solids.centre_m[:, number])).sum(axis=1)
        origin: list[Numbers] = [np.float32(value) for value in start]  # type: ignore[misc]
        seen = rays[:, window[0], window[1]]
        direction = [mixed(to_local[i], *seen) for i in range(3)]
        near, far = span_of(solids, int(number), origin, direction)
        won = (near <= far) & (near > 0) & (near < known)
        if not won.any():
            continue
        where = np.nonzero(won)
        at = near[where]
        if solids.material[number] == Material.LEAF and solids.kind[number] is not Kind.BOX:
            cut = [part[where] for part in direction]
            local = [o + at * d for o, d in zip(origin, cut, strict=True)]
            kept = ~leaf_gaps(local, cut, float(solids.extra[0, number]), solids.half_m[:, number])
            where, at = (where[0][kept], where[1][kept]), at[kept]
        known[where] = at
        ids[window][where] = number
    return depth, ids


def sunlit(
    camera: Camera,
    first_row: int,
    points_m: F32,
    facing: NDArray[np.bool_],
    solids: Solids,
    sun: F64,
) -> NDArray[np.bool_]:
    """Which samples (R, W) the sun reaches.

    Args:
        camera: bounds the shadows on the screen.
        first_row: sample row of the whole image at which the arrays start.
        points_m: (3, R, W) what each sample sees; of no matter where `facing` is false.
        facing: (R, W) samples that see a surface turned to the sun.
        solids: what may stand in the light.
        sun: (3,) unit vector towards the sun.
    """
    lit = facing.copy()
    if not solids.rows:
        return lit
    corners = solids.vertices_m()
    landed = corners - sun * (corners[..., 1:2] / sun[1])
    rects, _ = camera.sample_rects(np.concatenate([corners, landed], axis=1), SWEPT_EDGES)
    rows = np.clip(rects[:, :2] - first_row, 0, lit.shape[0])
    # Seen from the sun, a solid and its shadow have the same outline; two coordinates across the light bound
    # it.
    across = np.array([[sun[2], 0.0, -sun[0]], [-sun[0] * sun[1], sun[0] ** 2 + sun[2] ** 2, -sun[1] * sun[2]]])
    plan = [sum(np.float32(axis[i]) * points_m[i] for i in range(3)) for axis in across]
    bounds = [(corners * axis).sum(axis=-1) for axis in across]
    low, high = [b.min(axis=1) for b in bounds], [b.max(axis=1) for b in bounds]
    for number, row in enumerate(solids.rows):
        (top, bottom), (left, right) = rows[number], rects[number, 2:]
        if not row.casts or top >= bottom or left >= right:
            continue
        window = (slice(top, bottom), slice(left, right))
        asked = lit[window].copy()
        for coordinate in range(2):
            values = plan[coordinate][window]
            asked &= values > low[coordinate][number]
            asked &= values < high[coordinate][number]
        where = np.nonzero(asked)
        if len(where[0]) == 0:
            continue
        to_local = solids.local_from_world[..., number]
        shifted = [points_m[i][window][where] - np.float32(solids.centre_m[i, number]) for i in range(3)]
        origin = [mixed(to_local[i], *shifted) for i in range(3)]
        direction: list[Numbers] = [np.float32((to_local[i] * sun).sum()) for i in range(3)]  # type: ignore[misc]
        near, far = span_of(solids, number, origin, direction)
        dark = (near <= far) & (far > _bias_m(row.material))
        if row.material is Material.LEAF and row.kind is not Kind.BOX:
            local: list[Any] = [o + near * d for o, d in zip(origin, direction, strict=True)]
            with np.errstate(invalid="ignore"):
                dark &= ~leaf_gaps(local, direction, float(solids.extra[0, number]), solids.half_m[:, number])
        lit[window][where[0][dark], where[1][dark]] = False
    return lit


def _bias_m(material: Material) -> float:
    """How much of a solid a shadow ray must cross: more than rounding, and some depth of crown."""
    return 0.15 if material is Material.LEAF else 0.02
