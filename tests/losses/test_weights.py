"""Weights of pixels: every mean of every loss becomes the weighted mean."""

from __future__ import annotations

import math

import loss_formulas
import pytest
import torch

from pipeline.depth.bins import bin_edges
from pipeline.losses.base import LazyLogits
from pipeline.losses.registry import LOSSES, build_loss
from pipeline.losses.ssim import ssim_map

EDGES = bin_edges(12, 0.5, 20.0, "log")
SETTINGS = {"sigma_m": 0.8, "weight": 0.3}
OF_MAPS = sorted(name for name, entry in LOSSES.items() if "dpm" in entry.heads)
OF_TWO_OUTPUTS = sorted(name for name, entry in LOSSES.items() if "laplace" in entry.heads)


def made(height=12, width=9, scale=1, outputs=12, batch=2):
    """Logits, a target with holes, and weights, some of them 0 and some NaN where there is no target."""
    random = torch.Generator().manual_seed(height * width)
    logits = torch.randn(batch, outputs, height, width, generator=random, dtype=torch.float64)
    shape = (batch, 1, height * scale, width * scale)
    target = 0.3 + 22 * torch.rand(shape, generator=random, dtype=torch.float64)
    weights = torch.rand(shape, generator=random, dtype=torch.float64)
    weights[:, :, ::4, ::3] = 0
    target[:, :, 3:5, 2:6] = math.nan
    weights[:, :, 3:5, 2:6] = math.nan
    return logits, target, weights


def floats(terms):
    return {name: float(value.detach()) for name, value in terms.items()}


def weighted(loss, logits, target, weights):
    return loss.means(loss.pixels(logits, target), target, weights)


@pytest.mark.parametrize(("skip_rows", "scale"), [(0, 1), (3, 2)])
@pytest.mark.parametrize("name", OF_MAPS)
def test_every_part_is_its_formula_with_weights(name, skip_rows, scale):
    logits, target, weights = made(scale=scale)
    found = weighted(build_loss(name, EDGES, **SETTINGS, skip_rows=skip_rows), logits, target, weights)
    arrays = (logits.numpy(), target.numpy(), EDGES.numpy())
    expected = loss_formulas.loss_terms(name, *arrays, **SETTINGS, skip_rows=skip_rows, weights=weights.numpy())
    assert floats(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
def test_the_likelihood_of_two_outputs_is_weighted(family):
    logits, target, weights = made(outputs=2)
    found = weighted(build_loss("nll+ssim", EDGES, head=family, skip_rows=2), logits, target, weights)
    location = math.log(2.0) + math.log(10) * logits[:, :1, 2:]
    scale = (logits[:, 1:, 2:] - 1).clamp(-6, 1).exp()
    valid = target[:, :, 2:] > 0
    clamped = torch.where(valid, target[:, :, 2:], 1.0).clamp(0.5, 20)
    kind = {"gaussian": torch.distributions.Normal, "laplace": torch.distributions.Laplace}[family]
    nll = -kind(location, scale).log_prob(clamped.log())[valid]
    depth_m = location.exp().clamp(0.5, 20)
    dissimilar = 1 - ssim_map(depth_m, torch.where(valid, clamped, depth_m))[valid]
    w = weights[:, :, 2:][valid] / weights[:, :, 2:][valid].sum()
    assert float(found["nll_nats"]) == pytest.approx(float((w * nll).sum()))
    assert float(found["ssim_loss"]) == pytest.approx(float((w * dissimilar).sum()))


CASES = [*((name, "dpm") for name in OF_MAPS), *((name, "laplace") for name in OF_TWO_OUTPUTS)]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_equal_weights_change_no_loss(name, head):
    logits, target, _ = made(outputs=12 if head == "dpm" else 2)
    loss = build_loss(name, EDGES, head=head)
    plain = loss.terms(logits, target)
    for weight in (1.0, 0.2):
        found = weighted(loss, logits, target, torch.full_like(target, weight))
        assert floats(found) == pytest.approx(floats(plain), rel=1e-12)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_gradients_with_weights_are_those_of_finite_differences(name, head):
    logits, target, weights = made(4, 3, outputs=12 if head == "dpm" else 2, batch=1)
    target, weights = target.nan_to_num(7.0), weights.nan_to_num(0.5)  # in SSIM an invalid target is the student's
    loss = build_loss(name, EDGES, head=head, sigma_m=0.8)
    call = lambda x: weighted(loss, x, target, weights)["loss"]  # noqa: E731
    assert torch.autograd.gradcheck(call, [logits.requires_grad_()], atol=1e-6)


@pytest.mark.parametrize(("name", "head"), CASES)
@pytest.mark.parametrize("nothing", ["weights", "targets"])
def test_without_a_pixel_that_counts_the_loss_is_zero_and_so_is_its_gradient(name, head, nothing):
    logits, target, weights = made(outputs=12 if head == "dpm" else 2)
    logits = logits.float().requires_grad_()
    if nothing == "weights":
        weights = torch.zeros_like(weights)
    else:
        target = torch.full_like(target, math.nan)
    loss = weighted(build_loss(name, EDGES, head=head), logits, target, weights)["loss"]
    loss.backward()
    assert loss == 0
    assert bool((logits.grad == 0).all())


@pytest.mark.parametrize("name", ["dpm", "mse", "si", "ssi", "ssi+grad", "nll"])
def test_a_pixel_of_weight_0_is_as_if_it_had_no_target(name):
    logits, target, _ = made()
    weights = (torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) > 0.3).double()
    loss = build_loss(name, EDGES)
    left_out = loss.terms(logits, target.masked_fill(weights == 0, math.nan))
    assert floats(weighted(loss, logits, target, weights)) == pytest.approx(floats(left_out), rel=1e-9)


def test_one_pixel_that_counts_has_no_variance():
    logits, target, _ = made()
    weights = torch.zeros_like(target)
    weights[0, 0, 1, 1] = 0.3
    loss = build_loss("si", EDGES)
    depth_m = float(loss.pixels(logits, target).depth_m[0, 0, 1, 1])
    g = math.log(depth_m + 1e-3) - math.log(float(target[0, 0, 1, 1]) + 1e-3)
    assert float(weighted(loss, logits, target, weights)["si"]) == pytest.approx(math.sqrt(0.15) * abs(g))


@pytest.mark.parametrize("name", ["tiekd", "dpm", "ssim+si", "ssi+grad"])
def test_weights_apply_to_a_head_computed_in_the_loss(name):
    _, target, weights = made(scale=2)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 12, 9, generator=random, dtype=torch.float64)
    head = [torch.randn(12, 5, generator=random, dtype=torch.float64), torch.randn(12, generator=random).double()]
    logits = torch.einsum("kc,bchw->bkhw", head[0], features) + head[1].view(1, -1, 1, 1)
    loss = build_loss(name, EDGES)
    gradients = []
    for whole in (True, False):
        leaf = features.clone().requires_grad_()
        lazy = LazyLogits(leaf, *head)
        given = torch.einsum("kc,bchw->bkhw", head[0], leaf) + head[1].view(1, -1, 1, 1) if whole else lazy
        terms = weighted(loss, given, target, weights)
        expected = weighted(loss, logits, target, weights)
        assert floats(terms) == pytest.approx(floats(expected), rel=1e-9)
        terms["loss"].backward()
        gradients.append(leaf.grad)
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12)
