"""Draws the shell of a room: size, finishes, windows, doors, alcove, and the next room.

A position on a wall is given by the wall's face (see room.py) and the metres along it: z for walls at low and high x, x
for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .builder import Builder, Rng, pick, rgb, vary
from .room import Cell, Finish, Portal, Room
from .shapes import Material

if TYPE_CHECKING:
    from .shapes import Solid

SIZES_M = {
    "living": ((3.6, 5.6), (3.6, 5.2)),
    "bedroom": ((3.0, 4.4), (3.0, 4.4)),
    "office": ((3.2, 5.8), (3.0, 5.2)),
    "kitchen": ((2.6, 4.4), (2.8, 4.8)),
    "corridor": ((1.5, 2.2), (4.5, 7.5)),
}
WALL_FACES = (0, 1, 4, 5)
YAWS_RAD = {0: math.pi / 2, 1: -math.pi / 2, 4: 0.0, 5: math.pi}
REACH_M = 9.7
"""Longest line of sight; it limits the depth of the next rooms."""
WALL_COLORS = ("f1ede4", "e9e4d8", "f4f4f0", "dfe3e4", "d9cdb8", "c9d3cf", "c4b8a8", "a9b8bf", "b9c4a8", "d8b9a0")
FLOOR_WOODS = ("b98a5c", "a5713f", "8a5a34", "c9a577", "6b452b", "d2b48a", "9c8468")
CURTAINS = ("e9e4d8", "c9b8a4", "8f9aa5", "a5806a", "6f7f6a", "d8d8d4", "b9a55a", "7a4a45")
WHITE = rgb("f0eee9")


@dataclass(frozen=True)
class Opening:
    """A window, door or alcove in a wall of the main cell."""

    face: int
    along_m: float
    half_m: float
    low_m: float
    high_m: float
    kind: str
    """`window`, `door` (shut), `doorway` or `alcove`."""
    dressed: bool = False
    """Whether it has curtains or a radiator."""


@dataclass
class Shell:
    """A room without furniture."""

    kind: str
    half_x: float
    half_z: float
    high: float
    cells: list[Cell] = field(default_factory=list)
    portals: list[Portal] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    leaves: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Low x, high x, low z, high z of doors that are open into the room."""
    solids: list[Solid] = field(default_factory=list)

    def room(self) -> Room:
        """Return the cells for ray tracing."""
        return Room(tuple(self.cells), tuple(self.portals))

    def half_along(self, face: int) -> float:
        """Return half the length of a wall."""
        return self.half_z if face < 2 else self.half_x

    def stand(self, face: int, along_m: float, off_m: float = 0.0, y_m: float = 0.0) -> Builder:
        """Return a builder `off_m` from a wall, with its z axis into the room."""
        sign = 1 if face % 2 else -1
        x = sign * (self.half_x - off_m) if face < 2 else along_m
        z = along_m if face < 2 else sign * (self.half_z - off_m)
        return self.spot(x, z, YAWS_RAD[face], y_m)

    def spot(self, x_m: float, z_m: float, yaw_rad: float = 0.0, y_m: float = 0.0) -> Builder:
        """Return a builder at a position on the floor."""
        return Builder(self.solids, x_m, y_m, z_m, yaw_rad)


def draw_shell(rng: Rng, kind: str, bright: float) -> Shell:
    """Draw the shell of a room; `bright` is the light outside its windows."""
    (low_x, high_x), (low_z, high_z) = SIZES_M[kind]
    shell = Shell(kind, rng.uniform(low_x, high_x) / 2, rng.uniform(low_z, high_z) / 2, float(rng.uniform(2.35, 2.8)))
    corner = (shell.half_x, shell.high, shell.half_z)
    finishes = _finishes(rng, kind)
    shell.cells.append(Cell((-corner[0], 0.0, -corner[2]), corner, finishes))
    faces = [int(face) for face in rng.permutation(WALL_FACES)]
    windows = {"corridor": 0, "kitchen": 1}.get(kind, 1 + int(rng.random() < 0.4))
    if kind == "corridor":  # doors on both sides and at the far end
        for face in (0, 1):
            for position in (-0.55, 0.45):
                if rng.random() < 0.7:
                    _door(shell, rng, face, position * shell.half_z + float(rng.uniform(-0.3, 0.3)))
        _door(shell, rng, int(rng.choice([4, 5])), float(rng.uniform(-0.2, 0.2)))
        if rng.random() < 0.5:
            _window(shell, rng, 4 if not any(o.face == 4 for o in shell.openings) else 5, bright)
        return shell
    for face in faces[:windows]:
        _window(shell, rng, face, bright)
    spare = shell.half_along(faces[2]) - 0.6
    _door(shell, rng, faces[2], float(rng.uniform(-spare, spare)))
    if rng.random() < 0.35:
        _alcove(shell, rng, faces[3], finishes)
    elif rng.random() < 0.3:
        spare = shell.half_along(faces[3]) - 0.6
        _door(shell, rng, faces[3], float(rng.uniform(-spare, spare)))
    return shell


