"""Convert the output of a transformers network to depth: unchanged, or scaled by DepthPro's field of view.

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
"""Pillow's number of a filter, used in processor settings -> torch's name."""
NEAREST_INVERSE, FARTHEST_INVERSE = 1e4, 1e-4


class Reader(Protocol):
    """Converts the output of one architecture to depth and maps."""

    emits_maps: bool
    """Maps over bins of each pixel."""
    bin_edges_m: NDArray[np.float64] | None
    """(K + 1,) edges of its maps, if the bins are the same for every image."""
    one_image: bool
    """Whether the network needs batches of one image, because its prediction depends on the other images."""

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401
        """Convert the output for images `ids`, whose view is (H, W); stays on the network's device.

        Raises PipelineError for implausible values.
        """
        ...


class DirectDepth:
    """`predicted_depth` (B, h, w), which covers the view."""

    emits_maps = False
    bin_edges_m: NDArray[np.float64] | None = None
    one_image = False

    def __init__(self, network: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401, ARG002 - as every reader
        return

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401, ARG002
        """Return the depth unchanged."""
        return TeacherOutput(output.predicted_depth.float())


class DepthPro:
    """DepthPro: inverse depth of a canonical camera, scaled by the field of view that the network estimates.

    Depth is 1 / (canonical inverse depth x view width / focal length), and the focal length in pixels is half the
    width over the tangent of half the field of view, so the width cancels. As in the library, the scaled inverse depth
    is resized to the view and then inverted; it is not enlarged.
    """

    emits_maps = False
    bin_edges_m: NDArray[np.float64] | None = None
    one_image = False

    def __init__(self, network: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401, ARG002 - as every reader
        self._mode = RESAMPLING[settings["resample"]]

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401, ARG002
        """Return depth in metres with the focal length, or up to a scale for each image without a field of view.

        The network sees the view resized to a square, and its field of view is that of the view's width.

        Raises PipelineError for a field of view outside 0 to 180 degrees.
        """
        inverse: Tensor = output.predicted_depth.float()
        intrinsics_px = None
        if output.field_of_view is not None:
            degrees: Tensor = output.field_of_view.float()
            for sample_id, angle in zip(ids, degrees.tolist(), strict=True):
                if not 0 < angle < 180:  # also NaN
                    raise PipelineError(
                        f"{sample_id}: the network estimates a field of view of {angle:g} degrees, expected a value "
                        "between 0 and 180: check its weights, or use another `view`"
                    )
            width_per_focal = 2 * torch.tan(torch.deg2rad(degrees) / 2)
            inverse = inverse * width_per_focal.view(-1, 1, 1)
            focal_px = view_size_px[1] / width_per_focal
            unknown = torch.full_like(focal_px, torch.nan)
            intrinsics_px = torch.stack([focal_px, focal_px, unknown, unknown], dim=1)
        size = [min(sides) for sides in zip(view_size_px, inverse.shape[-2:], strict=True)]
        inverse = F.interpolate(inverse[:, None], size, mode=self._mode)[:, 0]
        depth = 1 / inverse.clamp(FARTHEST_INVERSE, NEAREST_INVERSE)
        return TeacherOutput(depth, intrinsics_px=intrinsics_px)
