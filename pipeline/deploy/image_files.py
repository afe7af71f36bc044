"""Find the images below a folder, and give each an id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.fileio import has_control, printable
from ..errors import PipelineError
from ..sources.readers.images import IMAGE_SUFFIXES, OTHER_IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..common.progress import Progress


def find_images(path: Path, progress: Progress | None = None) -> list[tuple[str, Path]]:
    """(id, file) of one image, or of all below a folder, sorted; an id is the path in the folder without suffix.

    Follows links, reads each folder once and skips hidden files. Skips images of other formats and names that are no
    valid id with a note. Raises PipelineError if there is no image, and for two images with one id.
    """
    if path.is_file():
        return [(path.stem, path)]
    if not path.is_dir():
        raise PipelineError(f"{path} does not exist; expected an image, or a folder of images")
    images: dict[str, Path] = {}
    other_formats: list[Path] = []
    unusable: list[Path] = []
    for file in _files_below(path):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            other_formats += [file] if file.suffix.lower() in OTHER_IMAGES else []
            continue
        image_id = file.relative_to(path).with_suffix("").as_posix()
        if has_control(image_id):
            unusable.append(file)
        elif images.setdefault(image_id, file) != file:
            raise PipelineError(f"{images[image_id]} and {file} have the same id {image_id}; rename or move one")
    skipped = [
        f"images skipped: {len(files)} with {why} "
        f"({printable(files[0].name)}{' ...' if len(files) > 1 else ''}); {remedy}"
        for files, why, remedy in (
            (other_formats, "an unsupported format", "convert them to PNG, JPEG or WebP"),
            (unusable, "control characters or non-UTF-8 bytes in the name", "rename them"),
        )
        if files
    ]
    if not images:
        more = f"; {'; '.join(skipped)}" if skipped else ""
        raise PipelineError(f"{path} has no images; expected files that end in {', '.join(IMAGE_SUFFIXES)}{more}")
    if progress is not None:
        for text in skipped:
            progress.note(text)
    return sorted(images.items())


def _files_below(path: Path) -> Iterator[Path]:
    """Visible files below a folder, sorted. Each real folder is read once, because links may be circular."""
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
