"""In which numbers a page speaks: metres, or the relative depth that students of a relative teacher learn.

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
"""For the maps of an aligned teacher where no student tells which it learned."""


class Shown(NamedTuple):
    """What depth is on the page, and how the maps of a teacher that gave depth alone are drawn."""

    unit: str
    """`m`, or nothing where depth is relative."""
    relative: Range | None
    """Which relative depth; None where all is metres."""
    bin_edges_m: NDArray[np.float64]
    """(K + 1,) of the teacher's maps."""
    sigma_m: float | None
    sigma_bins: float | None
    """Width of a Gaussian map, one of the two; None of both where the store holds the teacher's own maps."""

    @property
    def what(self) -> str:
        """Name of an axis of depth."""
        return "depth (m)" if self.relative is None else "relative depth"

    def own_depth(self, store: Store, number: int) -> NDArray[np.float32]:
        """The teacher's depth (h, w) of a sample, as it is shown."""
        return store.depth_m(number) if self.relative is None else self.relative.of(store.depth(number))

    def depth(self, store: Store, number: int, size_px: tuple[int, int]) -> NDArray[np.float32]:
        """The same over the view (H, W)."""
        if self.relative is None:
            return upsampled(store.depth_m(number), size_px)
        return self.relative.of(upsampled(store.depth(number), size_px))

    def change(self, student: NDArray[np.float32], teacher: NDArray[np.float32]) -> Change | None:
        """How a student's depth (H, W) becomes the teacher's, by least squares; None in metres, or where it cannot."""
        if self.relative is None:
            return None
        space = self.relative.depth_space
        known = np.isfinite(student) & np.isfinite(teacher)
        if np.count_nonzero(known) < 2:
            return None
        own = in_own_space(student[known].astype(np.float64), space)
        # The teacher's relative depth in the place of truth: the fit is the same
        scale, shift = fit_least_squares(own, teacher[known], space)
        return Change(self.relative, scale, shift) if scale > 0 else None

    def truth(self, truth_m: NDArray[np.float32], teacher: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Ground truth (H, W) as it is shown, beside the teacher's depth (H, W) as it is shown.

        Beside relative depth, truth is brought to the teacher's numbers by scale and shift; None where that makes no
        sense, or there are too few points. Where it lies beyond the range, it is at its end.
        """
        if self.relative is None:
            return truth_m
        space = self.relative.depth_space
        known = np.isfinite(truth_m) & np.isfinite(teacher) & (truth_m > 0)
        if np.count_nonzero(known) < 2:
            return None
        scale, shift = fit_least_squares(in_own_space(teacher[known].astype(np.float64), space), truth_m[known], space)
        if not scale > 0:
            return None
        wanted = 1 / truth_m if space == "affine_disparity" else truth_m
        own = (wanted - shift) / scale
        ends = [in_own_space(np.array([end]), space)[0] for end in (self.relative.near, self.relative.far)]
        shown: NDArray[np.float32] = in_own_space(np.clip(own, min(ends), max(ends)).astype(np.float32), space)
        return shown


class Change(NamedTuple):
    """A student's relative depth in the teacher's numbers: the scale and shift of either mean nothing."""

    relative: Range
    scale: float
    shift: float

    def depth(self, relative: NDArray[np.float32]) -> NDArray[np.float32]:
        """Depth of any shape; what lies beyond twice the range is at its end."""
        near, far = self.relative.near / 2, self.relative.far * 2
        space = self.relative.depth_space
        own = self.scale * in_own_space(relative.astype(np.float64), space) + self.shift
        with np.errstate(divide="ignore"):
            depth = in_own_space(own, space)
        depth = np.where(own > 0, depth, far if space == "affine_disparity" else near)
        return np.asarray(np.clip(depth, near, far), np.float32)

    def edges(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """Edges of bins (K + 1,): some may come to lie on each other, beyond the range."""
        return self.depth(edges.astype(np.float32)).astype(np.float64)

    def belief(self, belief: Belief | None) -> Belief | None:
        """A map at a pixel, as far as it lies within twice the range: what is beyond has no place on the axis."""
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


def choose_shown(store: Store, results: Sequence[RunResult]) -> Shown:
    """Settle it by the store, and by the first student with a map where the store's bins are not those of its depth.

    Raises PipelineError where a student speaks in other numbers than the teacher: they cannot be drawn on one scale.
    """
    space = METRIC if store.is_metric else store.spec.depth_space
    for result in results:
        theirs = depth_space_of(result.run.config)
        if theirs != space:
            raise PipelineError(
                f"run {result.name} gives {theirs}, store {store.name} {space}: a page shows one of the two; use "
                f"{'the store that it was aligned from' if space == METRIC else 'the aligned store'}, or other runs"
            )
    if store.spec.depth_space == METRIC:
        return Shown("m", None, store.bin_edges_m, store.spec.sigma_m, None)
    mapped = next((result.run for result in results if has_map(result.run.config)), None)
    default = parse_bins(ALIGNED_BINS if space == METRIC else BINS[space]).edges().numpy()
    edges = default if mapped is None else mapped.bin_edges_m
    sigma_m: float | None = None
    sigma_bins: float | None = SIGMA_BINS
    if mapped is not None:
        sigma_m, sigma_bins = mapped.config["sigma_m"], mapped.config.get("sigma_bins")
    if space == METRIC:
        return Shown("m", None, edges, None if sigma_bins else sigma_m, sigma_bins)
    return Shown("", Range(space, float(edges[0]), float(edges[-1])), edges, None, sigma_bins or SIGMA_BINS)
