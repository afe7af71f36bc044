"""Checks of a store's attributes: numbers, text, versions and the alignment. The writer is not trusted."""

from __future__ import annotations

import math
from typing import Any

from ...common.fileio import has_control
from ...depth.spaces import ABSOLUTE_SPACES
from ...errors import PipelineError
from .codec import LARGEST

FORMAT_VERSIONS = (1, 2, 3)
"""Versions that this program reads. A store is written as the oldest that has its features."""
KNOWN_VERSIONS = f"{FORMAT_VERSIONS[0]} to {FORMAT_VERSIONS[-1]}"
ALIGNMENT_KEYS = {"fit", "truth", "min_points", "max_residual", "depth_range_m"}


def is_known_version(value: object) -> bool:
    """Return whether this program reads this version of a store or manifest; unlike in Python, `true` is not 1."""
    return type(value) is int and value in FORMAT_VERSIONS


def check_alignment(value: Any, depth_space: str) -> None:  # noqa: ANN401 - any JSON value
    """Raise PipelineError unless `value` is a valid `alignment` attribute."""
    if depth_space in ABSOLUTE_SPACES:
        raise PipelineError(f"{depth_space} has an alignment: expected one for relative depth only")
    if not isinstance(value, dict) or value.keys() != ALIGNMENT_KEYS:
        raise PipelineError(f"alignment {str(value)[:200]!r}: expected {', '.join(sorted(ALIGNMENT_KEYS))}")
    if not all(isinstance(value[key], str) and value[key] for key in ("fit", "truth")):
        raise PipelineError("`fit` and `truth` of the alignment must be non-empty text")
    whole(value["min_points"])
    if not 0 < number(value["max_residual"]) < math.inf:
        raise PipelineError(f"`max_residual` of the alignment must be positive, got {value['max_residual']}")
    span = value["depth_range_m"]
    if not isinstance(span, list) or len(span) != 2 or not 1 / LARGEST <= number(span[0]) < number(span[1]) <= LARGEST:
        raise PipelineError(f"`depth_range_m` of the alignment is {span}: expected [lo, hi] in metres, 0 < lo < hi")


def whole(value: object) -> int:
    """Return a positive integer. Raises PipelineError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PipelineError(f"{value!r} in the store's attributes: expected a positive integer")
    return value


def number(value: object) -> float:
    """Return a number. Raises PipelineError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PipelineError(f"{value!r} in the store's attributes: expected a number")
    return value


def number_or_none(value: object) -> float | None:
    """Return a number or None. Raises PipelineError for anything else."""
    return None if value is None else number(value)


def check_text(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Refuse control characters anywhere in a JSON value: printed, they could control the user's terminal."""
    if isinstance(value, dict):
        check_text([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            check_text(each)
    elif isinstance(value, str) and has_control(value):
        raise PipelineError(f"{value[:80]!r} in the store's attributes has control characters: expected printable text")
