"""A head computed inside the loss gives the depth, loss and gradients of the ordinary one, without whole logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from triton_cases import stored_maps

from pipeline.depth.bins import parse_bins
from pipeline.losses import blocks
from pipeline.losses.base import LazyLogits
from pipeline.losses.registry import LOSSES, build_loss
from pipeline.losses.tiekd import TieKdLoss

EDGES_M = parse_bins("log:24:1:80").edges()
SIZE = (9, 14)


def inputs(dtype=torch.float32, memory_format=torch.contiguous_format):
    """Return features (2, 6, h, w), a head, and depth (2, 1, 2h, 2w) with invalid pixels."""
    torch.manual_seed(0)
    features = torch.randn(2, 6, *SIZE, dtype=dtype).contiguous(memory_format=memory_format)
    head = nn.Conv2d(6, 24, 1, dtype=dtype)
    depth_m = 2 + 70 * torch.rand(2, 1, 18, 28, dtype=dtype)
    depth_m[0, 0, :3, :5] = math.nan
    return features, head, depth_m


def both(loss, features, head, depth_m, maps=None):
    """Return terms and gradients of features, weight and bias: with whole logits, and with lazy ones."""
    results = []
    for lazy in (False, True):
        given = features.clone().requires_grad_()
        head.zero_grad()
        logits = LazyLogits.of(head, given) if lazy else head(given)
        terms = loss.terms(logits, depth_m, maps)
        terms["loss"].backward()
        results.append((terms, [given.grad, head.weight.grad.clone(), head.bias.grad.clone()]))
    return results


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["tiekd", "dpm", "ssim", "si", "ssim+si"])
@pytest.mark.parametrize("block", [2**17, 24 * 16])
def test_it_has_the_loss_and_gradients_of_whole_logits(monkeypatch, name, block, memory_format):
    monkeypatch.setattr(blocks, "BLOCK_VALUES", block)
    loss = build_loss(name, EDGES_M, sigma_m=2.0)
    (terms, gradients), (lazy_terms, lazy_gradients) = both(loss, *inputs(torch.float64, memory_format))
    for term, value in terms.items():
        torch.testing.assert_close(lazy_terms[term], value, rtol=1e-10, atol=1e-12)
    for gradient, lazy in zip(gradients, lazy_gradients, strict=True):
        torch.testing.assert_close(lazy, gradient, rtol=1e-8, atol=1e-12)


def test_stored_maps_are_learned_from_in_blocks():
    features, head, depth_m = inputs()
    maps = stored_maps(24, SIZE)
    (terms, gradients), (lazy_terms, lazy_gradients) = both(TieKdLoss(EDGES_M), features, head, depth_m, maps)
    torch.testing.assert_close(lazy_terms["kl_nats"], terms["kl_nats"], rtol=1e-5, atol=0)
    for gradient, lazy in zip(gradients, lazy_gradients, strict=True):
        torch.testing.assert_close(lazy, gradient, rtol=1e-3, atol=1e-6)


def test_half_precision_features_get_gradients_of_their_type():
    features, head, depth_m = inputs()
    given = features.bfloat16().requires_grad_()
    TieKdLoss(EDGES_M)(LazyLogits.of(head, given), depth_m).backward()
    assert (given.grad.dtype, head.weight.grad.dtype) == (torch.bfloat16, torch.float32)
    assert given.grad.isfinite().all()


def test_each_loss_says_whether_it_takes_them():
    takes = {
        name for name, entry in LOSSES.items() if "dpm" in entry.heads and build_loss(name, EDGES_M).takes_lazy_logits
    }
    assert takes >= {"tiekd", "dpm", "ssim", "mse", "si", "ssim+si", "ssim+mse"}
    assert not takes & {"tiekd-released", "nll"}
