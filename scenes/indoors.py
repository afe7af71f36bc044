"""From a room's geometry to a picture: finishes, lamps and windows with soft shadows, contact shading, the sensor.

Visibility is found at pixel centres only, each pixel looking at another part of a lamp and in another direction
about its normal; the nine pixels of a neighbourhood that see the same face share what they found.

Shape legend: R sample rows, W columns, H pixel rows, n samples, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .camera import SAMPLES_PX
from .finishes import FINISHES
from .light import column
from .occlusion import free_share
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
class Seen:
    """What the samples of a band see: all (n) or (3, n), n = R * W."""

    point_m: F32
    normal: F32
    plain_normal: F32
    """Before the finish bent it."""
    albedo: F32
    gloss: F32
    glow: F32
    face: NDArray[np.int64]
    """One number for each face of each solid and of the shell."""
    cell: NDArray[np.int64]
    material: NDArray[np.int64]


def render_interior(scene: Interior) -> tuple[NDArray[np.uint8], F32, F32]:
    """Picture (H, W, 3), planar depth (H, W) in metres at the pixels' centres, and echo (H, W).

    The echo is how much of infrared light from the camera comes back to it, 0 to 1: little from dark or grazing
    surfaces, none from panes and screens.
    """
    height, width = scene.camera.size_px
    step = max(1, BAND_SAMPLES // (width * SAMPLES))
    bands = [_render_rows(scene, first, min(height, first + step)) for first in range(0, height, step)]
    light = np.concatenate([band[0] for band in bands], axis=1)
    depth_m, echo = (np.concatenate([band[part] for band in bands]) for part in (1, 2))
    return expose(light, scene.sensor), depth_m, echo


def _render_rows(scene: Interior, first: int, last: int) -> tuple[F32, F32, F32]:
    """Light (3, h, W), depth and echo (h, W) of pixel rows [first, last)."""
    height, width = scene.camera.size_px
    # A row more at either end, for the neighbourhoods.
    top, bottom = max(0, first - 1), min(height, last + 1)
    rays = scene.camera.rays(top, bottom)
    depth, ids = first_hits(scene.camera, rays, top * SAMPLES, scene.solids, scene.room)
    flat = rays.reshape(3, -1)
    toward = flat / np.sqrt((flat * flat).sum(axis=0))
    seen = _surfaces(scene, flat, depth.reshape(-1), ids.reshape(-1).astype(np.int64))
    rows = bottom - top
    light = _light(scene, seen, toward, top, (rows, width))
    inner = slice(first - top, last - top)
    mean = light.reshape(3, rows, SAMPLES, width).mean(axis=2)[:, inner]
    facing = np.clip(-(seen.plain_normal * toward).sum(axis=0), 0, 1)
    # Infrared light sees through most dyes: dark cloth is brighter than it looks.
    grey = 0.08 + 0.92 * seen.albedo.mean(axis=0)
    mirror = (seen.material == Material.PANE) | (seen.material == Material.SCREEN)
    echo = np.where(mirror, 0, grey * facing * (1 - np.clip(4 * seen.gloss - 0.3, 0, 0.8)))
    centres = [part.reshape(rows, SAMPLES, width)[inner, SAMPLES // 2] for part in (depth, echo)]
    return mean, centres[0], centres[1].astype(np.float32)


def _surfaces(scene: Interior, rays: F32, depth: F32, ids: NDArray[np.int64]) -> Seen:
    solids, room = scene.solids, scene.room
    origin = np.array(scene.camera.position_m, dtype=np.float32)[:, None]
    point_m = rays * depth + origin
    count = len(ids)
    blank = np.zeros((3, count), dtype=np.float32)
    zero = np.zeros(count, dtype=np.float32)
    face, cell = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    seen = Seen(point_m, blank, blank.copy(), blank.copy(), zero, zero.copy(), face, cell, np.zeros_like(face))
    shell = np.flatnonzero(ids < 0)
    _, walls = room.walk(origin, rays[:, shell], np.zeros(len(shell), dtype=np.int64))
    materials, *columns = room.finish_columns()
    seen.material[shell], seen.material[ids >= 0] = materials[walls], solids.material[ids[ids >= 0]]
    seen.cell[shell] = walls // 6
    seen.cell[ids >= 0] = _cells_of(scene)[ids[ids >= 0]]
    footprint = depth / np.float32(scene.camera.focal_px)
    wall_of = np.zeros(count, dtype=np.int64)
    wall_of[shell] = walls
    for material in np.unique(seen.material):
        for on_shell in (True, False):
            at = np.flatnonzero((seen.material == material) & ((ids < 0) == on_shell))
            if len(at) == 0:
                continue
            if on_shell:
                hits = _shell_hits(scene, wall_of[at], point_m.take(at, axis=1), footprint[at], columns)
                seen.face[at] = -1 - wall_of[at]
            else:
                hits = surface_hits(solids, ids[at], point_m.take(at, axis=1), footprint[at])
                seen.face[at] = ids[at] * 8 + hits.face + 3
            seen.plain_normal[:, at] = hits.normal
            look = FINISHES[Material(material)](hits)
            seen.normal[:, at], seen.albedo[:, at] = hits.normal, look.albedo
            seen.gloss[at], seen.glow[at] = look.gloss, look.glow
    return seen


def _cells_of(scene: Interior) -> NDArray[np.int64]:
    """The cell that each solid's middle is in; the first for those within a wall."""
    middle = scene.solids.centre_m.astype(np.float32)
    found = np.zeros(middle.shape[1], dtype=np.int64)
    for number in range(len(scene.room.cells)):
        low, high = scene.room.low_m[:, number, None], scene.room.high_m[:, number, None]
        found[((middle > low) & (middle < high)).all(axis=0)] = number
    return found


