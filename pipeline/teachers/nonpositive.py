"""`drop_nonpositive`: treat depth of 0 or less as missing.

Shape legend: B batch, K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..errors import PipelineError
from .base import NONPOSITIVE, POSITIVE_SPACES, run_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from .base import Framing, Teacher, TeacherOutput


class DropNonpositive:
    """A network with NaN where its depth is 0 or less. Its card states this, because the stored depth differs."""

    needs_images = True

    def __init__(self, teacher: Teacher) -> None:
        self.card = replace(teacher.card, preprocessing={**teacher.card.preprocessing, NONPOSITIVE: "no value"})
        self.bin_edges_m: NDArray[np.float64] | None = teacher.bin_edges_m
        self.emits_maps = bool(getattr(teacher, "emits_maps", False))
        self.device: torch.device | None = getattr(teacher, "device", None)
        self.wants_framing = bool(getattr(teacher, "wants_framing", False))
        self._teacher = teacher

    def predict(self, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None) -> TeacherOutput:
        """Predict depth (B, h, w) and maps (B, K, h, w), NaN where depth is 0 or less."""
        output = run_teacher(self._teacher, images, ids, framing)
        depth, dpm = output.depth, output.dpm
        hole = depth <= 0
        depth = torch.where(hole, torch.nan, depth.float())
        if dpm is not None:
            dpm = dpm.float().masked_fill(hole[:, None], torch.nan)
        return output._replace(depth=depth, dpm=dpm)


def drop_nonpositive(teacher: Teacher) -> DropNonpositive:
    """Treat depth of 0 or less as missing. Raises PipelineError for a depth space in which such depth is valid."""
    if teacher.card.depth_space not in POSITIVE_SPACES:
        raise PipelineError(
            f"`drop_nonpositive`: teacher {teacher.card.name!r} predicts {teacher.card.depth_space}, in which 0 and "
            "less are valid: omit it"
        )
    return DropNonpositive(teacher)
