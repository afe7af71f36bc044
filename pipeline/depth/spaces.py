"""What a teacher's numbers can mean. Stated by every card and every store, never guessed."""

from __future__ import annotations

from ..errors import PipelineError

DEPTH_SPACES = {
    "metric_m": "depth along the optical axis in metres",
    "affine_depth": "depth up to an unknown scale and shift",
    "affine_disparity": "inverse depth up to an unknown scale and shift",
    "scale_invariant": "depth up to an unknown scale",
}


def check_depth_space(name: str) -> None:
    """Raise PipelineError unless `name` is a known depth space."""
    if name not in DEPTH_SPACES:
        raise PipelineError(f"depth space {name!r}: expected one of {', '.join(DEPTH_SPACES)}")
