"""Tiny data sets in the exact layouts of KITTI raw, Virtual KITTI 2 and TUM RGB-D.

Shape legend: H, W pixels, N points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import fakes
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DATE, DRIVE = "2011_09_26", "2011_09_26_drive_0001_sync"
FOCAL_PX = 70.0
# Lines, keys and number format as in 2011_09_26_calib.zip, for a camera a tenth as large.
CAM_TO_CAM = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
{cameras}"""
CAMERA = """S_{n}: 1.392000e+03 5.120000e+02
K_{n}: {intrinsics}
D_{n}: -3.728755e-01 2.037299e-01 2.219027e-03 1.383707e-03 -7.233722e-02
R_{n}: {unturned}
T_{n}: 2.573699e-16 -1.059758e-16 1.614870e-16
S_rect_{n}: {width:.6e} {height:.6e}
R_rect_{n}: {rectify}
P_rect_{n}: {projection}
"""
VELO_TO_CAM = """calib_time: 15-Mar-2012 11:37:16
R: {turn}
T: -4.069766e-03 -7.631618e-02 -2.717806e-01
delta_f: 0.000000e+00 0.000000e+00
delta_c: 0.000000e+00 0.000000e+00
"""
VELO_R = np.array(
    [
        [7.533745e-03, -9.999714e-01, -6.166020e-04],
        [1.480249e-02, 7.280733e-04, -9.998902e-01],
        [9.998621e-01, 7.523790e-03, 1.480755e-02],
    ]
)
VELO_T = np.array([-4.069766e-03, -7.631618e-02, -2.717806e-01])
RECTIFY = np.array(
    [
        [9.999239e-01, 9.837760e-03, -7.445048e-03],
        [-9.869795e-03, 9.999421e-01, -4.278459e-03],
        [7.402527e-03, 4.351614e-03, 9.999631e-01],
    ]
)


def projection(camera: int, size_px: tuple[int, int]) -> NDArray[np.float64]:
    """Return P_rect (3, 4) of a camera, with a baseline in the last column as in KITTI."""
    offset = {
        0: (0, 0, 0),
        1: (-38.75744, 0, 0),
        2: (4.485728, 0.2163791, 2.745884e-03),
        3: (-33.95242, 2.199936, 2.729905e-03),
    }
    matrix = np.array([[FOCAL_PX, 0, size_px[1] / 2, 0], [0, FOCAL_PX, size_px[0] / 2, 0], [0, 0, 1, 0]])
    matrix[:, 3] = offset[camera]
    return matrix


