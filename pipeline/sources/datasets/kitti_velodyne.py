"""Projects KITTI's laser scans by their calibration to a sparse depth map of a camera.

The projection follows `generate_depth_map` of Garg and Monodepth, as most results on KITTI raw do: points behind the
scanner (x < 0) are dropped, a point falls on pixel `round(u) - 1, round(v) - 1` (half to even; -1 converts from
MATLAB's one-based pixels), and the nearest point on a pixel wins. Two differences: depth is always z in the camera's
rectified frame, while Monodepth2 evaluates Eigen's split on the scanner's x, 0.27 m more; and points between the
scanner and the image plane are dropped first, so that they cannot hide a point further ahead.

Shape legend: N points, H W pixels.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...common.fileio import open_regular
from ...errors import PipelineError
from ..base import FileCamera
from ..intrinsics import Intrinsics, checked
from ..readers.images import LIMIT_PIXELS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CAMERAS = ("image_02", "image_03")
"""The color cameras, left and right."""
CAMERA_FILE, SCANNER_FILE = "calib_cam_to_cam.txt", "calib_velo_to_cam.txt"
POINT_BYTES = 16
"""x forward, y left, z up in metres, and reflectance; float32 each, little-endian."""
LIMIT_BYTES = 2**26
"""30 times the size of KITTI's scans."""
LIMIT_CALIBRATION_BYTES = 2**16


class Camera(NamedTuple):
    """Calibration of one camera on one day."""

    intrinsics: Intrinsics
    """Of the rectified images, from P_rect."""
    size_px: tuple[int, int]
    """(H, W)"""
    from_scanner: NDArray[np.float64] | None
    """(3, 4): homogeneous point of the scanner -> (u z, v z, z); None if the scanner's file was not read."""
    offset_m: float
    """Position along the rectified x axis, to the right of camera 0."""

    @property
    def of_files(self) -> FileCamera:
        """The camera of the image files."""
        return FileCamera(self.intrinsics, self.size_px)


