from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.depth.bins import PRESETS, Bins, bin_centers, bin_edges, parse_bins
from pipeline.depth.dpm import (
    entropy_nats,
    expected_depth,
    expected_depth_of_logits,
    gaussian_dpm,
    interval_m,
    released_dpm,
)

KITTI = parse_bins("kitti").edges()


def depths(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(1, 1, 1, -1)


@st.composite
def some_bins(draw):
    spacing = draw(st.sampled_from(["linear", "log", "inverse"]))
    lo = draw(st.floats(0.001, 5))
    return Bins(spacing, draw(st.integers(2, 300)), lo, lo + draw(st.floats(1, 300)))


any_depth = st.one_of(st.floats(-1e30, 1e30), st.floats(0, 100), st.sampled_from([math.inf, -math.inf]))


@given(some_bins())
def test_the_text_of_bins_reads_back_as_the_same_bins(bins):
    assert parse_bins(str(bins)) == bins


def test_presets_are_the_released_configs():
    assert parse_bins("kitti") == Bins("linear", 257, 0.001, 80.0)
    assert parse_bins("nyu") == Bins("linear", 49, 0.001, 10.0)
    assert {name: str(parse_bins(name)) for name in PRESETS} == PRESETS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kity", "expected SPACING:COUNT:LO:HI"),
        ("linear:x:1:2", "expected SPACING:COUNT:LO:HI"),
        ("linear:5:1", "expected SPACING:COUNT:LO:HI"),
        ("cubic:5:1:2", "expected one of linear, log, inverse"),
        ("linear:1:1:2", "expected 2 to 4096"),
        ("linear:99999:1:2", "expected 2 to 4096"),
        ("linear:5:2:2", "ascending"),
        ("linear:5:1:inf", "finite"),
        ("linear:5:nan:2", "finite"),
        ("log:5:0:2", "more than 0"),
        ("inverse:5:0:2", "more than 0"),
        ("linear:5:-1:2", "at least 0"),
    ],
)
def test_bins_that_make_no_sense_are_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_bins(text)


@given(some_bins())
def test_edges_ascend_from_exactly_lo_to_exactly_hi(bins):
    edges = bins.edges()
    assert edges.dtype == torch.float64
    assert edges.shape == (bins.count + 1,)
    assert bool((edges.diff() > 0).all())
    assert (float(edges[0]), float(edges[-1])) == (bins.lo, bins.hi)


@given(some_bins())
def test_each_spacing_is_even_in_its_own_measure(bins):
    edges = bins.edges().numpy()
    measure = {"linear": edges, "log": np.log(edges), "inverse": 1 / edges}[bins.spacing]
    steps = np.diff(measure)
    assert np.allclose(steps, steps.mean(), rtol=1e-6, atol=1e-9 * abs(measure).max())


def test_centers_are_midpoints():
    assert bin_centers(torch.tensor([0.0, 1.0, 4.0])).tolist() == [0.5, 2.5]


def test_a_gaussian_map_is_the_cdfs_differences_renormalized():
    edges = bin_edges(20, 1.0, 9.0, "log")
    found = gaussian_dpm(depths(3.3, 0.9, 9.5, dtype=torch.float64), edges, 0.7)
    for i, depth in enumerate([3.3, 0.9, 9.5]):
        cdf = np.array([0.5 * (1 + math.erf((e - depth) / 0.7 / math.sqrt(2))) for e in edges.tolist()])
        assert found[0, :, 0, i].numpy() == pytest.approx(np.diff(cdf) / (cdf[-1] - cdf[0]), abs=1e-12)


@settings(deadline=None)
@given(some_bins(), st.lists(any_depth, min_size=1, max_size=5), st.floats(1e-3, 20))
def test_a_gaussian_map_is_finite_and_sums_to_one_whatever_the_depth(bins, values, sigma_m):
    dpm = gaussian_dpm(depths(*values), bins.edges(), sigma_m)
    assert bool((dpm >= 0).all())
    assert torch.allclose(dpm.sum(dim=1), torch.ones(()), atol=1e-5)


@settings(deadline=None)
@given(st.floats(2, 78), st.floats(0.05, 0.5))
def test_the_expectation_of_a_narrow_gaussian_is_its_depth(depth, sigma_m):
    found = float(expected_depth(gaussian_dpm(depths(depth), KITTI, sigma_m), KITTI))
    bin_m = 80 / 257
    assert abs(found - depth) < (1e-3 if sigma_m > bin_m else bin_m / 2 + 1e-3)


@settings(deadline=None)
@given(some_bins(), st.floats(0.05, 5), st.floats(-50, 400), st.floats(0.01, 50))
def test_a_deeper_depth_never_has_a_nearer_expectation(bins, sigma_m, depth, more):
    pair = gaussian_dpm(depths(depth, depth + more, dtype=torch.float64), bins.edges(), sigma_m)
    nearer, deeper = expected_depth(pair, bins.edges()).flatten().tolist()
    assert deeper >= nearer - 1e-9 * bins.hi


def test_far_outside_the_range_everything_is_in_the_end_bin():
    dpm = gaussian_dpm(depths(-1e6, 1e6, -math.inf, math.inf), KITTI, 0.5)
    assert dpm[0, 0, 0].tolist() == [1, 0, 1, 0]
    assert dpm[0, -1, 0].tolist() == [0, 1, 0, 1]


