"""Lights of a room: windows, ceiling lamps and bulbs; and the light that surfaces receive.

Shape legend: n samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import trinkets
from .builder import pick
from .rooms import WHITE, YAWS_RAD, Shell
from .shapes import Material, Triple

if TYPE_CHECKING:
    from .builder import Rng
    from .camera import F32

WARM = (1.0, 0.80, 0.56)


@dataclass(frozen=True)
class Lamp:
    """A light: a one-sided rectangle, or a ball if `normal` is zero. Colours are linear."""

    center_m: Triple
    arm_m: Triple
    """Half of the rectangle along one side (its whole extent for a ball)."""
    other_arm_m: Triple
    normal: Triple
    power: Triple
    """Light received at one metre, straight ahead."""
    shadows: bool

    def received(self, point_m: F32, normal: F32) -> F32:
        """Return unoccluded light (n) of unit power at world points (3, n)."""
        away = [np.float32(c) - p for c, p in zip(self.center_m, point_m, strict=True)]
        # The law for point lights would diverge near a large light.
        size = sum(a * a + b * b for a, b in zip(self.arm_m, self.other_arm_m, strict=True)) * 0.5 + 0.02
        square = away[0] ** 2 + away[1] ** 2 + away[2] ** 2
        length = np.sqrt(square)
        cosine = sum(a * n for a, n in zip(away, normal, strict=True)) / length
        # A large light reaches slightly around edges.
        soft = min(0.35, 0.5 * math.sqrt(size))
        facing = np.clip((cosine + np.float32(soft)) / np.float32(1 + soft), 0, 1)
        if any(self.normal):
            ahead = sum(a * np.float32(-n) for a, n in zip(away, self.normal, strict=True)) / length
            facing = facing * np.clip(ahead, 0, 1)
        return np.asarray(facing / (square + np.float32(size)), dtype=np.float32)


def bulb(center_m: Triple, strength: float) -> Lamp:
    """Return a small lamp that casts no shadows."""
    power = (WARM[0] * strength, WARM[1] * strength, WARM[2] * strength)
    return Lamp(center_m, (0.1, 0.0, 0.0), (0.0, 0.0, 0.1), (0.0, 0.0, 0.0), power, shadows=False)


def window_lights(shell: Shell, light: Triple) -> list[Lamp]:
    """Return daylight through each window; `light` is the brightness of the sky."""
    lamps = []
    for opening in shell.openings:
        if opening.kind != "window":
            continue
        rise = (opening.high_m - opening.low_m) / 2
        area = 4 * opening.half_m * rise
        spot = shell.stand(opening.face, opening.along_m, 0.02, (opening.low_m + opening.high_m) / 2)
        inward = (math.sin(YAWS_RAD[opening.face]), 0.0, math.cos(YAWS_RAD[opening.face]))
        along = (0.0, 0.0, opening.half_m) if opening.face < 2 else (opening.half_m, 0.0, 0.0)
        power = (light[0] * area, light[1] * area, light[2] * area)
        lamps.append(Lamp((spot.x_m, spot.y_m, spot.z_m), along, (0.0, rise, 0.0), inward, power, shadows=True))
    return lamps


def ceiling_lights(shell: Shell, rng: Rng, glow: float, camera_xz_m: tuple[float, float]) -> list[Lamp]:
    """Add ceiling lamps and return their lights; there are none if `glow` is 0."""
    long_x = shell.half_x > shell.half_z
    rows = max(1, round(max(shell.half_x, shell.half_z) / 1.6))
    style = rng.choice(3, p=[0.1, 0.3, 0.6] if shell.kind == "office" else [0.45, 0.4, 0.15])
    lamps = []
    for number in range(rows):
        fraction = (2 * number + 1) / rows - 1
        x, z = (fraction * shell.half_x, 0.0) if long_x else (0.0, fraction * shell.half_z)
        to = shell.spot(x, z)
        below = shell.high
        if style == 0 and math.hypot(x - camera_xz_m[0], z - camera_xz_m[1]) > 0.9:
            below = shell.high - float(rng.uniform(0.35, 0.6))
            to.tube((0, below, 0), (0, shell.high, 0), 0.008, (0.02, 0.02, 0.02), casts=False)
            trinkets.shade(to, rng, below, float(rng.uniform(0.15, 0.24)), glow)
            arms = ((0.12, 0.0, 0.0), (0.0, 0.0, 0.12))
        elif style < 2:
            glass = pick(rng, ("f4f2ec", "efe4cc"), 0.05)
            radius = float(rng.uniform(0.14, 0.2))
            to.ball((0, shell.high - 0.02, 0), (radius, 0.09, radius), glass, Material.GLOW,
                    extra=(3.0 * glow,), casts=False)  # fmt: skip
            below, arms = shell.high - 0.1, ((0.15, 0.0, 0.0), (0.0, 0.0, 0.15))
        else:
            half = (0.6, 0.012, 0.15) if rng.random() < 0.5 else (0.3, 0.012, 0.3)
            to.box((0, shell.high - 0.012, 0), half, WHITE, Material.GLOW, extra=(3.5 * glow,), casts=False)
            below, arms = shell.high - 0.03, ((half[0], 0.0, 0.0), (0.0, 0.0, half[2]))
        if glow > 0:
            tint = WARM if style < 2 else (1.0, 0.95, 0.86)
            power = (tint[0] * glow * 3.2, tint[1] * glow * 3.2, tint[2] * glow * 3.2)
            down = (0.0, -1.0, 0.0) if style == 2 else (0.0, 0.0, 0.0)
            lamps.append(Lamp((x, below - 0.05, z), *arms, down, power, shadows=True))
    return lamps
