"""One frame at a time through the teacher's store and every student: depth, doubt, and the maps of a few pixels.

Only one map is held at once.

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
from .probe_pixels import Mark, Reasons, choose_marks, depth_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..common.progress import Task
    from ..sources.base import Sample, Source
    from ..sources.frames import Frame
    from ..store import Store
    from .model import Belief, RunResult
    from .units import Shown


class Seen(NamedTuple):
    """What a network makes of a frame."""

    depth_m: NDArray[np.float32]
    """(H, W)"""
    entropy_nats: NDArray[np.float32] | None
    """(h, w); None for a network without a map"""
    width: NDArray[np.float32] | None
    """(h, w) of the 90 % interval, by depth; None for a network without a map"""
    beliefs: list[Belief | None]
    """One for each mark; None where the network has no value."""


class FrameFacts(NamedTuple):
    """Everything that the page shows of a frame."""

    sample_id: str
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    truth_m: NDArray[np.float32] | None
    """(H, W), NaN where there is none; None where the frame has no truth at all."""
    truth_is_dense: bool
    marks: list[Mark]
    teacher: Seen | None
    """None where the store lacks the frame."""
    students: list[Seen]


def frame_facts(
    store: Store, source: Source, sample: Sample, results: Sequence[RunResult], shown: Shown, task: Task
) -> FrameFacts:
    """Look at one frame, in the numbers that are shown.

    Where the store lacks it there is no teacher, and the first student's prediction is what others are brought to.
    Raises PipelineError where the store was made from another image.
    """
    frame = read_frame(source, sample, View.parse(store.spec.view))
    number = number_in(store, sample.id)
    if number is not None:
        store.check_image(number, sample.image_path, frame.image_sha256)
    size_px = (frame.image.shape[0], frame.image.shape[1])
    reference_m, entropy = _reference(store, number, results[0], frame, shown)
    known = frame.truth_m is not None and bool(np.isfinite(frame.truth_m).any())
    truth_m = shown.truth(frame.truth_m, reference_m) if known and frame.truth_m is not None else None
    dense = truth_m is not None and is_dense(truth_m)
    task.update()
    marks: list[Mark] = []
    students = []
    for place, result in enumerate(results):
        belief_map = student_map(result.run, frame)
        depth_m = upsampled(belief_map.depth_m(), size_px)
        change = None if number is None and place == 0 else shown.change(depth_m, reference_m)
        if change is not None:
            depth_m = change.depth(depth_m)
        if place == 0:
            on_truth = truth_m is not None and (dense or number is None)
            error = relative_error(depth_m, truth_m if truth_m is not None and on_truth else reference_m)
            why = f"Largest error of {result.name} against {'truth' if on_truth else 'the teacher'}"
            who = result.name if number is None else "the teacher"
            reasons = _reasons(store, shown, truth_m, reference_m, entropy, who)
            if on_truth or number is not None:
                reasons = reasons._replace(error=error, error_why=why)
            marks = choose_marks(reasons)
        beliefs = [belief_map.belief(mark, size_px) for mark in marks]
        if change is not None:
            beliefs = [change.belief(belief) for belief in beliefs]
            belief_map = belief_map._replace(bin_edges_m=change.edges(belief_map.bin_edges_m))
        if has_map(result.run.config):
            students.append(Seen(depth_m, belief_map.entropy_nats(), belief_map.relative_width(), beliefs))
        else:
            alone = [None if belief is None else belief._replace(probability=None) for belief in beliefs]
            students.append(Seen(depth_m, None, None, alone))
        del belief_map  # before the next one is made
        task.update()
    teacher = None
    if number is not None:
        belief_map = teacher_map(store, number, shown)  # read a second time, cheaper than to hold it all the while
        beliefs = [belief_map.belief(mark, size_px) for mark in marks]
        teacher = Seen(reference_m, entropy, belief_map.relative_width(), beliefs)
    return FrameFacts(sample.id, frame.image, truth_m, dense, marks, teacher, students)


def number_in(store: Store, sample_id: str) -> int | None:
    """Number of a sample in a store; None where the store lacks it."""
    try:
        return store.index_of(sample_id)
    except ValueError:
        return None


def _reference(
    store: Store, number: int | None, first: RunResult, frame: Frame, shown: Shown
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Depth (H, W) that others are brought to, and entropy (h, w): the teacher's, or the first student's."""
    size_px = (frame.image.shape[0], frame.image.shape[1])
    if number is not None:
        return shown.depth(store, number, size_px), teacher_map(store, number, shown).entropy_nats()
    belief_map = student_map(first.run, frame)
    depth_m = upsampled(belief_map.depth_m(), size_px)
    return depth_m, belief_map.entropy_nats() if has_map(first.run.config) else None


def relative_error(depth_m: NDArray[np.float32], reference_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """(depth - reference) / reference, (H, W): above 0 where depth is too far. NaN where either is unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(reference_m > 0, depth_m / reference_m - 1, np.nan).astype(np.float32)


def _reasons(
    store: Store,
    shown: Shown,
    truth_m: NDArray[np.float32] | None,
    reference_m: NDArray[np.float32],
    entropy_nats: NDArray[np.float32] | None,
    who: str,
) -> Reasons:
    """What marks are chosen by, without the error: only pixels of known depth (truth where there is any), in the bins.

    `who` made the reference: the teacher, or where the store lacks the frame a student.
    """
    depth_m = reference_m if truth_m is None else truth_m
    low_m, high_m = shown.bin_edges_m[0], shown.bin_edges_m[-1]
    allowed = np.isfinite(reference_m) & (depth_m > max(low_m, 0)) & (depth_m < high_m)
    # The entropy of Gaussian maps says nothing but where the bins lie
    if entropy_nats is None or (who == "the teacher" and store.spec.dpm_kind == "gaussian"):
        doubt, doubt_why = depth_step(reference_m), f"Sharpest edge of {who}"
    else:
        rows, columns = (
            ((np.arange(view) + 0.5) * own / view).astype(np.intp)
            for view, own in zip(reference_m.shape, entropy_nats.shape, strict=True)
        )
        doubt, doubt_why = entropy_nats[rows[:, None], columns], f"{who[0].upper()}{who[1:]} in greatest doubt"
    return Reasons(depth_m, doubt, doubt_why, np.full_like(depth_m, np.nan), "", allowed)
