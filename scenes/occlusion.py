"""Occlusion between visible points and other points, for soft shadows and contact shading.

Points are grouped in square tiles of the screen, so that a solid is tested only with tiles whose lines of sight are
near it.

Shape legend: H, W pixels, T tiles, S points of a tile, P solids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .trace import mixed, span_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .camera import F32
    from .shapes import Numbers, Solids

TILE_PX = 6
END_FRACTION = 0.995
"""The last part of a line of sight is inside the lamp itself."""


def _tiled(values: F32) -> F32:
    """Convert (H, W) to (T, S), repeating edges to fill the last tiles."""
    height, width = values.shape
    filled = np.pad(values, ((0, -height % TILE_PX), (0, -width % TILE_PX)), mode="edge")
    parts = filled.reshape(filled.shape[0] // TILE_PX, TILE_PX, -1, TILE_PX)
    return np.ascontiguousarray(parts.transpose(0, 2, 1, 3)).reshape(-1, TILE_PX * TILE_PX)


def _untiled(values: F32, height: int, width: int) -> F32:
    """Invert `_tiled`."""
    parts = values.reshape(-1, -(-width // TILE_PX), TILE_PX, TILE_PX).transpose(0, 2, 1, 3)
    return parts.reshape(parts.shape[0] * TILE_PX, -1)[:height, :width]


def free_fraction(starts_m: F32, ends_m: F32, mask: NDArray[np.bool_], solids: Solids) -> F32:
    """Return the fraction (H, W) of each line of sight before the first solid on it; 1 if nothing blocks it.

    Args:
        starts_m: (3, H, W) world points, slightly above their surfaces.
        ends_m: (3, H, W) target of each line.
        mask: (H, W) points to compute; other values are arbitrary.
        solids: possible blockers; those that cast no shadow are ignored.
    """
    height, width = mask.shape
    out: F32 = np.ones_like(_tiled(starts_m[0]))
    tiles = np.flatnonzero(_tiled(mask).any(axis=1))
    if len(tiles) == 0 or not solids.rows:
        return _untiled(out, height, width)
    start = np.stack([_tiled(axis)[tiles] for axis in starts_m])
    end = np.stack([_tiled(axis)[tiles] for axis in ends_m])
    nearest: F32 = np.ones(start.shape[1:], dtype=np.float32)
    near_tiles = _tiles_near(start, end, solids)
    for number, row in enumerate(solids.rows):
        at = np.flatnonzero(near_tiles[number]) if row.casts else ()
        if len(at) == 0:
            continue
        to_local = solids.local_from_world[..., number]
        center = solids.center_m[:, number].astype(np.float32)
        shifted = [start[i].take(at, axis=0) - center[i] for i in range(3)]
        way = [end[i].take(at, axis=0) - center[i] - shifted[i] for i in range(3)]
        origin: list[Numbers] = [mixed(to_local[i], *shifted) for i in range(3)]
        direction: list[Numbers] = [mixed(to_local[i], *way) for i in range(3)]
        near, far = span_of(solids, number, origin, direction)
        blocks = (near <= far) & (far > 0) & (near < END_FRACTION)
        current = nearest[at]
        nearest[at] = np.where(blocks, np.minimum(current, np.maximum(near, 0)), current)
    out[tiles] = nearest
    return _untiled(out, height, width)


def _tiles_near(start: F32, end: F32, solids: Solids) -> NDArray[np.bool_]:
    """Return whether (P, T) the lines of sight of a tile come near a solid, by bounding boxes and spheres."""
    low, high = start.min(axis=2), start.max(axis=2)
    end_low, end_high = end.min(axis=2), end.max(axis=2)
    corners = solids.vertices_m().astype(np.float32)
    solid_low, solid_high = corners.min(axis=1), corners.max(axis=1)
    both_low, both_high = np.minimum(low, end_low), np.maximum(high, end_high)
    near = np.ones((len(solids.rows), low.shape[1]), dtype=np.bool_)
    for i in range(3):
        near &= (solid_low[:, i, None] <= both_high[i]) & (solid_high[:, i, None] >= both_low[i])
    middle, end_middle = (low + high) / 2, (end_low + end_high) / 2
    radius = np.maximum(_length(high - low), _length(end_high - end_low)) / 2
    center, reach = solids.center_m.astype(np.float32)[:, :, None], _length(solids.half_m.astype(np.float32))
    along = end_middle - middle
    square = np.maximum((along * along).sum(axis=0), np.float32(1e-9))
    offset = [center[i] - middle[i] for i in range(3)]
    fraction = np.clip(sum(offset[i] * along[i] for i in range(3)) / square, 0, 1)
    away = sum((offset[i] - fraction * along[i]) ** 2 for i in range(3))
    near &= away <= (reach[:, None] + radius) ** 2
    return near


def _length(vectors: F32) -> F32:
    return np.asarray(np.sqrt((vectors * vectors).sum(axis=0)))
