"""`predictions:DIR`: depth that was predicted earlier, one file for each image.

DIR/ID.png (16 bits), .npy, .npz, .pfm or .exr; `/` in an id is a folder, or written `_` as in the released TIE-KD code.
DIR/predictions.json may hold KEYS, for example:
{"metres_per_unit": 0.001, "depth_space": "metric_m", "invalid": [65535], "licence": "...", "name": "...",
"grid": "view", "view": "kb", "input_size": [192, 640]}

Shape legend: B batch, h w pixels of a file.
"""

from __future__ import annotations

import hashlib
import math
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..common.fileio import canonical_json, has_control, open_regular, printable, sha256_bytes
from ..common.parallel import worker_threads
from ..errors import OptionError, PipelineError
from ..sources.readers.arrays import LIMIT_BYTES, invalid_numbers, is_any_of, read_array
from ..sources.view import View
from .base import VIEW, TeacherCard, TeacherOutput
from .metadata import read_metadata, resolve_size, resolve_text
from .prediction_extent import GRIDS, Extent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .base import Framing
    from .options import TeacherOptions

UNITS = {"mm": 0.001, "kitti": 1 / 256, "tiekd-kitti": 80 / 65535, "tiekd-nyu": 10 / 65535}
"""The last two: depth/datasets/pipelines/loading.py of the released code, KDLoadAnnotations and its _NYU."""
SUFFIXES = (".exr", ".npy", ".npz", ".pfm", ".png")
ABOUT = "predictions.json"
KEYS = ("depth_space", "grid", "input_size", "invalid", "licence", "metres_per_unit", "name", "view")
"""Keys of predictions.json that are read."""
IGNORED_KEYS = ("farther_than_a_png_holds_px", "focal_px", "images", "onnx_sha256", "precision", "weights_sha256")
"""Further keys that `pipeline predict` writes for information."""


def parse_metres_per_unit(text: str) -> float:
    """Parse metres per unit: a number `0.001`, a fraction `80/65535`, or a name of UNITS.

    Raises PipelineError for anything else, and for a value that is not finite and positive.
    """
    try:
        numerator, _, denominator = text.partition("/")
        value = UNITS[text] if text in UNITS else float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value > 0) or text.endswith("/"):
        raise PipelineError(
            f"metres per unit {text!r}: expected a number above 0, a fraction like 80/65535, or one of "
            f"{', '.join(UNITS)}"
        )
    return value


