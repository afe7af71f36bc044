"""Renders a street: textures, sunlight with shadows, skylight, haze, the sensor.

Shape legend: R sample rows, W columns, H pixel rows, n samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .camera import F32, SAMPLES_PX
from .light import column, mirrored, sky_color, through_air
from .shapes import Material
from .street import ground_albedo
from .surfaces import mix, surface_hits
from .textures import TEXTURES
from .trace import GROUND, SKY, Ids, first_hits, sunlit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .world import Scene, Sensor

# Rows are rendered in bands of about this many samples, which limits the memory of large pictures.
BAND_SAMPLES = 400_000


def render(scene: Scene) -> tuple[NDArray[np.uint8], F32]:
    """Return picture (H, W, 3) and planar depth (H, W) in metres at pixel centres, infinite for sky."""
    light, depth_m = render_light(scene)
    return expose(light, scene.sensor), depth_m


def render_light(scene: Scene) -> tuple[F32, F32]:
    """Return light (3, H, W) that reaches the sensor, and depth (H, W) as `render`."""
    height, width = scene.camera.size_px
    step = max(1, BAND_SAMPLES // (width * len(SAMPLES_PX)))
    bands = [_render_rows(scene, first, min(height, first + step)) for first in range(0, height, step)]
    light = np.concatenate([band[0] for band in bands], axis=1)
    return light, np.concatenate([band[1] for band in bands])


def _render_rows(scene: Scene, first: int, last: int) -> tuple[F32, F32]:
    """Return light (3, h, W) and depth (h, W) of pixel rows [first, last)."""
    camera, samples = scene.camera, len(SAMPLES_PX)
    rays = camera.rays(first, last)
    depth, ids = first_hits(camera, rays, first * samples, scene.solids, scene.road)
    light = _shade(scene, rays, depth, ids, first * samples)
    rows = last - first
    mean = light.reshape(3, rows, samples, -1).mean(axis=2)
    return mean, depth.reshape(rows, samples, -1)[:, samples // 2]


def _shade(scene: Scene, rays: F32, depth: F32, ids: Ids, first_row: int) -> F32:
    """Return light (3, R, W) along each ray."""
    shape, camera, solids = depth.shape, scene.camera, scene.solids
    # Flatten the samples: one index array is faster than a pair.
    rays, depth, ids = rays.reshape(3, -1), depth.reshape(-1), ids.reshape(-1)
    length = np.sqrt(rays[0] * rays[0] + rays[1] * rays[1] + rays[2] * rays[2])
    toward = rays / length
    out = np.empty_like(rays)
    sky, hit = np.flatnonzero(ids == SKY), np.flatnonzero(ids != SKY)
    out[:, sky] = sky_color(toward.take(sky, axis=1), scene.weather)

    depth = np.where(ids == SKY, np.float32(0), depth)
    point_m = rays * depth + np.array(camera.position_m, dtype=np.float32)[:, None]
    surfaces = _Surfaces(np.zeros_like(rays), np.zeros_like(rays), np.zeros_like(depth), np.zeros_like(depth))
    sun = np.array(scene.weather.sun, dtype=np.float32)
    facing = ids == GROUND
    # Material of each sample; ids -1 and -2 index the two entries at the end, which are no material.
    materials = np.append(solids.material, [-1, -1]).astype(np.int8)[ids]
    for material in Material:
        indices = np.flatnonzero(materials == material)
        if len(indices) == 0:
            continue
        distance = depth[indices] / np.float32(camera.focal_px)
        hits = surface_hits(solids, ids[indices].astype(np.int64), point_m.take(indices, axis=1), distance)
        facing[indices] = _dot(hits.normal, sun) > 0  # before the texture bends the normals
        surface = TEXTURES[material](hits)
        surfaces.put(indices, surface.albedo, hits.normal, surface.gloss, surface.glow)
    ground = np.flatnonzero(ids == GROUND)
    footprint_m = depth[ground] / np.float32(camera.focal_px)
    albedo, gloss = ground_albedo(point_m.take(ground, axis=1), footprint_m, depth[ground], scene.road, scene.ground)
    surfaces.put(ground, albedo, np.array([[0], [1], [0]], dtype=np.float32), gloss, np.zeros_like(gloss))

    lit = facing
    if max(scene.weather.sun_light) > 0:
        corner = (3, *shape)
        lit = sunlit(camera, first_row, point_m.reshape(corner), facing.reshape(shape), solids, sun).reshape(-1)
    radiance = _reflected(scene, point_m, toward, surfaces, lit, hit)
    out[:, hit] = through_air(radiance, (depth * length)[hit], toward.take(hit, axis=1), scene.weather)
    return out.reshape(3, *shape)


@dataclass
class _Surfaces:
    """Surfaces of all samples: albedo and normal (3, n), gloss and glow (n)."""

    albedo: F32
    normal: F32
    gloss: F32
    glow: F32

    def put(self, at: NDArray[np.intp], albedo: F32, normal: F32, gloss: F32, glow: F32) -> None:
        """Set the samples `at`."""
        self.albedo[:, at], self.normal[:, at], self.gloss[at], self.glow[at] = albedo, normal, gloss, glow


def _dot(vectors: F32, other: F32) -> F32:
    total: F32 = vectors[0] * other[0] + vectors[1] * other[1] + vectors[2] * other[2]
    return total


def _reflected(
    scene: Scene, point_m: F32, toward: F32, surfaces: _Surfaces, lit: NDArray[np.bool_], hit: NDArray[np.intp]
) -> F32:
    """Return light (3, n) from the samples `hit` to the camera, without haze."""
    weather = scene.weather
    sun = np.array(weather.sun, dtype=np.float32)
    normal, albedo = surfaces.normal.take(hit, axis=1), surfaces.albedo.take(hit, axis=1)
    sunshine = np.where(lit[hit], np.maximum(_dot(normal, sun), 0), np.float32(0))
    from_sky = (np.float32(0.68) + np.float32(0.32) * normal[1]) * _openness(scene, point_m.take(hit, axis=1), normal)
    bounced = np.float32(0.25 * (0.35 + 0.12 * max(weather.sun_light)))
    from_ground = (1 - normal[1]) * bounced
    received = column(weather.sky_light) * (from_sky + from_ground) + column(weather.sun_light) * sunshine
    radiance: F32 = albedo * (received + surfaces.glow[hit])
    gloss = surfaces.gloss[hit]
    shiny = np.flatnonzero(gloss > 0.02)
    view, bent, fraction = toward.take(hit[shiny], axis=1), normal.take(shiny, axis=1), gloss[shiny]
    cosine = -_dot(view, bent)
    bounce = view + 2 * cosine * bent
    # Schlick's approximation, weaker for surfaces with little gloss.
    fraction = fraction + (1 - fraction) * (1 - np.clip(cosine, 0, 1)) ** 5 * np.minimum(1, fraction * 6)
    radiance[:, shiny] = mix(radiance[:, shiny], mirrored(bounce, weather), fraction)
    return radiance


def _openness(scene: Scene, point_m: F32, normal: F32) -> F32:
    """Estimate the fraction (n) of the sky that a surface sees: less low on walls and around objects."""
    x, y, z = point_m
    upright = 1 - np.clip(normal[1], 0, 1)
    openness: F32 = 1 - upright * np.float32(0.42) * np.exp(np.maximum(y, 0) * np.float32(-1.25))
    low = np.flatnonzero((y < 0.25) & (z < 90))
    low = low[np.argsort(z[low], kind="stable")]
    px, pz, low_open = x[low], z[low], openness[low]
    for dark in scene.contacts:
        radius = dark.half_x_m + dark.half_z_m + 1.0
        first, last = np.searchsorted(pz, (np.float32(dark.z_m - radius), np.float32(dark.z_m + radius)))
        near = first + np.flatnonzero(np.abs(px[first:last] - np.float32(dark.x_m)) < radius)
        if len(near) == 0:
            continue
        sin, cos = np.float32(math.sin(dark.yaw_rad)), np.float32(math.cos(dark.yaw_rad))
        across, ahead = px[near] - np.float32(dark.x_m), pz[near] - np.float32(dark.z_m)
        beyond_x = np.abs(across * cos - ahead * sin) - np.float32(dark.half_x_m)
        beyond_z = np.abs(across * sin + ahead * cos) - np.float32(dark.half_z_m)
        outside = np.hypot(np.maximum(beyond_x, 0), np.maximum(beyond_z, 0))
        inside = np.minimum(np.maximum(beyond_x, beyond_z), 0)
        low_open[near] *= 1 - np.float32(dark.strength) * np.exp(-outside / np.float32(0.22)) * (
            1 - np.float32(0.5) * np.exp(inside * 4)
        )
    openness[low] = low_open
    return openness


def expose(light: F32, sensor: Sensor, metered: F32 | None = None) -> NDArray[np.uint8]:
    """Convert light (3, H, W) to bytes (H, W, 3): blur, vignette, exposure, noise, tone curve.

    `metered` (3, H, W) is the light that sets the exposure, by default `light`: that of the left camera for both of a
    pair.
    """
    _, height, width = light.shape
    rng = np.random.default_rng(sensor.noise_seed)
    light = _blurred(light, sensor.blur)
    across = (np.arange(width, dtype=np.float32) - width / 2) / (width / 2)
    down = (np.arange(height, dtype=np.float32) - height / 2) / (width / 2)
    fall = 1 - np.float32(sensor.vignette) * (across**2 + down[:, None] ** 2)
    # Automatic exposure: the mean of the picture comes near a middle grey.
    gray = (light if metered is None else _blurred(metered, sensor.blur)).mean(axis=0)
    key = float(np.exp(np.log(np.clip(gray, 0.01, 1.2)).mean()))
    light = light * fall * np.array(sensor.balance, dtype=np.float32)[:, None, None] * np.float32(sensor.exposure / key)
    # Photon noise grows with the square root of the light; read-out noise is constant.
    spread = np.sqrt(np.maximum(light, 0) * np.float32(sensor.shot) ** 2 + np.float32(sensor.read) ** 2)
    light = light + spread * rng.standard_normal(light.shape, dtype=np.float32)
    light = np.maximum(light, 0)
    # A filmic tone curve avoids clipping in the sky.
    light = light * (light * 2.51 + 0.03) / (light * (light * 2.43 + 0.59) + 0.14)
    picture = np.clip(light, 0, 1) ** np.float32(1 / 2.2) * 255 + 0.5
    return np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _blurred(light: F32, weight: float) -> F32:
    """Return light (3, H, W) as the lens blurs it; `weight` is that of each neighbour."""
    padded = np.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")
    blur = np.float32(weight)
    rows = padded[:, 1:-1] * (1 - 2 * blur) + (padded[:, :-2] + padded[:, 2:]) * blur
    return np.asarray(rows[:, :, 1:-1] * (1 - 2 * blur) + (rows[:, :, :-2] + rows[:, :, 2:]) * blur)