def _finishes(rng: Rng, kind: str) -> tuple[Finish, ...]:
    """Draw the finishes of the six faces of a room."""
    trim = vary(rng, pick(rng, ("f0eee9", "e4ded0", "8a5a34", "5a4030"), 0.1), 0.1)
    skirting = float(rng.choice([0.0, 0.07, 0.11]))

    def wall(colors: tuple[str, ...]) -> Finish:
        style = float(rng.choice([0, 1, 2, 3, 4], p=[0.52, 0.14, 0.12, 0.08, 0.14]))
        pitch = float(rng.uniform(0.1, 0.3))
        return Finish(Material.WALL, pick(rng, colors, 0.1), trim, (style, float(rng.random()), pitch, skirting))

    common = wall(WALL_COLORS)
    walls = [common] * 4
    if rng.random() < 0.3:  # one wall in another colour
        walls[int(rng.integers(4))] = wall(("7a8f94", "8f6f5a", "55697a", "9a8f5a", "8a4f45", "6f7f6a", "3f4f5a"))
    if kind == "kitchen" and rng.random() < 0.5:
        size = float(rng.uniform(0.1, 0.2))
        tiled = (size * float(rng.choice([1, 1, 2])), size, float(rng.random()), 0.08, 0.0, float(rng.random() < 0.5))
        walls = [Finish(Material.TILES, pick(rng, WALL_COLORS, 0.15), trim, tiled)] * 4
    ceiling = Finish(Material.WALL, pick(rng, ("f4f3ef", "eeebe4"), 0.05), WHITE, (4.0, 0.3, 0.2, 0.0))
    if kind == "office" and rng.random() < 0.5:
        ceiling = Finish(Material.TILES, WHITE, WHITE, (0.6, 0.6, float(rng.random()), 0.0, 0.0, 0.0))
    return (walls[0], walls[1], draw_floor(rng, kind), ceiling, walls[2], walls[3])


def draw_floor(rng: Rng, kind: str) -> Finish:
    """Draw a floor of boards, tiles or carpet."""
    odds = {"kitchen": (0.3, 0.7, 0.0), "office": (0.35, 0.2, 0.45), "bedroom": (0.55, 0.0, 0.45)}
    style = rng.choice(3, p=odds.get(kind, (0.65, 0.2, 0.15)))
    seed = float(rng.random())
    if style == 0:
        boards = (float(rng.uniform(0.07, 0.2)), float(rng.uniform(0.6, 1.8)), seed, float(rng.uniform(0.03, 0.12)))
        return Finish(Material.WOOD, pick(rng, FLOOR_WOODS, 0.2), extra=boards)
    if style == 1:
        size = float(rng.uniform(0.2, 0.6))
        tile = pick(rng, ("c9c2b4", "b5b0a8", "8f8a84", "d8d4cc", "a5755a", "5a5c60"), 0.15)
        second = vary(rng, tile, 0.5)
        extra = (size, size, seed, float(rng.uniform(0.04, 0.14)), float(rng.choice([0, 0, 0, 0.3, 1])), 0.0)
        return Finish(Material.TILES, tile, second, extra)
    carpet = pick(rng, ("8f8a80", "6f737a", "a59a88", "5a6470", "7a5f50", "6a7a6a"), 0.2)
    return Finish(Material.CARPET, carpet, vary(rng, carpet, 0.3), (seed, 0.0, 0.0))


def _recess(shell: Shell, opening: Opening, deep_m: float, finishes: tuple[Finish, ...], start_m: float = 0.0) -> int:
    """Add a cell from `start_m` to `deep_m` behind the wall of an opening; return its number."""
    side = 1 if opening.face % 2 else -1
    wall = shell.half_x if opening.face < 2 else shell.half_z
    across = sorted((side * (wall + start_m), side * (wall + deep_m)))
    along = (opening.along_m - opening.half_m, opening.along_m + opening.half_m)
    x, z = (across, along) if opening.face < 2 else (along, across)
    shell.cells.append(Cell((x[0], opening.low_m, z[0]), (x[1], opening.high_m, z[1]), finishes))
    return len(shell.cells) - 1


