"""A plain folder: ROOT/rgb/ID.(png|jpg|jpeg|webp) beside ROOT/depth/ID.png, which are 16-bit PNG.

Metres = value * `metres_per_unit` of ROOT/dataset.json, otherwise 0.001: millimetres, as RGB-D cameras write.
An id may have folders in it (`room/0001`). ROOT/NAME.txt lists a split: ids one a line, perhaps with the
image's suffix; a line that begins with `#` is a comment. Hidden files are passed over.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ..fileio import printable, read_json
from .base import Customs, ImageFiles, Sample, SourceKind
from .images import IMAGE_SUFFIXES, read_depth_png_m
from .lists import Ids, checked_path, find_list, rows, without_suffix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

METRES_PER_UNIT = 0.001


class FolderSource(ImageFiles):
    """A folder of images and perhaps depth; `truth` names the folder of depth files.

    Raises ValueError where there is no rgb/, the asked truth folder is absent, or dataset.json is wrong.
    """

    def __init__(
        self, root: Path, truth: str | None = None, *, name: str = "folder", customs: Customs | None = None
    ) -> None:
        self.name = name
        self.root = root
        self.customs = customs or Customs()
        if not (root / "rgb").is_dir():
            raise ValueError(
                f"source {name}:{root}: no folder {root / 'rgb'}; expected rgb/ID.png (or .jpg, .webp) and "
                "depth/ID.png (16 bits) below the root"
            )
        if truth is not None and (not re.fullmatch(r"[\w-]+", truth) or not (root / truth).is_dir()):
            folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != "rgb")
            raise ValueError(
                f"source {name}:{root}: truth {truth!r} is no folder of the root; "
                f"expected one of: {', '.join(folders) or 'none is there'}"
            )
        self.truth = truth or "depth"
        self.metres_per_unit = _metres_per_unit(root)

    def samples(self, split: str) -> list[Sample]:
        """Rows of ROOT/NAME.txt, of a list file, or of `all`: every image below rgb/, sorted by id.

        An image without a depth file has no ground truth. Raises ValueError for a missing or empty split, an
        id without image, a duplicate id, an id or link that leaves the root.
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
        truth_folder = self.root / self.truth
        truths = set(_files(truth_folder, self.root)) if truth_folder.is_dir() else set()
        return [
            Sample(
                sample_id,
                f"{self.root}/rgb/{images[sample_id]}",
                f"{truth_folder}/{sample_id}.png" if f"{sample_id}.png" in truths else None,
                None,
            )
            for sample_id in ids
        ]

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Ground truth (H, W) float32 metres, NaN without measurement; None if the row has none.

        Raises ValueError for a file that is no 16-bit PNG.
        """
        return None if sample.truth_path is None else read_depth_png_m(sample.truth_path, self.metres_per_unit)

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


def _metres_per_unit(root: Path) -> float:
    path = root / "dataset.json"
    if not os.path.lexists(path):
        return METRES_PER_UNIT
    facts = read_json(path, "data set description")
    value = facts.get("metres_per_unit", METRES_PER_UNIT) if isinstance(facts, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-9 <= value <= 1e9:
        raise ValueError(
            f"data set description {path}: metres_per_unit {value!r}, expected a number above 0 (1e-9 to 1e9) in a "
            'JSON object, for example {"metres_per_unit": 0.001} for millimetres'
        )
    return float(value)


def _files(folder: Path, root: Path) -> Iterator[str]:
    """Files below `folder`, as paths relative to it. Raises ValueError for a link that leaves `root`."""
    inside = os.path.realpath(root)
    if folder.is_symlink():
        _check_link(str(folder), inside)
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        _check_link(entry.path, inside)
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


def _check_link(path: str, inside: str) -> None:
    target = os.path.realpath(path)
    if os.path.commonpath([target, inside]) != inside:
        raise ValueError(
            f"{printable(path)}: a link to {printable(target)}, which is outside of the root {inside}; copy the "
            "files, or give a root that holds both"
        )


SOURCE = SourceKind(
    FolderSource,
    data_set="a plain folder of your own",
    layout="rgb/ID.png (or .jpg, .webp), depth/ID.png, NAME.txt, perhaps dataset.json; an id may have folders in it",
    splits="`all`, NAME of NAME.txt, or a list file: an id a line",
    truth="`--truth` names the folder; 16-bit PNG, metres = value * metres_per_unit of dataset.json (else 0.001)",
    licence="yours",
    customs=Customs(),
)
