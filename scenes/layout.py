"""Draws buildings, plants, people and traffic along a road.

Lateral offsets are metres to the right of the centre line. Traffic drives on the right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from . import models, vehicles
from .builder import Builder, Rng

if TYPE_CHECKING:
    from .ground import Road

FAR_M = 175.0


class Contact(NamedTuple):
    """A rectangle on the ground that is darkened by the object above it."""

    x_m: float
    z_m: float
    yaw_rad: float
    half_x_m: float
    half_z_m: float
    strength: float


class Layout:
    """Places models along the road, with a method for each kind."""

    def __init__(self, rng: Rng, area: str, road: Road, lane: int) -> None:
        self.rng, self.area, self.road, self.lane = rng, area, road, lane
        self.to = Builder()
        self.contacts: list[Contact] = []

    def fill(self) -> None:
        """Draw everything."""
        for side in (-1, 1):
            self._houses(side)
            self._trees(side)
            self._lamps_and_signs(side)
            self._fences(side)
            self._people(side)
            self._parked(side)
        self._traffic()
        if self.road.has_crossing:
            self._crossing()
        if self.area == "country":
            self._woods()

    def _stand(self, lateral_m: float, z_m: float, turn_rad: float = 0.0, *, high: bool = True) -> Builder:
        """Move the builder along the road, facing along it, and onto the pavement if `high`."""
        slope = math.atan(float(self.road.slope(z_m)))
        # Offsets are perpendicular to the road, so that rows keep their distance to the kerb.
        x = float(self.road.center_x(z_m)) + lateral_m * math.cos(slope)
        z = z_m - lateral_m * math.sin(slope)
        return self.to.at(x, z, slope + turn_rad, self.road.kerb_m if high else 0.0)

    def _in_crossing(self, z_m: float, margin_m: float) -> bool:
        return abs(z_m - self.road.crossing_at_m) < self.road.crossing_half_m + margin_m

    def _contact(self, half_x: float, half_z: float, strength: float) -> None:
        to = self.to
        self.contacts.append(Contact(to.x_m, to.z_m, to.yaw_rad, half_x, half_z, strength))

    @property
    def _kerb_line(self) -> float:
        return self.road.half_width_m

    def _houses(self, side: int) -> None:
        rng, road = self.rng, self.road
        if self.area == "country":
            for _ in range(int(rng.integers(0, 3))):
                z, off = float(rng.uniform(35, 140)), float(rng.uniform(9, 35))
                self._stand(side * (self._kerb_line + off), z, float(rng.uniform(-0.3, 0.3)), high=False)
                models.building(self.to, rng, rng.uniform(4, 6), rng.uniform(5, 9), rng.uniform(3, 6), gable=True)
            return
        town = self.area == "town"
        z = float(rng.uniform(-6, 6))
        setback = float(rng.uniform(0.0, 0.4)) if town else float(rng.uniform(3.5, 9))
        height = float(rng.uniform(7, 17))
        while z < FAR_M:
            half_z = float(rng.uniform(4.5, 10.5) if town else rng.uniform(4, 7))
            half_x = float(rng.uniform(5, 7) if town else rng.uniform(4, 6))
            gap = float(rng.choice([0.0, rng.uniform(1.5, 9)], p=[0.8, 0.2]) if town else rng.uniform(3, 14))
            front = self._kerb_line + road.pavement_m + setback
            if not self._in_crossing(z + half_z, half_z + road.pavement_m + 0.3):
                self._stand(side * (front + half_x), z + half_z)
                tall = max(6.0, height + float(rng.normal(0, 2.2))) if town else float(rng.uniform(3.2, 6.4))
                gable = not town or bool(rng.random() < 0.2)
                models.building(self.to, rng, half_x, half_z, tall, gable=gable)
                z += 2 * half_z + gap
            else:
                z += 2.0
        if road.has_crossing:
            self._street_houses(side, front + 2 * 7.5, town=town)

    def _street_houses(self, side: int, start: float, *, town: bool) -> None:
        """Draw houses along the crossing street."""
        rng, road = self.rng, self.road
        for across in (-1, 1):
            x = start
            while x < 70:
                half_z, half_x = float(rng.uniform(5, 9)), float(rng.uniform(5, 7))
                z = road.crossing_at_m + across * (road.crossing_half_m + road.pavement_m + half_x)
                self.to.at(float(road.center_x(z)) + side * (x + half_z), z, math.pi / 2, road.kerb_m)
                tall = float(rng.uniform(7, 15)) if town else float(rng.uniform(3.5, 6))
                models.building(self.to, rng, half_x, half_z, tall, gable=not town)
                x += 2 * half_z + float(rng.choice([0.0, 5.0]))

    def _trees(self, side: int) -> None:
        rng, road = self.rng, self.road
        if self.area == "town" and rng.random() < 0.4:
            return
        spacing = float(rng.uniform(9, 22))
        z = float(rng.uniform(3, 16))
        off = road.pavement_m * 0.32 if self.area == "town" else road.pavement_m + float(rng.uniform(1.2, 3.0))
        while z < 150:
            if not self._in_crossing(z, 5) and rng.random() < 0.85:
                jitter = float(rng.normal(0, 0.15 if self.area == "town" else 0.9))
                self._stand(side * (self._kerb_line + max(0.6, off + jitter)), z)
                if self.area != "town" and rng.random() < 0.2:
                    models.conifer(self.to, rng, float(rng.uniform(6, 13)))
                elif self.area != "town" and rng.random() < 0.25:
                    models.bush(self.to, rng, float(rng.uniform(0.7, 1.4)))
                else:
                    tall = float(rng.uniform(5, 9.5))
                    models.tree(self.to, rng, tall, lobes=int(rng.integers(6, 10)) if z < 60 else 4)
                self._contact(0.15, 0.15, 0.5)
            z += spacing * float(rng.uniform(0.7, 1.3))
        if self.area == "suburb":
            for _ in range(int(rng.integers(3, 8))):
                z = float(rng.uniform(10, 130))
                self._stand(side * (self._kerb_line + road.pavement_m + float(rng.uniform(14, 24))), z)
                models.tree(self.to, rng, float(rng.uniform(7, 12)), lobes=5)

    def _woods(self) -> None:
        """Draw a belt of distant trees at the end of the fields."""
        rng = self.rng
        for side in (-1, 1):
            base = float(rng.uniform(45, 95))
            for _ in range(int(rng.integers(8, 16))):
                z = float(rng.uniform(40, FAR_M))
                self.to.at(float(self.road.center_x(z)) + side * (base + float(rng.uniform(-8, 8))), z)
                if rng.random() < 0.3:
                    models.conifer(self.to, rng, float(rng.uniform(8, 15)))
                else:
                    models.tree(self.to, rng, float(rng.uniform(8, 14)), lobes=4)

    def _lamps_and_signs(self, side: int) -> None:
        rng, road = self.rng, self.road
        off = self._kerb_line + (0.45 if road.kerb_m else 1.3)
        if self.area != "country":
            height, spacing, z = (float(rng.uniform(5, 8.5)), float(rng.uniform(20, 32)), float(rng.uniform(6, 26)))
            while z < 140:
                if not self._in_crossing(z, 2):
                    self._stand(side * off, z, math.pi if side > 0 else 0.0)
                    models.lamp(self.to, rng, height, 1.6)
                z += spacing
        for _ in range(int(rng.integers(1, 4))):
            z = float(rng.uniform(9, 75))
            if not self._in_crossing(z, 2):
                # Most signs on the left face oncoming traffic.
                self._stand(side * off, z, math.pi if side < 0 and rng.random() < 0.7 else 0.0)
                models.sign(self.to, rng)
        if self.area == "town":
            for _ in range(int(rng.integers(0, 6))):
                self._stand(side * off, float(rng.uniform(6, 45)))
                models.bollard(self.to, rng)
                self._contact(0.1, 0.1, 0.5)

    def _fences(self, side: int) -> None:
        rng, road = self.rng, self.road
        if self.area == "town" or rng.random() < 0.35:
            return
        z, off = float(rng.uniform(2, 20)), self._kerb_line + (road.pavement_m + 0.5 if road.kerb_m else 1.6)
        while z < 90:
            length = float(rng.uniform(6, 14))
            if not self._in_crossing(z + length / 2, length / 2 + road.pavement_m + 1):
                self._stand(side * off, z + length / 2)
                models.fence(self.to, rng, length)
                self._contact(0.2, length / 2, 0.45)
            z += length + float(rng.choice([0.0, rng.uniform(2, 8)]))

    def _people(self, side: int) -> None:
        rng, road = self.rng, self.road
        most = {"town": 8, "suburb": 4, "country": 1}[self.area]
        for _ in range(int(rng.integers(0, most + 1))):
            z = float(rng.uniform(6, 20) if rng.random() < 0.4 else rng.uniform(15, 60))
            if self._in_crossing(z, 1.0):
                continue
            off = 0.7 if not road.kerb_m else float(rng.uniform(0.9, max(1.0, road.pavement_m - 0.4)))
            self._stand(
                side * (self._kerb_line + off), z, float(rng.choice([0.0, math.pi])) + float(rng.normal(0, 0.2))
            )
            models.person(self.to, rng, detail=z < 28)
            self._contact(0.16, 0.16, 0.6)

    def _parked(self, side: int) -> None:
        rng, road = self.rng, self.road
        room = road.half_width_m - road.lanes * road.lane_m
        if room < 2 or rng.random() < 0.12:
            return
        z, fraction = float(rng.uniform(3, 14)), float(rng.uniform(0.35, 0.95))
        while z < 120:
            if rng.random() < fraction and not self._in_crossing(z + 2.5, 9):
                turn = 0.0 if side > 0 or rng.random() < 0.2 else math.pi
                self._stand(side * (road.half_width_m - 1.12), z + 2.4, turn + float(rng.normal(0, 0.015)), high=False)
                self._vehicle(z, heavy=0.12, lorries=False)
            z += 5.3 + float(rng.exponential(0.8))

    def _vehicle(self, away_m: float, *, heavy: float, lorries: bool) -> float:
        draw = self.rng.random()
        if lorries and draw < heavy * 0.5:
            length = vehicles.lorry(self.to, self.rng)
        elif draw < heavy:
            length = vehicles.van(self.to, self.rng)
        else:
            length = vehicles.car(self.to, self.rng, detail=away_m < 35)
        self._contact(0.82, length / 2 - 0.15, 0.92)
        return length

    def _traffic(self) -> None:
        rng, road = self.rng, self.road
        for lane in range(-road.lanes, road.lanes):
            own = lane == self.lane
            z = float(rng.uniform(10, 45) if own else rng.uniform(5, 40))
            if rng.random() < 0.25:
                z += 40
            while z < 150:
                if not self._in_crossing(z, 7):
                    lateral = road.lane_m * (lane + 0.5) + float(rng.normal(0, 0.15))
                    self._stand(lateral, z, 0.0 if lane >= 0 else math.pi, high=False)
                    z += self._vehicle(z, heavy=0.22, lorries=z > 14)
                z += 5 + float(rng.exponential(28))

    def _crossing(self) -> None:
        rng, road = self.rng, self.road
        for way in (-1, 1):
            x = float(rng.uniform(-30, 10))
            for _ in range(int(rng.integers(0, 3))):
                z = road.crossing_at_m - way * road.crossing_half_m * 0.48
                self.to.at(float(road.center_x(z)) + x, z, way * math.pi / 2)
                x += 7 + self._vehicle(z, heavy=0.15, lorries=False) + float(rng.exponential(8))
        for side in (-1, 1):
            z = road.crossing_at_m - road.crossing_half_m - 0.9
            if rng.random() < 0.7:
                self._stand(side * (self._kerb_line + 0.8), z)
                models.traffic_light(self.to, rng)
        # People on the zebra crossing.
        for _ in range(int(rng.integers(0, 4))):
            z = road.crossing_at_m - road.crossing_half_m - 2.6 + float(rng.normal(0, 0.6))
            lateral = float(rng.uniform(-1, 1)) * road.half_width_m
            self._stand(lateral, z, float(rng.choice([-1, 1])) * math.pi / 2, high=False)
            models.person(self.to, rng, detail=True)
            self._contact(0.16, 0.16, 0.6)
