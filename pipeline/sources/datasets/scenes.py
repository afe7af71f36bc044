"""The folder that `python -m scenes` renders: a plain folder with dense and with sparse ground truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...common.fileio import read_json
from ...errors import PipelineError
from ..base import Defaults, SourceKind
from .folder import FolderSource

if TYPE_CHECKING:
    from pathlib import Path

TRUTHS = {"dense": "depth", "sparse": "depth_sparse"}
DEFAULTS = {
    "street": Defaults(view="full", bins="log:64:1:100", sigma_m=0.5, protocol="plain"),
    # Rooms: the range of a depth camera, in equal ratios of 6 %, because what counts is the error in relation to
    # depth: the 0.2 m of the method's own bins for rooms would be 29 % at 0.7 m. Sigma is the released one for rooms.
    "rooms": Defaults(view="full", bins="log:64:0.3:10", sigma_m=0.15, protocol="plain"),
}


def open_scenes(root: Path, truth: str | None = None) -> FolderSource:
    """A rendered folder; `truth` is `dense` (every pixel, the default) or `sparse` (as from a sensor).

    Its defaults are those of the world that its dataset.json names; a folder that names none is a street. Raises
    ValueError for another truth or world, or a root that the renderer did not write.
    """
    if truth not in {None, *TRUTHS}:
        raise PipelineError(f"source scenes:{root}: truth {truth!r}, expected one of {', '.join(TRUTHS)}")
    if not (root / "dataset.json").is_file():
        raise PipelineError(
            f"source scenes:{root}: no {root / 'dataset.json'}, so the renderer did not write (or finish) "
            f"this folder: run `python -m scenes {root}`, or name a folder of your own folder:{root}"
        )
    facts = read_json(root / "dataset.json", "data set description")
    world = facts.get("world", "street") if isinstance(facts, dict) else "street"
    if not isinstance(world, str) or world not in DEFAULTS:
        raise PipelineError(
            f"source scenes:{root}: dataset.json names the world {world!r}, expected one of {', '.join(DEFAULTS)}: "
            f"render it again with `python -m scenes`, or name a folder of your own folder:{root}"
        )
    return FolderSource(root, TRUTHS[truth or "dense"], name="scenes", defaults=DEFAULTS[world])


SOURCE = SourceKind(
    open_scenes,
    data_set="what `python -m scenes` renders: streets or rooms",
    layout="as `folder`, with depth/ and depth_sparse/, and a dataset.json that names the world",
    splits="`train`, `test`, `all`, or a list file: an id a line",
    truth="`dense` (default) or `sparse`, 16-bit PNG, metres = value * metres_per_unit of dataset.json",
    licence="none needed: made on your machine",
    defaults=DEFAULTS["street"],
)
