"""Alignment of relative depth to metric ground truth: one scale and shift per image.

The model is `1 / truth_m = scale * value + shift` for affine disparity, `truth_m = scale * value + shift` for affine
depth, and `truth_m = scale * value` for scale-invariant depth. `fit` is robust and rejects bad fits, for stores;
`fit_least_squares` is the usual alignment before evaluation (MiDaS, Ranftl et al. 2020, section 5).

Shape legend: P pixels with a value and a truth, H W pixels.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import PipelineError
from .spaces import check_depth_space

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIT = "l1_tukey"
"""Name of the robust fit, recorded in stores."""
MIN_POINTS = 100
MAX_RESIDUAL = 0.25
MAX_INVALID_FRACTION = 0.5
"""Largest fraction of an image without positive aligned depth: a sky, but not most of the image."""
DEPTH_RANGE_M = (0.1, 300.0)
MAX_POINTS = 2**15
"""If there are more, evenly spaced ones are fitted: dense truth takes longer and does not change the fit."""
L1_STEPS, TUKEY_STEPS = 12, 12
TUKEY_WIDTH = 4.685
"""In standard deviations: 95 % efficient for normal errors (Holland and Welsch 1977)."""
MAD_TO_STD = 1.4826
MAX_ERROR = 1e9
MIN_RELATIVE_DEPTH = 0.1
"""Fraction of the median fitted depth that relative errors are divided by at least."""
TINY = 1e-12
EQUAL_TOLERANCE = 1e-9
"""Relative difference below which values are equal."""
MIN_RELATIVE_ERROR = 1e-3
"""Fraction of the spread below which errors get equal L1 weights; 1 / error is infinite at 0."""


class Verdict(IntEnum):
    """Result of an alignment. Stores contain the numbers."""

    ACCEPTED = 0
    TOO_FEW_POINTS = 1
    SCALE_NOT_POSITIVE = 2
    RESIDUAL_TOO_LARGE = 3
    NO_TRUTH = 4
    MOSTLY_NOT_POSITIVE = 5


REASONS = {
    Verdict.ACCEPTED: "accepted",
    Verdict.TOO_FEW_POINTS: "too few points of truth",
    Verdict.SCALE_NOT_POSITIVE: "scale not above 0",
    Verdict.RESIDUAL_TOO_LARGE: "residual too large",
    Verdict.NO_TRUTH: "no truth",
    Verdict.MOSTLY_NOT_POSITIVE: "depth of most pixels not above 0",
}


class Fit(NamedTuple):
    """Alignment of one image."""

    scale: float
    """NaN if the fit was rejected, as is `shift`."""
    shift: float
    points: int
    """Number of pixels with a value and a truth."""
    residual: float
    """Median of |aligned - truth| / truth over these pixels; NaN if there is no fit."""
    verdict: Verdict


NO_TRUTH = Fit(math.nan, math.nan, 0, math.nan, Verdict.NO_TRUTH)


def fit(
    values: NDArray[np.floating],
    truth_m: NDArray[np.floating],
    depth_space: str,
    *,
    min_points: int = MIN_POINTS,
    max_residual: float = MAX_RESIDUAL,
) -> Fit:
    """Fit scale and shift of relative depth (H, W), NaN where invalid, to truth (H, W) in metres.

    Robust to outliers: L1 regression, then Tukey's biweight, a fixed number of reweighted steps each, in float64.
    Errors are in disparity; in depth, relative to the fitted depth in the Tukey steps (relative to the truth, one wrong
    truth near 0 outweighs many right ones); or in log depth for `scale_invariant`.

    Raises PipelineError for different shapes or a space that is not relative.
    """
    valid = _valid(values, truth_m, depth_space)
    points = int(np.count_nonzero(valid))
    if points < max(min_points, 2):
        return Fit(math.nan, math.nan, points, math.nan, Verdict.TOO_FEW_POINTS)
    value, truth = values[valid].astype(np.float64), truth_m[valid].astype(np.float64)
    chosen = np.linspace(0, points - 1, min(points, MAX_POINTS)).round().astype(np.intp)
    scale, shift = _robust(value[chosen], truth[chosen], depth_space)
    if not (scale > 0 and math.isfinite(scale) and math.isfinite(shift)):
        return Fit(math.nan, math.nan, points, math.nan, Verdict.SCALE_NOT_POSITIVE)
    aligned = _metres(value, scale, shift, depth_space)
    error = np.where(np.isnan(aligned), np.inf, np.minimum(np.abs(aligned - truth) / truth, MAX_ERROR))
    residual = float(np.median(error))
    if math.isinf(residual):  # most points have no positive depth
        return Fit(math.nan, math.nan, points, math.nan, Verdict.MOSTLY_NOT_POSITIVE)
    if residual > max_residual:
        return Fit(math.nan, math.nan, points, residual, Verdict.RESIDUAL_TOO_LARGE)
    finite = values[np.isfinite(values)].astype(np.float64)
    if np.mean(scale * finite + shift <= 0) > MAX_INVALID_FRACTION:
        return Fit(math.nan, math.nan, points, residual, Verdict.MOSTLY_NOT_POSITIVE)
    return Fit(scale, shift, points, residual, Verdict.ACCEPTED)


def apply(
    values: NDArray[np.floating],
    scale: float,
    shift: float,
    depth_space: str,
    depth_range_m: tuple[float, float] = DEPTH_RANGE_M,
) -> NDArray[np.float32]:
    """Return aligned depth of the shape of `values`, float32 metres, clipped to `depth_range_m`.

    NaN where the value is NaN or its aligned depth or disparity is not positive; all NaN if `scale` is NaN.
    """
    metres = _metres(values.astype(np.float64), scale, shift, depth_space)
    return np.clip(metres, *depth_range_m).astype(np.float32)


def fit_least_squares(
    values: NDArray[np.floating], truth_m: NDArray[np.floating], depth_space: str
) -> tuple[float, float]:
    """Fit scale and shift of values (P,) to truth (P,) in metres by unweighted least squares.

    The scale may be negative; it is 0 if all values are equal. The shift of `scale_invariant` is 0. Raises
    PipelineError if P is 0.
    """
    if not values.size:
        raise PipelineError("no pixel to align: expected pixels with both a prediction and ground truth")
    value, truth = values.astype(np.float64), truth_m.astype(np.float64)
    if depth_space == "scale_invariant":
        square = float(value @ value)
        return (float(value @ truth) / square if square else 0.0), 0.0
    target = 1 / truth if depth_space == "affine_disparity" else truth
    return _line(value, target, np.ones_like(value))


def align_to_truth(
    values: NDArray[np.floating], truth_m: NDArray[np.floating], mask: NDArray[np.bool_], depth_space: str
) -> NDArray[np.float32]:
    """Align values (H, W) to truth by `fit_least_squares` over `mask`; return float32 metres (H, W), not clipped.

    Values and truth must be finite in the mask. NaN where the value is NaN or the aligned depth or disparity is not
    positive. Raises PipelineError for an empty mask, different shapes, or a space that is not relative.
    """
    _check(values, truth_m, depth_space)
    scale, shift = fit_least_squares(values[mask], truth_m[mask], depth_space)
    return _metres(values.astype(np.float64), scale, shift, depth_space).astype(np.float32)


def _check(values: NDArray[np.floating], truth_m: NDArray[np.floating], depth_space: str) -> None:
    check_depth_space(depth_space)
    if depth_space == "metric_m":
        raise PipelineError("depth space metric_m: expected relative depth; metric depth needs no alignment")
    if values.shape != truth_m.shape:
        raise PipelineError(f"values of shape {values.shape} and truth of shape {truth_m.shape}: expected equal shapes")


def _valid(values: NDArray[np.floating], truth_m: NDArray[np.floating], depth_space: str) -> NDArray[np.bool_]:
    """Return the mask of pixels to fit."""
    _check(values, truth_m, depth_space)
    valid: NDArray[np.bool_] = np.isfinite(values) & np.isfinite(truth_m) & (truth_m > 0)
    return valid & (values > 0) if depth_space == "scale_invariant" else valid


def _metres(values: NDArray[np.float64], scale: float, shift: float, depth_space: str) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        aligned = values * scale + shift
    aligned[~(aligned > 0)] = np.nan
    return 1 / aligned if depth_space == "affine_disparity" else aligned


def _robust(value: NDArray[np.float64], truth_m: NDArray[np.float64], depth_space: str) -> tuple[float, float]:
    """Fit scale and shift robustly; a scale of 0 or NaN if the values do not determine one."""
    if depth_space == "scale_invariant":
        # ln truth = ln scale + ln value: fit a constant to the difference
        _, log_scale = _reweighted(np.zeros_like(value), np.log(truth_m / value))
        return math.exp(log_scale), 0.0
    if depth_space == "affine_disparity":
        return _reweighted(value, 1 / truth_m)
    return _reweighted(value, truth_m, relative=True)


def _reweighted(x: NDArray[np.float64], y: NDArray[np.float64], *, relative: bool = False) -> tuple[float, float]:
    """Fit slope and intercept by L1, then Tukey; with `relative`, Tukey errors are relative to the fitted line."""
    unit = np.ones_like(x)
    slope, intercept = _line(x, y, unit)
    for step in range(L1_STEPS + TUKEY_STEPS):
        fitted = slope * x + intercept
        if relative and step >= L1_STEPS:
            unit = 1 / np.maximum(fitted, max(MIN_RELATIVE_DEPTH * float(np.median(fitted)), TINY))
        error = np.abs(y - fitted) * unit
        spread = MAD_TO_STD * float(np.median(error))
        if spread == 0:  # more than half of the points are on the line
            break
        if step < L1_STEPS:
            weight = 1 / np.maximum(error, MIN_RELATIVE_ERROR * spread)
        else:
            weight = (1 - np.minimum(error / (TUKEY_WIDTH * spread), 1) ** 2) ** 2
        slope, intercept = _line(x, y, weight * unit**2)
    return slope, intercept


def _line(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Fit slope and intercept by weighted least squares; the slope is 0 if all x are equal."""
    total = weight.sum()
    x_mean, y_mean = (float((weight * values).sum() / total) for values in (x, y))
    offset = x - x_mean
    spread = float((weight * offset * offset).sum())
    tolerance = EQUAL_TOLERANCE * float(np.abs(x).max())
    slope = float((weight * offset * (y - y_mean)).sum()) / spread if spread > total * tolerance**2 else 0.0
    return slope, y_mean - slope * x_mean
