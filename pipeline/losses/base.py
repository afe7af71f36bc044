"""Base class of all losses, and terms that several of them use.

Every loss is called as `loss(logits, target_depth_m, target_dpm=None)` and returns a scalar; `terms` also returns its
parts. Pixels whose target is NaN, infinite or not positive are ignored. Gradients are never NaN; without a valid pixel
the loss is 0 and differentiable. In distributed training, means are over the valid pixels of all ranks: sums go
through `all_sum` before the division.

Shape legend: B batch, K bins, M planes of a sparse map, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.distributed import all_sum
from ..depth import readout as readouts
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

SI_MEAN_WEIGHT = 0.15
SI_EPSILON_M = 1e-3


@dataclass(frozen=True)
class LossSettings:
    """Settings of losses. Each loss uses the fields that apply to it."""

    sigma_m: float = 0.5
    """Width of Gaussian maps in metres."""
    sigma_bins: float | None = None
    """Width of Gaussian maps in bins; overrides `sigma_m`."""
    weight: float = 0.1
    """Weight w of the KL term in the TIE-KD loss."""
    skip_rows: int = 0
    """Top rows of the target to ignore."""
    centered: bool = False
    """Whether to shift each Gaussian so that the mean of its map is the depth."""
    readout: str = "mean"
    """How the depth terms read the student's map: one of `readout.TRAINABLE`."""
    head: str = "dpm"
    """What the student's outputs are: `dpm`, logits of a map (also for `depth`); or one of
    `log_distribution.FAMILIES`."""


class StoredMaps(NamedTuple):
    """Sparse maps, encoded as in a store."""

    gap: Tensor
    """(B, M, h, w) steps from bin to bin; 0 in unused planes; all 0 where a pixel has no map"""
    weight: Tensor
    """(B, M, h, w) codes of their probabilities"""
    tail: Tensor
    """(B, h, w) code of the probability of all other bins together"""
    bins: int
    table: Tensor
    """probability of each code (store format)"""

    @property
    def shape(self) -> torch.Size:
        """(B, K, h, w)."""
        return torch.Size((len(self.gap), self.bins, *self.gap.shape[2:]))


class LazyLogits:
    """Logits (B, K, h, w) that are not computed: features (B, C, h, w) and the head's weight (K, C) and bias (K,).

    Losses with `takes_lazy_logits` take them in place of logits; see `fused_head`.
    """

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.features, self.weight, self.bias = features, weight, bias
        self.shape = torch.Size((features.shape[0], weight.shape[0], *features.shape[2:]))
        self.ndim = 4
        self.dtype, self.device = features.dtype, features.device

    @classmethod
    def of(cls, head: nn.Conv2d, features: Tensor) -> LazyLogits:
        """Return the logits that a 1x1 convolution would compute."""
        assert head.kernel_size == (1, 1)
        assert head.bias is not None
        return cls(features, head.weight.flatten(1), head.bias)


Maps: TypeAlias = Tensor | StoredMaps
AnyLogits: TypeAlias = Tensor | LazyLogits


