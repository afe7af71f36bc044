"""Cars, vans, lorries and buses, each of a few solids.

A model stands at the origin of its own axes: x right, y up, z forward, metres.
"""

from __future__ import annotations

from .builder import CHASSIS, Builder, Rng, pick
from .shapes import Material

CAR_PAINTS = (
    "e8e8e6",
    "c9ccd0",
    "8d9196",
    "3b3e44",
    "16181b",
    "7d1517",
    "1d3f77",
    "27506b",
    "b9a98a",
    "40573f",
    "c8551b",
)


def car(to: Builder, rng: Rng, *, detail: bool) -> float:
    """A hatchback, saloon, estate or off-roader at the builder's position. Returns its length in metres."""
    body, front, back, tall = [
        (4.1, 0.55, 0.22, 0.0),
        (4.6, 0.55, 0.5, 0.0),
        (4.6, 0.5, 0.15, 0.03),
        (4.5, 0.45, 0.18, 0.22),
    ][int(rng.choice(4, p=[0.35, 0.25, 0.2, 0.2]))]
    length = body * rng.uniform(0.94, 1.06)
    width, wheel = rng.uniform(1.68, 1.84), rng.uniform(0.30, 0.33) + tall * 0.25
    paint = pick(rng, CAR_PAINTS)
    waist, top, clear = 0.88 + tall * 0.7, 1.44 + tall * 1.1, 0.2 + tall * 0.4
    half_z = length / 2
    axle = half_z - 0.2 * length
    to.box(
        (0, (clear + waist) / 2, 0),
        (width / 2, (waist - clear) / 2, half_z),
        paint,
        Material.PAINT,
        taper=(0.07, 0.1, 0.06),
        extra=(axle, wheel, wheel - clear, float(rng.random())),
    )
    # The cabin of a hatchback or estate reaches the rear; that of a saloon ends at the boot.
    rear = -half_z + (0.14 * length if back == 0.5 else 0.06)
    nose = half_z - 0.27 * length
    to.box(
        (0, (waist + top) / 2 - 0.01, (rear + nose) / 2),
        (width / 2 - 0.05, (top - waist) / 2 + 0.01, (nose - rear) / 2),
        paint,
        Material.CABIN,
        taper=(0.24, front, back),
        extra=(0.0, float(rng.random())),
    )
    for side in (-1, 1):
        for end in (-axle, axle):
            outer = side * (width / 2 + 0.01)
            to.tube(
                (outer - side * 0.22, wheel, end), (outer, wheel, end), wheel, CHASSIS, Material.WHEEL, casts=detail
            )
        if detail:
            to.box((side * (width / 2 + 0.08), waist + 0.06, nose - 0.55), (0.09, 0.06, 0.05), paint, casts=False)
    return float(length)


def van(to: Builder, rng: Rng) -> float:
    """A delivery van. Returns its length in metres."""
    length, width, top = rng.uniform(4.8, 5.9), 1.95, rng.uniform(2.0, 2.6)
    paint = pick(rng, ("f0f0ee", "e4e4e0", "c9ccd0", "d9b23a", "2c4b7c", "8d9196"))
    half_z, wheel = length / 2, 0.34
    axle = half_z - 0.95
    extra = (axle, wheel, wheel - 0.28, float(rng.random()))
    to.box((0, 0.72, 0), (width / 2, 0.44, half_z), paint, Material.PAINT, taper=(0.02, 0.06, 0.0), extra=extra)
    to.box(
        (0, (1.15 + top) / 2, -0.15),
        (width / 2 - 0.02, (top - 1.15) / 2, half_z - 0.2),
        paint,
        Material.CABIN,
        taper=(0.12, 0.36, 0.02),
        extra=(1.0, float(rng.random())),
    )
    _wheels(to, width, axle, wheel)
    return float(length)


def _wheels(to: Builder, width: float, axle: float, wheel: float) -> None:
    for side in (-1, 1):
        for end in (-axle, axle):
            outer = side * (width / 2 + 0.01)
            to.tube((outer - side * 0.25, wheel, end), (outer, wheel, end), wheel, CHASSIS, Material.WHEEL, casts=False)


def lorry(to: Builder, rng: Rng) -> float:
    """A lorry with a box body, or a bus. Returns its length in metres."""
    length, width, wheel = rng.uniform(8.0, 11.0), 2.45, 0.48
    half_z, axle = length / 2, length / 2 - 1.6
    if rng.random() < 0.45:
        paint = pick(rng, ("b3261e", "e6c229", "2f6f4f", "2a5d9f", "e4e4e0"))
        extra = (axle, wheel, wheel - 0.35, float(rng.random()))
        to.box((0, 0.8, 0), (width / 2, 0.45, half_z), paint, Material.PAINT, extra=extra)
        to.box((0, 2.1, 0), (width / 2, 0.87, half_z), paint, Material.CABIN, taper=(0.03, 0.04, 0), extra=(2.0, 0.5))
    else:
        paint = pick(rng, ("e8e8e6", "2a5d9f", "b3261e", "3c6e47", "c9ccd0"))
        cargo = pick(rng, ("e4e4e0", "d8d3c8", "c9ccd0", "4b6b8a", "c8551b"))
        to.box((0, 0.85, 0), (width / 2 - 0.2, 0.25, half_z - 0.2), CHASSIS)
        to.box((0, 1.05, half_z - 1.0), (width / 2, 0.6, 1.0), paint, Material.PAINT, taper=(0, 0.05, 0))
        to.box(
            (0, 2.2, half_z - 1.0),
            (width / 2, 0.6, 1.0),
            paint,
            Material.CABIN,
            taper=(0.06, 0.25, 0),
            extra=(1.0, 0.5),
        )
        to.box((0, 2.15, -1.1), (width / 2 + 0.04, 1.3, half_z - 1.15), cargo, extra=(0.25,))
    _wheels(to, width, axle, wheel)
    return float(length)
