"""TUM RGB-D: one sequence or a folder of them, each rgb/STAMP.png and depth/STAMP.png, listed in rgb.txt and depth.txt.

Depth is 16-bit PNG, metres = value / 5000, 0 = none, registered to the color camera. Color and depth have different
time stamps: `associate` pairs them as the benchmark's associate.py does. An image without a partner has no ground
truth: teachers and distillation need none, and evaluation skips and counts such frames.

An id is the image's path without suffix: rgb/STAMP where the root is a sequence, SEQUENCE/rgb/STAMP where it holds
several.

Shape legend: N color images, M depth images.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import PipelineError
from ..base import Defaults, FileCamera, ImageFiles, Sample, SourceKind
from ..intrinsics import Intrinsics
from ..readers.images import read_depth_png_m
from ..splits import Ids, checked_path, find_list_or_name, folder_names, rows, without_suffix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

METRES_PER_UNIT = 1 / 5000
LIMIT_S = 0.02
"""Largest time difference of a pair: the default of associate.py; the cameras take 30 images a second."""
LIMIT_CANDIDATES = 64
"""Largest mean number of depth images near a color image; real sequences have two or three."""
CAMERAS = {
    "freiburg1": FileCamera(Intrinsics(517.3, 516.5, 318.6, 255.3), (480, 640)),
    "freiburg2": FileCamera(Intrinsics(520.9, 521.0, 325.1, 249.7), (480, 640)),
    "freiburg3": FileCamera(Intrinsics(535.4, 539.2, 320.1, 247.6), (480, 640)),
}
"""Color camera of each Kinect, from the benchmark's page on file formats; images of the first two have lens
distortion."""


class _Stamped(NamedTuple):
    stamp_s: float
    path: str
    """Relative to the sequence."""


class TumSource(ImageFiles):
    """A TUM RGB-D root.

    Raises PipelineError for a root without sequences, or a truth other than `depth`.
    """

    name = "tum"
    # Bins and sigma are the method's for NYU.
    defaults = Defaults(view="full", bins="nyu", sigma_m=0.15, protocol="plain")

    def __init__(self, root: Path, truth: str | None = None) -> None:
        self.root = root
        if truth not in {None, "depth"}:
            raise PipelineError(f"source tum:{root}: truth {truth!r}, expected depth; remove `truth`")
        self.truth = "depth"
        self.invalid = ()
        single = _is_sequence(root)
        self.sequences = [""] if single else [name for name in folder_names(root) if _is_sequence(root / name)]
        if not self.sequences:
            raise PipelineError(_wrong_root(root))

    def samples(self, split: str) -> list[Sample]:
        """Return the rows of `all`, of a sequence by its folder name, or of a list of image paths below the root.

        Raises PipelineError for a missing or empty split, a malformed line, an image not in rgb.txt, a duplicate
        image, a path outside the root.
        """
        if split == "all" or split in self.sequences:
            sequences = self.sequences if split == "all" else [split]
            return [sample for sequence in sequences for sample in self._sequence(sequence)]
        names = ", ".join(self.sequences[:20]) if self.sequences != [""] else "only this one"
        path = find_list_or_name(split, self.root, f"`all`, or a sequence: {names}")
        by_id: dict[str, dict[str, Sample]] = {}
        ids = Ids(path)
        samples = []
        for line, row in rows(path):
            if row.startswith("#"):
                continue
            where = f"split {path} line {line}"
            sample_id = without_suffix(checked_path(row, where)) or row
            sequence = "" if self.sequences == [""] else sample_id.partition("/")[0]
            if sequence in self.sequences and sequence not in by_id:
                by_id[sequence] = {sample.id: sample for sample in self._sequence(sequence)}
            sample = by_id.get(sequence, {}).get(sample_id)
            if sample is None:
                form = "rgb/STAMP.png" if self.sequences == [""] else "SEQUENCE/rgb/STAMP.png"
                raise PipelineError(
                    f"{where}: {row[:200]!r} is not in any rgb.txt below {self.root}; expected {form} listed there"
                )
            ids.add(sample_id, line)
            samples.append(sample)
        ids.check_not_empty()
        return samples

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement; None if the image has no partner.

        Raises PipelineError for a file that is missing or not a 16-bit PNG.
        """
        if sample.truth_path is None:
            return None
        return self.upright(sample, read_depth_png_m(sample.truth_path, METRES_PER_UNIT, self.invalid))

    def camera(self, sample: Sample) -> FileCamera | None:
        """Return the Kinect that the sequence's name states."""
        return self._camera_of("" if self.sequences == [""] else sample.id.partition("/")[0])

    def _camera_of(self, sequence: str) -> FileCamera | None:
        kinect = re.search(r"freiburg[123]", sequence or self.root.resolve().name)
        return CAMERAS[kinect[0]] if kinect else None

    def _sequence(self, name: str) -> list[Sample]:
        folder, prefix = self.root / name, f"{name}/" if name else ""
        color = _read_stamps(folder / "rgb.txt")
        has_depth = (folder / "depth").exists() or (folder / "depth.txt").exists()
        depth = _read_stamps(folder / "depth.txt") if has_depth else []
        try:
            partners = associate([row.stamp_s for row in color], [row.stamp_s for row in depth])
        except ValueError as error:
            raise PipelineError(f"sequence {folder}: {error}") from error
        camera = self._camera_of(name)
        focal_px = None if camera is None else camera.intrinsics.fx_px
        return [
            Sample(
                prefix + (without_suffix(row.path) or row.path),
                f"{folder}/{row.path}",
                None if partner is None else f"{folder}/{depth[partner].path}",
                focal_px,
            )
            for row, partner in zip(color, partners, strict=True)
        ]