def _open(shell: Shell, cell: int, opening: Opening, into: int) -> None:
    """Join two cells through an opening, in both directions."""
    along = (opening.along_m - opening.half_m, opening.along_m + opening.half_m)
    low, high = (along[0], opening.low_m), (along[1], opening.high_m)
    shell.portals.append(Portal(cell, opening.face, low, high, into))
    shell.portals.append(Portal(into, opening.face ^ 1, low, high, cell))


def _window(shell: Shell, rng: Rng, face: int, bright: float) -> None:
    half = min(float(rng.uniform(0.4, 1.1)), shell.half_along(face) - 0.35)
    spare = shell.half_along(face) - half - 0.25
    tall = rng.random() < 0.15
    sill, top = (
        (0.1 if tall else float(rng.uniform(0.75, 1.05))),
        min(float(rng.uniform(1.95, 2.25)), shell.high - 0.15),
    )
    dressed = bool(rng.random() < 0.65)
    opening = Opening(face, float(rng.uniform(-spare, spare)), half, sill, top, "window", dressed)
    shell.openings.append(opening)
    deep, frame = float(rng.uniform(0.1, 0.24)), pick(rng, ("f4f3ef", "e4e2dc", "6b452b", "3a3c3e"), 0.08)
    jamb = Finish(Material.WALL, WHITE, WHITE, (0.0, 0.1, 0.2, 0.0))
    view = (0.6 * bright, float(rng.uniform(-0.8, 0.0)), float(rng.random()))
    pane = Finish(Material.PANE, WHITE, WHITE, view)
    _open(shell, 0, opening, _recess(shell, opening, deep, tuple(pane if i == face else jamb for i in range(6))))
    middle, rise, bar = (sill + top) / 2, (top - sill) / 2, float(rng.uniform(0.025, 0.04))
    to = shell.stand(face, opening.along_m, -deep + 0.02, middle)
    for side in (-1, 1):
        to.box((side * (half - bar), 0, 0), (bar, rise - 2 * bar, 0.019), frame)
        to.box((0, side * (rise - bar), 0), (half, bar, 0.019), frame)
    leaves = max(1, round(half / 0.45))
    for post in range(1, leaves):
        to.box((-half + 2 * half * post / leaves, 0, 0), (bar * 0.8, rise - 2 * bar, 0.016), frame)
    if rng.random() < 0.4:
        to.box((0, rise * 0.35, 0), (half - 2 * bar, bar * 0.7, 0.014), frame)
    if not tall:
        shell.stand(face, opening.along_m).box((0, sill - 0.018, 0.04), (half + 0.05, 0.018, 0.04), frame)
    if dressed:
        _dress(shell, rng, opening, bright)
    elif rng.random() < 0.4:  # a blind
        cloth, drop = pick(rng, CURTAINS, 0.2), float(rng.uniform(0.15, 0.6)) * (top - sill)
        to = shell.stand(face, opening.along_m)
        to.box((0, top - drop / 2 + 0.06, 0.02), (half + 0.04, drop / 2 + 0.02, 0.012), cloth, Material.FABRIC)


def _dress(shell: Shell, rng: Rng, window: Opening, bright: float) -> None:
    """Add curtains, a radiator, or both."""
    half, top = window.half_m, window.high_m
    to = shell.stand(window.face, window.along_m)
    heated = window.low_m > 0.7 and rng.random() < 0.5
    if heated:
        rise, wide = float(rng.uniform(0.2, 0.27)), min(half, 0.7)
        to.box((0, 0.14 + rise, 0.045), (wide, rise, 0.035), WHITE, Material.FOLDS, extra=(14.0, 0.0, 0.0))
    if heated and rng.random() < 0.4:
        return
    cloth, rod = pick(rng, CURTAINS, 0.2), min(top + 0.1, shell.high - 0.05)
    foot = 0.03 if rng.random() < 0.6 else max(0.03, window.low_m - 0.15)
    to.tube((-half - 0.28, rod, 0.11), (half + 0.28, rod, 0.11), 0.012, pick(rng, ("2a2a2a", "b8a070", "6b452b")))
    folds = (float(rng.uniform(5, 9)), 0.05 * bright, float(rng.random()))
    for side in (-1, 1):
        wide = float(rng.uniform(0.12, 0.2) + rng.uniform(0, 0.25) * half)
        spot = (side * (half + 0.24 - wide), (rod + foot) / 2, 0.11)
        to.box(spot, (wide, (rod - foot) / 2 - 0.014, 0.026), cloth, Material.FOLDS, extra=folds)


