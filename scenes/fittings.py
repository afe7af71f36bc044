"""Desks, screens, kitchen units, rugs and boards.

A model stands at the origin of its own axes: x right, y up, z forward, metres. Its front looks along local +z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import trinkets
from .builder import Builder, Rng, pick, vary
from .furniture import aside, wooden
from .shapes import Material

if TYPE_CHECKING:
    from .shapes import Triple

DARK = (0.012, 0.012, 0.013)
STEEL = (0.5, 0.5, 0.5)


def desk(to: Builder, rng: Rng, half_x: float, half_z: float) -> None:
    """A desk, with random drawers, monitor and small items."""
    color, material, extra = wooden(rng)
    legs = vary(rng, color, 0.2) if rng.random() < 0.5 else pick(rng, ("26282b", "c9cbcc"), 0.1)
    to.box((0, 0.72, 0), (half_x, 0.015, half_z), color, material, extra=extra)
    for side in (-1, 1):
        to.box((side * (half_x - 0.03), 0.3525, 0), (0.018, 0.3525, half_z - 0.03), legs)
    if rng.random() < 0.6:
        x = float(rng.choice([-1, 1])) * (half_x - 0.27)
        to.box((x, 0.38, 0), (0.19, 0.3, half_z - 0.05), vary(rng, legs, 0.2), Material.FRONTS,
               color2=STEEL, extra=(1.0, 3.0, 0.0, 0.0, 0.2, 0.04))  # fmt: skip
        for end in (-1, 1):
            to.box((x, 0.04, end * (half_z - 0.12)), (0.15, 0.04, 0.03), DARK, casts=False)
    if rng.random() < 0.75:
        monitor(aside(to, float(rng.uniform(-0.2, 0.2)) * half_x, -half_z + 0.14, y_m=0.735), rng)
    front = aside(to, 0.0, 0.16)
    trinkets.clutter(front, rng, half_x - 0.15, half_z - 0.24, 0.735, count=int(rng.integers(4, 10)), tallest_m=0.3)


def monitor(to: Builder, rng: Rng) -> None:
    """A computer screen on its foot."""
    wide = float(rng.uniform(0.24, 0.33))
    to.box((0, 0.008, 0), (0.11, 0.008, 0.08), DARK)
    to.tube((0, 0.016, -0.02), (0, 0.22, -0.02), 0.018, DARK, casts=False)
    extra = (float(rng.random()), float(rng.choice([0.0, 1.6])), 0.012)
    to.box((0, 0.14 + wide * 0.57, 0.012), (wide, wide * 0.57, 0.012), DARK, Material.SCREEN, extra=extra)


def television(to: Builder, rng: Rng, high: float) -> None:
    """A television on a surface at height `high`."""
    wide = float(rng.uniform(0.4, 0.6))
    to.box((0, high + 0.012, 0), (0.2, 0.012, 0.1), DARK)
    to.box((0, high + 0.047, 0), (0.03, 0.025, 0.02), DARK, casts=False)
    extra = (float(rng.random()), float(rng.choice([0.0, 1.8], p=[0.7, 0.3])), 0.014)
    to.box((0, high + 0.07 + 0.57 * wide, 0), (wide, 0.57 * wide, 0.022), DARK, Material.SCREEN, extra=extra)


def rug(to: Builder, rng: Rng, half_x: float, half_z: float) -> None:
    """A rug, 12 mm thick."""
    cloth = pick(rng, ("8a3a32", "3f5268", "c9bda5", "6f7a5f", "8f8a80", "a5753f", "d8cfbd"), 0.2)
    second = pick(rng, ("e4d9c4", "2f2a2a", "b08a4a", "7a3a34"), 0.2)
    extra = (float(rng.random()), float(rng.choice([0.0, 0.08])), float(rng.choice([0.0, 0.2, 0.3])))
    to.box((0, 0.006, 0), (half_x, 0.006, half_z), cloth, Material.CARPET, color2=second, extra=extra, casts=False)


def whiteboard(to: Builder, half_x: float) -> None:
    """A whiteboard on a wall, centred at the origin with its back at z = 0."""
    to.box((0, 0, 0.012), (half_x, 0.42, 0.012), (0.8, 0.8, 0.8), Material.PICTURE,
           color2=(0.4, 0.4, 0.4), extra=(0.12, 0.4, 0.02))  # fmt: skip


def wall_board(to: Builder, rng: Rng, half_x: float) -> None:
    """One or two shelf boards on a wall with items; the lower at the origin, their backs at z = 0."""
    color, material, extra = wooden(rng)
    for level in (0.0, 0.34)[: int(rng.integers(1, 3))]:
        to.box((0, level, 0.1), (half_x, 0.012, 0.1), color, material, extra=extra)
        base = aside(to, 0.0, 0.1, y_m=level + 0.012)
        trinkets.row_of_books(aside(base, -half_x * 0.45, 0.0), rng, half_x * 0.5, 0.1, 0.28)
        trinkets.clutter(aside(base, half_x * 0.55, 0.0), rng, half_x * 0.3, 0.02, 0.0, count=2, tallest_m=0.3)


def refrigerator(to: Builder, rng: Rng) -> None:
    """A refrigerator, 0.6 m wide and 0.62 m deep."""
    high, steel = float(rng.uniform(1.5, 1.9)), pick(rng, ("e9eaec", "b5b8bb", "f0eee6", "35383c"), 0.08)
    to.box((0, 0.02, 0), (0.27, 0.02, 0.28), DARK, casts=False)
    to.box((0, high / 2 + 0.02, 0), (0.3, high / 2 - 0.02, 0.31), steel, Material.FRONTS,
           color2=(0.4, 0.4, 0.4), extra=(1.0, 2.0, 0.0, 0.0, 0.3, 0.1))  # fmt: skip
    trinkets.clutter(to, rng, 0.15, 0.15, high, count=int(rng.integers(0, 3)), tallest_m=0.3)


def kitchen_units(to: Builder, rng: Rng, half: float, color: Triple, top: Triple, *, upper: bool) -> None:
    """A row of units 0.62 m deep with worktop, sink and hob; with `upper` also wall cupboards and tiles."""
    units = max(2, round(half / 0.3))
    style = (float(rng.integers(3)), float(rng.random() < 0.4), float(rng.random()), 0.05)
    to.box((0, 0.05, -0.02), (half - 0.01, 0.05, 0.27), (0.03, 0.03, 0.03))
    to.box((0, 0.485, 0), (half, 0.385, 0.29), color, Material.FRONTS, color2=STEEL,
           extra=(float(units), float(rng.integers(1, 3)), *style))  # fmt: skip
    wood = top[0] > 0.2
    to.box((0, 0.89, 0.0), (half + 0.01, 0.02, 0.31), top, Material.WOOD if wood else Material.METAL,
           extra=(0.0, 1.0, style[2], 0.08) if wood else (0.1,))  # fmt: skip
    if upper:
        tile = pick(rng, ("f0eee9", "9fb5b0", "c9b79a", "3f5a64"), 0.1)
        splash = (0.1, 0.1, style[2], 0.1, float(rng.choice([0, 0.4])), 0.0)
        to.box((0, 1.16, -0.325), (half, 0.25, 0.01), tile, Material.TILES,
               color2=vary(rng, tile, 0.5), extra=splash)  # fmt: skip
        to.box((0, 1.75, -0.17), (half, 0.34, 0.165), vary(rng, color, 0.08), Material.FRONTS, color2=STEEL,
               extra=(float(units), 1.0, *style))  # fmt: skip
    hob = half * float(rng.choice([-0.5, 0.5]))
    to.box((hob, 0.9125, 0.0), (0.28, 0.0025, 0.24), DARK, Material.METAL, extra=(0.14,))
    if rng.random() < 0.6:
        pot = pick(rng, ("9a9da0", "a8322a", "2a2c2e"), 0.15)
        to.tube((hob - 0.12, 0.915, 0.08), (hob - 0.12, 1.05, 0.08), 0.1, pot, Material.METAL, extra=(0.15,))
    to.box((-hob, 0.912, 0.02), (0.27, 0.002, 0.2), (0.25, 0.25, 0.25), Material.METAL, extra=(0.2,))
    to.tube((-hob, 0.914, -0.22), (-hob, 1.16, -0.22), 0.014, STEEL, Material.METAL, extra=(0.25,))
    to.tube((-hob, 1.155, -0.23), (-hob, 1.13, -0.03), 0.012, STEEL, Material.METAL, extra=(0.25,))
    trinkets.clutter(aside(to, 0, 0.05), rng, 0.14 * half, 0.15, 0.91, count=int(rng.integers(2, 6)), tallest_m=0.4)
    for side in (-1, 1):
        spot = aside(to, side * half * 0.88, -0.05)
        trinkets.clutter(spot, rng, half * 0.07, 0.18, 0.91, count=3, tallest_m=0.4)