def write_calibration(folder: Path, size_px: tuple[int, int]) -> None:
    """Write calib_cam_to_cam.txt and calib_velo_to_cam.txt of one day."""

    def text(matrix: NDArray[np.float64]) -> str:
        return " ".join(f"{value:.6e}" for value in matrix.ravel())

    height, width = size_px
    cameras = "".join(
        CAMERA.format(
            n=f"{number:02d}",
            intrinsics=text(projection(number, size_px)[:, :3]),
            unturned=text(np.eye(3)),
            width=width,
            height=height,
            rectify=text(RECTIFY),
            projection=text(projection(number, size_px)),
        )
        for number in range(4)
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calib_cam_to_cam.txt").write_text(CAM_TO_CAM.format(cameras=cameras))
    (folder / "calib_velo_to_cam.txt").write_text(VELO_TO_CAM.format(turn=text(VELO_R)))


def scan_of(depth_m: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """Return shuffled points (N, 4) that camera 02 sees as `depth_m` (H, W); some are behind it, some occluded."""
    rows, columns = np.nonzero(np.isfinite(depth_m))
    depth = depth_m[rows, columns].astype(np.float64)
    hidden = slice(None, None, 7)  # these pixels have a second, farther point
    depth = np.concatenate([depth, depth[hidden] + 3])
    rows, columns = np.concatenate([rows, rows[hidden]]), np.concatenate([columns, columns[hidden]])
    matrix = projection(2, depth_m.shape)
    # Pixel (row, column) is at u = column + 1, v = row + 1 in MATLAB.
    image = depth * np.stack([columns + 1.0, rows + 1.0, np.ones(len(rows))])
    rectified = np.linalg.solve(matrix[:, :3], image - matrix[:, 3:])
    points = (np.linalg.inv(RECTIFY @ VELO_R) @ rectified).T - np.linalg.inv(VELO_R) @ VELO_T
    behind = np.array([[-5, 0.1, 0.2], [-0.01, 0, 0], [0.1, 0.02, -0.07]])  # the last is in front of the scanner only
    points = np.concatenate([points, behind])
    np.random.default_rng(seed).shuffle(points)
    return np.hstack([points, np.full((len(points), 1), 0.25)]).astype("<f4")


def make_kitti_raw(
    root: Path,
    frames: int = 4,
    size_px: tuple[int, int] = (40, 120),
    *,
    annotated: str | None = "train",
    scans: bool = True,
) -> Path:
    """Write KITTI raw of one drive: left and right frames, calibration, scans, and annotated depth.

    Annotated depth is in `annotated` below the root (its zip has train/ and val/); the last frame has none. Lists:
    `eigen` as in BTS, `monodepth` as in Monodepth2. Right frames are JPEG, a common conversion.
    """
    drive = root / DATE / DRIVE
    write_calibration(root / DATE, size_px)
    eigen, monodepth = [], []
    for frame in range(frames):
        depth_m, name = fakes.smooth_depth_m(size_px, frame), f"{frame:010d}"
        fakes.write_image(drive / "image_02" / "data" / f"{name}.png", fakes.image_of(depth_m))
        fakes.write_image(drive / "image_03" / "data" / f"{name}.jpg", fakes.image_of(depth_m))
        if scans:
            (drive / "velodyne_points" / "data").mkdir(parents=True, exist_ok=True)
            (drive / "velodyne_points" / "data" / f"{name}.bin").write_bytes(
                scan_of(fakes.sparse(depth_m), frame).tobytes()
            )
        truth = f"{DRIVE}/proj_depth/groundtruth/image_02/{name}.png"
        if annotated is not None and frame < frames - 1:
            fakes.write_depth(root / annotated / truth, fakes.sparse(depth_m), 1 / 256)
        listed = truth if frame < frames - 1 else "None"
        eigen.append(f"{DATE}/{DRIVE}/image_02/data/{name}.png {listed} 721.5377")
        monodepth.append(f"{DATE}/{DRIVE} {frame} {'lr'[frame % 2]}")
    for name in ("image_02", "image_03", "velodyne_points"):
        if (drive / name).is_dir():
            (drive / name / "timestamps.txt").write_text("2011-09-26 13:02:25.964389445\n" * frames)
    (root / "splits").mkdir()
    (root / "splits" / "eigen.txt").write_text("\n".join(eigen) + "\n")
    (root / "splits" / "monodepth.txt").write_text("\n".join(monodepth))
    return root


def make_vkitti2(
    root: Path,
    frames: int = 3,
    size_px: tuple[int, int] = (40, 120),
    *,
    variations: tuple[str, ...] = ("Scene01/clone", "Scene01/fog", "Scene20/15-deg-left"),
    archives: tuple[str, str, str] = ("", "", ""),
) -> Path:
    """Write Virtual KITTI 2: JPEG images, depth in centimetres with 65535 for sky, intrinsics for each variation.

    `archives` are the folders of rgb, depth and textgt below the root.
    """
    rgb, depth, text = (root / archive for archive in archives)
    for variation in variations:
        table = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"]
        for frame in range(frames):
            for camera in range(2):
                depth_m = fakes.smooth_depth_m(size_px, frame + camera)
                table.append(f"{frame} {camera} {725.0087 + camera} 725.0087 620.5 187")
                folder = f"Camera_{camera}"
                fakes.write_image(
                    rgb / variation / "frames" / "rgb" / folder / f"rgb_{frame:05d}.jpg", fakes.image_of(depth_m)
                )
                units = (depth_m * 100).round().astype(np.uint16)
                units[: size_px[0] // 8] = 65535
                path = depth / variation / "frames" / "depth" / folder / f"depth_{frame:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(units).save(path)
        (text / variation).mkdir(parents=True, exist_ok=True)
        (text / variation / "intrinsic.txt").write_text("\n".join(table) + "\n")
    return root


TUM_START_S = 1305031102.175304  # of the first colour image of freiburg1_xyz
TUM_LAG_S = (-0.014897, 0.019026, 0.041000, 0.003000)
"""Delay of each depth image after its color image; the third is too late for a pair."""


def make_tum(root: Path, frames: int = 4, size_px: tuple[int, int] = (24, 32)) -> Path:
    """Write a TUM RGB-D sequence with comments, names and stamps as in its .tgz; `root` names the Kinect."""
    lists = {"rgb": ["# color images"], "depth": ["# depth maps"]}
    for rows in lists.values():
        rows += [f"# file: '{root.name}.bag'", "# timestamp filename"]
    for frame in range(frames):
        depth_m = fakes.smooth_depth_m(size_px, frame)
        stamp_s = TUM_START_S + 0.2 * frame
        for kind, stamp in {"rgb": stamp_s, "depth": stamp_s + TUM_LAG_S[frame % 4]}.items():
            path = root / kind / f"{stamp:.6f}.png"
            lists[kind].append(f"{stamp:.6f} {kind}/{path.name}")
            if kind == "rgb":
                fakes.write_image(path, fakes.image_of(depth_m))
            else:
                fakes.write_depth(path, fakes.sparse(depth_m), 1 / 5000)
    for kind, rows in lists.items():
        (root / f"{kind}.txt").write_text("\n".join(rows) + "\n")
    (root / "groundtruth.txt").write_text("# ground truth trajectory\n")
    (root / "accelerometer.txt").write_text("# accelerometer data\n")
    return root
