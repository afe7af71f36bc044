"""Evaluation of a student's uncertainty: does it rank the errors, and do the intervals of its maps contain the truth?

Every image has the same weight. Sums are float64.

Shape legend: K bins, H W pixels of the view, h w pixels of the map, P pixels with truth, L levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..errors import PipelineError
from .bins import bin_centers
from .dpm import entropy_nats
from .risk_coverage import (
    COVERAGES,
    MIN_DEPTH_M,
    ErrorHistogram,
    constant_widths,
    relative_difference,
    risk_coverage,
    spearman,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

MEASURES = ("entropy", "width", "deviation", "flip")
"""Measures of uncertainty: entropy of the map in nats; width of its 90 % interval and its standard deviation, relative
to depth; relative difference to the prediction for the mirrored image."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Nominal mass of the central intervals."""
EQUAL_COVERAGES = (0.5, 0.8, 0.9, 0.95)
"""Observed coverages at which the widths of intervals are compared."""
_WIDE_LEVELS = (
    *LEVELS,
    0.98,
    0.99,
    0.995,
    0.999,
    0.9999,
    0.99999,
)  # an overconfident map contains 90 % of the truth only at these
MIN_DENSITY = 1e-12
"""Density of ln depth that a map has at least, so that one empty bin does not make the mean infinite."""
DEPTH_RANGES_M = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0)
"""Limits of the ranges in which calibration is also measured: octaves."""
MIN_RANGE_FRACTION = 0.01
"""A range with fewer of all pixels is not reported."""
_NINETY = LEVELS.index(0.9)
_CHUNK = 2**14  # pixels; with 257 bins their maps take 34 MB


class MapStatistics(NamedTuple):
    """Uncertainty of maps at P pixels, and where the truth is in them."""

    entropy_nats: Array
    """(P,)"""
    deviation: Array
    """(P,) standard deviation / depth"""
    widths: Array
    """(P, L) width of the central interval of each level / depth"""
    nll_nats: Array
    """(P,) -ln of the density of ln depth at the truth"""
    truth_level: Array
    """(P,) mass of the smallest central interval that contains the truth, 0..1: |2 CDF(truth) - 1|"""


def map_at(dpm: Tensor, rows: NDArray[np.intp], columns: NDArray[np.intp], view_px: tuple[int, int]) -> Tensor:
    """Interpolate a map (K, h, w) at pixels of the view of size `view_px`: (P, K) float64.

    Bilinear, so that the mean of the result is the upsampled depth.
    """
    (top, bottom, down), (left, right, across) = (
        _interpolation(indices, map_size, view_size, dpm.device)
        for indices, map_size, view_size in zip((rows, columns), dpm.shape[1:], view_px, strict=True)
    )
    flat, width = dpm.flatten(1), dpm.shape[2]  # index_select is faster than two index tensors

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat.index_select(1, row * width + column).double()

    upper = torch.lerp(at(top, left), at(top, right), across)
    lower = torch.lerp(at(bottom, left), at(bottom, right), across)
    return torch.lerp(upper, lower, down).T.contiguous()


