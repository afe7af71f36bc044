"""Houses, trees, people and street furniture, each of a few solids.

A model stands at the origin of its own axes: x right, y up, z forward, metres.
"""

from __future__ import annotations

import math

import numpy as np

from .builder import CHASSIS, STEEL, Builder, Rng, pick, rgb, vary
from .shapes import Material, Triple

WALLS = ("d9cdb4", "cbb897", "b98b6b", "a3573f", "8c4a38", "d8d3c8", "c4c2bd", "c9a46a", "b4b9a8", "a9b7c2", "d6b7a5")
ROOFS = ("7a3b2c", "5d3a30", "4a4b50", "3b3330", "8b5a3c")
CLOTHES = ("20242c", "39465e", "6d2a2a", "8c8a86", "c7b9a0", "2d4a3a", "b03a2e", "d8d4cc", "4b3b52", "c9a227")
SKINS = ("e0b090", "c68e6a", "8d5a3c", "5c3a26")
LEAVES = ("4a6b2a", "5d7a33", "3d5f2c", "6b7f3a", "587036", "7d8440")
CONIFERS = ("2c4a2e", "34523a", "284032")


def building(to: Builder, rng: Rng, half_x: float, half_z: float, height: float, *, gable: bool) -> None:
    """A house whose front looks along local +x or -x: walls with windows, plinth, pitched or flat roof."""
    wall, trim = pick(rng, WALLS, 0.2), pick(rng, ("e6e2d8", "d4cfc4", "8a8378", "f0eee8"), 0.1)
    storey = float(rng.uniform(2.7, 3.4))
    shop = float(not gable and rng.random() < 0.5)
    extra = (
        storey,
        float(rng.uniform(1.9, 3.4)),
        float(rng.uniform(0.35, 0.6)),
        float(rng.random()),
        shop,
        float(rng.random()),
    )
    to.box((0, height / 2, 0), (half_x, height / 2, half_z), wall, Material.FACADE, color2=trim, extra=extra)
    roof = pick(rng, ROOFS, 0.2)
    if gable:
        _gable_roof(to, rng, (half_x, half_z), height, roof, wall)
        return
    to.box((0, height + 0.2, 0), (half_x + 0.25, 0.22, half_z + 0.05), trim, extra=(0.1,))
    if rng.random() < 0.5:
        rise = float(rng.uniform(1.6, 2.6))
        half = (half_x - 0.1, rise / 2, half_z - 0.05)
        to.box((0, height + 0.4 + rise / 2, 0), half, roof, Material.ROOF,
               taper=(0.22, 0.0, 0.0), color2=roof, extra=(1.0,))  # fmt: skip


def _gable_roof(to: Builder, rng: Rng, half_xz: tuple[float, float], height: float, roof: Triple, wall: Triple) -> None:
    """A pitched roof with a chimney."""
    half_x, half_z = half_xz
    rise = min(half_x, half_z) * rng.uniform(0.7, 1.1)
    along_z = half_z > half_x or rng.random() < 0.4
    turn = None if along_z else np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    across, along = (half_x, half_z) if along_z else (half_z, half_x)
    hip = float(rng.choice([0.0, 0.6]))
    half = (across + 0.45, rise / 2, along + 0.35)
    to.box((0, height + rise / 2, 0), half, roof, Material.ROOF,
           taper=(1, hip, hip), turn=turn, color2=wall, extra=(hip,))  # fmt: skip
    spot = (float(rng.uniform(-0.3, 0.3)) * half_x, height + rise * 0.85, float(rng.uniform(-0.6, 0.6)) * half_z)
    to.box(spot, (0.35, rise * 0.35, 0.45), vary(rng, rgb("7c4a3a"), 0.2), casts=False)


