"""The TIE-KD loss.

`base.py` says how every loss is called, and which pixels count.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..depth.dpm import RELEASED_SIGMA_M, expected_depth, released_dpm
from ..errors import PipelineError
from .base import DepthLoss, LossSettings, Maps, StoredMaps, is_valid, mean_where, nearest, widened
from .blockwise import Fused, FusedLoss, fused
from .response import ssim_loss
from .targets import AnyTarget, GaussianTarget, GivenTarget, StoredTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE = 10.0
RELEASED_EPSILON = 1e-7


class TieKdLoss(FusedLoss):
    """The TIE-KD loss: 10 (w mean KL(T || S) + (1 - w) (1 - mean SSIM)), means over valid pixels.

    Args:
        bin_edges_m: (K + 1,) ascending.
        sigma_m: width of the teacher's Gaussian.
        sigma_bins: its width in bins instead (`bin_gaussian_dpm`). Not for `released`.
        weight: w, the share of the KL. 1 leaves the SSIM out.
        kind: `gaussian` as the paper describes it, or `released` as the released code computes it: its maps
            (`released_dpm`, always of sigma 0.5), T log(T / (S + 1e-7) + 1e-7) summed where S is not 0, and
            SSIM with absolute variances and covariance.
        skip_rows: top rows of the target that both terms leave out; 110 of the released code's 352x704 crop.
        centered: move each Gaussian so that the mean of its map is the teacher's depth (see `gaussian_dpm`),
            which matters near the ends of the range. Not for `released`.

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
    ) -> None:
        super().__init__(bin_edges_m, skip_rows)
        if kind not in {"gaussian", "released"}:
            raise PipelineError(f"kind {kind!r}: expected gaussian or released")
        if not 0 <= weight <= 1:
            raise PipelineError(f"weight {weight}: expected 0 to 1")
        if not (math.isfinite(sigma_m) and sigma_m > 0):
            raise PipelineError(f"sigma_m {sigma_m}: expected a finite number above 0")
        if sigma_bins is not None and not (math.isfinite(sigma_bins) and sigma_bins > 0):
            raise PipelineError(f"sigma_bins {sigma_bins}: expected a finite number above 0")
        if kind == "released" and (centered or sigma_bins is not None):
            raise PipelineError("the released maps are never centred, and always 0.5 m wide: use kind gaussian")
        self.sigma_bins, self.centered = sigma_bins, centered
        self.sigma_m = RELEASED_SIGMA_M if kind == "released" else sigma_m
        self.weight = weight
        self.kind = kind

    def use_kernel(self, kernel: str, device: torch.device) -> None:
        """As `DepthLoss.use_kernel`; the released order of operations has one."""
        (DepthLoss if self.kind == "released" else FusedLoss).use_kernel(self, kernel, device)

    def _terms(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Maps | None) -> dict[str, Tensor]:
        released = self.kind == "released"
        depth_of_map_m = nearest(target_depth_m, logits.shape[2:])
        valid = is_valid(depth_of_map_m)
        if released:
            found = self._released_map(widened(logits), depth_of_map_m, target_dpm)
        else:
            target = self._target(logits, depth_of_map_m, target_dpm)
            found = fused(logits, self.bin_edges_m, target, self.kernel)
        depth_m, kl, mass = found
        assert kl is not None
        assert mass is not None
        skipped = self._skipped_rows(logits.shape[2], target_depth_m.shape[2])
        kl_nats = mean_where((valid & (mass > 0))[:, :, skipped:], kl[:, :, skipped:])
        parts = {"kl_nats": kl_nats}
        loss = self.weight * kl_nats
        if self.weight < 1:
            parts["ssim_loss"] = ssim_loss(*self._depths(depth_m, target_depth_m), released=released)
            loss = loss + (1 - self.weight) * parts["ssim_loss"]
        return {"loss": SCALE * loss, **parts}

    def _target(self, logits: Tensor, depth_m: Tensor, target_dpm: Maps | None) -> AnyTarget:
        """The teacher's maps, given or of depth (B, 1, h, w)."""
        if isinstance(target_dpm, StoredMaps):
            return StoredTarget(target_dpm, depth_m.dtype)
        if target_dpm is not None:
            return GivenTarget(target_dpm, logits.shape[2:], depth_m.dtype)
        in_bins = self.sigma_bins is not None
        sigma = self.sigma_m if self.sigma_bins is None else self.sigma_bins
        depth_m = depth_m.where(is_valid(depth_m), math.nan)
        return GaussianTarget(depth_m, self.bin_edges_m, sigma, in_bins=in_bins, centered=self.centered)

    def _released_map(self, logits: Tensor, depth_m: Tensor, target_dpm: Maps | None) -> Fused:
        """What `fused` gives, in the released code's order of operations."""
        if target_dpm is None:
            teacher = released_dpm(depth_m.where(is_valid(depth_m), math.nan), self.bin_edges_m, self.sigma_m)
        else:
            assert isinstance(target_dpm, Tensor), "the released order of operations takes no stored maps"
            teacher = nearest(target_dpm.detach().to(logits.dtype), logits.shape[2:])
        mass = teacher.sum(dim=1, keepdim=True)
        known = mass.isfinite() & (mass > 0)
        if not bool(known.all()):
            teacher, mass = teacher.where(known, 0.0), mass.where(known, 0.0)
        # The released code takes a softmax, which underflows at other logits than a log_softmax: its sum over S != 0
        # tells the difference.
        student = torch.softmax(logits, dim=1)
        return Fused(expected_depth(student, self.bin_edges_m), _released_kl(student, teacher), mass)


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], settings: LossSettings) -> TieKdLoss:
    """Build `tiekd`, `tiekd-released` or `dpm`. See `registry.build_loss`."""
    if name == "tiekd-released":
        return TieKdLoss(bin_edges_m, settings.sigma_m, settings.weight, "released", settings.skip_rows)
    return TieKdLoss(
        bin_edges_m,
        settings.sigma_m,
        1.0 if name == "dpm" else settings.weight,
        skip_rows=settings.skip_rows,
        sigma_bins=settings.sigma_bins,
        centered=settings.centered,
    )


def _released_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL (B, 1, h, w) with the epsilons of the released `l_dpm_loss.py`, summed where S is not 0."""
    ratio = teacher / (student + RELEASED_EPSILON)
    return torch.where(student != 0, teacher * torch.log(ratio + RELEASED_EPSILON), 0.0).sum(1, keepdim=True)
