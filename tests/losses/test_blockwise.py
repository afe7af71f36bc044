"""Depth and KL made block by block are those of whole tensors, in value and gradient, with no tensor of that size."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.depth.bins import parse_bins
from pipeline.depth.dpm import bin_gaussian_dpm, expected_depth, gaussian_dpm
from pipeline.losses import blocks
from pipeline.losses.blockwise import fused
from pipeline.losses.likelihood import LikelihoodLoss
from pipeline.losses.registry import build_loss
from pipeline.losses.targets import GaussianTarget, GivenTarget

WIDTHS = {"narrower than a bin": 0.05, "usual": 0.5, "wider than the range": 300.0}
ALL_BINS = ("kitti", "nyu", "log:64:1:100", "inverse:40:0.3:60")
CASES = [*((bins, False) for bins in ALL_BINS), ("nyu", True), ("log:64:1:100", True)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 16 pixels, of which the last one of each image is not full."""
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 1)


def made(bins, dtype=torch.float64, size=(7, 9)):
    """Edges, logits (2, K, h, w) and depth with holes, and far beyond both ends of the bins."""
    edges_m = parse_bins(bins).edges()
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, len(edges_m) - 1, *size, generator=random, dtype=dtype)
    depth_m = torch.rand(2, 1, *size, generator=random, dtype=dtype) * (float(edges_m[-1]) + 10) - 5
    depth_m[:, :, 3, 4:8] = torch.tensor([math.nan, 1e30, -1e30, math.inf], dtype=dtype)
    return edges_m, logits, depth_m


def whole(logits, edges_m, maps):
    """Depth and KL by whole tensors."""
    log_student = logits.log_softmax(1)
    kl_nats = (torch.xlogy(maps, maps) - maps * log_student).sum(1, keepdim=True)
    return expected_depth(log_student.exp(), edges_m), kl_nats


def gradient(logits, make):
    """Of a random sum of the depth and KL that `make` gives of logits."""
    logits = logits.detach().requires_grad_()
    random = torch.Generator().manual_seed(1)
    parts = make(logits)
    weights = [torch.randn(part.shape, generator=random, dtype=part.dtype) for part in parts]
    torch.stack([(part * weight).sum() for part, weight in zip(parts, weights, strict=True)]).sum().backward()
    return logits.grad


@pytest.mark.parametrize("in_bins", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("bins", "centered"), CASES)
def test_depth_kl_and_their_gradient_are_those_of_whole_maps(bins, width, in_bins, centered):
    edges_m, logits, depth_m = made(bins)
    make = bin_gaussian_dpm if in_bins else gaussian_dpm
    maps = make(depth_m, edges_m, WIDTHS[width], centered=centered)
    target = GaussianTarget(depth_m, edges_m, WIDTHS[width], in_bins=in_bins, centered=centered)
    for one in (target, GivenTarget(maps, logits.shape[2:], logits.dtype)):
        found = fused(logits, edges_m, one)
        expected_m, kl_nats = whole(logits, edges_m, maps)
        torch.testing.assert_close(found.depth_m, expected_m, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.kl_nats, kl_nats, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.mass, maps.sum(1, keepdim=True), rtol=1e-12, atol=0)
        given = gradient(logits, lambda x, one=one: fused(x, edges_m, one)[:2])
        wanted = gradient(logits, lambda x: whole(x, edges_m, maps))
        torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bins", ALL_BINS)
def test_in_float32_they_are_as_exact_as_whole_tensors(bins):
    edges_m, logits, depth_m = made(bins)
    exact = whole(logits, edges_m, gaussian_dpm(depth_m, edges_m, 0.5))
    single, depth_single_m = logits.float(), depth_m.float()
    plain = whole(single, edges_m, gaussian_dpm(depth_single_m, edges_m, 0.5))
    target = GaussianTarget(depth_single_m, edges_m, 0.5, in_bins=False, centered=False)
    found = fused(single, edges_m, target)
    for ours, theirs, right in zip(found, plain, exact, strict=False):
        off, their_off = ((one.double() - right).abs().max() for one in (ours, theirs))
        assert off < 2 * their_off + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", ALL_BINS)
def test_a_window_leaves_out_nothing_that_its_type_can_tell_from_zero(bins, dtype):
    edges_m, _, depth_m = made(bins, dtype)
    for sigma_m in (0.05, 0.5):
        target = GaussianTarget(depth_m, edges_m, sigma_m, in_bins=False, centered=False)
        maps, places = target.block(1, 0, depth_m[1].numel())
        if places is not None:
            spread = torch.zeros(len(edges_m) - 1, maps.shape[1], dtype=dtype)
            maps = spread.scatter_(0, places, maps)
        whole_maps = gaussian_dpm(depth_m[1:], edges_m, sigma_m).flatten(2)[0]
        torch.testing.assert_close(maps, whole_maps, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_of_the_papers_bins_a_tenth_is_looked_at():
    edges_m, _, depth_m = made("kitti", torch.float32)
    maps, places = GaussianTarget(depth_m, edges_m, 0.5, in_bins=False, centered=False).block(0, 0, 30)
    assert maps.shape == places.shape
    assert maps.shape[0] < 26


class Allocations(TorchDispatchMode):
    """How many tensors of at least `size` numbers come to be."""

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, torch.Tensor) and one.untyped_storage().nbytes() >= self.size * one.element_size():
                self.seen.add(one.untyped_storage()._cdata)
        return result


