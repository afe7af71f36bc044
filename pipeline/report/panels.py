"""A frame as the page shows it: pictures with their scales, captions, and the maps of the marked pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .frames import relative_error
from .images import Scale, depth_scale, entropy_scale, error_scale, map_uri, photo_uri, spread, width_scale
from .plots import belief_plot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup
    from numpy.typing import NDArray

    from .frames import FrameFacts, Seen
    from .model import Belief
    from .units import Shown


class Picture(NamedTuple):
    """One picture; `uri` is empty where there is nothing to show."""

    uri: str
    title: str
    note: str = ""


class Row(NamedTuple):
    """A network's pictures. `series` is its colour, None for the teacher."""

    name: str
    series: int | None
    pictures: list[Picture]


class ColorBar(NamedTuple):
    """The legend of a scale, as CSS."""

    title: str
    gradient: str
    ticks: list[tuple[float, str]]


class Reading(NamedTuple):
    """What one network says at a pixel."""

    name: str
    series: int | None
    text: str


class Pixel(NamedTuple):
    """A marked pixel: where it lies in percent of the image, why, and what everyone believes there."""

    number: int
    left: float
    top: float
    why: str
    truth: str
    plot: Markup
    readings: list[Reading]


class Exhibit(NamedTuple):
    """All of a frame."""

    sample_id: str
    size_px: tuple[int, int]
    photo: Picture
    truth: Picture
    bars: list[ColorBar]
    rows: list[Row]
    pixels: list[Pixel]
    dense: bool
    has_truth: bool
    taught: bool
    """Whether the store holds the frame, so that the teacher is shown."""


def exhibit(facts: FrameFacts, names: Sequence[str], dpm_kind: str, shown: Shown) -> Exhibit:
    """Turn the facts of a frame into pictures, in the numbers that are shown; `names` are the students'."""
    taught = facts.teacher is not None
    everyone = [*([facts.teacher] if facts.teacher is not None else []), *facts.students]
    owners: list[int | None] = [*([None] if taught else []), *range(len(facts.students))]
    truth_m = facts.truth_m
    on_truth = truth_m is not None and facts.truth_is_dense
    errors = [_error(facts, seen, is_teacher=owner is None) for owner, seen in zip(owners, everyone, strict=True)]
    depth = depth_scale([everyone[0].depth_m, *([] if truth_m is None else [truth_m])])
    known = [error for error in errors if error is not None]
    error_colors = error_scale(known) if known else None
    entropy = entropy_scale([seen.entropy_nats for seen in everyone if seen.entropy_nats is not None])
    width = width_scale([seen.width for seen in everyone if seen.width is not None])
    rows = []
    for owner, seen, error in zip(owners, everyone, errors, strict=True):
        against = "truth" if on_truth or owner is None or not taught else "the teacher"
        shown_error = error
        if error is not None and truth_m is not None and not facts.truth_is_dense and (owner is None or not taught):
            shown_error = spread(error, _reach_px(error))
        note = "" if dpm_kind != "gaussian" or owner is not None else "of fixed-width maps: no doubt of its own"
        rows.append(
            Row(
                "teacher" if owner is None else names[owner],
                owner,
                [
                    Picture(map_uri(seen.depth_m, depth), "depth"),
                    _error_picture(shown_error, error, error_colors, against),
                    _doubt_picture(seen.entropy_nats, entropy, "entropy", "{:.2f} nats", note),
                    _doubt_picture(seen.width, width, "90 % interval", "{:.0%} of depth", note),
                ],
            )
        )
    shown_m = None if truth_m is None else truth_m if facts.truth_is_dense else spread(truth_m, _reach_px(truth_m))
    truth = Picture(
        "" if shown_m is None else map_uri(shown_m, depth),
        "ground truth",
        "none for this frame" if shown_m is None else "" if facts.truth_is_dense else "sparse; dots enlarged",
    )
    bars = [
        ColorBar(
            f"near ← {'depth' if shown.relative is None else 'relative depth'} → far",
            depth.gradient(),
            depth.ticks(shown.unit),
        )
    ]
    if error_colors is not None:
        bars.append(ColorBar("too near ← relative error → too far", error_colors.gradient(), error_colors.ticks("%")))
    bars.append(ColorBar("sure ← entropy → unsure", entropy.gradient(), entropy.ticks("nats")))
    bars.append(ColorBar("narrow ← 90 % interval → wide", width.gradient(), width.ticks("%")))
    height_px, width_px = facts.image.shape[:2]
    return Exhibit(
        facts.sample_id,
        (height_px, width_px),
        Picture(photo_uri(facts.image), "image"),
        truth,
        bars,
        rows,
        _pixels(facts, names, shown),
        on_truth,
        truth_m is not None,
        taught,
    )


def _error(facts: FrameFacts, seen: Seen, *, is_teacher: bool) -> NDArray[np.float32] | None:
    """Relative error (H, W): against truth where it is dense; else the students' against the teacher."""
    if facts.truth_m is not None and (facts.truth_is_dense or is_teacher or facts.teacher is None):
        return relative_error(seen.depth_m, facts.truth_m)
    if is_teacher or facts.teacher is None:
        return None
    return relative_error(seen.depth_m, facts.teacher.depth_m)


def _error_picture(
    shown: NDArray[np.float32] | None, error: NDArray[np.float32] | None, scale: Scale | None, against: str
) -> Picture:
    title = f"error against {against}"
    if shown is None or error is None or scale is None:
        return Picture("", title, "there is none")
    known = np.abs(error[np.isfinite(error)])
    return Picture(map_uri(shown, scale), title, f"median {np.median(known):.1%}" if known.size else "")


def _doubt_picture(values: NDArray[np.float32] | None, scale: Scale, title: str, shape: str, note: str) -> Picture:
    if values is None:
        return Picture("", title, "no map")
    known = values[np.isfinite(values)]
    median = "median " + shape.format(np.median(known)) if known.size else ""
    return Picture(map_uri(values, scale), title, note or median)


def _reach_px(values: NDArray[np.float32]) -> int:
    """How far dots must grow to be seen at about 400 px of width."""
    return max(1, round(int(values.shape[1]) / 800))


def _reading(belief: Belief | None, unit: str) -> str:
    if belief is None:
        return "no value"
    return f"{belief.expected_m:.1f} {unit}".strip() + ("" if belief.probability is not None else ", no map")


def _pixels(facts: FrameFacts, names: Sequence[str], shown: Shown) -> list[Pixel]:
    height, width = facts.image.shape[:2]
    found = []
    for place, mark in enumerate(facts.marks):
        truth_m = None if facts.truth_m is None else float(facts.truth_m[mark.row, mark.column])
        if truth_m is not None and not np.isfinite(truth_m):
            truth_m = None
        teacher = None if facts.teacher is None else facts.teacher.beliefs[place]
        students = [seen.beliefs[place] for seen in facts.students]
        readings = [
            Reading(name, series, _reading(belief, shown.unit))
            for name, series, belief in [
                *([] if facts.teacher is None else [("teacher", None, teacher)]),
                *((name, series, belief) for series, (name, belief) in enumerate(zip(names, students, strict=True))),
            ]
        ]
        found.append(
            Pixel(
                place + 1,
                round(100 * (mark.column + 0.5) / width, 3),
                round(100 * (mark.row + 0.5) / height, 3),
                mark.why,
                "none" if truth_m is None else f"{truth_m:.1f} {shown.unit}".strip(),
                belief_plot(teacher, students, truth_m, shown.what),
                readings,
            )
        )
    return found
