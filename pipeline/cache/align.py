"""Align the store of a relative-depth teacher to ground truth: add scale and shift of each image, keep the chunks.

Predictions do not change, so an alignment can be replaced, and `unalign_store` restores the store byte for byte.
Images and truth are read and fitted in threads; the store is read in one thread.

Shape legend: H, W pixels of the view's truth, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..common.parallel import in_order, worker_threads
from ..common.progress import Silent
from ..depth.alignment import DEPTH_RANGE_M, FIT, MAX_RESIDUAL, MIN_POINTS, NO_TRUTH, Fit, fit
from ..depth.resize import upsampled
from ..errors import PipelineError
from ..sources.base import truth_name
from ..sources.truth import of_view_m
from ..sources.view import View
from ..store import open_store
from ..store.read.alignment import row_of_fit
from ..store.read.base import check_image
from ..store.tools.alignment_summary import AlignmentSummary, summarize
from ..store.tools.subset import columns_of, encoded_sample
from ..store.write.writer import StoreWriter, write_shards

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..sources.base import Sample, Source
    from ..store import Store
    from ..store.write.writer import EncodedSample


@dataclass(frozen=True)
class AlignOptions:
    """Options of an alignment."""

    min_points: int = MIN_POINTS
    """Least number of pixels with a value and a truth; images with fewer are left out."""
    max_residual: float = MAX_RESIDUAL
    """Largest median relative error of depth after alignment; images above are left out."""
    depth_range_m: tuple[float, float] = DEPTH_RANGE_M
    """Aligned depth is clipped to it on reading."""
    workers: int | None = None
    """Threads that read images and truth, and fit; None is one per core, at most 8."""


class _Request(NamedTuple):
    sample: Sample
    values: NDArray[np.float32]
    """(h, w) in the teacher's depth space."""
    sha256: str
    """Of the image that the store was made from."""


def align_store(
    store: Store,
    source: Source,
    split: str,
    out: Path,
    options: AlignOptions | None = None,
    progress: Progress | None = None,
) -> AlignmentSummary:
    """Write the store `out`: `store` with every sample aligned to its ground truth, or left out with a reason.

    Replaces an alignment of `store`. Resumes an interrupted call.

    Raises PipelineError for metric depth, a sample missing from the split, a changed image, invalid truth, or an
    existing `out`, and DamagedStoreError for a damaged sample.
    """
    options, progress = options or AlignOptions(), progress or Silent()
    if store.spec.depth_space == "metric_m":
        raise PipelineError(f"{store.name} holds metric_m: metric depth needs no alignment, use the store as it is")
    aligner = _Aligner(source, View.parse(store.spec.view), store.name, store.spec.depth_space, options)
    samples = _samples_of(store, source, split)
    spec = replace(store.spec, alignment=aligner.as_json())
    columns = columns_of(store)
    workers = worker_threads(options.workers)
    with StoreWriter(out, spec, list(store.ids), store.bases) as writer, ThreadPoolExecutor(workers, "align") as pool:
        members = {shard: spec.shard_samples(shard) for shard in range(spec.shards)}
        requests = (
            _Request(samples[number], store.depth(number), store.image_sha256[number].tobytes().hex())
            for shard in writer.todo
            for number in members[shard]
        )
        depths = _Depths(options.depth_range_m)
        fits = in_order(pool, aligner.fit, requests, ahead=2 * workers)
        try:
            with progress.task("align", len(store), "sample", done=writer.samples_done) as task:
                for shard in writer.todo:
                    rows = []
                    for _ in members[shard]:
                        fitted, truth_m = next(fits).result()
                        depths.add(truth_m)
                        rows.append(row_of_fit(fitted))
                        task.update()
                    writer.write_shard(shard, _realigned(store, columns, members[shard], rows))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        depths.tell(progress)
        writer.finish(progress)
    return summarize(open_store(out))


