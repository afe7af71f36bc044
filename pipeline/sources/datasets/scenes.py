"""The folder that `python -m scenes` renders: images with dense and sparse ground truth."""

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
    "fog": Defaults(view="full", bins="log:64:1:100", sigma_m=0.5, protocol="plain"),
    # The range of a depth camera in equal ratios of 6 %, because relative error counts: the 0.2 m of the method's NYU
    # bins would be 29 % at 0.7 m. Sigma is the released value for NYU.
    "rooms": Defaults(view="full", bins="log:64:0.3:10", sigma_m=0.15, protocol="plain"),
}


def open_scenes(root: Path, truth: str | None = None) -> FolderSource:
    """Open a rendered folder; `truth` is `dense` (every pixel, the default) or `sparse` (as from a sensor).

    The defaults are those of the world in its dataset.json, `street` if it has none. Raises PipelineError for another
    truth or world, or a root that the renderer did not write.
    """
    if truth not in {None, *TRUTHS}:
        raise PipelineError(f"source scenes:{root}: truth {truth!r}, expected one of {', '.join(TRUTHS)}")
    if not (root / "dataset.json").is_file():
        raise PipelineError(
            f"source scenes:{root}: {root / 'dataset.json'} is missing, the folder is not completely rendered; "
            f"run `python -m scenes {root}`, or open your own folder as folder:{root}"
        )
    facts = read_json(root / "dataset.json", "data set description")
    world = facts.get("world", "street") if isinstance(facts, dict) else "street"
    if not isinstance(world, str) or world not in DEFAULTS:
        raise PipelineError(
            f"source scenes:{root}: dataset.json has world {world!r}, expected one of {', '.join(DEFAULTS)}; "
            f"render it again with `python -m scenes`, or open your own folder as folder:{root}"
        )
    return FolderSource(root, TRUTHS[truth or "dense"], name="scenes", defaults=DEFAULTS[world])


SOURCE = SourceKind(
    open_scenes,
    data_set="streets, foggy streets or rooms rendered by `python -m scenes`",
    layout="as `folder`, with depth/, depth_sparse/ and a dataset.json with the world",
    splits="`train`, `test`, `all`, or a list file with one id per line",
    truth="`dense` (default) or `sparse`, 16-bit PNG, metres = value * metres_per_unit of dataset.json",
    licence="none needed: rendered on your machine",
    defaults=DEFAULTS["street"],
    intrinsics="intrinsics.csv, which the renderer writes",
)
