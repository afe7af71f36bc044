"""Virtual KITTI 2: SceneXX/VARIATION/frames/rgb/Camera_N/rgb_00000.jpg and frames/depth/Camera_N/depth_00000.png.

Depth is z along the camera's axis in centimetres, 16-bit PNG; 65535 (655.35 m) is the sky, which has no depth.
Frames are 375x1242. The three archives (rgb, depth, textgt) may share a folder or have one each: see RGB_BELOW. Focal
lengths come from SceneXX/VARIATION/intrinsic.txt of textgt, if it exists.

An id is the image's path from SceneXX on, without suffix.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from ...errors import PipelineError
from ..base import FileCamera, ImageFiles, Sample, SourceKind
from ..intrinsics import Intrinsics, checked
from ..readers.images import IMAGE_SUFFIXES, read_depth_png_m, read_image_with_sha256
from ..splits import Ids, file_names, find_list_or_name, folder_names, rows, without_suffix
from .kitti import KittiSource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

METRES_PER_UNIT = 0.01
LEFT, RIGHT, BASELINE_M = "/Camera_0/", "/Camera_1/", 0.532725
"""Folders of the cameras of a pair, and their distance as its authors state it."""
SIZE_PX = (375, 1242)
SKY = 65535
SCENE, VARIATION, CAMERA = r"Scene\d\d", r"[A-Za-z0-9][\w-]*", r"Camera_\d"
RGB_BELOW = ("", "vkitti_2.0.3_rgb", "rgb")
DEPTH_BELOW = ("", "vkitti_2.0.3_depth", "depth")
TEXT_BELOW = ("", "vkitti_2.0.3_textgt", "textgt")


class _Row(NamedTuple):
    scene: str
    variation: str
    camera: str
    frame: str
    """Five digits."""
    suffix: str

    @property
    def id(self) -> str:
        return f"{self.scene}/{self.variation}/frames/rgb/{self.camera}/rgb_{self.frame}"


class VirtualKittiSource(ImageFiles):
    """A Virtual KITTI 2 root.

    Raises PipelineError for a root without scenes of images, or a truth other than `depth`.
    """

    name = "vkitti2"
    defaults = KittiSource.defaults

    def __init__(self, root: Path, truth: str | None = None) -> None:
        self.root = root
        if truth not in {None, "depth"}:
            raise PipelineError(f"source vkitti2:{root}: truth {truth!r}, expected depth; remove `truth`")
        self.truth = "depth"
        self.invalid = ()
        folders = [root / below for below in RGB_BELOW if _has_images(root / below)]
        if not folders:
            raise PipelineError(_wrong_root(root))
        self.images = folders[0]
        self._cameras: dict[tuple[str, str], dict[tuple[int, int], Intrinsics]] = {}

    def samples(self, split: str) -> list[Sample]:
        """Return the rows of `all`, `Scene01`, `clone`, `Camera_0`, several joined by `/`, or a list of image paths.

        An image without a depth file has no ground truth. Raises PipelineError for a missing or empty split, a
        malformed row, a duplicate image.
        """
        names = set() if split == "all" else set(split.split("/"))
        samples = self._samples(self._below(names))
        if samples:
            return samples
        if split == "all":
            raise PipelineError(
                f"source vkitti2:{self.root}: no image below {self.images}; expected "
                "Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg"
            )
        path = find_list_or_name(
            split, self.root, f"`all`, a scene or a variation of it: {', '.join(self._variations())}"
        )
        return self._samples(_listed(path))

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN in the sky; None if the row has none.

        Raises PipelineError for a file that is missing or not a 16-bit PNG.
        """
        if sample.truth_path is None:
            return None
        depth_m = read_depth_png_m(sample.truth_path, METRES_PER_UNIT, (SKY, *(self.invalid or ())))
        return self.upright(sample, depth_m)

    def camera(self, sample: Sample) -> FileCamera | None:
        """Return the camera of a row of intrinsic.txt. Raises PipelineError as `samples`."""
        row = _parse_row(f"{sample.id}.jpg", "id")
        camera = self._cameras_of(row.scene, row.variation).get((int(row.frame), int(row.camera[-1])))
        return None if camera is None else FileCamera(camera, SIZE_PX)

    def read_right(self, sample: Sample) -> NDArray[np.uint8]:
        """See `stereo.StereoSource`."""
        before, _, after = sample.image_path.rpartition(LEFT)
        return read_image_with_sha256(f"{before}{RIGHT}{after}")[0]

    def baseline_m(self, sample: Sample) -> float | None:
        """See `stereo.StereoSource`."""
        return BASELINE_M if LEFT in sample.image_path else None

    def _variations(self) -> list[str]:
        return [
            f"{scene}/{variation}" for scene in _scenes(self.images) for variation in folder_names(self.images / scene)
        ]

    def _below(self, names: Collection[str]) -> Iterator[_Row]:
        """Yield all images on disk whose path contains all `names`, sorted."""
        for scene in _scenes(self.images):
            for variation in folder_names(self.images / scene):
                frames = self.images / scene / variation / "frames" / "rgb"
                for camera in folder_names(frames):
                    if not (re.fullmatch(VARIATION, variation) and re.fullmatch(CAMERA, camera)):
                        continue
                    if {scene, variation, camera}.issuperset(names):
                        for file in file_names(frames / camera):
                            stem = without_suffix(file)
                            if stem is not None and re.fullmatch(r"rgb_\d{5}", stem):
                                yield _Row(scene, variation, camera, stem[-5:], file[len(stem) :])

    def _samples(self, listed: Iterable[_Row]) -> list[Sample]:
        depths: dict[tuple[str, str, str], tuple[str, set[str]]] = {}
        samples = []
        for row in listed:
            folder = row.scene, row.variation, row.camera
            if folder not in depths:
                depths[folder] = self._depths(*folder)
            depth_folder, files = depths[folder]
            depth = f"depth_{row.frame}.png"
            camera = self._cameras_of(*folder[:2]).get((int(row.frame), int(row.camera[-1])))
            truth_path = f"{depth_folder}/{depth}" if depth in files else None
            samples.append(Sample(row.id, f"{self.images}/{row.id}{row.suffix}", truth_path, camera and camera.fx_px))
        return samples

    def _depths(self, scene: str, variation: str, camera: str) -> tuple[str, set[str]]:
        """Return (folder, file names) of a camera's depth."""
        for below in DEPTH_BELOW:
            folder = self.root / below / scene / variation / "frames" / "depth" / camera
            files = file_names(folder)
            if files:
                return str(folder), set(files)
        return "", set()

    def _cameras_of(self, scene: str, variation: str) -> dict[tuple[int, int], Intrinsics]:
        """Return (frame, camera) -> intrinsics, empty without the file. Raises PipelineError for a malformed row."""
        if (scene, variation) not in self._cameras:
            paths = [self.root / below / scene / variation / "intrinsic.txt" for below in TEXT_BELOW]
            path = next((path for path in paths if path.exists()), None)
            # After a header: frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]
            parsed = [] if path is None else [(f"{path} line {line}", row) for line, row in rows(path) if line > 1]
            self._cameras[scene, variation] = dict(_parse_intrinsic(row, where) for where, row in parsed)
        return self._cameras[scene, variation]