def _interpolation(
    indices: NDArray[np.intp], map_size: int, view_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two nearest indices of the map for indices of the view, and the weight of the second."""
    position = ((torch.from_numpy(indices).to(device).double() + 0.5) * (map_size / view_size) - 0.5).clamp_(
        0, map_size - 1
    )
    first = position.floor().long()
    return first, (first + 1).clamp_(max=map_size - 1), position - first


def map_statistics(
    dpm: Tensor,
    bin_edges_m: Array,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    view_px: tuple[int, int],
    truth_m: NDArray[np.floating],
    levels: tuple[float, ...] = LEVELS,
    depth_m: NDArray[np.floating] | None = None,
) -> MapStatistics:
    """Return statistics of a map (K, h, w) at P pixels of the view with truth (P,), a chunk of pixels at a time.

    The mass of each bin is spread evenly over it, as in `dpm.interval_m`. Widths are relative to `depth_m` (P,), which
    is read from the map in some way, or to the mean of the map if that is omitted. Raises PipelineError if K is not the
    number of bins.
    """
    if dpm.ndim != 3 or len(dpm) != len(bin_edges_m) - 1:
        raise PipelineError(f"map of shape {tuple(dpm.shape)}: expected (K, h, w) with K = {len(bin_edges_m) - 1} bins")
    edges = torch.from_numpy(bin_edges_m).to(dpm.device).double()
    parts = []
    for start in range(0, len(rows), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        maps = map_at(dpm, rows[chunk], columns[chunk], view_px)
        truth = torch.from_numpy(truth_m[chunk].astype(np.float64)).to(dpm.device)
        divisor = None if depth_m is None else torch.from_numpy(depth_m[chunk].astype(np.float64)).to(dpm.device)
        parts.append([part.cpu().numpy() for part in _statistics(maps, edges, truth, levels, divisor)])
    return MapStatistics(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _statistics(
    maps: Tensor, edges: Tensor, truth_m: Tensor, levels: tuple[float, ...], divisor_m: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the fields of `MapStatistics` for maps (P, K) as tensors."""
    maps = maps / maps.sum(dim=1, keepdim=True)
    centers = bin_centers(edges)
    depth_m = maps @ centers
    variance = (maps * (centers - depth_m[:, None]) ** 2).sum(dim=1)
    cdf = torch.nn.functional.pad(maps.cumsum(dim=1), (1, 0))
    cdf[:, -1] = 1  # without rounding
    mass = torch.tensor(levels, dtype=torch.float64, device=maps.device)
    tails = torch.cat([(1 - mass) / 2, (1 + mass) / 2]).expand(len(maps), -1).contiguous()
    ends_m = _quantiles_m(cdf, edges, tails)
    widths_m = ends_m[:, len(levels) :] - ends_m[:, : len(levels)]
    bins = (torch.searchsorted(edges, truth_m, right=True) - 1).clamp(0, len(centers) - 1)[:, None]
    fraction = ((truth_m[:, None] - edges[bins]) / (edges[bins + 1] - edges[bins])).clamp(0, 1)
    below = (cdf.gather(1, bins) + fraction * (cdf.gather(1, bins + 1) - cdf.gather(1, bins)))[:, 0]
    divisor_m = (depth_m if divisor_m is None else divisor_m).clamp_min(MIN_DEPTH_M)
    entropy = entropy_nats(maps[:, :, None, None])[:, 0, 0, 0]
    density = maps.gather(1, bins) / (edges[bins + 1] - edges[bins]) * truth_m[:, None]
    nll = -density[:, 0].clamp_min(MIN_DENSITY).log()
    return entropy, variance.sqrt() / divisor_m, widths_m / divisor_m[:, None], nll, (2 * below - 1).abs()


def _quantiles_m(cdf: Tensor, edges: Tensor, levels: Tensor) -> Tensor:
    """Return quantiles (P, L) in metres at levels (P, L), for CDFs (P, K + 1) at the edges."""
    bins = torch.searchsorted(cdf[:, 1:].contiguous(), levels).clamp_(max=cdf.shape[1] - 2)
    before = cdf.gather(1, bins)
    mass = (cdf.gather(1, bins + 1) - before).clamp_min(torch.finfo(torch.float64).tiny)
    left = edges.take(bins)  # faster than edges[bins]
    return left + ((levels - before) / mass).clamp(0, 1) * (edges.take(bins + 1) - left)


class Views(NamedTuple):
    """Predictions for an image and for its mirror image."""

    dpm: Tensor | None
    """(K, h, w) map of the image, not flip-averaged; None for a student without maps"""
    depth_m: NDArray[np.floating]
    """(H, W) depth of the image, not flip-averaged"""
    mirrored_m: NDArray[np.floating]
    """(H, W) depth of the mirror image, mirrored back"""


class UncertaintyMeter:
    """Accumulates uncertainty metrics over images.

    Args:
        bin_edges_m: (K + 1,) of the maps.
        calibration: relative errors |truth - prediction| / prediction on other images, for intervals of constant
            relative width; None omits these intervals.
    """

    def __init__(self, bin_edges_m: Array, calibration: ErrorHistogram | None = None) -> None:
        self._edges_m = bin_edges_m
        self._calibration = calibration
        self._constant_errors = None if calibration is None else calibration.quantiles(LEVELS)
        self._errors = ErrorHistogram()
        self._sums: dict[str, Array] = {}
        self._counts: dict[str, int] = {}
        self._range_px = np.zeros(len(DEPTH_RANGES_M) + 1)
        self._range_hits = np.zeros((len(DEPTH_RANGES_M) + 1, len(LEVELS)))

    def _count(self, name: str, value: Array | float) -> None:
        self._sums[name] = self._sums.get(name, np.float64(0)) + np.asarray(value, np.float64)
        self._counts[name] = self._counts.get(name, 0) + 1

    def _mean(self, name: str) -> Array:
        return self._sums[name] / self._counts[name]

    def add(
        self, predicted_m: Array, truth_m: NDArray[np.floating], mask: NDArray[np.bool_], views: Views
    ) -> dict[str, float]:
        """Add an image: prediction, truth and mask (H, W), with at least one pixel in the mask.

        `predicted_m` is the evaluated depth. Returns metrics of the image: `ause_flip`, and with a map `entropy_nats`,
        `ause_entropy` and `coverage_90`.
        """
        rows, columns = mask.nonzero()
        predicted, truth = predicted_m[mask], truth_m[mask].astype(np.float64)
        error = np.abs(predicted - truth) / truth
        measures = {"flip": relative_difference(views.depth_m[mask], views.mirrored_m[mask])}
        row: dict[str, float] = {}
        if views.dpm is not None:
            view_px = (mask.shape[0], mask.shape[1])
            direct_m = views.depth_m[mask]
            maps = map_statistics(views.dpm, self._edges_m, rows, columns, view_px, truth, _WIDE_LEVELS, direct_m)
            measures |= {"entropy": maps.entropy_nats, "width": maps.widths[:, _NINETY], "deviation": maps.deviation}
            coverage = (maps.truth_level[:, None] <= np.array(_WIDE_LEVELS)).mean(axis=0)
            self._count("map observed", coverage)
            self._count("map width", maps.widths.mean(axis=0))
            self._count("map nll", float(maps.nll_nats.mean()))
            self._add_ranges(predicted, maps.truth_level)
            row |= {"entropy_nats": float(maps.entropy_nats.mean()), "coverage_90": float(coverage[_NINETY])}
        row |= self._rank(measures, error)
        relative = relative_difference(predicted, truth)
        self._errors.add(relative)
        if self._constant_errors is not None:
            self._count("constant observed", (relative[:, None] <= self._constant_errors).mean(axis=0))
        return row

    def _add_ranges(self, predicted_m: Array, truth_level: Array) -> None:
        """Count pixels (P,) by predicted depth.

        By prediction, because that is what a user has; no network can be calibrated by true depth, since of the pixels
        that are far, it takes more for nearer than for farther.
        """
        numbers = np.searchsorted(DEPTH_RANGES_M, predicted_m, side="right")
        self._range_px += np.bincount(numbers, minlength=len(self._range_px))
        for level, hits in enumerate((truth_level[:, None] <= np.array(LEVELS)).T):
            self._range_hits[:, level] += np.bincount(numbers, hits, minlength=len(self._range_px))

    def _by_range(self) -> list[dict[str, Any]]:
        """Calibration in each range of predicted depth that has enough pixels."""
        limits = (0.0, *DEPTH_RANGES_M, None)
        return [
            {
                "from_m": limits[number],
                "to_m": limits[number + 1],
                "fraction": float(pixels / self._range_px.sum()),
                "observed": (hits / pixels).tolist(),
                "ece": float(np.mean(np.abs(hits / pixels - np.array(LEVELS)))),
            }
            for number, (pixels, hits) in enumerate(zip(self._range_px, self._range_hits, strict=True))
            if pixels >= MIN_RANGE_FRACTION * self._range_px.sum()
        ]

    def _rank(self, measures: dict[str, Array], error: Array) -> dict[str, float]:
        mean_error = float(error.mean())
        oracle = risk_coverage(error, error)
        row = {}
        for name, uncertainty in (measures | {"oracle": error, "random": np.zeros_like(error)}).items():
            curve = risk_coverage(uncertainty, error)
            ause = (curve.aurc - oracle.aurc) / mean_error if mean_error else 0.0
            self._count(f"{name} risk", curve.risk)
            self._count(f"{name} aurc", curve.aurc)
            self._count(f"{name} ause", ause)
            correlation = spearman(uncertainty, error) if name in MEASURES else None
            if correlation is not None:
                self._count(f"{name} spearman", correlation)
            if name in {"entropy", "flip"}:
                row[f"ause_{name}"] = ause
        return row

    def result(self) -> dict[str, Any]:
        """Return means over the added images as a JSON value. Raises PipelineError if no image was added.

        `measures` has, for each measure, `oracle` and `random`: `risk` at each of `coverages`; `aurc`; `ause`, the area
        between its sparsification curve and the oracle's, each divided by its value at full coverage (Ilg et al. 2018):
        (aurc - aurc of the oracle) / (mean error); and `spearman` with the error.

        `intervals` has `map` and, with a calibration, `constant`: `nominal` mass; `observed` fraction of the truth
        inside; mean `width` / depth; `ece`, mean |nominal - observed|; and `equal`, the widths at which given fractions
        of the truth are observed inside (null if no interval is wide enough). `map` also has `nll_nats`, the mean -ln
        density of ln depth at the truth, and `by_range`, calibration by predicted depth in octaves of metres: `from_m`,
        `to_m` (null for the last), `fraction` of the pixels, `observed` and `ece`, over pixels.
        """
        names = [name for name in (*MEASURES, "oracle", "random") if f"{name} aurc" in self._sums]
        if not names:
            raise PipelineError(
                "no image was evaluated: expected at least one with ground truth inside the protocol's crop and range"
            )
        measures: dict[str, dict[str, Any]] = {}
        for name in names:
            measures[name] = {key: self._mean(f"{name} {key}").tolist() for key in ("risk", "aurc", "ause")}
            if name in MEASURES:
                key = f"{name} spearman"
                measures[name]["spearman"] = self._mean(key).tolist() if key in self._sums else None
        intervals: dict[str, dict[str, Any]] = {}
        if "map observed" in self._sums:
            observed, width = self._mean("map observed"), self._mean("map width")
            equal = np.interp(EQUAL_COVERAGES, np.append(0, observed), np.append(0, width), right=np.nan)
            count = len(LEVELS)
            intervals["map"] = _intervals(observed[:count], width[:count], equal)
            intervals["map"] |= {"nll_nats": float(self._mean("map nll")), "by_range": self._by_range()}
        if self._constant_errors is not None and self._calibration is not None:
            equal = constant_widths(self._errors.quantiles(EQUAL_COVERAGES))
            constant = _intervals(self._mean("constant observed"), constant_widths(self._constant_errors), equal)
            fitted = {"frames": self._calibration.frames, "relative_error": self._constant_errors.tolist()}
            intervals["constant"] = constant | {"calibration": fitted}
        return {
            "frames": self._errors.frames,
            "coverages": list(COVERAGES),
            "measures": measures,
            "intervals": intervals,
        }


def _intervals(observed: Array, width: Array, equal: Array) -> dict[str, Any]:
    return {
        "nominal": list(LEVELS),
        "observed": observed.tolist(),
        "width": width.tolist(),
        "ece": float(np.mean(np.abs(observed - np.array(LEVELS)))),
        "equal": {
            "observed": list(EQUAL_COVERAGES),
            "width": [None if np.isnan(value) else float(value) for value in equal],
        },
    }
