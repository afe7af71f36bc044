"""Whether a difference between two students is more than chance: intervals and p values from per-image metrics.

Two things vary when a student is measured: which frames the test happened to hold, and which network a seed happened to
give. Both are in every interval here.

- **Frames** are resampled with replacement (bootstrap): for a comparison the same ones on both sides, since a frame
  that is hard for one student is hard for the other. `block` frames in a row are taken together, for video, whose
  neighbours are alike and say little more than one of them. The intervals are percentiles.
- **Seeds** are not resampled but drawn from Student's t. Three values drawn from three with replacement have a third
  less variance than they should, and do not know how little three tell: in simulations with three seeds a side,
  95 % intervals held the truth 81-91 % of the time, and many a difference would be believed that is none. Welch's t,
  added to each resample of the frames, held it 96-98 %. The price is width: intervals of two seeds are honest and
  mostly useless, those of three rough, those of five good.

What an interval covers: other frames of the same kind, and other seeds of the same recipe. With one seed the second
part is absent, and the interval is of this very network. Nothing here knows of other data sets. Blocks should be at
least as long as frames stay alike, and 20 or more should fit: there 95 % intervals held the truth 87-92 % of the time
(a correlation of 0.6 from one frame to the next), with four to six blocks 79-88 %.

Shape legend: S seeds, F frames, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
LEAST_BLOCKS = 4
_DRAWN_AT_ONCE = 2**20
"""Frame numbers in memory at a time: 8 MB, and a few times that for the values."""


@dataclass(frozen=True)
class Mean:
    """A metric of one student over frames and seeds."""

    mean: float
    low: float
    high: float
    seeds_sd: float | None
    """Standard deviation of the seeds' means; None of one seed."""
    seeds: int
    frames: int


@dataclass(frozen=True)
class Difference:
    """First minus second, of a metric over frames that both were measured on."""

    difference: float
    low: float
    high: float
    relative_percent: float
    """The same in percent of the second's mean; NaN, like its interval, where that is 0."""
    relative_low_percent: float
    relative_high_percent: float
    share_better: float
    """Share of resamples in which the first is better; those without a difference count half."""
    p_value: float
    """Two-sided: twice the smaller share of resamples on one side of 0. Never below 2 / (R + 1)."""


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    resamples: int = RESAMPLES,
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
        resamples: how many.
        seed: of the random numbers; the same input gives the same result.
        confidence: of the interval, such as 0.95.
        block: frames in a row that are resampled together. 1 for frames that have nothing to do with each other: then
            their order has no say.
        lower_is_better: what "better" is, for `share_better`.

    Raises ValueError for values that are not finite, frames that differ in number, and settings that make no sense.
    """
    one, other = _checked(first, "first"), _checked(second, "second")
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"{one.shape[1]} frames and {other.shape[1]}: expected the same frames on both sides")
    if block == 1:
        one, other = _in_any_order(one, other)
    random = np.random.default_rng(seed)
    frames = np.stack([one.mean(axis=0), other.mean(axis=0)], axis=1)
    of_one, of_other = frames.mean(axis=0).tolist()
    drawn = _resampled_means(frames, random, resamples, confidence, block)
    noise = _welch([one, other], random, resamples)
    difference, moved = of_one - of_other, drawn[:, 0] - drawn[:, 1] + noise
    low, high = _percentiles(moved, confidence)
    relative = relative_low = relative_high = math.nan
    if of_other and bool((drawn[:, 1] * of_other > 0).all()):
        ratio = of_one / of_other
        # What a change of either side's seeds does to the ratio, to first order: never a division by almost 0.
        relative_noise = _welch([one, ratio * other], random, resamples) / of_other
        relative = 100 * (ratio - 1)
        relative_low, relative_high = _percentiles(100 * (drawn[:, 0] / drawn[:, 1] - 1 + relative_noise), confidence)
    below, above = int((moved < 0).sum()), int((moved > 0).sum())
    same = resamples - below - above
    better = below if lower_is_better else above
    return Difference(
        difference=difference,
        low=low,
        high=high,
        relative_percent=relative,
        relative_low_percent=relative_low,
        relative_high_percent=relative_high,
        share_better=(better + same / 2) / resamples,
        p_value=min(1.0, 2 * (min(below, above) + same + 1) / (resamples + 1)),
    )


def mean_interval(
    values: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    block: int = 1,
) -> Mean:
    """Mean of one student's metric (S, F) or (F,), every frame and seed counting the same, with its interval.

    Arguments and errors as in `paired_bootstrap`.
    """
    checked = _checked(values, "values")
    if block == 1:
        (checked,) = _in_any_order(checked)
    random = np.random.default_rng(seed)
    frames = checked.mean(axis=0)[:, None]
    drawn = _resampled_means(frames, random, resamples, confidence, block)
    low, high = _percentiles(drawn[:, 0] + _welch([checked], random, resamples), confidence)
    count = len(checked)
    spread = float(checked.mean(axis=1).std(ddof=1)) if count > 1 else None
    return Mean(float(frames.mean()), low, high, spread, count, checked.shape[1])


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979), in the order given.

    Of m values the smallest is multiplied by m, the next by m - 1, and so on, none becoming smaller than the one before
    or larger than 1. Those at or below 0.05 may then all be believed with one chance in twenty that any is wrong.

    Raises ValueError for a value that is not from 0 to 1.
    """
    for p_value in p_values:
        if not 0 <= p_value <= 1:
            raise ValueError(f"p value {p_value}: expected 0 to 1")
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
        raise ValueError(f"{what} of shape {np.shape(values)}: expected (seeds, frames) or (frames,), 2 frames or more")
    bad = np.argwhere(~np.isfinite(checked))
    if len(bad):
        row, frame = bad[0]
        raise ValueError(
            f"{what}: {checked[row, frame]} at frame {frame} of seed {row}: expected finite numbers; leave out frames "
            "without ground truth on both sides"
        )
    return checked


