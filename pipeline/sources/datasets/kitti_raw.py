"""KITTI raw as its archives unpack, with annotated depth or projected laser scans as ground truth.

ROOT/DATE/DRIVE/{image_02,image_03}/data/N.png (or .jpg), ROOT/DATE/calib_*.txt; dates may also be in a folder of
IMAGES_BELOW. Annotated depth is DRIVE/proj_depth/groundtruth/image_0X/N.png, 16 bits, metres = value / 256, 0 = none,
in one of the places in ANNOTATED_BELOW. Scans are DRIVE/velodyne_points/data/N.bin.

An id is the image's path below the folder of dates without suffix, as in `kitti`, so that both can use one store.
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
from .kitti_pairs import baseline_of_pair, read_right_of
from .kitti_velodyne import CAMERA_FILE, CAMERAS, project_scan_m, read_calibration, read_scan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ..base import FileCamera
    from .kitti_velodyne import Camera

IMAGES_BELOW = ("", "input", "kitti_raw", "raw")
"""Folders of the dates: the root, or as loaders of depth completion and of BTS expect."""
ANNOTATED_BELOW = (
    "DATE/DRIVE",  # merged, as Monodepth2 expects
    "train/DRIVE",  # as the zip unpacks
    "val/DRIVE",
    "data_depth_annotated/train/DRIVE",  # the zip unpacked in a folder of its name
    "data_depth_annotated/val/DRIVE",
    "data_depth_annotated/DRIVE",
    "gt_depth/DRIVE",  # train and val merged, as BTS expects
)
SCANS = "velodyne_points/data"


class KittiRawSource(ImageFiles):
    """A KITTI raw root; `truth` is `annotated` or `velodyne`, by default the first that exists.

    Raises PipelineError for a root without dates, or without the requested truth.
    """

    name = "kitti-raw"
    defaults = KittiSource.defaults

    def __init__(self, root: Path, truth: str | None = None) -> None:
        self.root = root
        folders = [root / below for below in IMAGES_BELOW if _dates(root / below)]
        if not folders:
            raise PipelineError(_wrong_root(root))
        self.images = folders[0]
        self._calibrations: dict[str, dict[str, Camera]] = {}
        drives = [(date, drive) for date in _dates(self.images) for drive in self._drives(date)]
        if truth not in {None, "annotated", "velodyne"}:
            raise PipelineError(f"source kitti-raw:{root}: truth {truth!r}, expected annotated or velodyne")
        annotated = truth != "velodyne" and any(self._annotated(*drive) for drive in drives)
        scans = truth != "annotated" and any((self.images / date / drive / SCANS).is_dir() for date, drive in drives)
        if truth == "annotated" and not annotated:
            raise PipelineError(
                f"source kitti-raw:{root}: no annotated depth of the drives in {self.images}; searched for "
                f"proj_depth/groundtruth/image_02/N.png in {', '.join(ANNOTATED_BELOW)} below {root}. Unpack "
                "data_depth_annotated.zip there, or use `truth=velodyne`"
            )
        if truth == "velodyne" and not scans:
            raise PipelineError(
                f"source kitti-raw:{root}: no scans of the drives in {self.images}; searched for "
                f"DATE/DRIVE/{SCANS}/N.bin. Unpack all of the drives' zips (synced+rectified), or use `truth=annotated`"
            )
        self.truth = "velodyne" if scans and not annotated else "annotated"
        self.invalid = () if self.truth == "annotated" else None

    def samples(self, split: str) -> list[Sample]:
        """Return the rows of `all`, a date, a drive, `image_02`, several of these joined by `/`, or a list.

        A list's row is `rgb depth focal_px` or `DATE/DRIVE frame l`. An image without truth on disk has none, unless
        the list names its annotated depth: then reading it fails. Raises PipelineError for a missing or empty split,
        a malformed row, a duplicate image, or scans without calibration.
        """
        names = set() if split == "all" else set(split.split("/"))
        if all(re.fullmatch(f"{DATE}|{DRIVE}|{CAMERA}", name) for name in names):
            samples = self._samples(self._below(names))
            if not samples:
                raise PipelineError(
                    f"split {split!r}: no images below {self.images}, expected DATE/DRIVE/image_02/data/N.png (or "
                    f".jpg); available dates: {', '.join(_dates(self.images))}"
                )
            return samples
        path = find_list_or_name(
            split, self.root / "splits", "`all`, a date, a drive (2011_09_26_drive_0001_sync), or image_02"
        )
        return self._samples(listed_rows(path))

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement; None if the row has none.

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

    def camera(self, sample: Sample) -> FileCamera | None:
        """Return the camera of the day's calibration; the list's focal length alone without one."""
        date, _, camera = sample.id.split("/")[:3]
        calibration = self._calibration(date, needed=False)
        return calibration[camera].of_files if calibration else super().camera(sample)

    def read_right(self, sample: Sample) -> NDArray[np.uint8]:
        """See `stereo.StereoSource`."""
        return read_right_of(sample.image_path)

    def baseline_m(self, sample: Sample) -> float | None:
        """See `stereo.StereoSource`. Raises PipelineError as `baseline_of_pair`."""
        return baseline_of_pair(sample.image_path, self._calibration(sample.id.split("/")[0], needed=False))

    def _drives(self, date: str) -> list[str]:
        return [name for name in folder_names(self.images / date) if re.fullmatch(DRIVE, name)]

    def _below(self, names: Collection[str]) -> Iterator[Row]:
        """Yield all images on disk whose path contains all `names`, sorted."""
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
            has_truth = row.frame + suffix in frames
            if self.truth == "annotated" and row.lists_truth is not None:
                has_truth = row.lists_truth
            calibration = self._calibration(date, needed=has_truth and self.truth == "velodyne")
            sample_id = row.id
            focal_px = calibration[camera].intrinsics.fx_px if calibration else row.focal_px
            truth_path = f"{folder}/{row.frame}{suffix}" if has_truth else None
            samples.append(Sample(sample_id, f"{self.images}/{sample_id}{row.suffix}", truth_path, focal_px))
        return samples

    def _truths(self, date: str, drive: str, camera: str) -> tuple[str, str, set[str]]:
        """Return (folder, suffix, file names) of the truth of a drive's camera."""
        if self.truth == "velodyne":
            folder, suffix = self.images / date / drive / SCANS, ".bin"
        else:
            drive_folder = self._annotated(date, drive) or self.images / date / drive
            folder, suffix = drive_folder / "proj_depth" / "groundtruth" / camera, ".png"
        return str(folder), suffix, set(file_names(folder))

    def _annotated(self, date: str, drive: str) -> Path | None:
        """Return the drive's folder of annotated depth, None if there is none."""
        bases = [self.images / date / drive]
        bases += [self.root / below.replace("DRIVE", drive) for below in ANNOTATED_BELOW[1:]]
        return next((base for base in bases if (base / "proj_depth" / "groundtruth").is_dir()), None)

    def _calibration(self, date: str, *, needed: bool) -> dict[str, Camera]:
        """Return the cameras of a date; empty if the file is missing and not needed."""
        if date not in self._calibrations or (needed and not self._calibrations[date]):
            folder = self.images / date
            read = needed or (folder / CAMERA_FILE).exists()
            scanner = self.truth == "velodyne"
            self._calibrations[date] = read_calibration(folder, scanner=scanner) if read else {}
        return self._calibrations[date]


