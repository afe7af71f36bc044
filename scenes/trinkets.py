"""Small items on tables, shelves, walls and floors.

A model stands at the origin of its own axes: x right, y up, z forward, metres.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .builder import Builder, Rng, pick, vary
from .shapes import Material, Triple

if TYPE_CHECKING:
    from .camera import F64

BRIGHTS = ("c0392b", "e0a030", "2f6f9f", "3f8f5f", "efe8d8", "f2f2f0", "7a4a8a", "d06a4a", "2a2f36", "9ab0a8")
POTS = ("b5683f", "e6e2da", "4a4f55", "8a8f8a", "c9b79a", "2f4a5a")
LEAVES = ("3d6b2f", "4f7d36", "2f5a33", "6b8a3f", "58803a")
RADII_M = (0.045, 0.09, 0.15, 0.17, 0.05, 0.09, 0.2, 0.06)
"""Radii of a mug, a bowl, lying books, a plant, a bottle, a box, a laptop, a figure."""
CARDBOARD = ("b08d5f", "a37f52", "c2a070", "d8d3c8", "5a6a78")


def _turned(yaw_rad: float) -> F64:
    sin, cos = math.sin(yaw_rad), math.cos(yaw_rad)
    return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def _tilted(pitch_rad: float) -> F64:
    sin, cos = math.sin(pitch_rad), math.cos(pitch_rad)
    return np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])


def clutter(
    to: Builder, rng: Rng, half_x: float, half_z: float, high: float, *, count: int, tallest_m: float = 0.5
) -> None:
    """Up to `count` items on a surface at height `high`, without overlaps, at most `tallest_m` tall."""
    taken: list[tuple[float, float, float]] = []
    if half_x <= 0 or half_z <= 0:
        return
    for _ in range(count):
        kind = int(rng.choice(8, p=[0.2, 0.12, 0.14, 0.14, 0.12, 0.08, 0.1, 0.1]))
        radius = RADII_M[kind]
        # Half sizes leave a margin for small items; large ones keep further from the edge.
        wide, deep = (half - min(half, max(0.0, 0.7 * radius - 0.05)) for half in (half_x, half_z))
        x, z = float(rng.uniform(-wide, wide)), float(rng.uniform(-deep, deep))
        if any(math.hypot(x - a, z - b) < radius + r for a, b, r in taken):
            continue
        if (radius > 0.12 and min(half_x, half_z) < 0.1) or (kind in {3, 4, 7} and tallest_m < 0.32):
            continue
        taken.append((x, z, radius))
        _item(to, rng, kind, (x, high, z))


def _item(to: Builder, rng: Rng, kind: int, spot: Triple) -> None:
    """Add one of eight items; see RADII_M."""
    x, y, z = spot
    color, glaze = pick(rng, BRIGHTS, 0.2), (0.06,)
    if kind == 0:  # a mug, a glass, a tin
        tall, wide = float(rng.uniform(0.08, 0.13)), float(rng.uniform(0.03, 0.043))
        to.tube((x, y, z), (x, y + tall, z), wide, color, Material.METAL, extra=glaze)
    elif kind == 1:
        _bowl(to, rng, spot, color)
    elif kind == 2:  # lying books or papers
        level = y
        for _ in range(int(rng.integers(1, 5))):
            half = (float(rng.uniform(0.08, 0.11)), float(rng.uniform(0.006, 0.02)), float(rng.uniform(0.06, 0.08)))
            to.box((x, level + half[1], z), half, pick(rng, BRIGHTS, 0.25), turn=_turned(float(rng.normal(0, 0.3))))
            level += 2 * half[1]
    elif kind == 3:  # a plant in a pot
        to.tube((x, y, z), (x, y + 0.13, z), 0.05, pick(rng, POTS, 0.15), Material.METAL, extra=glaze)
        leaves(to, rng, (x, y + 0.11, z), (x, y + 0.15, z), 0.17, 6)
    elif kind == 4:  # a bottle
        glass = pick(rng, ("24402c", "5a3a1e", "dfe6e2", "8a1f1f", "30506a"), 0.2)
        to.tube((x, y, z), (x, y + 0.19, z), 0.037, glass, Material.METAL, extra=(0.12,))
        to.tube((x, y + 0.19, z), (x, y + 0.29, z), 0.03, glass, Material.METAL, taper=(0.6, 0, 0), extra=(0.12,))
    elif kind == 5:  # a box
        half = (float(rng.uniform(0.04, 0.075)), float(rng.uniform(0.03, 0.09)), float(rng.uniform(0.03, 0.055)))
        to.box((x, y + half[1], z), half, color, turn=_turned(float(rng.uniform(-0.6, 0.6))))
    elif kind == 6:
        _laptop(to, rng, spot)
    else:  # a figure
        tall = float(rng.uniform(0.14, 0.26))
        to.tube((x, y, z), (x, y + tall * 0.72, z), 0.05, color, taper=(0.55, 0, 0))
        to.ball((x, y + tall * 0.84, z), (tall * 0.16,) * 3, vary(rng, color, 0.3))


def _bowl(to: Builder, rng: Rng, spot: Triple, color: Triple) -> None:
    """A bowl, sometimes with fruit."""
    x, y, z = spot
    to.tube((x, y + 0.06, z), (x, y, z), 0.085, color, Material.METAL, taper=(0.45, 0, 0), extra=(0.06,))
    if rng.random() < 0.6:
        for turn in (0.3, 2.4, 4.5):
            fruit = pick(rng, ("d8862a", "a8322a", "9aa832"), 0.2)
            to.ball((x + 0.035 * math.cos(turn), y + 0.07, z + 0.035 * math.sin(turn)), (0.034,) * 3, fruit)


def _laptop(to: Builder, rng: Rng, spot: Triple) -> None:
    x, y, z = spot
    turn = _turned(float(rng.normal(0, 0.3)))
    gray = pick(rng, ("9a9da0", "2a2c2e", "c9cbcc"), 0.1)
    to.box((x, y + 0.009, z), (0.16, 0.009, 0.11), gray, turn=turn)
    back = turn @ np.array([0.0, 0.115, -0.145])
    lid = (x + float(back[0]), y + float(back[1]), z + float(back[2]))
    extra = (float(rng.random()), float(rng.choice([0.0, 1.4])), 0.012)
    dark = (0.012, 0.012, 0.014)
    to.box(lid, (0.16, 0.105, 0.005), dark, Material.SCREEN, extra=extra, turn=turn @ _tilted(0.3))


def row_of_books(to: Builder, rng: Rng, half_x: float, half_z: float, room: float) -> None:
    """Standing books on a shelf board, in groups of equal height."""
    left = -half_x
    while left < half_x - 0.03:
        wide = min(float(rng.uniform(0.06, 0.22)), half_x - left)
        tall = min(room - 0.015, float(rng.uniform(0.17, 0.3)))
        deep = float(rng.uniform(0.07, 0.1))
        inset = half_z - deep - 0.01 - float(rng.uniform(0.0, min(0.05, max(half_z - deep - 0.012, 1e-3))))
        thick = float(rng.choice([0.022, 0.032, 0.07], p=[0.45, 0.4, 0.15]))
        spot = (left + wide / 2, tall / 2, min(inset, half_z - deep - 0.01))
        to.box(spot, (wide / 2 - 0.001, tall / 2, min(deep, half_z - 0.012)), (0.6, 0.57, 0.5), Material.BOOKS,
               extra=(float(rng.random()), thick), casts=False)  # fmt: skip
        left += wide


def heap_of_books(to: Builder, rng: Rng, half_x: float, half_z: float, room: float) -> None:
    """A stack of books."""
    level = 0.0
    while level < min(room - 0.06, float(rng.uniform(0.05, 0.2))):
        half_y = float(rng.uniform(0.008, 0.022))
        size = (half_x * float(rng.uniform(0.75, 1.0)), half_y, min(half_z, 0.1) * float(rng.uniform(0.8, 1.0)))
        to.box((0, level + half_y, 0), size, pick(rng, BRIGHTS, 0.3), casts=False)
        level += 2 * half_y


def cushion(to: Builder, rng: Rng, color: Triple) -> None:
    """A cushion leaning back."""
    half = float(rng.uniform(0.18, 0.23))
    style = (1.0, float(rng.choice([0, 1, 2])), 0.08)
    to.ball((0, half * 0.92, 0), (half, half, 0.085), color, Material.FABRIC,
            color2=vary(rng, color, 0.5), extra=style, turn=_tilted(-0.25))  # fmt: skip


def plant(to: Builder, rng: Rng, high: float) -> None:
    """A potted plant on the floor, at most 0.4 m in radius."""
    tall = float(rng.uniform(0.22, 0.32))
    to.tube((0, tall, 0), (0, 0, 0), 0.17, pick(rng, POTS, 0.2), Material.METAL, taper=(0.25, 0, 0), extra=(0.03,))
    to.tube((0, tall, 0), (0, tall + 0.004, 0), 0.15, (0.035, 0.025, 0.018), casts=False)
    stem = tall + (high - tall) * float(rng.choice([0.12, 0.7]))
    to.tube((0, tall, 0), (0, stem, 0), 0.016, (0.09, 0.07, 0.04))
    leaves(to, rng, (0, tall + 0.05, 0), (0, stem, 0), min(0.36, 0.5 * (high - tall)), int(rng.integers(11, 18)))


def leaves(to: Builder, rng: Rng, low: Triple, top: Triple, length: float, count: int) -> None:
    """Long leaves growing outwards from a stem between two points."""
    green, wide = pick(rng, LEAVES, 0.25), float(rng.uniform(0.16, 0.32))
    for number in range(count):
        fraction = (number + 0.5) / count
        root = [a + (0.35 + 0.65 * fraction) * (b - a) for a, b in zip(low, top, strict=True)]
        half = length * float(rng.uniform(0.38, 0.5)) * (1.1 - 0.35 * fraction)
        rise = -0.2 + 1.2 * fraction + float(rng.normal(0, 0.15))
        # A leaf extends along its local z axis from the stem.
        turn = _turned(number * 2.4 + float(rng.normal(0, 0.2))) @ _tilted(-rise)
        spot = turn @ np.array([0.0, 0.0, half * 0.97])
        center = (root[0] + float(spot[0]), root[1] + float(spot[1]), root[2] + float(spot[2]))
        shape = (half * wide, 0.006, half)
        to.ball(center, shape, vary(rng, green, 0.3), Material.METAL, extra=(0.04,), turn=turn, casts=number % 2 == 0)


def picture(to: Builder, rng: Rng, half_x: float, half_y: float) -> None:
    """A picture on a wall, centred at the origin with its back at z = 0."""
    frame = pick(rng, ("1d1b1a", "5a3a22", "b08a4a", "e8e6e0", "7a7a7a"), 0.15)
    extra = (float(rng.random()), float(rng.choice([0.0, 0.05, 0.08])), float(rng.choice([0.0, 0.018, 0.03])))
    to.box((0, 0, 0.013), (half_x, half_y, 0.012), (0.5, 0.5, 0.5), Material.PICTURE, color2=frame, extra=extra)


def carton(to: Builder, rng: Rng) -> None:
    """A stack of one to three boxes, at most 0.3 m in radius."""
    level, half = 0.0, float(rng.uniform(0.16, 0.21))
    for _ in range(int(rng.integers(1, 4))):
        half_y = float(rng.uniform(0.1, 0.18))
        size = (half * float(rng.uniform(0.8, 1)), half_y, half * float(rng.uniform(0.7, 0.95)))
        to.box((0, level + half_y, 0), size, pick(rng, CARDBOARD, 0.2), turn=_turned(float(rng.normal(0, 0.15))))
        level += 2 * half_y


def floor_lamp(to: Builder, rng: Rng, glow: float) -> float:
    """A floor lamp; glow 0 is off. Returns the height of its bulb in metres."""
    high, steel = float(rng.uniform(1.35, 1.7)), pick(rng, ("1c1c1e", "b8a070", "c9cbcc"), 0.1)
    to.tube((0, 0, 0), (0, 0.025, 0), 0.14, steel)
    to.tube((0, 0.025, 0), (0, high - 0.12, 0), 0.013, steel)
    shade(to, rng, high, 0.2, glow)
    return high


def shade(to: Builder, rng: Rng, high: float, radius: float, glow: float) -> None:
    """A lampshade around a bulb at this height."""
    cloth = pick(rng, ("efe4cc", "f4efe2", "e0c9a0", "d8d8d4"), 0.08)
    low, top = high - 0.62 * radius, high + 0.62 * radius
    extra = (2.2 * glow,)
    to.tube((0, low, 0), (0, top, 0), radius, cloth, Material.GLOW, taper=(0.3, 0, 0), extra=extra, casts=False)


def table_lamp(to: Builder, rng: Rng, y: float, glow: float) -> float:
    """A small lamp on a surface at height `y`. Returns the height of its bulb in metres."""
    foot = pick(rng, POTS, 0.2)
    to.ball((0, y + 0.09, 0), (0.065, 0.09, 0.065), foot, Material.METAL, extra=(0.08,))
    to.tube((0, y + 0.16, 0), (0, y + 0.24, 0), 0.012, foot, casts=False)
    shade(to, rng, y + 0.32, 0.14, glow)
    return y + 0.32
