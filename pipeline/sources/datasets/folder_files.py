"""Finds images and depth files below a folder, and their ids, by patterns such as `rgb/*` or `*.color.png`.

An id is the match of `*`, folders included, in Unicode normal form NFC: macOS decomposes accents in file names, and
lists written elsewhere do not.
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
    """Paths below a root: the text `before` and `after` the id. If `after` is empty, any suffix of its kind matches."""

    before: str
    after: str

    @classmethod
    def parse(cls, text: str, where: str) -> Pattern:
        """Parse `rgb/*`. Raises PipelineError, beginning with `where`, unless it has one `*` below the root."""
        before, star, after = text.partition("*")
        normalized = not {"..", "."} & set(text.split("/")) and "//" not in text and not text.startswith("/")
        if not star or "*" in after or "/" in after or not normalized or has_control(text):
            raise PipelineError(
                f"{where}: pattern {text!r}, expected a path below the root with one * for the id in its last part: "
                "rgb/*, or *.color.png (where * also matches folders)"
            )
        return cls(before, after)

    @property
    def folder(self) -> str:
        """The folder of all its files."""
        return self.before.rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.before}*{self.after}"

    def id_of(self, path: str, suffixes: tuple[str, ...]) -> str | None:
        """Return the match of `*` in a path, None for another file."""
        stem, suffix = os.path.splitext(path)  # noqa: PTH122 - of many files: a Path for each costs more
        if not path.startswith(self.before) or suffix.lower() not in suffixes:
            return None
        if not self.after:
            matched = stem[len(self.before) :]
        elif path.endswith(self.after):
            matched = path[len(self.before) : -len(self.after)]
        else:
            return None
        return unicodedata.normalize("NFC", matched) if matched and not matched.endswith("/") else None


class FolderFiles(NamedTuple):
    """The files below a folder that match a pattern."""

    files: dict[str, str]
    """Id -> path below the root."""
    unusable: list[str]
    """Paths that cannot be ids: with control characters, or not UTF-8."""
    unread: list[str]
    """Paths of images in formats that are not supported."""


def find_files(root: Path, pattern: Pattern, where: str, *, depth: bool = False) -> FolderFiles:
    """Find the images, or with `depth` the depth files, of a pattern.

    Raises PipelineError for two files of one id, and as `files_below`.
    """
    suffixes, what = (ARRAY_SUFFIXES, "depth files") if depth else (IMAGE_SUFFIXES, "images")
    matches = FolderFiles({}, [], [])
    folder = root / pattern.folder
    for file in files_below(folder, root) if folder.is_dir() else ():
        path = f"{pattern.folder}/{file}" if pattern.folder else file
        file_id = pattern.id_of(path, suffixes)
        if file_id is None:
            if not pattern.after and path.lower().endswith(OTHER_IMAGES):
                matches.unread.append(path)
        elif has_control(file_id):
            matches.unusable.append(path)
        elif matches.files.setdefault(file_id, path) != path:
            raise PipelineError(
                f"{where}: {printable(matches.files[file_id])} and {printable(path)} are two {what} with the id "
                f"{file_id!r}; remove one, or keep each format in a separate folder"
            )
    return matches


def warn_of_unread_images(root: Path, matches: FolderFiles) -> None:
    """Warn of images that are skipped because their format is not supported."""
    if matches.unread:
        LOG.warning(
            "%s: skipped %d images in unsupported formats (%s); convert them to PNG, JPEG or WebP",
            printable(str(root)),
            len(matches.unread),
            printable(", ".join(sorted(matches.unread)[:3])) + (" ..." if len(matches.unread) > 3 else ""),
        )


def check_usable(matches: FolderFiles, where: str) -> None:
    """Raise PipelineError for files whose names cannot be ids."""
    if matches.unusable:
        raise PipelineError(
            f"{where}: {len(matches.unusable)} images have names with control characters or that are not UTF-8, "
            f"for example {printable(min(matches.unusable))}; rename them, or list the other images as a split"
        )


def files_below(folder: Path, root: Path) -> Iterator[str]:
    """Yield the files below `folder`, which may be a link, as paths relative to it; links to folders are followed.

    Hidden names are skipped. Raises PipelineError for a circular link, and for a link to a path outside both `root` and
    the folder, unless it is DVC's link to its cache.
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
                            f"{printable(entry.path)}: circular link to {printable(real)}; remove it, or copy the "
                            "files there"
                        )
                    else:
                        pending.append((f"{below}{entry.name}/", (*above, real)))
        except OSError as error:
            raise PipelineError(
                f"folder {printable(str(folder / below))}: {error.strerror}; expected a readable folder"
            ) from error


def _check_link(path: str, root: Path, inside: list[str]) -> None:
    target = os.path.realpath(path)
    if any(os.path.commonpath([target, folder]) == folder for folder in inside):
        return
    if cached_target(path, str(root)) is None and cached_target(path, inside[1]) is None:
        raise PipelineError(
            f"{printable(path)}: link to {printable(target)}, which is outside the root {inside[0]}; copy the files, "
            "or give a root that contains both"
        )
