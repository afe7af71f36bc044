"""Does a student know when it is wrong? Doubt at each pixel beside the error there, and how often intervals hold.

Sums are float64; every image counts the same, so nothing but sums outlives an image. No I/O.

Shape legend: K bins, H W pixels of the view, h w of the map, P pixels with truth, L levels.
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
    LEAST_M,
    ErrorSpread,
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
"""Doubt by the map (nats; 90 % interval and standard deviation, both by depth) and by the mirrored image."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Nominal mass of the central intervals."""
EQUAL_COVERAGES = (0.5, 0.8, 0.9, 0.95)
"""Observed shares of truth at which widths of different intervals are compared."""
_WIDE_LEVELS = (*LEVELS, 0.98, 0.99, 0.995, 0.999, 0.9999, 0.99999)  # a map too sure of itself holds 90 % only there
_NINETY = LEVELS.index(0.9)
_CHUNK = 2**14  # pixels; with 257 bins their maps take 34 MB


class MapFacts(NamedTuple):
    """What maps say at P pixels, and about the truth there."""

    entropy_nats: Array
    """(P,)"""
    deviation: Array
    """(P,) standard deviation by expected depth"""
    widths: Array
    """(P, L) width of the central intervals of the levels asked for, by expected depth"""
    needed: Array
    """(P,) mass of the smallest central interval that holds the truth, 0..1: |2 CDF(truth) - 1|"""


def map_at(dpm: Tensor, rows: NDArray[np.intp], columns: NDArray[np.intp], view_px: tuple[int, int]) -> Tensor:
    """Maps (P, K) float64 at pixels of the view, from one map (K, h, w).

    Between the map's own pixels the four nearest are mixed bilinearly, so that the expectation of the mix is depth
    as it is upsampled everywhere else.
    """
    (top, bottom, down), (left, right, across) = (
        _between(places, own, view, dpm.device)
        for places, own, view in zip((rows, columns), dpm.shape[1:], view_px, strict=True)
    )
    flat, width = dpm.flatten(1), dpm.shape[2]  # index_select is quicker than two index tensors

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat.index_select(1, row * width + column).double()

    upper = torch.lerp(at(top, left), at(top, right), across)
    lower = torch.lerp(at(bottom, left), at(bottom, right), across)
    return torch.lerp(upper, lower, down).T.contiguous()


