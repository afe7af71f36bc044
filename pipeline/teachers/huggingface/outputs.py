"""From what a network of transformers returns to depth: as it is, or by DepthPro's field of view.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from ...errors import PipelineError
from ..base import TeacherOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""Pillow's number of a filter, as a processor's settings have it, and torch's name."""
NEAREST_INVERSE, FARTHEST_INVERSE = 1e4, 1e-4


class Reader(Protocol):
    """Makes depth, and perhaps maps, of what one architecture returns."""

    emits_maps: bool
    """Maps over bins that each pixel has of its own."""
    bin_edges_m: NDArray[np.float64] | None
    """(K + 1,) edges of its maps, where it makes some and their bins are the same for every image."""
    alone: bool
    """The network must see one image at a time, for what it says of one depends on the others."""

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401
        """Output of the network for the images `ids`, whose view is (H, W), on the network's device.

        Raises PipelineError for what no sound network would give.
        """
        ...


class AsItIs:
    """`predicted_depth` (B, h, w), which covers the view."""

    emits_maps = False
    bin_edges_m: NDArray[np.float64] | None = None
    alone = False

    def __init__(self, network: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401, ARG002 - as every reader
        return

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401, ARG002
        """See Reader."""
        return TeacherOutput(output.predicted_depth.float())


class DepthPro:
    """DepthPro: inverse depth of a canonical camera, scaled by the field of view that the network estimates.

    Depth is 1 / (canonical inverse depth x view width / focal length), and the focal length in pixels is half the
    width over the tangent of half the field of view: the width falls out. As in the library, the scaled inverse depth
    is resized to the view, then inverted; it stays as it is where the view is larger.
    """

    emits_maps = False
    bin_edges_m: NDArray[np.float64] | None = None
    alone = False

    def __init__(self, network: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401, ARG002 - as every reader
        self._mode = RESAMPLING[settings["resample"]]

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401, ARG002
        """Depth in metres, or up to a scale of each image where there is no field of view.

        Raises PipelineError for a field of view that no camera has.
        """
        inverse: Tensor = output.predicted_depth.float()
        if output.field_of_view is not None:
            degrees: Tensor = output.field_of_view.float()
            for sample_id, angle in zip(ids, degrees.tolist(), strict=True):
                if not 0 < angle < 180:  # also NaN
                    raise PipelineError(
                        f"{sample_id}: the network estimates a field of view of {angle:g} degrees, expected one "
                        "between 0 and 180; give a network that was trained for it, or another view of the image"
                    )
            inverse = inverse * (2 * torch.tan(torch.deg2rad(degrees) / 2)).view(-1, 1, 1)
        size = [min(asked, given) for asked, given in zip(view_size_px, inverse.shape[-2:], strict=True)]
        inverse = F.interpolate(inverse[:, None], size, mode=self._mode)[:, 0]
        return TeacherOutput(1 / inverse.clamp(FARTHEST_INVERSE, NEAREST_INVERSE))
