"""Losses of students with two outputs."""

import math

import pytest
import torch

from pipeline.depth.bins import bin_edges
from pipeline.losses.registry import build_loss
from pipeline.losses.ssim import ssim_map
from pipeline.losses.two_outputs import TwoOutputLoss

EDGES = bin_edges(16, 1.0, 100.0, "log")


def made(size=(6, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs = 0.3 * torch.randn(2, 2, *size, generator=generator, dtype=torch.float64)
    target = 5 + 20 * torch.rand(2, 1, *size, generator=generator, dtype=torch.float64)
    target[0, 0, 1, 2] = math.nan
    target[1, 0, 0, 0] = 0.0
    return outputs, target


def nll_of(family, outputs, target):
    """The likelihood of each pixel, written with torch's own distributions."""
    location = math.log(10.0) + math.log(10) * outputs[:, :1]
    scale = (outputs[:, 1:] - 1).exp()
    kind = {"gaussian": torch.distributions.Normal, "laplace": torch.distributions.Laplace}[family]
    return -kind(location, scale).log_prob(target.log())


@pytest.mark.parametrize("family", ["gaussian", "laplace"])
def test_the_likelihood_is_that_of_the_distribution_over_valid_pixels(family):
    outputs, target = made()
    valid = target > 0
    expected = nll_of(family, outputs, torch.where(valid, target, 1.0))[valid].mean()
    terms = build_loss("nll", EDGES, head=family).terms(outputs, target)
    assert float(terms["nll_nats"]) == pytest.approx(float(expected))
    assert float(terms["loss"]) == float(terms["nll_nats"])


def test_with_ssim_it_is_weighted_as_in_tiekd():
    outputs, target = made()
    terms = build_loss("nll+ssim", EDGES, head="gaussian", weight=0.3).terms(outputs, target)
    depth_m = (math.log(10.0) + math.log(10) * outputs[:, :1]).exp().clamp(1, 100)
    valid = target > 0
    ssim = 1 - ssim_map(depth_m, torch.where(valid, target, depth_m))[valid].mean()
    assert float(terms["ssim_loss"]) == pytest.approx(float(ssim))
    assert float(terms["loss"]) == pytest.approx(10 * (0.3 * float(terms["nll_nats"]) + 0.7 * float(ssim)))


@pytest.mark.parametrize("name", ["nll", "nll+ssim"])
def test_gradients_are_those_of_finite_differences(name):
    outputs, target = made((3, 4))
    loss = build_loss(name, EDGES, head="laplace")
    target = target.nan_to_num(7.0).clamp_min(2.0)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), outputs.requires_grad_(), atol=1e-4)


def test_outputs_are_upsampled_to_the_target_and_top_rows_are_left_out():
    outputs, _ = made((4, 6))
    target = 5 + 20 * torch.rand(2, 1, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = build_loss("nll", EDGES, head="gaussian", skip_rows=3)
    big = torch.nn.functional.interpolate(outputs, (8, 12), mode="bilinear")
    expected = nll_of("gaussian", big[:, :, 3:], target[:, :, 3:]).mean()
    assert float(loss(outputs, target)) == pytest.approx(float(expected))
    changed = target.clone()
    changed[:, :, :3] = 50
    assert float(loss(outputs, changed)) == float(loss(outputs, target))


def test_without_a_valid_pixel_the_loss_is_zero_and_differentiable():
    outputs = torch.zeros(1, 2, 4, 4, requires_grad=True)
    build_loss("nll", EDGES, head="gaussian")(outputs, torch.full((1, 1, 4, 4), math.nan)).backward()
    assert float(outputs.grad.abs().sum()) == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"expected \(B, 2, h, w\)"):
        build_loss("nll", EDGES, head="gaussian")(torch.zeros(1, 16, 4, 4), torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="`loss=ssim\\+si` does not fit `head=gaussian`"):
        build_loss("ssim+si", EDGES, head="gaussian")
    with pytest.raises(ValueError, match="gaussian, laplace"):
        build_loss("nll+ssim", EDGES)
    with pytest.raises(ValueError, match="0 to 1"):
        TwoOutputLoss(EDGES, weight=2.0)