class PredictionsTeacher:
    """Reads depth from files by sample id. See `load`."""

    bin_edges_m: NDArray[np.float64] | None = None
    needs_images = False
    wants_framing = True

    def __init__(
        self,
        folder: Path,
        files: set[str],
        suffix: str,
        metres_per_unit: float,
        card: TeacherCard,
        extent: Extent,
        invalid: Sequence[float],
    ) -> None:
        self.card = card
        self._extent = extent
        self._invalid = invalid
        self._folder = folder
        self._files: dict[str, str] = {}
        for name in sorted(files):
            if self._files.setdefault(_key(name), name) != name:
                raise PipelineError(
                    f"predictions in {folder}: {self._files[_key(name)]!r} and {name!r} have the same id: remove one"
                )
        self._suffix = suffix
        self._metres_per_unit = metres_per_unit
        self._owners: dict[str, str] = {}

    def predict(
        self,
        images: Tensor | None,  # noqa: ARG002 - the protocol
        ids: Sequence[str],
        framing: Framing | None = None,
    ) -> TeacherOutput:
        """Read depth (B, h, w) float32 for `ids`, cropped to the view of `framing`; whole files without a framing.

        NaN is a missing value: NaN or a declared number in the file, or 0 in an integer format.

        Raises PipelineError for an id without a file, two ids with one file, different sizes, a file that covers
        another part of its image, and a file that is unreadable or holds invalid depth.
        """
        names = [self._find(sample_id) for sample_id in ids]
        arrays = [self._read(self._folder / name) for name in names]
        if framing is not None:
            arrays = [
                self._extent.of_view(array, framing.view, image_px, f"prediction {self._folder / name}")
                for name, array, image_px in zip(names, arrays, framing.images_px, strict=True)
            ]
        for name, array in zip(names, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise PipelineError(
                    f"predictions in {self._folder}: {names[0]} is {_size(arrays[0])} px and {name} is "
                    f"{_size(array)} px, expected one size: resize them, or make a store for each size"
                )
        return TeacherOutput(torch.from_numpy(np.stack(arrays)))

    def _find(self, sample_id: str) -> str:
        nested, flat = sample_id + self._suffix, sample_id.replace("/", "_") + self._suffix
        name = self._files.get(_key(nested)) or self._files.get(_key(flat))
        if name is None:
            raise PipelineError(
                f"predictions in {self._folder}: no file for {sample_id!r}, expected {nested} or {flat}: add it, or "
                "remove the sample from the split"
            )
        owner = self._owners.setdefault(name, sample_id)
        if owner != sample_id:
            raise PipelineError(
                f"predictions in {self._folder}: {name} matches both {owner!r} and {sample_id!r}: write the files into "
                "folders named as in the ids"
            )
        return name

    def _read(self, path: Path) -> NDArray[np.float32]:
        values = read_array(path, "prediction")
        depth = (values * np.float64(self._metres_per_unit)).astype(np.float32)
        depth[is_any_of(values, self._invalid)] = np.nan
        if values.dtype.kind == "u":
            depth[values == 0] = np.nan
            return depth
        bad, expected = np.isinf(depth), "finite numbers"
        if self.card.depth_space in {"metric_m", "scale_invariant"}:
            bad |= depth <= 0
            expected += " above 0"
        if bad.any():
            raise PipelineError(
                f"prediction {path}: {int(bad.sum())} of {bad.size} pixels are infinite, 0 or negative, such as "
                f"{values[bad][0]:g}, expected {expected} for {self.card.depth_space}, or NaN for a missing value; if "
                f"this number marks missing values, give `invalid={values[bad][0]:g}`"
            )
        return depth


def load(argument: str, device: torch.device, options: TeacherOptions) -> PredictionsTeacher:  # noqa: ARG001 - one signature for all
    """Open a folder of predictions.

    Raises PipelineError for a missing or empty folder, several formats, and a missing or contradictory scale.
    """
    folder, where = Path(argument), f"teacher predictions:{argument}"
    if not folder.is_dir():
        raise PipelineError(
            f"{where}: no such directory, expected a directory of ID.png or ID{', ID'.join(SUFFIXES[:-1])}"
        )
    names = _list(folder)
    suffixes = sorted({name[-4:].lower() for name in names})
    if len(suffixes) != 1:
        raise PipelineError(
            f"{where}: holds {' and '.join(suffixes) or 'none of ' + ', '.join(SUFFIXES)}, expected files of one "
            "format: use a separate folder for each format"
        )
    facts = read_metadata(folder / ABOUT, (*KEYS, *IGNORED_KEYS))
    extent = _extent(where, facts, options)
    invalid = tuple(dict.fromkeys((*invalid_numbers(facts.get("invalid"), f"{where}: {ABOUT}"), *options.invalid)))
    depth_space = resolve_text(where, ABOUT, "depth_space", facts.get("depth_space"), options.depth_space) or "metric_m"
    scale = resolve_scale(where, ABOUT, facts.get("metres_per_unit"), options.metres_per_unit, depth_space)
    if scale is None and depth_space == "metric_m":
        raise PipelineError(
            f"{where}: the unit is not specified: give `metres_per_unit=0.001`, or write {folder / ABOUT} with "
            '{"metres_per_unit": 0.001}. Usual values: 0.001 for millimetres (mm), 1/256 for KITTI (kitti), 80/65535 '
            "for released TIE-KD predictions of KITTI (tiekd-kitti), 10/65535 of NYU (tiekd-nyu), 1 for floats in "
            "metres. For relative depth give `depth_space` instead"
        )
    card = TeacherCard(
        kind="predictions",
        name=resolve_text(where, ABOUT, "name", facts.get("name"), None) or folder.resolve().name,
        depth_space=depth_space,
        weights_sha256=_digest(folder, names),
        preprocessing={"format": suffixes[0][1:], "metres_per_unit": scale or 1.0, **_stated(extent, invalid)},
        precision="float32",
        licence=resolve_text(where, ABOUT, "licence", facts.get("licence"), options.licence),
    )
    return PredictionsTeacher(folder, names, suffixes[0], scale or 1.0, card, extent, invalid)


def _extent(where: str, facts: dict[str, Any], options: TeacherOptions) -> Extent:
    """Return what is stated about the part that files cover. Raises PipelineError for an invalid statement."""
    grid, view = (resolve_text(where, ABOUT, key, facts.get(key), None) for key in ("grid", "view"))
    if grid not in {None, *GRIDS}:
        raise PipelineError(f"{where}: {ABOUT} has grid {grid!r}, expected image or view")
    try:
        seen = None if view is None else View.parse(view)
    except ValueError as error:
        raise PipelineError(f"{where}: {ABOUT}: {error}") from error
    if grid is None and seen is not None:
        grid = "view"
    return Extent(grid, seen, resolve_size(where, ABOUT, facts.get("input_size"), options.input_size_px))


def _stated(extent: Extent, invalid: Sequence[float]) -> dict[str, Any]:
    """Return the part of the card for what was stated; empty if nothing was."""
    stated: dict[str, Any] = {}
    if extent.grid is not None:
        stated["grid"] = extent.grid
    if extent.grid == "view" and extent.view is not None:
        stated[VIEW] = str(extent.view)
    if extent.input_px is not None:
        stated["input_size_px"] = list(extent.input_px)
    if invalid:
        stated["invalid"] = [number if math.isfinite(number) else str(number) for number in invalid]  # JSON has no inf
    return stated


def resolve_scale(where: str, origin: str, written: object, asked: float | None, depth_space: str) -> float | None:
    """Return metres per unit from the metadata (`written`, from `origin`) or the option (`asked`); None if neither.

    Raises PipelineError if the two contradict, for an invalid scale, and for a scale other than 1 of relative depth,
    which is stored as it is.
    """
    if asked is not None and not (math.isfinite(asked) and asked > 0):
        raise OptionError("metres_per_unit", asked, "a number above 0")
    try:
        value = asked if written is None else parse_metres_per_unit(str(written))
    except ValueError as error:
        raise PipelineError(f"{where}: {origin}: {error}") from error
    if asked is not None and value is not None and not math.isclose(asked, value):
        raise PipelineError(
            f"{where}: `metres_per_unit={asked}` contradicts {written} in {origin}: omit the option or correct the file"
        )
    if value not in {None, 1.0} and depth_space != "metric_m":
        raise PipelineError(
            f"{where}: {value:g} metres per unit does not apply to {depth_space}, which is stored as it is: omit the "
            "scale, or give `depth_space=metric_m`"
        )
    return value


def _list(folder: Path) -> set[str]:
    """Return relative paths of all files of SUFFIXES in `folder`, following links to folders."""
    names: set[str] = set()
    pending: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    while pending:
        below, parents = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.is_dir():
                        real = os.path.realpath(entry.path) if entry.is_symlink() else f"{parents[-1]}/{entry.name}"
                        if real not in parents:  # a link to a parent folder would loop
                            pending.append((f"{below}{entry.name}/", (*parents, real)))
                    elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                        names.add(below + entry.name)
        except OSError as error:
            raise PipelineError(f"predictions in {folder}: {error.strerror} at {below!r}") from error
    return {name for name in names if not has_control(name)}


def _key(name: str) -> str:
    """Normalize a file name for comparison with ids: Unicode NFC, lowercase suffix."""
    return unicodedata.normalize("NFC", name[:-4]) + name[-4:].lower()


def _digest(folder: Path, names: set[str]) -> str:
    """Return a sha256 of all names and contents; files of different teachers may have the same names and sizes."""

    def of_file(name: str) -> str:
        try:
            with open_regular(folder / name) as file:
                size = os.fstat(file.fileno()).st_size
                if size > LIMIT_BYTES:  # hashing a huge sparse file would take hours
                    raise PipelineError(
                        f"prediction {folder / printable(name)}: {size} bytes, expected at most {LIMIT_BYTES}"
                    )
                digest = hashlib.sha256()
                while piece := file.read(2**20):
                    digest.update(piece)
                return digest.hexdigest()
        except OSError as error:
            raise PipelineError(f"prediction {folder / printable(name)}: {error.strerror}") from error

    ordered = sorted(names)
    with ThreadPoolExecutor(worker_threads(), "digest") as threads:
        return sha256_bytes(canonical_json(list(zip(ordered, threads.map(of_file, ordered), strict=True))))


def _size(array: NDArray[np.float32]) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
