"""Renders a room: finishes, lamps and windows with soft shadows, contact shading, the sensor.

Visibility is traced at pixel centres only. Each pixel samples another part of a lamp and another direction around its
normal, and the nine pixels of a neighbourhood that see the same face average their results. In stereo pairs each pixel
traces all nine samples.

Shape legend: R sample rows, W columns, H pixel rows, n samples, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .camera import SAMPLES_PX
from .finishes import FINISHES
from .light import column
from .occlusion import free_fraction
from .shade import BAND_SAMPLES, expose
from .shapes import Material
from .surfaces import Hits, mix, surface_hits
from .trace import first_hits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .camera import F32
    from .interior import Interior

SAMPLES = len(SAMPLES_PX)
CONTACT_M = 0.45
LIFT_M = 0.004
# Points of a square and directions of a sphere, nine of each, spread evenly by the plastic number.
_STEPS = np.arange(9)
_SQUARE = np.stack([(0.5 + _STEPS * 0.7548776662) % 1, (0.5 + _STEPS * 0.5698402910) % 1]).astype(np.float32) * 2 - 1
_AROUND, _UP = 2 * np.pi * ((_STEPS * 0.7548776662) % 1), _SQUARE[1]
_SPHERE = np.stack([np.sqrt(1 - _UP**2) * np.cos(_AROUND), _UP, np.sqrt(1 - _UP**2) * np.sin(_AROUND)])
_SHIFTS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))


@dataclass
class Samples:
    """Surfaces that the samples of a band see: (n) or (3, n), n = R * W."""

    point_m: F32
    normal: F32
    plain_normal: F32
    """Before the finish bends it."""
    albedo: F32
    gloss: F32
    glow: F32
    face: NDArray[np.int64]
    """Unique number of each face of each solid and of the shell."""
    cell: NDArray[np.int64]
    material: NDArray[np.int64]


def render_interior(scene: Interior) -> tuple[NDArray[np.uint8], F32, F32]:
    """Return picture (H, W, 3), planar depth (H, W) in metres at pixel centres, and echo (H, W).

    The echo is the fraction of infrared light from the camera that returns to it: little from dark or grazing surfaces,
    none from panes and screens.
    """
    light, depth_m, echo = interior_light(scene)
    return expose(light, scene.sensor), depth_m, echo


def interior_light(scene: Interior) -> tuple[F32, F32, F32]:
    """Return light (3, H, W) that reaches the sensor, depth and echo (H, W) as `render_interior`."""
    height, width = scene.camera.size_px
    step = max(1, BAND_SAMPLES // (width * SAMPLES))
    bands = [_render_rows(scene, first, min(height, first + step)) for first in range(0, height, step)]
    light = np.concatenate([band[0] for band in bands], axis=1)
    depth_m, echo = (np.concatenate([band[part] for band in bands]) for part in (1, 2))
    return light, depth_m, echo


def _render_rows(scene: Interior, first: int, last: int) -> tuple[F32, F32, F32]:
    """Return light (3, h, W), depth and echo (h, W) of pixel rows [first, last)."""
    height, width = scene.camera.size_px
    # One more row on either side, for the neighbourhoods.
    top, bottom = max(0, first - 1), min(height, last + 1)
    rays = scene.camera.rays(top, bottom)
    depth, ids = first_hits(scene.camera, rays, top * SAMPLES, scene.solids, scene.room)
    flat = rays.reshape(3, -1)
    toward = flat / np.sqrt((flat * flat).sum(axis=0))
    samples = _surfaces(scene, flat, depth.reshape(-1), ids.reshape(-1).astype(np.int64))
    rows = bottom - top
    light = _light(scene, samples, toward, top, (rows, width))
    inner = slice(first - top, last - top)
    mean = light.reshape(3, rows, SAMPLES, width).mean(axis=2)[:, inner]
    facing = np.clip(-(samples.plain_normal * toward).sum(axis=0), 0, 1)
    # Most dyes are transparent to infrared light, so dark cloth is brighter than it looks.
    gray = 0.08 + 0.92 * samples.albedo.mean(axis=0)
    mirror = (samples.material == Material.PANE) | (samples.material == Material.SCREEN)
    echo = np.where(mirror, 0, gray * facing * (1 - np.clip(4 * samples.gloss - 0.3, 0, 0.8)))
    centers = [part.reshape(rows, SAMPLES, width)[inner, SAMPLES // 2] for part in (depth, echo)]
    return mean, centers[0], centers[1].astype(np.float32)


def _surfaces(scene: Interior, rays: F32, depth: F32, ids: NDArray[np.int64]) -> Samples:
    solids, room = scene.solids, scene.room
    origin = np.array(scene.camera.position_m, dtype=np.float32)[:, None]
    point_m = rays * depth + origin
    count = len(ids)
    blank = np.zeros((3, count), dtype=np.float32)
    zero = np.zeros(count, dtype=np.float32)
    face, cell = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    samples = Samples(point_m, blank, blank.copy(), blank.copy(), zero, zero.copy(), face, cell, np.zeros_like(face))
    shell = np.flatnonzero(ids < 0)
    _, walls = room.walk(origin, rays[:, shell], np.zeros(len(shell), dtype=np.int64))
    materials, *columns = room.finish_columns()
    samples.material[shell], samples.material[ids >= 0] = materials[walls], solids.material[ids[ids >= 0]]
    samples.cell[shell] = walls // 6
    samples.cell[ids >= 0] = _cells_of(scene)[ids[ids >= 0]]
    footprint = depth / np.float32(scene.camera.focal_px)
    wall_of = np.zeros(count, dtype=np.int64)
    wall_of[shell] = walls
    for material in np.unique(samples.material):
        for on_shell in (True, False):
            at = np.flatnonzero((samples.material == material) & ((ids < 0) == on_shell))
            if len(at) == 0:
                continue
            if on_shell:
                hits = _shell_hits(scene, wall_of[at], point_m.take(at, axis=1), footprint[at], columns)
                samples.face[at] = -1 - wall_of[at]
            else:
                hits = surface_hits(solids, ids[at], point_m.take(at, axis=1), footprint[at])
                samples.face[at] = ids[at] * 8 + hits.face + 3
            samples.plain_normal[:, at] = hits.normal
            surface = FINISHES[Material(material)](hits)
            samples.normal[:, at], samples.albedo[:, at] = hits.normal, surface.albedo
            samples.gloss[at], samples.glow[at] = surface.gloss, surface.glow
    return samples


def _cells_of(scene: Interior) -> NDArray[np.int64]:
    """Return the cell of each solid's centre; the first cell for solids inside a wall."""
    middle = scene.solids.center_m.astype(np.float32)
    cells = np.zeros(middle.shape[1], dtype=np.int64)
    for number in range(len(scene.room.cells)):
        low, high = scene.room.low_m[:, number, None], scene.room.high_m[:, number, None]
        cells[((middle > low) & (middle < high)).all(axis=0)] = number
    return cells


