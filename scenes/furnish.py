"""Draws the furniture of a room by its kind, without overlaps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import fittings, furniture, trinkets
from .builder import pick
from .furniture import aside
from .lamps import Lamp, bulb
from .placing import Placer, Rectangle
from .rooms import WALL_FACES
from .shapes import Material

if TYPE_CHECKING:
    from .builder import Builder, Rng
    from .rooms import Shell


class Furnisher:
    """Places furniture in the main cell of a shell; `glow` is the brightness of its lamps."""

    def __init__(self, rng: Rng, shell: Shell, glow: float) -> None:
        self.rng, self.shell, self.glow = rng, shell, glow
        self.placer = Placer(rng, shell)
        self.lamps: list[Lamp] = []

    def place_main(self) -> None:
        """Draw the main piece of the room, before anything else takes its space."""
        main = {"living": self._sofa, "bedroom": self._bed, "office": self._desk, "kitchen": self._units}
        if self.shell.kind in main:
            main[self.shell.kind]()

    def fill(self, camera_xz_m: tuple[float, float]) -> None:
        """Draw the rest of the furniture."""
        others = {
            "living": self._living,
            "bedroom": self._bedroom,
            "office": self._office,
            "kitchen": self._kitchen,
            "corridor": self._corridor,
        }
        others[self.shell.kind]()
        narrow = self.shell.kind == "corridor"
        for _ in range(int(self.rng.integers(1, 3) if narrow else self.rng.integers(3, 7))):
            self._small_piece(camera_xz_m)
        for _ in range(int(self.rng.integers(4, 10))):
            self._on_wall()

    # Kinds of rooms.

    def _sofa(self) -> None:
        half_x = float(self.rng.uniform(0.75, 1.1))
        if (to := self.placer.by_wall(half_x, 0.45, 0.9, room_m=0.9)) is not None:
            furniture.sofa(to, self.rng, half_x, 0.45)
            self._coffee_table(to)

    def _living(self) -> None:
        rng, placer = self.rng, self.placer
        half_x, high = float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.4, 0.6))
        if (to := placer.by_wall(half_x, 0.21, 1.3, room_m=0.4)) is not None:
            furniture.cupboard(to, rng, half_x, 0.21, high, (max(1, round(half_x / 0.3)), 1), bare=True)
            fittings.television(to, rng, high)
        for _ in range(int(rng.integers(1, 3))):
            if (to := placer.in_the_open(0.42, 0.42, 0.9, turned=True)) is not None:
                furniture.sofa(to, rng, 0.4, 0.4)
        self._shelves(2)
        self._cupboards(2, (0.7, 1.2))
        if rng.random() < 0.6:
            self._dining()

    def _bed(self) -> None:
        rng, placer = self.rng, self.placer
        to, widths = None, [0.85, 0.7, 0.48][int(rng.integers(3)) :]
        for half_x in (*widths, 0.48):
            if to is None and (to := placer.by_wall(half_x + 0.03, 1.07, 1.2, room_m=0.1)) is not None:
                furniture.bed(to, rng, half_x, 1.0)
                for side in (-1, 1):
                    bedside = aside(to, side * (half_x + 0.3), -0.83)
                    if placer.stand(_square(bedside, 0.21), 0.9):
                        furniture.cupboard(bedside, rng, 0.2, 0.19, 0.5, (1, 2), bare=True)
                        self._table_lamp(bedside, 0.5, -0.06)
                        trinkets.clutter(aside(bedside, 0, 0.12), rng, 0.1, 0.02, 0.5, count=2, tallest_m=0.2)

    def _bedroom(self) -> None:
        rng, placer = self.rng, self.placer
        half_x = float(rng.uniform(0.5, 1.0))
        if (to := placer.by_wall(half_x, 0.3, 2.2)) is not None:
            furniture.cupboard(to, rng, half_x, 0.3, float(rng.uniform(1.85, 2.15)))
        self._cupboards(2, (0.7, 1.1))
        self._desk()
        self._shelves(1)
        if (to := placer.in_the_open(0.55, 0.55, 0.02)) is not None:
            fittings.rug(to, rng, 0.55, float(rng.uniform(0.35, 0.55)))

    def _office(self) -> None:
        for _ in range(int(self.rng.integers(1, 4))):
            self._desk()
        self._shelves(3)
        self._cupboards(2, (0.7, 1.9))
        if self.rng.random() < 0.5:
            self._dining()
        if self.rng.random() < 0.5:
            face, half = int(self.rng.choice(WALL_FACES)), float(self.rng.uniform(0.5, 0.9))
            if (to := self._hung(face, half, 1.5, 0.45)) is not None:
                fittings.whiteboard(to, half)

    def _units(self) -> None:
        rng = self.rng
        color = pick(rng, (*furniture.PAINTS, "8a5a34", "a9794a", "7a2f2a"), 0.12)
        top = pick(rng, ("2f2f30", "b98a5c", "c9c5bd", "8a5a34"), 0.15)
        # A wall that is free up to two metres also gets wall cupboards.
        ways = [(float(rng.uniform(1.3, 1.9)), 2.1), (1.2, 2.1), (1.2, 0.92), (0.8, 2.1), (0.8, 0.92)]
        rows = 0
        for half, high in ways:
            if rows < 2 and (to := self.placer.by_wall(half + 0.01, 0.335, high, room_m=0.4)) is not None:
                fittings.kitchen_units(to, rng, half, color, top, upper=high > 1)
                rows += 1

    def _kitchen(self) -> None:
        rng, placer = self.rng, self.placer
        if (to := placer.by_wall(0.32, 0.33, 2.0)) is not None:
            fittings.refrigerator(to, rng)
        self._dining()
        self._cupboards(1, (0.8, 1.9))

    def _corridor(self) -> None:
        self._cupboards(3, (0.8, 1.1))
        self._shelves(1)
        half_z = float(self.rng.uniform(0.8, 1.5))
        if self.rng.random() < 0.7 and half_z < self.shell.half_z - 0.1:
            # A runner is below other things and takes no floor space.
            fittings.rug(self.shell.spot(0.0, float(self.rng.uniform(-0.3, 0.3))), self.rng, 0.35, half_z)

    # Groups of furniture.

    def _coffee_table(self, sofa: Builder) -> None:
        rng, spot = self.rng, aside(sofa, 0.0, 1.1)
        half_x, half_z = float(rng.uniform(0.4, 0.6)), 0.3
        if not self.placer.stand(_square(spot, half_x, half_z), 0.9):
            return
        high, on_rug = float(rng.uniform(0.38, 0.48)), 0.0
        bounds = _square(spot, half_x, half_z)
        reach = Rectangle(*(bound + sign * 0.3 for bound, sign in zip(bounds, SIDES, strict=True)))
        inside = max(map(abs, reach[:2])) < self.shell.half_x and max(map(abs, reach[2:])) < self.shell.half_z
        if inside and rng.random() < 0.6:
            fittings.rug(spot, rng, half_x + 0.25, half_z + 0.25)
            on_rug = 0.012
        furniture.table(aside(spot, 0, 0, y_m=on_rug), rng, half_x, half_z, high, round_top=bool(rng.random() < 0.25))

    def _dining(self) -> None:
        rng = self.rng
        half_x, half_z = float(rng.uniform(0.4, 0.8)), float(rng.uniform(0.36, 0.45))
        if (to := self.placer.in_the_open(half_x + 0.05, half_z + 0.5, 1.0)) is None:
            return
        is_round = bool(rng.random() < 0.3)
        furniture.table(to, rng, half_x, half_z, float(rng.uniform(0.72, 0.76)), round_top=is_round)
        color, cloth = pick(rng, furniture.WOODS, 0.2), pick(rng, furniture.CLOTHS, 0.2)
        style, seats = int(rng.integers(3)), max(1, round(half_x / 0.36))
        radius = min(half_x, half_z)
        for side in (-1, 1):
            for number in range(1 if is_round else seats):
                if rng.random() < 0.12:
                    continue
                x = 0.0 if is_round else half_x * ((2 * number + 1) / seats - 1)
                away = (radius if is_round else half_z) + float(rng.uniform(0.0, 0.16))
                turn = math.pi * (side > 0) + float(rng.normal(0, 0.1))
                furniture.chair(aside(to, x, side * away, turn), rng, style, color, cloth)
        if self.glow > 0 and rng.random() < 0.4:
            to.tube((0, 1.75, 0), (0, self.shell.high, 0), 0.008, (0.02, 0.02, 0.02), casts=False)
            trinkets.shade(to, rng, 1.75, 0.2, self.glow)
            self._lit(to, 1.75, 0.8)

    def _desk(self) -> None:
        rng = self.rng
        half_x, half_z = float(rng.uniform(0.5, 0.8)), float(rng.uniform(0.3, 0.38))
        if (to := self.placer.by_wall(half_x, half_z, 1.25, room_m=0.7)) is None:
            return
        fittings.desk(to, rng, half_x, half_z)
        self._table_lamp(aside(to, half_x - 0.16, -half_z + 0.16), 0.735, 0.0, odds=0.35)
        spot = aside(to, float(rng.normal(0, 0.08)), half_z + float(rng.uniform(0.1, 0.3)))
        # Reserve the floor of the chair in front of the desk.
        self.placer.taken.append(_square(spot, 0.34))
        chair = aside(spot, 0, 0, math.pi + float(rng.normal(0, 0.4)))
        style = int(rng.choice([3, 3, 1, 2]))
        furniture.chair(chair, rng, style, pick(rng, furniture.WOODS, 0.2), pick(rng, furniture.CLOTHS, 0.3))

    def _shelves(self, most: int) -> None:
        for _ in range(int(self.rng.integers(1, most + 1))):
            half_x, high = float(self.rng.uniform(0.35, 0.6)), float(self.rng.uniform(1.0, 2.1))
            if (to := self.placer.by_wall(half_x, 0.15, high + 0.3)) is not None:
                furniture.shelf(to, self.rng, half_x, 0.15, high)

    def _cupboards(self, most: int, highs: tuple[float, float]) -> None:
        for _ in range(int(self.rng.integers(1, most + 1))):
            half_x, high = float(self.rng.uniform(0.35, 0.75)), float(self.rng.uniform(*highs))
            half_z = 0.17 if self.shell.kind == "corridor" else 0.22
            if (to := self.placer.by_wall(half_x, half_z, high + 0.35)) is not None:
                has_lamp = high < 1.3 and self.rng.random() < 0.35
                furniture.cupboard(to, self.rng, half_x, half_z, high, bare=has_lamp)
                if has_lamp:
                    self._table_lamp(aside(to, 0.5 * half_x, 0.0), high, 0.0, odds=1.0)

    def _small_piece(self, camera_xz_m: tuple[float, float]) -> None:
        """Place a plant, boxes, a lamp, a stool, a bin or a chair."""
        rng, draw = self.rng, self.rng.random()
        if draw < 0.25:
            if (to := self.placer.by_wall(0.24, 0.27, 1.0)) is not None:
                style = int(rng.integers(3))
                furniture.chair(to, rng, style, pick(rng, furniture.WOODS, 0.2), pick(rng, furniture.CLOTHS, 0.3))
            return
        if (to := self.placer.in_the_open(0.31, 0.31, 1.8)) is None:
            return
        if math.dist((to.x_m, to.z_m), camera_xz_m) < 1.3:  # nothing tall in front of the camera
            draw = max(draw, 0.8)
        if draw < 0.45:
            trinkets.plant(to, rng, float(rng.uniform(0.7, 1.5)))
        elif draw < 0.65:
            trinkets.carton(to, rng)
        elif draw < 0.78:
            self._lit(to, trinkets.floor_lamp(to, rng, self.glow), 0.5)
        elif draw < 0.9:
            cloth = pick(rng, furniture.CLOTHS, 0.2)
            to.tube((0, 0, 0), (0, float(rng.uniform(0.35, 0.45)), 0), 0.24, cloth, Material.FABRIC)
        else:
            metal = pick(rng, ("2a2c2e", "b5b8bb", "3f5a4f"), 0.2)
            to.tube((0, 0.32, 0), (0, 0, 0), 0.14, metal, taper=(0.2, 0, 0))

    def _hung(self, face: int, half_x: float, middle: float, half_y: float) -> Builder | None:
        """Reserve a free place on a wall; None if there is none."""
        spare = self.shell.half_along(face) - half_x - 0.1
        if spare <= 0:
            return None
        along = float(self.rng.uniform(-spare, spare))
        if not self.placer.hangs_free(face, along, half_x + 0.06, middle - half_y, middle + half_y):
            return None
        self.placer.hang(face, along, half_x + 0.06, middle - half_y, middle + half_y)
        return self.shell.stand(face, along, 0.0, middle)

    def _on_wall(self) -> None:
        """Hang a picture or a board with books."""
        rng, face = self.rng, int(self.rng.choice(WALL_FACES))
        half_x = float(rng.uniform(0.12, 0.45))
        half_y = min(0.42, half_x * float(rng.uniform(0.6, 1.4)))
        if rng.random() < 0.4 and half_x > 0.25 and self.shell.kind != "corridor":
            if (to := self._hung(face, half_x, 1.65, 0.65)) is not None:
                fittings.wall_board(aside(to, 0, 0, y_m=-0.2), rng, half_x)
        elif (to := self._hung(face, half_x, float(rng.uniform(1.45, 1.75)), half_y)) is not None:
            trinkets.picture(to, rng, half_x, half_y)

    def _table_lamp(self, to: Builder, y: float, z: float, *, odds: float = 0.6) -> None:
        if self.rng.random() < odds:
            self._lit(to, trinkets.table_lamp(aside(to, 0, z), self.rng, y, self.glow), 0.3)

    def _lit(self, to: Builder, high: float, strength: float) -> None:
        if self.glow > 0:
            self.lamps.append(bulb((to.x_m, to.y_m + high, to.z_m), strength * self.glow))


SIDES = (-1, 1, -1, 1)


def _square(to: Builder, half_x: float, half_z: float | None = None) -> Rectangle:
    """Return the rectangle around a builder that is turned by quarter turns."""
    half_z = half_x if half_z is None else half_z
    turned = abs(math.sin(to.yaw_rad)) > 0.5
    wide, deep = (half_z, half_x) if turned else (half_x, half_z)
    return Rectangle(to.x_m - wide, to.x_m + wide, to.z_m - deep, to.z_m + deep)
