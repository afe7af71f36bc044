"""From geometry to a picture: textures, sunlight with shadows, skylight, haze, then the sensor.

Shape legend: R sample rows, W columns, H pixel rows, n samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .camera import F32, SAMPLES_PX
from .light import column, mirrored, sky_colour, through_air
from .shapes import Material
from .street import ground_albedo
from .surfaces import TEXTURES, mix, surface_hits
from .trace import GROUND, SKY, Ids, first_hits, sunlit
from .world import Scene

# Rows are rendered in bands of about this many samples, which bounds the memory of a large picture.
BAND_SAMPLES = 400_000


def render(scene: Scene) -> tuple[NDArray[np.uint8], F32]:
    """Picture (H, W, 3) and planar depth (H, W) in metres at the pixels' centres, infinite for sky."""
    height, width = scene.camera.size_px
    step = max(1, BAND_SAMPLES // (width * len(SAMPLES_PX)))
    bands = [_render_rows(scene, first, min(height, first + step)) for first in range(0, height, step)]
    light = np.concatenate([band[0] for band in bands], axis=1)
    return _expose(light, scene), np.concatenate([band[1] for band in bands])


def _render_rows(scene: Scene, first: int, last: int) -> tuple[F32, F32]:
    """Light (3, h, W) and depth (h, W) of pixel rows [first, last)."""
    camera, samples = scene.camera, len(SAMPLES_PX)
    rays = camera.rays(first, last)
    depth, ids = first_hits(camera, rays, first * samples, scene.solids, scene.road)
    light = _shade(scene, rays, depth, ids, first * samples)
    rows = last - first
    mean = light.reshape(3, rows, samples, -1).mean(axis=2)
    return mean, depth.reshape(rows, samples, -1)[:, samples // 2]


def _shade(scene: Scene, rays: F32, depth: F32, ids: Ids, first_row: int) -> F32:
    """Light (3, R, W) along each ray."""
    weather, camera = scene.weather, scene.camera
    length = np.sqrt((rays * rays).sum(axis=0))
    toward = rays / length
    out = np.empty_like(rays)
    sky = ids == SKY
    out[:, sky] = sky_colour(toward[:, sky], weather)
    reach = np.where(sky, np.float32(0), depth)
    point_m = rays * reach + np.array(camera.position_m, dtype=np.float32)[:, None, None]
    footprint_m = reach / np.float32(camera.focal_px)
    albedo, gloss, glow = np.zeros_like(rays), np.zeros_like(depth), np.zeros_like(depth)
    normal = np.zeros_like(rays)
    true_normal_up = np.zeros_like(depth)

    ground = np.nonzero(ids == GROUND)
    albedo[:, *ground], gloss[ground] = ground_albedo(
        point_m[:, *ground], footprint_m[ground], depth[ground], scene.road, scene.ground, camera.focal_px
    )
    normal[1][ground] = 1
    sun = np.array(weather.sun, dtype=np.float32)
    facing = ids == GROUND
    for material in Material:
        of_material = scene.solids.material == material
        seen = np.nonzero((ids >= 0) & of_material[np.maximum(ids, 0)]) if of_material.any() else ()
        if len(seen) == 0 or len(seen[0]) == 0:
            continue
        numbers = ids[seen].astype(np.int64)
        hits = surface_hits(scene.solids, numbers, point_m[:, *seen], footprint_m[seen])
        facing[seen] = sum(hits.normal[i] * sun[i] for i in range(3)) > 0
        look = TEXTURES[material](hits)
        albedo[:, *seen], gloss[seen], glow[seen] = look.albedo, look.gloss, look.glow
        normal[:, *seen] = hits.normal
    del true_normal_up

    lit = np.zeros_like(facing)
    if max(weather.sun_light) > 0:
        lit = sunlit(camera, first_row, point_m, facing, scene.solids, np.array(weather.sun))
    hit = np.nonzero(~sky)
    directions = toward[:, *hit]
    normals, colour = normal[:, *hit], albedo[:, *hit]
    against = sum(normals[i] * sun[i] for i in range(3))
    sunshine = np.where(lit[hit], np.maximum(against, 0), 0).astype(np.float32)
    open_sky = _openness(scene, point_m, normal, hit)
    from_sky = (0.68 + 0.32 * normals[1]) * open_sky
    from_ground = np.maximum(0.25 - 0.25 * normals[1], 0) * np.float32(0.35 + 0.12 * max(weather.sun_light))
    received = column(weather.sky_light) * (from_sky + from_ground) + column(weather.sun_light) * sunshine
    radiance = colour * received + colour * glow[hit]
    shiny = np.flatnonzero(gloss[hit] > 0.02)
    look_along, bent = directions[:, shiny], normals[:, shiny]
    cosine = -(look_along * bent).sum(axis=0)
    bounce = look_along + 2 * cosine * bent
    share = gloss[hit][shiny]
    share = share + (1 - share) * (1 - np.clip(cosine, 0, 1)) ** 5 * np.minimum(1, share * 6)
    radiance[:, shiny] = mix(radiance[:, shiny], mirrored(bounce, weather), share)
    out[:, *hit] = through_air(radiance, (reach * length)[hit], directions, weather)
    return out


def _openness(scene: Scene, point_m: F32, normal: F32, hit: tuple[NDArray[np.intp], ...]) -> F32:
    """Share (n) of the sky that a surface sees, roughly: less near the ground on walls, and under and around cars."""
    x, y, z = point_m[:, *hit]
    upright = 1 - np.clip(normal[1][hit], 0, 1)
    openness = 1 - upright * np.float32(0.42) * np.exp(-np.maximum(y, 0) / np.float32(0.8))
    low = np.flatnonzero((y < 0.25) & (z < 90))
    px, pz, low_open = x[low], z[low], openness[low]
    for dark in scene.contacts:
        radius = dark.half_x_m + dark.half_z_m + 1.0
        near = np.flatnonzero((np.abs(px - dark.x_m) < radius) & (np.abs(pz - dark.z_m) < radius))
        if len(near) == 0:
            continue
        sin, cos = np.float32(np.sin(dark.yaw_rad)), np.float32(np.cos(dark.yaw_rad))
        across, ahead = px[near] - np.float32(dark.x_m), pz[near] - np.float32(dark.z_m)
        beyond_x = np.abs(across * cos - ahead * sin) - np.float32(dark.half_x_m)
        beyond_z = np.abs(across * sin + ahead * cos) - np.float32(dark.half_z_m)
        outside = np.hypot(np.maximum(beyond_x, 0), np.maximum(beyond_z, 0))
        inside = np.minimum(np.maximum(beyond_x, beyond_z), 0)
        low_open[near] *= 1 - np.float32(dark.strength) * np.exp(-outside / 0.22) * (
            1 - 0.5 * np.exp(inside / 0.25)
        )
    openness[low] = low_open
    return openness.astype(np.float32)


def _expose(light: F32, scene: Scene) -> NDArray[np.uint8]:
    """The sensor: lens blur, vignette, exposure, tone curve, noise. (3, H, W) light to (H, W, 3) sRGB bytes."""
    _, height, width = light.shape
    sensor = scene.sensor
    rng = np.random.default_rng(sensor.noise_seed)
    padded = np.pad(light, ((0, 0), (1, 1), (1, 1)), mode="edge")
    blur = np.float32(sensor.blur)
    rows = padded[:, 1:-1] * (1 - 2 * blur) + (padded[:, :-2] + padded[:, 2:]) * blur
    light = rows[:, :, 1:-1] * (1 - 2 * blur) + (rows[:, :, :-2] + rows[:, :, 2:]) * blur
    across = (np.arange(width, dtype=np.float32) - width / 2) / (width / 2)
    down = (np.arange(height, dtype=np.float32) - height / 2) / (width / 2)
    fall = 1 - np.float32(sensor.vignette) * (across**2 + down[:, None] ** 2)
    # Automatic exposure as a camera has it: most of the picture comes to a middle grey, give or take.
    grey = light.mean(axis=0)
    key = float(np.exp(np.log(np.clip(grey, 0.01, 1.2)).mean()))
    light = (
        light
        * fall
        * np.array(sensor.balance, dtype=np.float32)[:, None, None]
        * np.float32(sensor.exposure / key)
    )
    # Photon noise grows with the root of the light, read-out noise does not.
    spread = np.sqrt(np.maximum(light, 0) * np.float32(sensor.shot) ** 2 + np.float32(sensor.read) ** 2)
    light = light + spread * rng.standard_normal(light.shape, dtype=np.float32)
    light = np.maximum(light, 0)
    # A filmic shoulder keeps the sky from burning out.
    light = light * (light * 2.51 + 0.03) / (light * (light * 2.43 + 0.59) + 0.14)
    picture = np.clip(light, 0, 1) ** np.float32(1 / 2.2) * 255 + 0.5
    return np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0))
