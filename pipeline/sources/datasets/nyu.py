"""NYU Depth V2 in its three common layouts, chosen by the files below the root.

PNGs of BTS and AdaBins: ROOT/sync/SCENE/{rgb_00045.jpg, sync_depth_00045.png} and
ROOT/official_splits/{train,test}/SCENE/, or scenes directly below ROOT; 16 bits, metres = value / 1000,
0 = no measurement. Lists have rows
`/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579`. See `nyu_hdf5` for the other two.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import PipelineError
from ..base import ImageFiles, Sample, SourceKind
from ..frame_pairs import check_pair, listed_pairs
from ..readers.images import read_depth_png_m
from ..splits import Ids, checked_path, file_names, find_list_or_name, folder_names, without_suffix
from .nyu_hdf5 import CAMERA, DEFAULTS, FOCAL_PX, LABELED, TRUTHS, FastDepthNyu, LabeledNyu, is_fast_depth, is_labeled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..base import FileCamera, Source

METRES_PER_UNIT = 0.001
BELOW = ("sync", "official_splits/test", "official_splits/train", "")
"""Folders of scenes below a root."""


class PngNyu(ImageFiles):
    """The PNGs of BTS and AdaBins; see the module docstring."""

    name = "nyu"
    defaults = DEFAULTS
    truth = "sync_depth"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.invalid = ()
        self._scenes: dict[str, list[str]] = {}

    def samples(self, split: str) -> list[Sample]:
        """Return the rows of ROOT/NAME.txt or a list; `test` and `train` without a list are all of official_splits.

        An id is the image's path in the list without suffix. Raises PipelineError for a missing or empty split, a
        malformed row, a duplicate id, a path outside the root, a missing scene.
        """
        official = self.root / "official_splits" / split
        if split in {"train", "test"} and not (self.root / f"{split}.txt").is_file() and official.is_dir():
            return self._official(official)
        path = find_list_or_name(split, self.root, "`test` or `train` if the root has official_splits/")
        ids = Ids(path)
        samples = []
        for line, row, check in listed_pairs(path):
            where = f"split {path} line {line}"
            image, truth, focal_px = _parse_row(row, where)
            if check and truth is not None:
                check_pair(image, truth, where)
            sample_id = without_suffix(image)
            if sample_id is None:
                raise PipelineError(f"{where}: image {image!r}, expected a name that ends in .jpg or .png")
            ids.add(sample_id, line)
            below = self._folder(image, where)
            samples.append(Sample(sample_id, f"{below}/{image}", f"{below}/{truth}" if truth else None, focal_px))
        ids.check_not_empty()
        return samples

    def camera(self, sample: Sample) -> FileCamera | None:
        """Return CAMERA, or the list's focal length alone if that is another."""
        return CAMERA if sample.focal_px == FOCAL_PX else super().camera(sample)

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement; None if the row has `None`.

        Raises PipelineError for a file that is missing or not a 16-bit PNG.
        """
        if sample.truth_path is None:
            return None
        return self.upright(sample, read_depth_png_m(sample.truth_path, METRES_PER_UNIT, self.invalid))

    def _official(self, folder: Path) -> list[Sample]:
        samples = []
        for scene in folder_names(folder):
            names = file_names(folder / scene)
            depths = {name for name in names if name.startswith("sync_depth_")}
            for name in names:
                stem = without_suffix(name)
                if stem and stem.startswith("rgb_"):
                    depth = f"sync_depth_{stem[4:]}.png"
                    truth = f"{folder}/{scene}/{depth}" if depth in depths else None
                    samples.append(Sample(f"{scene}/{stem}", f"{folder}/{scene}/{name}", truth, FOCAL_PX))
        if not samples:
            raise PipelineError(f"split {folder.name!r}: no images below {folder}; expected SCENE/rgb_00045.jpg")
        return samples

    def _folder(self, image: str, where: str) -> str:
        """Return the folder that an image's path is relative to, cached per scene."""
        scene = image.partition("/")[0]
        if scene not in self._scenes:
            folders = [self.root / below for below in BELOW]
            self._scenes[scene] = [str(folder) for folder in folders if (folder / scene).is_dir()]
        candidates = self._scenes[scene]
        if len(candidates) > 1:
            candidates = [folder for folder in candidates if Path(folder, image).is_file()] or candidates
        if not candidates:
            raise PipelineError(
                f"{where}: no folder {scene!r} in {self.root}, its sync/ or its official_splits/{{test,train}}/; "
                "use the root of the scenes, or remove the row"
            )
        return candidates[0]