def read_calibration(folder: Path, *, scanner: bool) -> dict[str, Camera]:
    """Read the calibration of each of CAMERAS on one day; with `scanner` also the transform from the scanner.

    Raises PipelineError for a missing file or matrix.
    """
    cameras = _read_numbers(folder / CAMERA_FILE)
    to_rectified = np.eye(4)
    if scanner:
        mount = _read_numbers(folder / SCANNER_FILE)
        to_camera_0, rectify = np.eye(4), np.eye(4)
        to_camera_0[:3, :3] = _matrix(mount, "R", (3, 3), folder / SCANNER_FILE)
        to_camera_0[:3, 3:] = _matrix(mount, "T", (3, 1), folder / SCANNER_FILE)
        rectify[:3, :3] = _matrix(cameras, "R_rect_00", (3, 3), folder / CAMERA_FILE)
        to_rectified = rectify @ to_camera_0
    calibration = {}
    for name in CAMERAS:
        number = name[-2:]
        projection = _matrix(cameras, f"P_rect_{number}", (3, 4), folder / CAMERA_FILE)
        width, height = _matrix(cameras, f"S_rect_{number}", (1, 2), folder / CAMERA_FILE)[0].tolist()
        if not (
            width >= 1
            and height >= 1
            and width * height <= LIMIT_PIXELS
            and (width, height) == (width // 1, height // 1)
        ):
            raise PipelineError(
                f"calibration {folder / CAMERA_FILE}: S_rect_{number} of {width} x {height} px, expected whole pixels, "
                "about 1242 x 375; copy the file again"
            )
        for focal_px in (projection[0, 0], projection[1, 1]):
            if not focal_px > 0:
                raise PipelineError(
                    f"calibration {folder / CAMERA_FILE}: P_rect_{number} has focal length {focal_px}, expected about "
                    "721 pixels; copy the file again"
                )
        from_scanner = projection @ to_rectified if scanner else None
        size_px = int(height), int(width)
        camera = Intrinsics(*projection[[0, 1, 0, 1], [0, 1, 2, 2]].tolist())
        checked(camera, size_px, f"calibration {folder / CAMERA_FILE}: P_rect_{number}")
        calibration[name] = Camera(camera, size_px, from_scanner, float(-projection[0, 3] / projection[0, 0]))
    return calibration


def read_scan(path: str) -> NDArray[np.float32]:
    """Read points (N, 4) float32 of a .bin file: x forward, y left, z up in metres, reflectance.

    Raises PipelineError for a file that is missing, empty, truncated, too large, or contains NaN or infinity.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LIMIT_BYTES:
                raise PipelineError(
                    f"scan {path}: {size} bytes, expected at most {LIMIT_BYTES}; check that it is a laser scan"
                )
            data = file.read(LIMIT_BYTES)
    except OSError as error:
        raise PipelineError(
            f"scan {path}: {error.strerror}; expected velodyne_points/data/N.bin of the drive"
        ) from error
    if not data or len(data) % POINT_BYTES:
        raise PipelineError(
            f"scan {path}: {len(data)} bytes, expected a positive multiple of {POINT_BYTES}; the file is truncated, "
            "copy or unpack it again"
        )
    points = np.frombuffer(data, dtype="<f4").reshape(-1, 4)
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise PipelineError(
            f"scan {path}: {bad} of {len(points)} points contain NaN or infinity, expected metres as float32; the file "
            "is damaged, copy or unpack it again"
        )
    return points.astype(np.float32, copy=False)


def project_scan_m(points: NDArray[np.float32], camera: Camera) -> NDArray[np.float32]:
    """Project points (N, 4) to depth (H, W) float32 metres of a camera, NaN in pixels without a point.

    See the top of this file for the rules. Reflectance is not used.
    """
    assert camera.from_scanner is not None
    height, width = camera.size_px
    ahead = points[points[:, 0] >= 0].astype(np.float64)
    ahead[:, 3] = 1
    # Values of a damaged file may overflow; such points fall on no pixel.
    with np.errstate(all="ignore"):
        across, down, depth_m = camera.from_scanner @ ahead.T
        column, row = np.round(across / depth_m) - 1, np.round(down / depth_m) - 1
        near_m = depth_m.astype(np.float32)
    kept = (near_m > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = row[kept].astype(np.intp) * width + column[kept].astype(np.intp)
    out = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(out, pixel, near_m[kept])
    out[np.isinf(out)] = np.nan
    return out.reshape(height, width)


def _read_numbers(path: Path) -> dict[str, list[float]]:
    """Parse lines `KEY: number number ...`; other lines, such as calib_time, are skipped."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(LIMIT_CALIBRATION_BYTES)
    except OSError as error:
        raise PipelineError(
            f"calibration {path}: {error.strerror}; unpack KITTI's {path.parent.name}_calib.zip so that "
            f"{path.name} is in the folder with the drives of that day"
        ) from error
    if size > LIMIT_CALIBRATION_BYTES:
        raise PipelineError(
            f"calibration {path}: {size} bytes, expected at most {LIMIT_CALIBRATION_BYTES}; copy it again"
        )
    numbers = {}
    for line in data.decode("utf-8", errors="replace").splitlines():
        key, _, values = line.partition(":")
        try:
            numbers[key.strip()] = [float(value) for value in values.split()]
        except ValueError:
            continue
    return numbers


def _matrix(numbers: dict[str, list[float]], key: str, shape: tuple[int, int], path: Path) -> NDArray[np.float64]:
    values = numbers.get(key, [])
    if len(values) != math.prod(shape) or not all(map(math.isfinite, values)):
        raise PipelineError(
            f"calibration {path}: {key} has {len(values)} numbers, expected {math.prod(shape)} finite ones; the file "
            "is truncated or of another data set, unpack KITTI's calibration of that day again"
        )
    return np.array(values).reshape(shape)
