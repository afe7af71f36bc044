"""A folder of predictions that somebody wrote earlier, one file an image: any network, no dependency.

DIR/ID.png (16 bits), .npy, .npz, .pfm or .exr, where `/` in the id may be a folder or written `_`, as the released
TIE-KD code has it. DIR/predictions.json may say what the numbers mean, and what part of an image they show; only its
first key is needed:
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
from .metadata import agreed, agreed_size, read_sidecar
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
"""What people may say in it."""
KEYS_OF_OURS = ("farther_than_a_png_holds_px", "images", "onnx_sha256", "precision", "weights_sha256")
"""What `pipeline predict` writes there besides, for people to read."""


def parse_metres_per_unit(text: str) -> float:
    """Metres that a file's 1 stands for: `0.001`, a fraction `80/65535`, or a name of UNITS.

    Raises PipelineError for anything else, and for what is not finite and above 0.
    """
    try:
        above, _, below = text.partition("/")
        value = UNITS[text] if text in UNITS else float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value > 0) or text.endswith("/"):
        raise PipelineError(
            f"metres per unit {text!r}: expected a number above 0, a fraction like 80/65535, or one of "
            f"{', '.join(UNITS)}"
        )
    return value


class PredictionsTeacher:
    """Looks depth up by id. See `load`."""

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
                    f"predictions in {folder}: {self._files[_key(name)]!r} and {name!r} are of one id; remove one"
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
        """Depth (B, h, w) float32 of the files of `ids`, of the part that the framing shows. CPU.

        NaN where a file says so: NaN, a number that is declared invalid, or 0 in an integer format. Without a framing
        the files come as they are.

        Raises PipelineError for an id without file, two ids of one file, files of two sizes, a file that shows another
        part of its image, and one that cannot be read or holds values that are no depth.
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
                    f"{_size(array)} px, expected one size; write all at one, or make a store of each size"
                )
        return TeacherOutput(torch.from_numpy(np.stack(arrays)))

    def _find(self, sample_id: str) -> str:
        nested, flat = sample_id + self._suffix, sample_id.replace("/", "_") + self._suffix
        name = self._files.get(_key(nested)) or self._files.get(_key(flat))
        if name is None:
            raise PipelineError(
                f"predictions in {self._folder}: none for {sample_id!r}, expected {nested} or {flat}; "
                "predict the image too, or take it out of the split"
            )
        owner = self._owners.setdefault(name, sample_id)
        if owner != sample_id:
            raise PipelineError(
                f"predictions in {self._folder}: {name} would be of both {owner!r} and {sample_id!r}; write "
                "the files into folders named as in the ids"
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
                f"{values[bad][0]:g}; expected {expected}, or NaN for no value, in a float format of "
                f"{self.card.depth_space}; where the number says that there is no value, give "
                f"`invalid={values[bad][0]:g}`"
            )
        return depth


def load(argument: str, device: torch.device, options: TeacherOptions) -> PredictionsTeacher:  # noqa: ARG001 - one signature for all
    """Open a folder of predictions.

    Raises PipelineError for a folder that is missing, empty or holds both formats, and where nobody says the
    scale, or two say it differently.
    """
    folder, where = Path(argument), f"teacher predictions:{argument}"
    if not folder.is_dir():
        raise PipelineError(f"{where}: no such directory, expected one of ID.png or ID{', ID'.join(SUFFIXES[:-1])}")
    names = _list(folder)
    suffixes = sorted({name[-4:].lower() for name in names})
    if len(suffixes) != 1:
        raise PipelineError(
            f"{where}: holds {' and '.join(suffixes) or 'none of ' + ', '.join(SUFFIXES)}, expected files of one "
            "format; keep each format in a folder of its own"
        )
    facts = read_sidecar(folder / ABOUT, (*KEYS, *KEYS_OF_OURS))
    extent = _extent(where, facts, options)
    invalid = tuple(dict.fromkeys((*invalid_numbers(facts.get("invalid"), f"{where}: {ABOUT}"), *options.invalid)))
    depth_space = agreed(where, ABOUT, "depth_space", facts.get("depth_space"), options.depth_space) or "metric_m"
    scale = agreed_scale(where, ABOUT, facts.get("metres_per_unit"), options.metres_per_unit, depth_space)
    if scale is None and depth_space == "metric_m":
        raise PipelineError(
            f"{where}: nothing says what a unit is; give `metres_per_unit=0.001`, or write {folder / ABOUT} with "
            '{"metres_per_unit": 0.001}. Usual values: 0.001 for millimetres (mm), 1/256 for KITTI (kitti), 80/65535 '
            "for released TIE-KD predictions of KITTI (tiekd-kitti), 10/65535 of NYU (tiekd-nyu), 1 for floats in "
            "metres. Predictions that are no metres need none: give `depth_space`"
        )
    card = TeacherCard(
        kind="predictions",
        name=agreed(where, ABOUT, "name", facts.get("name"), None) or folder.resolve().name,
        depth_space=depth_space,
        weights_sha256=_digest(folder, names),
        preprocessing={"format": suffixes[0][1:], "metres_per_unit": scale or 1.0, **_stated(extent, invalid)},
        precision="float32",
        licence=agreed(where, ABOUT, "licence", facts.get("licence"), options.licence),
    )
    return PredictionsTeacher(folder, names, suffixes[0], scale or 1.0, card, extent, invalid)


