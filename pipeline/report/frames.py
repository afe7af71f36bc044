"""One frame at a time through the teacher's store and every student: depth, doubt, and the maps of a few pixels.

Only one map is held at once.

Shape legend: H W pixels of the view, h w of a network's own map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..dataset import upsampled
from ..predict import read_frame
from ..sources.view import View
from ..students.run import has_map
from .maps import student_map, teacher_map
from .marks import Mark, Reasons, choose_marks, depth_step
from .pictures import is_dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..progress import Task
    from ..sources.base import Sample, Source
    from ..store import Store
    from .maps import Belief
    from .results import RunResult
    from .shown import Shown


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
    teacher: Seen
    students: list[Seen]


def frame_facts(
    store: Store, source: Source, sample: Sample, results: Sequence[RunResult], shown: Shown, task: Task
) -> FrameFacts:
    """Look at one frame, in the numbers that are shown.

    Raises ValueError where the store lacks it or was made from another image.
    """
    frame = read_frame(source, sample, View.parse(store.spec.view))
    number = store.index_of(sample.id)
    if store.image_sha256[number].tobytes().hex() != frame.image_sha256:
        raise ValueError(
            f"{sample.image_path} is not the image that the teacher saw (sha256): {store.name} was made from "
            "other images; use those, or run `pipeline cache-teacher` over these"
        )
    size_px = (frame.image.shape[0], frame.image.shape[1])
    teacher_m = shown.depth(store, number, size_px)
    known = frame.truth_m is not None and bool(np.isfinite(frame.truth_m).any())
    truth_m = shown.truth(frame.truth_m, teacher_m) if known and frame.truth_m is not None else None
    dense = truth_m is not None and is_dense(truth_m)
    belief_map = teacher_map(store, number, shown)
    teacher_entropy, teacher_width = belief_map.entropy_nats(), belief_map.relative_width()
    del belief_map
    task.update()
    marks: list[Mark] = []
    students = []
    for place, result in enumerate(results):
        belief_map = student_map(result.run, frame)
        depth_m = upsampled(belief_map.depth_m(), size_px)
        change = shown.change(depth_m, teacher_m)
        if change is not None:
            depth_m = change.depth(depth_m)
        if place == 0:
            error = relative_error(depth_m, truth_m if truth_m is not None and dense else teacher_m)
            why = f"Largest error of {result.name} against {'truth' if dense else 'the teacher'}"
            marks = choose_marks(_reasons(store, shown, truth_m, teacher_m, teacher_entropy, error, why))
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
    belief_map = teacher_map(store, number, shown)  # read a second time, which is cheaper than to hold it all the while
    beliefs = [belief_map.belief(mark, size_px) for mark in marks]
    teacher = Seen(teacher_m, teacher_entropy, teacher_width, beliefs)
    return FrameFacts(sample.id, frame.image, truth_m, dense, marks, teacher, students)


def relative_error(depth_m: NDArray[np.float32], reference_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """(depth - reference) / reference, (H, W): above 0 where depth is too far. NaN where either is unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(reference_m > 0, depth_m / reference_m - 1, np.nan).astype(np.float32)


def _reasons(
    store: Store,
    shown: Shown,
    truth_m: NDArray[np.float32] | None,
    teacher_m: NDArray[np.float32],
    entropy_nats: NDArray[np.float32],
    error: NDArray[np.float32],
    error_why: str,
) -> Reasons:
    """What marks are chosen by: only pixels whose depth is known, where there is any truth, and within the bins."""
    depth_m = teacher_m if truth_m is None else truth_m
    low_m, high_m = shown.bin_edges_m[0], shown.bin_edges_m[-1]
    allowed = np.isfinite(teacher_m) & (depth_m > max(low_m, 0)) & (depth_m < high_m)
    if store.spec.dpm_kind == "gaussian":  # its entropy says nothing but where the bins lie
        doubt, doubt_why = depth_step(teacher_m), "Sharpest edge of the teacher"
    else:
        rows, columns = (
            ((np.arange(view) + 0.5) * own / view).astype(np.intp)
            for view, own in zip(teacher_m.shape, entropy_nats.shape, strict=True)
        )
        doubt, doubt_why = entropy_nats[rows[:, None], columns], "The teacher in greatest doubt"
    return Reasons(depth_m, doubt, doubt_why, error, error_why, allowed)
