"""Hypersim as its archives unpack: rendered 768x1024 rooms with the distance to the camera of each pixel.

The image is ROOT/ai_001_001/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg, the preview that most networks
were trained on, not the linear `final_hdf5`. Depth is computed from
ROOT/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5, `dataset` (H, W) float: metres to the
camera center along each pixel's ray, NaN where the ray hits nothing.

All cameras are treated as pinholes with a horizontal field of view of 60 degrees, as in Hypersim's README (886.81 px at
768x1024). Depth of scenes rendered with a tilted lens (contrib/mikeroberts3000/metadata_camera_parameters.csv there) is
slightly off.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import csv
import io
import math
import re
from typing import TYPE_CHECKING

import numpy as np

from ...common.fileio import printable
from ...errors import PipelineError
from ..base import Defaults, FileCamera, ImageFiles, Sample, SourceKind
from ..intrinsics import Intrinsics
from ..readers.arrays import metres
from ..readers.hdf5 import read_hdf5
from ..readers.images import read_bytes
from ..splits import Ids, file_names, find_list_or_name, folder_names, rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SCENE, CAMERA, FRAME = r"ai_\d{3}_\d{3}", r"cam_\d{2}", r"frame\.\d{4}"
SPLIT_FILE = "metadata_images_split_scene_v1.csv"
"""From evermotion_dataset/analysis of the authors' repository."""
PARTS = ("train", "val", "test")
COLUMNS = ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name")
SPLIT_BYTES = 2**24
FIELD_OF_VIEW_RAD = math.pi / 3
SIZE_PX = (768, 1024)


class HypersimSource(ImageFiles):
    """A Hypersim root. Raises PipelineError for a root without scenes, or a truth other than `depth`."""

    name = "hypersim"
    defaults = Defaults()
    truth = "depth"

    def __init__(self, root: Path, truth: str | None = None) -> None:
        if truth not in {None, "depth"}:
            raise PipelineError(f"source hypersim:{root}: truth {truth!r}, expected depth; remove `truth`")
        self.root = root
        self.invalid = ()
        self._scenes = _scenes(root)
        if not self._scenes:
            nearby = [*root.absolute().parents[:3], *(root / name for name in folder_names(root)[:50])]
            hint = next((f"; did you mean hypersim:{folder}?" for folder in nearby if _scenes(folder)), "")
            raise PipelineError(f"source hypersim:{root}: no scenes; expected ai_001_001/images/ below the root{hint}")

    def samples(self, split: str) -> list[Sample]:
        """Return the rows of `all`, a scene, a camera (`ai_001_001/cam_00`), ROOT/NAME.txt, or a list file of ids.

        `train`, `val` and `test` are those of SPLIT_FILE, limited to the scenes below the root. An id is
        `ai_001_001/cam_00/frame.0000`. Raises PipelineError for a missing or empty split, a malformed row, a duplicate
        id.
        """
        scene, _, camera = split.partition("/")
        if scene in self._scenes or (split == "all" and not (self.root / "all.txt").is_file()):
            scenes = self._scenes if split == "all" else [scene]
            ids = [sample_id for name in scenes for sample_id in self._frames(name)]
            ids = [sample_id for sample_id in ids if not camera or sample_id.split("/")[1] == camera]
            if not ids:
                raise PipelineError(
                    f"split {split!r}: no frame.0000.tonemap.jpg below {self.root}; download final_preview too"
                )
        elif (self.root / SPLIT_FILE).is_file() and not (self.root / f"{split}.txt").is_file() and scene in PARTS:
            ids = self._partition(split)
        else:
            ids = self._listed(split)
        return [self._sample(sample_id) for sample_id in ids]

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return depth (H, W) float32 metres along the optical axis, NaN where there is none.

        Raises PipelineError for a missing or damaged file.
        """
        assert sample.truth_path is not None
        depth_m = metres(read_hdf5(sample.truth_path, "dataset", 2, "depth"), 1.0, self.invalid)
        return self.upright(sample, planar_m(depth_m))

    def camera(self, sample: Sample) -> FileCamera:  # noqa: ARG002 - as `ImageFiles`
        """Return the camera that all images share, centered; a tilted lens of some scenes is not in it."""
        height, width = SIZE_PX
        focal = focal_px(width)
        return FileCamera(Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2), SIZE_PX)

    def _sample(self, sample_id: str) -> Sample:
        scene, camera, frame = sample_id.split("/")
        images = f"{self.root}/{scene}/images/scene_{camera}"
        return Sample(
            sample_id,
            f"{images}_final_preview/{frame}.tonemap.jpg",
            f"{images}_geometry_hdf5/{frame}.depth_meters.hdf5",
            focal_px(SIZE_PX[1]),
        )

    def _frames(self, scene: str) -> Iterator[str]:
        for folder in folder_names(self.root / scene / "images"):
            match = re.fullmatch(rf"scene_({CAMERA})_final_preview", folder)
            for name in file_names(self.root / scene / "images" / folder) if match else ():
                if re.fullmatch(rf"{FRAME}\.tonemap\.jpg", name):
                    yield f"{scene}/{match[1]}/{name.removesuffix('.tonemap.jpg')}"  # type: ignore[index]

    def _partition(self, split: str) -> list[str]:
        path = self.root / SPLIT_FILE
        ids = []
        for number, row in enumerate(_table(path), start=2):
            if row["split_partition_name"] != split or row["included_in_public_release"] != "True":
                continue
            sample_id = f"{row['scene_name']}/{row['camera_name']}/frame.{row['frame_id']:0>4}"
            _check_id(sample_id, f"split {path} line {number}")
            if row["scene_name"] in self._scenes:
                ids.append(sample_id)
        if not ids:
            raise PipelineError(
                f"split {split!r}: {path} lists none of the {len(self._scenes)} scenes here; download its scenes"
            )
        return ids

    def _listed(self, split: str) -> list[str]:
        path = find_list_or_name(
            split,
            self.root,
            f"`all`, a scene like {self._scenes[0]}, or train, val or test if the root has {SPLIT_FILE}",
        )
        listed = Ids(path)
        ids = []
        for line, row in rows(path):
            _check_id(row, f"split {path} line {line}")
            listed.add(row, line)
            ids.append(row)
        listed.check_not_empty()
        return ids


def focal_px(width_px: int) -> float:
    """Return the focal length of an image of this width: 886.81 for 1024."""
    return width_px / 2 / math.tan(FIELD_OF_VIEW_RAD / 2)


def planar_m(distance_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return depth along the optical axis (H, W) for distances (H, W) to the camera center.

    The ray of a pixel at (x, y) from the image center has length sqrt(x^2 + y^2 + f^2) and depth f at the image plane
    (github.com/apple/ml-hypersim/issues/9).
    """
    height, width = distance_m.shape
    x = np.arange(width) - (width - 1) / 2
    y = np.arange(height)[:, None] - (height - 1) / 2
    focal = focal_px(width)
    depth_per_distance: NDArray[np.float64] = focal / np.sqrt(x**2 + y**2 + focal**2)
    return (distance_m * depth_per_distance).astype(np.float32)