def tree(to: Builder, rng: Rng, height: float, *, lobes: int) -> None:
    """A broad-leaved tree: a trunk, sometimes two boughs, and a crown of ellipsoids with leaf texture."""
    bark, leaf = vary(rng, rgb("5a4636"), 0.25), pick(rng, LEAVES, 0.25)
    trunk = height * rng.uniform(0.26, 0.36)
    radius = height * rng.uniform(0.23, 0.35)
    to.tube((0, -0.1, 0), (0, trunk + radius * 0.5, 0), 0.024 * height + 0.05, bark, Material.BARK, taper=(0.35, 0, 0))
    middle = trunk + (height - trunk) * 0.5
    tall = (height - trunk) * 0.5
    to.ball(
        (0, middle, 0), (radius * 0.8, tall * 0.85, radius * 0.8), leaf, Material.LEAF, extra=(float(rng.random()),)
    )
    for lobe in range(lobes):
        angle = 2 * math.pi * (lobe * 0.382 + rng.uniform(-0.06, 0.06))
        rise = (lobe + 0.5) / lobes * 2 - 1
        reach = radius * math.sqrt(1 - 0.75 * rise * rise) * rng.uniform(0.5, 0.7)
        size = radius * rng.uniform(0.42, 0.66) * (1 - 0.25 * abs(rise))
        spot = (reach * math.cos(angle), middle + rise * tall * 0.72, reach * math.sin(angle))
        shade = vary(rng, leaf, 0.14)
        to.ball(spot, (size, size * rng.uniform(0.7, 0.95), size), shade, Material.LEAF, extra=(float(rng.random()),))


def conifer(to: Builder, rng: Rng, height: float) -> None:
    """A fir: a trunk and stacked cones."""
    leaf = pick(rng, CONIFERS, 0.25)
    to.tube((0, -0.1, 0), (0, height * 0.3, 0), 0.02 * height + 0.04, vary(rng, rgb("4a382c"), 0.2), Material.BARK)
    base, radius = height * 0.12, height * rng.uniform(0.17, 0.23)
    for step in range(4):
        low = base + (height - base) * step * 0.21
        high = min(height, low + (height - base) * 0.42)
        extra = (float(rng.random()),)
        wide = radius * (1 - 0.21 * step)
        to.tube((0, low, 0), (0, high, 0), wide, vary(rng, leaf, 0.1), Material.LEAF, taper=(0.96, 0, 0), extra=extra)


def bush(to: Builder, rng: Rng, size: float) -> None:
    """A shrub of two or three lobes."""
    leaf = pick(rng, LEAVES, 0.25)
    for _ in range(int(rng.integers(2, 4))):
        wide = size * rng.uniform(0.5, 0.8)
        spot = (size * rng.uniform(-0.5, 0.5), wide * 0.55, size * rng.uniform(-0.5, 0.5))
        to.ball(spot, (wide, wide * 0.8, wide), vary(rng, leaf, 0.1), Material.LEAF, extra=(float(rng.random()),))


def person(to: Builder, rng: Rng, *, detail: bool) -> None:
    """A person walking along local z."""
    tall = rng.uniform(1.55, 1.9)
    coat, trousers = pick(rng, CLOTHES), pick(rng, CLOTHES[:5])
    skin = pick(rng, SKINS, 0.1)
    hair = pick(rng, ("1c1512", "3b2a1e", "6b4a2b", "9a8f85"))
    stride, swing = rng.uniform(0.05, 0.34) * tall / 1.7, rng.uniform(0.1, 0.25)
    hip, shoulder = 0.5 * tall, 0.82 * tall
    for side in (-1, 1):
        to.tube(
            (side * 0.09, hip, 0), (side * 0.08, 0.03, side * stride), 0.085, trousers, taper=(0.3, 0, 0), casts=detail
        )
        to.tube(
            (side * 0.21, shoulder - 0.05, 0),
            (side * 0.26, hip + 0.02, -side * swing),
            0.055,
            coat,
            taper=(0.3, 0, 0),
            casts=False,
        )
        if detail:
            to.ball((side * 0.08, 0.05, side * stride + 0.06), (0.055, 0.05, 0.13), CHASSIS, casts=False)
    to.ball((0, (hip + shoulder) / 2, 0), (0.23, (shoulder - hip) * 0.62, 0.15), coat)
    to.ball((0, tall - 0.115, 0.01), (0.085, 0.12, 0.1), skin, casts=detail)
    to.ball((0, tall - 0.075, -0.025), (0.092, 0.095, 0.095), hair, casts=False)


