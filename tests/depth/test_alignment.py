"""Relative depth finds its metres by sparse truth, is not led astray by bad points, and is refused where it cannot."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.depth.alignment import MAX_POINTS, REASONS, Fit, Verdict, align_to_truth, apply, fit, fit_least_squares

SPACES = ["affine_disparity", "affine_depth", "scale_invariant"]
AFFINE = SPACES[:2]
SIZE_PX = (24, 40)
spaces = st.sampled_from(SPACES)
seeds = st.integers(0, 2**31)
scales = st.floats(-6, 6).map(lambda power: 10.0**power)
shifts = st.floats(-100, 100)


def depth_of(seed, size_px=SIZE_PX):
    """Depth (H, W) from 2 to 80 m without any order."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(2), np.log(80), size_px))


def values_of(depth_m, space, scale, shift):
    """The numbers of a teacher for which `scale` and `shift` (times the scale) would be exact."""
    wanted = 1 / depth_m if space == "affine_disparity" else depth_m
    return (wanted / scale) - (0 if space == "scale_invariant" else shift)


def some_of(depth_m, seed, share=0.3):
    """The same with NaN where a sensor has no point."""
    return np.where(np.random.default_rng(seed).random(depth_m.shape) < share, depth_m, np.nan)


@given(spaces, seeds, scales, shifts)
def test_exact_numbers_are_brought_to_exact_metres(space, seed, scale, shift):
    depth_m = depth_of(seed)
    values = values_of(depth_m, space, scale, shift)
    truth_m = some_of(depth_m, seed)
    found = fit(values, truth_m, space)
    assert found.verdict == Verdict.ACCEPTED
    assert found.points == np.isfinite(truth_m).sum()
    assert found.residual < 1e-6
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert apply(values, found.scale, found.shift, space) == pytest.approx(depth_m, rel=1e-4)


@given(spaces, seeds, st.sampled_from([0.5, 90.0, None]))
def test_one_bad_point_in_five_moves_depth_by_less_than_a_hundredth(space, seed, bad_m):
    random = np.random.default_rng(seed)
    depth_m = depth_of(seed)
    values = values_of(depth_m * random.normal(1, 0.005, SIZE_PX), space, 3.0, 0.2)
    truth_m = some_of(depth_m, seed, 0.6)
    wrong = random.random(SIZE_PX) < 0.2
    truth_m[wrong & np.isfinite(truth_m)] = random.uniform(0.5, 90, SIZE_PX)[wrong & np.isfinite(truth_m)]
    if bad_m:  # all of them wrong in one direction
        truth_m[wrong & np.isfinite(truth_m)] = bad_m
    found = fit(values, truth_m, space)
    assert found.verdict == Verdict.ACCEPTED
    exact = 3.0, 0.0 if space == "scale_invariant" else 0.6
    aligned, wanted = (apply(values, *pair, space) for pair in ((found.scale, found.shift), exact))
    assert np.median(np.abs(aligned / wanted - 1)) < 0.01


