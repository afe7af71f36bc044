"""Draws indoor scenes: a room, its furniture, its light, the camera and the sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from . import furniture, trinkets
from .camera import Camera
from .furnish import Furnisher
from .lamps import Lamp, ceiling_lights, window_lights
from .rooms import draw_shell
from .shapes import Solids, Triple
from .trace import first_hits
from .world import Sensor

if TYPE_CHECKING:
    from .builder import Rng
    from .room import Room
    from .rooms import Shell

PROBE_PX = (12, 16)
TRIALS = 6
GOOD_ENOUGH = 0.15
NEAREST_M = 0.6
KINDS = ("living", "bedroom", "office", "kitchen", "corridor")


@dataclass(frozen=True)
class Interior:
    """An indoor scene."""

    kind: str
    camera: Camera
    room: Room
    solids: Solids
    lamps: list[Lamp]
    """Lamps that cast shadows come first."""
    ambient: Triple
    cell_light: list[float]
    """Factor of the ambient light in each cell."""
    sun: Triple
    """Unit vector towards the sun."""
    sun_light: Triple
    sensor: Sensor
    every_sample: bool = False
    """Whether each pixel traces all nine samples of soft shadows, so that both images of a pair have the same shadows;
    otherwise pixels take turns in a pattern that is attached to the image."""


def draw_lens(seed: int, index: int, size_px: tuple[int, int]) -> Camera:
    """Draw the intrinsics of one frame's camera; its pose is a placeholder."""
    rng = np.random.default_rng([seed, index, 11])
    height, width = size_px
    return Camera(
        size_px=size_px,
        # 0.80-0.92 of the width at 4:3 is 57-64 degrees across, as in depth cameras.
        focal_px=float(rng.uniform(0.80, 0.92)) * max(width, 4 / 3 * height),
        cx_px=(width - 1) / 2 + float(rng.uniform(-0.01, 0.01)) * width,
        cy_px=(height - 1) / 2 + float(rng.uniform(-0.01, 0.01)) * height,
        position_m=(0.0, 1.4, 0.0),
        yaw_rad=0.0,
        pitch_rad=0.0,
        roll_rad=0.0,
    )


def draw_interior(seed: int, index: int, size_px: tuple[int, int]) -> Interior:
    """Draw the scene of one frame. It depends on the three arguments alone."""
    rng = np.random.default_rng([seed, index, 12])
    kind = str(rng.choice(KINDS, p=[0.28, 0.22, 0.22, 0.18, 0.10]))
    day = rng.random() < 0.72
    bright = float(rng.uniform(2.2, 5.0)) if day else float(rng.uniform(0.02, 0.12))
    shell = draw_shell(rng, kind, bright)
    has_windows = any(opening.kind == "window" for opening in shell.openings)
    lit = not (day and has_windows) or rng.random() < 0.35
    glow = float(rng.uniform(0.7, 1.3)) if lit else 0.0
    furnisher = Furnisher(rng, shell, glow)
    furnisher.place_main()
    x, z, towards = furnisher.placer.stand_camera()
    lamps = ceiling_lights(shell, rng, glow, (x, z))
    furnisher.fill((x, z))
    lamps += furnisher.lamps
    _furnish_beyond(rng, shell)
    warmth = float(rng.uniform(-0.08, 0.06))
    daylight = (1.0 + warmth, 1.0, 1.06 - warmth)
    if day:
        sky = bright * 0.42
        lamps += window_lights(shell, (daylight[0] * sky, daylight[1] * sky, daylight[2] * sky))
    lamps.sort(key=lambda lamp: (not lamp.shadows, -sum(lamp.power)))
    lamps = [replace(lamp, shadows=lamp.shadows and number < 2) for number, lamp in enumerate(lamps)]
    level = (0.16 * bright if day and has_windows else 0.1) + 0.28 * glow
    ambient = (level * (1.02 + 0.1 * (glow > 0)), level, level * (0.98 - 0.12 * (glow > 0)))
    cell_light = [float(rng.uniform(0.35, 1.2)) for _ in shell.cells]
    cell_light[0] = 1.0
    sunny = day and has_windows and rng.random() < 0.45
    elevation, azimuth = math.radians(rng.uniform(18, 50)), _sun_azimuth(rng, shell)
    strength = bright * float(rng.uniform(1.0, 2.0)) if sunny else 0.0
    room, solids = shell.room(), Solids(shell.solids)
    camera = _aim(rng, replace(draw_lens(seed, index, size_px), position_m=(x, 1.4, z)), towards, room, solids)
    return Interior(
        kind=kind,
        camera=camera,
        room=room,
        solids=solids,
        lamps=lamps,
        ambient=ambient,
        cell_light=cell_light,
        sun=(math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)),
        sun_light=(strength, strength * 0.9, strength * 0.74),
        sensor=_draw_sensor(rng, (seed, index, 13)),
    )


