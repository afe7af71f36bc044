"""Draws street scenes: road, layout, weather, camera and sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .builder import Rng, pick
from .camera import Camera, draw_camera
from .ground import Road
from .layout import Contact, Layout
from .light import Weather, draw_weather
from .shapes import Solids, Triple
from .street import GroundStyle


@dataclass(frozen=True)
class Sensor:
    """Exposure, optics and noise of the camera."""

    exposure: float
    vignette: float
    blur: float
    shot: float
    read: float
    balance: Triple
    noise_seed: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """A street scene."""

    camera: Camera
    road: Road
    ground: GroundStyle
    weather: Weather
    sensor: Sensor
    solids: Solids
    contacts: list[Contact]


def draw_scene(seed: int, index: int, size_px: tuple[int, int]) -> Scene:
    """Draw the scene of one frame. It depends on the three arguments alone."""
    rng = np.random.default_rng([seed, index, 2])
    area = str(rng.choice(["town", "suburb", "country"], p=[0.42, 0.36, 0.22]))
    road = _draw_road(rng, area)
    camera = draw_camera(seed, index, size_px)
    lane = int(rng.integers(road.lanes))
    camera = replace(
        camera,
        position_m=(road.lane_m * (lane + 0.5) + float(rng.normal(0, 0.25)), *camera.position_m[1:]),
        yaw_rad=camera.yaw_rad + math.atan(float(road.slope(0.0))),
    )
    layout = Layout(rng, area, road, lane)
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
    ground = _draw_ground(rng, area)
    return Scene(camera, road, ground, weather, sensor, Solids(layout.to.solids), layout.contacts)


def _draw_road(rng: Rng, area: str) -> Road:
    lanes = int(rng.choice([1, 2], p=[0.7, 0.3])) if area == "town" else 1
    lane_m = float(rng.uniform(2.9, 3.5))
    parking = {"town": 2.2, "suburb": float(rng.choice([0.0, 2.1])), "country": 0.25}[area]
    crossing = rng.random() < {"town": 0.45, "suburb": 0.3, "country": 0.1}[area]
    at = float(rng.uniform(20, 55)) if crossing else 999.0
    bend = float(rng.choice([0.0, rng.uniform(0.25, 0.85), -rng.uniform(0.25, 0.85)], p=[0.4, 0.3, 0.3]))
    return Road(
        bend=bend,
        bend_at_m=float(rng.uniform(18, 60)),
        bend_over_m=float(rng.uniform(15, 35)),
        half_width_m=lanes * lane_m + parking + 0.3,
        kerb_m=0.0 if area == "country" else float(rng.uniform(0.09, 0.15)),
        pavement_m=0.0 if area == "country" else float(rng.uniform(1.6, 3.6)),
        lane_m=lane_m,
        lanes=lanes,
        crossing_at_m=at,
        crossing_half_m=float(rng.uniform(3.0, 4.2)),
    )


def _draw_ground(rng: Rng, area: str) -> GroundStyle:
    gray = float(rng.uniform(0.065, 0.17))
    warm = float(rng.uniform(-0.04, 0.05))
    return GroundStyle(
        asphalt=(gray * (1 + warm), gray, gray * (1 - warm)),
        paving=pick(rng, ("a8a49a", "b5b0a6", "9a9894", "b9a58c", "a39088"), 0.15),
        grass=pick(rng, ("55702c", "617a34", "4a6a2e", "74783c"), 0.15),
        paved_beyond=area == "town",
        yellow_center=bool(rng.random() < 0.2),
        edge_lines=area == "country" or bool(rng.random() < 0.4),
        zebra=bool(rng.random() < 0.7),
        field_rows=area == "country" and bool(rng.random() < 0.5),
        wet=float(rng.choice([0.0, rng.uniform(0.03, 0.12)], p=[0.75, 0.25])),
        seed=float(rng.random()),
    )