def lamp(to: Builder, rng: Rng, height: float, reach: float) -> None:
    """A lamp post whose arm reaches along local +x."""
    steel = vary(rng, STEEL, 0.4)
    to.tube((0, 0, 0), (0, height, 0), 0.09, steel, taper=(0.4, 0, 0))
    to.tube((0, 0, 0), (0, 0.9, 0), 0.13, steel, casts=False)
    to.tube((0, height - 0.05, 0), (reach, height + 0.25, 0), 0.045, steel)
    to.box((reach + 0.25, height + 0.22, 0), (0.35, 0.07, 0.14), steel, casts=False)


def sign(to: Builder, rng: Rng) -> None:
    """A traffic sign that faces local -z: a red ring, a blue disc, a triangle or a direction board."""
    steel, high = vary(rng, STEEL, 0.3), float(rng.uniform(2.1, 2.6))
    to.tube((0, 0, 0), (0, high + 0.3, 0), 0.035, steel)
    shape = int(rng.integers(4))
    if shape < 2:
        to.tube(
            (0, high, -0.045),
            (0, high, -0.07),
            0.32,
            rgb("c8102e"),
            Material.SIGN,
            extra=(float(shape), float(rng.random())),
        )
    elif shape == 2:
        half = (0.4, 0.34, 0.012)
        to.box((0, high, -0.055), half, rgb("c8102e"), Material.SIGN, taper=(1, 0, 0), extra=(2.0, float(rng.random())))
    else:
        half = (0.5, 0.28, 0.015)
        to.box((0, high, -0.055), half, rgb("1d4f91"), Material.SIGN, extra=(3.0, float(rng.random())))


def traffic_light(to: Builder, rng: Rng) -> None:
    """A signal on a post, facing local -z, one of its three lamps lit."""
    to.tube((0, 0, 0), (0, 3.3, 0), 0.06, (0.05, 0.055, 0.05))
    to.box((0, 2.85, -0.16), (0.17, 0.46, 0.12), (0.015, 0.016, 0.015))
    lit = int(rng.choice([0, 2]))
    for lamp_no, color in enumerate(((1.0, 0.05, 0.03), (1.0, 0.45, 0.03), (0.05, 0.9, 0.35))):
        at = (0.0, 3.13 - 0.28 * lamp_no, -0.27)
        strength = 2.2 if lamp_no == lit else 0.05
        to.ball(at, (0.1, 0.1, 0.05), color, Material.GLOW, extra=(strength,), casts=False)


def fence(to: Builder, rng: Rng, length: float) -> None:
    """A hedge, a garden wall or a guard rail `length` metres long, along local z."""
    style, half = int(rng.integers(3)), length / 2
    if style == 0:
        leaf = pick(rng, LEAVES, 0.2)
        high = float(rng.uniform(0.4, 0.75))
        to.box(
            (0, high, 0), (0.4, high, half), leaf, Material.LEAF, taper=(0.15, 0, 0), extra=(float(rng.random()), 1.0)
        )
    elif style == 1:
        high = float(rng.uniform(0.35, 0.6))
        wall = pick(rng, WALLS, 0.2)
        to.box((0, high, 0), (0.12, high, half), wall, extra=(0.3, 1.0))
        to.box((0, 2 * high + 0.04, 0), (0.16, 0.04, half), vary(rng, rgb("b9b4a8"), 0.1), casts=False)
    else:
        to.box((0, 0.62, 0), (0.04, 0.15, half), STEEL, casts=True, extra=(0.1,))
        for step in range(int(length / 2.5) + 1):
            to.box((0.05, 0.3, -half + step * 2.5), (0.04, 0.32, 0.06), STEEL, casts=False)


def bollard(to: Builder, rng: Rng) -> None:
    """A bollard or a litter bin."""
    if rng.random() < 0.6:
        to.tube((0, 0, 0), (0, 0.95, 0), 0.08, (0.03, 0.03, 0.035), taper=(0.1, 0, 0))
        to.tube((0, 0.7, 0), (0, 0.82, 0), 0.085, (0.75, 0.75, 0.72), casts=False)
    else:
        green = vary(rng, rgb("3f5a44"), 0.3)
        to.box((0, 0.5, 0), (0.28, 0.5, 0.28), green, extra=(0.15,))
        to.box((0, 1.03, 0), (0.33, 0.05, 0.33), (0.03, 0.03, 0.03), casts=False)
