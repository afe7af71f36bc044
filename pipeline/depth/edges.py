"""Error and sharpness near depth edges.

Two neighboring pixels are an edge if their depths differ by more than a given ratio. Depth at edges is where networks
blur, and where the average over an image shows it least.

Shape legend: H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

REACH_PX = 5
"""The band of pixels within this distance (in rows and in columns) of an edge."""
BAND_RATIO = 1.25
"""Ratio of neighboring true depths that makes the band."""
RATIOS = (1.05, 1.1, 1.15, 1.2, 1.25)
"""Ratios over which F1 is averaged, as in Depth Pro (Bochkovskii et al. 2024, section 3.3)."""
MIN_DENSE = 0.5
"""Fraction of pixels that truth needs: between LiDAR points there are no neighbors."""
COLUMNS = ("edge_abs_rel", "edge_f1")


def edge_metrics(predicted_m: NDArray[np.floating], truth_m: NDArray[np.floating], mask: Mask) -> dict[str, float]:
    """Return the metrics of a prediction (H, W) within 5 px of the edges of truth (H, W), over the pixels of `mask`.

    Returns:
        `edge_abs_rel`: mean |prediction - truth| / truth in the band. `edge_f1`: harmonic mean of precision and recall
        of edges between neighboring pixels of the band, averaged over RATIOS. Empty for sparse truth, and for an image
        without edges within the mask.
    """
    if np.count_nonzero(np.isfinite(truth_m) & (truth_m > 0)) < MIN_DENSE * mask.size:
        return {}
    truth, predicted = (np.log(np.where(mask, depth_m, 1.0).astype(np.float64)) for depth_m in (truth_m, predicted_m))
    band = _band(truth, mask)
    if not band.any():
        return {}
    steps = [(_steps(truth, axis), _steps(predicted, axis), _pairs(band, axis)) for axis in (0, 1)]
    true, seen = (np.concatenate([step[part][step[2]] for step in steps]) for part in (0, 1))
    return {
        "edge_abs_rel": float(np.mean(np.abs(np.expm1(predicted - truth))[band])),
        "edge_f1": float(np.mean([_f1(true, seen, float(np.log(ratio))) for ratio in RATIOS])),
    }


def _steps(log_depth: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Differences of ln depth from each pixel to the next along an axis."""
    return np.diff(log_depth, axis=axis)


def _pairs(mask: Mask, axis: int) -> Mask:
    """Whether both pixels of each pair along an axis are in the mask."""
    first, second = (mask[:-1], mask[1:]) if axis == 0 else (mask[:, :-1], mask[:, 1:])
    return first & second


def _band(log_truth: NDArray[np.float64], mask: Mask) -> Mask:
    """Pixels (H, W) of the mask within REACH_PX of an edge."""
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        found = (np.abs(_steps(log_truth, axis)) > np.log(BAND_RATIO)) & _pairs(mask, axis)
        first, second = (edge[:-1], edge[1:]) if axis == 0 else (edge[:, :-1], edge[:, 1:])
        first |= found
        second |= found
    wide = F.max_pool2d(torch.from_numpy(edge)[None, None].float(), 2 * REACH_PX + 1, stride=1, padding=REACH_PX)
    return (wide[0, 0].numpy() > 0) & mask


def _f1(true: NDArray[np.float64], seen: NDArray[np.float64], threshold: float) -> float:
    """F1 of edges (N,) between pairs: of the same direction, with a step above the threshold. 1 if there are none."""
    both = sum(int(np.count_nonzero((sign * true > threshold) & (sign * seen > threshold))) for sign in (1, -1))
    total = int(np.count_nonzero(np.abs(true) > threshold) + np.count_nonzero(np.abs(seen) > threshold))
    return 2 * both / total if total else 1.0
