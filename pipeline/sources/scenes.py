"""The folder that `pipeline make-scenes` renders: a plain folder with dense and with sparse ground truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Customs
from .folder import FolderSource

if TYPE_CHECKING:
    from pathlib import Path

TRUTHS = {"dense": "depth", "sparse": "depth_sparse"}
CUSTOMS = Customs(view="full", bins="log:64:1:100", sigma_m=0.5, protocol="plain")


def open_scenes(root: Path, truth: str | None = None) -> FolderSource:
    """A rendered folder; `truth` is `dense` (every pixel, the default) or `sparse` (as from a LiDAR).

    Raises ValueError for another truth, or a root that `make-scenes` did not write.
    """
    if truth not in {None, *TRUTHS}:
        raise ValueError(f"source scenes:{root}: truth {truth!r}, expected one of {', '.join(TRUTHS)}")
    if not (root / "dataset.json").is_file():
        raise ValueError(
            f"source scenes:{root}: no {root / 'dataset.json'}, so make-scenes did not write (or finish) "
            f"this folder: run `pipeline make-scenes {root}`, or name a folder of your own folder:{root}"
        )
    return FolderSource(root, TRUTHS[truth or "dense"], name="scenes", customs=CUSTOMS)
