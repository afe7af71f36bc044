"""Sun, sky and haze of a scene.

Shape legend: n directions or samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import noise
from .surfaces import mix

if TYPE_CHECKING:
    from .camera import F32, F64
    from .shapes import Triple


@dataclass(frozen=True)
class Weather:
    """Light, sky and haze. Colours are linear."""

    sun: tuple[float, float, float]
    """Unit vector towards the sun."""
    sun_light: Triple
    sky_light: Triple
    zenith: Triple
    horizon: Triple
    clouds: float
    """Approximate fraction of the sky that they cover."""
    haze_per_m: float
    hills_rad: float
    """Height of the distant land above the horizon."""
    shift: float
    """Offset in the noise of clouds and hills, in [0, 1)."""


def draw_weather(rng: np.random.Generator) -> Weather:
    """Draw a sunny, hazy or overcast day."""
    elevation, azimuth = math.radians(rng.uniform(24, 58)), rng.uniform(0, 2 * math.pi)
    overcast = float(rng.choice([0.0, 0.35, 0.85], p=[0.6, 0.2, 0.2]))
    low = 1 - (math.degrees(elevation) - 24) / 34
    strength = 3.8 * (1 - overcast)
    gray = np.array([0.62, 0.65, 0.69])
    zenith = mix_triple(np.array([0.13, 0.27, 0.56]) * rng.uniform(0.8, 1.2), gray * 0.8, overcast)
    horizon = mix_triple(np.array([0.62, 0.71, 0.80]) + 0.08 * low * np.array([1.0, 0.3, -0.6]), gray * 1.1, overcast)
    sky = mix_triple(np.array([0.38, 0.46, 0.60]), np.array([0.98, 1.0, 1.04]), overcast)
    return Weather(
        sun=(math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)),
        sun_light=(strength, strength * (0.94 - 0.08 * low), strength * (0.84 - 0.2 * low)),
        sky_light=sky,
        zenith=zenith,
        horizon=horizon,
        clouds=float(rng.uniform(0.05, 0.55)) if overcast < 0.5 else 0.9,
        haze_per_m=float(rng.uniform(0.0008, 0.0028)) * (1 + 1.2 * overcast),
        hills_rad=float(rng.uniform(0.0, 0.05)),
        shift=float(rng.random()),
    )


def mix_triple(first: F64, second: F64, fraction: float) -> Triple:
    """Interpolate from `first` at fraction 0 to `second` at 1."""
    red, green, blue = first + fraction * (second - first)
    return float(red), float(green), float(blue)


def column(triple: Triple) -> F32:
    """Return a colour as (3, 1), to broadcast over samples."""
    return np.array(triple, dtype=np.float32)[:, None]


def sky_color(directions: F32, weather: Weather) -> F32:
    """Return sky (3, n) in unit directions (3, n): gradient, glow around the sun, clouds, hills."""
    x, y, z = directions
    up = np.maximum(y, 0)
    color = mix(column(weather.horizon), column(weather.zenith), np.sqrt(up) * np.float32(1.15) - np.float32(0.05))
    towards = np.clip(x * weather.sun[0] + y * weather.sun[1] + z * weather.sun[2], 0, 1)
    glow = 0.35 * towards**8 + 0.8 * towards**64 + 12 * (towards > 0.9996)
    color = color + column(weather.sun_light) * (glow * np.float32(0.2 * (1 - 0.6 * weather.clouds)))
    # Clouds form a layer, whose noise is drawn in perspective.
    reach = 1 / (up + 0.06)
    offset = weather.shift * 700
    thick = noise.blended(noise.fractal(), x * reach * 15 + offset, z * reach * 15 + offset)
    bulk = noise.blended(noise.fractal(), x * reach * 5 - offset, z * reach * 5)
    cover = 0.4 * thick + 0.9 * bulk - (1.0 - 2.4 * weather.clouds)
    cloud = np.clip(cover * 0.9, 0, 1) * np.clip(up * 9, 0, 1)
    shade = (0.95 - 0.24 * np.clip(cover * 0.55, 0, 1)) * (0.9 + 0.03 * thick)
    sunny = column(weather.sun_light) * np.float32(0.2) + column(weather.sky_light) * np.float32(0.66)
    color = mix(color, sunny * shade, cloud * np.float32(0.92))
    around = np.arctan2(x, z)
    ridge = weather.hills_rad * (0.75 + 0.32 * noise.blended(noise.smooth(), around * 34 + offset, offset + 0 * around))
    near_ridge = 0.45 * ridge + 0.004 * noise.blended(noise.fractal(), around * 150 + offset, offset + 0 * around)
    land = column((0.16, 0.22, 0.15)) * column(weather.sky_light)
    for height, haze in ((ridge, 0.74), (near_ridge, 0.5)):
        solid = np.clip((height - y) * 400, 0, 1)
        color = mix(color, mix(land, column(weather.horizon), haze), solid)
    return color.astype(np.float32)


def mirrored(directions: F32, weather: Weather) -> F32:
    """Return mirrored light (3, n) in unit directions (3, n): sky above, a dim street below."""
    _, y, _ = directions
    sky = mix(column(weather.horizon), column(weather.zenith), np.sqrt(np.clip(y, 0, 1)))
    street = column(weather.sky_light) * np.float32(0.14)
    bright = mix(street, sky * np.float32(1.1), np.clip((y - 0.06) * 5, 0, 1))
    towards = np.clip(sum(np.float32(s) * d for s, d in zip(weather.sun, directions, strict=True)), 0, 1)
    flash = towards**60 * 2.5
    return np.asarray(bright + column(weather.sun_light) * flash, dtype=np.float32)


def through_air(color: F32, distance_m: F32, directions: F32, weather: Weather) -> F32:
    """Return colour (3, n) after `distance_m` of haze, which is brighter towards the sun."""
    fraction = 1 - np.exp(-weather.haze_per_m * distance_m)
    towards = np.clip(sum(np.float32(s) * d for s, d in zip(weather.sun, directions, strict=True)), 0, 1)
    air = column(weather.horizon) * 0.92 + column(weather.sun_light) * (0.05 * towards**4)
    return mix(color, air, fraction).astype(np.float32)
