"""The folder that `python -m scenes` renders: images with dense and sparse ground truth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...common.fileio import read_json
from ...errors import PipelineError
from ..base import Defaults, SourceKind
from ..readers.images import read_image_with_sha256
from .folder import FolderSource

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ..base import Sample

RIGHT = "rgb_right"
TRUTHS = {"dense": "depth", "sparse": "depth_sparse"}
DEFAULTS = {
    "street": Defaults(view="full", bins="log:64:1:100", sigma_m=0.5, protocol="plain"),
    "fog": Defaults(view="full", bins="log:64:1:100", sigma_m=0.5, protocol="plain"),
    # The range of a depth camera in equal ratios of 6 %, because relative error counts: the 0.2 m of the method's NYU
    # bins would be 29 % at 0.7 m. Sigma is the released value for NYU.
    "rooms": Defaults(view="full", bins="log:64:0.3:10", sigma_m=0.15, protocol="plain"),
}


class ScenesSource(FolderSource):
    """A rendered folder; with pairs if it was rendered with a baseline."""

    def __init__(self, root: Path, truth: str, *, defaults: Defaults, baseline_m: float | None) -> None:
        super().__init__(root, truth, name="scenes", defaults=defaults)
        self._baseline_m = baseline_m

    def read_right(self, sample: Sample) -> NDArray[np.uint8]:
        """See `stereo.StereoSource`."""
        if self._baseline_m is None:
            raise PipelineError(
                f"source scenes:{self.root}: no right image of {sample.id!r}, it was rendered without pairs; render "
                "another folder with `baseline_m`"
            )
        return read_image_with_sha256(str(self.root / RIGHT / f"{sample.id}.png"))[0]

    def baseline_m(self, sample: Sample) -> float | None:  # noqa: ARG002 - one for all samples
        """See `stereo.StereoSource`."""
        return self._baseline_m


def open_scenes(root: Path, truth: str | None = None) -> ScenesSource:
    """Open a rendered folder; `truth` is `dense` (every pixel, the default) or `sparse` (as from a sensor).

    The defaults are those of the world in its dataset.json, `street` if it has none. Raises PipelineError for another
    truth, world or baseline, or a root that the renderer did not write.
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
    return ScenesSource(root, TRUTHS[truth or "dense"], defaults=DEFAULTS[world], baseline_m=_baseline_m(root, facts))


def _baseline_m(root: Path, facts: object) -> float | None:
    """Return the distance of the cameras, None for a folder without pairs."""
    value = facts.get("baseline_m") if isinstance(facts, dict) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise PipelineError(
            f"source scenes:{root}: dataset.json has baseline_m {value!r}, expected metres above 0; render it again "
            "with `python -m scenes`"
        )
    return float(value)


SOURCE = SourceKind(
    open_scenes,
    data_set="streets, foggy streets or rooms rendered by `python -m scenes`",
    layout="as `folder`, with depth/, depth_sparse/, rgb_right/ for pairs, and a dataset.json with the world",
    splits="`train`, `test`, `all`, or a list file with one id per line",
    truth="`dense` (default) or `sparse`, 16-bit PNG, metres = value * metres_per_unit of dataset.json",
    licence="none needed: rendered on your machine",
    defaults=DEFAULTS["street"],
    intrinsics="intrinsics.csv, which the renderer writes",
)
