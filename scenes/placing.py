"""Free places on the floor and walls of a room, so that objects do not overlap.

A position on a wall is given by the wall's face and the metres along it, as in rooms.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .rooms import WALL_FACES

if TYPE_CHECKING:
    from .builder import Builder, Rng
    from .rooms import Shell

DOOR_ROOM_M = 1.0
GAP_M = 0.03
TOUCH_M = 0.1
"""Objects within this distance of a wall also take space on it."""
TRIALS = 14


class Rectangle(NamedTuple):
    """A rectangle of the floor plan."""

    low_x: float
    high_x: float
    low_z: float
    high_z: float

    def meets(self, other: Rectangle) -> bool:
        """Return whether both overlap."""
        return (
            self.low_x < other.high_x
            and other.low_x < self.high_x
            and self.low_z < other.high_z
            and other.low_z < self.high_z
        )


class Placer:
    """Tracks taken places in the main cell of a shell and draws free ones."""

    def __init__(self, rng: Rng, shell: Shell) -> None:
        self.rng, self.shell = rng, shell
        self.taken: list[Rectangle] = []
        self.hung: list[tuple[int, float, float, float, float]] = []
        """Objects on walls: face, start and end along it, bottom, top."""
        for opening in shell.openings:
            if opening.low_m < 0.05:
                self.taken.append(before(shell, opening.face, opening.along_m, opening.half_m + 0.08, DOOR_ROOM_M))
            margin = 0.32 if opening.kind == "window" else 0.12
            if opening.kind == "window" and opening.dressed:
                self.taken.append(before(shell, opening.face, opening.along_m, opening.half_m + margin, 0.14))
            half = opening.half_m + margin
            self.hang(opening.face, opening.along_m, half, opening.low_m - 0.05, opening.high_m + 0.25)

    def stand_camera(self) -> tuple[float, float, float]:
        """Draw x, z and yaw of a camera that looks across the room, and reserve its place."""
        shell, rng = self.shell, self.rng
        # The camera may stand where a door would open, but not in an open door.
        rims = [before(shell, o.face, o.along_m, o.half_m + 0.08, DOOR_ROOM_M) for o in shell.openings]
        solid = [rectangle for rectangle in self.taken if rectangle not in rims]
        solid += [Rectangle(*leaf) for leaf in shell.leaves]
        best, farthest = (0.0, 0.0, 0.0), -math.inf
        for margin in (0.45, 0.3, 0.2):
            for _ in range(24):
                x = float(rng.uniform(-1, 1)) * (shell.half_x - 0.5)
                z = float(rng.uniform(-1, 1)) * (shell.half_z - 0.5)
                aim_x, aim_z = (float(rng.uniform(-0.5, 0.5)) * half for half in (shell.half_x, shell.half_z))
                away = math.hypot(aim_x - x, aim_z - z)
                spot = Rectangle(x - margin, x + margin, z - margin, z + margin)
                if away > farthest and not any(spot.meets(other) for other in solid):
                    best, farthest = (x, z, math.atan2(aim_x - x, aim_z - z)), away
            if farthest > 0:
                break
        x, z, towards = best
        for step in (0.0, 0.3):
            ahead_x, ahead_z = x + step * math.sin(towards), z + step * math.cos(towards)
            self.taken.append(Rectangle(ahead_x - 0.42, ahead_x + 0.42, ahead_z - 0.42, ahead_z + 0.42))
        return best

    def is_free(self, rectangle: Rectangle) -> bool:
        """Return whether a rectangle is free and within the main cell."""
        inside = max(abs(rectangle.low_x), abs(rectangle.high_x)) < self.shell.half_x - 0.02
        inside &= max(abs(rectangle.low_z), abs(rectangle.high_z)) < self.shell.half_z - 0.02
        return inside and not any(rectangle.meets(other) for other in self.taken)

    def hangs_free(self, face: int, along: float, half: float, low: float, high: float) -> bool:
        """Return whether a part of a wall (half its length, bottom and top in metres) is free."""
        return not any(
            face == f and along - half < end and along + half > start and low < top and high > bottom
            for f, start, end, bottom, top in self.hung
        )

    def hang(self, face: int, along: float, half: float, low: float, high: float) -> None:
        """Reserve a part of a wall."""
        self.hung.append((face, along - half, along + half, low, high))

    def stand(self, rectangle: Rectangle, high: float) -> bool:
        """Reserve floor and touched walls for an object of this height; return False if they are not free."""
        if not self.is_free(rectangle):
            return False
        touched = []
        for face in WALL_FACES:
            strip = before(self.shell, face, 0.0, self.shell.half_along(face), TOUCH_M)
            if strip.meets(rectangle):
                low, high_along = rectangle[2:] if face < 2 else rectangle[:2]
                touched.append((face, (low + high_along) / 2, (high_along - low) / 2))
        if not all(self.hangs_free(face, along, half, 0.0, high) for face, along, half in touched):
            return False
        for face, along, half in touched:
            self.hang(face, along, half, 0.0, high + 0.12)
        self.taken.append(rectangle)
        return True

    def by_wall(
        self, half_x: float, half_z: float, high: float, *, room_m: float = 0.0, faces: tuple[int, ...] = WALL_FACES
    ) -> Builder | None:
        """Reserve a place with its back to a wall and `room_m` free in front of it; None if there is none."""
        for _ in range(TRIALS):
            face = int(self.rng.choice(faces))
            spare = self.shell.half_along(face) - half_x - GAP_M
            if spare < 0:
                continue
            # Often in a corner.
            along = spare * (float(self.rng.choice([-1, 1])) if self.rng.random() < 0.3 else self.rng.uniform(-1, 1))
            wanted = before(self.shell, face, along, half_x, 2 * half_z + GAP_M + room_m)
            rectangle = before(self.shell, face, along, half_x, 2 * half_z + GAP_M)
            if not any(wanted.meets(other) for other in self.taken) and self.stand(_shifted(rectangle, face), high):
                return self.shell.stand(face, along, half_z + GAP_M)
        return None

    def in_the_open(self, half_x: float, half_z: float, high: float, *, turned: bool = False) -> Builder | None:
        """Reserve a place anywhere on the floor; None if there is none."""
        reach = math.hypot(half_x, half_z) if turned else 0.0
        wide, deep = max(half_x, reach), max(half_z, reach)
        x_room, z_room = self.shell.half_x - wide - 0.05, self.shell.half_z - deep - 0.05
        if min(x_room, z_room) < 0:
            return None
        for _ in range(TRIALS):
            yaw = float(self.rng.uniform(-math.pi, math.pi)) if turned else 0.0
            x, z = float(self.rng.uniform(-x_room, x_room)), float(self.rng.uniform(-z_room, z_room))
            if self.stand(Rectangle(x - wide, x + wide, z - deep, z + deep), high):
                return self.shell.spot(x, z, yaw)
        return None


def before(shell: Shell, face: int, along_m: float, half_m: float, deep_m: float) -> Rectangle:
    """Return the floor in front of a part of a wall, `deep_m` into the room."""
    sign = 1 if face % 2 else -1
    wall = shell.half_x if face < 2 else shell.half_z
    low, high = sorted((sign * wall, sign * (wall - deep_m)))
    start, end = along_m - half_m, along_m + half_m
    return Rectangle(low, high, start, end) if face < 2 else Rectangle(start, end, low, high)


def _shifted(rectangle: Rectangle, face: int) -> Rectangle:
    """Return the rectangle without the gap to its wall."""
    low_x, high_x, low_z, high_z = rectangle
    moved = GAP_M * (-1 if face % 2 else 1)
    if face < 2:
        return Rectangle(low_x + max(moved, 0), high_x + min(moved, 0), low_z, high_z)
    return Rectangle(low_x, high_x, low_z + max(moved, 0), high_z + min(moved, 0))
