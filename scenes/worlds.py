"""The worlds that can be rendered, and the units of their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .camera import draw_camera
from .fog import draw_foggy_scene, draw_truck_camera
from .indoors import render_interior
from .infrared import sense
from .interior import draw_interior, draw_lens
from .lidar import scan
from .shade import render
from .world import draw_scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .camera import F32, Camera
    from .world import Scene

DEPTH_LIMIT_M = 200.0


class Frame(NamedTuple):
    """One frame: picture (H, W, 3) bytes, and planar depth (H, W) in metres, 0 for none."""

    picture: NDArray[np.uint8]
    depth_m: F32
    sparse_m: F32


@dataclass(frozen=True)
class World:
    """A kind of scene. A frame depends on (seed, index, size) alone."""

    generator_version: int
    """Increase it when the same arguments give other pixels."""
    units_per_m: int
    """Units of the depth files."""
    truths: dict[str, str]
    """Description of the depth in each folder, for people."""
    draw_camera: Callable[[int, int, tuple[int, int]], Camera]
    """Draws the camera of a frame, with final intrinsics; its pose may be a placeholder."""
    frame: Callable[[int, int, tuple[int, int]], Frame]


def street_frame(seed: int, index: int, size_px: tuple[int, int]) -> Frame:
    """Render a street and its LiDAR depth."""
    return _outdoor_frame(draw_scene(seed, index, size_px), seed, index)


def fog_frame(seed: int, index: int, size_px: tuple[int, int]) -> Frame:
    """Render a street in fog, seen from a truck, and its LiDAR depth."""
    return _outdoor_frame(draw_foggy_scene(seed, index, size_px), seed, index)


def _outdoor_frame(scene: Scene, seed: int, index: int) -> Frame:
    picture, depth_m = render(scene)
    depth_m = np.where(depth_m <= DEPTH_LIMIT_M, depth_m, 0)
    return Frame(picture, depth_m, scan(depth_m, scene.camera, (seed, index, 4)))


def rooms_frame(seed: int, index: int, size_px: tuple[int, int]) -> Frame:
    """Render a room and its structured-light depth."""
    scene = draw_interior(seed, index, size_px)
    picture, depth_m, echo = render_interior(scene)
    return Frame(picture, depth_m, sense(depth_m, echo, scene.camera, (seed, index, 14)))


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
    ),
    "fog": World(
        generator_version=1,
        units_per_m=256,
        truths=STREET_TRUTHS,
        draw_camera=draw_truck_camera,
        frame=fog_frame,
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
    ),
}
