"""NYU Depth V2 in HDF5: the labeled MATLAB file, and FastDepth's copy with one file per frame.

Shape legend: N frames, H, W pixels.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import sha256_bytes
from ...errors import PipelineError
from ..base import Declared, Defaults, FileCamera, Sample
from ..intrinsics import Intrinsics
from ..readers.arrays import metres
from ..readers.hdf5 import Hdf5File, read_hdf5
from ..readers.images import LIMIT_PIXELS
from ..splits import Ids, checked_path, file_names, find_list_or_name, folder_names, rows

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LABELED = "nyu_depth_v2_labeled.mat"
FOCAL_PX = 518.8579
"""From the toolbox's calibration of the color camera, as in BTS's lists."""
CAMERA = FileCamera(Intrinsics(518.857901, 519.469611, 325.582449, 253.736166), (480, 640))
"""The color camera in camera_params.m of the authors' toolbox. Files of the data set hold no intrinsics."""
DEFAULTS = Defaults(view="full", bins="nyu", sigma_m=0.15, protocol="nyu_eigen", crop_px=(416, 544), rotate_deg=2.5)
"""Bins and sigma of the released TIE-KD configuration; crop and rotation of BTS."""
TRUTHS = {"filled": "depths", "raw": "rawDepths"}


class LabeledNyu(Declared):
    """The labeled file: `images` (N, 3, W, H) uint8, `depths` and `rawDepths` (N, W, H) float32 metres.

    MATLAB reverses the axes. Ids are numbers from 0001, as in NYU's `splits.mat`. An image's sha256 is that of its
    pixels, H * W * 3 bytes uint8 in C order. Raises PipelineError for a file with other arrays.
    """

    name = "nyu"
    defaults = DEFAULTS

    def __init__(self, root: Path, truth: str) -> None:
        self.root = root
        self.invalid = ()
        self.truth = truth
        self._file = Hdf5File(root / LABELED, "NYU file")
        count, channels, width, height = self._file.shape("images", 4)
        if channels != 3 or self._file.shape(TRUTHS[truth], 3) != (count, width, height):
            raise PipelineError(
                f"NYU file {self._file.path}: images {(count, channels, width, height)}, {TRUTHS[truth]} "
                f"{self._file.shape(TRUTHS[truth], 3)}; expected (N, 3, width, height) and (N, width, height)"
            )
        self.frames = count

    def samples(self, split: str) -> list[Sample]:
        """Return all frames for `all`, or those of ROOT/NAME.txt or a list file: one number from 1 per line.

        Raises PipelineError for a missing or empty split, and for a number that is repeated or beyond the file.
        """
        if split == "all" and not (self.root / "all.txt").is_file():
            numbers = list(range(1, self.frames + 1))
        else:
            numbers = self._listed(split)
        image_path = str(self._file.path)
        return [Sample(f"{number:04d}", image_path, image_path, FOCAL_PX) for number in numbers]

    def read_image(self, sample: Sample) -> tuple[NDArray[np.uint8], str]:
        """See `Source.read_image`; the sha256 is that of the pixels."""
        return _image(self._file.read("images", 4, int(sample.id) - 1), f"{sample.image_path} image {sample.id}")

    def read_intrinsics(self, sample: Sample, image_px: tuple[int, int]) -> Intrinsics | None:  # noqa: ARG002 - the protocol
        """Return the intrinsics of CAMERA."""
        return CAMERA.of_file(image_px)

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement. Raises PipelineError if damaged."""
        values = self._file.read(TRUTHS[self.truth], 3, int(sample.id) - 1)
        return metres(np.ascontiguousarray(values.T), 1.0, self.invalid)

    def _refuse_matlab_split(self, split: str) -> None:
        """Say how NYU's own splits.mat becomes lists, where a user has only that."""
        given = split.endswith(".mat")
        official = self.root / "splits.mat"
        if given or (split in {"train", "test"} and not (self.root / f"{split}.txt").is_file() and official.is_file()):
            path = split if given else official
            raise PipelineError(
                f"split {path}: MATLAB files are not read; write its numbers as text once, with scipy:\n"
                f"  python -c \"import numpy, scipy.io; m = scipy.io.loadmat('{path}'); "
                f"[numpy.savetxt(f'{self.root}/{{s}}.txt', numpy.sort(m[s + 'Ndxs'].ravel()), '%d') "
                "for s in ('train', 'test')]\""
            )

    def _listed(self, split: str) -> list[int]:
        self._refuse_matlab_split(split)
        path = find_list_or_name(split, self.root, f"`all`, or {self.root}/NAME.txt with one frame number per line")
        ids = Ids(path)
        numbers = []
        for line, row in rows(path):
            number = int(row) if re.fullmatch(r"\d{1,9}", row) else 0
            if not 1 <= number <= self.frames:
                raise PipelineError(
                    f"split {path} line {line}: {row[:200]!r}, expected a frame number from 1 to {self.frames}"
                )
            ids.add(f"{number:04d}", line)
            numbers.append(number)
        ids.check_not_empty()
        return numbers


