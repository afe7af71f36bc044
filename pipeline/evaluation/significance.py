"""Whether a difference between two students is more than chance: intervals and p values from per-image metrics.

Two things vary when a student is measured: which frames the test happened to hold, and which network a seed happened to
give. Both are in every interval here, each as Student's t scaled by its standard error; the two are drawn and added.

- **Frames** are paired: what varies is the difference frame by frame, since a frame that is hard for one student is
  hard for the other. With F frames the t has F - 1 degrees of freedom. `block` frames in a row are taken together, for
  video, whose neighbors are alike and say little more than one of them: the standard error is then of the sums of
  blocks, with the covariance of neighboring blocks where it is positive, and F is the number of blocks.
- **Seeds** by Welch's t. With three seeds a side, 95 % intervals that resample seeds held the truth 81-91 % of the
  time, with Welch's t 96-98 %. The price is width: intervals of two seeds are honest and mostly useless, those of three
  rough, those of five good.

Two equal students get p < 0.05 in at most 6 % of simulations from 10 frames or blocks on: of normal, heavy-tailed and
skewed errors, of one to five seeds, and in blocks as long as frames stay alike (a correlation of 0.6 from one frame to
the next, in blocks of 6: 6 %). A bootstrap of frames said so in 36 % of two frames, 16 % of four, and 10 % of four
blocks of 6. Below 10 frames or blocks there are means and differences alone: so few can hardly tell how much frames
vary, and not at all whether some are extreme.

What an interval covers: other frames of the same kind, and other seeds of the same recipe. With one seed the second
part is absent, and the interval is of this very network. Nothing here knows of other data sets.

Shape legend: S seeds, F frames, R draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

DRAWS = 10_000
CONFIDENCE = 0.95
LEAST_BLOCKS = 10
"""Frames, or blocks of frames, from which on there are intervals and p values."""


@dataclass(frozen=True)
class Mean:
    """A metric of one student over frames and seeds."""

    mean: float
    low: float | None
    """Of the interval; None, like `high`, of fewer than LEAST_BLOCKS frames or blocks."""
    high: float | None
    seeds_sd: float | None
    """Standard deviation of the seeds' means; None of one seed."""
    seeds: int
    frames: int


@dataclass(frozen=True)
class Difference:
    """First minus second, of a metric over frames that both were measured on.

    What says how sure it is (intervals, `share_better`, `p_value`) is None of fewer than LEAST_BLOCKS frames or blocks.
    """

    difference: float
    low: float | None
    high: float | None
    relative_percent: float | None
    """The same in percent of the second's mean; None, like its interval, where that is 0 or its sign varies."""
    relative_low_percent: float | None
    relative_high_percent: float | None
    share_better: float | None
    """Fraction of draws in which the first is better; those without a difference count half."""
    p_value: float | None
    """Two-sided: twice the smaller fraction of draws on one side of 0. Never below 2 / (R + 1)."""


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    block: int = 1,
    lower_is_better: bool = True,
) -> Difference:
    """Compare two students, or a student and its teacher, frame by frame.

    Args:
        first: (S, F) or (F,) metric of each frame; of every seed, where there are several.
        second: the same of the other, over the same frames in the same order. Its seeds are others, and may be more
            or fewer; a side of one seed (a teacher) is taken as it is.
        draws: how many random ones the intervals and the p value are read from.
        seed: of the random numbers; the same input gives the same result.
        confidence: of the interval, such as 0.95.
        block: frames in a row that are taken together. 1 for frames that have nothing to do with each other: then
            their order does not matter.
        lower_is_better: what "better" is, for `share_better`.

    Raises PipelineError for values that are not finite, frames that differ in number, and settings that make no sense.
    """
    one, other = _checked(first, "first"), _checked(second, "second")
    if one.shape[1] != other.shape[1]:
        raise PipelineError(f"{one.shape[1]} frames and {other.shape[1]}: expected the same frames on both sides")
    _check_settings(draws, confidence, block, one.shape[1])
    if block == 1:
        one, other = _in_any_order(one, other)
    of_one, of_other = float(one.mean()), float(other.mean())
    difference = of_one - of_other
    same_sign = bool((other.mean(axis=0) * of_other >= 0).all())
    ratio = of_one / of_other if of_other and same_sign else None
    relative = None if ratio is None else 100 * (ratio - 1)
    if not enough(one.shape[1], block):
        return Difference(difference, None, None, relative, None, None, None, None)
    random = np.random.default_rng(seed)
    moved = difference + _noise([one, -other], random, draws, block)
    low, high = _percentiles(moved, confidence)
    relative_low = relative_high = None
    if ratio is not None:
        # What other frames or seeds of either side do to the ratio, to first order: never a division by almost 0.
        noise = _noise([one, -ratio * other], random, draws, block) / of_other
        relative_low, relative_high = _percentiles(100 * (ratio - 1 + noise), confidence)
    below, above = int((moved < 0).sum()), int((moved > 0).sum())
    same = draws - below - above
    better = below if lower_is_better else above
    return Difference(
        difference=difference,
        low=low,
        high=high,
        relative_percent=relative,
        relative_low_percent=relative_low,
        relative_high_percent=relative_high,
        share_better=(better + same / 2) / draws,
        p_value=min(1.0, 2 * (min(below, above) + same + 1) / (draws + 1)),
    )