def _dates(folder: Path) -> list[str]:
    return [name for name in folder_names(folder) if re.fullmatch(DATE, name)]


def _wrong_root(root: Path) -> str:
    """Message for a root without dates, with the folder to use instead."""
    here, names = root.resolve(), folder_names(root)
    if set(CAMERAS) & set(names):
        advice = f"this is one drive, use {here.parent.parent}"
    elif any(re.fullmatch(DRIVE, name) for name in names):
        advice = f"this is one date, or depth only; use {here.parent} if it contains the dates"
    else:
        below = next((name for name in names if any(_dates(root / name / part) for part in IMAGES_BELOW)), None)
        advice = f"use {root / below}" if below else "unpack the drives' zips (synced+rectified) there"
    folders = ", ".join(f"{part}/" for part in IMAGES_BELOW[1:])
    return f"source kitti-raw:{root}: no date folder, such as 2011_09_26, in the root or its {folders}; {advice}"


SOURCE = SourceKind(
    KittiRawSource,
    data_set="KITTI raw (Geiger et al.), with the depth benchmark's annotated depth (Uhrig et al.)",
    layout="DATE/DRIVE/image_02/data/N.png (or .jpg), DATE/calib_*.txt; DRIVE/proj_depth/groundtruth/image_02/N.png in "
    "DATE/, train/, val/, data_depth_annotated/ or gt_depth/; or DATE/DRIVE/velodyne_points/data/N.bin",
    splits="`all`, a date, a drive, `image_02`, `DRIVE/image_02`; NAME of splits/NAME.txt or a list file: "
    "`rgb depth focal_px` or `DATE/DRIVE frame l` per line",
    truth="`annotated` (default if it exists): accumulated LiDAR, 16-bit PNG, metres = value / 256, 0 = none; "
    "`velodyne`: one scan, projected by calibration, metres",
    licence="CC BY-NC-SA 3.0",
    defaults=KittiRawSource.defaults,
    intrinsics="DATE/calib_cam_to_cam.txt; without it the list's focal length",
)
