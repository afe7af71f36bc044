"""Intervals and p values over frames and seeds have their nominal coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.multiple_testing import corrected_p_values, holm
from pipeline.evaluation.significance import mean_interval, paired_difference

QUICK = {"draws": 400}


def simulated(random, seeds, frames=40, shift=0.0, seeds_sd=0.3, frames_sd=1.0, noise_sd=0.3):
    """Metrics (S, F) of two students whose true means differ by `shift`; hard frames are hard for both."""
    hard = 10 + 2 * random.standard_normal(frames)
    sides = []
    for count, mean in zip(seeds, (shift, 0.0), strict=True):
        of_frames = frames_sd * random.standard_normal(frames)
        of_seeds = seeds_sd * random.standard_normal((count, 1))
        sides.append(mean + hard + of_frames + of_seeds + noise_sd * random.standard_normal((count, frames)))
    return sides


@pytest.mark.parametrize(
    ("seeds", "settings"),
    [
        ((1, 1), {"seeds_sd": 0.0}),  # frames alone
        ((3, 3), {"seeds_sd": 0.5}),  # both matter
        ((3, 3), {"seeds_sd": 1.0, "frames_sd": 0.05}),  # mostly seeds
        ((2, 4), {"seeds_sd": 0.5}),
        ((5, 1), {"seeds_sd": 0.0}),  # students and a teacher
    ],
)
def test_95_percent_intervals_contain_the_true_difference_90_to_99_percent_of_the_time(seeds, settings):
    random = np.random.default_rng(8)
    held = held_relative = 0
    for _ in range(400):
        result = paired_difference(*simulated(random, seeds, shift=0.5, **settings), **QUICK)
        held += result.low <= 0.5 <= result.high
        held_relative += result.relative_low_percent <= 5 <= result.relative_high_percent
    assert 360 <= held <= 396
    assert 360 <= held_relative <= 396


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_a_mean_contain_the_true_mean_as_often(seeds):
    random = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        values = simulated(random, (seeds, 1), seeds_sd=0.5 if seeds > 1 else 0.0)[0]
        result = mean_interval(values, **QUICK)
        held += result.low <= 10 <= result.high
    assert 180 <= held <= 198


def autocorrelated(random, frames, correlation=0.6):
    """(F,) standard normal values, correlated with the one before."""
    steps = random.standard_normal(frames + 50)
    for index in range(1, len(steps)):
        steps[index] = correlation * steps[index - 1] + math.sqrt(1 - correlation**2) * steps[index]
    return steps[50:]


def test_correlated_frames_need_blocks():
    random = np.random.default_rng(11)
    held = {1: 0, 16: 0}
    for _ in range(200):
        values = 5 + autocorrelated(random, 320)
        for block in held:
            result = mean_interval(values, block=block, **QUICK)
            held[block] += result.low <= 5 <= result.high
    assert held[1] < 160
    assert 176 <= held[16] <= 198


@pytest.mark.parametrize("block", [1, 3])
def test_identical_students_do_not_differ(block):
    values = np.random.default_rng(0).random(30)
    result = paired_difference(values, values, block=block, **QUICK)
    assert (result.difference, result.low, result.high) == (0, 0, 0)
    assert (result.relative_percent, result.relative_low_percent, result.relative_high_percent) == (0, 0, 0)
    assert (result.share_better, result.p_value) == (0.5, 1)
    several = np.random.default_rng(0).random((3, 30))
    result = paired_difference(several, several, block=block, **QUICK)
    assert result.difference == result.relative_percent == 0
    assert result.low < 0 < result.high  # three other seeds would not have given the same
    assert result.p_value > 0.8


def test_a_constant_difference_is_certain():
    values = np.random.default_rng(0).random(30)
    result = paired_difference(values + 0.25, values, **QUICK)
    assert (result.difference, result.low, result.high) == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)
    assert result.share_better == 0
    assert result.p_value == pytest.approx(2 / 401)
    higher = paired_difference(values + 0.25, values, lower_is_better=False, **QUICK)
    assert (higher.share_better, higher.p_value) == (1, result.p_value)


def test_a_constant_factor_is_a_certain_percentage():
    values = np.random.default_rng(0).random(30) ** 4
    result = paired_difference(0.9 * values, values, **QUICK)
    relative = (result.relative_percent, result.relative_low_percent, result.relative_high_percent)
    assert relative == pytest.approx((-10, -10, -10))
    assert result.high - result.low > 0.01


def test_the_width_of_intervals_follows_the_standard_error():
    values = np.random.default_rng(1).standard_normal(500)
    error = values.std(ddof=1) / math.sqrt(500)
    result = mean_interval(values, draws=20_000, confidence=0.9)
    assert result.mean == pytest.approx(values.mean())
    assert (result.low, result.high) == pytest.approx(
        (values.mean() - 1.645 * error, values.mean() + 1.645 * error), abs=0.05 * error
    )
    assert result.seeds_sd is None
    # Equal frames: only the seed varies, by Student's t of 2 degrees of freedom (4.303 at 97.5 %).
    seeds = np.array([[1.0], [2.0], [4.0]]) * np.ones(12)
    result = mean_interval(seeds, draws=100_000)
    assert result.seeds_sd == pytest.approx(np.std([1, 2, 4], ddof=1))
    error = result.seeds_sd / math.sqrt(3)
    reach = 4.303 * error
    assert (result.low, result.high) == pytest.approx((7 / 3 - reach, 7 / 3 + reach), abs=0.04 * reach)


def test_two_groups_of_seeds_differ_by_welchs_t():
    first, second = np.array([1.0, 2.0, 4.0]), np.array([3.0, 3.5, 3.1, 2.9])
    result = paired_difference(first[:, None] * np.ones(12), second[:, None] * np.ones(12), draws=200_000)
    parts = first.var(ddof=1) / 3, second.var(ddof=1) / 4
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    assert freedom == pytest.approx(2.0902, abs=1e-3)
    reach = 4.1289 * math.sqrt(sum(parts))  # Student's t of that many degrees of freedom, at 97.5 %
    middle = first.mean() - second.mean()
    assert (result.low, result.high) == pytest.approx((middle - reach, middle + reach), abs=0.04 * reach)


def test_seeds_of_both_sides_widen_the_relative_interval():
    steady, seeds = np.full(12, 6.0), np.array([[1.9], [2.0], [2.1]]) * np.ones(12)
    reach = 4.303 * 0.1 / math.sqrt(3)  # Student's t of 2 degrees of freedom, at 97.5 %
    result = paired_difference(steady, seeds, draws=100_000)
    assert result.relative_percent == pytest.approx(200)
    percent = 100 * 3 * reach / 2  # the ratio is 3, of a mean of 2
    assert result.relative_high_percent - 200 == pytest.approx(percent, rel=0.04)
    result = paired_difference(seeds, steady, draws=100_000)
    assert result.relative_high_percent - result.relative_percent == pytest.approx(100 * reach / 6, rel=0.04)


@given(st.randoms(use_true_random=False))
def test_the_order_of_frames_does_not_matter_without_blocks(shuffler):
    random = np.random.default_rng(5)
    first, second = random.random((2, 20)), random.random((3, 20))
    order = list(range(20))
    shuffler.shuffle(order)
    assert paired_difference(first[:, order], second[:, order], **QUICK) == paired_difference(first, second, **QUICK)
    assert mean_interval(first[:, order], **QUICK) == mean_interval(first, **QUICK)


def test_the_same_input_gives_the_same_result_and_another_seed_another():
    random = np.random.default_rng(5)
    first, second = random.random((2, 43)), random.random((3, 43))
    once = paired_difference(first, second, block=4, **QUICK)
    assert paired_difference(first, second, block=4, **QUICK) == once
    assert paired_difference(first, second, block=4, seed=1, **QUICK) != once


def test_blocks_are_consecutive_frames_and_none_is_left_out():
    # Alternating 0 and 1: blocks of 2 always hold one of each, so their mean cannot vary.
    values = np.tile([0.0, 1.0], 12)
    result = mean_interval(values, block=2, **QUICK)
    assert (result.low, result.high) == (0.5, 0.5)
    assert mean_interval(values, **QUICK).high > 0.6
    # 43 frames in blocks of 4 are 10 blocks, of 4 or 5 frames: the last three count too.
    values = np.zeros(43)
    values[-3:] = 1
    result = mean_interval(values, block=4, draws=100_000)
    assert result.mean == pytest.approx(3 / 43)
    blocks = np.array([*[0] * 9, 3]) - np.diff(np.arange(11) * 43 // 10) * 3 / 43
    covariance = max(0.0, blocks[1:] @ blocks[:-1] + blocks @ blocks / 10)
    error = math.sqrt((blocks @ blocks + 2 * covariance) * 10 / 9) / 43
    assert result.high - result.mean == pytest.approx(2.262 * error, rel=0.03)  # t of 9 degrees of freedom, at 97.5 %


ERRORS = {
    "normal": lambda random, size: random.standard_normal(size),
    "heavy-tailed": lambda random, size: random.standard_t(2, size),
    "skewed": lambda random, size: random.lognormal(0, 1, size),
    "with-failures": lambda random, size: random.exponential(1, size) * np.where(random.random(size) < 0.1, 20, 1),
}


def rejection_rate(random, error, frames, seeds, block, times):
    """How often two equal students get p < 0.05. Hard frames are hard for both."""
    rejected = 0
    for _ in range(times):
        hard = random.exponential(1, frames)
        sides = []
        for count in seeds:
            of_seeds = 0.3 * random.standard_normal((count, 1)) if max(seeds) > 1 and count > 1 else 0.0
            noise = 0.1 * random.standard_normal((count, frames))
            sides.append(hard + error(random, frames) + of_seeds + noise)
        result = paired_difference(*sides, block=block, draws=999)
        rejected += result.p_value is not None and result.p_value < 0.05
    return rejected / times


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("frames", "block"), [(10, 1), (24, 1), (60, 6)], ids=["10-frames", "24-frames", "10-blocks-of-6"]
)
def test_equal_students_get_small_p_values_at_most_at_the_nominal_rate(error, frames, block):
    random = np.random.default_rng(1)
    # 2500 simulations of 5 % vary by 0.44 points: 6 % is 2.3 of them above it.
    assert rejection_rate(random, ERRORS[error], frames, (1, 1), block, 2500) <= 0.06


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (5, 1)], ids=["2-seeds", "3-seeds", "5-seeds-and-a-teacher"])
def test_equal_students_of_several_seeds_get_small_p_values_at_most_at_the_nominal_rate(error, seeds):
    random = np.random.default_rng(2)
    assert rejection_rate(random, ERRORS[error], 10, seeds, 1, 1000) <= 0.06


def test_equal_students_on_video_get_small_p_values_at_the_nominal_rate_with_blocks():
    random = np.random.default_rng(3)

    def alike(random, frames):
        return autocorrelated(random, frames)

    assert rejection_rate(random, alike, 100, (1, 1), 10, 1500) <= 0.06
    assert rejection_rate(random, alike, 100, (1, 1), 1, 300) > 0.2, "without blocks, far too many"


@pytest.mark.parametrize(("frames", "block"), [(2, 1), (9, 1), (24, 6), (19, 2)])
def test_fewer_than_10_frames_or_blocks_give_differences_alone(frames, block):
    random = np.random.default_rng(0)
    first, second = random.random((2, frames)), 1 + random.random((3, frames))
    result = paired_difference(first, second, block=block)
    assert result.difference == pytest.approx(first.mean() - second.mean())
    assert result.relative_percent == pytest.approx(100 * (first.mean() / second.mean() - 1))
    assert (result.low, result.high, result.p_value, result.share_better) == (None, None, None, None)
    assert (result.relative_low_percent, result.relative_high_percent) == (None, None)
    mean = mean_interval(first, block=block)
    assert (mean.mean, mean.low, mean.high) == (pytest.approx(first.mean()), None, None)
    assert corrected_p_values([result, result]) == [None, None]


def test_the_relative_difference_to_a_mean_of_0_is_none():
    result = paired_difference(np.ones(12), np.zeros(12), **QUICK)
    assert result.difference == 1
    assert result.relative_percent is None
    assert result.relative_low_percent is None


@pytest.mark.parametrize(
    ("first", "second", "settings", "why"),
    [
        (np.ones(5), np.ones(6), {}, "first has 5 frames, second 6"),
        (np.ones(1), np.ones(1), {}, "at least 2 frames"),
        (np.ones((2, 2, 5)), np.ones(5), {}, "expected .seeds, frames."),
        (np.array([1, math.nan, 1.0]), np.ones(3), {}, "first is nan at frame 1 of seed 0"),
        (np.ones(20), np.ones(20), {"block": 0}, "expected 1 to 20, the number of frames"),
        (np.ones(20), np.ones(20), {"block": 21}, "expected 1 to 20, the number of frames"),
        (np.ones(20), np.ones(20), {"confidence": 95}, "such as 0.95"),
        (np.ones(20), np.ones(20), {"draws": 5}, "at least 100"),
    ],
)
def test_invalid_input_is_refused(first, second, settings, why):
    with pytest.raises(ValueError, match=why):
        paired_difference(first, second, **settings)


def test_holm_matches_hand_computed_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    with pytest.raises(ValueError, match="expected 0 to 1"):
        holm([0.1, math.nan])
