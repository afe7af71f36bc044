"""What every loss shares: which pixels count, at which resolution the terms are taken, and a few of the terms.

Every loss is called as `loss(logits, target_depth_m, target_dpm=None)` and gives a scalar; `terms` gives its
parts too. Pixels where the target is NaN, infinite or not above 0 count nowhere. No gradient is ever NaN;
without any valid pixel the loss is 0 and can still be differentiated. Where several processes share a batch, means
are over the valid pixels of all: whatever adds up pixels goes through `all_sum` before it is divided.

Shape legend: B batch, K bins, M planes of a sparse map, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.distributed import all_sum
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

ALIASES = {"gaussian": "tiekd", "released": "tiekd-released"}
"""Other names of losses."""
SI_MEAN_WEIGHT = 0.15
SI_EPSILON_M = 1e-3


@dataclass(frozen=True)
class LossSettings:
    """What a loss can be told. Each loss uses those fields that mean something to it."""

    sigma_m: float = 0.5
    """Width of a Gaussian map made from depth, in metres."""
    sigma_bins: float | None = None
    """Its width in bins instead."""
    weight: float = 0.1
    """w, the fraction of the KL in the TIE-KD loss."""
    skip_rows: int = 0
    """Top rows of the target that the loss leaves out."""
    centered: bool = False
    """Whether each Gaussian is moved so that the mean of its map is the depth."""


class StoredMaps(NamedTuple):
    """Sparse maps as a store holds them."""

    gap: Tensor
    """(B, M, h, w) steps from bin to bin, 0 in planes that a pixel does not use; a pixel without any has no map"""
    weight: Tensor
    """(B, M, h, w) code of the probability of each"""
    tail: Tensor
    """(B, h, w) code of what all other bins share"""
    bins: int
    table: Tensor
    """probability of each code, from the store's format"""

    @property
    def shape(self) -> torch.Size:
        """(B, K, h, w)."""
        return torch.Size((len(self.gap), self.bins, *self.gap.shape[2:]))


Maps: TypeAlias = Tensor | StoredMaps


