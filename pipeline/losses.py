"""What a student learns by: TIE-KD, and the response losses it is compared with.

Every loss is called as `loss(logits, target_depth_m, target_dpm=None)` and gives a scalar; `terms` gives its
parts too. Pixels where the target is NaN, infinite or not above 0 count nowhere. No gradient is ever NaN;
without any valid pixel the loss is 0 and can still be differentiated.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dpm import RELEASED_SIGMA_M, expected_depth, gaussian_dpm, released_dpm
from .ssim import ssim_map

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE = 10.0
SSIM_WEIGHT = 1.5
"""SSIM's weight beside SI or MSE."""
SI_MEAN_WEIGHT = 0.15
SI_EPSILON_M = 1e-3
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
ALIASES = {"gaussian": "tiekd", "released": "tiekd-released"}


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
            raise ValueError(f"bin edges of shape {tuple(edges.shape)}: expected 3 or more depths, ascending")
        if skip_rows < 0:
            raise ValueError(f"skip_rows {skip_rows}: expected 0 or more")
        self.bin_edges_m = edges
        self.skip_rows = skip_rows

    def forward(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Tensor | None = None) -> Tensor:
        """Scalar loss. See `terms` for the arguments."""
        return self.terms(logits, target_depth_m, target_dpm)["loss"]

    def terms(
        self, logits: Tensor, target_depth_m: Tensor, target_dpm: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss and its unweighted parts.

        Args:
            logits: (B, K, h, w) of the student. Half precision is widened.
            target_depth_m: (B, 1, H, W) metres; NaN, infinite or not above 0 is invalid.
            target_dpm: (B, K, h, w) or (B, K, H, W), used in place of the map made from depth. Pixels where
                it holds a NaN or nothing are invalid.

        Returns:
            Scalars: "loss" is the total, the others are its parts.

        Raises ValueError for shapes that do not fit.
        """
        self._check(logits, target_depth_m, target_dpm)
        # float16 and TF32 have three digits: 80 m would be known to 5 cm
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            logits = logits.contiguous()  # teacher maps are; two layouts at once cost a third more time
            target_depth_m = target_depth_m.detach().to(logits.dtype)
            return self._terms(logits, target_depth_m, target_dpm)

    def _terms(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Tensor | None) -> dict[str, Tensor]:
        raise NotImplementedError

    def _check(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Tensor | None) -> None:
        count = self.bin_edges_m.numel() - 1
        if logits.ndim != 4 or logits.shape[1] != count:
            raise ValueError(f"logits of shape {tuple(logits.shape)}: expected (B, {count}, h, w)")
        if target_depth_m.ndim != 4 or target_depth_m.shape[:2] != (logits.shape[0], 1):
            shape = tuple(target_depth_m.shape)
            raise ValueError(f"target depth of shape {shape}: expected ({logits.shape[0]}, 1, H, W)")
        if self.skip_rows >= target_depth_m.shape[2]:
            raise ValueError(
                f"skip_rows {self.skip_rows}: expected fewer than {target_depth_m.shape[2]} rows"
            )
        sizes = (logits.shape[2:], target_depth_m.shape[2:])
        if target_dpm is not None and (
            target_dpm.shape[:2] != logits.shape[:2] or target_dpm.shape[2:] not in sizes
        ):
            raise ValueError(f"target DPM of shape {tuple(target_dpm.shape)}: expected {tuple(logits.shape)}")

    def _skipped_rows(self, rows: int, target_rows: int) -> int:
        """How many of `rows` rows have their centre within the skipped rows of the target."""
        return max(0, math.ceil(self.skip_rows * rows / target_rows - 0.5))

    def _depths(self, student: Tensor, target_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Student's depth at the target's size, target, and validity, (B, 1, H, W) below the skipped rows.

        Where the target is invalid it is the student's own depth, which teaches nothing.
        """
        depth_m = expected_depth(student, self.bin_edges_m)
        if depth_m.shape[2:] != target_m.shape[2:]:
            depth_m = F.interpolate(depth_m, target_m.shape[2:], mode="bilinear", align_corners=False)
        depth_m, target_m = depth_m[:, :, self.skip_rows :], target_m[:, :, self.skip_rows :]
        valid = _is_valid(target_m)
        target_m = target_m.clamp(float(self.bin_edges_m[0]), float(self.bin_edges_m[-1]))
        return depth_m, torch.where(valid, target_m, depth_m.detach()), valid


class TieKdLoss(DepthLoss):
    """The TIE-KD loss: 10 (w mean KL(T || S) + (1 - w) (1 - mean SSIM)), means over valid pixels.

    Args:
        bin_edges_m: (K + 1,) ascending.
        sigma_m: width of the teacher's Gaussian.
        weight: w, the share of the KL. 1 leaves the SSIM out.
        kind: `gaussian` as the paper describes it, or `released` as the released code computes it: its maps
            (`released_dpm`, always of sigma 0.5), T log(T / (S + 1e-7) + 1e-7) summed where S is not 0, and
            SSIM with absolute variances and covariance.
        skip_rows: top rows of the target that both terms leave out; 110 of the released code's 352x704 crop.

    Terms: "loss", "kl_nats", "ssim_loss".
    """

    def __init__(
        self,
        bin_edges_m: Tensor | Sequence[float],
        sigma_m: float = RELEASED_SIGMA_M,
        weight: float = 0.1,
        kind: str = "gaussian",
        skip_rows: int = 0,
    ) -> None:
        super().__init__(bin_edges_m, skip_rows)
        if kind not in {"gaussian", "released"}:
            raise ValueError(f"kind {kind!r}: expected gaussian or released")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight {weight}: expected 0 to 1")
        if not (math.isfinite(sigma_m) and sigma_m > 0):
            raise ValueError(f"sigma_m {sigma_m}: expected a finite number above 0")
        self.sigma_m = RELEASED_SIGMA_M if kind == "released" else sigma_m
        self.weight = weight
        self.kind = kind

    def _terms(self, logits: Tensor, target_depth_m: Tensor, target_dpm: Tensor | None) -> dict[str, Tensor]:
        released = self.kind == "released"
        teacher, valid = self._teacher_map(logits, target_depth_m, target_dpm)
        log_student = torch.log_softmax(logits, dim=1)
        student = log_student.exp()
        kl = _released_kl(student, teacher) if released else _kl(log_student, teacher)
        skipped = self._skipped_rows(logits.shape[2], target_depth_m.shape[2])
        kl_nats = _mean_where(valid[:, :, skipped:], kl[:, :, skipped:])
        parts = {"kl_nats": kl_nats}
        loss = self.weight * kl_nats
        if self.weight < 1:
            parts["ssim_loss"] = _ssim_loss(*self._depths(student, target_depth_m), released=released)
            loss = loss + (1 - self.weight) * parts["ssim_loss"]
        return {"loss": SCALE * loss, **parts}

    def _teacher_map(
        self, logits: Tensor, target_depth_m: Tensor, target_dpm: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The teacher's map (B, K, h, w), zeros where invalid, and validity (B, 1, h, w)."""
        size = logits.shape[2:]
        depth_m = _nearest(target_depth_m, size)
        valid = _is_valid(depth_m)
        if target_dpm is None:
            depth_m = depth_m.where(valid, math.nan)
            if self.kind == "released":
                return released_dpm(depth_m, self.bin_edges_m), valid
            return gaussian_dpm(depth_m, self.bin_edges_m, self.sigma_m), valid
        teacher = _nearest(target_dpm.detach().to(logits.dtype), size)
        mass = teacher.sum(dim=1, keepdim=True)
        valid = valid & mass.isfinite() & (mass > 0)
        return teacher if bool(valid.all()) else teacher.where(valid, 0.0), valid


class ResponseLoss(DepthLoss):
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
        target_dpm: Tensor | None,  # noqa: ARG002 - one call for every loss
    ) -> dict[str, Tensor]:
        depth_m, target_m, valid = self._depths(torch.softmax(logits, dim=1), target_depth_m)
        names = self.kind.split("+")
        parts: dict[str, Tensor] = {}
        if "ssim" in names:
            parts["ssim_loss"] = _ssim_loss(depth_m, target_m, valid)
        if "mse" in names:
            parts["mse_m2"] = _mean_where(valid, (depth_m - target_m).square())
        if "si" in names:
            parts["si"] = _scale_invariant(depth_m, target_m, valid)
        ssim_weight = 1.0 if self.kind == "ssim" else SSIM_WEIGHT
        weighted = [part * (ssim_weight if name == "ssim_loss" else 1) for name, part in parts.items()]
        return {"loss": torch.stack(weighted).sum(), **parts}


def build_loss(
    name: str,
    bin_edges_m: Tensor | Sequence[float],
    sigma_m: float = RELEASED_SIGMA_M,
    weight: float = 0.1,
    skip_rows: int = 0,
) -> DepthLoss:
    """The loss of that name in LOSSES or ALIASES; sigma and weight matter to those with a DPM only.

    Raises ValueError for an unknown name, listing the known ones.
    """
    known = ALIASES.get(name, name)
    if known not in LOSSES:
        raise ValueError(f"loss {name!r}: expected one of {', '.join([*LOSSES, *ALIASES])}")
    if known == "dpm":
        return TieKdLoss(bin_edges_m, sigma_m, weight=1.0, skip_rows=skip_rows)
    if known.startswith("tiekd"):
        kind = "released" if known == "tiekd-released" else "gaussian"
        return TieKdLoss(bin_edges_m, sigma_m, weight, kind, skip_rows)
    return ResponseLoss(bin_edges_m, known, skip_rows)


def _kl(log_student: Tensor, teacher: Tensor) -> Tensor:
    """KL(T || S) (B, 1, h, w) in nats. T ln T, a constant, and the cross term are summed on their own."""
    cross = (teacher * log_student).sum(dim=1, keepdim=True)
    return torch.xlogy(teacher, teacher).sum(dim=1, keepdim=True) - cross


def _released_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL (B, 1, h, w) with the epsilons of the released `l_dpm_loss.py`, summed where S is not 0."""
    ratio = teacher / (student + RELEASED_EPSILON)
    return torch.where(student != 0, teacher * torch.log(ratio + RELEASED_EPSILON), 0.0).sum(1, keepdim=True)


def _ssim_loss(depth_m: Tensor, target_m: Tensor, valid: Tensor, *, released: bool = False) -> Tensor:
    return _mean_where(valid, 1 - ssim_map(depth_m, target_m, released=released))


def _scale_invariant(depth_m: Tensor, target_m: Tensor, valid: Tensor) -> Tensor:
    log_ratio = torch.log(depth_m + SI_EPSILON_M) - torch.log(target_m + SI_EPSILON_M)
    count = valid.sum()
    mean = _mean_where(valid, log_ratio)
    squares = torch.where(valid, (log_ratio - mean).square(), 0.0).sum()
    inner = squares / (count - 1).clamp_min(1) + SI_MEAN_WEIGHT * mean.square()
    # The slope of a root is infinite at 0: where all is equal there is nothing to learn.
    return torch.where(inner > 0, inner, 1.0).sqrt() * (inner > 0)


def _is_valid(depth_m: Tensor) -> Tensor:
    return (depth_m > 0) & (depth_m < math.inf)


def _nearest(maps: Tensor, size: torch.Size) -> Tensor:
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest-exact")


def _mean_where(valid: Tensor, values: Tensor) -> Tensor:
    """Mean over valid pixels; 0, with a graph, where there are none."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp_min(1)
