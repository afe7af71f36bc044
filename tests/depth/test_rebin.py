"""Rebinned maps: against exact fractions, and their difference against a sum over every overlap."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.depth import rebin as carry_module
from pipeline.depth.bins import bin_edges
from pipeline.depth.rebin import UNCHANGED, are_bins, check_edges, ordinal_to_mass, rebin, rebin_mass, widths_to_edges

STEP = 1e-14
"""What sums of some dozens of float64 may be off."""
LENGTHS = st.floats(1e-3, 10).map(lambda value: round(value, 6))


@st.composite
def edges_m(draw, largest=9, least=0.0):
    """Ascending edges of 1 to `largest` bins; with `least` below 0 some may touch."""
    widths = draw(st.lists(LENGTHS, min_size=1, max_size=largest))
    kept = [width if draw(st.booleans()) or least == 0 else 0.0 for width in widths]
    kept[0] = widths[0]
    return np.cumsum([draw(LENGTHS), *kept])


@st.composite
def maps(draw, least=0.0):
    """Masses (K, P) that sum to 1, and edges (K + 1, 1) of all or (K + 1, P) of each."""
    first = draw(edges_m(least=least))
    pixels = draw(st.integers(1, 3))
    weights = st.floats(1e-6, 1) | st.just(0.0)
    rows = [draw(st.lists(weights, min_size=len(first) - 1, max_size=len(first) - 1)) for _ in range(pixels)]
    mass = np.array([[weight + (not any(row)) for weight in row] for row in rows]).T
    own = np.array([draw(LENGTHS) + draw(LENGTHS) * first for _ in range(pixels)]).T
    return mass / mass.sum(axis=0), own if draw(st.booleans()) else first[:, None]


def overlaps(mass, own_m, onto_m):
    """Exactly: {(i, j): share of bin i's mass} within bin j, j from -1 (before the first) to L (beyond the last)."""
    bounds = [Fraction(edge) for edge in onto_m.tolist()]
    found = {}
    for i, weight in enumerate(mass.tolist()):
        low, high = Fraction(float(own_m[i])), Fraction(float(own_m[i + 1]))
        for j in range(-1, len(bounds)):
            start = max(low, bounds[j]) if j >= 0 else low
            end = min(high, bounds[j + 1]) if j + 1 < len(bounds) else high
            if end > start:
                found[i, j] = Fraction(weight) * (end - start) / (high - low)
    return found


def slowly(mass, own_m, onto_m):
    """Masses (L,) of one pixel, exactly."""
    whole = [Fraction(0)] * (len(onto_m) - 1)
    for (_, j), part in overlaps(mass, own_m, onto_m).items():
        whole[min(max(j, 0), len(whole) - 1)] += part
    return np.array([float(part) for part in whole])


@given(maps(), edges_m())
def test_each_bin_gets_exactly_what_overlaps_it_and_the_end_bins_what_lies_beyond(given_map, onto_m):
    mass, own_m = given_map
    over = rebin_mass(mass, own_m, onto_m)
    for pixel in range(mass.shape[1]):
        its_m = own_m[:, pixel if own_m.shape[1] > 1 else 0]
        assert over[:, pixel] == pytest.approx(slowly(mass[:, pixel], its_m, onto_m), abs=STEP)
    assert over.sum(axis=0) == pytest.approx(mass.sum(axis=0), abs=STEP)
    assert (over >= 0).all()


@given(maps(least=-1.0), edges_m())
def test_no_mass_is_lost_or_negative_where_bins_have_no_width(given_map, onto_m):
    mass, own_m = given_map
    over = rebin_mass(mass, own_m, onto_m)
    assert over.sum(axis=0) == pytest.approx(mass.sum(axis=0), abs=STEP)
    assert (over >= 0).all()


@given(maps(), edges_m(), st.data())
def test_farther_mass_stays_farther(given_map, onto_m, data):
    mass, own_m = given_map
    source = data.draw(st.integers(0, len(mass) - 1))
    target = data.draw(st.integers(source, len(mass) - 1))
    farther = mass.copy()
    farther[target] += mass[source] / 2
    farther[source] -= mass[source] / 2
    near, far = (rebin_mass(each, own_m, onto_m).cumsum(axis=0) for each in (mass, farther))
    assert (far <= near + STEP).all()


@given(maps(), st.integers(2, 4))
def test_finer_bins_and_back_give_the_same_map(given_map, parts):
    mass, own_m = given_map
    first = own_m[:, :1]
    shares = np.arange(parts) / parts
    fine_m = np.append((first[:-1] + np.diff(first, axis=0) * shares).ravel(), first[-1])
    fine = rebin_mass(mass, first, fine_m)
    assert rebin_mass(fine, fine_m[:, None], first[:, 0]) == pytest.approx(mass, abs=1e-12)


def cost_slowly(mass, own_m, onto_m):
    """(nats, share of the mean, clipped) of one pixel by the sum over all overlaps."""
    parts = overlaps(mass, own_m, onto_m)
    inside = {key: part for key, part in parts.items() if 0 <= key[1] < len(onto_m) - 1}
    kept = np.zeros(len(onto_m) - 1)
    for (_, j), part in inside.items():
        kept[j] += float(part)
    width_m, onto_width_m = np.diff(own_m), np.diff(onto_m)
    nats = sum(
        float(part) * math.log((mass[i] / width_m[i]) / (kept[j] / onto_width_m[j]))
        for (i, j), part in inside.items()
        if part > 0
    )
    mean_m = float(mass @ (own_m[1:] + own_m[:-1]) / 2)
    moved = abs(float(slowly(mass, own_m, onto_m) @ (onto_m[1:] + onto_m[:-1]) / 2) - mean_m) / mean_m
    return nats, moved, 1 - float(sum(inside.values()))


@given(maps(), edges_m())
def test_the_cost_is_the_divergence_over_all_overlaps_the_change_of_the_mean_and_what_was_clipped(given_map, onto_m):
    mass, own_m = (each.astype(np.float32) for each in given_map)
    own_m = own_m[:, 0] if own_m.shape[1] == 1 else own_m[:, None]
    if (np.diff(own_m, axis=0) <= 1e-4).any():
        return  # float32 edges that nearly touch
    _, cost = rebin(mass[:, None], own_m, onto_m)
    wide, columns = mass.astype(np.float64), own_m.reshape(len(own_m), -1).astype(np.float64)
    each = [
        cost_slowly(wide[:, pixel], columns[:, pixel if columns.shape[1] > 1 else 0], onto_m)
        for pixel in range(mass.shape[1])
    ]
    # The sums over bins and over overlaps are the same, but for float32 masses that add up to nearly 1.
    assert np.array(cost) == pytest.approx(np.mean(each, axis=0), abs=1e-6)


def smooth_map(bins=8, size=(5, 7), seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (bins, *size))
    return (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)


OWN_M = np.linspace(1, 9, 9)
ONTO_M = np.linspace(0.5, 10, 12)


@pytest.mark.parametrize("edges", [OWN_M, np.broadcast_to(OWN_M[:, None, None], (9, 5, 7)).astype(np.float32)])
def test_the_same_bins_leave_the_map_as_it_is(edges):
    dpm = smooth_map()
    carried, cost = rebin(dpm, edges, OWN_M)
    assert carried is dpm
    assert cost == UNCHANGED == (0, 0, 0)
    assert are_bins(edges, OWN_M)
    assert not are_bins(edges, OWN_M + 1e-9)


def test_finer_bins_cost_nothing():
    _, cost = rebin(smooth_map(), OWN_M, np.linspace(1, 9, 33))
    assert cost == pytest.approx((0, 0, 0), abs=1e-6)


def test_bins_of_each_pixel_are_its_own():
    dpm = smooth_map()
    own_m = OWN_M[:, None, None] * np.linspace(0.8, 1.2, 35).reshape(5, 7)
    carried, _ = rebin(dpm, own_m, ONTO_M)
    for row, column in ((0, 0), (2, 3), (4, 6)):
        alone, _ = rebin(dpm[:, row : row + 1, column : column + 1], own_m[:, row, column], ONTO_M)
        assert carried[:, row, column] == pytest.approx(alone[:, 0, 0], abs=1e-7)


@pytest.mark.parametrize("own_m", [OWN_M, OWN_M[:, None, None] * np.linspace(0.8, 1.2, 35).reshape(5, 7)])
def test_the_blocks_in_which_it_is_done_do_not_show(monkeypatch, own_m):
    dpm = smooth_map()
    dpm[:, 1, 2] = np.nan
    whole, cost = rebin(dpm, own_m, ONTO_M)
    monkeypatch.setattr(carry_module, "PIXELS_AT_ONCE", 3)
    pieces, same = rebin(dpm, own_m, ONTO_M)
    np.testing.assert_array_equal(pieces, whole)
    assert same == pytest.approx(cost, abs=1e-12)


def test_a_pixel_without_a_map_stays_without_and_is_not_counted():
    dpm = smooth_map()
    own_m = np.broadcast_to(OWN_M[:, None, None], (9, 5, 7)).copy()
    _, cost = rebin(dpm[:, :, 1:], own_m[:, :, 1:], ONTO_M)
    dpm[:, :, 0], own_m[:, :, 0] = np.nan, np.nan
    carried, holed = rebin(dpm, own_m, ONTO_M)
    assert np.isnan(carried[:, :, 0]).all()
    assert not np.isnan(carried[:, :, 1:]).any()
    assert holed == pytest.approx(cost, abs=1e-12)


def test_mass_beyond_the_range_is_in_the_end_bins_and_counted():
    dpm = np.full((4, 1, 1), 0.25, np.float32)
    carried, cost = rebin(dpm, np.array([0.0, 1, 2, 3, 4]), np.array([1.0, 2.5, 3.5]))
    assert carried[:, 0, 0].tolist() == [0.625, 0.375]
    assert cost == pytest.approx((0, abs(0.625 * 1.75 + 0.375 * 3 - 2) / 2, 0.375), abs=1e-12)


def test_a_bin_without_width_is_all_at_its_depth():
    dpm = np.array([0.5, 0.25, 0.25], np.float32).reshape(3, 1, 1)
    carried, cost = rebin(dpm, np.array([1.0, 3, 3, 4]), np.array([1.0, 2.0, 2.9, 3.5, 4]))
    assert carried[:, 0, 0] == pytest.approx([0.25, 0.225, 0.025 + 0.25 + 0.125, 0.125])
    assert 1 < cost.kl_nats < 10  # a point cannot be told from a bin of one float32 step


@pytest.mark.parametrize("tiled", [False, True])
def test_a_point_on_an_edge_of_the_store_lies_below_it(tiled):
    own_m = np.array([1.0, 2, 2, 3])
    own_m = np.broadcast_to(own_m[:, None, None], (4, 1, 1)) if tiled else own_m
    carried, _ = rebin(np.array([0.25, 0.5, 0.25], np.float32).reshape(3, 1, 1), own_m, np.array([0.0, 2.0, 3.0]))
    assert carried[:, 0, 0].tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (OWN_M[:-1], r"shape \(8,\) for a map of 8 bins over 5x7 px: expected \(9,\), or \(9, 5, 7\)"),
        (np.zeros((9, 5, 6)), r"shape \(9, 5, 6\)"),
        (np.where(OWN_M == 3, np.nan, OWN_M), "1 bin edges are NaN or infinite: expected finite metres"),
        (OWN_M[::-1], "bin edges descend: expected ascending edges; sort them"),
        (np.full(9, 2.0), "bin edges descend"),
    ],
)
def test_what_are_no_edges_of_a_map_is_refused(edges, message):
    with pytest.raises(ValueError, match=message):
        rebin(smooth_map(), edges, ONTO_M)
    with pytest.raises(ValueError, match=message):
        check_edges(edges, 8, (5, 7))