def associate(first_s: Sequence[float], second_s: Sequence[float], limit_s: float = LIMIT_S) -> list[int | None]:
    """Return for each of N time stamps in seconds the index of its partner among M, None without one.

    As associate.py: pairs that differ by less than `limit_s` are taken in order of difference, each stamp once; ties
    go to the smaller first stamp, then to the smaller second. Unlike there, only neighbors in time are compared, which
    avoids N x M steps. Raises PipelineError if far too many stamps are close.
    """
    order = np.argsort(np.asarray(second_s, dtype=np.float64), kind="stable")
    first, second = np.asarray(first_s, dtype=np.float64), np.asarray(second_s, dtype=np.float64)[order]
    # Slightly wider than the limit, because sums are rounded; the exact test follows.
    begin = np.searchsorted(second, first - 1.01 * limit_s, "left").tolist()
    end = np.searchsorted(second, first + 1.01 * limit_s, "right").tolist()
    near = sum(end) - sum(begin)
    if near > LIMIT_CANDIDATES * len(first_s):
        raise PipelineError(
            f"{near} pairs of images within {limit_s} s for {len(first_s)} color images, expected two or three for "
            "each; check that the time stamps are in seconds"
        )
    pairs = sorted(
        (abs(first_s[i] - second_s[j]), first_s[i], second_s[j], i, j)
        for i in range(len(first_s))
        for j in order[begin[i] : end[i]].tolist()
        if abs(first_s[i] - second_s[j]) < limit_s
    )
    partners: list[int | None] = [None] * len(first_s)
    taken = set()
    for _, _, _, i, j in pairs:
        if partners[i] is None and j not in taken:
            partners[i] = j
            taken.add(j)
    return partners


def _read_stamps(path: Path) -> list[_Stamped]:
    """Read rgb.txt or depth.txt. Raises PipelineError for a missing file, a malformed line, a duplicate image."""
    ids = Ids(path)
    stamps = []
    for line, row in rows(path):
        if not row.startswith("#"):
            stamped = _parse_row(row, f"{path} line {line}")
            ids.add(stamped.path, line)
            stamps.append(stamped)
    if not stamps:
        raise PipelineError(
            f"{path}: no rows, expected one `STAMP rgb/STAMP.png` per line; unpack the sequence's .tgz again"
        )
    return stamps


def _parse_row(row: str, where: str) -> _Stamped:
    """Parse one line of rgb.txt or depth.txt."""
    columns = row.replace(",", " ").split()
    if len(columns) != 2:
        raise PipelineError(f"{where}: {len(columns)} columns in {row[:200]!r}, expected 2: STAMP rgb/STAMP.png")
    try:
        stamp_s = float(columns[0])
    except ValueError:
        stamp_s = math.nan
    if not math.isfinite(stamp_s):
        raise PipelineError(f"{where}: time stamp {columns[0][:200]!r}, expected seconds such as 1305031102.175304")
    path = checked_path(columns[1], where)
    if without_suffix(path) is None:
        raise PipelineError(f"{where}: image {path[:200]!r}, expected a name that ends in .png")
    return _Stamped(stamp_s, path)


def _is_sequence(folder: Path) -> bool:
    return (folder / "rgb.txt").is_file()


def _wrong_root(root: Path) -> str:
    """Message for a root without sequences, with the folder to use instead."""
    here, names = root.resolve(), folder_names(root)
    if _is_sequence(here.parent):
        advice = f"this is a part of one sequence, use {here.parent}"
    elif "rgb" in names:
        advice = "it has rgb/ without rgb.txt, unpack the sequence's .tgz again"
    else:
        below = next(
            (name for name in names if any(_is_sequence(root / name / sub) for sub in folder_names(root / name))), None
        )
        advice = f"use {root / below}" if below else "unpack a sequence's .tgz there"
    return (
        f"source tum:{root}: no rgb.txt in the root or its folders; expected one sequence with rgb.txt, rgb/, "
        f"depth.txt and depth/, or a folder of sequences; {advice}"
    )


SOURCE = SourceKind(
    TumSource,
    data_set="TUM RGB-D benchmark (Sturm et al.)",
    layout="rgb.txt, rgb/STAMP.png, depth.txt, depth/STAMP.png in the root or in one folder per sequence",
    splits="`all`, a sequence's folder, NAME of NAME.txt or a list file: `rgb/STAMP.png` per line, below the root",
    truth="Kinect, paired by time stamp within 0.02 s; 16-bit PNG, metres = value / 5000, 0 = none",
    licence="CC BY 4.0",
    defaults=TumSource.defaults,
    intrinsics="the benchmark's, by freiburg1, freiburg2 or freiburg3 in the sequence's name; otherwise none",
)
