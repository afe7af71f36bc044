"""Depth metrics, and the evaluation protocols: crop, depth range and alignment.

Shape legend: H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PipelineError
from .alignment import align_to_truth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")
LOWER_IS_BETTER = METRICS[:6]

UNIT_FACTOR = 2.0
"""Predictions off by this factor or more in the median probably have a wrong unit."""

_GARG_ROWS = (0.40810811, 0.99189189)  # fractions of the height and width (Garg et al. 2016, as in BTS)
_GARG_COLUMNS = (0.03594771, 0.96405229)
_NYU_SIZE = (480, 640)
_NYU_ROWS = slice(45, 471)  # Eigen's crop of NYU
_NYU_COLUMNS = slice(41, 601)
_CROPS = ("none", "garg", "eigen_nyu")
ALIGNS = {
    "none": "metres as they are",
    "median": "times median of the truth / median of the prediction",
    "scale": "times a scale, least squares",
    "depth": "scale and shift of depth, least squares",
    "disparity": "scale and shift of 1 / depth, least squares",
}
"""Alignment of a prediction to the truth of its image before evaluation."""
_SPACES = {"scale": "scale_invariant", "depth": "affine_depth", "disparity": "affine_disparity"}


def depth_metrics(
    predicted_m: NDArray[np.floating], truth_m: NDArray[np.floating], mask: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the nine usual metrics of one image over the pixels of `mask`, in float64.

    Args:
        predicted_m: (H, W) metres.
        truth_m: (H, W) metres; ignored outside the mask.
        mask: (H, W) bool.

    Returns:
        abs_rel; sq_rel and rmse in metres; rmse_log (natural log); log10; silog, 100 times the standard
        deviation of the log ratio; delta1, delta2, delta3, fractions of pixels within a factor of 1.25, 1.25^2, 1.25^3.

    Raises PipelineError for different shapes, an empty mask, or depth in the mask that is not positive and finite.
    """
    if not predicted_m.shape == truth_m.shape == mask.shape:
        shapes = f"{predicted_m.shape}, {truth_m.shape} and {mask.shape}"
        raise PipelineError(f"prediction, truth and mask of shapes {shapes}: expected equal shapes")
    if not mask.any():
        raise PipelineError("no pixel to evaluate: expected ground truth inside the protocol's crop and range")
    predicted = _positive("prediction", predicted_m[mask])
    truth = _positive("truth", truth_m[mask])
    error = predicted - truth
    log_ratio = np.log(predicted) - np.log(truth)
    factor = np.maximum(predicted / truth, truth / predicted)
    return {
        "abs_rel": float(np.mean(np.abs(error) / truth)),
        "sq_rel": float(np.mean(error**2 / truth)),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "rmse_log": float(np.sqrt(np.mean(log_ratio**2))),
        "log10": float(np.mean(np.abs(log_ratio)) / math.log(10)),
        "silog": float(100 * np.std(log_ratio)),
        "delta1": float(np.mean(factor < 1.25)),
        "delta2": float(np.mean(factor < 1.25**2)),
        "delta3": float(np.mean(factor < 1.25**3)),
    }


def _positive(what: str, depth_m: NDArray[np.floating]) -> NDArray[np.float64]:
    values = depth_m.astype(np.float64)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise PipelineError(f"{what} of {values[bad][0]} m at {bad.sum()} pixels: expected positive, finite depth")
    return values


def unit_ratio(predicted_m: NDArray[np.floating], truth_m: NDArray[np.floating]) -> float:
    """Return the median of prediction / truth, both (H, W), where both are valid; NaN if nowhere."""
    valid = np.isfinite(predicted_m) & np.isfinite(truth_m) & (truth_m > 0)
    return float(np.median(predicted_m[valid] / truth_m[valid])) if valid.any() else math.nan


def unit_hint(ratios: Sequence[float]) -> str | None:
    """Return a warning if the median of the images' `unit_ratio` suggests a wrong unit, otherwise None."""
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    median = float(np.median(finite)) if finite else 1.0
    if 1 / UNIT_FACTOR <= median <= UNIT_FACTOR:
        return None
    return (
        f"median ratio to truth {median:.3g}: wrong unit? Compare the metres per unit of the predictions and of the "
        "ground truth (`metres_per_unit`, metres_per_unit of dataset.json)"
    )


