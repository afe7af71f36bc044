"""The worlds that can be rendered, and the units of their files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from .camera import draw_camera
from .fog import draw_foggy_scene, draw_truck_camera
from .indoors import interior_light
from .infrared import sense
from .interior import draw_interior, draw_lens
from .lidar import scan
from .pairs import right_of
from .shade import expose, render_light
from .world import draw_scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .camera import F32, Camera
    from .world import Scene

DEPTH_LIMIT_M = 200.0


class Frame(NamedTuple):
    """One frame: picture (H, W, 3) bytes, planar depth (H, W) in metres, 0 for none; and the right image of a pair."""

    picture: NDArray[np.uint8]
    depth_m: F32
    sparse_m: F32
    right: NDArray[np.uint8] | None = None


class Draw(Protocol):
    """Renders a frame."""

    def __call__(self, seed: int, index: int, size_px: tuple[int, int], baseline_m: float | None = None) -> Frame:
        """Return a frame, with a right image if there is a baseline."""
        ...


@dataclass(frozen=True)
class World:
    """A kind of scene. A frame depends on (seed, index, size) and the baseline alone."""

    generator_version: int
    """Increase it when the same arguments give other pixels."""
    units_per_m: int
    """Units of the depth files."""
    truths: dict[str, str]
    """Description of the depth in each folder, for people."""
    draw_camera: Callable[[int, int, tuple[int, int]], Camera]
    """Draws the camera of a frame, with final intrinsics; its pose may be a placeholder."""
    frame: Draw
    most_baseline_m: float
    """So far to the right of the camera there is no object and no wall."""


def street_frame(seed: int, index: int, size_px: tuple[int, int], baseline_m: float | None = None) -> Frame:
    """Render a street and its LiDAR depth."""
    return _outdoor_frame(draw_scene(seed, index, size_px), seed, index, baseline_m)


def fog_frame(seed: int, index: int, size_px: tuple[int, int], baseline_m: float | None = None) -> Frame:
    """Render a street in fog, seen from a truck, and its LiDAR depth."""
    return _outdoor_frame(draw_foggy_scene(seed, index, size_px), seed, index, baseline_m)


def _outdoor_frame(scene: Scene, seed: int, index: int, baseline_m: float | None) -> Frame:
    light, depth_m = render_light(scene)
    depth_m = np.where(depth_m <= DEPTH_LIMIT_M, depth_m, 0)
    frame = Frame(expose(light, scene.sensor), depth_m, scan(depth_m, scene.camera, (seed, index, 4)))
    if baseline_m is None:
        return frame
    right = right_of(scene, baseline_m)
    return frame._replace(right=expose(render_light(right)[0], right.sensor, metered=light))


def rooms_frame(seed: int, index: int, size_px: tuple[int, int], baseline_m: float | None = None) -> Frame:
    """Render a room and its structured-light depth."""
    scene = replace(draw_interior(seed, index, size_px), every_sample=baseline_m is not None)
    light, depth_m, echo = interior_light(scene)
    frame = Frame(expose(light, scene.sensor), depth_m, sense(depth_m, echo, scene.camera, (seed, index, 14)))
    if baseline_m is None:
        return frame
    right = right_of(scene, baseline_m)
    return frame._replace(right=expose(interior_light(right)[0], right.sensor, metered=light))


STREET_TRUTHS = {
    "depth": "exact planar depth up to 200 m; 0 is sky or farther",
    "depth_sparse": "as a rotating scanner sees it: rows of points up to 80 m, noise of 2 cm; 0 is no point",
}


WORLDS = {
    "street": World(
        generator_version=1,
        units_per_m=256,
        truths=STREET_TRUTHS,
        draw_camera=draw_camera,
        frame=street_frame,
        most_baseline_m=2.0,
    ),
    "fog": World(
        generator_version=1,
        units_per_m=256,
        truths=STREET_TRUTHS,
        draw_camera=draw_truck_camera,
        frame=fog_frame,
        most_baseline_m=2.0,
    ),
    "rooms": World(
        generator_version=1,
        # Millimetres, as depth cameras write; 1/256 m would be three times the noise of a near reading.
        units_per_m=1000,
        truths={
            "depth": "exact planar depth of every pixel, window panes included",
            "depth_sparse": (
                "as a structured-light sensor sees it: 0.5 to 8 m, noise of 0.0012 + 0.0019 (z - 0.4)^2 m; 0 on glass, "
                "screens, dark or grazing surfaces, in the projector's shadow and at some edges"
            ),
        },
        draw_camera=draw_lens,
        frame=rooms_frame,
        most_baseline_m=0.3,
    ),
}