def _parse_intrinsic(row: str, where: str) -> tuple[tuple[int, int], Intrinsics]:
    """Parse one line to ((frame, camera), intrinsics)."""
    match = re.fullmatch(r"(\d{1,9})\s+(\d)((?:\s+\S{1,40}){4})", row, re.ASCII)
    try:
        camera = Intrinsics(*map(float, match[3].split())) if match else None
        if match and camera is not None and all(map(math.isfinite, camera)):
            return (int(match[1]), int(match[2])), checked(camera, SIZE_PX, where)
    except ValueError:
        pass
    raise PipelineError(
        f"{where}: {row[:200]!r}, expected `frame camera fx fy cx cy` as in 0 0 725.0087 725.0087 620.5 187; unpack "
        "vkitti_2.0.3_textgt.tar.gz again"
    )


def _listed(path: Path) -> Iterator[_Row]:
    ids = Ids(path)
    for line, text in rows(path):
        row = _parse_row(text, f"split {path} line {line}")
        ids.add(row.id, line)
        yield row
    ids.check_not_empty()


def _parse_row(text: str, where: str) -> _Row:
    """Parse one line of a list: an image's path from its scene on."""
    match = re.fullmatch(rf"({SCENE})/({VARIATION})/frames/rgb/({CAMERA})/rgb_(\d{{5}})(\.\w+)", text, re.ASCII)
    if not match or match[5].lower() not in IMAGE_SUFFIXES:
        raise PipelineError(
            f"{where}: {text[:200]!r}, expected an image path such as Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg"
        )
    return _Row(*match.groups())


def _scenes(folder: Path) -> list[str]:
    return [name for name in folder_names(folder) if re.fullmatch(SCENE, name, re.ASCII)]


def _has_images(folder: Path) -> bool:
    return any(
        (folder / scene / variation / "frames" / "rgb").is_dir()
        for scene in _scenes(folder)
        for variation in folder_names(folder / scene)
    )


def _wrong_root(root: Path) -> str:
    """Message for a root without scenes, with the folder to use instead."""
    here, names = root.resolve(), folder_names(root)
    if "frames" in names:
        advice = f"this is one variation, use {here.parent.parent}"
    elif re.fullmatch(SCENE, here.name):
        advice = f"this is one scene, use {here.parent} and the scene as `split`"
    elif _scenes(root):
        advice = "its scenes have no frames/rgb, unpack vkitti_2.0.3_rgb.tar there too"
    else:
        below = next((name for name in names if any(_has_images(root / name / part) for part in RGB_BELOW)), None)
        advice = f"use {root / below}" if below else "unpack vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar there"
    folders = ", ".join(f"{part}/" for part in RGB_BELOW[1:])
    return f"source vkitti2:{root}: no SceneXX/VARIATION/frames/rgb in the root or its {folders}; {advice}"


SOURCE = SourceKind(
    VirtualKittiSource,
    data_set="Virtual KITTI 2 (Cabon, Murray and Humenberger, NAVER LABS Europe)",
    layout="SceneXX/VARIATION/frames/{rgb,depth}/Camera_N/{rgb_00000.jpg,depth_00000.png}, optional "
    "SceneXX/VARIATION/intrinsic.txt; each archive may be in its own vkitti_2.0.3_{rgb,depth,textgt}/",
    splits="`all`, `Scene01`, `clone`, `Scene01/clone`, `clone/Camera_0`; NAME of NAME.txt or a list file with one "
    "image path per line",
    truth="rendered: 16-bit PNG, centimetres along the camera's axis, 65535 = sky, no depth",
    licence="CC BY-NC-SA 3.0",
    defaults=VirtualKittiSource.defaults,
    intrinsics="intrinsic.txt of textgt, if it is there",
)