@pytest.mark.parametrize("name", ["tiekd", "dpm", "ssim+si", "mse"])
def test_the_gradient_is_the_only_tensor_that_is_as_large_as_the_logits(name):
    edges_m, logits, depth_m = made("kitti", torch.float32, size=(16, 40))
    logits.requires_grad_()
    with Allocations(logits.numel() // 4) as allocations:
        build_loss(name, edges_m)(logits, depth_m).backward()
    new = allocations.seen - {logits.untyped_storage()._cdata}
    assert new == {logits.grad.untyped_storage()._cdata}


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_gradient_has_the_type_and_the_order_of_memory_of_the_logits(dtype, order):
    edges_m, logits, depth_m = made("nyu", torch.float32)
    depth_m = depth_m.clamp(0, 12)
    logits = logits.to(dtype).contiguous(memory_format=order).requires_grad_()
    build_loss("tiekd", edges_m)(logits, depth_m).backward()
    plain = logits.detach().float().contiguous().requires_grad_()
    build_loss("tiekd", edges_m)(plain, depth_m).backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.is_contiguous(memory_format=order)
    torch.testing.assert_close(
        logits.grad, plain.grad.to(dtype), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6
    )


def test_logits_may_be_part_of_a_larger_tensor():
    edges_m, logits, depth_m = made("nyu")
    target = GaussianTarget(depth_m[..., 2:-2, 3:-1].contiguous(), edges_m, 0.3, in_bins=False, centered=False)
    part = logits[..., 2:-2, 3:-1]
    for one, other in zip(fused(part, edges_m, target), fused(part.contiguous(), edges_m, target), strict=True):
        assert torch.equal(one, other)
    found = gradient(logits, lambda x: fused(x[..., 2:-2, 3:-1], edges_m, target)[:2])
    assert torch.equal(found[..., 2:-2, 3:-1], gradient(part, lambda x: fused(x, edges_m, target)[:2]))
    assert not found[..., :2, :].any()


@pytest.mark.parametrize("name", ["tiekd", "ssim+si"])
def test_the_same_logits_give_the_same_bits_each_time(name):
    edges_m, logits, depth_m = made("kitti", torch.float32, size=(24, 40))
    loss = build_loss(name, edges_m)
    found = [gradient(logits, lambda x: [loss(x, depth_m)]) for _ in range(3)]
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("bins", ["kitti", "nyu"])
def test_the_size_of_a_block_does_not_show(bins, monkeypatch):
    edges_m, logits, depth_m = made(bins, size=(16, 40))
    target = GaussianTarget(depth_m, edges_m, 0.5, in_bins=False, centered=False)
    in_blocks = gradient(logits, lambda x: fused(x, edges_m, target)[:2])
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 2**24)
    at_once = gradient(logits, lambda x: fused(x, edges_m, target)[:2])
    torch.testing.assert_close(in_blocks, at_once, rtol=1e-12, atol=1e-13)


def test_a_bin_that_a_student_rules_out_has_no_depth_and_no_gradient():
    edges_m, logits, _ = made("nyu")
    logits[:, 5] = -math.inf
    found_m = fused(logits, edges_m).depth_m
    others = [index for index in range(49) if index != 5]
    centers_m = ((edges_m[:-1] + edges_m[1:]) / 2)[others].view(1, -1, 1, 1)
    torch.testing.assert_close(found_m, (logits[:, others].softmax(1) * centers_m).sum(1, keepdim=True))
    assert not gradient(logits, lambda x: [fused(x, edges_m).depth_m])[:, 5].any()


def test_the_way_back_may_be_gone_twice_but_not_differentiated():
    edges_m, logits, depth_m = made("nyu", torch.float32)
    logits.requires_grad_()
    total = build_loss("tiekd", edges_m)(logits, depth_m)
    (first,) = torch.autograd.grad(total, logits, retain_graph=True)
    (second,) = torch.autograd.grad(total, logits, create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(second.sum(), logits)


def test_a_teacher_trained_on_truth_widens_its_logits():
    edges_m, logits, depth_m = made("nyu", torch.float32)
    half = logits.bfloat16()
    found = LikelihoodLoss(edges_m)(half, depth_m)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(LikelihoodLoss(edges_m)(half.float(), depth_m)), rel=1e-6)