class FastDepthNyu(Declared):
    """ROOT/train/SCENE/00001.h5 and ROOT/val/official/00001.h5: `rgb` (3, H, W) uint8, `depth` (H, W) float32 metres.

    Ids are paths without suffix. An image's sha256 is that of its pixels, H * W * 3 bytes uint8 in C order.
    """

    name = "nyu"
    defaults = DEFAULTS
    truth = "depth"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.invalid = ()

    def samples(self, split: str) -> list[Sample]:
        """Return the rows of `train`, `val`, a scene (`train/cafe_0001a`), ROOT/NAME.txt or a list file of ids.

        Raises PipelineError for a missing or empty split, a duplicate id, a path outside the root.
        """
        first, _, scene = split.partition("/")
        if first in {"train", "val"} and not (self.root / f"{split}.txt").is_file():
            folder = self.root / checked_path(split, "split")
            scenes = [split] if scene else [f"{split}/{name}" for name in folder_names(folder)]
            ids = [
                f"{name}/{file[:-3]}"
                for name in scenes
                for file in file_names(self.root / name)
                if file.endswith(".h5")
            ]
            if not ids:
                raise PipelineError(f"split {split!r}: no .h5 file below {folder}; expected {first}/SCENE/00001.h5")
        else:
            ids = self._listed(split)
        paths = [f"{self.root}/{sample_id}.h5" for sample_id in ids]
        return [Sample(sample_id, path, path, FOCAL_PX) for sample_id, path in zip(ids, paths, strict=True)]

    def read_image(self, sample: Sample) -> tuple[NDArray[np.uint8], str]:
        """See `Source.read_image`; the sha256 is that of the pixels."""
        values = read_hdf5(sample.image_path, "rgb", 3, "image")
        return _image(values.transpose(0, 2, 1), f"image {sample.image_path}")

    def read_intrinsics(self, sample: Sample, image_px: tuple[int, int]) -> Intrinsics | None:  # noqa: ARG002 - the protocol
        """Return the intrinsics of CAMERA."""
        return CAMERA.of_file(image_px)

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement. Raises PipelineError if damaged."""
        assert sample.truth_path is not None
        return metres(read_hdf5(sample.truth_path, "depth", 2, "depth"), 1.0, self.invalid)

    def _listed(self, split: str) -> list[str]:
        path = find_list_or_name(split, self.root, "`train`, `val`, or a scene like train/cafe_0001a")
        listed = Ids(path)
        ids = []
        for line, row in rows(path):
            sample_id = checked_path(row, f"split {path} line {line}").removesuffix(".h5")
            listed.add(sample_id, line)
            ids.append(sample_id)
        listed.check_not_empty()
        return ids


def is_labeled(root: Path) -> bool:
    """Whether a folder contains the labeled file."""
    return (root / LABELED).is_file()


def is_fast_depth(root: Path) -> bool:
    """Whether a folder contains scenes of FastDepth's copy."""
    for part in ("train", "val"):
        scenes = folder_names(root / part)
        if scenes and any(file.endswith(".h5") for file in file_names(root / part / scenes[0])):
            return True
    return False


def _image(values: NDArray[Any], where: str) -> tuple[NDArray[np.uint8], str]:
    """Convert planes (3, W, H) to an image (H, W, 3), and return it with the sha256 of its bytes."""
    if values.dtype != np.uint8 or values.shape[0] != 3 or values.size > 3 * LIMIT_PIXELS:
        raise PipelineError(f"{where}: {values.dtype} of shape {values.shape}, expected three planes of uint8")
    image = np.ascontiguousarray(values.transpose(2, 1, 0))
    return image, sha256_bytes(image.tobytes())