def _shell_hits(scene: Interior, walls: NDArray[np.int64], point_m: F32, footprint_m: F32, columns: list[F32]) -> Hits:
    """Where on the faces of the shell the samples (n) lie: as on solids, but seen from inside."""
    low, high = scene.room.low_m[:, walls // 6], scene.room.high_m[:, walls // 6]
    half = (high - low) / 2
    metres = point_m - (low + high) / 2
    axis, sign = walls % 6 // 2, walls % 2 * 2 - 1
    normal = np.zeros_like(point_m)
    normal[axis, np.arange(len(walls))] = -sign
    colour, colour2, extra = (part[:, walls] for part in columns)
    face = ((axis + 1) * sign).astype(np.int8)
    return Hits(metres / half, metres, point_m, normal, face, footprint_m, half, colour, colour2, extra)


def _light(scene: Interior, seen: Seen, toward: F32, first_row: int, shape: tuple[int, int]) -> F32:
    """Light (3, n) that the samples send to the camera."""
    lamps, size = scene.lamps, len(seen.face)
    received = _ambient(scene, seen)
    sun = column(scene.sun)
    at_sun = np.clip((seen.normal * sun).sum(axis=0), 0, 1)
    sunny = _in_sun(scene, seen, at_sun) if max(scene.sun_light) > 0 else np.zeros(size, dtype=np.bool_)
    falls = [lamp.received(seen.point_m, seen.normal) for lamp in lamps]
    shares = _visible(scene, seen, falls, sunny, first_row, shape)
    received *= shares[0]
    elsewhere = np.flatnonzero(seen.cell != 0)
    for lamp, fall, share in zip(lamps, falls, shares[1:-1], strict=True):
        if len(elsewhere):  # the walls stand between, unless one sees the lamp through a door
            start = seen.point_m.take(elsewhere, axis=1) + LIFT_M * seen.plain_normal.take(elsewhere, axis=1)
            way = np.array(lamp.centre_m, dtype=np.float32)[:, None] - start
            reach, _ = scene.room.walk(start, way, seen.cell[elsewhere])
            fall[elsewhere] *= reach > 0.97
        received += column(lamp.power) * (fall * share)
    received += column(scene.sun_light) * (at_sun * sunny * shares[-1])
    radiance = seen.albedo * (received + seen.glow)
    shiny = np.flatnonzero(seen.gloss > 0.025)
    along, bent, gloss = toward.take(shiny, axis=1), seen.normal.take(shiny, axis=1), seen.gloss[shiny]
    cosine = -(along * bent).sum(axis=0)
    bounce = along + 2 * cosine * bent
    gloss = gloss + (1 - gloss) * (1 - np.clip(cosine, 0, 1)) ** 5 * np.minimum(0.6, gloss * 5)
    radiance[:, shiny] = mix(radiance[:, shiny], _mirrored(scene, seen.point_m.take(shiny, axis=1), bounce), gloss)
    return np.asarray(radiance, dtype=np.float32)


def _ambient(scene: Interior, seen: Seen) -> F32:
    """Light (3, n) from all around: less in the corners of the shell, less from below."""
    low, high = scene.room.low_m[:, seen.cell], scene.room.high_m[:, seen.cell]
    level = np.array(scene.cell_light, dtype=np.float32)[seen.cell] * (0.86 + 0.14 * seen.normal[1])
    for axis in range(3):
        beside = 1 - np.abs(seen.plain_normal[axis])
        gap = np.minimum(np.abs(seen.point_m[axis] - low[axis]), np.abs(high[axis] - seen.point_m[axis]))
        level *= 1 - 0.38 * beside * np.exp(gap * np.float32(-1 / 0.28))
    return np.asarray(column(scene.ambient) * level, dtype=np.float32)


def _in_sun(scene: Interior, seen: Seen, at_sun: F32) -> NDArray[np.bool_]:
    """Whether the way to the sun (n) ends in a window pane."""
    found = np.zeros(len(at_sun), dtype=np.bool_)
    asked = np.flatnonzero(at_sun > 0)
    materials, *_ = scene.room.finish_columns()
    start = seen.point_m.take(asked, axis=1) + LIFT_M * seen.plain_normal.take(asked, axis=1)
    way = np.broadcast_to(column(scene.sun), start.shape)
    _, walls = scene.room.walk(start, way, seen.cell[asked])
    found[asked] = materials[walls] == Material.PANE
    return found


def _visible(
    scene: Interior, seen: Seen, falls: list[F32], sunny: NDArray[np.bool_], first_row: int, shape: tuple[int, int]
) -> list[F32]:
    """Shares (n) of the ambient light, of each lamp's and of the sun's that come past the furniture."""
    rows, width = shape
    middle = (rows, SAMPLES, width)

    def centres(values: F32) -> F32:
        return np.ascontiguousarray(values.reshape(*values.shape[:-1], *middle)[..., SAMPLES // 2, :])

    normal = centres(seen.plain_normal)
    start = centres(seen.point_m) + np.float32(LIFT_M) * normal
    which = ((np.arange(rows) + first_row)[:, None] % 3) * 3 + np.arange(width) % 3
    around = normal + np.float32(0.98) * _SPHERE.astype(np.float32)[:, which]
    around *= np.float32(CONTACT_M) / np.sqrt((around * around).sum(axis=0))
    everywhere = np.ones(shape, dtype=np.bool_)
    # What is close by takes more light than what is almost out of reach.
    near = np.clip(free_share(start, start + around, everywhere, scene.solids), 0, 1)
    found = [np.float32(0.12) + np.float32(0.88) * near]
    for lamp, fall in zip(scene.lamps, falls, strict=True):
        if not lamp.shadows:
            found.append(np.ones(shape, dtype=np.float32))
            continue
        arms = column(lamp.arm_m) * _SQUARE[0], column(lamp.other_arm_m) * _SQUARE[1]
        targets = (column(lamp.centre_m) + 0.95 * (arms[0] + arms[1])).astype(np.float32)[:, which]
        found.append(_reached(scene, start, targets, centres(fall) > 1e-4))
    if sunny.any():
        away = start + np.float32(9) * column(scene.sun)[..., None]
        found.append(_reached(scene, start, away, centres(sunny)))
    else:
        found.append(np.ones(shape, dtype=np.float32))
    return _shared(found, seen.face.reshape(middle))


def _reached(scene: Interior, start: F32, targets: F32, asked: NDArray[np.bool_]) -> F32:
    return (free_share(start, targets, asked, scene.solids) >= 1).astype(np.float32)


def _shared(found: list[F32], faces: NDArray[np.int64]) -> list[F32]:
    """Means (n) for all samples, over the neighbouring pixels whose centres see the sample's own face."""
    rows, _, width = faces.shape
    stacked = np.pad(np.stack(found), ((0, 0), (1, 1), (1, 1)), mode="edge")
    known = np.pad(faces[:, SAMPLES // 2], 1, constant_values=np.iinfo(np.int64).min)
    total = np.zeros((len(found), *faces.shape), dtype=np.float32)
    count = np.zeros(faces.shape, dtype=np.float32)
    for row, across in _SHIFTS:
        window = (slice(1 + row, 1 + row + rows), slice(1 + across, 1 + across + width))
        same = (known[window][:, None] == faces).astype(np.float32)
        count += same
        total += stacked[(slice(None), *window)][:, :, None] * same
    # A sliver that no centre sees takes its own pixel's.
    own = np.stack(found)[:, :, None]
    mean = np.where(count > 0, total / np.maximum(count, 1), own)
    return list(mean.reshape(len(found), -1))


def _mirrored(scene: Interior, point_m: F32, bounce: F32) -> F32:
    """What a polished surface shows (3, n) along unit directions (3, n): dim walls, bright lamps and windows."""
    shown = column(scene.ambient) * (np.float32(0.55) + np.float32(0.25) * bounce[1])
    for lamp in scene.lamps:
        away = column(lamp.centre_m) - point_m
        length = np.sqrt((away * away).sum(axis=0))
        size = sum(a * a + b * b for a, b in zip(lamp.arm_m, lamp.other_arm_m, strict=True)) + 0.01
        towards = np.clip((away * bounce).sum(axis=0) / length, 0, 1)
        spread = np.maximum(1 - towards, 0) * 2 * length**2 / np.float32(size)
        strength = np.exp(-spread) / np.float32(4 * size)
        shown = shown + column(lamp.power) * np.minimum(strength, np.float32(4))
    return np.asarray(shown, dtype=np.float32)
