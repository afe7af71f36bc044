"""The ground: a bending road with kerbs and raised pavements, possibly a crossing street; and ray hits on it.

Shape legend: n points or rays (any shape).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .shapes import Numbers, plane_y

if TYPE_CHECKING:
    from .camera import F32

CORNER_M = 4.0


@dataclass(frozen=True)
class Road:
    """Plan of the streets.

    The centre line runs through x = 0 at z = 0, and its slope dx/dz goes from 0 to `bend`.
    """

    bend: float
    bend_at_m: float
    bend_over_m: float
    half_width_m: float
    kerb_m: float
    pavement_m: float
    lane_m: float
    lanes: int
    """Per direction."""
    crossing_at_m: float
    """z of the crossing street's centre line; 900 or more for none."""
    crossing_half_m: float

    @property
    def has_crossing(self) -> bool:
        """Whether a street crosses the road."""
        return self.crossing_at_m < 900

    def center_x(self, z: Numbers | float) -> Numbers:
        """Return x of the centre line at z: a hyperbola, straight far before and after the bend."""
        start = np.hypot(self.bend_at_m, self.bend_over_m)
        return np.asarray(self.bend / 2 * (np.hypot(z - self.bend_at_m, self.bend_over_m) - start + z))

    def slope(self, z: Numbers | float) -> Numbers:
        """Return the change of `centre_x` per metre of z."""
        ahead = z - self.bend_at_m
        return np.asarray(self.bend / 2 * (ahead / np.hypot(ahead, self.bend_over_m) + 1))

    def lateral_m(self, x: Numbers, z: Numbers) -> Numbers:
        """Return metres to the right of the centre line."""
        slope = self.slope(z)
        return np.asarray((x - self.center_x(z)) / np.sqrt(1 + slope * slope))

    def off_road_m(self, x: Numbers, z: Numbers) -> Numbers:
        """Return metres from the nearest kerb, negative on a carriageway; corners of a crossing are rounded."""
        from_road = np.abs(self.lateral_m(x, z)) - self.half_width_m
        if not self.has_crossing:
            return from_road
        from_street = np.abs(z - self.crossing_at_m) - self.crossing_half_m
        inner = np.minimum(from_road, from_street)
        rounded = CORNER_M - np.hypot(CORNER_M - from_road, CORNER_M - from_street)
        return np.where(np.maximum(from_road, from_street) < CORNER_M, rounded, inner)

    def hit_m(self, origin_m: tuple[float, float, float], rays: F32) -> F32:
        """Return depth (n) at which rays (3, n) from a camera meet carriageway, kerb or pavement; infinite for none."""
        x, y, z = origin_m
        low = plane_y(y, rays[1], 0.0)
        if self.kerb_m == 0:
            return low.astype(np.float32)

        def off_road(depth: Numbers, dx: Numbers, dz: Numbers) -> Numbers:
            return self.off_road_m(x + depth * dx, z + depth * dz)

        high = plane_y(y, rays[1], self.kerb_m)
        hits = np.isfinite(low)
        near, far, dx, dz = high[hits], low[hits], rays[0][hits], rays[2][hits]
        on_pavement = off_road(near, dx, dz) > 0
        depth = np.where(on_pavement, near, far)
        # Rays above the carriageway at pavement height and below the pavement at road height meet the face of the kerb.
        face = np.flatnonzero(~on_pavement & (off_road(far, dx, dz) > 0))
        before, after = near[face].astype(np.float64), far[face].astype(np.float64)
        for _ in range(18):  # bisects the longest such stretch to 0.02 mm
            middle = (before + after) / 2
            inside = off_road(middle, dx[face], dz[face]) > 0
            before, after = np.where(inside, before, middle), np.where(inside, middle, after)
        depth[face] = after
        out = np.full(low.shape, np.inf, dtype=np.float32)
        out[hits] = depth
        return out
