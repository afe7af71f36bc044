"""Cameras of a folder: one for all images in K.txt or dataset.json, or one for each image in intrinsics.csv."""

from __future__ import annotations

import csv
import os
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import printable
from ...errors import PipelineError
from ..base import FileCamera
from ..intrinsics import Intrinsics, checked
from ..readers.images import read_bytes
from ..splits import Ids, rows

if TYPE_CHECKING:
    from pathlib import Path

INTRINSICS_BYTES = 4096
ONE, EACH = "K.txt", "intrinsics.csv"
COLUMNS = ("id", "fx_px", "fy_px", "cx_px", "cy_px")


def read_camera(root: Path, facts: dict[str, Any]) -> FileCamera | None:
    """Return the camera of K.txt or dataset.json, None if neither has it.

    Raises PipelineError for anything but fx fy cx cy or a 3x3 matrix, and if two files give intrinsics.
    """
    path, written = root / ONE, facts.get("intrinsics")
    stated = [name for name in (ONE, EACH) if os.path.lexists(root / name)]
    stated += ["dataset.json"] if written is not None else []
    if len(stated) > 1:
        raise PipelineError(f"source folder {root}: both {stated[0]} and {stated[1]} give intrinsics; remove one")
    if stated == [ONE]:
        try:
            numbers = [float(word) for word in read_bytes(str(path), "intrinsics", INTRINSICS_BYTES).split()]
        except ValueError as error:
            if str(error).startswith("intrinsics "):
                raise
            numbers = []  # a word that is not a number
        where = f"intrinsics {path}"
    elif written is None:
        return None
    else:
        matrix = written if isinstance(written, list) else []
        flat = [value for row in matrix for value in (row if isinstance(row, list) else [row])]
        numbers = [float(value) for value in flat if isinstance(value, int | float) and not isinstance(value, bool)]
        numbers = numbers if len(numbers) == len(flat) else []
        where = f"data set description {root / 'dataset.json'}: intrinsics"
    if len(numbers) not in {4, 9} or not np.isfinite(numbers).all() or (len(numbers) == 9 and numbers[6:] != [0, 0, 1]):
        raise PipelineError(f"{where}: expected fx fy cx cy, or a 3x3 matrix fx 0 cx 0 fy cy 0 0 1, in pixels")
    camera = Intrinsics(*(numbers if len(numbers) == 4 else (numbers[0], numbers[4], numbers[2], numbers[5])))
    return FileCamera(checked(camera, None, where), where=where)


class CameraTable:
    """Cameras of intrinsics.csv by id: arrays, because a folder may have a million images."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises PipelineError with the line for a malformed row or a duplicate id."""
        self._path = path
        ids = Ids(path)
        cameras: list[tuple[str, int, Intrinsics]] = []
        header: tuple[str, ...] | None = None
        for line, text in rows(path):
            row = tuple(next(csv.reader([text])))
            if header is None:
                header = row
                if row != COLUMNS:
                    raise PipelineError(
                        f"intrinsics {path}: first line {printable(text[:200])!r}, expected {','.join(COLUMNS)}"
                    )
                continue
            sample_id, camera = self._parse(row, f"intrinsics {path} line {line}")
            ids.add(sample_id, line)
            cameras.append((sample_id, line, camera))
        cameras.sort()
        self._ids = np.array([sample_id for sample_id, _, _ in cameras], np.dtypes.StringDType())
        self._lines = np.array([line for _, line, _ in cameras], np.int64)
        self._numbers = np.array([camera for _, _, camera in cameras], np.float64).reshape(-1, 4)

    def find(self, sample_id: str) -> FileCamera | None:
        """Return the camera of an image; None if the file has no row for it."""
        index = int(np.searchsorted(self._ids, sample_id))
        if index == len(self._ids) or self._ids[index] != sample_id:
            return None
        camera = Intrinsics(*self._numbers[index].tolist())
        return FileCamera(camera, where=f"intrinsics {self._path} line {self._lines[index]}")

    @staticmethod
    def _parse(row: tuple[str, ...], where: str) -> tuple[str, Intrinsics]:
        try:
            numbers = [float(value) for value in row[1:]]
        except ValueError:
            numbers = []
        if len(row) != len(COLUMNS) or len(numbers) != 4 or not np.isfinite(numbers).all():
            raise PipelineError(
                f"{where}: {printable(','.join(row)[:200])!r}, expected {','.join(COLUMNS)}, such as "
                "0001,500.5,500.5,319.5,239.5"
            )
        return unicodedata.normalize("NFC", row[0]), checked(Intrinsics(*numbers), None, where)


def read_cameras(root: Path) -> CameraTable | None:
    """Return the cameras of intrinsics.csv, None without the file. Raises PipelineError as `CameraTable`."""
    path = root / EACH
    return CameraTable(path) if os.path.lexists(path) else None
