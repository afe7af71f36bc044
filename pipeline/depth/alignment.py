"""Relative depth brought to metres: scale and shift against ground truth, by image, in the teacher's own space.

The model is `1 / truth_m = scale * value + shift` for affine disparity, `truth_m = scale * value + shift` for affine
depth, and `truth_m = scale * value` for scale-invariant depth. `fit` is robust and may refuse; `fit_least_squares` is
what papers do before they measure (Ranftl et al. 2020, section 5, of MiDaS).

Shape legend: P points with a value and a truth, H W pixels.
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
"""Name of the robust fit; stores tell it."""
MIN_POINTS = 100
MAX_RESIDUAL = 0.25
MAX_LOST_SHARE = 0.5
"""Of an image's values, aligned to nothing above 0: a sky may be so, and no more."""
DEPTH_RANGE_M = (0.1, 300.0)
MOST_POINTS = 2**15
"""Of more, evenly spaced ones are fitted: dense truth would take long, and change nothing that counts."""
L1_STEPS, TUKEY_STEPS = 12, 12
TUKEY_WIDTH = 4.685
"""In standard deviations: 95 % efficient where errors are normal (Holland and Welsch 1977)."""
MAD_TO_STD = 1.4826
LARGEST_ERROR = 1e9
NEAREST = 0.1
"""Of the median fitted depth: an error of anything nearer counts as one at that depth."""
TINY = 1e-12
ALIKE = 1e-9
"""Values that differ by less of their size are the same."""
SMALLEST_STEP = 1e-3
"""Of the spread: nearer points count the same in the first fit, whose weights would be infinite at 0."""


class Verdict(IntEnum):
    """Whether an image could be aligned, or why not. The numbers stand in stores."""

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
    """How one image was aligned."""

    scale: float
    """NaN, and `shift` too, where it was not accepted."""
    shift: float
    points: int
    """Pixels with a value and a truth."""
    residual: float
    """Median over them of |aligned - truth| / truth, depth in metres; NaN where nothing could be fitted."""
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
    """Scale and shift of an image's values (H, W), NaN where there are none, by its truth (H, W) metres.

    What a few points say decides nothing: least absolute errors first, then Tukey's weights about that, a fixed number
    of steps each, in float64. Errors are of disparity; or of depth, in the end relative to the fitted one (relative to
    the truth, a wrong one near 0 would count for many right ones); or, up to a scale alone, of the logarithm of depth.

    Raises PipelineError for shapes that differ, or a space that is not relative.
    """
    known = _known(values, truth_m, depth_space)
    points = int(np.count_nonzero(known))
    if points < max(min_points, 2):
        return Fit(math.nan, math.nan, points, math.nan, Verdict.TOO_FEW_POINTS)
    value, truth = values[known].astype(np.float64), truth_m[known].astype(np.float64)
    chosen = np.linspace(0, points - 1, min(points, MOST_POINTS)).round().astype(np.intp)
    scale, shift = _robust(value[chosen], truth[chosen], depth_space)
    if not (scale > 0 and math.isfinite(scale) and math.isfinite(shift)):
        return Fit(math.nan, math.nan, points, math.nan, Verdict.SCALE_NOT_POSITIVE)
    aligned = _metres(value, scale, shift, depth_space)
    error = np.where(np.isnan(aligned), np.inf, np.minimum(np.abs(aligned - truth) / truth, LARGEST_ERROR))
    residual = float(np.median(error))
    if math.isinf(residual):  # most of the points have no depth at all
        return Fit(math.nan, math.nan, points, math.nan, Verdict.MOSTLY_NOT_POSITIVE)
    if residual > max_residual:
        return Fit(math.nan, math.nan, points, residual, Verdict.RESIDUAL_TOO_LARGE)
    everywhere = values[np.isfinite(values)].astype(np.float64)
    if np.mean(scale * everywhere + shift <= 0) > MAX_LOST_SHARE:
        return Fit(math.nan, math.nan, points, residual, Verdict.MOSTLY_NOT_POSITIVE)
    return Fit(scale, shift, points, residual, Verdict.ACCEPTED)


def apply(
    values: NDArray[np.floating],
    scale: float,
    shift: float,
    depth_space: str,
    depth_range_m: tuple[float, float] = DEPTH_RANGE_M,
) -> NDArray[np.float32]:
    """Values as depth of the same shape, float32 metres, clipped to a range.

    NaN where a value is, and where its aligned depth or disparity is not above 0; everywhere where `scale` is NaN.
    """
    metres = _metres(values.astype(np.float64), scale, shift, depth_space)
    return np.clip(metres, *depth_range_m).astype(np.float32)


