"""Opens a source by its written form NAME:ROOT. A new kind of data set is one file and one line here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .folder import FolderSource
from .kitti import KittiSource
from .scenes import open_scenes

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Source

OPENERS: dict[str, Callable[[Path, str | None], Source]] = {
    "folder": FolderSource,
    "kitti": KittiSource,
    "scenes": open_scenes,
}
"""Name -> function of the root and the name of a ground truth (None for the source's default)."""


def open_source(spec: str, truth: str | None = None) -> Source:
    """Open `kitti:ROOT`, `folder:ROOT` or `scenes:ROOT`.

    `truth` chooses among several ground truths, where a source has them. Raises ValueError for an unknown
    name, a missing root, or a root without the files that the source expects.
    """
    name, _, root = spec.partition(":")
    if name not in OPENERS:
        raise ValueError(f"source {spec!r}: unknown kind {name!r}, expected one of {', '.join(sorted(OPENERS))}")
    if not root:
        raise ValueError(f"source {spec!r}: no root, expected {name}:ROOT, for example {name}:data/{name}")
    path = Path(root)
    if not path.is_dir():
        state = "is not a directory" if path.exists() else "does not exist"
        raise ValueError(f"source {spec!r}: {path} {state}; expected the directory of the data set")
    return OPENERS[name](path, truth)
