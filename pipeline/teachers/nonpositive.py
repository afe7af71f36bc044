"""A teacher whose depth of 0 or less is taken as no value, where the user asked for that.

Shape legend: B batch, K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..errors import PipelineError
from .base import NEVER_0, NONPOSITIVE, TeacherOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from .base import Teacher


class DropsNonpositive:
    """A network with holes where its depth is 0 or less. Its card says so, for its numbers are others."""

    needs_images = True

    def __init__(self, teacher: Teacher) -> None:
        self.card = replace(teacher.card, preprocessing={**teacher.card.preprocessing, NONPOSITIVE: "no value"})
        self.bin_edges_m: NDArray[np.float64] | None = teacher.bin_edges_m
        self.emits_maps = bool(getattr(teacher, "emits_maps", False))
        self._teacher = teacher

    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """Depth (B, h, w) and maps (B, K, h, w) of the network, NaN where depth is 0 or less."""
        depth, dpm, edges_m = self._teacher.predict(images, ids)
        hole = depth <= 0
        depth = torch.where(hole, torch.nan, depth.float())
        if dpm is not None and bool(hole.any()):
            dpm = torch.where(hole[:, None], torch.nan, dpm.float())
        return TeacherOutput(depth, dpm, edges_m)


def drop_nonpositive(teacher: Teacher) -> DropsNonpositive:
    """Take depth of 0 or less as no value. Raises PipelineError where these are values."""
    if teacher.card.depth_space not in NEVER_0:
        raise PipelineError(
            f"`drop_nonpositive`: 0 and less are values in {teacher.card.depth_space}, which teacher "
            f"{teacher.card.name!r} gives; leave it out"
        )
    return DropsNonpositive(teacher)
