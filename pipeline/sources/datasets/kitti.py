"""KITTI in the usual layout, with lists in the style of Eigen's split: a line is `rgb depth focal_px`.

Lists of Depth Anything V2 (`rgb depth`, absolute paths) and of Monodepth2 (`DATE/DRIVE frame l`) are read too.

ROOT/input/<rgb>, ROOT/gt_depth/<depth> (16-bit PNG, metres = value / 256, 0 = no measurement), and perhaps
ROOT/splits/NAME.txt. A depth of `None` says that there is no ground truth. An image may lie on disk as `.jpg`
though its line says `.png`, and the other way round.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import PipelineError
from ..base import Defaults, ImageFiles, Sample, SourceKind
from ..frame_pairs import check_pair, listed_pairs
from ..readers.images import read_depth_png_m
from ..splits import Ids, checked_path, file_names, find_list, without_suffix
from .kitti_lists import CAMERA, DATE, DRIVE, FRAME, SIDES, focal_length_px, parse_row

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    _Columns = tuple[str, str, str | None, float | None]
    """(id, image, truth or None, focal length in pixels or None)"""

METRES_PER_UNIT = 1 / 256
IMAGE = re.compile(rf"/({DATE}/{DRIVE}/{CAMERA}/data/{FRAME}\.\w+)$", re.ASCII)
ANNOTATED = re.compile(rf"/({DRIVE}/proj_depth/groundtruth/{CAMERA}/{FRAME}\.png)$", re.ASCII)


class KittiSource(ImageFiles):
    """A KITTI root.

    Raises PipelineError where `root` has no `input/`, or a truth other than `gt_depth` is asked for.
    """

    name = "kitti"
    defaults = Defaults(
        view="kb",
        bins="kitti",
        sigma_m=0.5,
        protocol="kitti_eigen_garg80",
        crop_px=(352, 704),
        rotate_deg=2.5,
        skip_rows=110,
    )

    def __init__(self, root: Path, truth: str | None = None) -> None:
        if not (root / "input").is_dir():
            raise PipelineError(
                f"source kitti:{root}: not a KITTI root, there is no {root / 'input'}; expected "
                "input/2011_09_26/... for images and gt_depth/..._sync/proj_depth/... for ground truth"
            )
        if truth not in {None, "gt_depth"}:
            raise PipelineError(f"source kitti:{root}: truth {truth!r}, expected gt_depth: leave the option out")
        self.root = root
        self.truth = "gt_depth"
        self._annotated: dict[str, set[str]] = {}
        self.invalid = ()

    def samples(self, split: str) -> list[Sample]:
        """Rows of a list file, or of ROOT/splits/NAME.txt. An id is the image's path without its suffix.

        Raises PipelineError for a missing or empty list, a malformed row, a duplicate id, a path that leaves
        the root.
        """
        path = find_list(split, self.root / "splits")
        images, truths = f"{self.root}/input/", f"{self.root}/gt_depth/"
        ids = Ids(path)
        samples = []
        for line, row, check in listed_pairs(path):
            where = f"split {path} line {line}"
            sample_id, image, truth, focal_px = self._of_drive(row, where) or _parse_row(row, where)
            if check and truth is not None:
                check_pair(image, truth, where)
            ids.add(sample_id, line)
            samples.append(Sample(sample_id, images + image, truths + truth if truth else None, focal_px))
        ids.check_not_empty()
        return samples

    def _of_drive(self, row: str, where: str) -> _Columns | None:
        """A row `DATE/DRIVE frame side`, with the truth that is on disk; None for another row."""
        if row.rpartition(" ")[2] not in SIDES:
            return None
        found = parse_row(row, where)
        _, drive, camera = found.folder
        folder = f"{drive}/proj_depth/groundtruth/{camera}"
        if folder not in self._annotated:
            self._annotated[folder] = set(file_names(self.root / "gt_depth" / folder))
        truth = f"{folder}/{found.frame}.png" if f"{found.frame}.png" in self._annotated[folder] else None
        return found.id, f"{found.id}{found.suffix}", truth, None

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Ground truth (H, W) float32 metres, NaN without measurement; None if the row says `None`.

        Raises PipelineError for a file that is missing or no 16-bit PNG.
        """
        if sample.truth_path is None:
            return None
        return self.upright(sample, read_depth_png_m(sample.truth_path, METRES_PER_UNIT, self.invalid))


def _parse_row(row: str, where: str) -> _Columns:
    """(id, image, truth or None, focal length or None) of a line `rgb depth`, perhaps with `focal_px`."""
    columns = row.split()
    if len(columns) not in {2, 3}:
        raise PipelineError(
            f"{where}: {len(columns)} columns in {row[:200]!r}, expected 3: rgb depth focal_px (or 2: rgb depth)"
        )
    image, truth = (_below_root(path, pattern) for path, pattern in zip(columns, (IMAGE, ANNOTATED), strict=False))
    sample_id = without_suffix(checked_path(image, where))
    if sample_id is None:
        raise PipelineError(f"{where}: image {image!r}, expected a name that ends in .png or .jpg")
    if truth != "None" and len(columns) == 2 and without_suffix(truth) is None:
        raise PipelineError(f"{where}: depth {truth!r}, expected a name that ends in .png, or None")
    focal_px = focal_length_px(columns[2], where) if len(columns) == 3 else None
    return sample_id, image, None if truth == "None" else checked_path(truth, where), focal_px


def _below_root(path: str, known: re.Pattern[str]) -> str:
    """The part of an absolute path that every copy of KITTI has; any other path as it is."""
    match = known.search(path) if path.startswith("/") else None
    return match[1] if match else path


SOURCE = SourceKind(
    KittiSource,
    data_set="KITTI in the layout of BTS and AdaBins, with Eigen's lists",
    layout="input/DATE/DRIVE/image_02/data/N.png, gt_depth/DRIVE/proj_depth/groundtruth/image_02/N.png, splits/*.txt",
    splits="NAME of splits/NAME.txt, or a list file: `rgb depth focal_px`, `rgb depth` (absolute paths too) or "
    "`DATE/DRIVE frame l` a line, depth perhaps `None`",
    truth="accumulated LiDAR, 16-bit PNG, metres = value / 256, 0 = none",
    licence="CC BY-NC-SA 3.0",
    defaults=KittiSource.defaults,
)
