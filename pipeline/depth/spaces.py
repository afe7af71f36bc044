"""Depth spaces: what the values of a teacher mean. Every card and every store states one."""

from __future__ import annotations

from ..errors import PipelineError

DEPTH_SPACES = {
    "metric_m": "depth along the optical axis in metres",
    "affine_depth": "depth up to an unknown scale and shift",
    "affine_disparity": "inverse depth up to an unknown scale and shift",
    "scale_invariant": "depth up to an unknown scale",
    "disparity_px": "disparity of a rectified stereo pair in pixels of the view: metres are fx * baseline / disparity",
}
METRIC, DISPARITY = "metric_m", "disparity_px"
ABSOLUTE_SPACES = frozenset({METRIC, DISPARITY})
"""Spaces whose values have a unit."""
UNITS = {METRIC: "m", DISPARITY: "px"}


def check_depth_space(name: str) -> None:
    """Raise PipelineError unless `name` is in DEPTH_SPACES."""
    if name not in DEPTH_SPACES:
        raise PipelineError(f"depth space {name!r}: expected one of {', '.join(DEPTH_SPACES)}")