def _shell_hits(scene: Interior, walls: NDArray[np.int64], point_m: F32, footprint_m: F32, columns: list[F32]) -> Hits:
    """Return hits of samples (n) on the faces of the shell, seen from inside."""
    low, high = scene.room.low_m[:, walls // 6], scene.room.high_m[:, walls // 6]
    half = (high - low) / 2
    metres = point_m - (low + high) / 2
    axis, sign = walls % 6 // 2, walls % 2 * 2 - 1
    normal = np.zeros_like(point_m)
    normal[axis, np.arange(len(walls))] = -sign
    color, color2, extra = (part[:, walls] for part in columns)
    face = ((axis + 1) * sign).astype(np.int8)
    return Hits(metres / half, metres, point_m, normal, face, footprint_m, half, color, color2, extra)


def _light(scene: Interior, samples: Samples, toward: F32, first_row: int, shape: tuple[int, int]) -> F32:
    """Return light (3, n) from the samples to the camera."""
    lamps, size = scene.lamps, len(samples.face)
    received = _ambient(scene, samples)
    sun = column(scene.sun)
    at_sun = np.clip((samples.normal * sun).sum(axis=0), 0, 1)
    sunny = _in_sun(scene, samples, at_sun) if max(scene.sun_light) > 0 else np.zeros(size, dtype=np.bool_)
    falls = [lamp.received(samples.point_m, samples.normal) for lamp in lamps]
    shares = _visible(scene, samples, falls, sunny, first_row, shape)
    received *= shares[0]
    elsewhere = np.flatnonzero(samples.cell != 0)
    for lamp, fall, fraction in zip(lamps, falls, shares[1:-1], strict=True):
        if len(elsewhere):  # walls block the lamp unless it is visible through a door
            start = samples.point_m.take(elsewhere, axis=1) + LIFT_M * samples.plain_normal.take(elsewhere, axis=1)
            way = np.array(lamp.center_m, dtype=np.float32)[:, None] - start
            reach, _ = scene.room.walk(start, way, samples.cell[elsewhere])
            fall[elsewhere] *= reach > 0.97
        received += column(lamp.power) * (fall * fraction)
    received += column(scene.sun_light) * (at_sun * sunny * shares[-1])
    radiance = samples.albedo * (received + samples.glow)
    shiny = np.flatnonzero(samples.gloss > 0.025)
    along, bent, gloss = toward.take(shiny, axis=1), samples.normal.take(shiny, axis=1), samples.gloss[shiny]
    cosine = -(along * bent).sum(axis=0)
    bounce = along + 2 * cosine * bent
    gloss = gloss + (1 - gloss) * (1 - np.clip(cosine, 0, 1)) ** 5 * np.minimum(0.6, gloss * 5)
    radiance[:, shiny] = mix(radiance[:, shiny], _mirrored(scene, samples.point_m.take(shiny, axis=1), bounce), gloss)
    return np.asarray(radiance, dtype=np.float32)


def _ambient(scene: Interior, samples: Samples) -> F32:
    """Return ambient light (3, n): less in the corners of the shell and from below."""
    low, high = scene.room.low_m[:, samples.cell], scene.room.high_m[:, samples.cell]
    level = np.array(scene.cell_light, dtype=np.float32)[samples.cell] * (0.86 + 0.14 * samples.normal[1])
    for axis in range(3):
        parallel = 1 - np.abs(samples.plain_normal[axis])
        gap = np.minimum(np.abs(samples.point_m[axis] - low[axis]), np.abs(high[axis] - samples.point_m[axis]))
        level *= 1 - 0.38 * parallel * np.exp(gap * np.float32(-1 / 0.28))
    return np.asarray(column(scene.ambient) * level, dtype=np.float32)


def _in_sun(scene: Interior, samples: Samples, at_sun: F32) -> NDArray[np.bool_]:
    """Return whether the way to the sun (n) ends in a window pane."""
    sunny = np.zeros(len(at_sun), dtype=np.bool_)
    facing = np.flatnonzero(at_sun > 0)
    materials, *_ = scene.room.finish_columns()
    start = samples.point_m.take(facing, axis=1) + LIFT_M * samples.plain_normal.take(facing, axis=1)
    way = np.broadcast_to(column(scene.sun), start.shape)
    _, walls = scene.room.walk(start, way, samples.cell[facing])
    sunny[facing] = materials[walls] == Material.PANE
    return sunny


def _visible(
    scene: Interior,
    samples: Samples,
    falls: list[F32],
    sunny: NDArray[np.bool_],
    first_row: int,
    shape: tuple[int, int],
) -> list[F32]:
    """Return fractions (n) of ambient light, of each lamp's and of the sun's light that pass the furniture."""
    rows, width = shape
    middle = (rows, SAMPLES, width)

    def centers(values: F32) -> F32:
        return np.ascontiguousarray(values.reshape(*values.shape[:-1], *middle)[..., SAMPLES // 2, :])

    normal = centers(samples.plain_normal)
    start = centers(samples.point_m) + np.float32(LIFT_M) * normal
    facing = [*(centers(fall) > 1e-4 for fall in falls), centers(sunny)]
    if scene.every_sample:
        each = [_traced(scene, start, normal, facing, np.full(shape, step)) for step in _STEPS]
        fractions = [np.mean(parts, axis=0) for parts in zip(*each, strict=True)]
    else:
        sample_of = ((np.arange(rows) + first_row)[:, None] % 3) * 3 + np.arange(width) % 3
        fractions = _traced(scene, start, normal, facing, sample_of)
    return _neighbor_means(fractions, samples.face.reshape(middle))


def _traced(
    scene: Interior, start: F32, normal: F32, facing: list[NDArray[np.bool_]], sample_of: NDArray[np.intp]
) -> list[F32]:
    """Return the fractions (h, W) of `_visible` from points and normals (3, h, W) at the centres of pixels.

    `facing` is where (h, W) each lamp and the sun can shine; `sample_of` (h, W) selects parts of lamps and directions.
    """
    around = normal + np.float32(0.98) * _SPHERE.astype(np.float32)[:, sample_of]
    around *= np.float32(CONTACT_M) / np.sqrt((around * around).sum(axis=0))
    everywhere = np.ones(sample_of.shape, dtype=np.bool_)
    # Near objects block more ambient light than distant ones.
    near = np.clip(free_fraction(start, start + around, everywhere, scene.solids), 0, 1)
    fractions = [np.float32(0.12) + np.float32(0.88) * near]
    for lamp, lit in zip(scene.lamps, facing[:-1], strict=True):
        if not lamp.shadows:
            fractions.append(np.ones(sample_of.shape, dtype=np.float32))
            continue
        arms = column(lamp.arm_m) * _SQUARE[0], column(lamp.other_arm_m) * _SQUARE[1]
        targets = (column(lamp.center_m) + 0.95 * (arms[0] + arms[1])).astype(np.float32)[:, sample_of]
        fractions.append(_reached(scene, start, targets, lit))
    away = start + np.float32(9) * column(scene.sun)[..., None]
    fractions.append(_reached(scene, start, away, facing[-1]))
    return fractions


def _reached(scene: Interior, start: F32, targets: F32, mask: NDArray[np.bool_]) -> F32:
    return (free_fraction(start, targets, mask, scene.solids) >= 1).astype(np.float32)


def _neighbor_means(fractions: list[F32], faces: NDArray[np.int64]) -> list[F32]:
    """Return means (n) over the neighbouring pixels whose centres see the face of the sample."""
    rows, _, width = faces.shape
    stacked = np.pad(np.stack(fractions), ((0, 0), (1, 1), (1, 1)), mode="edge")
    center_faces = np.pad(faces[:, SAMPLES // 2], 1, constant_values=np.iinfo(np.int64).min)
    total = np.zeros((len(fractions), *faces.shape), dtype=np.float32)
    count = np.zeros(faces.shape, dtype=np.float32)
    for row, across in _SHIFTS:
        window = (slice(1 + row, 1 + row + rows), slice(1 + across, 1 + across + width))
        same = (center_faces[window][:, None] == faces).astype(np.float32)
        count += same
        total += stacked[(slice(None), *window)][:, :, None] * same
    # A sliver that no centre sees takes the value of its pixel.
    own = np.stack(fractions)[:, :, None]
    mean = np.where(count > 0, total / np.maximum(count, 1), own)
    return list(mean.reshape(len(fractions), -1))


def _mirrored(scene: Interior, point_m: F32, bounce: F32) -> F32:
    """Return mirrored light (3, n) along unit directions (3, n): dim walls, bright lamps and windows."""
    reflection = column(scene.ambient) * (np.float32(0.55) + np.float32(0.25) * bounce[1])
    for lamp in scene.lamps:
        away = column(lamp.center_m) - point_m
        length = np.sqrt((away * away).sum(axis=0))
        size = sum(a * a + b * b for a, b in zip(lamp.arm_m, lamp.other_arm_m, strict=True)) + 0.01
        towards = np.clip((away * bounce).sum(axis=0) / length, 0, 1)
        spread = np.maximum(1 - towards, 0) * 2 * length**2 / np.float32(size)
        strength = np.exp(-spread) / np.float32(4 * size)
        reflection = reflection + column(lamp.power) * np.minimum(strength, np.float32(4))
    return np.asarray(reflection, dtype=np.float32)
