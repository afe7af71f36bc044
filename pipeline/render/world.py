"""Draws whole scenes: streets, what stands along them, who is about, and the weather. All random draws are here.

Offsets across the road (`lateral`) are metres to the right of its middle. Traffic keeps to the right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from . import models
from .camera import Camera, draw_camera
from .ground import Road
from .light import Weather, draw_weather
from .models import Builder, Rng, pick
from .shapes import Solids, Triple
from .street import GroundLook

FAR_M = 175.0


class Contact(NamedTuple):
    """A rectangle on the ground that something stands over and darkens."""

    x_m: float
    z_m: float
    yaw_rad: float
    half_x_m: float
    half_z_m: float
    strength: float


@dataclass(frozen=True)
class Sensor:
    """What the camera adds to the light that reaches it."""

    exposure: float
    vignette: float
    blur: float
    shot: float
    read: float
    balance: Triple
    noise_seed: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """All that is rendered."""

    camera: Camera
    road: Road
    ground: GroundLook
    weather: Weather
    sensor: Sensor
    solids: Solids
    contacts: list[Contact]


def draw_scene(seed: int, index: int, size_px: tuple[int, int]) -> Scene:
    """The scene of one frame: the same for the same three arguments, whatever was drawn before."""
    rng = np.random.default_rng([seed, index, 2])
    place = str(rng.choice(["town", "suburb", "country"], p=[0.42, 0.36, 0.22]))
    road = _draw_road(rng, place)
    camera = draw_camera(seed, index, size_px)
    lane = int(rng.integers(road.lanes))
    camera = replace(
        camera,
        position_m=(road.lane_m * (lane + 0.5) + float(rng.normal(0, 0.25)), *camera.position_m[1:]),
        yaw_rad=camera.yaw_rad + math.atan(float(road.slope(0.0))),
    )
    layout = _Layout(rng, place, road, lane)
    weather = draw_weather(rng)
    layout.fill()
    sensor = Sensor(
        exposure=float(rng.uniform(0.14, 0.23)),
        vignette=float(rng.uniform(0.08, 0.3)),
        blur=float(rng.uniform(0.03, 0.09)),
        shot=float(rng.uniform(0.008, 0.022)),
        read=float(rng.uniform(0.001, 0.004)),
        balance=(float(rng.uniform(0.95, 1.05)), 1.0, float(rng.uniform(0.94, 1.05))),
        noise_seed=(seed, index, 3),
    )
    ground = _draw_ground(rng, place)
    return Scene(camera, road, ground, weather, sensor, Solids(layout.to.solids), layout.contacts)


def _draw_road(rng: Rng, place: str) -> Road:
    lanes = int(rng.choice([1, 2], p=[0.7, 0.3])) if place == "town" else 1
    lane_m = float(rng.uniform(2.9, 3.5))
    parking = {"town": 2.2, "suburb": float(rng.choice([0.0, 2.1])), "country": 0.25}[place]
    crossing = rng.random() < {"town": 0.45, "suburb": 0.3, "country": 0.1}[place]
    at = float(rng.uniform(20, 55)) if crossing else 999.0
    bend = float(rng.choice([0.0, rng.uniform(-0.55, 0.55)], p=[0.45, 0.55]))
    return Road(
        bend=bend,
        bend_at_m=float(rng.uniform(20, 70)),
        bend_over_m=float(rng.uniform(10, 35)),
        half_width_m=lanes * lane_m + parking + 0.3,
        kerb_m=0.0 if place == "country" else float(rng.uniform(0.09, 0.15)),
        pavement_m=0.0 if place == "country" else float(rng.uniform(1.6, 3.6)),
        lane_m=lane_m,
        lanes=lanes,
        crossing_at_m=at,
        crossing_half_m=float(rng.uniform(3.0, 4.2)),
    )


def _draw_ground(rng: Rng, place: str) -> GroundLook:
    grey = float(rng.uniform(0.065, 0.17))
    warm = float(rng.uniform(-0.04, 0.05))
    return GroundLook(
        asphalt=(grey * (1 + warm), grey, grey * (1 - warm)),
        paving=pick(rng, ("a8a49a", "b5b0a6", "9a9894", "b9a58c", "a39088"), 0.15),
        grass=pick(rng, ("55702c", "617a34", "4a6a2e", "74783c"), 0.15),
        paved_beyond=place == "town",
        yellow_centre=bool(rng.random() < 0.2),
        edge_lines=place == "country" or bool(rng.random() < 0.4),
        zebra=bool(rng.random() < 0.7),
        field_rows=place == "country" and bool(rng.random() < 0.5),
        wet=float(rng.choice([0.0, rng.uniform(0.03, 0.12)], p=[0.75, 0.25])),
        seed=float(rng.random()),
    )


class _Layout:
    """Places models along the road, each kind by its own method."""

    def __init__(self, rng: Rng, place: str, road: Road, lane: int) -> None:
        self.rng, self.place, self.road, self.lane = rng, place, road, lane
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
        if self.place == "country":
            self._woods()

    def _stand(self, lateral_m: float, z_m: float, turn_rad: float = 0.0, *, high: bool = True) -> Builder:
        """The builder at a place along the road, facing along it, on the pavement if `high`."""
        slope = math.atan(float(self.road.slope(z_m)))
        # Move square to the road, so that what stands in a row keeps its distance to the kerb.
        x = float(self.road.centre_x(z_m)) + lateral_m * math.cos(slope)
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
        if self.place == "country":
            for _ in range(int(rng.integers(0, 3))):
                z, off = float(rng.uniform(35, 140)), float(rng.uniform(9, 35))
                self._stand(side * (self._kerb_line + off), z, float(rng.uniform(-0.3, 0.3)), high=False)
                models.building(
                    self.to, rng, rng.uniform(4, 6), rng.uniform(5, 9), rng.uniform(3, 6), gable=True
                )
            return
        town = self.place == "town"
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
        """Houses along the crossing street, where one looks into it."""
        rng, road = self.rng, self.road
        for across in (-1, 1):
            x = start
            while x < 70:
                half_z, half_x = float(rng.uniform(5, 9)), float(rng.uniform(5, 7))
                z = road.crossing_at_m + across * (road.crossing_half_m + road.pavement_m + half_x)
                self.to.at(float(road.centre_x(z)) + side * (x + half_z), z, math.pi / 2, road.kerb_m)
                tall = float(rng.uniform(7, 15)) if town else float(rng.uniform(3.5, 6))
                models.building(self.to, rng, half_x, half_z, tall, gable=not town)
                x += 2 * half_z + float(rng.choice([0.0, 5.0]))

    def _trees(self, side: int) -> None:
        rng, road = self.rng, self.road
        if self.place == "town" and rng.random() < 0.4:
            return
        spacing = float(rng.uniform(9, 22))
        z = float(rng.uniform(3, 16))
        off = (
            road.pavement_m * 0.32 if self.place == "town" else road.pavement_m + float(rng.uniform(1.2, 3.0))
        )
        while z < 150:
            if not self._in_crossing(z, 5) and rng.random() < 0.85:
                jitter = float(rng.normal(0, 0.15 if self.place == "town" else 0.9))
                self._stand(side * (self._kerb_line + max(0.6, off + jitter)), z)
                if self.place != "town" and rng.random() < 0.2:
                    models.conifer(self.to, rng, float(rng.uniform(6, 13)))
                elif self.place != "town" and rng.random() < 0.25:
                    models.bush(self.to, rng, float(rng.uniform(0.7, 1.4)))
                else:
                    tall = float(rng.uniform(5, 9.5))
                    models.tree(self.to, rng, tall, lobes=int(rng.integers(6, 10)) if z < 60 else 4)
                self._contact(0.15, 0.15, 0.5)
            z += spacing * float(rng.uniform(0.7, 1.3))
        if self.place == "suburb":
            for _ in range(int(rng.integers(3, 8))):
                z = float(rng.uniform(10, 130))
                self._stand(side * (self._kerb_line + road.pavement_m + float(rng.uniform(14, 24))), z)
                models.tree(self.to, rng, float(rng.uniform(7, 12)), lobes=5)

    def _woods(self) -> None:
        """A belt of trees far off, so that fields end somewhere."""
        rng = self.rng
        for side in (-1, 1):
            base = float(rng.uniform(45, 95))
            for _ in range(int(rng.integers(8, 16))):
                z = float(rng.uniform(40, FAR_M))
                self.to.at(float(self.road.centre_x(z)) + side * (base + float(rng.uniform(-8, 8))), z)
                if rng.random() < 0.3:
                    models.conifer(self.to, rng, float(rng.uniform(8, 15)))
                else:
                    models.tree(self.to, rng, float(rng.uniform(8, 14)), lobes=4)

    def _lamps_and_signs(self, side: int) -> None:
        rng, road = self.rng, self.road
        off = self._kerb_line + (0.45 if road.kerb_m else 1.3)
        if self.place != "country":
            height, spacing, z = (
                float(rng.uniform(5, 8.5)),
                float(rng.uniform(20, 32)),
                float(rng.uniform(6, 26)),
            )
            while z < 140:
                if not self._in_crossing(z, 2):
                    self._stand(side * off, z, math.pi if side > 0 else 0.0)
                    models.lamp(self.to, rng, height, 1.6)
                z += spacing
        for _ in range(int(rng.integers(1, 4))):
            z = float(rng.uniform(9, 75))
            if not self._in_crossing(z, 2):
                # Those on the left face the oncoming traffic, mostly.
                self._stand(side * off, z, math.pi if side < 0 and rng.random() < 0.7 else 0.0)
                models.sign(self.to, rng)
        if self.place == "town":
            for _ in range(int(rng.integers(0, 6))):
                self._stand(side * off, float(rng.uniform(6, 45)))
                models.bollard(self.to, rng)
                self._contact(0.1, 0.1, 0.5)

    def _fences(self, side: int) -> None:
        rng, road = self.rng, self.road
        if self.place == "town" or rng.random() < 0.35:
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
        many = {"town": 6, "suburb": 3, "country": 1}[self.place]
        for _ in range(int(rng.integers(0, many + 1))):
            z = float(rng.uniform(6, 20) if rng.random() < 0.4 else rng.uniform(15, 60))
            if self._in_crossing(z, 1.0):
                continue
            off = 0.7 if not road.kerb_m else float(rng.uniform(0.9, max(1.0, road.pavement_m - 0.4)))
            self._stand(
                side * (self._kerb_line + off),
                z,
                float(rng.choice([0.0, math.pi])) + float(rng.normal(0, 0.2)),
            )
            models.person(self.to, rng, detail=z < 28)
            self._contact(0.16, 0.16, 0.6)

    def _parked(self, side: int) -> None:
        rng, road = self.rng, self.road
        room = road.half_width_m - road.lanes * road.lane_m
        if room < 2 or rng.random() < 0.12:
            return
        z, share = float(rng.uniform(3, 14)), float(rng.uniform(0.35, 0.95))
        while z < 120:
            if rng.random() < share and not self._in_crossing(z + 2.5, 9):
                turn = 0.0 if side > 0 or rng.random() < 0.2 else math.pi
                self._stand(
                    side * (road.half_width_m - 1.12), z + 2.4, turn + float(rng.normal(0, 0.015)), high=False
                )
                self._vehicle(z, heavy=0.12, lorries=False)
            z += 5.3 + float(rng.exponential(0.8))

    def _vehicle(self, away_m: float, *, heavy: float, lorries: bool) -> float:
        draw = self.rng.random()
        if lorries and draw < heavy * 0.5:
            length = models.lorry(self.to, self.rng)
        elif draw < heavy:
            length = models.van(self.to, self.rng)
        else:
            length = models.car(self.to, self.rng, detail=away_m < 35)
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
                self.to.at(float(road.centre_x(z)) + x, z, way * math.pi / 2)
                x += 7 + self._vehicle(z, heavy=0.15, lorries=False) + float(rng.exponential(8))
        for side in (-1, 1):
            z = road.crossing_at_m - road.crossing_half_m - 0.9
            if rng.random() < 0.7:
                self._stand(side * (self._kerb_line + 0.8), z)
                models.traffic_light(self.to, rng)
        # People on the zebra, across the road.
        for _ in range(int(rng.integers(0, 4))):
            z = road.crossing_at_m - road.crossing_half_m - 2.6 + float(rng.normal(0, 0.6))
            lateral = float(rng.uniform(-1, 1)) * road.half_width_m
            self._stand(lateral, z, float(rng.choice([-1, 1])) * math.pi / 2, high=False)
            models.person(self.to, rng, detail=True)
            self._contact(0.16, 0.16, 0.6)