def test_outside_the_range_the_gaussian_tail_decides_and_float32_knows_it():
    # 25 sigma out the raw masses are below 1e-137; the exact ratio of neighbours comes from log-space
    edges, sigma_m, depth = bin_edges(100, 1.0, 11.0), 2.0, 61.0
    log_tail = torch.special.log_ndtr((edges - depth) / sigma_m)
    log_mass = log_tail[1:] + torch.log1p(-torch.exp(log_tail[:-1] - log_tail[1:]))
    expected = torch.softmax(log_mass, dim=0)
    found = gaussian_dpm(depths(depth), edges, sigma_m)[0, :, 0, 0].double()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-9)
    assert 0.1 < float(found[-1]) < 0.95


def test_nothing_jumps_where_the_scaled_form_takes_over():
    sides = depths(80 + 4 * 0.5 - 1e-4, 80 + 4 * 0.5 + 1e-4, dtype=torch.float64)
    dpm = gaussian_dpm(sides, KITTI, 0.5)
    assert float((dpm[..., 0] - dpm[..., 1]).abs().max()) < 1e-4


def test_a_gaussian_much_narrower_than_a_bin_falls_into_one_bin():
    dpm = gaussian_dpm(depths(40.0), KITTI, 1e-6)
    assert float(dpm.max()) == 1.0
    assert int(dpm.argmax()) == int((bin_centers(KITTI) - 40).abs().argmin())


@pytest.mark.parametrize("make", [lambda d: gaussian_dpm(d, KITTI, 0.5), lambda d: released_dpm(d, KITTI)])
def test_an_invalid_pixel_has_an_empty_map_and_leaves_its_neighbors_alone(make):
    dpm = make(depths(10.0, math.nan))
    assert dpm[..., 1].abs().sum() == 0
    assert torch.equal(dpm[..., :1], make(depths(10.0)))


@pytest.mark.parametrize("make", [gaussian_dpm, released_dpm])
def test_wrong_shapes_and_sigmas_are_refused(make):
    with pytest.raises(ValueError, match=r"expected \(B, 1, H, W\)"):
        make(torch.ones(2, 3, 4), KITTI, 0.5)
    for sigma_m in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma_m"):
            make(depths(1.0), KITTI, sigma_m)


def test_the_released_map_is_a_softmax_over_densities_in_float32():
    depth = np.float32(30.3)
    edges = np.linspace(1e-3, 80, 258).astype(np.float32)
    centers = (edges[:-1] + edges[1:]) / 2
    density = np.exp(-((centers - depth) ** 2) / 0.5) / np.sqrt(2 * np.pi * 0.25)
    density = np.where(density < 1e-16, -1000, density)
    expected = np.exp(density - density.max())
    expected /= expected.sum()
    found = released_dpm(depths(float(depth)), KITTI)[0, :, 0, 0].numpy()
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_released_map_is_nearly_flat_over_28_bins_with_a_peak_of_007():
    dpm = released_dpm(depths(float(KITTI[128]), 40.0), KITTI)
    assert (dpm > 0).sum(dim=1).flatten().tolist() == [28, 27]  # on an edge, and on a centre
    assert dpm.amax(dim=1).flatten().tolist() == pytest.approx([0.07, 0.07], abs=0.005)


def test_the_released_map_knows_nothing_of_a_depth_far_outside():
    assert torch.allclose(released_dpm(depths(500.0), KITTI), torch.tensor(1 / 257))


def test_the_expected_depth_of_logits_is_that_of_their_softmax():
    logits = torch.randn(2, 257, 3, 4)
    assert torch.equal(expected_depth_of_logits(logits, KITTI), expected_depth(logits.softmax(1), KITTI))
    with pytest.raises(ValueError, match=r"expected \(B, 257, H, W\)"):
        expected_depth(torch.ones(1, 5, 2, 2), KITTI)


def test_entropy_is_zero_when_certain_and_ln_k_when_uniform():
    maps = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]).view(2, 4, 1, 1)
    assert entropy_nats(maps).flatten().tolist() == pytest.approx([0, math.log(4)])


def test_an_interval_interpolates_within_bins():
    dpm = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64).view(1, 3, 1, 1)
    edges = torch.tensor([0.0, 1.0, 3.0, 7.0])
    lower, upper = interval_m(dpm, edges, mass=0.75)
    assert (float(lower), float(upper)) == pytest.approx((0.5, 5.0))


@settings(deadline=None)
@given(some_bins(), any_depth, st.floats(0.05, 5), st.floats(0.01, 0.99))
def test_an_interval_is_ordered_and_within_the_range(bins, depth, sigma_m, mass):
    dpm = gaussian_dpm(depths(depth, dtype=torch.float64), bins.edges(), sigma_m)
    lower, upper = (float(bound) for bound in interval_m(dpm, bins.edges(), mass))
    assert bins.lo - 1e-9 <= lower <= upper + 1e-9 <= bins.hi + 2e-9


def test_an_interval_of_an_invalid_pixel_is_nan_and_of_no_mass_is_refused():
    lower, upper = interval_m(torch.zeros(1, 257, 1, 1), KITTI)
    assert math.isnan(float(lower))
    assert math.isnan(float(upper))
    for mass in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="`mass="):
            interval_m(torch.zeros(1, 257, 1, 1), KITTI, mass)
