"""A user's folder: ROOT/rgb/ID.(png|jpg|jpeg|webp) and optionally ROOT/depth/ID.(png|npy|npz|pfm|exr).

Metres = value * `metres_per_unit` of ROOT/dataset.json. By default floats are metres and 16-bit integers are
millimetres, as RGB-D cameras write them. 0, NaN, infinity, negative values and the stored values listed as `invalid` in
dataset.json (for example 65535) mean no measurement.

Other layouts are patterns in dataset.json, with `*` for the id: {"rgb": "*.color.png", "depth": "*.depth.png"}.

An id may contain folders (`room/0001`). ROOT/NAME.txt lists a split with one id per line, optionally with the image's
suffix; a line that begins with `#` is a comment. Hidden files are skipped.

ROOT/K.txt, or `intrinsics` in dataset.json, may hold the camera's 3x3 matrix or fx fy cx cy, in pixels;
ROOT/intrinsics.csv those of each image: rows id,fx_px,fy_px,cx_px,cy_px.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PipelineError
from ..base import Defaults, ImageFiles, Sample, SourceKind
from ..readers.arrays import invalid_numbers, metres, read_array
from ..readers.images import IMAGE_SUFFIXES
from ..splits import Ids, checked_path, find_list, rows, without_suffix
from .description import FACTS, metres_per_unit, read_facts
from .folder_cameras import read_camera, read_cameras
from .folder_files import Pattern, check_usable, find_files, warn_of_unread_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..base import FileCamera
    from .folder_cameras import CameraTable

MILLIMETRE = 0.001
KEYS = ("depth", "intrinsics", "invalid", "metres_per_unit", "rgb")
"""Keys that users may set."""
RENDERER_KEYS = ("baseline_m", "count", "generator_version", "seed", "size_px", "truths", "world")
"""Further keys that `python -m scenes` writes."""


class FolderSource(ImageFiles):
    """A folder of images and optional depth; `truth` is the folder of depth files, or a pattern of them.

    Raises PipelineError if rgb/ (or its pattern in dataset.json) or the truth folder is missing, or dataset.json is
    invalid.
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
        facts = read_facts(root, KEYS, RENDERER_KEYS)
        self.rgb = _pattern(root, facts, "rgb") or Pattern("rgb/", "")
        if not (root / self.rgb.folder).is_dir():
            raise PipelineError(
                f"source {name}:{root}: folder {root / self.rgb.folder} is missing; expected rgb/ID.png (or .jpg, "
                ".webp) and depth/ID.png (16 bits; or .npy, .npz, .pfm, .exr), or patterns in dataset.json"
            )
        self.depth = self._depth_pattern(truth, facts)
        self.truth = truth or (str(self.depth) if "depth" in facts else "depth")
        self._warned_of_unread_images = False
        self.invalid = invalid_numbers(facts.get("invalid"), f"data set description {root / FACTS}")
        self.metres_per_unit = metres_per_unit(root, facts)
        self.one_camera = read_camera(root, facts)

    def samples(self, split: str) -> list[Sample]:
        """Return the rows of ROOT/NAME.txt, of a list file, or of `all`: every image, sorted by id.

        An image without a depth file has no ground truth. Raises PipelineError for a missing or empty split, an id
        without image, a duplicate id, two depth files of one id, an id or link outside the root.
        """
        where = f"source {self.name}:{self.root}"
        matches = find_files(self.root, self.rgb, where)
        if not self._warned_of_unread_images:
            self._warned_of_unread_images = True
            warn_of_unread_images(self.root, matches)
        images = matches.files
        if split == "all" and not (self.root / "all.txt").is_file():
            check_usable(matches, where)
            ids = sorted(images)
            if not ids:
                searched = self.root / self.rgb.folder if not self.rgb.after else f"{self.root}/{self.rgb}"
                raise PipelineError(
                    f"{where}: no image in {searched}; expected files that end in "
                    f"{self.rgb.after or ', '.join(IMAGE_SUFFIXES)}"
                )
        else:
            ids = self._listed(find_list(split, self.root), images)
        truths = find_files(self.root, self.depth, where, depth=True).files
        focal_px = None if self.one_camera is None else self.one_camera.intrinsics.fx_px
        return [
            Sample(
                sample_id,
                f"{self.root}/{images[sample_id]}",
                f"{self.root}/{truths[sample_id]}" if sample_id in truths else None,
                focal_px,
            )
            for sample_id in ids
        ]

    def camera(self, sample: Sample) -> FileCamera | None:
        """Return the camera of K.txt or dataset.json, or of the image's row in intrinsics.csv.

        Raises PipelineError, naming the line, for a malformed intrinsics.csv.
        """
        if self.one_camera is not None or self._cameras is None:
            return self.one_camera
        return self._cameras.find(sample.id)

    @cached_property
    def _cameras(self) -> CameraTable | None:
        return read_cameras(self.root)

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement; None if the row has none.

        Raises PipelineError as `arrays.read_array`.
        """
        if sample.truth_path is None:
            return None
        values = read_array(Path(sample.truth_path), "depth")
        default_m = MILLIMETRE if values.dtype.kind == "u" else 1.0
        unit_m = default_m if self.metres_per_unit is None else self.metres_per_unit
        return self.upright(sample, metres(values, unit_m, self.invalid))

    def _depth_pattern(self, truth: str | None, facts: dict[str, Any]) -> Pattern:
        """Return the pattern of depth files: `truth` as a folder or pattern, otherwise that of dataset.json."""
        where = f"source {self.name}:{self.root}: truth"
        if truth is None:
            return _pattern(self.root, facts, "depth") or Pattern("depth/", "")
        if "*" in truth:
            return Pattern.parse(truth, where)
        if not re.fullmatch(r"[\w-]+", truth) or not (self.root / truth).is_dir():
            folders = sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name != "rgb")
            raise PipelineError(
                f"{where} {truth!r} is not a folder of the root; expected one of: {', '.join(folders) or '(none)'}"
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
            sample_id = next((candidate for candidate in names if candidate in images), None)
            if sample_id is None:
                checked_path(row, f"split {path} line {line}")
                suffix = self.rgb.after or ".png (or .jpg, .webp)"
                raise PipelineError(
                    f"split {path} line {line}: no image with id {names[1]!r} in {self.root / self.rgb.folder}; "
                    f"add {names[1]}{suffix}, or delete the line"
                )
            ids.add(sample_id, line)
            listed.append(sample_id)
        ids.check_not_empty()
        return listed


def _pattern(root: Path, facts: dict[str, Any], key: str) -> Pattern | None:
    """Return a pattern of dataset.json, None if it has none. Raises PipelineError if it is invalid."""
    if key not in facts:
        return None
    where = f"data set description {root / FACTS}: {key}"
    if not isinstance(facts[key], str):
        raise PipelineError(f"{where}: {facts[key]!r}, expected a pattern such as *.color.png")
    return Pattern.parse(facts[key], where)


SOURCE = SourceKind(
    FolderSource,
    data_set="your own folder",
    layout=(
        "rgb/ID.png (or .jpg, .webp); optional depth/ID.png (or .npy, .npz, .pfm, .exr), NAME.txt, dataset.json, "
        "K.txt or intrinsics.csv; or patterns in dataset.json; an id may contain folders"
    ),
    splits="`all`, NAME of NAME.txt, or a list file with one id per line",
    truth=(
        "`truth` is the folder or a pattern; metres = value * metres_per_unit of dataset.json (default 0.001 for "
        "16 bits, 1 for float); 0, NaN, infinity and its `invalid` = none"
    ),
    licence="yours",
    defaults=Defaults(),
    intrinsics="K.txt, `intrinsics` of dataset.json, or intrinsics.csv with a row for each image, if it is there",
)
