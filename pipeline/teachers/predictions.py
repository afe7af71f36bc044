"""A folder of predictions that somebody wrote earlier, one file an image: any network, no dependency.

DIR/ID.png (16 bits) or DIR/ID.npy, where `/` in the id may be a folder or written `_`, as the released TIE-KD
code has it. DIR/predictions.json may say what the numbers mean; only its first key is needed:
{"metres_per_unit": 0.001, "depth_space": "metric_m", "licence": "...", "name": "..."}

Shape legend: B batch, h w pixels of a file.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..fileio import canonical_json, read_json, sha256_bytes
from ..sources.images import read_png16
from .base import TeacherCard, TeacherOutput
from .npy import read_npy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .registry import TeacherOptions

UNITS = {"mm": 0.001, "kitti": 1 / 256, "tiekd-kitti": 80 / 65535}
SUFFIXES = (".npy", ".png")


def parse_metres_per_unit(text: str) -> float:
    """Metres that a file's 1 stands for: `0.001`, a fraction `80/65535`, or a name of UNITS.

    Raises ValueError for anything else, and for what is not finite and above 0.
    """
    try:
        above, _, below = text.partition("/")
        value = UNITS[text] if text in UNITS else float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value > 0) or text.endswith("/"):
        raise ValueError(
            f"metres per unit {text!r}: expected a number above 0, a fraction like 80/65535, or one of "
            f"{', '.join(UNITS)}"
        )
    return value


class PredictionsTeacher:
    """Looks depth up by id. See `load`."""

    bin_edges_m: NDArray[np.float64] | None = None
    needs_images = False

    def __init__(self, folder: Path, files: set[str], suffix: str, metres_per_unit: float, card: TeacherCard) -> None:
        self.card = card
        self._folder = folder
        self._files = files
        self._suffix = suffix
        self._metres_per_unit = metres_per_unit
        self._owners: dict[str, str] = {}

    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Depth (B, h, w) float32 of the files of `ids`; NaN where an integer format holds 0. CPU.

        Raises ValueError for an id without file, two ids of one file, files of two sizes, and a file that
        cannot be read or holds values that are no depth.
        """
        names = [self._find(sample_id) for sample_id in ids]
        arrays = [self._read(self._folder / name) for name in names]
        for name, array in zip(names, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise ValueError(
                    f"predictions in {self._folder}: {names[0]} is {_size(arrays[0])} px and {name} is "
                    f"{_size(array)} px, expected one size; write all at one, or make a store of each size"
                )
        return TeacherOutput(torch.from_numpy(np.stack(arrays)))

    def _find(self, sample_id: str) -> str:
        nested, flat = sample_id + self._suffix, sample_id.replace("/", "_") + self._suffix
        name = nested if nested in self._files else flat
        if name not in self._files:
            raise ValueError(
                f"predictions in {self._folder}: none for {sample_id!r}, expected {nested} or {flat}; "
                "predict the image too, or take it out of the split"
            )
        owner = self._owners.setdefault(name, sample_id)
        if owner != sample_id:
            raise ValueError(
                f"predictions in {self._folder}: {name} would be of both {owner!r} and {sample_id!r}; write "
                "the files into folders named as in the ids"
            )
        return name

    def _read(self, path: Path) -> NDArray[np.float32]:
        values = read_png16(str(path), "prediction") if self._suffix == ".png" else read_npy(path)
        depth = (values * np.float64(self._metres_per_unit)).astype(np.float32)
        if values.dtype.kind == "u":
            depth[values == 0] = np.nan
            return depth
        bad = ~np.isfinite(depth)
        expected = "finite numbers"
        if self.card.depth_space in {"metric_m", "scale_invariant"}:
            bad |= ~(depth > 0)
            expected = "finite numbers above 0"
        if bad.any():
            raise ValueError(
                f"prediction {path}: {int(bad.sum())} of {bad.size} pixels are NaN, infinite, 0 or negative, "
                f"expected {expected} in a float format of {self.card.depth_space}; mend the writer, or "
                "write uint16, where 0 says that there is no value"
            )
        return depth


def load(argument: str, device: torch.device, options: TeacherOptions) -> PredictionsTeacher:  # noqa: ARG001 - one signature for all
    """Open a folder of predictions.

    Raises ValueError for a folder that is missing, empty or holds both formats, and where nobody says the
    scale, or two say it differently.
    """
    folder = Path(argument)
    if not folder.is_dir():
        raise ValueError(f"teacher predictions:{argument}: no such directory, expected one of ID.png or ID.npy")
    sizes = _list(folder)
    suffixes = sorted({name[-4:] for name in sizes})
    if len(suffixes) != 1:
        raise ValueError(
            f"teacher predictions:{argument}: holds {' and '.join(suffixes) or 'no .png or .npy'}, expected "
            "files of one format; keep each format in a folder of its own"
        )
    about = folder / "predictions.json"
    facts = read_json(about, "description") if about.is_file() else {}
    if not isinstance(facts, dict):
        raise ValueError(  # noqa: TRY004 - a wrong file of the user's, not a wrong call
            f"description {about}: {type(facts).__name__}, expected an object"
        )
    metres_per_unit = _scale(folder, facts, options)
    preprocessing = {"format": suffixes[0][1:], "metres_per_unit": metres_per_unit}
    card = TeacherCard(
        kind="predictions",
        name=str(facts.get("name", folder.resolve().name)),
        depth_space=_agreed(folder, "depth_space", facts, options.depth_space) or "metric_m",
        weights_sha256=sha256_bytes(canonical_json(sorted(sizes.items()))),
        preprocessing=preprocessing,
        precision="float32",
        licence=_agreed(folder, "licence", facts, options.licence),
    )
    return PredictionsTeacher(folder, set(sizes), suffixes[0], metres_per_unit, card)


def _scale(folder: Path, facts: dict[str, Any], options: TeacherOptions) -> float:
    asked, written = options.metres_per_unit, facts.get("metres_per_unit")
    if asked is None and written is None:
        raise ValueError(
            f"predictions in {folder}: nothing says what a unit is; give --metres-per-unit 0.001, or write "
            f'{folder / "predictions.json"} with {{"metres_per_unit": 0.001}}. Usual values: 0.001 for '
            "millimetres (mm), 1/256 for KITTI (kitti), 80/65535 for released TIE-KD KITTI predictions "
            "(tiekd-kitti), 1 for .npy in metres"
        )
    if asked is not None and not (math.isfinite(asked) and asked > 0):
        raise ValueError(f"--metres-per-unit {asked}: expected a number above 0")
    value = asked if written is None else parse_metres_per_unit(str(written))
    assert value is not None, "one of the two says it"
    if asked is not None and not math.isclose(asked, value):
        raise ValueError(
            f"predictions in {folder}: --metres-per-unit {asked} but predictions.json says {written}; "
            "leave the flag out, or correct the file"
        )
    return value


def _agreed(folder: Path, key: str, facts: dict[str, Any], asked: str | None) -> str | None:
    written = facts.get(key)
    if written is not None and asked is not None and written != asked:
        raise ValueError(
            f"predictions in {folder}: {key} {asked!r} asked for but predictions.json says {written!r}; "
            "leave the flag out, or correct the file"
        )
    return asked if written is None else str(written)


def _list(folder: Path) -> dict[str, int]:
    """Name relative to `folder` -> size in bytes, of every file of SUFFIXES."""
    sizes: dict[str, int] = {}
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{below}{entry.name}/")
                    elif entry.name.endswith(SUFFIXES) and not entry.name.startswith("."):
                        sizes[below + entry.name] = entry.stat().st_size
        except OSError as error:
            raise ValueError(f"predictions in {folder}: {error.strerror} at {below!r}") from error
    return sizes


def _size(array: NDArray[np.float32]) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