@pytest.mark.parametrize("space", SPACES)
def test_two_bad_points_in_five_that_agree_do_not_decide(space):
    """Least squares, from which Tukey's weights alone would start, lie nearer to the bad points by then."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        depth_m = depth_of(seed)
        values = values_of(depth_m * random.normal(1, 0.005, SIZE_PX), space, 3.0, 0.2)
        far = space != "affine_disparity"
        truth_m = np.where(random.random(SIZE_PX) < 0.4, 1000.0 if far else 0.1, depth_m)
        found = fit(values, truth_m, space)
        exact = 3.0, 0.0 if space == "scale_invariant" else 0.6
        aligned, wanted = (apply(values, *pair, space) for pair in ((found.scale, found.shift), exact))
        assert np.median(np.abs(aligned / wanted - 1)) < 0.01


def test_up_to_a_scale_a_value_that_is_not_above_zero_is_no_point():
    depth_m = depth_of(3)
    values = values_of(depth_m, "scale_invariant", 2.0, 0.0)
    values[:2], values[2] = -1.0, 0.0
    found = fit(values, depth_m, "scale_invariant")
    assert found.points == depth_m.size - 3 * SIZE_PX[1]
    assert found.scale == pytest.approx(2)


@given(st.sampled_from(AFFINE), seeds, scales, shifts)
def test_metres_do_not_depend_on_the_scale_and_shift_that_a_teacher_chose(space, seed, scale, shift):
    random = np.random.default_rng(seed)
    depth_m = depth_of(seed)
    truth_m = some_of(depth_m * random.normal(1, 0.05, SIZE_PX), seed)
    values = values_of(depth_m, space, 1.0, 0.0)
    one, two = fit(values, truth_m, space), fit(values * scale + shift * scale, truth_m, space)
    assert one.verdict == two.verdict == Verdict.ACCEPTED
    assert one.residual == pytest.approx(two.residual, rel=1e-4)
    here = apply(values, one.scale, one.shift, space)
    assert apply(values * scale + shift * scale, two.scale, two.shift, space) == pytest.approx(here, rel=1e-4)


@given(spaces, seeds)
def test_the_teachers_numbers_come_back_when_shift_and_scale_are_undone(space, seed):
    values = values_of(depth_of(seed), space, 0.3, 0.1)
    found = fit(values, depth_of(seed), space)
    depth_m = apply(values, found.scale, found.shift, space).astype(np.float64)
    aligned = 1 / depth_m if space == "affine_disparity" else depth_m
    assert (aligned - found.shift) / found.scale == pytest.approx(values, rel=1e-5, abs=1e-5)


@given(st.sampled_from(AFFINE), seeds)
def test_numbers_that_run_the_wrong_way_are_refused(space, seed):
    depth_m = depth_of(seed)
    found = fit(-values_of(depth_m, space, 1.0, 0.0), depth_m, space)
    assert found.verdict == Verdict.SCALE_NOT_POSITIVE
    assert math.isnan(found.scale)
    assert math.isnan(found.shift)


@pytest.mark.parametrize("space", AFFINE)
@pytest.mark.parametrize("value", [0.0, 3.0, 1e-7, 1e7])
def test_an_image_of_one_value_says_nothing(space, value):
    assert fit(np.full(SIZE_PX, value), depth_of(1), space).verdict == Verdict.SCALE_NOT_POSITIVE


@pytest.mark.parametrize("space", SPACES)
def test_noise_leaves_a_residual_that_is_refused(space):
    verdicts = set()
    for seed in range(8):
        values = np.random.default_rng(seed + 50).uniform(0.01, 1, SIZE_PX)
        found = fit(values, depth_of(seed), space)
        verdicts.add(found.verdict)
        assert found.verdict == Verdict.SCALE_NOT_POSITIVE or found.residual > 0.25
    assert verdicts <= {Verdict.SCALE_NOT_POSITIVE, Verdict.RESIDUAL_TOO_LARGE}
    assert Verdict.RESIDUAL_TOO_LARGE in verdicts


@pytest.mark.parametrize("space", SPACES)
def test_too_few_points_are_refused_and_counted(space):
    depth_m = depth_of(2)
    truth_m = np.full(SIZE_PX, np.nan)
    truth_m[3, :30] = depth_m[3, :30]
    values = values_of(depth_m, space, 2.0, 0.1)
    found = fit(values, truth_m, space)
    assert (found.verdict, found.points) == (Verdict.TOO_FEW_POINTS, 30)
    assert fit(values, truth_m, space, min_points=30).verdict == Verdict.ACCEPTED
    assert fit(values, np.full(SIZE_PX, np.nan), space, min_points=1).verdict == Verdict.TOO_FEW_POINTS


@pytest.mark.parametrize("space", SPACES)
def test_only_pixels_with_a_value_and_a_measured_depth_count(space):
    depth_m = depth_of(3)
    values = values_of(depth_m, space, 2.0, 0.1)
    truth_m = depth_m.copy()
    truth_m[0], truth_m[1], truth_m[2], truth_m[3] = np.nan, 0, -1, np.inf
    values[4], values[5] = np.nan, np.inf
    found = fit(values, truth_m, space)
    assert found.points == depth_m.size - 6 * SIZE_PX[1]
    assert found.scale == pytest.approx(2, rel=1e-6)
    assert np.isnan(apply(values, found.scale, found.shift, space)[4]).all()


def test_an_image_of_which_most_comes_out_behind_infinity_is_refused():
    depth_m = depth_of(4)
    values = values_of(depth_m, "affine_disparity", 1.0, 0.0)
    truth_m = depth_m.copy()
    for rows, verdict in ((10, Verdict.ACCEPTED), (14, Verdict.MOSTLY_NOT_POSITIVE)):
        values[:rows], truth_m[:rows] = -1.0, np.nan
        found = fit(values, truth_m, "affine_disparity")
        assert found.verdict == verdict
        assert found.residual < 1e-9
    half_m = np.where(np.arange(SIZE_PX[0])[:, None] < 14, 70.0, depth_m)
    assert fit(values, half_m, "affine_disparity").residual != 0  # with truth there too it is refused all the same
    assert fit(values, half_m, "affine_disparity").verdict != Verdict.ACCEPTED


def test_where_most_points_come_out_without_depth_there_is_no_residual(monkeypatch):
    monkeypatch.setattr("pipeline.depth.alignment._robust", lambda *_: (1.0, -0.4))
    values = np.linspace(0, 0.6, 200)
    found = fit(values, np.full(200, 5.0), "affine_disparity")
    assert found.verdict == Verdict.MOSTLY_NOT_POSITIVE
    assert math.isnan(found.residual)


@pytest.mark.parametrize("space", SPACES)
def test_many_points_give_the_same_twice_and_what_all_of_them_would(space):
    random = np.random.default_rng(7)
    depth_m = depth_of(7, (300, 400))
    assert depth_m.size > MAX_POINTS
    values = values_of(depth_m * random.normal(1, 0.05, depth_m.shape), space, 2.0, 0.1)
    one = fit(values, depth_m, space)
    assert one == fit(values.copy(), depth_m.copy(), space)
    assert one.points == depth_m.size
    assert one.scale == pytest.approx(2, rel=0.02)


@given(spaces, seeds)
def test_the_numbers_of_a_file_in_float32_are_enough(space, seed):
    depth_m = depth_of(seed)
    values = values_of(depth_m, space, 5.0, 0.01).astype(np.float32)
    found = fit(values, depth_m.astype(np.float32), space)
    assert found.residual < 1e-5


@pytest.mark.parametrize("space", SPACES)
def test_depth_is_clipped_to_the_range_and_what_is_not_above_zero_has_none(space):
    values = np.array([[-1.0, 0.0, 1e-9, 1.0, 1e9, np.nan]])
    depth_m = apply(values, 2.0, 0.0, space, (0.5, 40.0))
    assert depth_m.dtype == np.float32
    ends = [40, 0.5, 0.5] if space == "affine_disparity" else [0.5, 2, 40]
    assert np.array_equal(depth_m, np.array([[np.nan, np.nan, *ends, np.nan]], np.float32), equal_nan=True)
    assert np.isnan(apply(values, math.nan, math.nan, space)).all()


def test_numbers_as_large_as_a_float_can_be_make_no_warning():
    values = np.array([3e38, -3e38, 1.0], np.float32)
    assert np.isfinite(apply(values, 1e300, 0.0, "affine_depth")[[0, 2]]).all()


# --- least squares, for measuring ----------------------------------------------------------------------------------


@given(st.sampled_from(AFFINE), seeds)
def test_plain_least_squares_is_numpys(space, seed):
    random = np.random.default_rng(seed)
    values, truth_m = random.uniform(-1, 1, 50), random.uniform(1, 80, 50)
    wanted = 1 / truth_m if space == "affine_disparity" else truth_m
    assert fit_least_squares(values, truth_m, space) == pytest.approx(tuple(np.polyfit(values, wanted, 1)), rel=1e-6)


def test_up_to_a_scale_least_squares_is_that_of_depth():
    values, truth_m = np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0])
    scale, shift = fit_least_squares(values, truth_m, "scale_invariant")
    assert shift == 0
    assert scale == pytest.approx(np.linalg.lstsq(values[:, None], truth_m)[0][0])
    assert fit_least_squares(np.zeros(3), truth_m, "scale_invariant") == (0, 0)


@given(spaces, seeds)
def test_a_prediction_is_measured_after_alignment_over_the_mask_alone(space, seed):
    depth_m = depth_of(seed)
    values = values_of(depth_m, space, 4.0, 0.1)
    mask = np.random.default_rng(seed).random(SIZE_PX) < 0.5
    truth_m = np.where(mask, depth_m, 1000.0)
    aligned_m = align_to_truth(values, truth_m, mask, space)
    assert aligned_m.dtype == np.float32
    assert aligned_m == pytest.approx(depth_m, rel=1e-4)


def test_a_prediction_that_runs_the_wrong_way_is_measured_as_it_is():
    depth_m = depth_of(9)
    truth = np.ones(SIZE_PX, bool)
    aligned_m = align_to_truth(-depth_m, depth_m, truth, "affine_depth")
    assert aligned_m == pytest.approx(depth_m, rel=1e-4)
    values = np.array([[1.0, 2.0, -100.0]])
    lost = align_to_truth(values, np.array([[1.0, 0.5, 1.0]]), np.array([[True, True, False]]), "affine_disparity")
    assert np.isnan(lost[0, 2])
    assert lost[0, :2] == pytest.approx([1, 0.5])


def test_a_constant_prediction_becomes_the_mean():
    truth_m = depth_of(5)
    aligned_m = align_to_truth(np.full(SIZE_PX, 3.3), truth_m, np.ones(SIZE_PX, bool), "affine_depth")
    assert aligned_m == pytest.approx(truth_m.mean(), rel=1e-6)


def test_wrong_input_is_named():
    depth_m = depth_of(1)
    with pytest.raises(ValueError, match=r"metric_m: expected relative depth"):
        fit(depth_m, depth_m, "metric_m")
    with pytest.raises(ValueError, match="depth space 'feet'"):
        fit(depth_m, depth_m, "feet")
    with pytest.raises(ValueError, match=r"\(24, 40\) and truth of shape \(3, 40\)"):
        fit(depth_m, depth_m[:3], "affine_depth")
    with pytest.raises(ValueError, match="no pixel to align"):
        align_to_truth(depth_m, depth_m, np.zeros(SIZE_PX, bool), "affine_depth")


def test_every_verdict_has_a_reason_and_keeps_its_number():
    assert set(REASONS) == set(Verdict)
    assert [int(one) for one in Verdict] == [0, 1, 2, 3, 4, 5]
    assert Fit._fields == ("scale", "shift", "points", "residual", "verdict")
