"""Where things may stand or hang in a room, so that nothing is in anything else.

A place on a wall is told as in rooms.py: by the wall's face, and the metres along it.
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
"""What comes as near to a wall may meet a sill or a picture."""
TRIALS = 14


class Place(NamedTuple):
    """A rectangle of the plan."""

    low_x: float
    high_x: float
    low_z: float
    high_z: float

    def meets(self, other: Place) -> bool:
        """Whether they overlap."""
        return (
            self.low_x < other.high_x
            and other.low_x < self.high_x
            and self.low_z < other.high_z
            and other.low_z < self.high_z
        )


class Placer:
    """Knows what is taken in the main cell of a shell, and finds free places at random."""

    def __init__(self, rng: Rng, shell: Shell) -> None:
        self.rng, self.shell = rng, shell
        self.taken: list[Place] = []
        self.hung: list[tuple[int, float, float, float, float]] = []
        """Of things on walls: face, start, end along it, bottom, top."""
        for opening in shell.openings:
            if opening.low_m < 0.05:
                self.taken.append(before(shell, opening.face, opening.along_m, opening.half_m + 0.08, DOOR_ROOM_M))
            margin = 0.32 if opening.kind == "window" else 0.12
            if opening.kind == "window" and opening.dressed:
                self.taken.append(before(shell, opening.face, opening.along_m, opening.half_m + margin, 0.14))
            half = opening.half_m + margin
            self.hang(opening.face, opening.along_m, half, opening.low_m - 0.05, opening.high_m + 0.25)

    def stand_camera(self) -> tuple[float, float, float]:
        """Draw x, z and yaw of a camera that looks across the room from near its rim, and keep others off it."""
        shell, rng = self.shell, self.rng
        # One may stand where doors would open, but not in an open door.
        rims = [before(shell, o.face, o.along_m, o.half_m + 0.08, DOOR_ROOM_M) for o in shell.openings]
        solid = [*(place for place in self.taken if place not in rims), *(Place(*leaf) for leaf in shell.leaves)]
        best, farthest = (0.0, 0.0, 0.0), -math.inf
        for margin in (0.45, 0.3, 0.2):
            for _ in range(24):
                x = float(rng.uniform(-1, 1)) * (shell.half_x - 0.5)
                z = float(rng.uniform(-1, 1)) * (shell.half_z - 0.5)
                aim_x, aim_z = (float(rng.uniform(-0.5, 0.5)) * half for half in (shell.half_x, shell.half_z))
                away = math.hypot(aim_x - x, aim_z - z)
                spot = Place(x - margin, x + margin, z - margin, z + margin)
                if away > farthest and not any(spot.meets(other) for other in solid):
                    best, farthest = (x, z, math.atan2(aim_x - x, aim_z - z)), away
            if farthest > 0:
                break
        x, z, towards = best
        for step in (0.0, 0.3):
            ahead_x, ahead_z = x + step * math.sin(towards), z + step * math.cos(towards)
            self.taken.append(Place(ahead_x - 0.42, ahead_x + 0.42, ahead_z - 0.42, ahead_z + 0.42))
        return best

    def is_free(self, place: Place) -> bool:
        """Whether a place is within the main cell and nothing stands there."""
        inside = max(abs(place.low_x), abs(place.high_x)) < self.shell.half_x - 0.02
        inside &= max(abs(place.low_z), abs(place.high_z)) < self.shell.half_z - 0.02
        return inside and not any(place.meets(other) for other in self.taken)

    def hangs_free(self, face: int, along: float, half: float, low: float, high: float) -> bool:
        """Whether a stretch of a wall (half its length, bottom and top in metres) has nothing on it."""
        return not any(
            face == f and along - half < end and along + half > start and low < top and high > bottom
            for f, start, end, bottom, top in self.hung
        )

    def hang(self, face: int, along: float, half: float, low: float, high: float) -> None:
        """Note that a stretch of a wall is taken."""
        self.hung.append((face, along - half, along + half, low, high))

    def stand(self, place: Place, high: float) -> bool:
        """Take a place for something this high, also on the walls that it touches; False where it is not free."""
        if not self.is_free(place):
            return False
        touched = []
        for face in WALL_FACES:
            strip = before(self.shell, face, 0.0, self.shell.half_along(face), TOUCH_M)
            if strip.meets(place):
                low, high_along = place[2:] if face < 2 else place[:2]
                touched.append((face, (low + high_along) / 2, (high_along - low) / 2))
        if not all(self.hangs_free(face, along, half, 0.0, high) for face, along, half in touched):
            return False
        for face, along, half in touched:
            self.hang(face, along, half, 0.0, high + 0.12)
        self.taken.append(place)
        return True

    def by_wall(
        self, half_x: float, half_z: float, high: float, *, room_m: float = 0.0, faces: tuple[int, ...] = WALL_FACES
    ) -> Builder | None:
        """A free place with its back to a wall and `room_m` free before it, now taken; or none."""
        for _ in range(TRIALS):
            face = int(self.rng.choice(faces))
            spare = self.shell.half_along(face) - half_x - GAP_M
            if spare < 0:
                continue
            # Often in a corner, as people furnish.
            along = spare * (float(self.rng.choice([-1, 1])) if self.rng.random() < 0.3 else self.rng.uniform(-1, 1))
            wanted = before(self.shell, face, along, half_x, 2 * half_z + GAP_M + room_m)
            place = before(self.shell, face, along, half_x, 2 * half_z + GAP_M)
            if not any(wanted.meets(other) for other in self.taken) and self.stand(_shifted(place, face), high):
                return self.shell.stand(face, along, half_z + GAP_M)
        return None

    def in_the_open(self, half_x: float, half_z: float, high: float, *, turned: bool = False) -> Builder | None:
        """A free place somewhere on the floor, now taken; or none."""
        reach = math.hypot(half_x, half_z) if turned else 0.0
        wide, deep = max(half_x, reach), max(half_z, reach)
        x_room, z_room = self.shell.half_x - wide - 0.05, self.shell.half_z - deep - 0.05
        if min(x_room, z_room) < 0:
            return None
        for _ in range(TRIALS):
            yaw = float(self.rng.uniform(-math.pi, math.pi)) if turned else 0.0
            x, z = float(self.rng.uniform(-x_room, x_room)), float(self.rng.uniform(-z_room, z_room))
            if self.stand(Place(x - wide, x + wide, z - deep, z + deep), high):
                return self.shell.spot(x, z, yaw)
        return None


def before(shell: Shell, face: int, along_m: float, half_m: float, deep_m: float) -> Place:
    """The floor before a stretch of wall, `deep_m` into the room."""
    sign = 1 if face % 2 else -1
    wall = shell.half_x if face < 2 else shell.half_z
    low, high = sorted((sign * wall, sign * (wall - deep_m)))
    start, end = along_m - half_m, along_m + half_m
    return Place(low, high, start, end) if face < 2 else Place(start, end, low, high)


def _shifted(place: Place, face: int) -> Place:
    """The place without the gap to its wall."""
    low_x, high_x, low_z, high_z = place
    moved = GAP_M * (-1 if face % 2 else 1)
    if face < 2:
        return Place(low_x + max(moved, 0), high_x + min(moved, 0), low_z, high_z)
    return Place(low_x, high_x, low_z + max(moved, 0), high_z + min(moved, 0))