class DepthLoss(nn.Module):
    """Base class of losses: bins, resolution, validity and ignored rows.

    Depth terms are at the resolution of the target: the student's depth is upsampled (bilinear, align_corners=False).
    Map terms are at the resolution of the logits: the target pixel nearest to each center is used, since an average of
    two surfaces is neither. Depth terms clamp targets to the range of the bins, which limits the student's depth.
    """

    def __init__(
        self, bin_edges_m: Tensor | Sequence[float], skip_rows: int = 0, *, readout: str = readouts.DEFAULT
    ) -> None:
        super().__init__()
        # Not a buffer: edges stay float64 on the CPU, so that reading their ends does not synchronize with the GPU.
        edges = torch.as_tensor(bin_edges_m, dtype=torch.float64, device="cpu").detach().clone()
        if edges.ndim != 1 or edges.numel() < 3 or not bool((edges.diff() > 0).all()):
            raise PipelineError(f"bin edges of shape {tuple(edges.shape)}: expected at least 3 depths, ascending")
        if skip_rows < 0:
            raise PipelineError(f"`skip_rows={skip_rows}` must be at least 0")
        self.bin_edges_m = edges
        self.range_m = (float(edges[0]), float(edges[-1]))
        """Depth terms clamp targets to it."""
        self.skip_rows = skip_rows
        readouts.levels_of(edges, readout)  # checks it
        self.readout = readout
        self.outputs = edges.numel() - 1
        """Channels of the student's outputs."""
        self.depth_space = "metric_m"
        """Depth space of the teacher, for relative losses."""

    @property
    def takes_lazy_logits(self) -> bool:
        """Whether the loss takes `LazyLogits` in place of logits."""
        return False

    def use_kernel(self, kernel: str, device: torch.device) -> None:  # noqa: ARG002 - for subclasses
        """Choose the implementation: `auto` or one of `blockwise.KERNELS`. It changes the loss by rounding alone.

        Raises PipelineError if this loss does not have it or the device cannot run it.
        """
        if kernel not in {"auto", "blocks"}:
            raise PipelineError(f"`loss_kernel={kernel}`: this loss only has `loss_kernel=blocks`")

    def forward(self, logits: AnyLogits, target_depth_m: Tensor, target_dpm: Maps | None = None) -> Tensor:
        """Return the scalar loss. See `terms` for the arguments."""
        return self.terms(logits, target_depth_m, target_dpm)["loss"]

    def terms(self, logits: AnyLogits, target_depth_m: Tensor, target_dpm: Maps | None = None) -> dict[str, Tensor]:
        """Return the loss and its unweighted parts.

        Args:
            logits: (B, K, h, w) of the student. Half precision is converted to float32. Lazy logits for a loss with
                `takes_lazy_logits`.
            target_depth_m: (B, 1, H, W) metres; NaN, infinite or not positive is invalid.
            target_dpm: (B, K, h, w) or (B, K, H, W) to use instead of maps from depth; NaN or all zeros is invalid.
                Or stored maps of the size of the logits, for losses that take them.

        Returns:
            Scalars: "loss" is the total, the others are its parts.

        Raises PipelineError for shapes that do not match.
        """
        self._check(logits, target_depth_m, target_dpm)
        # float16 and TF32 have three digits: 5 cm at 80 m
        with torch.autocast(logits.device.type, enabled=False):
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            return self._terms(logits, target_depth_m.detach().to(dtype), target_dpm)

    def _terms(self, logits: Any, target_depth_m: Tensor, target_dpm: Maps | None) -> dict[str, Tensor]:  # noqa: ANN401 - some take lazy logits
        raise NotImplementedError

    def _check(self, logits: AnyLogits, target_depth_m: Tensor, target_dpm: Maps | None) -> None:
        count = self.outputs
        if logits.ndim != 4 or logits.shape[1] != count:
            raise PipelineError(f"logits of shape {tuple(logits.shape)}: expected (B, {count}, h, w)")
        if target_depth_m.ndim != 4 or target_depth_m.shape[:2] != (logits.shape[0], 1):
            shape = tuple(target_depth_m.shape)
            raise PipelineError(f"target depth of shape {shape}: expected ({logits.shape[0]}, 1, H, W)")
        if self.skip_rows >= target_depth_m.shape[2]:
            raise PipelineError(
                f"`skip_rows={self.skip_rows}` must be less than the {target_depth_m.shape[2]} rows of the target"
            )
        sizes = (logits.shape[2:], target_depth_m.shape[2:])
        if target_dpm is not None and (target_dpm.shape[:2] != logits.shape[:2] or target_dpm.shape[2:] not in sizes):
            raise PipelineError(f"target DPM of shape {tuple(target_dpm.shape)}: expected {tuple(logits.shape)}")

    def _skipped_rows(self, rows: int, target_rows: int) -> int:
        """Return how many of `rows` rows have their center in the ignored rows of the target."""
        return max(0, math.ceil(self.skip_rows * rows / target_rows - 0.5))

    def _depths(self, depth_m: Tensor, target_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return student depth, resized from (B, 1, h, w), target depth and validity, without the ignored rows.

        All are (B, 1, H - skip_rows, W). Invalid targets are replaced by the student's depth, which has no gradient.
        """
        if depth_m.shape[2:] != target_m.shape[2:]:
            depth_m = F.interpolate(depth_m, target_m.shape[2:], mode="bilinear", align_corners=False)
        depth_m, target_m = depth_m[:, :, self.skip_rows :], target_m[:, :, self.skip_rows :]
        valid = is_valid(target_m)
        target_m = target_m.clamp(*self.range_m)
        return depth_m, torch.where(valid, target_m, depth_m.detach()), valid


def widened(logits: Tensor) -> Tensor:
    """Return logits as float32 (float64 stays), contiguous like maps: different memory formats take a third longer."""
    return (logits if logits.dtype == torch.float64 else logits.float()).contiguous()


def scale_invariant(depth_m: Tensor, target_m: Tensor, valid: Tensor) -> Tensor:
    """Return sqrt(var(g) + 0.15 mean(g)^2) over valid pixels, g being the log ratio; 0, differentiable, if g is 0."""
    log_ratio = torch.log(depth_m + SI_EPSILON_M) - torch.log(target_m + SI_EPSILON_M)
    mean = mean_where(valid, log_ratio)
    squares, count = all_sum(torch.where(valid, (log_ratio - mean).square(), 0.0).sum(), valid.sum())
    inner = squares / (count - 1).clamp_min(1) + SI_MEAN_WEIGHT * mean.square()
    # The gradient of a root is infinite at 0
    return torch.where(inner > 0, inner, 1.0).sqrt() * (inner > 0)


def is_valid(depth_m: Tensor) -> Tensor:
    """Return where depth is finite and positive."""
    return (depth_m > 0) & (depth_m < math.inf)


def nearest(maps: Tensor, size: torch.Size) -> Tensor:
    """Resize maps (B, C, H, W) by nearest neighbor (nearest-exact)."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest-exact")


def mean_where(valid: Tensor, values: Tensor) -> Tensor:
    """Return the mean over valid pixels; 0, differentiable, if there are none."""
    total, count = all_sum(torch.where(valid, values, 0.0).sum(), valid.sum())
    return total / count.clamp_min(1)