def _draw_sensor(rng: Rng, noise_seed: tuple[int, int, int]) -> Sensor:
    return Sensor(
        exposure=float(rng.uniform(0.16, 0.26)),
        vignette=float(rng.uniform(0.05, 0.25)),
        blur=float(rng.uniform(0.03, 0.09)),
        shot=float(rng.uniform(0.01, 0.03)),
        read=float(rng.uniform(0.002, 0.007)),
        balance=(float(rng.uniform(0.90, 1.04)), 1.0, float(rng.uniform(0.96, 1.12))),
        noise_seed=noise_seed,
    )


def _aim(rng: Rng, camera: Camera, towards_rad: float, room: Room, solids: Solids) -> Camera:
    """Draw the height and tilt of a hand-held or robot camera, and keep the trial with the best view of the room."""
    best, lowest = camera, math.inf
    nearest = float(rng.uniform(0.65, 1.1))
    height, width = camera.size_px
    shrink = max(height / PROBE_PX[0], width / PROBE_PX[1])
    small = (max(4, round(height / shrink)), max(4, round(width / shrink)))
    for trial in range(TRIALS):
        by_hand = rng.random() < 0.75
        position = (camera.position_m[0], float(rng.uniform(1.2, 1.65) if by_hand else rng.uniform(0.45, 1.0)))
        candidate = replace(
            camera,
            position_m=(*position, camera.position_m[2]),
            yaw_rad=towards_rad + float(rng.normal(0, 0.25 * (1 + trial))),
            pitch_rad=math.radians(rng.normal(15, 8) if by_hand else rng.normal(2, 5)),
            roll_rad=math.radians(rng.normal(0, 2.8)),
        )
        probe = replace(
            candidate,
            size_px=small,
            focal_px=camera.focal_px / shrink,
            cx_px=(small[1] - 1) / 2,
            cy_px=(small[0] - 1) / 2,
        )
        depth, ids = first_hits(probe, probe.rays(0, small[0]), 0, solids, room)
        depth = depth[1::3]
        near, middle = float(depth.min()), float(np.median(depth))
        penalty = max(0.0, NEAREST_M - near) * 9 + max(0.0, near - nearest)
        penalty += max(0.0, 1.9 - middle) + max(0.0, middle - 3.2)
        penalty += max(0.0, 14 - len(np.unique(ids))) / 14 + 2 * max(0.0, 0.45 - float((ids >= 0).mean()))
        if penalty < lowest:
            best, lowest = candidate, penalty
        if penalty < GOOD_ENOUGH:
            break
    return best


def _furnish_beyond(rng: Rng, shell: Shell) -> None:
    """Furnish the alcove and the next room, at the wall opposite the opening."""
    for portal in shell.portals:
        cell = shell.cells[portal.into]
        axis = 0 if portal.face < 2 else 2
        deep = cell.high_m[axis] - cell.low_m[axis]
        wide = cell.high_m[2 - axis] - cell.low_m[2 - axis]
        if portal.into == 0 or deep < 0.8 or wide < 1.1:
            continue
        sign = 1 if portal.face % 2 else -1
        wall = cell.high_m[axis] if sign > 0 else cell.low_m[axis]
        half_x, half_z = min(0.6, wide / 2 - 0.1), 0.17
        low, high = cell.low_m[2 - axis] + half_x + 0.05, cell.high_m[2 - axis] - half_x - 0.05
        along, across = float(rng.uniform(low, high)), wall - sign * (half_z + 0.03)
        yaw = {0: math.pi / 2, 1: -math.pi / 2, 4: 0.0, 5: math.pi}[portal.face]
        to = shell.spot(*((across, along) if axis == 0 else (along, across)), yaw)
        draw = rng.random()
        if draw < 0.4:
            furniture.shelf(to, rng, half_x, half_z, float(rng.uniform(1.2, 2.0)))
        elif draw < 0.8:
            furniture.cupboard(to, rng, half_x, half_z, float(rng.uniform(0.7, 1.0)))
        else:
            inwards = furniture.aside(to, 0, 0.2)
            trinkets.plant(inwards, rng, float(rng.uniform(0.8, 1.5)))
        if draw > 0.3:
            hung = furniture.aside(to, 0.0, -half_z - 0.03, y_m=1.6)
            trinkets.picture(hung, rng, min(0.35, half_x - 0.05), float(rng.uniform(0.2, 0.35)))


def _sun_azimuth(rng: Rng, shell: Shell) -> float:
    """Draw an azimuth at which the sun shines into a window."""
    faces = [opening.face for opening in shell.openings if opening.kind == "window"] or [0]
    outward = {0: -math.pi / 2, 1: math.pi / 2, 4: math.pi, 5: 0.0}[int(rng.choice(faces))]
    return outward + float(rng.uniform(-0.9, 0.9))
