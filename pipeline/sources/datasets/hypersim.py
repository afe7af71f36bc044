"""Hypersim as its archives unpack: rendered rooms of 768x1024, with distance to the camera for each pixel.

ROOT/ai_001_001/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg is the image: the makers' preview, which is
what most networks were trained on, and not their linear `final_hdf5`. Depth is made of
ROOT/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5, `dataset` (H, W) float: metres to the
camera's centre along each pixel's ray, NaN where the ray meets nothing.

All cameras are taken as pinholes of 60 degrees across, as Hypersim's README has it (886.81 px at 768x1024). Some scenes
were rendered with a tilted lens (its contrib/mikeroberts3000/metadata_camera_parameters.csv): their depth is a bit off.

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
from ..base import Defaults, ImageFiles, Sample, SourceKind
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
"""In the makers' repository, evermotion_dataset/analysis."""
PARTS = ("train", "val", "test")
COLUMNS = ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name")
SPLIT_BYTES = 2**24
ACROSS_RAD = math.pi / 3
WIDTH_PX = 1024


class HypersimSource(ImageFiles):
    """A Hypersim root. Raises PipelineError where `root` has no scenes, or a truth is asked for by name."""

    name = "hypersim"
    defaults = Defaults()
    truth = "depth"

    def __init__(self, root: Path, truth: str | None = None) -> None:
        if truth not in {None, "depth"}:
            raise PipelineError(f"source hypersim:{root}: truth {truth!r}, expected depth: leave the option out")
        self.root = root
        self.invalid = ()
        self._scenes = _scenes(root)
        if not self._scenes:
            near = [*root.absolute().parents[:3], *(root / name for name in folder_names(root)[:50])]
            hint = next((f"; {one} has some: give hypersim:{one}" for one in near if _scenes(one)), "")
            raise PipelineError(f"source hypersim:{root}: no scene ai_001_001/images/ below it{hint}")

    def samples(self, split: str) -> list[Sample]:
        """Rows of `all`, of a scene or a camera of it (`ai_001_001/cam_00`), of ROOT/NAME.txt, or of a list file: ids.

        `train`, `val` and `test` are those of SPLIT_FILE, as far as their scenes are on this disk. An id is
        `ai_001_001/cam_00/frame.0000`. Raises PipelineError for a missing or empty split, a malformed row, a duplicate
        id.
        """
        scene, _, camera = split.partition("/")
        if scene in self._scenes or (split == "all" and not (self.root / "all.txt").is_file()):
            ids = [one for name in (self._scenes if split == "all" else [scene]) for one in self._frames(name)]
            ids = [one for one in ids if not camera or one.split("/")[1] == camera]
            if not ids:
                raise PipelineError(
                    f"split {split!r}: no frame.0000.tonemap.jpg below {self.root}; fetch final_preview too"
                )
        elif (self.root / SPLIT_FILE).is_file() and not (self.root / f"{split}.txt").is_file() and scene in PARTS:
            ids = self._partition(split)
        else:
            ids = self._listed(split)
        return [self._sample(one) for one in ids]

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Depth (H, W) float32 metres along the optical axis, NaN where there is none.

        Raises PipelineError for a file that is missing or does not read.
        """
        assert sample.truth_path is not None
        depth_m = metres(read_hdf5(sample.truth_path, "dataset", 2, "depth"), 1.0, self.invalid)
        return self.upright(sample, planar_m(depth_m))

    def _sample(self, sample_id: str) -> Sample:
        scene, camera, frame = sample_id.split("/")
        images = f"{self.root}/{scene}/images/scene_{camera}"
        return Sample(
            sample_id,
            f"{images}_final_preview/{frame}.tonemap.jpg",
            f"{images}_geometry_hdf5/{frame}.depth_meters.hdf5",
            focal_px(WIDTH_PX),
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
                f"split {split!r}: {path} has no frame of it in the {len(self._scenes)} scenes that are here"
            )
        return ids

    def _listed(self, split: str) -> list[str]:
        path = find_list_or_name(
            split,
            self.root,
            f"`all`, a scene like {self._scenes[0]}, or with {SPLIT_FILE} in the root train, val or test",
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
    """Focal length of an image of so many columns: 886.81 of 1024."""
    return width_px / 2 / math.tan(ACROSS_RAD / 2)


def planar_m(distance_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depth along the optical axis (H, W) of distances (H, W) along each pixel's ray, all of them from the centre.

    A ray through the middle of a pixel (x, y) from the image's centre has the length sqrt(x^2 + y^2 + f^2) where it
    meets the image plane, and the depth f there (github.com/apple/ml-hypersim/issues/9).
    """
    height, width = distance_m.shape
    x = np.arange(width) - (width - 1) / 2
    y = np.arange(height)[:, None] - (height - 1) / 2
    focal = focal_px(width)
    share: NDArray[np.float64] = focal / np.sqrt(x**2 + y**2 + focal**2)
    return (distance_m * share).astype(np.float32)


def _scenes(root: Path) -> list[str]:
    return [name for name in folder_names(root) if re.fullmatch(SCENE, name) and (root / name / "images").is_dir()]


def _check_id(text: str, where: str) -> None:
    if not re.fullmatch(f"{SCENE}/{CAMERA}/{FRAME}", text, re.ASCII):
        raise PipelineError(f"{where}: {printable(text[:200])!r}, expected one like ai_001_001/cam_00/frame.0000")


def _table(path: Path) -> list[dict[str, str]]:
    try:
        text = read_bytes(str(path), "split", SPLIT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PipelineError(f"split {path}: byte {error.start} is not UTF-8; expected Hypersim's own table") from error
    table = csv.DictReader(io.StringIO(text), restval="")
    try:
        names = table.fieldnames or ()
        found = list(table) if set(COLUMNS) <= set(names) else None
    except csv.Error as error:
        raise PipelineError(f"split {path}: {error}; expected Hypersim's own table") from error
    if found is None:
        raise PipelineError(f"split {path}: columns {list(names)!r:.300}, expected {', '.join(COLUMNS)}")
    return found


SOURCE = SourceKind(
    HypersimSource,
    data_set="Hypersim (Roberts and others, Apple)",
    layout=(
        "ai_V_N/images/scene_cam_XX_final_preview/frame.IIII.tonemap.jpg and scene_cam_XX_geometry_hdf5/"
        f"frame.IIII.depth_meters.hdf5; perhaps {SPLIT_FILE}"
    ),
    splits=f"`train`, `val`, `test` of {SPLIT_FILE}; `all`, ai_V_N, ai_V_N/cam_XX; NAME of NAME.txt, or a list of ids",
    truth="rendered: metres to the camera's centre (HDF5, float), made depth along the optical axis; NaN = none",
    licence="CC BY-SA 3.0",
    defaults=HypersimSource.defaults,
)
