"""The panel of a frame: pictures, color scales, captions, and maps at probe pixels."""

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

    from .frames import FrameFacts, Prediction
    from .model import Belief
    from .units import DepthUnits


class Picture(NamedTuple):
    """One picture; `uri` is empty if there is none."""

    uri: str
    title: str
    note: str = ""


class Row(NamedTuple):
    """A network's pictures. `series` is its color, None for the teacher."""

    name: str
    series: int | None
    pictures: list[Picture]


class ColorBar(NamedTuple):
    """The legend of a scale, as CSS."""

    title: str
    gradient: str
    ticks: list[tuple[float, str]]


class Reading(NamedTuple):
    """One network's depth at a pixel."""

    name: str
    series: int | None
    text: str


class Pixel(NamedTuple):
    """A probe pixel: its position in percent of the image, why it was chosen, and the maps there."""

    number: int
    left: float
    top: float
    why: str
    truth: str
    plot: Markup
    readings: list[Reading]


class Panel(NamedTuple):
    """Everything the page shows of a frame."""

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
    """Whether the frame is in the store, and so has a teacher."""


def frame_panel(facts: FrameFacts, names: Sequence[str], dpm_kind: str, units: DepthUnits) -> Panel:
    """Draw a frame, in the units of the page; `names` are the students'."""
    taught = facts.teacher is not None
    predictions = [*([facts.teacher] if facts.teacher is not None else []), *facts.students]
    owners: list[int | None] = [*([None] if taught else []), *range(len(facts.students))]
    truth_m = facts.truth_m
    on_truth = truth_m is not None and facts.truth_is_dense
    errors = [
        _error(facts, prediction, is_teacher=owner is None)
        for owner, prediction in zip(owners, predictions, strict=True)
    ]
    depth = depth_scale([predictions[0].depth_m, *([] if truth_m is None else [truth_m])])
    given_errors = [error for error in errors if error is not None]
    error_colors = error_scale(given_errors) if given_errors else None
    entropy = entropy_scale(
        [prediction.entropy_nats for prediction in predictions if prediction.entropy_nats is not None]
    )
    width = width_scale([prediction.width for prediction in predictions if prediction.width is not None])
    rows = []
    for owner, prediction, error in zip(owners, predictions, errors, strict=True):
        against = "truth" if on_truth or owner is None or not taught else "the teacher"
        drawn_error = error
        if error is not None and truth_m is not None and not facts.truth_is_dense and (owner is None or not taught):
            drawn_error = spread(error, _reach_px(error))
        note = "" if dpm_kind != "gaussian" or owner is not None else "fixed-width maps: no uncertainty"
        rows.append(
            Row(
                "teacher" if owner is None else names[owner],
                owner,
                [
                    Picture(map_uri(prediction.depth_m, depth), "depth"),
                    _error_picture(drawn_error, error, error_colors, against),
                    _uncertainty_picture(prediction.entropy_nats, entropy, "entropy", "{:.2f} nats", note),
                    _uncertainty_picture(prediction.width, width, "90 % interval", "{:.0%} of depth", note),
                ],
            )
        )
    drawn_m = None if truth_m is None else truth_m if facts.truth_is_dense else spread(truth_m, _reach_px(truth_m))
    truth = Picture(
        "" if drawn_m is None else map_uri(drawn_m, depth),
        "ground truth",
        "no ground truth" if drawn_m is None else "" if facts.truth_is_dense else "sparse; dots enlarged",
    )
    bars = [
        ColorBar(
            f"near ← {'depth' if units.relative is None else 'relative depth'} → far",
            depth.gradient(),
            depth.ticks(units.unit),
        )
    ]
    if error_colors is not None:
        bars.append(ColorBar("too near ← relative error → too far", error_colors.gradient(), error_colors.ticks("%")))
    bars.append(ColorBar("confident ← entropy → uncertain", entropy.gradient(), entropy.ticks("nats")))
    bars.append(ColorBar("narrow ← 90 % interval → wide", width.gradient(), width.ticks("%")))
    height_px, width_px = facts.image.shape[:2]
    return Panel(
        facts.sample_id,
        (height_px, width_px),
        Picture(photo_uri(facts.image), "image"),
        truth,
        bars,
        rows,
        _pixels(facts, names, units),
        on_truth,
        truth_m is not None,
        taught,
    )


def _error(facts: FrameFacts, prediction: Prediction, *, is_teacher: bool) -> NDArray[np.float32] | None:
    """Relative error (H, W): against truth if it is dense; else the students' against the teacher."""
    if facts.truth_m is not None and (facts.truth_is_dense or is_teacher or facts.teacher is None):
        return relative_error(prediction.depth_m, facts.truth_m)
    if is_teacher or facts.teacher is None:
        return None
    return relative_error(prediction.depth_m, facts.teacher.depth_m)


def _error_picture(
    drawn: NDArray[np.float32] | None, error: NDArray[np.float32] | None, scale: Scale | None, against: str
) -> Picture:
    title = f"error against {against}"
    if drawn is None or error is None or scale is None:
        return Picture("", title, "no reference")
    finite = np.abs(error[np.isfinite(error)])
    return Picture(map_uri(drawn, scale), title, f"median {np.median(finite):.1%}" if finite.size else "")


def _uncertainty_picture(
    values: NDArray[np.float32] | None, scale: Scale, title: str, shape: str, note: str
) -> Picture:
    if values is None:
        return Picture("", title, "no map")
    finite = values[np.isfinite(values)]
    median = "median " + shape.format(np.median(finite)) if finite.size else ""
    return Picture(map_uri(values, scale), title, note or median)


def _reach_px(values: NDArray[np.float32]) -> int:
    """Radius that makes dots visible at a width of about 400 px."""
    return max(1, round(int(values.shape[1]) / 800))


def _reading(belief: Belief | None, unit: str) -> str:
    if belief is None:
        return "no value"
    return f"{belief.expected_m:.1f} {unit}".strip() + ("" if belief.probability is not None else ", no map")


def _pixels(facts: FrameFacts, names: Sequence[str], units: DepthUnits) -> list[Pixel]:
    height, width = facts.image.shape[:2]
    pixels = []
    for index, pixel in enumerate(facts.probe_pixels):
        truth_m = None if facts.truth_m is None else float(facts.truth_m[pixel.row, pixel.column])
        if truth_m is not None and not np.isfinite(truth_m):
            truth_m = None
        teacher = None if facts.teacher is None else facts.teacher.beliefs[index]
        students = [prediction.beliefs[index] for prediction in facts.students]
        readings = [
            Reading(name, series, _reading(belief, units.unit))
            for name, series, belief in [
                *([] if facts.teacher is None else [("teacher", None, teacher)]),
                *((name, series, belief) for series, (name, belief) in enumerate(zip(names, students, strict=True))),
            ]
        ]
        pixels.append(
            Pixel(
                index + 1,
                round(100 * (pixel.column + 0.5) / width, 3),
                round(100 * (pixel.row + 0.5) / height, 3),
                pixel.why,
                "none" if truth_m is None else f"{truth_m:.1f} {units.unit}".strip(),
                belief_plot(teacher, students, truth_m, units.what),
                readings,
            )
        )
    return pixels