def unalign_store(store: Store, out: Path, progress: Progress | None = None) -> int:
    """Write the store `out`: `store` without its alignment, byte for byte as before. Returns the number of samples.

    Raises PipelineError for a store that is not aligned or an existing `out`, DamagedStoreError for a damaged chunk.
    """
    if store.spec.alignment is None:
        raise PipelineError(f"{store.name} is not aligned: there is nothing to undo, use the store as it is")
    spec = replace(store.spec, alignment=None)
    columns = columns_of(store)
    write_shards(
        StoreWriter(out, spec, list(store.ids), store.bases),
        lambda members: _realigned(store, columns, members, [{}] * len(members)),
        "undo",
        progress,
    )
    return len(store)


def _realigned(
    store: Store, columns: dict[str, NDArray[Any]], numbers: range, rows: list[dict[str, float | int | None]]
) -> list[EncodedSample]:
    """Return samples with unchanged chunks and the alignment columns `rows`."""
    samples = [encoded_sample(store, number, columns) for number in numbers]
    return [sample._replace(row=sample.row | row) for sample, row in zip(samples, rows, strict=True)]


def _samples_of(store: Store, source: Source, split: str) -> list[Sample]:
    """Return the split's rows of all samples of the store, in its order. Raises PipelineError for a missing one."""
    rows = {sample.id: sample for sample in source.samples(split)}
    missing = [name for name in store.ids if name not in rows]
    if missing:
        raise PipelineError(
            f"split {split} has no row for {len(missing)} of the {len(store)} samples of {store.name}, such as "
            f"{missing[0]!r}: give the split that it was cached from, or select the samples of this split with "
            "`pipeline store subset`"
        )
    return [rows[name] for name in store.ids]


class _Aligner(NamedTuple):
    """Fits single samples; thread-safe."""

    source: Source
    view: View
    store_name: str
    depth_space: str
    options: AlignOptions

    def as_json(self) -> dict[str, Any]:
        """Return the alignment entry of the store."""
        return {
            "fit": FIT,
            "truth": f"{self.source.name}/{truth_name(self.source)}",
            "min_points": self.options.min_points,
            "max_residual": self.options.max_residual,
            "depth_range_m": list(self.options.depth_range_m),
        }

    def fit(self, request: _Request) -> tuple[Fit, float]:
        """Fit a sample to its truth, and return the fit and the median truth, NaN without truth.

        Raises PipelineError if the image is not the one that the store was made from.
        """
        truth_m = self.source.read_truth_m(request.sample)
        if truth_m is None:
            return NO_TRUTH, math.nan
        image, sha256 = self.source.read_image(request.sample)
        check_image(request.sample.image_path, sha256, request.sha256, self.store_name)
        # Resizing truth to the view would lose points, so the map is resized to the truth instead.
        truth_m = of_view_m(truth_m, request.sample, self.view, (image.shape[0], image.shape[1]), own_pixels=True)
        values = upsampled(request.values, (truth_m.shape[0], truth_m.shape[1]))
        fitted = fit(
            values,
            truth_m,
            self.depth_space,
            min_points=self.options.min_points,
            max_residual=self.options.max_residual,
        )
        known_m = truth_m[np.isfinite(truth_m)]
        return fitted, float(np.median(known_m)) if known_m.size else math.nan


class _Depths:
    """Detects truth in another unit than metres: counts samples whose median truth is outside the store's range."""

    def __init__(self, range_m: tuple[float, float]) -> None:
        self.range_m = range_m
        self.samples, self.outside = 0, 0
        self.example_m = math.nan

    def add(self, median_m: float) -> None:
        """Count a sample by its median truth; NaN without truth."""
        if math.isnan(median_m):
            return
        self.samples += 1
        if not self.range_m[0] <= median_m <= self.range_m[1]:
            self.outside += 1
            self.example_m = median_m

    def tell(self, progress: Progress) -> None:
        """Print a note if most samples are outside."""
        if 2 * self.outside > self.samples:
            low, high = self.range_m
            progress.note(
                f"the median truth of {self.outside} of {self.samples} samples, such as {self.example_m:.3g} m, is "
                f"outside `depth_range_m={low:g}`:{high:g}: check its unit; depth is clipped to that range on reading"
            )