def _in_any_order(*sides: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The sides (S, F) with their frames in an order of their values, so that the order given has no say."""
    order = np.lexsort([side.mean(axis=0) for side in sides])
    return [side[:, order] for side in sides]


def _resampled_means(
    frames: NDArray[np.float64], random: np.random.Generator, resamples: int, confidence: float, block: int
) -> NDArray[np.float64]:
    """Means (R, C) of frames (F, C) drawn in circular blocks, a column's frames together with the others'."""
    count = len(frames)
    if resamples < 100:
        raise ValueError(f"{resamples} resamples: expected 100 or more; 10000 are customary")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected more than 0 and less than 1, such as 0.95")
    if block < 1 or (block > 1 and block * LEAST_BLOCKS > count):
        raise ValueError(
            f"block of {block} frames: expected 1 to {max(1, count // LEAST_BLOCKS)} for {count} frames, so that "
            f"{LEAST_BLOCKS} blocks fit"
        )
    blocks = -(-count // block)
    # Sums of the `block` frames from each one on, round the end; the last block is cut to make `count` frames.
    whole, cut = _sums(frames, block), _sums(frames, count - (blocks - 1) * block)
    means = np.empty((resamples, frames.shape[1]))
    at_once = max(1, _DRAWN_AT_ONCE // blocks)
    for start in range(0, resamples, at_once):
        drawn = random.integers(count, size=(min(at_once, resamples - start), blocks))
        means[start : start + len(drawn)] = (whole[drawn[:, :-1]].sum(axis=1) + cut[drawn[:, -1]]) / count
    # Blocks of n frames vary about their own mean, not the true one, and by so much less.
    mean = frames.mean(axis=0)
    widened: NDArray[np.float64] = mean + (means - mean) / math.sqrt(1 - block / count)
    return widened


def _sums(frames: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Sums (F, C) of `length` frames in a row, round the end."""
    total = frames.copy()
    for step in range(1, length):
        total += np.roll(frames, -step, axis=0)
    return total


def _welch(
    sides: Sequence[NDArray[np.float64]], random: np.random.Generator, resamples: int
) -> NDArray[np.float64] | float:
    """How the sides' means, added or subtracted, vary with their seeds: draws (R,) around 0, or 0 of one seed each.

    Student's t, scaled by the standard error, with the degrees of freedom of Welch and Satterthwaite.
    """
    variances = [(side.mean(axis=1).var(ddof=1) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    total = sum(variance for variance, _ in variances)
    if not total > 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    draws: NDArray[np.float64] = math.sqrt(total) * random.standard_t(freedom, size=resamples)
    return draws


def _percentiles(drawn: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return low, high
