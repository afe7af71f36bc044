"""Rescale a student's depth to another camera: a network sees only how large things are in the image.

An object twice as large in pixels is half as far, or seen with twice the focal length. So depth of a view is
multiplied by its focal length over that of training, both in pixels of the network's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..depth.relative import METRIC
from ..errors import OptionError, PipelineError
from ..sources.intrinsics import MAX_FOCAL_PX, Intrinsics

if TYPE_CHECKING:
    from ..sources.view import View


class TrainedModel(Protocol):
    """What is needed of a predictor."""

    view: View
    depth_space: str
    facts: dict[str, Any]
    trained_focal_px: float | None
    """In pixels of the training view; None if unknown."""


def check_focal(model: TrainedModel, focal_px: float | None) -> None:
    """Raise PipelineError if depth cannot be rescaled to this focal length; None is always valid."""
    if focal_px is None:
        return
    if not 0 < focal_px < MAX_FOCAL_PX:
        raise OptionError("focal_px", focal_px, f"a number of pixels above 0 and below {MAX_FOCAL_PX:g}")
    if model.depth_space != METRIC:
        raise PipelineError(
            f"`focal_px={focal_px:g}`: {model.facts['name']} predicts relative depth ({model.depth_space}), which a "
            "focal length cannot turn into metres: omit it"
        )
    if model.trained_focal_px is None:
        raise PipelineError(
            f"`focal_px={focal_px:g}`: {model.facts['name']} does not record the focal length that it was trained at: "
            "omit it, or train again from a source with intrinsics (docs/sources.md)"
        )


def depth_scale(model: TrainedModel, focal_px: float | None, image_px: tuple[int, int]) -> float:
    """Return the factor of depth for an image (height, width) of a camera, 1 if `focal_px` is None.

    `focal_px` is in pixels of the image. Call `check_focal` first.
    """
    if focal_px is None:
        return 1.0
    assert model.trained_focal_px is not None
    return model.view.of_intrinsics(Intrinsics.of_focal(focal_px), image_px).focal_px / model.trained_focal_px
