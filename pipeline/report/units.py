"""Units of depth on a page: metres, or the relative depth that students of a relative teacher learn.

Shape legend: H W pixels of the view, h w of the teacher's own output, K bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..depth.alignment import fit_least_squares
from ..depth.bins import parse_bins
from ..depth.relative import BINS, METRIC, SIGMA_BINS, Range, depth_space_of, in_own_space
from ..depth.resize import upsampled
from ..errors import PipelineError
from ..networks.saved_run import has_map
from .model import Belief

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..store import Store
    from .model import RunResult

ALIGNED_BINS = "log:64:0.5:100"
"""Bins for the maps of an aligned teacher if no student has a map."""


class DepthUnits(NamedTuple):
    """Units of depth on the page, and the maps of a teacher without maps of its own."""

    unit: str
    """`m`, or empty for relative depth."""
    relative: Range | None
    """Range of relative depth; None for metres."""
    bin_edges_m: NDArray[np.float64]
    """(K + 1,) of the teacher's maps."""
    sigma_m: float | None
    sigma_bins: float | None
    """Width of a Gaussian map, in metres or bins; both None if the store has the teacher's own maps."""

    @property
    def what(self) -> str:
        """Label of a depth axis."""
        return "depth (m)" if self.relative is None else "relative depth"

    def own_depth(self, store: Store, number: int) -> NDArray[np.float32]:
        """The teacher's depth (h, w) of a sample."""
        return store.depth_m(number) if self.relative is None else self.relative.of(store.depth(number))

    def depth(self, store: Store, number: int, size_px: tuple[int, int]) -> NDArray[np.float32]:
        """The teacher's depth of a sample, upsampled to the view (H, W)."""
        if self.relative is None:
            return upsampled(store.depth_m(number), size_px)
        return self.relative.of(upsampled(store.depth(number), size_px))

    def change(self, student: NDArray[np.float32], teacher: NDArray[np.float32]) -> Change | None:
        """Least-squares alignment of a student's depth (H, W) to the teacher's; None in metres, or if impossible."""
        if self.relative is None:
            return None
        space = self.relative.depth_space
        valid = np.isfinite(student) & np.isfinite(teacher)
        if np.count_nonzero(valid) < 2:
            return None
        own = in_own_space(student[valid].astype(np.float64), space)
        # The teacher's relative depth is used as the truth
        scale, shift = fit_least_squares(own, teacher[valid], space)
        return Change(self.relative, scale, shift) if scale > 0 else None

    def truth(self, truth_m: NDArray[np.float32], teacher: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Ground truth (H, W) in the units of the page, given the teacher's depth (H, W).

        For relative depth, truth is aligned to the teacher by scale and shift and clamped to its range; None if the
        scale is not positive or there are fewer than two points.
        """
        if self.relative is None:
            return truth_m
        space = self.relative.depth_space
        valid = np.isfinite(truth_m) & np.isfinite(teacher) & (truth_m > 0)
        if np.count_nonzero(valid) < 2:
            return None
        scale, shift = fit_least_squares(in_own_space(teacher[valid].astype(np.float64), space), truth_m[valid], space)
        if not scale > 0:
            return None
        wanted = 1 / truth_m if space == "affine_disparity" else truth_m
        own = (wanted - shift) / scale
        ends = [in_own_space(np.array([end]), space)[0] for end in (self.relative.near, self.relative.far)]
        aligned: NDArray[np.float32] = in_own_space(np.clip(own, min(ends), max(ends)).astype(np.float32), space)
        return aligned


class Change(NamedTuple):
    """Alignment of a student's relative depth to the teacher's; both are defined up to scale and shift."""

    relative: Range
    scale: float
    shift: float

    def depth(self, relative: NDArray[np.float32]) -> NDArray[np.float32]:
        """Aligned depth of any shape, clamped to twice the range."""
        near, far = self.relative.near / 2, self.relative.far * 2
        space = self.relative.depth_space
        own = self.scale * in_own_space(relative.astype(np.float64), space) + self.shift
        with np.errstate(divide="ignore"):
            depth = in_own_space(own, space)
        depth = np.where(own > 0, depth, far if space == "affine_disparity" else near)
        return np.asarray(np.clip(depth, near, far), np.float32)

    def edges(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """Aligned bin edges (K + 1,). Edges outside the range may coincide."""
        return self.depth(edges.astype(np.float32)).astype(np.float64)

    def belief(self, belief: Belief | None) -> Belief | None:
        """Aligned map at a pixel, cut to the bins within twice the range."""
        if belief is None:
            return None
        edges = self.edges(belief.bin_edges_m)
        expected = float(self.depth(np.array([belief.expected_m], np.float32))[0])
        if belief.probability is None:
            return belief._replace(expected_m=expected)
        inside = np.flatnonzero(np.diff(edges) > 0)
        if not inside.size:
            return Belief(None, edges, expected)
        first, last = inside[0], inside[-1] + 1
        return Belief(belief.probability[first:last], edges[first : last + 1], expected)


def choose_units(store: Store, results: Sequence[RunResult]) -> DepthUnits:
    """Choose units by the store; for relative or aligned depth, bins by the first student with a map.

    Raises PipelineError if a student and the store differ in depth space: they cannot share a scale.
    """
    space = METRIC if store.is_metric else store.spec.depth_space
    for result in results:
        run_space = depth_space_of(result.run.config)
        if run_space != space:
            raise PipelineError(
                f"run {result.name} predicts {run_space}, but store {store.name} has {space}; use "
                f"{'the store before alignment' if space == METRIC else 'the aligned store'}, or other runs"
            )
    if store.spec.depth_space == METRIC:
        return DepthUnits("m", None, store.bin_edges_m, store.spec.sigma_m, None)
    with_map = next((result.run for result in results if has_map(result.run.config)), None)
    default = parse_bins(ALIGNED_BINS if space == METRIC else BINS[space]).edges().numpy()
    edges = default if with_map is None else with_map.bin_edges_m
    sigma_m: float | None = None
    sigma_bins: float | None = SIGMA_BINS
    if with_map is not None:
        sigma_m, sigma_bins = with_map.config["sigma_m"], with_map.config.get("sigma_bins")
    if space == METRIC:
        return DepthUnits("m", None, edges, None if sigma_bins else sigma_m, sigma_bins)
    return DepthUnits("", Range(space, float(edges[0]), float(edges[-1])), edges, None, sigma_bins or SIGMA_BINS)
