"""Checks that each row of a list pairs an image with its own depth, to detect a column shifted by a row."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import PipelineError
from .splits import rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AS_LISTED = "# pairs: as listed"
"""Line of a list that turns the check off for the rows below it."""
KITTI_FRAME = re.compile(r"\d{10}(?!\d)", re.ASCII)
NUMBER = re.compile(r"\d+", re.ASCII)
NAMES = {
    "drive": re.compile(r"\d{4}_\d\d_\d\d_drive_\d{4}", re.ASCII),
    "camera": re.compile(r"image_0\d", re.ASCII),
    "scene": re.compile(r"(?:^|.*/)([^/]+)/(?:rgb|sync_depth)_\d+\.\w+$", re.ASCII),
}
"""Parts of paths in lists of KITTI and NYU that must agree between image and depth."""


def listed_pairs(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (line number, text, whether to check its pair) for each row of a list that is not a comment.

    Raises PipelineError as `splits.rows`.
    """
    check = True
    for line, row in rows(path):
        if row.startswith("#"):
            check = check and row != AS_LISTED
        else:
            yield line, row, check


def check_pair(image: str, depth: str, where: str) -> None:
    """Raise PipelineError, beginning with `where`, if two paths name different frames, drives, cameras or scenes."""
    named: list[tuple[str, int | str | None, int | str | None]] = [("frame", _frame(image), _frame(depth))]
    named += [(what, _last(pattern, image), _last(pattern, depth)) for what, pattern in NAMES.items()]
    for what, of_image, of_depth in named:
        if of_image is not None and of_depth is not None and of_image != of_depth:
            raise PipelineError(
                f"{where}: depth {depth[:200]!r} is of {what} {of_depth}, image {image[:200]!r} of {what} {of_image}; "
                f"expected the same. Correct the list, or add a line `{AS_LISTED}` above to accept such pairs"
            )


def _frame(path: str) -> int | None:
    """Frame number of a path: ten digits as in KITTI, otherwise the last digits of the name."""
    name = path.rpartition("/")[2].rpartition(".")[0]
    numbers = KITTI_FRAME.findall(name) or NUMBER.findall(name)
    return int(numbers[-1][:18]) if numbers else None


def _last(pattern: re.Pattern[str], path: str) -> str | None:
    matches = pattern.findall(path)
    return matches[-1] if matches else None
