"""Depth, uncertainty and probe-pixel maps of one frame, of the teacher and every student.

Only one map is in memory at a time.

Shape legend: H W pixels of the view, h w of a network's own map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..depth.resize import upsampled
from ..networks.saved_run import has_map
from ..sources.frames import read_frame
from ..sources.view import View
from .distributions import student_map, teacher_map
from .images import is_dense
from .probe_pixels import Criteria, ProbePixel, choose_probe_pixels, depth_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..common.progress import Task
    from ..sources.base import Sample, Source
    from ..sources.frames import Frame
    from ..store import Store
    from .model import Belief, RunResult
    from .units import DepthUnits


class Prediction(NamedTuple):
    """A network's prediction for a frame."""

    depth_m: NDArray[np.float32]
    """(H, W)"""
    entropy_nats: NDArray[np.float32] | None
    """(h, w); None for a network without a map"""
    width: NDArray[np.float32] | None
    """(h, w) of the 90 % interval, relative to depth; None for a network without a map"""
    beliefs: list[Belief | None]
    """One for each probe pixel; None where the network has no value."""


class FrameFacts(NamedTuple):
    """Arrays of a frame that the page shows."""

    sample_id: str
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    truth_m: NDArray[np.float32] | None
    """(H, W), NaN where there is none; None where the frame has no truth at all."""
    truth_is_dense: bool
    probe_pixels: list[ProbePixel]
    teacher: Prediction | None
    """None where the store lacks the frame."""
    students: list[Prediction]


def frame_facts(
    store: Store, source: Source, sample: Sample, results: Sequence[RunResult], units: DepthUnits, task: Task
) -> FrameFacts:
    """Predict one frame, in the units of the page.

    A frame missing from the store has no teacher; relative depth is then aligned to the first student's.
    Raises PipelineError if the store was made from another image.
    """
    frame = read_frame(source, sample, View.parse(store.spec.view))
    number = number_in(store, sample.id)
    if number is not None:
        store.check_image(number, sample.image_path, frame.image_sha256)
    size_px = (frame.image.shape[0], frame.image.shape[1])
    reference_m, entropy = _reference(store, number, results[0], frame, units)
    has_truth = frame.truth_m is not None and bool(np.isfinite(frame.truth_m).any())
    truth_m = units.truth(frame.truth_m, reference_m) if has_truth and frame.truth_m is not None else None
    dense = truth_m is not None and is_dense(truth_m)
    task.update()
    probe_pixels: list[ProbePixel] = []
    students = []
    for series, result in enumerate(results):
        belief_map = student_map(result.run, frame, result.readout)
        depth_m = upsampled(belief_map.depth_m(), size_px)
        change = None if number is None and series == 0 else units.change(depth_m, reference_m)
        if change is not None:
            depth_m = change.depth(depth_m)
        if series == 0:
            on_truth = truth_m is not None and (dense or number is None)
            error = relative_error(depth_m, truth_m if truth_m is not None and on_truth else reference_m)
            why = f"Largest error of {result.name} against {'truth' if on_truth else 'the teacher'}"
            who = result.name if number is None else "the teacher"
            criteria = _criteria(store, units, truth_m, reference_m, entropy, who)
            if on_truth or number is not None:
                criteria = criteria._replace(error=error, error_why=why)
            probe_pixels = choose_probe_pixels(criteria)
        beliefs = [belief_map.belief(pixel, size_px) for pixel in probe_pixels]
        if change is not None:
            beliefs = [change.belief(belief) for belief in beliefs]
            belief_map = belief_map._replace(bin_edges_m=change.edges(belief_map.bin_edges_m))
        if has_map(result.run.config):
            students.append(Prediction(depth_m, belief_map.entropy_nats(), belief_map.relative_width(), beliefs))
        else:
            alone = [None if belief is None else belief._replace(probability=None) for belief in beliefs]
            students.append(Prediction(depth_m, None, None, alone))
        del belief_map  # before the next one is computed
        task.update()
    teacher = None
    if number is not None:
        belief_map = teacher_map(store, number, units)  # computed twice: cheaper than holding it in memory
        beliefs = [belief_map.belief(pixel, size_px) for pixel in probe_pixels]
        teacher = Prediction(reference_m, entropy, belief_map.relative_width(), beliefs)
    return FrameFacts(sample.id, frame.image, truth_m, dense, probe_pixels, teacher, students)


def number_in(store: Store, sample_id: str) -> int | None:
    """Index of a sample in a store; None if the store does not have it."""
    try:
        return store.index_of(sample_id)
    except ValueError:
        return None


def _reference(
    store: Store, number: int | None, first: RunResult, frame: Frame, units: DepthUnits
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Reference depth (H, W) and entropy (h, w): the teacher's, or the first student's."""
    size_px = (frame.image.shape[0], frame.image.shape[1])
    if number is not None:
        return units.depth(store, number, size_px), teacher_map(store, number, units).entropy_nats()
    belief_map = student_map(first.run, frame, first.readout)
    depth_m = upsampled(belief_map.depth_m(), size_px)
    return depth_m, belief_map.entropy_nats() if has_map(first.run.config) else None


def relative_error(depth_m: NDArray[np.float32], reference_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """(depth - reference) / reference, (H, W): positive where depth is too far, NaN where either is missing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(reference_m > 0, depth_m / reference_m - 1, np.nan).astype(np.float32)


def _criteria(
    store: Store,
    units: DepthUnits,
    truth_m: NDArray[np.float32] | None,
    reference_m: NDArray[np.float32],
    entropy_nats: NDArray[np.float32] | None,
    who: str,
) -> Criteria:
    """Criteria for probe pixels, without the error: pixels whose depth (truth if there is any) is within the bins.

    `who` predicted the reference: the teacher, or a student if the store does not have the frame.
    """
    depth_m = reference_m if truth_m is None else truth_m
    low_m, high_m = units.bin_edges_m[0], units.bin_edges_m[-1]
    allowed = np.isfinite(reference_m) & (depth_m > max(low_m, 0)) & (depth_m < high_m)
    # The entropy of Gaussian maps depends on the bins alone
    if entropy_nats is None or (who == "the teacher" and store.spec.dpm_kind == "gaussian"):
        uncertainty, uncertainty_why = depth_step(reference_m), f"Sharpest edge of {who}"
    else:
        rows, columns = (
            ((np.arange(view) + 0.5) * own / view).astype(np.intp)
            for view, own in zip(reference_m.shape, entropy_nats.shape, strict=True)
        )
        uncertainty, uncertainty_why = entropy_nats[rows[:, None], columns], f"{who[0].upper()}{who[1:]} most uncertain"
    return Criteria(depth_m, uncertainty, uncertainty_why, np.full_like(depth_m, np.nan), "", allowed)
