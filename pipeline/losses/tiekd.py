"""The TIE-KD loss. `base.py` documents the calling convention.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..depth import readout as readouts
from ..depth.dpm import RELEASED_SIGMA_M, expected_depth, released_dpm
from ..errors import PipelineError
from .base import DepthLoss, LossSettings, Maps, StoredMaps, is_valid, nearest, widened
from .blockwise import Fused, FusedLoss, fused
from .means import mean_where
from .response import ssim_loss
from .targets import AnyTarget, GaussianTarget, GivenTarget, StoredTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE = 10.0
RELEASED_EPSILON = 1e-7


class TieKdLoss(FusedLoss):
    """The TIE-KD loss: 10 (w mean KL(T || S) + (1 - w) (1 - mean SSIM)), with means over valid pixels.

    Args:
        bin_edges_m: (K + 1,) ascending.
        sigma_m: width of the teacher's Gaussian in metres. `released` always uses 0.5.
        sigma_bins: width in bins, overrides `sigma_m` (`bin_gaussian_dpm`). Not for `released`.
        weight: w, weight of the KL term. 1 omits SSIM.
        kind: `gaussian` as in the paper, or `released` as in the released code: its maps (`released_dpm`),
            T log(T / (S + 1e-7) + 1e-7) summed where S is not 0, and SSIM with absolute variances and covariance.
        skip_rows: top rows of the target to ignore in both terms; the released code ignores 110 of 352x704.
        centered: shift each Gaussian so that the mean of its map is the teacher's depth (`gaussian_dpm`), which matters
            near the ends of the range. Not for `released`.
        readout: how the SSIM term reads the student's map: `mean` as in the paper, or `geometric`. Not for `released`.

    Terms: "loss", "kl_nats", "ssim_loss".

    Source: arXiv 2402.14340, equations 2 to 5; `released` follows `l_dpm_loss.py` of the released code.

    Example:
        >>> import pipeline as tiekd, torch
        >>> store = tiekd.open_store("train.zarr")
        >>> loss = tiekd.TieKdLoss(store.bin_edges_m, sigma_m=0.5, weight=0.1)
        >>> logits = torch.zeros(1, len(store.bin_edges_m) - 1, 16, 32, requires_grad=True)  # (B, K, h, w)
        >>> loss(logits, torch.from_numpy(store.depth_m(0))[None, None]).backward()  # (B, 1, H, W) metres
    """

    def __init__(
        self,
        bin_edges_m: Tensor | Sequence[float],
        sigma_m: float = RELEASED_SIGMA_M,
        weight: float = 0.1,
        kind: str = "gaussian",
        skip_rows: int = 0,
        *,
        sigma_bins: float | None = None,
        centered: bool = False,
        readout: str = readouts.DEFAULT,
    ) -> None:
        super().__init__(bin_edges_m, skip_rows, readout=readout)
        if kind not in {"gaussian", "released"}:
            raise PipelineError(f"`kind={kind}`: expected gaussian or released")
        if not 0 <= weight <= 1:
            raise PipelineError(f"`weight={weight}` must be between 0 and 1")
        if not (math.isfinite(sigma_m) and sigma_m > 0):
            raise PipelineError(f"`sigma_m={sigma_m}` must be positive and finite")
        if sigma_bins is not None and not (math.isfinite(sigma_bins) and sigma_bins > 0):
            raise PipelineError(f"`sigma_bins={sigma_bins}` must be positive and finite")
        if kind == "released" and (centered or sigma_bins is not None or readout != readouts.DEFAULT):
            raise PipelineError(
                "`kind=released` has a sigma of 0.5 m, no centering, and reads the mean: omit `sigma_bins`, `centered` "
                "and `readout`"
            )
        self.sigma_bins, self.centered = sigma_bins, centered
        self.sigma_m = RELEASED_SIGMA_M if kind == "released" else sigma_m
        self.weight = weight
        self.kind = kind

    @property
    def takes_lazy_logits(self) -> bool:
        """Whether this loss computes logits block by block; `released` does not."""
        return self.kind != "released"

    def use_kernel(self, kernel: str, device: torch.device) -> None:
        """As `DepthLoss.use_kernel`; `released` has only `blocks`."""
        (DepthLoss if self.kind == "released" else FusedLoss).use_kernel(self, kernel, device)

    def _pixels(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Maps | None) -> Fused:
        map_depth_m = nearest(target_depth_m, logits.shape[2:])
        if self.kind == "released":
            return self._released_pixels(widened(logits), map_depth_m, target_dpm)
        target = self._target(logits, map_depth_m, target_dpm)
        return fused(logits, self.bin_edges_m, target, self.kernel, self.readout)

    def _means(self, pixels: Fused, target_depth_m: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
        depth_m, kl, mass = pixels
        assert kl is not None
        assert mass is not None
        size = depth_m.shape[2:]
        skipped = self._skipped_rows(size[0], target_depth_m.shape[2])
        valid = is_valid(nearest(target_depth_m, size)) & (mass > 0)
        map_weights = None if weights is None else nearest(weights, size)[:, :, skipped:]
        kl_nats = mean_where(valid[:, :, skipped:], kl[:, :, skipped:], map_weights)
        parts = {"kl_nats": kl_nats}
        loss = self.weight * kl_nats
        if self.weight < 1:
            depths, kept = self.depths(depth_m, target_depth_m), self._kept_rows(weights)
            parts["ssim_loss"] = ssim_loss(*depths, kept, released=self.kind == "released")
            loss = loss + (1 - self.weight) * parts["ssim_loss"]
        return {"loss": SCALE * loss, **parts}

    def _target(self, logits: Tensor, depth_m: Tensor, target_dpm: Maps | None) -> AnyTarget:
        """Return the teacher's maps: given, stored, or from depth (B, 1, h, w)."""
        if isinstance(target_dpm, StoredMaps):
            return StoredTarget(target_dpm, depth_m.dtype)
        if target_dpm is not None:
            return GivenTarget(target_dpm, logits.shape[2:], depth_m.dtype)
        in_bins = self.sigma_bins is not None
        sigma = self.sigma_m if self.sigma_bins is None else self.sigma_bins
        depth_m = depth_m.where(is_valid(depth_m), math.nan)
        return GaussianTarget(depth_m, self.bin_edges_m, sigma, in_bins=in_bins, centered=self.centered)

    def _released_pixels(self, logits: Tensor, depth_m: Tensor, target_dpm: Maps | None) -> Fused:
        """Return what `fused` does, in the order of operations of the released code."""
        if target_dpm is None:
            teacher = released_dpm(depth_m.where(is_valid(depth_m), math.nan), self.bin_edges_m, self.sigma_m)
        else:
            assert isinstance(target_dpm, Tensor), "the released loss does not take stored maps"
            teacher = nearest(target_dpm.detach().to(logits.dtype), logits.shape[2:])
        mass = teacher.sum(dim=1, keepdim=True)
        valid = mass.isfinite() & (mass > 0)
        if not bool(valid.all()):
            teacher, mass = teacher.where(valid, 0.0), mass.where(valid, 0.0)
        # Not log_softmax: the sum over S != 0 depends on where softmax underflows.
        student = torch.softmax(logits, dim=1)
        return Fused(expected_depth(student, self.bin_edges_m), _released_kl(student, teacher), mass)


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], settings: LossSettings) -> TieKdLoss:
    """Build `tiekd`, `tiekd-released` or `dpm`. See `registry.build_loss`."""
    if name == "tiekd-released":
        return TieKdLoss(
            bin_edges_m, settings.sigma_m, settings.weight, "released", settings.skip_rows, readout=settings.readout
        )
    return TieKdLoss(
        bin_edges_m,
        settings.sigma_m,
        1.0 if name == "dpm" else settings.weight,
        skip_rows=settings.skip_rows,
        sigma_bins=settings.sigma_bins,
        centered=settings.centered,
        readout=settings.readout,
    )


def _released_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the KL (B, 1, h, w) with the epsilons of the released `l_dpm_loss.py`, summed where S is not 0."""
    ratio = teacher / (student + RELEASED_EPSILON)
    return torch.where(student != 0, teacher * torch.log(ratio + RELEASED_EPSILON), 0.0).sum(1, keepdim=True)