class DepthLoss(nn.Module):
    """What the losses share: the bins, the size of the target, and the rows that are left out.

    The student's depth is brought to the target's resolution (bilinear, align_corners=False, which keeps
    pixel centres). The target is brought to the logits' resolution for the KL term by taking the pixel at
    each centre: averaging depths would put a surface between two that are there. Targets beyond the bins'
    range are clamped to it in depth terms, since the student cannot say more.
    """

    def __init__(self, bin_edges_m: Tensor | Sequence[float], skip_rows: int = 0) -> None:
        super().__init__()
        # No buffer: edges stay float64 on the CPU, where looking at their ends does not wait for a GPU.
        edges = torch.as_tensor(bin_edges_m, dtype=torch.float64, device="cpu").detach().clone()
        if edges.ndim != 1 or edges.numel() < 3 or not bool((edges.diff() > 0).all()):
            raise PipelineError(f"bin edges of shape {tuple(edges.shape)}: expected 3 or more depths, ascending")
        if skip_rows < 0:
            raise PipelineError(f"skip_rows {skip_rows}: expected 0 or more")
        self.bin_edges_m = edges
        self.range_m = (float(edges[0]), float(edges[-1]))
        """Targets beyond it are clamped to it in depth terms."""
        self.skip_rows = skip_rows
        self.depth_space = "metric_m"
        """What a depth is, to losses that are taken in the teacher's own space."""

    def use_kernel(self, kernel: str, device: torch.device) -> None:  # noqa: ARG002 - for those that have several
        """Choose what computes the loss, one of `blockwise.KERNELS`: a matter of the machine, not of the recipe.

        Raises PipelineError for one that this loss has not, or that cannot run there.
        """
        if kernel != "blocks":
            raise PipelineError(f"kernel {kernel!r}: this loss has no other than blocks, plain torch")

    def forward(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Maps | None = None) -> Tensor:
        """Scalar loss. See `terms` for the arguments."""
        return self.terms(logits, target_depth_m, target_dpm)["loss"]

    def terms(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Maps | None = None) -> dict[str, Tensor]:
        """The loss and its unweighted parts.

        Args:
            logits: (B, K, h, w) of the student. Half precision is widened.
            target_depth_m: (B, 1, H, W) metres; NaN, infinite or not above 0 is invalid.
            target_dpm: (B, K, h, w) or (B, K, H, W), used in place of the map made from depth. Pixels where
                it holds a NaN or nothing are invalid. Or stored maps of the logits' size, for losses that take them.

        Returns:
            Scalars: "loss" is the total, the others are its parts.

        Raises PipelineError for shapes that do not fit.
        """
        self._check(logits, target_depth_m, target_dpm)
        # float16 and TF32 have three digits: 80 m would be known to 5 cm
        with torch.autocast(logits.device.type, enabled=False):
            kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
            return self._terms(logits, target_depth_m.detach().to(kind), target_dpm)

    def _terms(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Maps | None) -> dict[str, Tensor]:
        raise NotImplementedError

    def _check(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Maps | None) -> None:
        count = self.bin_edges_m.numel() - 1
        if logits.ndim != 4 or logits.shape[1] != count:
            raise PipelineError(f"logits of shape {tuple(logits.shape)}: expected (B, {count}, h, w)")
        if target_depth_m.ndim != 4 or target_depth_m.shape[:2] != (logits.shape[0], 1):
            shape = tuple(target_depth_m.shape)
            raise PipelineError(f"target depth of shape {shape}: expected ({logits.shape[0]}, 1, H, W)")
        if self.skip_rows >= target_depth_m.shape[2]:
            raise PipelineError(f"skip_rows {self.skip_rows}: expected fewer than {target_depth_m.shape[2]} rows")
        sizes = (logits.shape[2:], target_depth_m.shape[2:])
        if target_dpm is not None and (target_dpm.shape[:2] != logits.shape[:2] or target_dpm.shape[2:] not in sizes):
            raise PipelineError(f"target DPM of shape {tuple(target_dpm.shape)}: expected {tuple(logits.shape)}")

    def _skipped_rows(self, rows: int, target_rows: int) -> int:
        """How many of `rows` rows have their centre within the skipped rows of the target."""
        return max(0, math.ceil(self.skip_rows * rows / target_rows - 0.5))

    def _depths(self, depth_m: Tensor, target_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Student's depth (B, 1, h, w) at the target's size, target, and validity, below the skipped rows.

        All are (B, 1, H - skipped, W). Where the target is invalid it is the student's own depth, which teaches
        nothing.
        """
        if depth_m.shape[2:] != target_m.shape[2:]:
            depth_m = F.interpolate(depth_m, target_m.shape[2:], mode="bilinear", align_corners=False)
        depth_m, target_m = depth_m[:, :, self.skip_rows :], target_m[:, :, self.skip_rows :]
        valid = is_valid(target_m)
        target_m = target_m.clamp(*self.range_m)
        return depth_m, torch.where(valid, target_m, depth_m.detach()), valid


def widened(logits: Tensor) -> Tensor:
    """Logits in float32, or float64 if they are, in plain order, as maps are: two orders cost a third more time."""
    return (logits if logits.dtype == torch.float64 else logits.float()).contiguous()


def scale_invariant(depth_m: Tensor, target_m: Tensor, valid: Tensor) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)^2) over valid pixels, g the log ratio; 0, with a graph, where all is equal."""
    log_ratio = torch.log(depth_m + SI_EPSILON_M) - torch.log(target_m + SI_EPSILON_M)
    mean = mean_where(valid, log_ratio)
    squares, count = all_sum(torch.where(valid, (log_ratio - mean).square(), 0.0).sum(), valid.sum())
    inner = squares / (count - 1).clamp_min(1) + SI_MEAN_WEIGHT * mean.square()
    # The slope of a root is infinite at 0: where all is equal there is nothing to learn.
    return torch.where(inner > 0, inner, 1.0).sqrt() * (inner > 0)


def is_valid(depth_m: Tensor) -> Tensor:
    """Where a depth is finite and above 0."""
    return (depth_m > 0) & (depth_m < math.inf)


def nearest(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps (B, C, H, W) at another size, each pixel the one nearest to its centre."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest-exact")


def mean_where(valid: Tensor, values: Tensor) -> Tensor:
    """Mean over valid pixels; 0, with a graph, where there are none."""
    total, count = all_sum(torch.where(valid, values, 0.0).sum(), valid.sum())
    return total / count.clamp_min(1)
