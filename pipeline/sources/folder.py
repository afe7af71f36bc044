"""A plain folder: ROOT/rgb/ID.(png|jpg|jpeg|webp), perhaps beside ROOT/depth/ID.(png|npy|npz|pfm|exr).

Metres = value * `metres_per_unit` of ROOT/dataset.json. Where that is not said, 1 of a float is a metre, and 1 of
16 bits a millimetre, as RGB-D cameras write. 0, NaN, infinity and numbers below 0 say that there is no measurement, and
the files' own numbers that `invalid` of dataset.json lists, such as 65535.

An id may have folders in it (`room/0001`). ROOT/NAME.txt lists a split: ids one a line, perhaps with the
image's suffix; a line that begins with `#` is a comment. Hidden files are passed over. ROOT/K.txt, or `intrinsics` in
dataset.json, may hold the camera's 3x3 matrix or fx fy cx cy, in pixels.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dvc_links import cached_target
from ..fileio import printable, read_json
from .arrays import ARRAY_SUFFIXES, invalid_numbers, metres, read_array
from .base import Customs, ImageFiles, Sample, SourceKind
from .images import IMAGE_SUFFIXES, read_bytes
from .lists import Ids, checked_path, find_list, rows, without_suffix

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

MILLIMETRE = 0.001
INTRINSICS_BYTES = 4096
FACTS = "dataset.json"
KEYS = ("intrinsics", "invalid", "metres_per_unit")
"""What people may say in it."""
KEYS_OF_OURS = ("count", "generator_version", "seed", "size_px", "truths", "world")
"""What `make-scenes` writes there besides."""


class FolderSource(ImageFiles):
    """A folder of images and perhaps depth; `truth` names the folder of depth files.

    Raises ValueError where there is no rgb/, the asked truth folder is absent, or dataset.json is wrong.
    """

    def __init__(
        self,
        root: Path,
        truth: str | None = None,
        *,
        name: str = "folder",
        customs: Customs | None = None,
    ) -> None:
        self.name = name
        self.root = root
        self.customs = customs or Customs()
        if not (root / "rgb").is_dir():
            raise ValueError(
                f"source {name}:{root}: no folder {root / 'rgb'}; expected rgb/ID.png (or .jpg, .webp) and "
                "depth/ID.png (16 bits; or .npy, .npz, .pfm, .exr) below the root"
            )
        if truth is not None and (not re.fullmatch(r"[\w-]+", truth) or not (root / truth).is_dir()):
            folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != "rgb")
            raise ValueError(
                f"source {name}:{root}: truth {truth!r} is no folder of the root; "
                f"expected one of: {', '.join(folders) or 'none is there'}"
            )
        self.truth = truth or "depth"
        facts = _facts(root)
        self.invalid = invalid_numbers(facts.get("invalid"), f"data set description {root / FACTS}")
        self.metres_per_unit = _metres_per_unit(root, facts)
        self.focal_px = _focal_px(root, facts)

    def samples(self, split: str) -> list[Sample]:
        """Rows of ROOT/NAME.txt, of a list file, or of `all`: every image below rgb/, sorted by id.

        An image without a depth file has no ground truth. Raises ValueError for a missing or empty split, an
        id without image, a duplicate id, two depth files of an id, an id or link that leaves the root.
        """
        images = self._images()
        if split == "all" and not (self.root / "all.txt").is_file():
            ids = sorted(images)
            if not ids:
                raise ValueError(
                    f"source {self.name}:{self.root}: no image in {self.root / 'rgb'}; expected files that "
                    f"end in {', '.join(IMAGE_SUFFIXES)}"
                )
        else:
            ids = self._listed(find_list(split, self.root), images)
        truths = self._truths()
        return [
            Sample(
                sample_id,
                f"{self.root}/rgb/{images[sample_id]}",
                f"{self.root}/{self.truth}/{sample_id}{truths[sample_id]}" if sample_id in truths else None,
                self.focal_px,
            )
            for sample_id in ids
        ]

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Ground truth (H, W) float32 metres, NaN without measurement; None if the row has none.

        Raises ValueError for a file that `arrays.read_array` does not read.
        """
        if sample.truth_path is None:
            return None
        values = read_array(Path(sample.truth_path), "depth")
        usual = MILLIMETRE if values.dtype.kind == "u" else 1.0
        unit_m = usual if self.metres_per_unit is None else self.metres_per_unit
        return self.upright(sample, metres(values, unit_m, self.invalid))

    def _truths(self) -> dict[str, str]:
        """Id -> suffix of its depth file."""
        folder = self.root / self.truth
        truths: dict[str, str] = {}
        for file in _files(folder, self.root) if folder.is_dir() else ():
            stem, suffix = os.path.splitext(file)  # noqa: PTH122 - of many files: a Path for each costs more
            if suffix in ARRAY_SUFFIXES and truths.setdefault(stem, suffix) != suffix:
                raise ValueError(
                    f"source {self.name}:{self.root}: {self.truth}/{stem}{truths[stem]} and {stem}{suffix} are two "
                    f"depth files of the id {stem!r}; remove one, or keep each format in a folder of its own"
                )
        return truths

    def _images(self) -> dict[str, str]:
        """Id -> file name below rgb/. Listed once: asking the disk for each id would take minutes."""
        images: dict[str, str] = {}
        for file in _files(self.root / "rgb", self.root):
            sample_id = without_suffix(file)
            if sample_id is None:
                continue
            checked_path(sample_id, f"source {self.name}:{self.root}")
            if images.setdefault(sample_id, file) != file:
                raise ValueError(
                    f"source {self.name}:{self.root}: rgb/{images[sample_id]} and rgb/{file} are two images "
                    f"of the id {sample_id!r}; remove one"
                )
        return images

    def _listed(self, path: Path, images: dict[str, str]) -> list[str]:
        ids = Ids(path)
        listed = []
        for line, row in rows(path):
            if row.startswith("#"):
                continue
            checked_path(row, f"split {path} line {line}")
            sample_id = row if row in images else without_suffix(row) or row
            if sample_id not in images:
                raise ValueError(
                    f"split {path} line {line}: no image of id {sample_id!r} in {self.root / 'rgb'}; add "
                    f"{sample_id}.png (or .jpg, .webp), or delete the line"
                )
            ids.add(sample_id, line)
            listed.append(sample_id)
        ids.check_not_empty()
        return listed


