"""Tables of periodic noise, made once per process, and fast look-up.

Shape legend: n points (any shape), S side of a table, C side of the cube.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .camera import F32

SIDE = 512
CUBE = 64
_MASK = SIDE - 1
Points = NDArray[Any]


@cache
def white() -> F32:
    """(S, S) independent uniform numbers in [0, 1)."""
    return np.random.default_rng(71).random((SIDE, SIDE), dtype=np.float32)


@cache
def fractal() -> F32:
    """(S, S) noise with features from S / 16 cells down to 1: mean 0, standard deviation 1."""
    return _octaves(72, (16, 32, 64, 128, 256, 512), 0.95)


@cache
def smooth() -> F32:
    """(S, S) noise with features of S / 32 cells and larger only: mean 0, standard deviation 1."""
    return _octaves(73, (8, 16, 32), 0.6)


@cache
def clumps() -> F32:
    """(C, C, C) noise in space, for leaves: features from C / 8 cells down to 1, mean 0, deviation 1."""
    return _octaves(74, (8, 16, 32, 64), 0.9, side=CUBE, axes=3)


def _octaves(seed: int, cells: tuple[int, ...], persistence: float, side: int = SIDE, axes: int = 2) -> F32:
    rng = np.random.default_rng(seed)
    total = np.zeros((side,) * axes)
    for octave, count in enumerate(cells):
        grid = rng.standard_normal((count,) * axes)
        at = np.arange(side) * count / side
        low = at.astype(np.int64)
        blend = at - low
        blend = blend * blend * (3 - 2 * blend)
        for axis in range(axes):
            start, stop = np.take(grid, low, axis=axis), np.take(grid, (low + 1) % count, axis=axis)
            grid = start + np.expand_dims(blend, tuple(range(1, axes - axis))) * (stop - start)
        total += persistence**octave * grid
    return np.asarray((total - total.mean()) / total.std(), dtype=np.float32)


def nearest(table: F32, x: Points, y: Points) -> F32:
    """Return the entry of `table` at each point (n), in cells, without interpolation."""
    column = np.floor(x).astype(np.int32) & _MASK
    row = np.floor(y).astype(np.int32) & _MASK
    return table.ravel().take(row * SIDE + column)


def blended(table: F32, x: Points, y: Points) -> F32:
    """Return `table` at each point (n), in cells, with bilinear interpolation."""
    left, top = np.floor(x), np.floor(y)
    right_weight, low_weight = (x - left).astype(np.float32), (y - top).astype(np.float32)
    column, row = left.astype(np.int32) & _MASK, (top.astype(np.int32) & _MASK) * SIDE
    next_column, next_row = (column + 1) & _MASK, (row + SIDE) & (SIDE * SIDE - 1)
    flat = table.ravel()
    above = flat.take(row + column)
    above += right_weight * (flat.take(row + next_column) - above)
    below = flat.take(next_row + column)
    below += right_weight * (flat.take(next_row + next_column) - below)
    return np.asarray(above + low_weight * (below - above))


def cell_hash(x: Points, y: Points, seed: Points | float) -> F32:
    """Return a number in [0, 1) for each integer cell (x, y) and seed in [0, 1)."""
    shift = np.floor(np.asarray(seed) * 4096)
    return nearest(white(), x * 17 + y * 59 + shift * 7, y * 31 + x * 3 + shift * 13)


def nearest_in_space(x: Points, y: Points, z: Points) -> F32:
    """Return the entry of `clumps` at each point (n), in cells, without interpolation."""
    wrap = CUBE - 1
    column, row, layer = (np.floor(v).astype(np.int32) & wrap for v in (x, y, z))
    flat: F32 = clumps().ravel()
    return np.asarray(flat.take((layer * CUBE + row) * CUBE + column))


def blended_in_space(x: Points, y: Points, z: Points) -> F32:
    """Return `clumps` at each point (n), in cells, with trilinear interpolation."""
    flat, wrap = clumps().ravel(), CUBE - 1
    corner = [np.floor(v) for v in (x, y, z)]
    fraction = [(v - c).astype(np.float32) for v, c in zip((x, y, z), corner, strict=True)]
    low = [c.astype(np.int32) & wrap for c in corner]
    high = [(c + 1) & wrap for c in low]
    planes = []
    for layer in (low[2] * CUBE**2, high[2] * CUBE**2):
        rows = []
        for row in (low[1] * CUBE, high[1] * CUBE):
            first = flat.take(layer + row + low[0])
            rows.append(first + fraction[0] * (flat.take(layer + row + high[0]) - first))
        planes.append(rows[0] + fraction[1] * (rows[1] - rows[0]))
    return np.asarray(planes[0] + fraction[2] * (planes[1] - planes[0]))
