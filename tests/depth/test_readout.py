"""Readouts of maps, and distributions of ln depth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.depth.bins import bin_centers, bin_edges
from pipeline.depth.log_distribution import LogDistribution, log_distribution
from pipeline.depth.readout import READOUTS, levels_of, read_depth
from pipeline.networks.reader import HEADS, Reader, outputs_of

EDGES = bin_edges(64, 1.0, 100.0, "log")
EXPECTED_ERROR = {
    "mean": lambda guess, depth: (guess - depth) ** 2,
    "geometric": lambda guess, depth: (guess.log() - depth.log()) ** 2,
    "median": lambda guess, depth: (guess - depth).abs(),
    "absrel": lambda guess, depth: (guess - depth).abs() / depth,
}


def random_maps(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(1, 64, 1, count, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("readout", READOUTS)
def test_each_readout_has_the_smallest_expected_error_of_its_kind(readout):
    maps = random_maps()
    centers = bin_centers(EDGES).view(1, -1, 1, 1)
    best = read_depth(maps, EDGES, readout)

    def error_of(guess):
        return (maps * EXPECTED_ERROR[readout](guess, centers)).sum(dim=1)

    # Medians spread mass over a bin of 7 %; the expectation here puts it on the center
    for factor in (0.9, 1.1):
        assert bool((error_of(best) <= error_of(best * factor)).all())


def test_readouts_of_a_wide_map_are_ordered_and_those_of_a_narrow_one_agree():
    wide = torch.ones(1, 64, 1, 1, dtype=torch.float64) / 64
    mean, geometric, median, absrel = (float(read_depth(wide, EDGES, name)) for name in READOUTS)
    assert mean > geometric > absrel
    assert geometric == pytest.approx(10.0, rel=1e-3)
    assert median == pytest.approx(10.0, rel=1e-3)
    narrow = torch.zeros(1, 64, 1, 1, dtype=torch.float64)
    narrow[0, 20] = 1
    depths = [float(read_depth(narrow, EDGES, name)) for name in READOUTS]
    assert max(depths) / min(depths) < 1.001


@pytest.mark.parametrize("readout", READOUTS)
def test_a_pixel_without_a_map_has_a_depth_of_zero(readout):
    maps = random_maps(2)
    maps[..., 1] = 0
    depth_m = read_depth(maps, EDGES, readout)
    assert depth_m[0, 0, 0, 1] == 0
    assert depth_m[0, 0, 0, 0] > 1


def test_an_unknown_readout_and_one_without_a_gradient_are_refused():
    with pytest.raises(ValueError, match="`readout='mode'`"):
        read_depth(random_maps(), EDGES, "mode")
    with pytest.raises(ValueError, match="mean, geometric in a loss"):
        levels_of(EDGES, "median")


def of(family, location, scale):
    value = torch.tensor([[[[location]]]], dtype=torch.float64)
    return LogDistribution(family, value, torch.full_like(value, math.log(scale)))


def density(family, log_depth, location, scale):
    """Density of ln depth, written from the definitions."""
    if family == "gaussian":
        return np.exp(-((log_depth - location) ** 2) / (2 * scale**2)) / (scale * math.sqrt(2 * math.pi))
    return np.exp(-np.abs(log_depth - location) / scale) / (2 * scale)


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
@given(st.floats(0.5, 4.0), st.floats(0.05, 0.6))
@settings(max_examples=20, deadline=None)
def test_the_readouts_of_two_outputs_are_those_of_their_density(family, location, scale):
    log_depth = np.linspace(location - 40 * scale, location + 40 * scale, 400_001)
    mass = density(family, log_depth, location, scale)
    mass /= mass.sum()
    depth_m = np.exp(log_depth)
    weighted = np.cumsum(mass / depth_m)
    expected = {
        "mean": float((mass * depth_m).sum()),
        "geometric": math.exp(location),
        "median": math.exp(location),
        "absrel": float(depth_m[np.searchsorted(weighted, weighted[-1] / 2)]),
    }
    distribution = of(family, location, scale)
    for readout, value in expected.items():
        assert float(distribution.depth_m(readout, (1e-9, 1e9))) == pytest.approx(value, rel=2e-3)


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
def test_the_map_and_the_likelihood_of_two_outputs_are_those_of_their_density(family):
    location, scale = 2.0, 0.3
    distribution = of(family, location, scale)
    fine = np.linspace(math.log(1.0), math.log(100.0), 64_001)
    mass = density(family, (fine[1:] + fine[:-1]) / 2, location, scale) * np.diff(fine)
    maps = distribution.maps(EDGES)[0, :, 0, 0].numpy()
    assert maps.sum() == pytest.approx(1)
    assert maps[1:-1] == pytest.approx(mass.reshape(64, 1000).sum(axis=1)[1:-1], abs=1e-6)
    nll = distribution.nll_nats(torch.tensor([[[[9.0]]]], dtype=torch.float64))
    assert float(nll) == pytest.approx(-math.log(density(family, math.log(9.0), location, scale)))


def test_the_end_bins_hold_what_lies_beyond_the_range():
    maps = of("gaussian", math.log(1000.0), 0.1).maps(EDGES)[0, :, 0, 0]
    assert maps[-1] == pytest.approx(1)
    maps = of("laplace", math.log(0.01), 0.1).maps(EDGES)[0, :, 0, 0]
    assert maps[0] == pytest.approx(1)


def test_the_first_edge_may_be_zero():
    edges = bin_edges(16, 0.0, 80.0)
    maps = Reader(edges, "gaussian").maps(torch.zeros(1, 2, 3, 4))
    assert torch.isfinite(maps).all()
    assert maps.sum(1) == pytest.approx(1)


def test_outputs_of_zero_are_a_tenth_of_the_range():
    reader = Reader(EDGES, "gaussian")
    assert reader.depth_m(torch.zeros(1, 2, 1, 1)).item() == pytest.approx(10.0)
    assert reader.depth_m(torch.tensor([1.0, 0]).view(1, 2, 1, 1)).item() == pytest.approx(100.0)


def test_extreme_outputs_give_finite_depth_maps_and_gradients():
    outputs = torch.tensor([[1e4, 1e4], [-1e4, -1e4], [0.0, 1e4]]).view(3, 2, 1, 1).requires_grad_()
    for head in ("gaussian", "laplace"):
        for readout in READOUTS:
            reader = Reader(EDGES, head, readout)
            depth_m = reader.depth_m(outputs)
            assert bool(((depth_m >= 1) & (depth_m <= 100)).all())
            assert torch.isfinite(reader.maps(outputs)).all()
        nll = log_distribution(outputs, head, 100.0).nll_nats(torch.full((3, 1, 1, 1), 5.0)).sum()
        (gradient,) = torch.autograd.grad(nll, outputs)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("head", HEADS)
def test_a_reader_says_how_many_outputs_its_head_has(head):
    assert Reader(EDGES, head).outputs == outputs_of(head, 64) == (2 if head in {"gaussian", "laplace"} else 64)


def test_one_depth_cannot_be_read_in_another_way():
    with pytest.raises(ValueError, match="`readout=median` needs a distribution"):
        Reader(torch.tensor([-6.0, 6, 18]), "depth", "median")
    with pytest.raises(ValueError, match="`head='mixture'`"):
        Reader(EDGES, "mixture")