def _scenes(root: Path) -> list[str]:
    return [name for name in folder_names(root) if re.fullmatch(SCENE, name) and (root / name / "images").is_dir()]


def _check_id(text: str, where: str) -> None:
    if not re.fullmatch(f"{SCENE}/{CAMERA}/{FRAME}", text, re.ASCII):
        raise PipelineError(f"{where}: {printable(text[:200])!r}, expected an id such as ai_001_001/cam_00/frame.0000")


def _table(path: Path) -> list[dict[str, str]]:
    try:
        text = read_bytes(str(path), "split", SPLIT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"split {path}: byte {error.start} is not UTF-8; download Hypersim's table again"
        ) from error
    table = csv.DictReader(io.StringIO(text), restval="")
    try:
        names = table.fieldnames or ()
        table_rows = list(table) if set(COLUMNS) <= set(names) else None
    except csv.Error as error:
        raise PipelineError(f"split {path}: {error}; download Hypersim's table again") from error
    if table_rows is None:
        raise PipelineError(f"split {path}: columns {list(names)!r:.300}, expected {', '.join(COLUMNS)}")
    return table_rows


SOURCE = SourceKind(
    HypersimSource,
    data_set="Hypersim (Roberts et al., Apple)",
    layout=(
        "ai_V_N/images/scene_cam_XX_final_preview/frame.IIII.tonemap.jpg and scene_cam_XX_geometry_hdf5/"
        f"frame.IIII.depth_meters.hdf5; optional {SPLIT_FILE}"
    ),
    splits=f"`train`, `val`, `test` of {SPLIT_FILE}; `all`, ai_V_N, ai_V_N/cam_XX; NAME of NAME.txt, or a list of ids",
    truth="rendered: metres to the camera center (HDF5, float), converted to depth along the optical axis; NaN = none",
    licence="CC BY-SA 3.0",
    defaults=HypersimSource.defaults,
    intrinsics="a field of view of 60 degrees, centered, as in Hypersim's README (886.81 px)",
)