# --- adaptive and ordinal bins ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9).filter(lambda widths: sum(widths) > 0.1))
def test_widths_lie_side_by_side_over_the_whole_range(widths):
    edges = widths_to_edges(torch.tensor([widths, widths[::-1]]), 0.001, 80)
    assert (edges.shape, edges.dtype) == ((2, len(widths) + 1), torch.float64)
    assert edges[:, 0].tolist() == [0.001] * 2
    assert edges[:, -1].tolist() == [80] * 2
    share = np.array(widths, np.float32).astype(np.float64)
    assert np.diff(edges[0].numpy()) / 79.999 == pytest.approx(share / share.sum(), abs=1e-12)
    check_edges(edges[0].numpy(), len(widths), (1, 1))


@pytest.mark.parametrize("widths", [[[0.5, -0.1]], [[0.0, 0.0]], [[math.nan, 1.0]], [0.5, 0.5]])
def test_widths_that_make_no_bins_are_refused(widths):
    with pytest.raises(ValueError, match=r"expected \(B, K\), none negative or NaN, sum above 0"):
        widths_to_edges(torch.tensor(widths), 0.1, 10)
    with pytest.raises(ValueError, match="range 10 to 10 m: expected two depths, ascending"):
        widths_to_edges(torch.ones(1, 2), 10, 10)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_ordinal_answers_become_masses_with_the_same_expected_label(beyond):
    answers = torch.tensor(beyond, dtype=torch.float64).view(1, -1, 1, 1)
    mass = ordinal_to_mass(answers)[0, :, 0, 0].numpy()
    assert (mass >= 0).all()
    assert mass.sum() == pytest.approx(1)
    assert mass @ np.arange(len(mass)) == pytest.approx(sum(beyond))  # E[l] is the sum of P(l > k)


def test_ordinal_answers_of_a_known_depth_are_its_bin():
    edges = bin_edges(4, 1, 16, "log")
    depth_m = torch.tensor([[[1.5, 3.0], [5.0, 15.0]]])
    beyond = (depth_m[:, None] > edges[1:-1].view(1, -1, 1, 1)).float()
    assert ordinal_to_mass(beyond).argmax(dim=1).tolist() == [[[0, 1], [2, 3]]]


@pytest.mark.parametrize(
    "answers", [torch.full((1, 2, 1, 1), 1.1), torch.zeros(1, 2, 1), torch.full((1, 1, 1, 1), math.nan)]
)
def test_ordinal_answers_that_are_no_probabilities_are_refused(answers):
    with pytest.raises(ValueError, match=r"expected \(B, K - 1, h, w\), from 0 to 1"):
        ordinal_to_mass(answers)
