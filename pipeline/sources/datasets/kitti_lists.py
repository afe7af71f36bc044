"""Which KITTI image a line of a list means: lists in the style of BTS, of Depth Anything V2 and of Monodepth2."""

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
    """An image that is in a split."""

    folder: tuple[str, str, str]
    """(date, drive, camera)"""
    frame: str
    """Ten digits."""
    suffix: str
    says_truth: bool | None = None
    """Whether its list says that there is annotated depth; None where it says nothing."""
    focal_px: float | None = None

    @property
    def id(self) -> str:
        """The image's path below the folder of dates, without suffix."""
        return "/".join((*self.folder, "data", self.frame))


def listed_rows(path: Path) -> Iterator[Row]:
    """Rows of a list. Raises PipelineError for a malformed line, a duplicate image, a list without rows."""
    ids = Ids(path)
    for line, text, _ in listed_pairs(path):
        row = parse_row(text, f"split {path} line {line}")
        ids.add(row.id, line)
        yield row
    ids.check_not_empty()


def parse_row(text: str, where: str) -> Row:
    """One line, `rgb depth focal_px`, `rgb depth` or `DATE/DRIVE frame side`.

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
        what = f"sequence {first} of KITTI's odometry benchmark, whose images" if odometry else "images that"
        raise PipelineError(
            f"{where}: {text[:200]!r} names {what} are not those of KITTI raw; expected `DATE/DRIVE frame l`, such as "
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
    # A column that has slipped by a row would pair images with the depth of others.
    if second != "None" and not second.endswith(truth):
        raise PipelineError(f"{where}: depth {second[:200]!r} is not that of the image; expected None or {truth}")
    focal_px = None if third is None else focal_length_px(third, where)
    return Row((date, name, camera), frame, suffix, second != "None", focal_px)


def focal_length_px(text: str, where: str) -> float:
    """The last column of a row. Raises PipelineError, which begins with `where`, for what is no number above 0."""
    try:
        focal_px = float(text)
    except ValueError:
        focal_px = math.nan
    if not (math.isfinite(focal_px) and focal_px > 0):
        raise PipelineError(f"{where}: focal length {text[:200]!r}, expected pixels, a number above 0")
    return focal_px
