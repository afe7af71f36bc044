"""KITTI in the layout of BTS, with lists in the style of Eigen's split: a line is `rgb depth focal_px`.

Also reads lists of Depth Anything V2 (`rgb depth`, absolute paths) and of Monodepth2 (`DATE/DRIVE frame l`).

ROOT/input/<rgb>, ROOT/gt_depth/<depth> (16-bit PNG, metres = value / 256, 0 = no measurement), and optional
ROOT/splits/NAME.txt. A depth of `None` means no ground truth. A line with `.png` also matches a `.jpg` on disk, and the
other way round.
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
from .kitti_pairs import baseline_of_pair, read_right_of
from .kitti_velodyne import CAMERA_FILE, read_calibration

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ..base import FileCamera
    from .kitti_velodyne import Camera

    _Columns = tuple[str, str, str | None, float | None]
    """(id, image, truth or None, focal length in pixels or None)"""

METRES_PER_UNIT = 1 / 256
IMAGE = re.compile(rf"/({DATE}/{DRIVE}/{CAMERA}/data/{FRAME}\.\w+)$", re.ASCII)
ANNOTATED = re.compile(rf"/({DRIVE}/proj_depth/groundtruth/{CAMERA}/{FRAME}\.png)$", re.ASCII)


class KittiSource(ImageFiles):
    """A KITTI root.

    Raises PipelineError for a root without `input/`, or a truth other than `gt_depth`.
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
                f"source kitti:{root}: not a KITTI root: {root / 'input'} is missing; expected "
                "input/2011_09_26/... for images and gt_depth/..._sync/proj_depth/... for ground truth"
            )
        if truth not in {None, "gt_depth"}:
            raise PipelineError(f"source kitti:{root}: truth {truth!r}, expected gt_depth; remove `truth`")
        self.root = root
        self.truth = "gt_depth"
        self._annotated: dict[str, set[str]] = {}
        self._calibrations: dict[str, dict[str, Camera]] = {}
        self.invalid = ()

    def samples(self, split: str) -> list[Sample]:
        """Return the rows of a list file, or of ROOT/splits/NAME.txt. An id is the image's path without suffix.

        Raises PipelineError for a missing or empty list, a malformed row, a duplicate id, a path outside the root.
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
        """Parse a row `DATE/DRIVE frame side`, with the ground truth on disk; None for another row."""
        if row.rpartition(" ")[2] not in SIDES:
            return None
        parsed = parse_row(row, where)
        _, drive, camera = parsed.folder
        folder = f"{drive}/proj_depth/groundtruth/{camera}"
        if folder not in self._annotated:
            self._annotated[folder] = set(file_names(self.root / "gt_depth" / folder))
        truth = f"{folder}/{parsed.frame}.png" if f"{parsed.frame}.png" in self._annotated[folder] else None
        return parsed.id, f"{parsed.id}{parsed.suffix}", truth, None

    def camera(self, sample: Sample) -> FileCamera | None:
        """Return the camera of input/DATE/calib_cam_to_cam.txt; the list's focal length alone without it."""
        calibration = self._calibration_of(sample)
        return calibration[sample.id.split("/")[2]].of_files if calibration else super().camera(sample)

    def read_right(self, sample: Sample) -> NDArray[np.uint8]:
        """See `stereo.StereoSource`."""
        return read_right_of(sample.image_path)

    def baseline_m(self, sample: Sample) -> float | None:
        """See `stereo.StereoSource`. Raises PipelineError as `baseline_of_pair`."""
        return baseline_of_pair(sample.image_path, self._calibration_of(sample))

    def _calibration_of(self, sample: Sample) -> dict[str, Camera]:
        """Return the cameras of a sample's day; empty without the file, and for an id that names no day."""
        match = re.match(rf"({DATE})/{DRIVE}/{CAMERA}/", sample.id, re.ASCII)
        if match is None:
            return {}
        date = match[1]
        if date not in self._calibrations:
            folder = self.root / "input" / date
            exists = (folder / CAMERA_FILE).exists()
            self._calibrations[date] = read_calibration(folder, scanner=False) if exists else {}
        return self._calibrations[date]

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement; None if the row has `None`.

        Raises PipelineError for a file that is missing or not a 16-bit PNG.
        """
        if sample.truth_path is None:
            return None
        return self.upright(sample, read_depth_png_m(sample.truth_path, METRES_PER_UNIT, self.invalid))


def _parse_row(row: str, where: str) -> _Columns:
    """Parse a line `rgb depth` with optional `focal_px` to (id, image, truth or None, focal length or None)."""
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


def _below_root(path: str, pattern: re.Pattern[str]) -> str:
    """Return the part of an absolute path that all copies of KITTI share; another path unchanged."""
    match = pattern.search(path) if path.startswith("/") else None
    return match[1] if match else path


SOURCE = SourceKind(
    KittiSource,
    data_set="KITTI in the layout of BTS and AdaBins, with Eigen's lists",
    layout="input/DATE/DRIVE/image_02/data/N.png, gt_depth/DRIVE/proj_depth/groundtruth/image_02/N.png, splits/*.txt",
    splits="NAME of splits/NAME.txt, or a list file: `rgb depth focal_px`, `rgb depth` (absolute paths too) or "
    "`DATE/DRIVE frame l` per line; depth may be `None`",
    truth="accumulated LiDAR, 16-bit PNG, metres = value / 256, 0 = none",
    licence="CC BY-NC-SA 3.0",
    defaults=KittiSource.defaults,
    intrinsics="input/DATE/calib_cam_to_cam.txt of KITTI raw; without it the list's focal length",
)
