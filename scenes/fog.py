"""The world `fog`: the streets of `street`, seen from the cab of a truck on a foggy, overcast day.

Roads, buildings and traffic are drawn as in `street`; camera height, pitch, light and visibility differ.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .camera import Camera, draw_camera
from .world import Scene, draw_scene

if TYPE_CHECKING:
    from .light import Weather

KOSCHMIEDER = 3.0
"""Visibility times extinction, for a contrast of 5 % (the meteorological optical range)."""


def draw_truck_camera(seed: int, index: int, size_px: tuple[int, int]) -> Camera:
    """Draw the camera of one frame: that of `street`, 2.5 to 3.2 m high and pitched 3 to 6 degrees down."""
    rng = np.random.default_rng([seed, index, 21])
    camera = draw_camera(seed, index, size_px)
    pitch_rad = math.radians(rng.uniform(3.0, 6.0))
    horizon_px = float(rng.uniform(0.28, 0.38)) * size_px[0]
    return replace(
        camera,
        position_m=(0.0, float(rng.uniform(2.5, 3.2)), 0.0),
        pitch_rad=pitch_rad,
        cy_px=horizon_px + camera.focal_px * math.tan(pitch_rad),
    )


def draw_foggy_scene(seed: int, index: int, size_px: tuple[int, int]) -> Scene:
    """Draw the scene of one frame. It depends on the three arguments alone."""
    scene = draw_scene(seed, index, size_px)
    camera = draw_truck_camera(seed, index, size_px)
    lateral_m, _, ahead_m = scene.camera.position_m
    camera = replace(camera, position_m=(lateral_m, camera.position_m[1], ahead_m), yaw_rad=scene.camera.yaw_rad)
    rng = np.random.default_rng([seed, index, 22])
    ground = replace(scene.ground, wet=float(rng.uniform(0.05, 0.2)))
    return replace(scene, camera=camera, weather=_fog(rng, scene.weather), ground=ground)


def _fog(rng: np.random.Generator, weather: Weather) -> Weather:
    """No sun, a white horizon, and a visibility of 100 to 400 m."""
    gray = float(rng.uniform(0.62, 0.82))
    visibility_m = math.exp(rng.uniform(math.log(100), math.log(400)))
    return replace(
        weather,
        sun_light=(0.0, 0.0, 0.0),
        sky_light=(0.98, 1.0, 1.04),
        zenith=(gray * 0.92, gray * 0.95, gray),
        horizon=(gray * 0.97, gray * 0.99, gray),
        clouds=1.0,
        haze_per_m=KOSCHMIEDER / visibility_m,
    )
