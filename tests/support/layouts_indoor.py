"""Tiny data sets in the exact layouts of NYU Depth V2 (three of them), DIODE and Hypersim.

Shape legend: N frames, H, W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import fakes
import h5py
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIZE_PX = (24, 32)
LABELED = "nyu_depth_v2_labeled.mat"
DIODE_SCANS = (
    "train/indoors/scene_00000/scan_00000",
    "val/indoors/scene_00019/scan_00183",
    "val/outdoor/scene_00022/scan_00193",
)
SPLIT_FILE = "metadata_images_split_scene_v1.csv"


def depth_m(number: int, size_px: tuple[int, int] = SIZE_PX) -> NDArray[np.float32]:
    """Return the truth of frame `number`, equal in all of these data sets."""
    return fakes.smooth_depth_m(size_px, number)


def with_hole(truth_m: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    """Return the truth with a corner of another value."""
    holed = truth_m.copy()
    holed[:3, :4] = value
    return holed


def make_nyu_labeled(
    root: Path, frames: int = 6, size_px: tuple[int, int] = SIZE_PX, chunks: str | None = "frame"
) -> Path:
    """Write ROOT/nyu_depth_v2_labeled.mat as MATLAB 7.3 does: 512 bytes before HDF5, axes reversed, gzip.

    Variables are those listed in nyu_depth_v2.html of the data set's site; texts are references, like cells.
    """
    root.mkdir(parents=True, exist_ok=True)
    height, width = size_px
    with h5py.File(root / LABELED, "w", userblock_size=512) as file:
        depths = np.stack([depth_m(number, size_px) for number in range(frames)])
        images = np.stack([fakes.image_of(frame_m) for frame_m in depths])
        raw = np.stack([with_hole(frame_m, 0) for frame_m in depths])

        def put(name: str, values: NDArray, matlab_class: str) -> None:
            storage = {} if chunks is None else {"chunks": (1, *values.shape[1:]), "compression": "gzip"}
            if chunks == "across":  # MATLAB chooses chunks by size, also across frames
                storage["chunks"] = (min(4, frames), *[max(1, side // 2 + 1) for side in values.shape[1:]])
            file.create_dataset(name, data=values, **storage).attrs["MATLAB_class"] = np.bytes_(matlab_class)

        put("images", images.transpose(0, 3, 2, 1), "uint8")
        put("depths", depths.transpose(0, 2, 1), "single")
        put("rawDepths", raw.transpose(0, 2, 1), "single")
        put("labels", np.zeros((frames, width, height), np.uint16), "uint16")
        text = file.create_dataset("#refs#/a", data=np.frombuffer("kitchen_0004".encode("utf-16-le"), np.uint16))
        references = np.array([[text.ref] * frames], dtype=h5py.ref_dtype)
        file.create_dataset("scenes", data=references).attrs["MATLAB_class"] = np.bytes_("cell")
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Wed Oct 17 19:25:21 2012 HDF5 schema 1.00 ."
    with (root / LABELED).open("r+b") as file:
        file.write(head.ljust(116) + bytes(8) + b"\x00\x02IM")
    return root


def make_nyu_pngs(root: Path, size_px: tuple[int, int] = SIZE_PX) -> Path:
    """Write the folders of BTS (its README): sync/ for training, official_splits/ of the labelled file, and lists.

    As in BTS's train_test_inputs, rows of the training list begin with a slash and those of the test list do not.
    """
    rows = {"nyudepthv2_train": [], "nyudepthv2_test": []}
    for number in range(6):
        test = number >= 4
        scene = "bathroom" if test else ("kitchen_0028b", "living_room_0019")[number % 2]
        folder = root / ("official_splits/test" if test else "sync") / scene
        fakes.write_image(folder / f"rgb_{number:05d}.jpg", fakes.image_of(depth_m(number, size_px)))
        fakes.write_depth(folder / f"sync_depth_{number:05d}.png", with_hole(depth_m(number, size_px), np.nan), 0.001)
        slash = "" if test else "/"
        row = f"{slash}{scene}/rgb_{number:05d}.jpg {slash}{scene}/sync_depth_{number:05d}.png 518.8579"
        rows["nyudepthv2_test" if test else "nyudepthv2_train"].append(row)
    more = root / "official_splits/train/bathroom"  # a kind of scene occurs in both halves of the labelled file
    fakes.write_image(more / "rgb_00009.jpg", fakes.image_of(depth_m(9, size_px)))
    fakes.write_depth(more / "sync_depth_00009.png", depth_m(9, size_px), 0.001)
    for name, lines in rows.items():
        (root / f"{name}_files_with_gt.txt").write_text("\n".join(lines) + "\n")
    return root


def make_fast_depth(root: Path, size_px: tuple[int, int] = SIZE_PX) -> Path:
    """Write FastDepth's nyudepthv2: `rgb` (3, H, W) uint8 and `depth` (H, W) float32, for its dataloader.py."""
    names = ["train/cafe_0001a/00001", "train/cafe_0001a/00003", "train/study_0008/00001", "val/official/00001"]
    for number, name in enumerate(names):
        path = root / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            truth_m = depth_m(number, size_px)
            file["rgb"] = fakes.image_of(truth_m).transpose(2, 0, 1)
            file["depth"] = truth_m
    return root


