"""The right view of a rectified stereo pair.

Both cameras have the same rotation and intrinsics, and the right one is on the x axis of the left one. So a point at
depth z on column x of the left image is on column x - focal * baseline / z of the right one, in the same row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .interior import Interior
    from .world import Scene

    AnyScene = TypeVar("AnyScene", Scene, Interior)

RIGHT_NOISE = 1


def right_of(scene: AnyScene, baseline_m: float) -> AnyScene:
    """Return the same scene at the same instant, seen by the right camera, whose sensor has noise of its own."""
    sensor = replace(scene.sensor, noise_seed=(*scene.sensor.noise_seed, RIGHT_NOISE))
    return replace(scene, camera=scene.camera.moved_right(baseline_m), sensor=sensor)
