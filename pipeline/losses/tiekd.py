"""What a student learns by: TIE-KD, and the response losses it is compared with.

`loss_base.py` tells how every loss is called, and which pixels count.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..depth.dpm import RELEASED_SIGMA_M, expected_depth, released_dpm
from .base import ALIASES, DepthLoss, Maps, StoredMaps, is_valid, mean_where, nearest, scale_invariant, widened
from .blockwise import Fused, FusedLoss, fused
from .ssim import ssim_map
from .targets import AnyTarget, GaussianTarget, GivenTarget, StoredTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE = 10.0
SSIM_WEIGHT = 1.5
"""SSIM's weight beside SI or MSE."""
RELEASED_EPSILON = 1e-7

LOSSES = {
    "tiekd": "KL to a Gaussian depth probability map, and SSIM of depth (alias: gaussian)",
    "tiekd-released": "the same with the maps and oddities of the released code (alias: released)",
    "dpm": "KL to a Gaussian depth probability map alone",
    "ssim": "SSIM of depth alone",
    "mse": "mean squared error of depth",
    "si": "scale-invariant log error of depth",
    "ssim+si": "1.5 SSIM + scale-invariant log error",
    "ssim+mse": "1.5 SSIM + mean squared error",
}


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
        centred: move each Gaussian so that the mean of its map is the teacher's depth (see `gaussian_dpm`),
            which matters near the ends of the range. Not for `released`.

    Terms: "loss", "kl_nats", "ssim_loss".
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
        centred: bool = False,
    ) -> None:
        super().__init__(bin_edges_m, skip_rows)
        if kind not in {"gaussian", "released"}:
            raise ValueError(f"kind {kind!r}: expected gaussian or released")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight {weight}: expected 0 to 1")
        if not (math.isfinite(sigma_m) and sigma_m > 0):
            raise ValueError(f"sigma_m {sigma_m}: expected a finite number above 0")
        if sigma_bins is not None and not (math.isfinite(sigma_bins) and sigma_bins > 0):
            raise ValueError(f"sigma_bins {sigma_bins}: expected a finite number above 0")
        if kind == "released" and (centred or sigma_bins is not None):
            raise ValueError("the released maps are never centred, and always 0.5 m wide: use kind gaussian")
        self.sigma_bins, self.centred = sigma_bins, centred
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
            parts["ssim_loss"] = _ssim_loss(*self._depths(depth_m, target_depth_m), released=released)
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
        return GaussianTarget(depth_m, self.bin_edges_m, sigma, in_bins=in_bins, centred=self.centred)

    def _released_map(self, logits: Tensor, depth_m: Tensor, target_dpm: Maps | None) -> Fused:
        """What `fused` gives, in the released code's order of operations."""
        if target_dpm is None:
            teacher = released_dpm(depth_m.where(is_valid(depth_m), math.nan), self.bin_edges_m, self.sigma_m)
        else:
            assert isinstance(target_dpm, Tensor), "stored maps are for the losses in LOSSES_OF_STORED_MAPS"
            teacher = nearest(target_dpm.detach().to(logits.dtype), logits.shape[2:])
        mass = teacher.sum(dim=1, keepdim=True)
        known = mass.isfinite() & (mass > 0)
        if not bool(known.all()):
            teacher, mass = teacher.where(known, 0.0), mass.where(known, 0.0)
        # The released code takes a softmax, which underflows at other logits than a log_softmax: its sum over S != 0
        # tells the difference.
        student = torch.softmax(logits, dim=1)
        return Fused(expected_depth(student, self.bin_edges_m), _released_kl(student, teacher), mass)


class ResponseLoss(FusedLoss):
    """Losses on depth alone, the paper's response-based baselines (released `si_loss.py`, `ssim_si_loss.py`).

    `ssim`: 1 - mean SSIM. `mse`: mean squared error. `si`: sqrt(var(g) + 0.15 mean(g)^2) with
    g = ln(d + 1e-3) - ln(t + 1e-3) over all valid pixels of the batch, the variance being the unbiased one.
    `ssim+si` and `ssim+mse` add 1.5 times the first. A DPM of the teacher is not used.

    Terms: "loss", and of "ssim_loss", "mse_m2", "si" those that take part.
    """

    def __init__(self, bin_edges_m: Tensor | Sequence[float], kind: str = "ssim", skip_rows: int = 0) -> None:
        super().__init__(bin_edges_m, skip_rows)
        kinds = ("ssim", "mse", "si", "ssim+si", "ssim+mse")
        if kind not in kinds:
            raise ValueError(f"kind {kind!r}: expected one of {', '.join(kinds)}")
        self.kind = kind

    def _terms(
        self,
        logits: Tensor,
        target_depth_m: Tensor,
        target_dpm: Maps | None,  # noqa: ARG002 - one call for every loss
    ) -> dict[str, Tensor]:
        student_m = fused(logits, self.bin_edges_m, kernel=self.kernel).depth_m
        depth_m, target_m, valid = self._depths(student_m, target_depth_m)
        names = self.kind.split("+")
        parts: dict[str, Tensor] = {}
        if "ssim" in names:
            parts["ssim_loss"] = _ssim_loss(depth_m, target_m, valid)
        if "mse" in names:
            parts["mse_m2"] = mean_where(valid, (depth_m - target_m).square())
        if "si" in names:
            parts["si"] = scale_invariant(depth_m, target_m, valid)
        ssim_weight = 1.0 if self.kind == "ssim" else SSIM_WEIGHT
        weighted = [part * (ssim_weight if name == "ssim_loss" else 1) for name, part in parts.items()]
        return {"loss": torch.stack(weighted).sum(), **parts}


def build_loss(
    name: str,
    bin_edges_m: Tensor | Sequence[float],
    sigma_m: float = RELEASED_SIGMA_M,
    weight: float = 0.1,
    skip_rows: int = 0,
    *,
    sigma_bins: float | None = None,
    centred: bool = False,
) -> DepthLoss:
    """The loss of that name in LOSSES or ALIASES.

    Weight matters to those with a DPM only; sigma, `sigma_bins` and `centred` to those with a Gaussian one.

    Raises ValueError for an unknown name, listing the known ones.
    """
    known = ALIASES.get(name, name)
    if known not in LOSSES:
        raise ValueError(f"loss {name!r}: expected one of {', '.join([*LOSSES, *ALIASES])}")
    if known == "tiekd-released":
        return TieKdLoss(bin_edges_m, sigma_m, weight, "released", skip_rows)
    if known in {"tiekd", "dpm"}:
        share = 1.0 if known == "dpm" else weight
        return TieKdLoss(bin_edges_m, sigma_m, share, skip_rows=skip_rows, sigma_bins=sigma_bins, centred=centred)
    return ResponseLoss(bin_edges_m, known, skip_rows)


def _released_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL (B, 1, h, w) with the epsilons of the released `l_dpm_loss.py`, summed where S is not 0."""
    ratio = teacher / (student + RELEASED_EPSILON)
    return torch.where(student != 0, teacher * torch.log(ratio + RELEASED_EPSILON), 0.0).sum(1, keepdim=True)


def _ssim_loss(depth_m: Tensor, target_m: Tensor, valid: Tensor, *, released: bool = False) -> Tensor:
    return mean_where(valid, 1 - ssim_map(depth_m, target_m, released=released))