def _extent(where: str, facts: dict[str, Any], options: TeacherOptions) -> Extent:
    """What is stated of the part that the files show. Raises PipelineError for what is no statement."""
    grid, view = (agreed(where, ABOUT, key, facts.get(key), None) for key in ("grid", "view"))
    if grid not in {None, *GRIDS}:
        raise PipelineError(f"{where}: {ABOUT} says grid {grid!r}, expected image or view")
    try:
        seen = None if view is None else View.parse(view)
    except ValueError as error:
        raise PipelineError(f"{where}: {ABOUT}: {error}") from error
    if grid is None and seen is not None:
        grid = "view"
    return Extent(grid, seen, agreed_size(where, ABOUT, facts.get("input_size"), options.input_size_px))


def _stated(extent: Extent, invalid: Sequence[float]) -> dict[str, Any]:
    """What of this decides the numbers of a store, for the card; nothing where nothing was stated."""
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


def agreed_scale(where: str, origin: str, written: object, asked: float | None, depth_space: str) -> float | None:
    """Metres per unit that the description `origin` and the flag say, None where neither does.

    Raises PipelineError for two that contradict each other, for what is no scale, and for any but 1 where the
    numbers are no metres: they are kept as they are.
    """
    if asked is not None and not (math.isfinite(asked) and asked > 0):
        raise OptionError("metres_per_unit", asked, "a number above 0")
    try:
        value = asked if written is None else parse_metres_per_unit(str(written))
    except ValueError as error:
        raise PipelineError(f"{where}: {origin}: {error}") from error
    if asked is not None and value is not None and not math.isclose(asked, value):
        raise PipelineError(
            f"{where}: `metres_per_unit={asked}` but {origin} says {written}; leave the flag out, or correct the file"
        )
    if value not in {None, 1.0} and depth_space != "metric_m":
        raise PipelineError(
            f"{where}: {value:g} metres per unit, but {depth_space} has no metres and is kept as it is: leave the "
            "scale out, or say metric_m"
        )
    return value


def _list(folder: Path) -> set[str]:
    """Paths below `folder` of every file of SUFFIXES whose name could be an id, also behind links to folders."""
    names: set[str] = set()
    pending: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    while pending:
        below, above = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.is_dir():
                        real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
                        if real not in above:  # a link in circles has nothing new
                            pending.append((f"{below}{entry.name}/", (*above, real)))
                    elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                        names.add(below + entry.name)
        except OSError as error:
            raise PipelineError(f"predictions in {folder}: {error.strerror} at {below!r}") from error
    return {name for name in names if not has_control(name)}


def _key(name: str) -> str:
    """A file's name as ids are compared: in Unicode's form NFC, with a small suffix."""
    return unicodedata.normalize("NFC", name[:-4]) + name[-4:].lower()


def _digest(folder: Path, names: set[str]) -> str:
    """A sha256 of every name and content: another teacher's files may have the same names and sizes."""

    def of_file(name: str) -> str:
        try:
            with open_regular(folder / name) as file:
                size = os.fstat(file.fileno()).st_size
                if size > LIMIT_BYTES:  # a sparse file can say anything, and would be read for hours
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
