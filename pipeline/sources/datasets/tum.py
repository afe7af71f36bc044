"""TUM RGB-D: one sequence or a folder of them, each rgb/STAMP.png and depth/STAMP.png, listed in rgb.txt and depth.txt.

Depth is 16-bit PNG, metres = value / 5000, 0 = none, and lies on the colour camera's pixels already. Colour and depth
were not taken at the same time: `associate` pairs them as the benchmark's associate.py does. An image without a partner
stays, without ground truth: a teacher and distillation need none, and evaluation counts such frames and leaves them
out.

An id is the image's path without suffix: rgb/STAMP where the root is a sequence, SEQUENCE/rgb/STAMP where it holds
several.

Shape legend: N colour images, M depth images.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import PipelineError
from ..base import Defaults, ImageFiles, Sample, SourceKind
from ..readers.images import read_depth_png_m
from ..splits import Ids, checked_path, find_list_or_name, folder_names, rows, without_suffix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

METRES_PER_UNIT = 1 / 5000
LIMIT_S = 0.02
"""Largest difference of a pair's time stamps: the default of associate.py; the cameras take 30 images a second."""
LIMIT_CANDIDATES = 64
"""Depth images near one colour image, on average: two or three in a real sequence."""
FOCAL_PX = {"freiburg1": 517.3, "freiburg2": 520.9, "freiburg3": 535.4}
"""fx of each Kinect, from the benchmark's page on file formats; images of the first two still have lens distortion."""


class _Stamped(NamedTuple):
    stamp_s: float
    path: str
    """Relative to the sequence."""


