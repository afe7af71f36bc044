"""Base class of all losses, and terms that several of them use.

Every loss is called as `loss(logits, target_depth_m, target_dpm=None)` and returns a scalar; `terms` also returns its
parts. It works in two steps: `pixels` compares student and target at each pixel, `means` averages, with weights if
there are any. Pixels whose target is NaN, infinite or not positive are ignored. Gradients are never NaN; without a
valid pixel the loss is 0 and differentiable. In distributed training, means are over the valid pixels of all ranks:
sums go through `all_sum` before the division.

Shape legend: B batch, K bins, M planes of a sparse map, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..depth import readout as readouts
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_LOG_DEPTH_M = 1e-3
"""Depths are clamped to it before their logarithm is taken, where a formula has ln D without an epsilon."""


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


class DepthPixels(Protocol):
    """What a loss has found at each pixel of the logits; subclasses of `DepthLoss` have more fields."""

    @property
    def depth_m(self) -> Tensor:
        """(B, 1, h, w) depth of the student."""


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
        return self.means(self.pixels(logits, target_depth_m, target_dpm), target_depth_m)

    def pixels(self, logits: AnyLogits, target_depth_m: Tensor, target_dpm: Maps | None = None) -> DepthPixels:
        """Compare student and target at each pixel of the logits; arguments and errors as of `terms`."""
        self._check(logits, target_depth_m, target_dpm)
        # float16 and TF32 have three digits: 5 cm at 80 m
        with torch.autocast(logits.device.type, enabled=False):
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            return self._pixels(logits, target_depth_m.detach().to(dtype), target_dpm)

    def means(self, pixels: DepthPixels, target_depth_m: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss and its unweighted parts, as `terms`, from what `pixels` returned.

        Args:
            pixels: of the same target. Targets that became invalid since then are left out of every part.
            target_depth_m: as for `terms`.
            weights: (B, 1, H, W), at least 0: every mean over valid pixels becomes a weighted mean. The weight of a
                pixel of the logits is that of the nearest target pixel. None weighs all pixels equally.
        """
        with torch.autocast(target_depth_m.device.type, enabled=False):
            dtype = pixels.depth_m.dtype
            weights = None if weights is None else weights.detach().to(dtype)
            return self._means(pixels, target_depth_m.detach().to(dtype), weights)

    def depth_of(self, logits: AnyLogits) -> Tensor:
        """Return the student's depth (B, 1, h, w) in metres as the depth terms read it, from logits (B, K, h, w)."""
        no_target = torch.full((logits.shape[0], 1, *logits.shape[2:]), math.nan, device=logits.device)
        return self.pixels(logits, no_target).depth_m

    @torch.no_grad()
    def errors(self, pixels: DepthPixels, target_depth_m: Tensor) -> Tensor:
        """Return the error of each valid pixel (B, 1, H, W), NaN elsewhere, without gradient: |ln D - ln T|."""
        depth_m, target_m, valid = self.depths(pixels.depth_m, target_depth_m.to(pixels.depth_m.dtype))
        errors = self._errors(depth_m, target_m, valid).masked_fill(~valid, math.nan)
        return F.pad(errors, (0, 0, self.skip_rows, 0), value=math.nan)

    def _pixels(self, logits: Any, target_depth_m: Tensor, target_dpm: Maps | None) -> DepthPixels:  # noqa: ANN401 - some take lazy logits
        raise NotImplementedError

    def _means(self, pixels: Any, target_depth_m: Tensor, weights: Tensor | None) -> dict[str, Tensor]:  # noqa: ANN401 - what its `_pixels` returns
        raise NotImplementedError

    def _errors(self, depth_m: Tensor, target_m: Tensor, valid: Tensor) -> Tensor:  # noqa: ARG002 - for subclasses
        return (log_depth(depth_m) - log_depth(target_m)).abs()

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

    def _kept_rows(self, maps: Tensor | None) -> Tensor | None:
        """Return maps (B, 1, H, W), if there are any, without the ignored rows."""
        return None if maps is None else maps[:, :, self.skip_rows :]

    def depths(self, depth_m: Tensor, target_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def is_valid(depth_m: Tensor) -> Tensor:
    """Return where depth is finite and positive."""
    return (depth_m > 0) & (depth_m < math.inf)


def nearest(maps: Tensor, size: torch.Size) -> Tensor:
    """Resize maps (B, C, H, W) by nearest neighbor (nearest-exact)."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest-exact")


def log_depth(depth_m: Tensor) -> Tensor:
    """Return ln of depth in metres, at least ln 1 mm, where the gradient is 0."""
    return depth_m.clamp_min(MIN_LOG_DEPTH_M).log()
