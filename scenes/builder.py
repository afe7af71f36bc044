"""Colours, and the builder that places solids; all models use both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .shapes import Kind, Material, Solid, Triple

if TYPE_CHECKING:
    from .camera import F64

Rng = np.random.Generator


def rgb(hexadecimal: str) -> Triple:
    """Return the linear albedo of an sRGB colour such as "c04030"."""
    red, green, blue = (int(hexadecimal[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red**2.2, green**2.2, blue**2.2


def vary(rng: Rng, color: Triple, amount: float) -> Triple:
    """Return the colour with random brightness and tint."""
    gain = 1 + rng.uniform(-amount, amount)
    red, green, blue = (min(0.78, c * gain * (1 + rng.uniform(-amount, amount) / 4)) for c in color)
    return red, green, blue


def pick(rng: Rng, colors: tuple[str, ...], amount: float = 0.15) -> Triple:
    """Return a random one of the sRGB colours, varied."""
    return vary(rng, rgb(colors[int(rng.integers(len(colors)))]), amount)


CHASSIS = (0.012, 0.012, 0.013)
STEEL = (0.28, 0.29, 0.30)


def _cross(a: F64, b: F64) -> F64:
    # np.cross is ten times slower on single vectors; a scene has hundreds.
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


@dataclass
class Builder:
    """Collects solids and places them in the frame set by `at`."""

    solids: list[Solid] = field(default_factory=list)
    x_m: float = 0.0
    y_m: float = 0.0
    z_m: float = 0.0
    yaw_rad: float = 0.0

    def at(self, x_m: float, z_m: float, yaw_rad: float = 0.0, y_m: float = 0.0) -> Builder:
        """Place the next model here, with its z axis turned by `yaw_rad` to the right."""
        self.x_m, self.y_m, self.z_m, self.yaw_rad = x_m, y_m, z_m, yaw_rad
        return self

    def add(
        self,
        kind: Kind,
        center: Triple,
        half: Triple,
        material: Material,
        color: Triple,
        *,
        color2: Triple = (0.0, 0.0, 0.0),
        taper: Triple = (0.0, 0.0, 0.0),
        extra: tuple[float, ...] = (),
        turn: F64 | None = None,
        casts: bool = True,
    ) -> None:
        """Add one solid at `centre` (model metres) with half sizes `half`, turned by `turn` in the model."""
        sin, cos = math.sin(self.yaw_rad), math.cos(self.yaw_rad)
        yaw = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
        spot = np.array([self.x_m, self.y_m, self.z_m]) + yaw @ np.array(center)
        whole = yaw if turn is None else yaw @ turn
        row = Solid(kind, spot, np.array(half), whole, material, color, color2, taper, extra, casts)
        self.solids.append(row)

    def box(
        self, center: Triple, half: Triple, color: Triple, material: Material = Material.PLAIN, **more: object
    ) -> None:
        """Add a (tapered) box."""
        self.add(Kind.BOX, center, half, material, color, **more)  # type: ignore[arg-type]

    def ball(
        self, center: Triple, half: Triple, color: Triple, material: Material = Material.PLAIN, **more: object
    ) -> None:
        """Add an ellipsoid."""
        self.add(Kind.ELLIPSOID, center, half, material, color, **more)  # type: ignore[arg-type]

    def tube(
        self,
        start: Triple,
        stop: Triple,
        radius: float,
        color: Triple,
        material: Material = Material.PLAIN,
        **more: object,
    ) -> None:
        """Add a cylinder between two points; `taper` narrows it towards `stop`."""
        low, high = np.array(start), np.array(stop)
        length = float(np.linalg.norm(high - low))
        up = (high - low) / length
        side = np.array([0.0, 0.0, 1.0]) if abs(up[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
        first = _cross(up, side)
        first /= math.sqrt(first[0] ** 2 + first[1] ** 2 + first[2] ** 2)
        turn = np.stack([first, up, _cross(first, up)], axis=1)
        middle = (low + high) / 2
        self.add(
            Kind.CYLINDER,
            (float(middle[0]), float(middle[1]), float(middle[2])),
            (radius, length / 2, radius),
            material,
            color,
            turn=turn,
            **more,  # type: ignore[arg-type]
        )
