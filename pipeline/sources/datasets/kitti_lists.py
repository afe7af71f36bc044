"""Parses KITTI lists in the styles of BTS, Depth Anything V2 and Monodepth2."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from ...errors import PipelineError
from ..frame_pairs import listed_pairs
from ..readers.images import IMAGE_SUFFIXES
from ..splits import Ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATE, DRIVE, CAMERA, FRAME = r"\d{4}_\d\d_\d\d", r"\d{4}_\d\d_\d\d_drive_\d{4}_sync", "image_0[23]", r"\d{10}"
SIDES = {"l": "image_02", "2": "image_02", "r": "image_03", "3": "image_03"}


class Row(NamedTuple):
    """One image of a split."""

    folder: tuple[str, str, str]
    """(date, drive, camera)"""
    frame: str
    """Ten digits."""
    suffix: str
    lists_truth: bool | None = None
    """Whether the list gives annotated depth; None for a list without a depth column."""
    focal_px: float | None = None

    @property
    def id(self) -> str:
        """The image's path below the folder of dates, without suffix."""
        return "/".join((*self.folder, "data", self.frame))


def listed_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a list. Raises PipelineError for a malformed line, a duplicate image, an empty list."""
    ids = Ids(path)
    for line, text, _ in listed_pairs(path):
        row = parse_row(text, f"split {path} line {line}")
        ids.add(row.id, line)
        yield row
    ids.check_not_empty()


def parse_row(text: str, where: str) -> Row:
    """Parse a line `rgb depth focal_px`, `rgb depth` or `DATE/DRIVE frame side`.

    Raises PipelineError that begins with `where`.
    """
    columns = text.split()
    if len(columns) not in {2, 3}:
        raise PipelineError(
            f"{where}: {len(columns)} columns in {text[:200]!r}, expected 3: `rgb depth focal_px` or "
            "`DATE/DRIVE frame l` (or 2: `rgb depth`)"
        )
    first, second = columns[:2]
    third = columns[2] if len(columns) == 3 else None
    drive = re.fullmatch(rf"({DATE})/(\1_drive_\d{{4}}_sync)", first, re.ASCII)
    if drive:
        if not re.fullmatch(r"\d{1,10}", second, re.ASCII) or third not in SIDES:
            raise PipelineError(
                f"{where}: frame {second[:200]!r} and side {(third or '')[:200]!r}, expected a number and one of l, r, "
                "2, 3"
            )
        return Row((drive[1], drive[2], SIDES[third]), f"{int(second):010d}", ".png")
    if third in SIDES:
        odometry = re.fullmatch(r"\d\d", first, re.ASCII)
        origin = f"of sequence {first} of KITTI's odometry benchmark, not" if odometry else "not an image"
        raise PipelineError(
            f"{where}: {text[:200]!r} is {origin} of KITTI raw; expected `DATE/DRIVE frame l`, such as "
            "2011_09_26/2011_09_26_drive_0001_sync 5 l"
        )
    image = re.fullmatch(
        rf"(?:/.*/)?({DATE})/(\1_drive_\d{{4}}_sync)/({CAMERA})/data/({FRAME})(\.\w+)", first, re.ASCII
    )
    if not image or image[5].lower() not in IMAGE_SUFFIXES:
        raise PipelineError(
            f"{where}: image {first[:200]!r}, expected DATE/DRIVE/image_02/data/N.png with N of ten digits, such as "
            "2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png"
        )
    date, name, camera, frame, suffix = image.groups()
    truth = f"{name}/proj_depth/groundtruth/{camera}/{frame}.png"
    # A column shifted by a row would pair images with the depth of others.
    if second != "None" and not second.endswith(truth):
        raise PipelineError(f"{where}: depth {second[:200]!r} does not belong to the image; expected None or {truth}")
    focal_px = None if third is None else focal_length_px(third, where)
    return Row((date, name, camera), frame, suffix, second != "None", focal_px)


def focal_length_px(text: str, where: str) -> float:
    """Parse the last column of a row. Raises PipelineError that begins with `where` unless it is positive."""
    try:
        focal_px = float(text)
    except ValueError:
        focal_px = math.nan
    if not (math.isfinite(focal_px) and focal_px > 0):
        raise PipelineError(f"{where}: focal length must be a positive number of pixels, got {text[:200]!r}")
    return focal_px