class TumSource(ImageFiles):
    """A TUM RGB-D root.

    Raises PipelineError for a root without sequences, or a truth other than `depth`.
    """

    name = "tum"
    # Bins and sigma are the method's own for rooms.
    defaults = Defaults(view="full", bins="nyu", sigma_m=0.15, protocol="plain")

    def __init__(self, root: Path, truth: str | None = None) -> None:
        self.root = root
        if truth not in {None, "depth"}:
            raise PipelineError(f"source tum:{root}: truth {truth!r}, expected depth: leave the option out")
        self.truth = "depth"
        self.invalid = ()
        single = _is_sequence(root)
        self.sequences = [""] if single else [name for name in folder_names(root) if _is_sequence(root / name)]
        if not self.sequences:
            raise PipelineError(_wrong_root(root))

    def samples(self, split: str) -> list[Sample]:
        """Rows of `all`, of a sequence by its folder's name, or of a list of image paths below the root.

        Raises PipelineError for a missing or empty split, a malformed line, an image that rgb.txt does not name, a
        duplicate image, a path that leaves the root.
        """
        if split == "all" or split in self.sequences:
            wanted = self.sequences if split == "all" else [split]
            return [sample for sequence in wanted for sample in self._sequence(sequence)]
        names = ", ".join(self.sequences[:20]) if self.sequences != [""] else "none but this one"
        path = find_list_or_name(split, self.root, f"`all`, or a sequence: {names}")
        known: dict[str, dict[str, Sample]] = {}
        ids = Ids(path)
        samples = []
        for line, row in rows(path):
            if row.startswith("#"):
                continue
            where = f"split {path} line {line}"
            sample_id = without_suffix(checked_path(row, where)) or row
            sequence = "" if self.sequences == [""] else sample_id.partition("/")[0]
            if sequence in self.sequences and sequence not in known:
                known[sequence] = {sample.id: sample for sample in self._sequence(sequence)}
            sample = known.get(sequence, {}).get(sample_id)
            if sample is None:
                form = "rgb/STAMP.png" if self.sequences == [""] else "SEQUENCE/rgb/STAMP.png"
                raise PipelineError(
                    f"{where}: {row[:200]!r} stands in no rgb.txt below {self.root}; expected {form} of one"
                )
            ids.add(sample_id, line)
            samples.append(sample)
        ids.check_not_empty()
        return samples

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Ground truth (H, W) float32 metres, NaN without measurement; None if the image has no partner.

        Raises PipelineError for a file that is missing or no 16-bit PNG.
        """
        if sample.truth_path is None:
            return None
        return self.upright(sample, read_depth_png_m(sample.truth_path, METRES_PER_UNIT, self.invalid))

    def _sequence(self, name: str) -> list[Sample]:
        folder, prefix = self.root / name, f"{name}/" if name else ""
        color = _read_stamps(folder / "rgb.txt")
        has_depth = (folder / "depth").exists() or (folder / "depth.txt").exists()
        depth = _read_stamps(folder / "depth.txt") if has_depth else []
        try:
            partners = associate([row.stamp_s for row in color], [row.stamp_s for row in depth])
        except ValueError as error:
            raise PipelineError(f"sequence {folder}: {error}") from error
        kinect = re.search(r"freiburg[123]", name or self.root.resolve().name)
        focal_px = FOCAL_PX[kinect[0]] if kinect else None
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
    """For each of N time stamps the index of its partner among M, None without one; seconds.

    As associate.py: of all pairs that differ by less than `limit_s`, those that differ least are taken first, and each
    stamp is taken once; ties go to the smaller first stamp, then to the smaller second. Unlike there, only neighbours
    in time are looked at, so that long lists take no N x M steps. Raises PipelineError where far too many are near.
    """
    order = np.argsort(np.asarray(second_s, dtype=np.float64), kind="stable")
    first, second = np.asarray(first_s, dtype=np.float64), np.asarray(second_s, dtype=np.float64)[order]
    # A little wider than asked, because sums are rounded; the exact test follows.
    begin = np.searchsorted(second, first - 1.01 * limit_s, "left").tolist()
    end = np.searchsorted(second, first + 1.01 * limit_s, "right").tolist()
    near = sum(end) - sum(begin)
    if near > LIMIT_CANDIDATES * len(first_s):
        raise PipelineError(
            f"{near} pairs of images within {limit_s} s for {len(first_s)} colour images, expected two or three for "
            "each; are the time stamps seconds?"
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
    """Rows of rgb.txt or depth.txt. Raises PipelineError for a missing file, a malformed line, an image named twice."""
    ids = Ids(path)
    found = []
    for line, row in rows(path):
        if not row.startswith("#"):
            stamped = _parse_row(row, f"{path} line {line}")
            ids.add(stamped.path, line)
            found.append(stamped)
    if not found:
        raise PipelineError(f"{path}: no rows, expected `STAMP rgb/STAMP.png` a line; unpack the sequence's .tgz again")
    return found


def _parse_row(row: str, where: str) -> _Stamped:
    """One line of rgb.txt or depth.txt."""
    columns = row.replace(",", " ").split()
    if len(columns) != 2:
        raise PipelineError(f"{where}: {len(columns)} columns in {row[:200]!r}, expected 2: STAMP rgb/STAMP.png")
    try:
        stamp_s = float(columns[0])
    except ValueError:
        stamp_s = math.nan
    if not math.isfinite(stamp_s):
        raise PipelineError(f"{where}: time stamp {columns[0][:200]!r}, expected seconds, as 1305031102.175304")
    path = checked_path(columns[1], where)
    if without_suffix(path) is None:
        raise PipelineError(f"{where}: image {path[:200]!r}, expected a name that ends in .png")
    return _Stamped(stamp_s, path)


def _is_sequence(folder: Path) -> bool:
    return (folder / "rgb.txt").is_file()


def _wrong_root(root: Path) -> str:
    """What to say of a root without sequences: which folder it may be instead."""
    here, names = root.resolve(), folder_names(root)
    if _is_sequence(here.parent):
        advice = f"this is a part of one sequence: give {here.parent}"
    elif "rgb" in names:
        advice = "it has a folder rgb/ without rgb.txt, which comes in the sequence's .tgz: unpack that again"
    else:
        below = next(
            (name for name in names if any(_is_sequence(root / name / sub) for sub in folder_names(root / name))), None
        )
        advice = f"give {root / below}" if below else "unpack a sequence's .tgz there"
    return (
        f"source tum:{root}: no rgb.txt there nor in a folder of it; expected one sequence, with rgb.txt, rgb/, "
        f"depth.txt and depth/, or a folder of sequences: {advice}"
    )


SOURCE = SourceKind(
    TumSource,
    data_set="TUM RGB-D benchmark (Sturm et al.)",
    layout="rgb.txt, rgb/STAMP.png, depth.txt, depth/STAMP.png in the root, or in a folder for each sequence",
    splits="`all`, a sequence's folder, NAME of NAME.txt or a list file: `rgb/STAMP.png` a line, below the root",
    truth="Kinect, paired by time stamp within 0.02 s; 16-bit PNG, metres = value / 5000, 0 = none",
    licence="CC BY 4.0",
    defaults=TumSource.defaults,
)