def _facts(root: Path) -> dict[str, Any]:
    path = root / FACTS
    if not os.path.lexists(path):
        return {}
    facts = read_json(path, "data set description")
    if not isinstance(facts, dict):
        raise ValueError(  # noqa: TRY004 - a wrong file of the user's, not a wrong call
            f'data set description {path}: {type(facts).__name__}, expected an object like {{"metres_per_unit": 0.001}}'
        )
    unknown = sorted(set(facts) - {*KEYS, *KEYS_OF_OURS})
    if unknown:
        raise ValueError(
            f"data set description {path}: key {printable(unknown[0])[:80]!r}, expected {', '.join(KEYS)}: take it out"
        )
    return facts


def _metres_per_unit(root: Path, facts: dict[str, Any]) -> float | None:
    if "metres_per_unit" not in facts:
        return None
    value = facts["metres_per_unit"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-9 <= value <= 1e9:
        raise ValueError(
            f"data set description {root / 'dataset.json'}: metres_per_unit {value!r}, expected a number above 0 (1e-9 "
            'to 1e9) in a JSON object, for example {"metres_per_unit": 0.001} for millimetres'
        )
    return float(value)


def _focal_px(root: Path, facts: dict[str, Any]) -> float | None:
    """Horizontal focal length from K.txt or dataset.json, None where neither says it."""
    path = root / "K.txt"
    written = facts.get("intrinsics")
    if os.path.lexists(path):
        if written is not None:
            raise ValueError(
                f"source folder {root}: intrinsics stand in K.txt and in dataset.json, expected them once: remove one"
            )
        try:
            numbers = [float(word) for word in read_bytes(str(path), "intrinsics", INTRINSICS_BYTES).split()]
        except ValueError as error:
            if str(error).startswith("intrinsics "):
                raise
            numbers = []  # a word that is no number
        where = f"intrinsics {path}"
    elif written is None:
        return None
    else:
        rows_of = written if isinstance(written, list) else []
        flat = [one for row in rows_of for one in (row if isinstance(row, list) else [row])]
        numbers = [float(one) for one in flat if isinstance(one, int | float) and not isinstance(one, bool)]
        numbers = numbers if len(numbers) == len(flat) else []
        where = f"data set description {root / 'dataset.json'}: intrinsics"
    focal_px = numbers[0] if len(numbers) in {4, 9} else 0.0
    if not 0 < focal_px < 1e6 or (len(numbers) == 9 and numbers[6:] != [0, 0, 1]):
        raise ValueError(f"{where}: expected fx fy cx cy, or a 3x3 matrix fx 0 cx 0 fy cy 0 0 1, in pixels")
    return focal_px


def _files(folder: Path, root: Path) -> Iterator[str]:
    """Files below `folder`, which may be a link, as paths relative to it.

    Raises ValueError for a link in it that leaves both `root` and the folder, unless DVC made it to its cache.
    """
    inside = [os.path.realpath(root), os.path.realpath(folder)]
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        _check_link(entry.path, root, inside)
                        if entry.is_dir():
                            raise ValueError(
                                f"{printable(entry.path)}: a link to a folder, which may lead in circles; expected "
                                f"real folders below {folder}: copy it there"
                            )
                    if entry.is_dir():
                        pending.append(f"{below}{entry.name}/")
                    else:
                        yield f"{below}{entry.name}"
        except OSError as error:
            raise ValueError(f"folder {folder / below}: {error.strerror}; expected a readable folder") from error


def _check_link(path: str, root: Path, inside: list[str]) -> None:
    target = os.path.realpath(path)
    if any(os.path.commonpath([target, one]) == one for one in inside):
        return
    if cached_target(path, str(root)) is None and cached_target(path, inside[1]) is None:
        raise ValueError(
            f"{printable(path)}: a link to {printable(target)}, which is outside of the root {inside[0]}; copy the "
            "files, or give a root that holds both"
        )


SOURCE = SourceKind(
    FolderSource,
    data_set="a plain folder of your own",
    layout=(
        "rgb/ID.png (or .jpg, .webp), perhaps depth/ID.png (or .npy, .npz, .pfm, .exr), NAME.txt, dataset.json, "
        "K.txt; an id may have folders in it"
    ),
    splits="`all`, NAME of NAME.txt, or a list file: an id a line",
    truth=(
        "`--truth` names the folder; metres = value * metres_per_unit of dataset.json (else 0.001 for 16 bits, 1 for "
        "float); 0, NaN, infinite and its `invalid` = none"
    ),
    licence="yours",
    customs=Customs(),
)