def mean_metrics(images: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the unweighted mean of each metric over images. Raises PipelineError for no images."""
    if not images:
        raise PipelineError("no image to average metrics over: expected at least one")
    return {name: math.fsum(image[name] for image in images) / len(images) for name in images[0]}


@dataclass(frozen=True)
class Protocol:
    """Evaluation protocol: crop, depth range, flip average and alignment. `dataclasses.replace` makes variants.

    Raises PipelineError for an unknown crop or alignment, or an empty range.
    """

    name: str
    crop: str
    """`none`; `garg`, as fractions of the KB crop of 352x1216; `eigen_nyu`, for 480x640 only."""
    min_m: float
    """Truth at or below it is ignored; predictions are clipped to it."""
    max_m: float | None
    """Truth at or above it is ignored; predictions are clipped to it. None is no limit."""
    flip_average: bool
    """Whether the prediction is the mean of the image's and of the mirrored image's, mirrored back."""
    align: str = "none"
    """One of ALIGNS. What is aligned to the truth is measured for its shape alone."""
    scale_split: str | None = None
    """Name of the split that one constant was fitted on, which every prediction was multiplied by; None is no
    constant."""

    def __post_init__(self) -> None:
        if self.align not in ALIGNS:
            raise PipelineError(f"align {self.align!r}: expected one of {', '.join(ALIGNS)}")
        if self.crop not in _CROPS:
            raise PipelineError(f"crop {self.crop!r}: expected one of {', '.join(_CROPS)}")
        if not 0 < self.min_m < (math.inf if self.max_m is None else self.max_m):
            raise PipelineError(f"depth range {self.min_m} to {self.max_m} m: expected 0 < min < max")
        if self.scale_split is not None and self.align != "none":
            raise PipelineError(
                f"`scale_split={self.scale_split}` fits one constant for all images, but `align={self.align}` aligns "
                "each: leave one of the two out"
            )

    def mask(self, truth_m: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return the pixels (H, W) to evaluate: truth (H, W) within the range and the crop; NaN and 0 are not.

        Raises PipelineError if the crop is defined for another image size.
        """
        inside = np.zeros(truth_m.shape, dtype=np.bool_)
        inside[self._window(*truth_m.shape)] = True
        inside &= (truth_m > self.min_m) & (truth_m < (math.inf if self.max_m is None else self.max_m))
        return inside

    def _window(self, height: int, width: int) -> tuple[slice, slice]:
        if self.crop == "garg":
            top, bottom = (int(fraction * height) for fraction in _GARG_ROWS)
            left, right = (int(fraction * width) for fraction in _GARG_COLUMNS)
            return slice(top, bottom), slice(left, right)
        if self.crop == "eigen_nyu":
            if (height, width) != _NYU_SIZE:
                size = f"{height}x{width}"
                raise PipelineError(f"truth of {size}: the eigen_nyu crop is defined for 480x640; use `protocol=plain`")
            return _NYU_ROWS, _NYU_COLUMNS
        return slice(None), slice(None)

    def clamp(self, predicted_m: NDArray[np.floating]) -> NDArray[np.float64]:
        """Clip a prediction (H, W) to the range, as float64; keeps NaN."""
        return np.clip(predicted_m.astype(np.float64), self.min_m, self.max_m)

    def prepared(
        self, predicted_m: NDArray[np.floating], truth_m: NDArray[np.floating], mask: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the prediction (H, W) to evaluate: aligned to truth (H, W) over `mask` and clipped to the range.

        Pixels without positive aligned disparity are infinitely far: they get `max_m` or the largest truth.
        """
        aligned = predicted_m.astype(np.float64)
        if self.align == "median":
            aligned *= float(np.median(truth_m[mask].astype(np.float64)) / np.median(aligned[mask]))
        elif self.align != "none":
            values = 1 / aligned if self.align == "disparity" else aligned
            aligned = align_to_truth(values, truth_m, mask, _SPACES[self.align]).astype(np.float64)
            lost = self.max_m or float(truth_m[mask].max()) if self.align == "disparity" else self.min_m
            aligned = np.where(np.isnan(aligned) & np.isfinite(values), lost, aligned)
        return self.clamp(aligned)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON, without `align` and `scale_split` if there is none, as in older results."""
        fields = asdict(self)
        absent = {"align": self.align == "none", "scale_split": self.scale_split is None}
        return {name: value for name, value in fields.items() if not absent.get(name, False)}


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("kitti_eigen_garg80", crop="garg", min_m=1e-3, max_m=80.0, flip_average=True),
        Protocol("nyu_eigen", crop="eigen_nyu", min_m=1e-3, max_m=10.0, flip_average=True),
        Protocol("plain", crop="none", min_m=1e-3, max_m=None, flip_average=False),
    )
}


def evaluate_pair(
    predicted_m: NDArray[np.floating], truth_m: NDArray[np.floating], protocol: Protocol
) -> dict[str, float]:
    """Return the metrics of a prediction (H, W) against truth (H, W), both in metres.

    NaN and 0 in the truth are invalid. Raises PipelineError as `depth_metrics` and `Protocol.mask` do.
    """
    mask = protocol.mask(truth_m)
    return depth_metrics(protocol.prepared(predicted_m, truth_m, mask), truth_m, mask)