def _between(places: NDArray[np.intp], own: int, view: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two own places that a view's place lies between, and the weight of the second."""
    at = ((torch.from_numpy(places).to(device).double() + 0.5) * (own / view) - 0.5).clamp_(0, own - 1)
    first = at.floor().long()
    return first, (first + 1).clamp_(max=own - 1), at - first


def map_facts(
    dpm: Tensor,
    bin_edges_m: Array,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    view_px: tuple[int, int],
    truth_m: NDArray[np.floating],
    levels: tuple[float, ...] = LEVELS,
) -> MapFacts:
    """Doubt of a map (K, h, w) at P pixels of the view, and where in it their truth (P,) lies; some at a time.

    Each bin's mass is spread evenly over the bin, as in `dpm.interval_m`. Raises PipelineError where K is not the
    number of bins.
    """
    if dpm.ndim != 3 or len(dpm) != len(bin_edges_m) - 1:
        raise PipelineError(
            f"a map of shape {tuple(dpm.shape)}: expected (K, h, w) with K = {len(bin_edges_m) - 1} bins"
        )
    edges = torch.from_numpy(bin_edges_m).to(dpm.device).double()
    parts = []
    for start in range(0, len(rows), _CHUNK):
        some = slice(start, start + _CHUNK)
        maps = map_at(dpm, rows[some], columns[some], view_px)
        truth = torch.from_numpy(truth_m[some].astype(np.float64)).to(dpm.device)
        parts.append([part.cpu().numpy() for part in _facts(maps, edges, truth, levels)])
    return MapFacts(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _facts(maps: Tensor, edges: Tensor, truth_m: Tensor, levels: tuple[float, ...]) -> tuple[Tensor, ...]:
    """`MapFacts` of maps (P, K) as tensors."""
    maps = maps / maps.sum(dim=1, keepdim=True)
    centers = bin_centers(edges)
    depth_m = maps @ centers
    variance = (maps * (centers - depth_m[:, None]) ** 2).sum(dim=1)
    cdf = torch.nn.functional.pad(maps.cumsum(dim=1), (1, 0))
    cdf[:, -1] = 1  # what rounding left of it
    mass = torch.tensor(levels, dtype=torch.float64, device=maps.device)
    tails = torch.cat([(1 - mass) / 2, (1 + mass) / 2]).expand(len(maps), -1).contiguous()
    ends_m = _quantiles_m(cdf, edges, tails)
    widths_m = ends_m[:, len(levels) :] - ends_m[:, : len(levels)]
    bins = (torch.searchsorted(edges, truth_m, right=True) - 1).clamp(0, len(centers) - 1)[:, None]
    share = ((truth_m[:, None] - edges[bins]) / (edges[bins + 1] - edges[bins])).clamp(0, 1)
    below = (cdf.gather(1, bins) + share * (cdf.gather(1, bins + 1) - cdf.gather(1, bins)))[:, 0]
    by_m = depth_m.clamp_min(LEAST_M)
    entropy = entropy_nats(maps[:, :, None, None])[:, 0, 0, 0]
    return entropy, variance.sqrt() / by_m, widths_m / by_m[:, None], (2 * below - 1).abs()


def _quantiles_m(cdf: Tensor, edges: Tensor, shares: Tensor) -> Tensor:
    """Depths (P, L) below which the shares (P, L) of the mass lie, for CDFs (P, K + 1) at the edges."""
    bins = torch.searchsorted(cdf[:, 1:].contiguous(), shares).clamp_(max=cdf.shape[1] - 2)
    before = cdf.gather(1, bins)
    mass = (cdf.gather(1, bins + 1) - before).clamp_min(torch.finfo(torch.float64).tiny)
    return edges[bins] + ((shares - before) / mass).clamp(0, 1) * (edges[bins + 1] - edges[bins])


class Look(NamedTuple):
    """What a student says of one image."""

    dpm: Tensor | None
    """(K, h, w) of the image itself, never of a flip average; None for a student that has no map."""
    depth_m: NDArray[np.floating]
    """(H, W) of the image itself"""
    mirrored_m: NDArray[np.floating]
    """(H, W) of the mirrored image, mirrored back"""


class UncertaintyMeter:
    """Takes one image after the other and keeps sums.

    Args:
        bin_edges_m: (K + 1,) of the students' maps.
        calibration: relative errors |truth - prediction| / prediction on other images, for intervals of constant
            relative width; None leaves these out.
    """

    def __init__(self, bin_edges_m: Array, calibration: ErrorSpread | None = None) -> None:
        self._edges_m = bin_edges_m
        self._calibration = calibration
        self._allowed = None if calibration is None else calibration.quantiles(LEVELS)
        self._errors = ErrorSpread()
        self._sums: dict[str, Array] = {}
        self._counts: dict[str, int] = {}

    def _count(self, name: str, value: Array | float) -> None:
        self._sums[name] = self._sums.get(name, np.float64(0)) + np.asarray(value, np.float64)
        self._counts[name] = self._counts.get(name, 0) + 1

    def _mean(self, name: str) -> Array:
        return self._sums[name] / self._counts[name]

    def add(
        self, predicted_m: Array, truth_m: NDArray[np.floating], mask: NDArray[np.bool_], look: Look
    ) -> dict[str, float]:
        """Count the pixels (H, W) of `mask`, one or more; `predicted_m` is the depth whose error counts.

        Returns the image's own figures: `ause_flip`, and with a map `entropy_nats`, `ause_entropy`, `coverage_90`.
        """
        rows, columns = mask.nonzero()
        predicted, truth = predicted_m[mask], truth_m[mask].astype(np.float64)
        error = np.abs(predicted - truth) / truth
        doubts = {"flip": relative_difference(look.depth_m[mask], look.mirrored_m[mask])}
        row: dict[str, float] = {}
        if look.dpm is not None:
            view_px = (mask.shape[0], mask.shape[1])
            facts = map_facts(look.dpm, self._edges_m, rows, columns, view_px, truth, _WIDE_LEVELS)
            doubts |= {"entropy": facts.entropy_nats, "width": facts.widths[:, _NINETY], "deviation": facts.deviation}
            held = (facts.needed[:, None] <= np.array(_WIDE_LEVELS)).mean(axis=0)
            self._count("map observed", held)
            self._count("map width", facts.widths.mean(axis=0))
            row |= {"entropy_nats": float(facts.entropy_nats.mean()), "coverage_90": float(held[_NINETY])}
        row |= self._rank(doubts, error)
        relative = relative_difference(predicted, truth)
        self._errors.add(relative)
        if self._allowed is not None:
            self._count("constant observed", (relative[:, None] <= self._allowed).mean(axis=0))
        return row

    def _rank(self, doubts: dict[str, Array], error: Array) -> dict[str, float]:
        plain = float(error.mean())
        oracle = risk_coverage(error, error)
        row = {}
        for name, doubt in (doubts | {"oracle": error, "random": np.zeros_like(error)}).items():
            curve = risk_coverage(doubt, error)
            ause = (curve.aurc - oracle.aurc) / plain if plain else 0.0
            self._count(f"{name} risk", curve.risk)
            self._count(f"{name} aurc", curve.aurc)
            self._count(f"{name} ause", ause)
            alike = spearman(doubt, error) if name in MEASURES else None
            if alike is not None:
                self._count(f"{name} spearman", alike)
            if name in {"entropy", "flip"}:
                row[f"ause_{name}"] = ause
        return row

    def result(self) -> dict[str, Any]:
        """JSON value, all of it means over the images that were added.

        `measures` has for each measure, `oracle` and `random`: `risk` for each of `coverages`; `aurc`; `ause`, which
        is (aurc - oracle's) / (mean error), image by image: the area between the two sparsification curves after each
        was divided by its value with nothing left out (Ilg et al. 2018); and `spearman` with the error. `intervals`
        has `map` and `constant`, as far as they are known: `nominal` mass, `observed` share of truth inside, mean
        `width` by depth, `ece` = mean |nominal - observed|, and `equal`: the widths at which a given share of truth is
        observed inside (null where none is wide enough). Raises PipelineError before the first image.
        """
        known = [name for name in (*MEASURES, "oracle", "random") if f"{name} aurc" in self._sums]
        if not known:
            raise PipelineError("no image was measured: expected one or more with ground truth in the protocol")
        measures: dict[str, dict[str, Any]] = {}
        for name in known:
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
        if self._allowed is not None and self._calibration is not None:
            equal = constant_widths(self._errors.quantiles(EQUAL_COVERAGES))
            found = _intervals(self._mean("constant observed"), constant_widths(self._allowed), equal)
            fitted = {"frames": self._calibration.frames, "relative_error": self._allowed.tolist()}
            intervals["constant"] = found | {"calibration": fitted}
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