def fit_least_squares(
    values: NDArray[np.floating], truth_m: NDArray[np.floating], depth_space: str
) -> tuple[float, float]:
    """Scale and shift of values (P,) by their truth (P,) metres: least squares, every point the same.

    Whatever comes out, perhaps a scale below 0; 0 where all values are the same. Up to a scale alone, the shift is 0.
    Raises PipelineError for no points.
    """
    if not values.size:
        raise PipelineError("no pixel to align by: expected ground truth where there is a prediction")
    value, truth = values.astype(np.float64), truth_m.astype(np.float64)
    if depth_space == "scale_invariant":
        square = float(value @ value)
        return (float(value @ truth) / square if square else 0.0), 0.0
    wanted = 1 / truth if depth_space == "affine_disparity" else truth
    return _line(value, wanted, np.ones_like(value))


def align_to_truth(
    values: NDArray[np.floating], truth_m: NDArray[np.floating], mask: NDArray[np.bool_], depth_space: str
) -> NDArray[np.float32]:
    """Values (H, W) as metres (H, W), float32, after `fit_least_squares` over the pixels of `mask`, in no range.

    NaN where a value is, or where the aligned depth or disparity is not above 0. Values and truth of the mask are
    finite. Raises PipelineError for an empty mask, shapes that differ, or a space that is not relative.
    """
    _check(values, truth_m, depth_space)
    scale, shift = fit_least_squares(values[mask], truth_m[mask], depth_space)
    return _metres(values.astype(np.float64), scale, shift, depth_space).astype(np.float32)


def _check(values: NDArray[np.floating], truth_m: NDArray[np.floating], depth_space: str) -> None:
    check_depth_space(depth_space)
    if depth_space == "metric_m":
        raise PipelineError("depth space metric_m: expected relative depth, metres need no alignment")
    if values.shape != truth_m.shape:
        raise PipelineError(f"values and truth of shapes {values.shape} and {truth_m.shape}: expected one shape")


def _known(values: NDArray[np.floating], truth_m: NDArray[np.floating], depth_space: str) -> NDArray[np.bool_]:
    """Pixels by which an image is aligned."""
    _check(values, truth_m, depth_space)
    known: NDArray[np.bool_] = np.isfinite(values) & np.isfinite(truth_m) & (truth_m > 0)
    return known & (values > 0) if depth_space == "scale_invariant" else known


def _metres(values: NDArray[np.float64], scale: float, shift: float, depth_space: str) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        aligned = values * scale + shift
    aligned[~(aligned > 0)] = np.nan
    return 1 / aligned if depth_space == "affine_disparity" else aligned


def _robust(value: NDArray[np.float64], truth_m: NDArray[np.float64], depth_space: str) -> tuple[float, float]:
    """Scale and shift; a scale of 0 or NaN where the values say nothing."""
    if depth_space == "scale_invariant":
        # ln truth = ln scale + ln value: a line of slope 0 through their difference
        _, level = _reweighted(np.zeros_like(value), np.log(truth_m / value))
        return math.exp(level), 0.0
    if depth_space == "affine_disparity":
        return _reweighted(value, 1 / truth_m)
    return _reweighted(value, truth_m, relative=True)


def _reweighted(x: NDArray[np.float64], y: NDArray[np.float64], *, relative: bool = False) -> tuple[float, float]:
    """Slope and level of y over x, robustly; in the end by errors relative to the line where `relative`."""
    unit = np.ones_like(x)
    slope, level = _line(x, y, unit)
    for step in range(L1_STEPS + TUKEY_STEPS):
        fitted = slope * x + level
        if relative and step >= L1_STEPS:
            unit = 1 / np.maximum(fitted, max(NEAREST * float(np.median(fitted)), TINY))
        error = np.abs(y - fitted) * unit
        spread = MAD_TO_STD * float(np.median(error))
        if spread == 0:  # more than half of the points lie on the line
            break
        if step < L1_STEPS:
            weight = 1 / np.maximum(error, SMALLEST_STEP * spread)
        else:
            weight = (1 - np.minimum(error / (TUKEY_WIDTH * spread), 1) ** 2) ** 2
        slope, level = _line(x, y, weight * unit**2)
    return slope, level


def _line(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and level of the weighted least squares line; slope 0 where all x are the same."""
    total = weight.sum()
    x_mean, y_mean = (float((weight * one).sum() / total) for one in (x, y))
    off = x - x_mean
    spread = float((weight * off * off).sum())
    alike = ALIKE * float(np.abs(x).max())
    slope = float((weight * off * (y - y_mean)).sum()) / spread if spread > total * alike**2 else 0.0
    return slope, y_mean - slope * x_mean