def _door(shell: Shell, rng: Rng, face: int, along_m: float) -> None:
    """Add a shut door, or a doorway with part of the next room."""
    half, top = float(rng.uniform(0.38, 0.46)), float(rng.uniform(1.98, 2.1))
    if any(o.face == face and abs(o.along_m - along_m) < o.half_m + half + 0.2 for o in shell.openings):
        return
    paint = pick(rng, ("f0eee9", "e8e2d4", "8a5a34", "a9794a", "6e4a30", "b9b4aa"), 0.1)
    trim = vary(rng, paint, 0.08)
    depth = _depth_left(shell, face)
    is_open = depth > 1.3 and rng.random() < 0.65
    opening = Opening(face, along_m, half, 0.0, top, "doorway" if is_open else "door")
    shell.openings.append(opening)
    to = shell.stand(face, along_m)
    for side in (-1, 1):
        to.box((side * (half + 0.035), top / 2, 0.012), (0.035, top / 2, 0.012), trim)
    to.box((0, top + 0.04, 0.012), (half + 0.07, 0.04, 0.013), trim)
    front = (1.0, float(rng.integers(1, 4)), 0.0, float(rng.random() < 0.7), float(rng.random()), 0.04)
    steel = (0.35, 0.34, 0.33)
    if not is_open:
        panel = (1.0, 1.0, 2.0, *front[3:])
        to.box((0, top / 2, 0.004), (half, top / 2, 0.004), paint, Material.FRONTS, color2=steel, extra=panel)
        to.tube((half - 0.08, 1.02, 0.008), (half - 0.08, 1.02, 0.06), 0.012, steel)
        to.tube((half - 0.07, 1.02, 0.055), (half - 0.2, 1.02, 0.055), 0.011, steel)
        return
    jamb = Finish(Material.WALL, trim, trim, (0.0, 0.1, 0.2, 0.0))
    floor = draw_floor(rng, "living")
    thick = float(rng.uniform(0.1, 0.16))
    tunnel = _recess(shell, opening, thick, (jamb, jamb, floor, jamb, jamb, jamb))
    _open(shell, 0, opening, tunnel)
    limit = shell.half_along(face)
    low, high = max(-limit, along_m - rng.uniform(0.7, 2.5)), min(limit, along_m + rng.uniform(0.7, 2.5))
    deep = thick + min(depth - thick, float(rng.uniform(1.2, 3.0)))
    beyond = Opening(face, (low + high) / 2, (high - low) / 2, 0.0, shell.high, "doorway")
    walls = _finishes(rng, "living")
    cell = _recess(shell, beyond, deep, (*walls[:2], floor, *walls[3:]), thick)
    _open(shell, tunnel, opening, cell)
    if rng.random() < 0.5:  # an open door leaf in the room
        hinge = float(rng.choice([-1, 1]))
        to.box((hinge * (half + 0.02), top / 2, half + 0.03), (0.018, top / 2 - 0.01, half), paint)
        corner, edge = to.solids[-1].center_m, (0.02, half) if face > 1 else (half, 0.02)
        x, z = float(corner[0]), float(corner[2])
        shell.leaves.append((x - edge[0], x + edge[0], z - edge[1], z + edge[1]))


def _depth_left(shell: Shell, face: int) -> float:
    """Return the depth behind a wall that keeps all lines of sight within REACH_M."""
    lows = [min(cell.low_m[axis] for cell in shell.cells) for axis in range(3)]
    highs = [max(cell.high_m[axis] for cell in shell.cells) for axis in range(3)]
    spans = [high - low for low, high in zip(lows, highs, strict=True)]
    axis = 0 if face < 2 else 2
    other = math.hypot(spans[2 - axis], spans[1])
    return math.sqrt(max(REACH_M**2 - other**2, 0.0)) - spans[axis]


def _alcove(shell: Shell, rng: Rng, face: int, finishes: tuple[Finish, ...]) -> None:
    """Add an alcove: a cell behind a wide opening."""
    depth = min(_depth_left(shell, face), float(rng.uniform(0.9, 2.4)))
    if depth < 0.7:
        return
    length = shell.half_along(face)
    half = length * float(rng.uniform(0.35, 0.75))
    along = float(rng.uniform(-1, 1)) * (length - half)
    top = shell.high if rng.random() < 0.6 else shell.high - float(rng.uniform(0.15, 0.35))
    opening = Opening(face, along, half, 0.0, top, "alcove")
    shell.openings.append(opening)
    cell = _recess(shell, opening, depth, finishes)
    _open(shell, 0, opening, cell)
