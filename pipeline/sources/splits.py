"""Text lists of a split, given by name or path. Each error names the line."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..common.fileio import has_control, open_regular
from ..errors import PipelineError
from .readers.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .base import Sample

LIMIT_BYTES = 512 * 2**20
BLANKS = " \t\r\n\f\v"
"""White space stripped around a row. Unicode spaces are part of a name."""
LIMIT_LINE_BYTES = 16384
"""Three paths of the maximum length on Linux."""


def find_list(split: str, folder: Path) -> Path:
    """Return the list file of `split`: `folder`/NAME.txt for a name, otherwise a path.

    Raises PipelineError that lists the available names.
    """
    if re.fullmatch(r"[\w.-]+", split):
        named = folder / f"{split}.txt"
        if named.is_file():
            return named
    if Path(split).is_file():
        return Path(split)
    names = sorted(path.stem for path in folder.glob("*.txt"))[:20] if folder.is_dir() else []
    available = f"available: {', '.join(names)}" if names else "none available"
    raise PipelineError(f"split {split!r}: expected a file, or NAME of a list {folder}/NAME.txt ({available})")


def rows(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, stripped text) of each line that is not blank.

    Raises PipelineError for a file that cannot be read, is larger than 512 MB, or is not UTF-8.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise PipelineError(f"split {path}: {error.strerror}; expected a text list") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > LIMIT_BYTES:
            raise PipelineError(f"split {path}: {size} bytes, expected a text list of at most {LIMIT_BYTES}")
        start = 0
        for number, line in enumerate(iter(lambda: file.readline(LIMIT_LINE_BYTES + 1), b""), start=1):
            if len(line) > LIMIT_LINE_BYTES:
                raise PipelineError(
                    f"split {path} line {number}: more than {LIMIT_LINE_BYTES} bytes; expected a text list with "
                    "one image per line"
                )
            try:
                # Windows editors put a byte order mark first.
                row = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(BLANKS)
            except UnicodeDecodeError as error:
                raise PipelineError(
                    f"split {path}: byte {start + error.start} is not UTF-8; expected a text list with one image "
                    "per line"
                ) from error
            start += len(line)
            if row:
                yield number, row


def checked_path(text: str, where: str) -> str:
    """Return `text` if it is a normalized relative path. Raises PipelineError that begins with `where`."""
    if (
        text.startswith("/")
        or "\\" in text
        or ".." in text.split("/")
        or PurePosixPath(text).as_posix() != text
        or text == "."
        or has_control(text)
    ):
        raise PipelineError(
            f"{where}: path {text!r} is absolute, outside the root or not normalized; expected a path relative to the "
            "root without control characters, for example a/b/0001.png"
        )
    return text


def without_suffix(text: str) -> str | None:
    """Return `text` without its image suffix, None if it has none of IMAGE_SUFFIXES."""
    stem, dot, suffix = text.rpartition(".")
    named = stem and dot and not stem.endswith("/")
    return stem if named and f".{suffix.lower()}" in IMAGE_SUFFIXES else None


class Ids:
    """The ids of a list, to refuse duplicates."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, int] = {}

    def add(self, sample_id: str, line: int) -> None:
        """Add an id. Raises PipelineError with both line numbers for a duplicate."""
        first = self._lines.setdefault(sample_id, line)
        if first != line:
            raise PipelineError(
                f"split {self._path} line {line}: duplicate id {sample_id!r} (first on line {first}); delete one row"
            )

    def check_not_empty(self) -> None:
        """Raise PipelineError if the list has no rows."""
        if not self._lines:
            raise PipelineError(f"split {self._path}: no rows; expected one image per line")


def evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return `count` samples spread evenly over a split, or all if it has fewer."""
    if count >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // count] for i in range(count)]


def file_names(folder: Path | str) -> list[str]:
    """Return the sorted names in a folder, subfolders included and hidden ones skipped; none if it does not exist.

    Raises PipelineError for an unreadable folder.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PipelineError(f"folder {folder}: {error.strerror}; expected a readable folder") from error


def folder_names(folder: Path | str) -> list[str]:
    """Return the sorted names of subfolders, links included and hidden ones skipped; none if there is no such folder.

    Raises PipelineError for an unreadable folder.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PipelineError(f"folder {folder}: {error.strerror}; expected a readable folder") from error


def find_list_or_name(split: str, folder: Path, names: str) -> Path:
    """As `find_list`, for a split that is not a built-in name; the error also lists the built-in `names`."""
    try:
        return find_list(split, folder)
    except ValueError as error:
        raise PipelineError(f"{error}; or {names}") from error