def mean_interval(
    values: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    block: int = 1,
) -> Mean:
    """Mean of one student's metric (S, F) or (F,), every frame and seed counting the same, with its interval.

    Arguments and errors as in `paired_difference`.
    """
    checked = _checked(values, "values")
    seeds, frames = checked.shape
    _check_settings(draws, confidence, block, frames)
    if block == 1:
        (checked,) = _in_any_order(checked)
    mean, spread = float(checked.mean()), float(checked.mean(axis=1).std(ddof=1)) if seeds > 1 else None
    if not enough(frames, block):
        return Mean(mean, None, None, spread, seeds, frames)
    drawn = mean + _noise([checked], np.random.default_rng(seed), draws, block)
    low, high = _percentiles(drawn, confidence)
    return Mean(mean, low, high, spread, seeds, frames)


def enough(frames: int, block: int = 1) -> bool:
    """Whether so many frames, in blocks of so many, are enough for intervals and p values."""
    return frames // block >= LEAST_BLOCKS


def too_few(frames: int, block: int = 1) -> str:
    """Why there are no intervals: a sentence."""
    what = f"{frames} frames" if block == 1 else f"{frames} frames in blocks of {block} ({frames // block} blocks)"
    return (
        f"No intervals and no p values: {what} are too few to tell a difference from chance; expected {LEAST_BLOCKS} "
        f"{'frames' if block == 1 else 'blocks'} or more."
    )


def corrected_p_values(differences: Sequence[Difference]) -> list[float | None]:
    """P values of differences over the same frames, corrected for their number (`holm`); None where there are none."""
    known = [one.p_value for one in differences if one.p_value is not None]
    corrected = iter(holm(known))
    return [None if one.p_value is None else next(corrected) for one in differences]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979), in the order given.

    Of m values the smallest is multiplied by m, the next by m - 1, and so on, none becoming smaller than the one before
    or larger than 1. Those at or below 0.05 may then all be believed with one chance in twenty that any is wrong.

    Raises PipelineError for a value that is not from 0 to 1.
    """
    for p_value in p_values:
        if not 0 <= p_value <= 1:
            raise PipelineError(f"p value {p_value}: expected 0 to 1")
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def _checked(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """Values as (S, F)."""
    checked = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if checked.ndim != 2 or checked.shape[0] < 1 or checked.shape[1] < 2:
        raise PipelineError(
            f"{what} of shape {np.shape(values)}: expected (seeds, frames) or (frames,), 2 frames or more"
        )
    bad = np.argwhere(~np.isfinite(checked))
    if len(bad):
        row, frame = bad[0]
        raise PipelineError(
            f"{what}: {checked[row, frame]} at frame {frame} of seed {row}: expected finite numbers; leave out frames "
            "without ground truth on both sides"
        )
    return checked


def _in_any_order(*sides: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The sides (S, F) with their frames in an order of their values, so that the order given has no say."""
    order = np.lexsort([side.mean(axis=0) for side in sides])
    return [side[:, order] for side in sides]


def _check_settings(draws: int, confidence: float, block: int, frames: int) -> None:
    if draws < 100:
        raise PipelineError(f"{draws} draws: expected 100 or more; 10000 are usual")
    if not 0 < confidence < 1:
        raise PipelineError(f"confidence {confidence}: expected more than 0 and less than 1, such as 0.95")
    if not 1 <= block <= frames:
        raise PipelineError(f"block of {block} frames: expected 1 to {frames}, the number of frames")


def _noise(
    sides: Sequence[NDArray[np.float64]], random: np.random.Generator, draws: int, block: int
) -> NDArray[np.float64]:
    """How the sum of the sides' means (each of (S, F)) varies with frames and seeds: draws (R,) around 0."""
    frames = np.sum([side.mean(axis=0) for side in sides], axis=0)
    error, blocks = _frames_error(frames, block)
    by_frames: NDArray[np.float64] = error * random.standard_t(blocks - 1, size=draws)
    return by_frames + _welch(sides, random, draws)


def _frames_error(frames: NDArray[np.float64], block: int) -> tuple[float, int]:
    """Standard error of the mean of frames (F,), and the number of blocks that it is estimated from.

    Blocks have `block` frames or one more, so that none are left over. Frames at the end of a block are still like
    those that follow: the covariance of neighboring blocks is added where it is positive.
    """
    count = len(frames)
    blocks = count // block
    ends = np.arange(blocks) * count // blocks
    sums = np.add.reduceat(frames - frames.mean(), ends)
    total = float(sums @ sums)
    if block > 1:
        # About their own mean, neighbors have a covariance of -total / blocks where they have nothing in common.
        total += 2 * max(0.0, float(sums[1:] @ sums[:-1]) + total / blocks)
    return math.sqrt(total * blocks / (blocks - 1)) / count, blocks


def _welch(
    sides: Sequence[NDArray[np.float64]], random: np.random.Generator, draws: int
) -> NDArray[np.float64] | float:
    """How the sides' means, added or subtracted, vary with their seeds: draws (R,) around 0, or 0 of one seed each.

    Student's t, scaled by the standard error, with the degrees of freedom of Welch and Satterthwaite.
    """
    variances = [(side.mean(axis=1).var(ddof=1) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    total = sum(variance for variance, _ in variances)
    if not total > 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    drawn: NDArray[np.float64] = math.sqrt(total) * random.standard_t(freedom, size=draws)
    return drawn


def _percentiles(drawn: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return low, high
