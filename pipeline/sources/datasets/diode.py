"""DIODE as its archives unpack: 768x1024 images with laser depth, indoors and outdoors.

ROOT/{train,val}/{indoors,outdoor}/scene_00019/scan_00183/00019_00183_indoors_000_010.png, with `_depth.npy`
(768, 1024, 1) float32 metres along the optical axis, and `_depth_mask.npy` (768, 1024), 0 without a value. Names and
camera are those of the authors' devkit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import PipelineError
from ..base import Defaults, FileCamera, ImageFiles, Sample, SourceKind
from ..intrinsics import Intrinsics
from ..readers.arrays import DTYPES, metres, read_array
from ..splits import Ids, checked_path, file_names, find_list_or_name, folder_names, rows, without_suffix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PARTS = ("train", "val", "test")
PLACES = ("indoors", "outdoor")
SPLITS = "a folder like train, val, val/indoors or val/indoors/scene_00019"
DEPTH, MASK = "_depth.npy", "_depth_mask.npy"
CAMERA = FileCamera(Intrinsics(886.81, 927.06, 512.0, 384.0), (768, 1024))
"""From intrinsics.txt of the devkit; the same for all images."""
MASK_DTYPES = (*DTYPES, "bool", "uint8", "int32", "int64")


class DiodeSource(ImageFiles):
    """A DIODE root. Raises PipelineError for another root, or a truth other than `depth`."""

    name = "diode"
    defaults = Defaults()
    truth = "depth"

    def __init__(self, root: Path, truth: str | None = None) -> None:
        if truth not in {None, "depth"}:
            raise PipelineError(f"source diode:{root}: truth {truth!r}, expected depth; remove `truth`")
        if not _is_root(root):
            nearby = [*root.absolute().parents[:4], *(root / name for name in folder_names(root)[:50])]
            hint = next((f"; did you mean diode:{folder}?" for folder in nearby if _is_root(folder)), "")
            raise PipelineError(f"source diode:{root}: no train/ or val/ with indoors/ or outdoor/ below it{hint}")
        self.root = root
        self.invalid = ()

    def samples(self, split: str) -> list[Sample]:
        """Return the sorted rows of a folder below the root, or of ROOT/NAME.txt or a list file of image paths.

        An id is the image's path without suffix. An image without a depth file has no ground truth. Raises
        PipelineError for a missing or empty split, a duplicate id, a path outside the root.
        """
        if split.partition("/")[0] in PARTS and not (self.root / f"{split}.txt").is_file():
            samples = [sample for scan in self._scans(checked_path(split, "split")) for sample in self._scan(scan)]
            if not samples:
                raise PipelineError(f"split {split!r}: no image below {self.root / split}; expected {SPLITS}")
            return samples
        path = find_list_or_name(split, self.root, SPLITS)
        ids = Ids(path)
        scans: dict[str, dict[str, Sample]] = {}
        samples = []
        for line, row in rows(path):
            where = f"split {path} line {line}"
            sample_id = without_suffix(checked_path(row, where)) or row
            scan = sample_id.rpartition("/")[0]
            if scan not in scans:
                scans[scan] = {sample.id: sample for sample in self._scan(scan)}
            if sample_id not in scans[scan]:
                raise PipelineError(
                    f"{where}: image {self.root / sample_id}.png is missing; remove the row, or download the scan"
                )
            ids.add(sample_id, line)
            samples.append(scans[scan][sample_id])
        ids.check_not_empty()
        return samples

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement; None if the row has none.

        Raises PipelineError for depth or a mask that is missing or damaged, or of different sizes.
        """
        if sample.truth_path is None:
            return None
        depth_m = metres(read_array(Path(sample.truth_path), "depth"), 1.0, self.invalid)
        path = Path(sample.truth_path.removesuffix(DEPTH) + MASK)
        mask = read_array(path, "mask", MASK_DTYPES)
        if mask.shape != depth_m.shape:
            raise PipelineError(f"mask {path}: {mask.shape} px, expected the size of its depth, {depth_m.shape}")
        return self.upright(sample, np.where(mask > 0, depth_m, np.float32(np.nan)))

    def camera(self, sample: Sample) -> FileCamera:  # noqa: ARG002 - as `ImageFiles`
        """Return CAMERA."""
        return CAMERA

    def _scans(self, below: str) -> Iterator[str]:
        """Yield the scan folders, relative to the root, below a folder of a part, place, scene or scan."""
        if below.count("/") >= 3:
            yield below
            return
        for name in folder_names(self.root / below):
            yield from self._scans(f"{below}/{name}")

    def _scan(self, scan: str) -> Iterator[Sample]:
        names = file_names(self.root / scan)
        depths = {name for name in names if name.endswith(DEPTH)}
        for name in names:
            if name.endswith(".png"):
                stem = name.removesuffix(".png")
                truth = f"{self.root}/{scan}/{stem}{DEPTH}" if f"{stem}{DEPTH}" in depths else None
                yield Sample(f"{scan}/{stem}", f"{self.root}/{scan}/{name}", truth, CAMERA.intrinsics.fx_px)


def _is_root(root: Path) -> bool:
    return any((root / part / place).is_dir() for part in PARTS for place in PLACES)


SOURCE = SourceKind(
    DiodeSource,
    data_set="DIODE (Vasiljevic et al.)",
    layout="{train,val}/{indoors,outdoor}/scene_N/scan_N/ID.png with ID_depth.npy and ID_depth_mask.npy",
    splits=f"{SPLITS}; NAME of NAME.txt, or a list file with one image path per line",
    truth="laser, `.npy` of float32 metres; mask 0 = none",
    licence="MIT",
    defaults=DiodeSource.defaults,
    intrinsics="the devkit's, for all images (768x1024 px: 886.81 927.06 512 384)",
)
