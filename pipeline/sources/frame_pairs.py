"""Whether a row of a list pairs an image with its own depth, which it does not where a column has slipped by a row."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import PipelineError
from .splits import rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AS_LISTED = "# pairs: as listed"
"""A line of a list whose rows pair images with the depth of other frames, and mean it."""
KITTI_FRAME = re.compile(r"\d{10}(?!\d)", re.ASCII)
NUMBER = re.compile(r"\d+", re.ASCII)
NAMES = {
    "drive": re.compile(r"\d{4}_\d\d_\d\d_drive_\d{4}", re.ASCII),
    "camera": re.compile(r"image_0\d", re.ASCII),
    "scene": re.compile(r"(?:^|.*/)([^/]+)/(?:rgb|sync_depth)_\d+\.\w+$", re.ASCII),
}
"""What an image's path and its depth's may both name, in lists of KITTI and of NYU."""


def listed_pairs(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line number, text, whether its pair is to be checked) of each row of a list; lines that begin with # are none.

    Raises PipelineError as `lists.rows`.
    """
    check = True
    for line, row in rows(path):
        if row.startswith("#"):
            check = check and row != AS_LISTED
        else:
            yield line, row, check


def check_pair(image: str, depth: str, where: str) -> None:
    """Raises PipelineError, beginning with `where`, for two paths that name two frames, drives, cameras or scenes."""
    named: list[tuple[str, int | str | None, int | str | None]] = [("frame", _frame(image), _frame(depth))]
    named += [(what, _last(name, image), _last(name, depth)) for what, name in NAMES.items()]
    for what, of_image, of_depth in named:
        if of_image is not None and of_depth is not None and of_image != of_depth:
            raise PipelineError(
                f"{where}: depth {depth[:200]!r} is of {what} {of_depth}, its image {image[:200]!r} of {of_image}; "
                f"expected the same: has a column slipped? A list that means it has a line `{AS_LISTED}` above"
            )


def _frame(path: str) -> int | None:
    """Number of a frame: ten digits, as KITTI has it, or else the last digits of the name."""
    name = path.rpartition("/")[2].rpartition(".")[0]
    found = KITTI_FRAME.findall(name) or NUMBER.findall(name)
    return int(found[-1][:18]) if found else None


def _last(name: re.Pattern[str], path: str) -> str | None:
    found = name.findall(path)
    return found[-1] if found else None
