"""KITTI raw as its zips unpack, with annotated depth or with the scanner's own points as ground truth.

ROOT/DATE/DRIVE/{image_02,image_03}/data/N.png (or .jpg), ROOT/DATE/calib_*.txt; dates may also lie in a folder of
IMAGES_BELOW. Annotated depth is DRIVE/proj_depth/groundtruth/image_0X/N.png, 16 bits, metres = value / 256, 0 = none,
where KITTI's zip puts it (ROOT/{train,val}) or people do: see ANNOTATED_BELOW. Scans are
DRIVE/velodyne_points/data/N.bin.

An id is the image's path below the dates' folder without suffix, as in `kitti`, so that stores of one serve the other.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ...errors import PipelineError
from ..base import ImageFiles, Sample, SourceKind
from ..readers.images import read_depth_png_m
from ..splits import file_names, find_list_or_name, folder_names, without_suffix
from .kitti import METRES_PER_UNIT, KittiSource
from .kitti_lists import CAMERA, DATE, DRIVE, FRAME, Row, listed_rows
from .kitti_velodyne import CAMERA_FILE, CAMERAS, project_scan_m, read_calibration, read_scan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from .kitti_velodyne import Camera

IMAGES_BELOW = ("", "input", "kitti_raw", "raw")
"""Where below the root the dates lie: there, or beside depth, as loaders of depth completion and of BTS want it."""
ANNOTATED_BELOW = (
    "DATE/DRIVE",  # merged, as Monodepth2 wants it
    "train/DRIVE",  # the zip's own
    "val/DRIVE",
    "data_depth_annotated/train/DRIVE",  # the zip in a folder of its name
    "data_depth_annotated/val/DRIVE",
    "data_depth_annotated/DRIVE",
    "gt_depth/DRIVE",  # both halves merged, as BTS wants it
)
SCANS = "velodyne_points/data"


class KittiRawSource(ImageFiles):
    """A KITTI raw root; `truth` is `annotated` or `velodyne`, by default the first of them that is there.

    Raises PipelineError for a root without dates, or without the truth that is asked for.
    """

    name = "kitti-raw"
    defaults = KittiSource.defaults

    def __init__(self, root: Path, truth: str | None = None) -> None:
        self.root = root
        found = [root / below for below in IMAGES_BELOW if _dates(root / below)]
        if not found:
            raise PipelineError(_wrong_root(root))
        self.images = found[0]
        self._calibrations: dict[str, dict[str, Camera]] = {}
        drives = [(date, drive) for date in _dates(self.images) for drive in self._drives(date)]
        if truth not in {None, "annotated", "velodyne"}:
            raise PipelineError(f"source kitti-raw:{root}: truth {truth!r}, expected annotated or velodyne")
        annotated = truth != "velodyne" and any(self._annotated(*drive) for drive in drives)
        scans = truth != "annotated" and any((self.images / date / drive / SCANS).is_dir() for date, drive in drives)
        if truth == "annotated" and not annotated:
            raise PipelineError(
                f"source kitti-raw:{root}: no annotated depth of the drives in {self.images}; looked for "
                f"{', '.join(ANNOTATED_BELOW)} below {root} with proj_depth/groundtruth/image_02/N.png: unpack "
                "data_depth_annotated.zip there, or use `truth=velodyne`"
            )
        if truth == "velodyne" and not scans:
            raise PipelineError(
                f"source kitti-raw:{root}: no scans of the drives in {self.images}; looked for DATE/DRIVE/{SCANS}/"
                "N.bin: unpack the drives' zips (synced+rectified) whole, or use `truth=annotated`"
            )
        self.truth = "velodyne" if scans and not annotated else "annotated"
        self.invalid = () if self.truth == "annotated" else None

    def samples(self, split: str) -> list[Sample]:
        """Rows of `all`, of a date, a drive, `image_02`, several of these joined by `/`, or of a list.

        A list's row is `rgb depth focal_px` or `DATE/DRIVE frame l`. An image whose truth is not on disk has none, but
        for a list that names annotated depth: there, reading it fails. Raises PipelineError for a missing or empty
        split, a malformed row, a duplicate image, or scans without calibration.
        """
        names = set() if split == "all" else set(split.split("/"))
        if all(re.fullmatch(f"{DATE}|{DRIVE}|{CAMERA}", name) for name in names):
            samples = self._samples(self._below(names))
            if not samples:
                raise PipelineError(
                    f"split {split!r}: no image of it below {self.images}, expected DATE/DRIVE/image_02/data/N.png (or "
                    f".jpg); there are the dates {', '.join(_dates(self.images))}"
                )
            return samples
        path = find_list_or_name(
            split, self.root / "splits", "`all`, a date, a drive (2011_09_26_drive_0001_sync), or image_02"
        )
        return self._samples(listed_rows(path))

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Ground truth (H, W) float32 metres, NaN without measurement; None if the row has none.

        Raises PipelineError for a file that is missing or malformed.
        """
        if sample.truth_path is None:
            return None
        date, _, camera = sample.id.split("/")[:3]
        if self.truth == "velodyne":
            points = read_scan(sample.truth_path)
            return self.upright(sample, project_scan_m(points, self._calibration(date, needed=True)[camera]))
        if not os.path.exists(sample.truth_path):  # noqa: PTH110 - text in, text out, as in images.py
            raise PipelineError(
                f"depth {sample.truth_path}: no such file, nor in {', '.join(ANNOTATED_BELOW[1:])} below {self.root}; "
                "unpack data_depth_annotated.zip, or write None for it in the list"
            )
        return self.upright(sample, read_depth_png_m(sample.truth_path, METRES_PER_UNIT, self.invalid))

    def _drives(self, date: str) -> list[str]:
        return [name for name in folder_names(self.images / date) if re.fullmatch(DRIVE, name)]

    def _below(self, names: Collection[str]) -> Iterator[Row]:
        """All images on disk in whose path all `names` stand, sorted."""
        for date in _dates(self.images):
            for drive in self._drives(date):
                for camera in CAMERAS:
                    if {date, drive, camera}.issuperset(names):
                        files = file_names(self.images / date / drive / camera / "data")
                        frames: dict[str, str] = {}
                        for file in sorted(
                            files, key=lambda file: file.endswith(".png")
                        ):  # a .png last, which then stays
                            frame = without_suffix(file)
                            if frame is not None and re.fullmatch(FRAME, frame):
                                frames[frame] = file
                        for frame, file in sorted(frames.items()):
                            yield Row((date, drive, camera), frame, file[len(frame) :], None, None)

    def _samples(self, listed: Iterable[Row]) -> list[Sample]:
        truths: dict[tuple[str, str, str], tuple[str, str, set[str]]] = {}
        samples = []
        for row in listed:
            if row.folder not in truths:
                truths[row.folder] = self._truths(*row.folder)
            folder, suffix, frames = truths[row.folder]
            date, _, camera = row.folder
            there = row.frame + suffix in frames
            if self.truth == "annotated" and row.says_truth is not None:
                there = row.says_truth
            calibration = self._calibration(date, needed=there and self.truth == "velodyne")
            sample_id = row.id
            focal_px = calibration[camera].focal_px if calibration else row.focal_px
            truth_path = f"{folder}/{row.frame}{suffix}" if there else None
            samples.append(Sample(sample_id, f"{self.images}/{sample_id}{row.suffix}", truth_path, focal_px))
        return samples

    def _truths(self, date: str, drive: str, camera: str) -> tuple[str, str, set[str]]:
        """(folder, suffix, names) of the truth of a drive's camera; listed once, not asked for file by file."""
        if self.truth == "velodyne":
            folder, suffix = self.images / date / drive / SCANS, ".bin"
        else:
            drive_folder = self._annotated(date, drive) or self.images / date / drive
            folder, suffix = drive_folder / "proj_depth" / "groundtruth" / camera, ".png"
        return str(folder), suffix, set(file_names(folder))

    def _annotated(self, date: str, drive: str) -> Path | None:
        """The drive's folder that holds annotated depth, None where there is none."""
        bases = [self.images / date / drive]
        bases += [self.root / below.replace("DRIVE", drive) for below in ANNOTATED_BELOW[1:]]
        return next((base for base in bases if (base / "proj_depth" / "groundtruth").is_dir()), None)

    def _calibration(self, date: str, *, needed: bool) -> dict[str, Camera]:
        """The day's cameras; none where there is no file and it is not needed."""
        if date not in self._calibrations or (needed and not self._calibrations[date]):
            folder = self.images / date
            there = needed or (folder / CAMERA_FILE).exists()
            scanner = self.truth == "velodyne"
            self._calibrations[date] = read_calibration(folder, scanner=scanner) if there else {}
        return self._calibrations[date]


