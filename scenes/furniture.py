"""Tables, chairs, sofas, beds, shelves and cupboards, each of a few solids.

A model stands at the origin of its own axes: x right, y up, z forward, metres. Its front looks along local +z.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .builder import Builder, Rng, pick, vary
from .shapes import Material
from .trinkets import clutter, cushion, heap_of_books, row_of_books

if TYPE_CHECKING:
    from .shapes import Triple

WOODS = ("8a5a34", "a9794a", "c9a06c", "5b3a24", "6e4a30", "d8b98a", "3f2a1e", "b98a5c")
PAINTS = ("eeebe4", "f4f2ec", "d9d4c7", "b9c2bd", "51585e", "2f3b45", "7d8f86", "c9b79a")
CLOTHS = ("6f747c", "8d8577", "4a5666", "9c8b78", "7a3f3a", "3f5a4f", "b7ab97", "35383f", "a9662f", "55698a")
LINENS = ("e9e5dc", "d8dde3", "c9b8a4", "9fb0bf", "8c9a83", "b58a86", "4f6078", "d9cfa9")
LEATHERS = ("3a2a22", "5a3a2a", "1f1d1c", "7a4f33")


def aside(to: Builder, x_m: float, z_m: float, yaw_rad: float = 0.0, y_m: float = 0.0) -> Builder:
    """Return a builder of the same solids, placed and turned in the frame of `to`."""
    sin, cos = math.sin(to.yaw_rad), math.cos(to.yaw_rad)
    return Builder(
        to.solids, to.x_m + cos * x_m + sin * z_m, to.y_m + y_m, to.z_m - sin * x_m + cos * z_m, to.yaw_rad + yaw_rad
    )


def wooden(rng: Rng, *, painted: float = 0.35) -> tuple[Triple, Material, tuple[float, ...]]:
    """Draw colour, material and extra of joinery: paint with probability `painted`, else wood."""
    if rng.random() < painted:
        return pick(rng, PAINTS, 0.1), Material.PLAIN, ()
    return pick(rng, WOODS, 0.2), Material.WOOD, (0.0, 1.0, float(rng.random()), 0.05)


def table(to: Builder, rng: Rng, half_x: float, half_z: float, high: float, *, round_top: bool = False) -> None:
    """A table with one or four legs, and items on it."""
    color, material, extra = wooden(rng, painted=0.2)
    top = float(rng.uniform(0.025, 0.045))
    legs = vary(rng, color, 0.1) if rng.random() < 0.6 else pick(rng, ("26282b", "d8d8d6", "4a4d50"), 0.1)
    if round_top:
        radius = min(half_x, half_z)
        to.tube((0, high - top, 0), (0, high, 0), radius, color, material, extra=extra)
        to.tube((0, 0.03, 0), (0, high - top, 0), 0.045, legs)
        to.tube((0, 0, 0), (0, 0.03, 0), 0.6 * radius, legs, taper=(0.15, 0, 0))
        half_x = half_z = radius * 0.65
    else:
        to.box((0, high - top / 2, 0), (half_x, top / 2, half_z), color, material, extra=extra)
        thick = float(rng.uniform(0.018, 0.035))
        for side in (-1, 1):
            for end in (-1, 1):
                foot = (side * (half_x - thick - 0.03), (high - top) / 2, end * (half_z - thick - 0.03))
                to.box(foot, (thick, (high - top) / 2, thick), legs)
        if high > 0.6 and rng.random() < 0.6:
            for end in (-1, 1):
                apron = (0, high - top - 0.04, end * (half_z - thick - 0.03))
                to.box(apron, (half_x - 2 * thick - 0.03, 0.04, 0.01), legs, casts=False)
    clutter(to, rng, half_x - 0.06, half_z - 0.06, high, count=int(rng.integers(2, 7)))


def chair(to: Builder, rng: Rng, style: int, color: Triple, cloth: Triple) -> None:
    """A dining chair (0 slats, 1 padded, 2 shell), or a swivel chair (3). Footprint 0.44 x 0.46 m."""
    seat = 0.45
    if style == 3:
        to.tube((0, 0.1, 0), (0, seat - 0.05, 0), 0.03, (0.02, 0.02, 0.02))
        for spoke in range(5):
            angle = 2 * math.pi * spoke / 5
            x, z = 0.27 * math.sin(angle), 0.27 * math.cos(angle)
            to.tube((0, 0.11, 0), (x, 0.075, z), 0.022, (0.02, 0.02, 0.02), casts=False)
            to.ball((x, 0.035, z), (0.03, 0.035, 0.03), (0.015, 0.015, 0.015), casts=False)
        to.box((0, seat - 0.01, 0), (0.24, 0.045, 0.235), cloth, Material.FABRIC, taper=(0.1, 0.1, 0.1))
        to.tube((0, seat, -0.25), (0, seat + 0.22, -0.28), 0.025, (0.02, 0.02, 0.02), casts=False)
        to.box((0, seat + 0.4, -0.26), (0.22, 0.28, 0.035), cloth, Material.FABRIC, taper=(0.2, 0.2, 0.0))
        for side in (-1, 1):
            to.box((side * 0.275, seat + 0.2, -0.02), (0.03, 0.018, 0.13), (0.02, 0.02, 0.02))
            to.box((side * 0.275, seat + 0.09, -0.05), (0.012, 0.092, 0.02), (0.02, 0.02, 0.02), casts=False)
        return
    for side in (-1, 1):
        to.tube((side * 0.19, 0, 0.2), (side * 0.18, seat - 0.02, 0.19), 0.018, color)
        to.tube((side * 0.19, 0, -0.23), (side * 0.18, seat - 0.02, -0.19), 0.018, color)
    if style == 2:
        to.box((0, seat, 0), (0.22, 0.022, 0.215), cloth, taper=(0.06, 0.06, 0.06))
        to.box((0, seat + 0.2, -0.215), (0.21, 0.2, 0.018), cloth, taper=(0.3, 0.0, 0.0))
        return
    top = float(rng.uniform(0.85, 0.95))
    padded = style == 1
    material = Material.FABRIC if padded else Material.PLAIN
    to.box((0, seat, 0), (0.215, 0.03 if padded else 0.018, 0.215), cloth if padded else color, material)
    for side in (-1, 1):
        to.tube((side * 0.185, seat, -0.2), (side * 0.185, top, -0.25), 0.018, color)
    if padded:
        to.box((0, top - 0.13, -0.235), (0.165, 0.15, 0.022), cloth, Material.FABRIC)
    else:
        for rung in range(3):
            to.box((0, seat + 0.16 + rung * 0.13, -0.225 - rung * 0.012), (0.17, 0.028, 0.009), color)


def sofa(to: Builder, rng: Rng, half_x: float, half_z: float) -> None:
    """A sofa or an armchair with cushions, its back at local -z."""
    leather = rng.random() < 0.25
    cloth = pick(rng, LEATHERS if leather else CLOTHS, 0.2)
    material = Material.METAL if leather else Material.FABRIC
    weave: tuple[float, ...] = (0.05,) if leather else (1.0, float(rng.choice([0, 0, 0, 1])), 0.12)
    second = vary(rng, cloth, 0.5)
    arm, seat, back = 0.09, float(rng.uniform(0.38, 0.44)), float(rng.uniform(0.75, 0.92))
    deep = 0.11
    for side in (-1, 1):
        for end in (-1, 1):
            to.box((side * (half_x - 0.08), 0.035, end * (half_z - 0.08)), (0.025, 0.035, 0.025), (0.03, 0.02, 0.015))
    to.box((0, 0.155, 0), (half_x, 0.085, half_z), cloth, material, color2=second, extra=weave)
    # Its ends are inside the arms and slightly in front of their backs, so that no two faces are coplanar.
    to.box((0, (0.24 + back) / 2, -half_z + deep + 0.01), (half_x - arm, (back - 0.25) / 2, deep), cloth, material,
           color2=second, extra=weave, taper=(0, 0.4, 0.1))  # fmt: skip
    for side in (-1, 1):
        to.box((side * (half_x - arm), 0.24 + 0.18, 0), (arm, 0.18, half_z), cloth, material,
               color2=second, extra=weave, taper=(0.2, 0.05, 0))  # fmt: skip
    seats = max(1, round((half_x - 2 * arm) / 0.34))
    wide = (half_x - 2 * arm) / seats
    for number in range(seats):
        x = -half_x + 2 * arm + wide * (2 * number + 1)
        to.box((x, (0.24 + seat) / 2, deep + 0.01), (wide - 0.006, (seat - 0.24) / 2, half_z - deep - 0.005),
               vary(rng, cloth, 0.04), material, color2=second, extra=weave, taper=(0.02, 0.06, 0))  # fmt: skip
    for _ in range(int(rng.integers(0, 2 + seats))):
        x = float(rng.uniform(-1, 1)) * (half_x - 2 * arm - 0.2)
        cushion(aside(to, x, -half_z + 2 * deep + 0.11, float(rng.normal(0, 0.25)), seat), rng, pick(rng, LINENS, 0.3))


def bed(to: Builder, rng: Rng, half_x: float, half_z: float) -> None:
    """A bed, its head at local -z."""
    color, material, extra = wooden(rng)
    sheet, cover = pick(rng, LINENS[:3], 0.1), pick(rng, LINENS, 0.25)
    frame, top = float(rng.uniform(0.25, 0.34)), float(rng.uniform(0.44, 0.56))
    head = float(rng.uniform(0.75, 1.15))
    for side in (-1, 1):
        for end in (-1, 1):
            to.box((side * (half_x - 0.06), 0.05, end * (half_z - 0.08)), (0.03, 0.05, 0.03), color)
    to.box((0, (0.1 + frame) / 2, 0), (half_x, (frame - 0.1) / 2, half_z), color, material, extra=extra)
    if rng.random() < 0.4:
        cloth = pick(rng, CLOTHS, 0.2)
        to.box((0, head / 2, -half_z - 0.05), (half_x + 0.02, head / 2, 0.05), cloth, Material.FABRIC)
    else:
        to.box((0, head / 2, -half_z - 0.025), (half_x + 0.01, head / 2, 0.025), color, material, extra=extra)
    to.box((0, (frame + top) / 2, 0), (half_x - 0.03, (top - frame) / 2, half_z - 0.02), sheet, Material.FABRIC)
    style = (1.0, float(rng.choice([0, 0, 1, 2])), float(rng.uniform(0.08, 0.3)))
    fold = float(rng.uniform(0.45, 0.9))
    to.box((0, top - 0.04, fold / 2), (half_x + 0.02, 0.085, half_z - fold / 2 + 0.02), cover, Material.FABRIC,
           color2=vary(rng, cover, 0.5), extra=style, taper=(0.03, 0.03, 0))  # fmt: skip
    pillow = pick(rng, LINENS, 0.15)
    for side in (-1, 1) if half_x > 0.6 else (0,):
        for layer in range(int(rng.integers(1, 3))):
            spot = (side * half_x * 0.48, top + 0.06 + 0.1 * layer, -half_z + 0.28 + 0.02 * layer)
            to.ball(spot, (min(0.34, half_x * 0.44), 0.08, 0.22), vary(rng, pillow, 0.1), Material.FABRIC)
    if rng.random() < 0.5:
        throw = pick(rng, CLOTHS, 0.2)
        at = half_z - float(rng.uniform(0.3, 0.45))
        to.box((0, top - 0.03, at), (half_x + 0.03, 0.082, 0.22), throw, Material.FABRIC, color2=sheet, extra=style)


def shelf(to: Builder, rng: Rng, half_x: float, half_z: float, high: float) -> None:
    """An open bookcase with books and items, its back at local -z."""
    color, material, extra = wooden(rng)
    thick = 0.012
    for side in (-1, 1):
        to.box((side * (half_x - thick), high / 2, 0), (thick, high / 2, half_z), color, material, extra=extra)
    back = vary(rng, color, 0.15)
    to.box((0, high / 2, -half_z + 0.006), (half_x - 2 * thick, high / 2 - 0.005, 0.004), back)
    boards = max(2, round(high / float(rng.uniform(0.3, 0.4))))
    rise = (high - 2 * thick) / boards
    inner = half_x - 2 * thick
    for board in range(boards + 1):
        level = thick + board * rise
        to.box((0, level, 0.003), (inner, thick, half_z - 0.006), color, material, extra=extra)
    for board in range(boards):
        level = thick * 2 + board * rise
        base, left, room = aside(to, 0, 0, y_m=level), -inner, rise - 2 * thick
        while left < inner - 0.12:
            wide = min(float(rng.uniform(0.12, 0.5)), inner - left)
            draw, spot = rng.random(), aside(base, left + wide / 2, 0.0)
            if draw < 0.62:
                row_of_books(spot, rng, wide / 2 - 0.004, half_z, room)
            elif draw < 0.74:
                heap_of_books(spot, rng, min(0.13, wide / 2 - 0.01), half_z - 0.03, room)
            elif draw < 0.86:
                clutter(spot, rng, max(wide / 2 - 0.07, 0.005), 0.01, 0.0, count=1, tallest_m=room - 0.02)
            elif draw < 0.94 and wide > 0.2:
                box = pick(rng, (*PAINTS, *CLOTHS), 0.2)
                half_y = min(room / 2 - 0.02, 0.12)
                spot.box((0, half_y, 0.0), (wide / 2 - 0.02, half_y, half_z - 0.025), box, Material.FABRIC)
            left += wide
    clutter(to, rng, half_x - 0.12, half_z - 0.1, high, count=int(rng.integers(0, 4)), tallest_m=0.3)


def cupboard(
    to: Builder,
    rng: Rng,
    half_x: float,
    half_z: float,
    high: float,
    grid: tuple[int, int] | None = None,
    *,
    bare: bool = False,
) -> None:
    """A cupboard, chest of drawers or wardrobe with doors on its front; items on top unless `bare`."""
    painted = rng.random() < 0.5
    color = pick(rng, PAINTS if painted else WOODS, 0.15)
    if grid is None:
        tall = high > 1.4
        grid = (max(1, round(half_x / 0.25)), 1) if tall else (max(1, round(half_x / 0.35)), int(rng.integers(1, 5)))
    fronts = (float(grid[0]), float(grid[1]), float(rng.integers(3)), float(rng.random() < 0.35), float(rng.random()))
    plinth = 0.06
    to.box((0, plinth / 2, -0.015), (half_x - 0.01, plinth / 2, half_z - 0.02), (0.03, 0.028, 0.025))
    to.box((0, (plinth + high) / 2, 0), (half_x, (high - plinth) / 2, half_z), color, Material.FRONTS,
           color2=pick(rng, ("b9bbbd", "2a2a2a", "8a6a3a"), 0.1), extra=(*fronts, 0.04))  # fmt: skip
    if bare:
        return
    if high < 1.4:
        clutter(to, rng, half_x - 0.12, half_z - 0.12, high, count=int(rng.integers(1, 6)))
    elif rng.random() < 0.3:
        box = pick(rng, ("b08d5f", "d9d4c7", "7a8088"), 0.2)
        to.box((0.2 * half_x, high + 0.12, 0), (0.22, 0.12, half_z * 0.7), box)
