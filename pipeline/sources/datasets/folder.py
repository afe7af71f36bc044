"""A plain folder: ROOT/rgb/ID.(png|jpg|jpeg|webp), perhaps beside ROOT/depth/ID.(png|npy|npz|pfm|exr).

Metres = value * `metres_per_unit` of ROOT/dataset.json. Where that is not said, 1 of a float is a metre, and 1 of
16 bits a millimetre, as RGB-D cameras write. 0, NaN, infinity and numbers below 0 say that there is no measurement, and
the files' own numbers that `invalid` of dataset.json lists, such as 65535.

Other layouts are patterns in dataset.json, with `*` for the id: {"rgb": "*.color.png", "depth": "*.depth.png"}.

An id may have folders in it (`room/0001`). ROOT/NAME.txt lists a split: ids one a line, perhaps with the
image's suffix; a line that begins with `#` is a comment. Hidden files are passed over. ROOT/K.txt, or `intrinsics` in
dataset.json, may hold the camera's 3x3 matrix or fx fy cx cy, in pixels.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.fileio import printable, read_json
from ...errors import PipelineError
from ..base import Defaults, ImageFiles, Sample, SourceKind
from ..readers.arrays import invalid_numbers, metres, read_array
from ..readers.images import IMAGE_SUFFIXES, read_bytes
from ..splits import Ids, checked_path, find_list, rows, without_suffix
from .folder_files import Pattern, check_usable, find_files, say_others

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MILLIMETRE = 0.001
INTRINSICS_BYTES = 4096
FACTS = "dataset.json"
KEYS = ("depth", "intrinsics", "invalid", "metres_per_unit", "rgb")
"""What people may say in it."""
KEYS_OF_OURS = ("count", "generator_version", "seed", "size_px", "truths", "world")
"""What `make-scenes` writes there besides."""


class FolderSource(ImageFiles):
    """A folder of images and perhaps depth; `truth` names the folder of depth files, or is a pattern of them.

    Raises PipelineError where there is no rgb/ (or what dataset.json says in its place), the asked truth folder is
    absent, or dataset.json is wrong.
    """

    def __init__(
        self,
        root: Path,
        truth: str | None = None,
        *,
        name: str = "folder",
        defaults: Defaults | None = None,
    ) -> None:
        self.name = name
        self.root = root
        self.defaults = defaults or Defaults()
        facts = _facts(root)
        self.rgb = _pattern(root, facts, "rgb") or Pattern("rgb/", "")
        if not (root / self.rgb.folder).is_dir():
            raise PipelineError(
                f"source {name}:{root}: no folder {root / self.rgb.folder}; expected rgb/ID.png (or .jpg, .webp) and "
                "depth/ID.png (16 bits; or .npy, .npz, .pfm, .exr) below the root, or patterns in its dataset.json"
            )
        self.depth = self._depth_pattern(truth, facts)
        self.truth = truth or (str(self.depth) if "depth" in facts else "depth")
        self._others_are_said = False
        self.invalid = invalid_numbers(facts.get("invalid"), f"data set description {root / FACTS}")
        self.metres_per_unit = _metres_per_unit(root, facts)
        self.focal_px = _focal_px(root, facts)

    def samples(self, split: str) -> list[Sample]:
        """Rows of ROOT/NAME.txt, of a list file, or of `all`: every image, sorted by id.

        An image without a depth file has no ground truth. Raises PipelineError for a missing or empty split, an
        id without image, a duplicate id, two depth files of an id, an id or link that leaves the root.
        """
        where = f"source {self.name}:{self.root}"
        found = find_files(self.root, self.rgb, where)
        if not self._others_are_said:
            self._others_are_said = True
            say_others(self.root, found)
        images = found.files
        if split == "all" and not (self.root / "all.txt").is_file():
            check_usable(found, where)
            ids = sorted(images)
            if not ids:
                looked = self.root / self.rgb.folder if not self.rgb.after else f"{self.root}/{self.rgb}"
                raise PipelineError(
                    f"{where}: no image in {looked}; expected files that end in "
                    f"{self.rgb.after or ', '.join(IMAGE_SUFFIXES)}"
                )
        else:
            ids = self._listed(find_list(split, self.root), images)
        truths = find_files(self.root, self.depth, where, depth=True).files
        return [
            Sample(
                sample_id,
                f"{self.root}/{images[sample_id]}",
                f"{self.root}/{truths[sample_id]}" if sample_id in truths else None,
                self.focal_px,
            )
            for sample_id in ids
        ]

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Ground truth (H, W) float32 metres, NaN without measurement; None if the row has none.

        Raises PipelineError for a file that `arrays.read_array` does not read.
        """
        if sample.truth_path is None:
            return None
        values = read_array(Path(sample.truth_path), "depth")
        usual = MILLIMETRE if values.dtype.kind == "u" else 1.0
        unit_m = usual if self.metres_per_unit is None else self.metres_per_unit
        return self.upright(sample, metres(values, unit_m, self.invalid))

    def _depth_pattern(self, truth: str | None, facts: dict[str, Any]) -> Pattern:
        """Where depth lies: as `truth` says, which names a folder or is a pattern, or else dataset.json."""
        where = f"source {self.name}:{self.root}: truth"
        if truth is None:
            return _pattern(self.root, facts, "depth") or Pattern("depth/", "")
        if "*" in truth:
            return Pattern.parse(truth, where)
        if not re.fullmatch(r"[\w-]+", truth) or not (self.root / truth).is_dir():
            folders = sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name != "rgb")
            raise PipelineError(
                f"{where} {truth!r} is no folder of the root; expected one of: {', '.join(folders) or 'none is there'}"
            )
        return Pattern(f"{truth}/", "")

    def _listed(self, path: Path, images: dict[str, str]) -> list[str]:
        ids = Ids(path)
        listed = []
        for line, row in rows(path):
            if row.startswith("#"):
                continue
            name = unicodedata.normalize("NFC", row)
            names = (name, without_suffix(name) or name, self.rgb.id_of(name, IMAGE_SUFFIXES))
            sample_id = next((one for one in names if one in images), None)
            if sample_id is None:
                checked_path(row, f"split {path} line {line}")
                after = self.rgb.after or ".png (or .jpg, .webp)"
                raise PipelineError(
                    f"split {path} line {line}: no image of id {names[1]!r} in {self.root / self.rgb.folder}; add "
                    f"{names[1]}{after}, or delete the line"
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
        raise PipelineError(
            f'data set description {path}: {type(facts).__name__}, expected an object like {{"metres_per_unit": 0.001}}'
        )
    unknown = sorted(set(facts) - {*KEYS, *KEYS_OF_OURS})
    if unknown:
        raise PipelineError(
            f"data set description {path}: key {printable(unknown[0])[:80]!r}, expected {', '.join(KEYS)}: take it out"
        )
    return facts


def _pattern(root: Path, facts: dict[str, Any], key: str) -> Pattern | None:
    """A pattern of dataset.json, None where it has none. Raises PipelineError for what is none."""
    if key not in facts:
        return None
    where = f"data set description {root / FACTS}: {key}"
    if not isinstance(facts[key], str):
        raise PipelineError(f"{where}: {facts[key]!r}, expected a pattern such as *.color.png")
    return Pattern.parse(facts[key], where)


def _metres_per_unit(root: Path, facts: dict[str, Any]) -> float | None:
    if "metres_per_unit" not in facts:
        return None
    value = facts["metres_per_unit"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-9 <= value <= 1e9:
        raise PipelineError(
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
            raise PipelineError(
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
        raise PipelineError(f"{where}: expected fx fy cx cy, or a 3x3 matrix fx 0 cx 0 fy cy 0 0 1, in pixels")
    return focal_px


SOURCE = SourceKind(
    FolderSource,
    data_set="a plain folder of your own",
    layout=(
        "rgb/ID.png (or .jpg, .webp), perhaps depth/ID.png (or .npy, .npz, .pfm, .exr), NAME.txt, dataset.json, "
        "K.txt; or patterns of dataset.json; an id may have folders in it"
    ),
    splits="`all`, NAME of NAME.txt, or a list file: an id a line",
    truth=(
        "`truth` names the folder, or is a pattern; metres = value * metres_per_unit of dataset.json (else 0.001 for "
        "16 bits, 1 for float); 0, NaN, infinite and its `invalid` = none"
    ),
    licence="yours",
    defaults=Defaults(),
)