def _dates(folder: Path) -> list[str]:
    return [name for name in folder_names(folder) if re.fullmatch(DATE, name)]


def _wrong_root(root: Path) -> str:
    """What to say of a root without dates: which folder it may be instead."""
    here, names = root.resolve(), folder_names(root)
    if set(CAMERAS) & set(names):
        advice = f"this is one drive: give {here.parent.parent}"
    elif any(re.fullmatch(DRIVE, name) for name in names):
        advice = f"this is one date, or depth alone: give {here.parent}, if the dates lie there"
    else:
        below = next((name for name in names if any(_dates(root / name / part) for part in IMAGES_BELOW)), None)
        advice = f"give {root / below}" if below else "unpack the drives' zips (synced+rectified) there"
    places = ", ".join(f"{part}/" for part in IMAGES_BELOW[1:])
    return f"source kitti-raw:{root}: no folder of a date, such as 2011_09_26, in it, nor in {places} below; {advice}"


SOURCE = SourceKind(
    KittiRawSource,
    data_set="KITTI raw (Geiger et al.), with the depth benchmark's annotated depth (Uhrig et al.)",
    layout="DATE/DRIVE/image_02/data/N.png (or .jpg), DATE/calib_*.txt; DRIVE/proj_depth/groundtruth/image_02/N.png in "
    "DATE/, train/, val/, data_depth_annotated/ or gt_depth/; or DATE/DRIVE/velodyne_points/data/N.bin",
    splits="`all`, a date, a drive, `image_02`, `DRIVE/image_02`; NAME of splits/NAME.txt or a list file: "
    "`rgb depth focal_px` or `DATE/DRIVE frame l` a line",
    truth="`annotated` (default where it is there): accumulated LiDAR, 16-bit PNG, metres = value / 256, 0 = none; "
    "`velodyne`: one scan, projected by calibration, metres",
    licence="CC BY-NC-SA 3.0",
    defaults=KittiRawSource.defaults,
)
