"""Distributions of transformers networks: ZoeDepth's bins for each pixel, and fixed bins.

Their forward pass returns the mean only. Forward hooks capture the distribution, and every batch is checked: the mean
over the bin centers must equal the depth that the network returned.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the network's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import PipelineError
from ..base import TeacherOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

MEAN_TOLERANCE = 1e-3
"""Largest relative difference between the mean of the maps and the network's depth; float32 sums are within 1e-5."""
SPAN = 1e-6
"""Smallest relative distance of the last edge from the first, if a network puts all bins at one depth."""


class FixedBins:
    """Maps (B, K, h, w) over linear bins that are the same for every image, as of a TIPSv2 head."""

    emits_maps = False
    one_image = False

    def __init__(self, network: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401, ARG002 - as every reader
        self._regressor = network.bin_regressor
        self._centers_m = self._regressor.bin_centers.double().cpu()
        self.bin_edges_m: NDArray[np.float64] | None = edges_between(self._centers_m).numpy()
        self._captured: dict[str, Tensor] = {}
        _capture(self._regressor.activation, self._captured, "weight")

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401, ARG002
        """Return the depth, and the normalized weights of the bins if `maps`."""
        depth: Tensor = output.predicted_depth.float()
        weight = self._captured.pop("weight").float()
        if not maps:
            return TeacherOutput(depth)
        # The head adds the nearest depth to every weight as a floor.
        weight += self._regressor.min_depth
        dpm = weight / weight.sum(dim=1, keepdim=True)
        _check_mean(dpm, self._centers_m.to(dpm).view(1, -1, 1, 1), depth)
        return TeacherOutput(depth, dpm)


class ZoeDepth:
    """ZoeDepth: a binomial distribution over bin centers of each pixel.

    Its processor pads the view, so outputs are resized to the padded view and cropped, depth as in the library. A
    network with an indoor and an outdoor head selects one by the sum over a batch, so it gets one image at a time.
    """

    bin_edges_m: NDArray[np.float64] | None = None

    def __init__(self, network: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401 - the library ships no types
        self._padded = bool(settings.get("do_pad", True))
        counts = {bins["n_bins"] for bins in network.config.bin_configurations}
        self.one_image = len(network.config.bin_configurations) > 1
        self.emits_maps = len(counts) == 1 and counts != {1}
        self._captured: dict[str, Tensor] = {}
        head = network.metric_head
        for module in head.conditional_log_binomial.values() if self.one_image else [head.conditional_log_binomial]:
            _capture(module, self._captured, "dpm")
        for module in head.attractors.values() if self.one_image else [head.attractors]:
            for layer in module:  # the last layer overwrites the others
                _capture(layer, self._captured, "centers_m", lambda output: output[1])

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401, ARG002
        """Return depth at the size of the view, and maps with edges (B, K + 1, H, W) if `maps`."""
        depth: Tensor = output.predicted_depth.float()
        dpm, centers_m = self._captured.pop("dpm").float(), self._captured.pop("centers_m").float()
        over_view = self._over_view(depth[:, None], view_size_px, "bicubic")[:, 0]
        if not maps:
            return TeacherOutput(over_view)
        centers_m = F.interpolate(centers_m, dpm.shape[-2:], mode="bilinear", align_corners=True)  # as its head
        _check_mean(dpm, centers_m, depth)
        # Bilinear: bicubic weights would make some probabilities negative.
        dpm = self._over_view(dpm, view_size_px, "bilinear")
        centers_m = self._over_view(centers_m, view_size_px, "bilinear")
        if bool((centers_m.diff(dim=1) < 0).any()):
            centers_m, order = centers_m.sort(dim=1)
            dpm = dpm.gather(1, order)
        return TeacherOutput(over_view, dpm, edges_between(centers_m, dim=1))

    def _over_view(self, values: Tensor, view_size_px: tuple[int, int], mode: str) -> Tensor:
        """Resize (B, C, h, w) over the padded view and crop it to (B, C, H, W), as the library does for depth."""
        height, width = view_size_px
        rows, columns = zoedepth_padding_px(view_size_px) if self._padded else (0, 0)
        size = (height + 2 * rows, width + 2 * columns)
        full = F.interpolate(values, size, mode=mode, align_corners=False)
        return full[..., rows : rows + height, columns : columns + width].contiguous()


def zoedepth_padding_px(view_size_px: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns that the library's processor adds on each side of a view (H, W)."""
    rows, columns = (int(np.sqrt(side / 2) * 3) for side in view_size_px)
    return rows, columns


def edges_between(centers_m: Tensor, dim: int = 0) -> Tensor:
    """Return the K + 1 non-descending edges of bins with K >= 2 ascending centers along `dim`.

    Inner edges are halfway between centers; the outer two mirror them, but not below 0. Equal centers give empty bins.
    """
    count = centers_m.shape[dim]
    low, high = centers_m.narrow(dim, 0, count - 1), centers_m.narrow(dim, 1, count - 1)
    half = (high - low) / 2
    first = (low.narrow(dim, 0, 1) - half.narrow(dim, 0, 1)).clamp_min(0)
    last = high.narrow(dim, count - 2, 1) + half.narrow(dim, count - 2, 1)
    return torch.cat([first, (low + high) / 2, torch.maximum(last, first * (1 + SPAN))], dim)


def _capture(
    module: torch.nn.Module,
    captured: dict[str, Tensor],
    name: str,
    part: Callable[[Any], Tensor] = lambda output: output,
) -> None:
    """Store the last output of a module in `captured[name]`."""

    def hook(_: object, __: object, output: Any) -> None:  # noqa: ANN401 - any module's output
        captured[name] = part(output)

    module.register_forward_hook(hook)


def _check_mean(dpm: Tensor, centers_m: Tensor, depth: Tensor) -> None:
    off = ((dpm * centers_m).sum(dim=1) - depth).abs()
    worst = float((off / depth.abs().clamp_min(1e-3)).max())
    if not worst <= MEAN_TOLERANCE:
        raise PipelineError(
            f"the mean of the network's distribution differs from its depth by up to {worst:.2g} of it, expected at "
            f"most {MEAN_TOLERANCE:g}: this version of transformers computes depth differently; install the version in "
            "constraints.txt"
        )
