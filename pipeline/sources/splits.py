"""Text lists that name a split: found by name or path, read with every error naming its line."""

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
"""What may surround a row. Blanks of other widths are part of a name."""
LIMIT_LINE_BYTES = 16384
"""Three paths of the longest that Linux knows."""


def find_list(split: str, folder: Path) -> Path:
    """The list file that `split` means: a name NAME of `folder`/NAME.txt, else a path.

    Raises PipelineError that lists the names there are.
    """
    if re.fullmatch(r"[\w.-]+", split):
        named = folder / f"{split}.txt"
        if named.is_file():
            return named
    if Path(split).is_file():
        return Path(split)
    names = sorted(path.stem for path in folder.glob("*.txt"))[:20] if folder.is_dir() else []
    there = f"there: {', '.join(names)}" if names else "there is none"
    raise PipelineError(f"split {split!r}: expected a file, or the name of a list {folder}/NAME.txt ({there})")


def rows(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of each line that is not blank, without surrounding space.

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
                    f"split {path} line {number}: more than {LIMIT_LINE_BYTES} bytes; expected a text list, one image "
                    "a line"
                )
            try:
                # Windows editors put a byte order mark first.
                row = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(BLANKS)
            except UnicodeDecodeError as error:
                raise PipelineError(
                    f"split {path}: byte {start + error.start} is not UTF-8; expected a text list, one image a line"
                ) from error
            start += len(line)
            if row:
                yield number, row


def checked_path(text: str, where: str) -> str:
    """`text`, if it is a relative path in its one plain form. Raises PipelineError that begins with `where`."""
    if (
        text.startswith("/")
        or "\\" in text
        or ".." in text.split("/")
        or PurePosixPath(text).as_posix() != text
        or text == "."
        or has_control(text)
    ):
        raise PipelineError(
            f"{where}: path {text!r} is absolute, leaves the root or is not in its plain form; expected "
            "one like a/b/0001.png, relative to the root, without control characters"
        )
    return text


def without_suffix(text: str) -> str | None:
    """`text` without its image suffix, None if it has none of IMAGE_SUFFIXES."""
    stem, dot, suffix = text.rpartition(".")
    named = stem and dot and not stem.endswith("/")
    return stem if named and f".{suffix.lower()}" in IMAGE_SUFFIXES else None


class Ids:
    """The ids of one list so far, to refuse a second row of the same image."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, int] = {}

    def add(self, sample_id: str, line: int) -> None:
        """Raises PipelineError with both line numbers if the id was there before."""
        first = self._lines.setdefault(sample_id, line)
        if first != line:
            raise PipelineError(
                f"split {self._path} line {line}: {sample_id!r} stands in line {first} already; "
                "expected each image once: delete one of the two"
            )

    def check_not_empty(self) -> None:
        """Raises PipelineError if no row was added."""
        if not self._lines:
            raise PipelineError(f"split {self._path}: no rows, expected one a line")


def evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples spread evenly over a split, or all of them where it has fewer."""
    if count >= len(samples):
        return list(samples)
    return [samples[number * len(samples) // count] for number in range(count)]


def file_names(folder: Path | str) -> list[str]:
    """Names in a folder, sorted; none where there is no such folder. Hidden ones are passed over.

    Folders are among them: callers look for names of their own form. Raises PipelineError for an unreadable folder.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PipelineError(f"folder {folder}: {error.strerror}; expected a readable folder") from error


def folder_names(folder: Path | str) -> list[str]:
    """Names of the folders in a folder, sorted, links to folders among them; none where there is no such folder.

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
    """As `find_list`, for a split that is none of the source's own names; the error tells `names` too."""
    try:
        return find_list(split, folder)
    except ValueError as error:
        raise PipelineError(f"{error}; or {names}") from error
