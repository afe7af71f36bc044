"""Networks of transformers that believe in a distribution: ZoeDepth's bins of each pixel, and bins fixed for all.

Their forward pass returns the mean alone. Hooks on its modules take the distribution on the way, and every batch is
checked: the mean over the bins' centres must be the depth that the network returned.

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
"""Largest relative distance of the mean of the maps from the network's depth; sums in float32 are within 1e-5."""
SPAN = 1e-6
"""Least relative distance of the last edge from the first, where a network puts all of its bins at one depth."""


class FixedBins:
    """Maps over the same linear bins for every image, as of a TIPSv2 head: (B, K, h, w)."""

    emits_maps = False
    alone = False

    def __init__(self, network: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401, ARG002 - as every reader
        self._regressor = network.bin_regressor
        self._centers_m = self._regressor.bin_centers.double().cpu()
        self.bin_edges_m: NDArray[np.float64] | None = edges_between(self._centers_m).numpy()
        self._taken: dict[str, Tensor] = {}
        _take(self._regressor.activation, self._taken, "weight")

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401, ARG002
        """The depth as it is, and the weights of the bins, whose sum is made 1."""
        depth: Tensor = output.predicted_depth.float()
        weight = self._taken.pop("weight").float()
        if not maps:
            return TeacherOutput(depth)
        # Its head adds the nearest depth to every weight, as a floor.
        weight += self._regressor.min_depth
        dpm = weight / weight.sum(dim=1, keepdim=True)
        _check_mean(dpm, self._centers_m.to(dpm).view(1, -1, 1, 1), depth)
        return TeacherOutput(depth, dpm)


class ZoeDepth:
    """ZoeDepth: a binomial distribution over bins whose centres each pixel has for itself.

    Its processor pads the view, so all is resized to the padded view and cropped, depth as the library does it. A
    network with heads for rooms and roads chooses by the sum over a batch: it is shown one image at a time.
    """

    bin_edges_m: NDArray[np.float64] | None = None

    def __init__(self, network: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401 - the library ships no types
        self._padded = bool(settings.get("do_pad", True))
        counts = {bins["n_bins"] for bins in network.config.bin_configurations}
        self.alone = len(network.config.bin_configurations) > 1
        self.emits_maps = len(counts) == 1 and counts != {1}
        self._taken: dict[str, Tensor] = {}
        head = network.metric_head
        for module in head.conditional_log_binomial.values() if self.alone else [head.conditional_log_binomial]:
            _take(module, self._taken, "dpm")
        for module in head.attractors.values() if self.alone else [head.attractors]:
            for layer in module:  # the last to run decides
                _take(layer, self._taken, "centers_m", lambda given: given[1])

    def read(self, output: Any, view_size_px: tuple[int, int], ids: Sequence[str], *, maps: bool) -> TeacherOutput:  # noqa: ANN401, ARG002
        """Depth at the size of the view; maps and their edges (B, K + 1, H, W) too if `maps`."""
        depth: Tensor = output.predicted_depth.float()
        dpm, centers_m = self._taken.pop("dpm").float(), self._taken.pop("centers_m").float()
        over_view = self._over_view(depth[:, None], view_size_px, "bicubic")[:, 0]
        if not maps:
            return TeacherOutput(over_view)
        centers_m = F.interpolate(centers_m, dpm.shape[-2:], mode="bilinear", align_corners=True)  # as its head
        _check_mean(dpm, centers_m, depth)
        # Bilinear, for bicubic weights would make some probabilities negative.
        dpm = self._over_view(dpm, view_size_px, "bilinear")
        centers_m = self._over_view(centers_m, view_size_px, "bilinear")
        if bool((centers_m.diff(dim=1) < 0).any()):
            centers_m, order = centers_m.sort(dim=1)
            dpm = dpm.gather(1, order)
        return TeacherOutput(over_view, dpm, edges_between(centers_m, dim=1))

    def _over_view(self, values: Tensor, view_size_px: tuple[int, int], mode: str) -> Tensor:
        """(B, C, h, w) over the padded view -> (B, C, H, W), as the library's post-processing of depth."""
        height, width = view_size_px
        # int, sqrt and 3 as in the library's processor.
        rows, columns = (int(np.sqrt(side / 2) * 3) if self._padded else 0 for side in view_size_px)
        size = (height + 2 * rows, width + 2 * columns)
        full = F.interpolate(values, size, mode=mode, align_corners=False)
        return full[..., rows : rows + height, columns : columns + width].contiguous()


def edges_between(centers_m: Tensor, dim: int = 0) -> Tensor:
    """Edges of the bins of two or more ascending centres along `dim`, one more than those, and never descending.

    Half-way between neighbours, and as far beyond the two ends, though not below 0. Equal centres have no bin between.
    """
    count = centers_m.shape[dim]
    low, high = centers_m.narrow(dim, 0, count - 1), centers_m.narrow(dim, 1, count - 1)
    half = (high - low) / 2
    first = (low.narrow(dim, 0, 1) - half.narrow(dim, 0, 1)).clamp_min(0)
    last = high.narrow(dim, count - 2, 1) + half.narrow(dim, count - 2, 1)
    return torch.cat([first, (low + high) / 2, torch.maximum(last, first * (1 + SPAN))], dim)


def _take(
    module: torch.nn.Module,
    taken: dict[str, Tensor],
    name: str,
    part: Callable[[Any], Tensor] = lambda given: given,
) -> None:
    """Keep what a module returned last."""

    def keep(_: object, __: object, given: Any) -> None:  # noqa: ANN401 - as the module's own
        taken[name] = part(given)

    module.register_forward_hook(keep)


def _check_mean(dpm: Tensor, centers_m: Tensor, depth: Tensor) -> None:
    off = ((dpm * centers_m).sum(dim=1) - depth).abs()
    worst = float((off / depth.abs().clamp_min(1e-3)).max())
    if not worst <= MEAN_TOLERANCE:
        raise PipelineError(
            f"the distribution taken from the network has means that are off its depth by up to {worst:.2g} of it, "
            f"expected {MEAN_TOLERANCE:g} at most: this version of transformers computes depth in another way; "
            "install the version of constraints.txt"
        )