def _parse_row(row: str, where: str) -> tuple[str, str | None, float]:
    """Parse one line to (image, truth or None, focal length)."""
    columns = row.split()
    if len(columns) != 3:
        raise PipelineError(f"{where}: {len(columns)} columns in {row[:200]!r}, expected 3: rgb depth focal_px")
    # Paths in lists of the training set begin with a slash for the root, those of the test set do not.
    image, truth = (text.removeprefix("/") for text in columns[:2])
    try:
        focal_px = float(columns[2])
    except ValueError:
        focal_px = math.nan
    if not (math.isfinite(focal_px) and focal_px > 0):
        raise PipelineError(f"{where}: focal length must be a positive number of pixels, got {columns[2]!r}")
    return checked_path(image, where), None if truth == "None" else checked_path(truth, where), focal_px


def open_nyu(root: Path, truth: str | None = None) -> Source:
    """Open the layout below `root`; `truth` of `filled` or `raw` selects the labeled file.

    Raises PipelineError for a root without any of the layouts, and for another truth.
    """
    if truth not in {None, *TRUTHS}:
        raise PipelineError(
            f"source nyu:{root}: truth {truth!r}, expected one of {', '.join(TRUTHS)}; correct or remove `truth`"
        )
    if truth is None and _is_pngs(root):  # BTS's script keeps the labeled file in the same folder
        return PngNyu(root)
    if is_labeled(root):
        return LabeledNyu(root, truth or "filled")
    if truth is not None:
        raise PipelineError(
            f"source nyu:{root}: truth {truth!r} needs {root / LABELED}; download it, or remove `truth`"
        )
    if is_fast_depth(root):
        return FastDepthNyu(root)
    nearby = [*root.absolute().parents[:2], *(root / name for name in folder_names(root)[:50])]
    hint = next((f"; did you mean nyu:{folder}?" for folder in nearby if _is_root(folder)), "")
    raise PipelineError(
        f"source nyu:{root}: no NYU Depth V2 root; expected {LABELED}, or sync/ or official_splits/ or "
        f"SCENE/rgb_00045.jpg, or train/SCENE/00001.h5 below it{hint}"
    )


def _is_root(root: Path) -> bool:
    return is_labeled(root) or _is_pngs(root) or is_fast_depth(root)


def _is_pngs(root: Path) -> bool:
    if (root / "sync").is_dir() or (root / "official_splits").is_dir():
        return True
    return any(
        file.startswith(("rgb_", "sync_depth_")) for name in folder_names(root)[:3] for file in file_names(root / name)
    )


SOURCE = SourceKind(
    open_nyu,
    data_set="NYU Depth V2 (Silberman, Hoiem, Kohli, Fergus)",
    layout=(
        f"{LABELED}; or as in BTS and AdaBins: sync/SCENE/rgb_N.jpg and "
        "sync_depth_N.png, official_splits/{train,test}/SCENE/...; or as in FastDepth: train/SCENE/N.h5, "
        "val/official/N.h5"
    ),
    splits=(
        "labeled file: `all`, or a list of one-based frame numbers; PNGs: a list file "
        "with `rgb depth focal_px` per line, or `train` and `test` of official_splits/; .h5: `train`, `val`, "
        "train/SCENE, or a list of ids"
    ),
    truth=(
        "labeled file: `filled` (default) or `raw` (with the sensor's holes, as official_splits/), "
        "float32 metres; PNGs: 16 bits, metres = value / 1000; .h5: float32 metres; 0 = none"
    ),
    licence="not stated by its authors",
    defaults=DEFAULTS,
    intrinsics="the toolbox's color camera (480x640 px: 518.86 519.47 325.58 253.74); of PNGs, another focal length in "
    "the list instead",
)