def make_diode(root: Path, size_px: tuple[int, int] = SIZE_PX) -> Path:
    """Write DIODE's folders (diode.py of its devkit); depth has a last axis of 1, masks are floats 0 and 1."""
    for number, scan in enumerate(DIODE_SCANS):
        scene = scan.split("/")[1]
        name = f"{scan[-16:-11]}_{scan[-5:]}_{scene}_000_0{number}0"
        truth_m = depth_m(number, size_px)
        fakes.write_image(root / scan / f"{name}.png", fakes.image_of(truth_m))
        mask = np.ones(size_px)
        mask[:3, :4] = 0
        np.save(root / scan / f"{name}_depth.npy", truth_m[..., None])
        np.save(root / scan / f"{name}_depth_mask.npy", mask)
    return root


def make_hypersim(root: Path, size_px: tuple[int, int] = SIZE_PX) -> Path:
    """Write Hypersim's folders (its README), with distances as float16, and its table of the split."""
    rows = ["scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name"]
    number = 0
    for scene, camera, part, frames in [
        ("ai_001_001", "cam_00", "train", 3),
        ("ai_001_001", "cam_01", "train", 1),
        ("ai_003_010", "cam_00", "test", 2),
    ]:
        images = root / scene / "images"
        for frame in range(frames):
            truth_m = depth_m(number, size_px)
            name = f"frame.{frame:04d}"
            fakes.write_image(images / f"scene_{camera}_final_preview/{name}.tonemap.jpg", fakes.image_of(truth_m))
            folder = images / f"scene_{camera}_geometry_hdf5"
            folder.mkdir(exist_ok=True)
            with h5py.File(folder / f"{name}.depth_meters.hdf5", "w") as file:
                distance_m = with_hole(truth_m * ray_lengths(size_px), np.nan).astype(np.float16)
                file.create_dataset("dataset", data=distance_m, compression="gzip")
            rows.append(f"{scene},{camera},{frame},True,,{part}")
            number += 1
        rows.append(f"{scene},{camera},{frames},False,CONTENT FLAGGED FOR REMOVAL,")
    rows.append("ai_055_010,cam_00,0,True,,train")  # a scene that was not downloaded
    (root / SPLIT_FILE).write_text("\n".join(rows) + "\n")
    return root


def ray_lengths(size_px: tuple[int, int]) -> NDArray[np.float64]:
    """Return the ray lengths (H, W) to the plane at depth 1, for a camera with a 60 degree field of view."""
    height, width = size_px
    across = 2 * np.tan(np.pi / 6)  # visible width of the plane at depth 1
    lengths = np.empty(size_px)
    for row in range(height):
        for column in range(width):
            right = ((column + 0.5) / width - 0.5) * across
            down = ((row + 0.5) / height - 0.5) * across * height / width
            lengths[row, column] = np.linalg.norm([right, down, 1.0])
    return lengths
