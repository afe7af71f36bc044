"""Evaluation of a student's uncertainty: does it rank the errors, and do the intervals of its maps contain the truth?

Every image has the same weight. Sums are float64.

Shape legend: K bins, H W pixels of the view, h w pixels of the map, P pixels with truth, L levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import PipelineError
from .map_statistics import LEVELS, map_statistics
from .risk_coverage import (
    COVERAGES,
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
DEPTH_RANGES_M = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0)
"""Limits of the ranges in which calibration is also measured: octaves."""
MIN_RANGE_FRACTION = 0.01
"""A range with fewer of all pixels is not reported."""
_NINETY = LEVELS.index(0.9)


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
