"""The shell of a room: boxes of air joined by portals, and the hits of rays on them.

A cell is a box of air seen from inside: the room, an alcove, a doorway, the next room or the recess of a window. A
portal is a rectangle in the face of a cell through which rays enter another cell. Faces are numbered axis * 2, plus 1
on the side of larger coordinates: 0 and 1 are walls at low and high x, 2 floor, 3 ceiling, 4 and 5 walls at low and
high z.

Shape legend: n rays, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .camera import F32
    from .shapes import Material, Triple

ACROSS = ((2, 1), (0, 2), (0, 1))
"""The two axes of the plane of a face; the one along the floor comes first."""


@dataclass(frozen=True)
class Finish:
    """Material of a face of a cell; the material defines the meaning of `extra`."""

    material: Material
    color: Triple
    color2: Triple = (0.0, 0.0, 0.0)
    extra: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A box of air, with six finishes in the order of the faces."""

    low_m: Triple
    high_m: Triple
    finishes: tuple[Finish, ...]


@dataclass(frozen=True)
class Portal:
    """A rectangle in a face of `cell` that opens into `into`; coordinates in the order of ACROSS."""

    cell: int
    face: int
    low_m: tuple[float, float]
    high_m: tuple[float, float]
    into: int


@dataclass(frozen=True)
class Room:
    """All cells. The camera is in the first one."""

    cells: tuple[Cell, ...]
    portals: tuple[Portal, ...]
    low_m: F32 = field(init=False)
    high_m: F32 = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low_m", np.array([cell.low_m for cell in self.cells], dtype=np.float32).T)
        object.__setattr__(self, "high_m", np.array([cell.high_m for cell in self.cells], dtype=np.float32).T)

    def hit_m(self, origin_m: tuple[float, float, float], rays: F32) -> F32:
        """Return depth (...) in metres at which rays (3, ...) from a point in the first cell meet the shell."""
        flat = rays.reshape(3, -1)
        origin = np.array(origin_m, dtype=np.float32)[:, None]
        depth, _ = self.walk(origin, flat, np.zeros(flat.shape[1], dtype=np.int64))
        return depth.reshape(rays.shape[1:])

    def walk(self, origin_m: F32, rays: F32, cells: NDArray[np.int64]) -> tuple[F32, NDArray[np.int64]]:
        """Return where rays that start in `cells` (n) end.

        Args:
            origin_m: (3, n) or (3, 1) starting points.
            rays: (3, n) directions of any length.
            cells: (n) cell of each start.

        Returns:
            (n) ray parameters, and (n) faces: cell * 6 + number of the face.
        """
        here = cells.copy()
        depth = np.empty(rays.shape[1], dtype=np.float32)
        faces = np.empty(rays.shape[1], dtype=np.int64)
        shared = origin_m.shape[1] == 1
        going = np.arange(rays.shape[1])
        while len(going):
            start, way = origin_m if shared else origin_m[:, going], rays[:, going]
            ahead = np.where(way > 0, self.high_m[:, here[going]], self.low_m[:, here[going]])
            with np.errstate(divide="ignore", invalid="ignore"):
                leave = np.where(way == 0, np.float32(np.inf), (ahead - start) / way)
            axis = leave.argmin(axis=0)
            at = leave.min(axis=0)
            face = here[going] * 6 + axis * 2 + (np.take_along_axis(way, axis[None], axis=0)[0] > 0)
            depth[going], faces[going] = at, face
            through = np.zeros(len(going), dtype=np.bool_)
            for portal in self.portals:
                # Cells are convex, so no ray enters one twice and the loop ends.
                at_face = np.flatnonzero(face == portal.cell * 6 + portal.face)
                if len(at_face) == 0:
                    continue
                inside = np.ones(len(at_face), dtype=np.bool_)
                for i, low, high in zip(ACROSS[portal.face // 2], portal.low_m, portal.high_m, strict=True):
                    crossing = (start[i] if shared else start[i][at_face]) + at[at_face] * way[i][at_face]
                    inside &= (crossing > low) & (crossing < high)
                entered = at_face[inside]
                here[going[entered]] = portal.into
                through[entered] = True
            going = going[through]
        return depth, faces

    def finish_columns(self) -> tuple[NDArray[np.int64], F32, F32, F32]:
        """Return for all C * 6 faces the material, and as columns colour (3), second colour (3), extra (6)."""
        finishes = [finish for cell in self.cells for finish in cell.finishes]
        padded = [(*finish.extra, *[0.0] * 6)[:6] for finish in finishes]
        return (
            np.array([finish.material for finish in finishes], dtype=np.int64),
            np.array([finish.color for finish in finishes], dtype=np.float32).T,
            np.array([finish.color2 for finish in finishes], dtype=np.float32).T,
            np.array(padded, dtype=np.float32).T,
        )
