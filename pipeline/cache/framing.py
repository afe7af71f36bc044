"""What a teacher may want to know of images besides their pixels: view, sizes, cameras, the right images of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..sources.intrinsics import intrinsics_of_view
from ..sources.stereo import baseline_of, read_right
from ..teachers.base import Framing, images_of_views
from ..teachers.camera import wants_baseline, wants_intrinsics, wants_right

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..sources.base import Sample, Source
    from ..sources.intrinsics import Intrinsics
    from ..sources.view import View
    from ..teachers.base import Teacher


def framing_of(
    source: Source, view: View, samples: Sequence[Sample], images_px: Sequence[tuple[int, int]], teacher: Teacher
) -> Framing:
    """Return the framing of a few samples, whose images have `images_px` (height, width).

    Raises PipelineError as `intrinsics_of_view` and `read_right`.
    """
    pairs = list(zip(samples, images_px, strict=True))
    right = None
    if wants_right(teacher):
        views = [view.of_image(read_right(source, sample, image_px)) for sample, image_px in pairs]
        right = images_of_views(torch.from_numpy(np.stack(views)))
    cameras: list[Intrinsics | None] = []
    if wants_intrinsics(teacher):
        cameras = [intrinsics_of_view(source, sample, view, image_px) for sample, image_px in pairs]
    baselines_m = [baseline_of(source, sample) for sample in samples] if wants_baseline(teacher) else []
    return Framing(view, images_px, cameras, right, baselines_m)
