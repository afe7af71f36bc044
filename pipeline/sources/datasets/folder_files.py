"""Which files below a folder are images and depth, and of which id, by patterns such as `rgb/*` or `*.color.png`.

An id is what `*` stands for, folders included, in the normal form NFC of Unicode: macOS writes accents as characters of
their own, and lists written elsewhere do not.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

from ...common.dvc_links import cached_target
from ...common.fileio import has_control, printable
from ...errors import PipelineError
from ..readers.arrays import ARRAY_SUFFIXES
from ..readers.images import IMAGE_SUFFIXES, OTHER_IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOG = logging.getLogger(__name__)


class Pattern(NamedTuple):
    """Paths below a root: `before` and `after` the id. `after` may be empty, then the suffix is any of its kind."""

    before: str
    after: str

    @classmethod
    def parse(cls, text: str, where: str) -> Pattern:
        """Parse `rgb/*`. Raises PipelineError, beginning with `where`, unless it has one `*` below the root."""
        before, star, after = text.partition("*")
        plain = not {"..", "."} & set(text.split("/")) and "//" not in text and not text.startswith("/")
        if not star or "*" in after or "/" in after or not plain or has_control(text):
            raise PipelineError(
                f"{where}: pattern {text!r}, expected a path below the root with one * for the id, in its last part: "
                "rgb/*, or *.color.png (then * stands for folders too)"
            )
        return cls(before, after)

    @property
    def folder(self) -> str:
        """The folder in which all its files lie."""
        return self.before.rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.before}*{self.after}"

    def id_of(self, path: str, suffixes: tuple[str, ...]) -> str | None:
        """What `*` stands for in a path, None for another file."""
        stem, suffix = os.path.splitext(path)  # noqa: PTH122 - of many files: a Path for each costs more
        if not path.startswith(self.before) or suffix.lower() not in suffixes:
            return None
        if not self.after:
            found = stem[len(self.before) :]
        elif path.endswith(self.after):
            found = path[len(self.before) : -len(self.after)]
        else:
            return None
        return unicodedata.normalize("NFC", found) if found and not found.endswith("/") else None


class Found(NamedTuple):
    """What lies below a folder."""

    files: dict[str, str]
    """Id -> path below the root."""
    unusable: list[str]
    """Paths that could be no id: control characters in them, or not UTF-8."""
    others: list[str]
    """Paths of images in formats that are not read."""


def find_files(root: Path, pattern: Pattern, where: str, *, depth: bool = False) -> Found:
    """Images of a pattern, or files of depth.

    Raises PipelineError for two of one id, and as `files_below`.
    """
    suffixes, what = (ARRAY_SUFFIXES, "depth files") if depth else (IMAGE_SUFFIXES, "images")
    found = Found({}, [], [])
    folder = root / pattern.folder
    for file in files_below(folder, root) if folder.is_dir() else ():
        path = f"{pattern.folder}/{file}" if pattern.folder else file
        file_id = pattern.id_of(path, suffixes)
        if file_id is None:
            if not pattern.after and path.lower().endswith(OTHER_IMAGES):
                found.others.append(path)
        elif has_control(file_id):
            found.unusable.append(path)
        elif found.files.setdefault(file_id, path) != path:
            raise PipelineError(
                f"{where}: {printable(found.files[file_id])} and {printable(path)} are two {what} of the id "
                f"{file_id!r}; remove one, or keep each format in a folder of its own"
            )
    return found


def say_others(root: Path, found: Found) -> None:
    """Warn of images that are left out because their format is not read."""
    if found.others:
        LOG.warning(
            "%s: %d images left out, of formats that are not read (%s): convert them to PNG, JPEG or WebP",
            printable(str(root)),
            len(found.others),
            printable(", ".join(sorted(found.others)[:3])) + (" ..." if len(found.others) > 3 else ""),
        )


def check_usable(found: Found, where: str) -> None:
    """Raises PipelineError for files whose names could be no id."""
    if found.unusable:
        raise PipelineError(
            f"{where}: {len(found.unusable)} images have control characters in their names, or names that are not "
            f"UTF-8, such as {printable(min(found.unusable))}; rename them, or list the others as a split"
        )


def files_below(folder: Path, root: Path) -> Iterator[str]:
    """Files below `folder`, which may be a link, as paths relative to it; folders behind links are read.

    Hidden names are passed over. Raises PipelineError for a link in it that leads in circles, and for one that leaves
    both `root` and the folder, unless DVC made it to its cache.
    """
    inside = [os.path.realpath(root), os.path.realpath(folder)]
    pending: list[tuple[str, tuple[str, ...]]] = [("", (inside[1],))]
    while pending:
        below, above = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
                    if entry.is_symlink():
                        _check_link(entry.path, root, inside)
                    if not entry.is_dir():
                        yield f"{below}{entry.name}"
                    elif real in above:
                        raise PipelineError(
                            f"{printable(entry.path)}: a link to {printable(real)}, which leads in circles; remove "
                            "the link, or copy it there"
                        )
                    else:
                        pending.append((f"{below}{entry.name}/", (*above, real)))
        except OSError as error:
            raise PipelineError(
                f"folder {printable(str(folder / below))}: {error.strerror}; expected a readable folder"
            ) from error


def _check_link(path: str, root: Path, inside: list[str]) -> None:
    target = os.path.realpath(path)
    if any(os.path.commonpath([target, one]) == one for one in inside):
        return
    if cached_target(path, str(root)) is None and cached_target(path, inside[1]) is None:
        raise PipelineError(
            f"{printable(path)}: a link to {printable(target)}, which is outside of the root {inside[0]}; copy the "
            "files, or give a root that holds both"
        )
