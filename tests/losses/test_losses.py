"""How every loss treats holes, skipped rows, sizes, extremes and nonsense; test_loss_formulas.py has their values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.depth.bins import bin_edges
from pipeline.depth.dpm import expected_depth_of_logits, gaussian_dpm, released_dpm
from pipeline.losses.base import StoredMaps
from pipeline.losses.likelihood import LikelihoodLoss
from pipeline.losses.registry import ALIASES, LOSSES, build_loss
from pipeline.losses.response import ResponseLoss
from pipeline.losses.ssim import ssim_map
from pipeline.losses.tiekd import TieKdLoss
from pipeline.store.format.sparse import decode_sparse, encode_sparse, weight_table

EDGES = bin_edges(12, 0.5, 20.0, "log")
OF_MAPS = [name for name, entry in LOSSES.items() if "dpm" in entry.heads]
EVERY_LOSS = sorted([*OF_MAPS, *ALIASES])
WITHOUT_SSIM = ("dpm", "mse", "si", "nll")


def made(height=14, width=17, batch=2, seed=0, dtype=torch.float64, scale=1):
    """Logits and a smooth target that lies partly outside the bins; the target `scale` times as large."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 12, height, width, generator=generator, dtype=dtype)
    rows = torch.linspace(0.3, 24, height * scale, dtype=dtype).view(1, 1, -1, 1)
    noise = torch.rand(batch, 1, height * scale, width * scale, generator=generator, dtype=dtype)
    return logits, rows + noise


def backward(loss, logits, target, *more):
    """Value and gradient."""
    logits = logits.detach().requires_grad_()
    total = loss(logits, target, *more)
    total.backward()
    return total.item(), logits.grad


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_gradients_are_those_of_finite_differences(name):
    logits, target = made(height=4, width=3, batch=1)
    if name in WITHOUT_SSIM:  # in SSIM an invalid target follows the student, unknown to its gradient
        target[0, 0, 1, 1] = math.nan
    loss = build_loss(name, EDGES, sigma_m=0.8, skip_rows=1)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), [logits.requires_grad_()], atol=1e-6)


INVALID = torch.tensor([math.nan, 0.0, -1.0, math.inf, -math.inf, math.nan])


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_invalid_pixels_give_no_nan(name):
    logits, target = made()
    target[:, :, 4:6, 3:9] = INVALID
    value, grad = backward(build_loss(name, EDGES), logits, target)
    assert math.isfinite(value)
    assert bool(grad.isfinite().all())
    assert bool((grad != 0).any())


@pytest.mark.parametrize("name", WITHOUT_SSIM)
def test_invalid_pixels_count_nowhere(name):
    logits, target = made()
    target[:, :, 4:6, 3:9] = INVALID
    value, grad = backward(build_loss(name, EDGES), logits, target)
    assert grad[:, :, 4:6, 3:9].abs().sum() == 0
    kept = torch.ones(2, 14, 17, dtype=torch.bool)
    kept[:, 4:6, 3:9] = False
    flat = [x.movedim(1, 0)[:, kept].reshape(1, -1, 1, int(kept.sum())) for x in (logits, target)]
    assert build_loss(name, EDGES)(*flat).item() == pytest.approx(value, rel=1e-9)


def test_ssim_sees_no_error_where_the_target_is_invalid_and_counts_valid_pixels_only():
    logits, target = made()
    depth = ResponseLoss(EDGES).depths(expected_depth_of_logits(logits, EDGES), target)[0]
    target = depth.clone()
    target[:, :, 4:6] = math.nan
    assert float(ResponseLoss(EDGES, "ssim")(logits, target)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_without_a_valid_pixel_the_loss_is_zero_and_so_is_its_gradient(name):
    logits, target = made()
    value, grad = backward(build_loss(name, EDGES), logits, torch.full_like(target, math.nan))
    assert value == 0
    assert grad.abs().sum() == 0


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_extreme_float32_logits_and_depths_give_finite_gradients(name):
    logits, target = made(dtype=torch.float32)
    target[:, :, 0], target[:, :, 1] = 1e-30, 1e30
    value, grad = backward(build_loss(name, EDGES), logits * 1e4, target)
    assert math.isfinite(value)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", ["si", "mse", "ssim+si"])
def test_a_perfect_student_has_a_loss_of_zero_and_a_finite_gradient(name):
    logits, target = made()
    target = ResponseLoss(EDGES).depths(expected_depth_of_logits(logits, EDGES), target)[0]
    value, grad = backward(build_loss(name, EDGES), logits, target)
    assert value == pytest.approx(0, abs=1e-7)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_skipped_rows_are_as_if_cropped(name):
    logits, target = made()
    whole = build_loss(name, EDGES, skip_rows=5)(logits, target)
    cropped = build_loss(name, EDGES)(logits[:, :, 5:], target[:, :, 5:])
    assert float(whole) == pytest.approx(float(cropped), rel=1e-9)


def test_at_half_resolution_a_logit_row_is_skipped_if_its_center_is():
    loss = TieKdLoss(EDGES, skip_rows=5)
    nearest = F.interpolate(torch.arange(14.0).view(1, 1, 14, 1), (7, 1), mode="nearest-exact").flatten()
    assert loss._skipped_rows(7, 14) == int((nearest < 5).sum())
    logits, target = made(height=7, width=9, scale=2)
    target[:, :, :5] = math.nan  # skipped anyhow
    whole = TieKdLoss(EDGES, weight=1.0)(logits, target)
    assert float(TieKdLoss(EDGES, weight=1.0, skip_rows=5)(logits, target)) == pytest.approx(float(whole))


def test_half_resolution_logits_are_upsampled_for_depth_and_the_target_sampled_for_the_map():
    logits, target = made(height=7, width=9, scale=2)
    terms = TieKdLoss(EDGES, sigma_m=0.8).terms(logits, target)
    depth = F.interpolate(expected_depth_of_logits(logits, EDGES), (14, 18), mode="bilinear")
    clamped = target.clamp(0.5, 20)
    assert float(terms["ssim_loss"]) == pytest.approx(float(1 - ssim_map(depth, clamped).mean()), rel=1e-9)
    sampled = target[:, :, 1::2, 1::2]  # nearest-exact picks one of the four, never a mean
    kl = TieKdLoss(EDGES, sigma_m=0.8, weight=1.0)(logits, sampled) / 10
    assert float(terms["kl_nats"]) == pytest.approx(float(kl), rel=1e-9)


@pytest.mark.parametrize("kind", ["gaussian", "released"])
def test_a_given_map_replaces_the_one_made_from_depth(kind):
    logits, target = made()
    make = released_dpm if kind == "released" else gaussian_dpm
    loss = TieKdLoss(EDGES, kind=kind)
    same = loss(logits, target, make(target, EDGES, 0.5))
    assert float(same) == pytest.approx(float(loss(logits, target)), rel=1e-12)
    other = loss.terms(logits, target, make(target + 3, EDGES, 0.5))
    mine = loss.terms(logits, target)
    assert float(other["ssim_loss"]) == float(mine["ssim_loss"])
    assert abs(float(other["kl_nats"]) - float(mine["kl_nats"])) > 0.01


def test_a_given_map_may_be_of_the_targets_size_and_may_have_holes():
    logits, target = made(height=7, width=9, scale=2)
    dpm = gaussian_dpm(target, EDGES, 0.5)
    loss = TieKdLoss(EDGES, weight=1.0)
    assert float(loss(logits, target, dpm)) == pytest.approx(float(loss(logits, target)), rel=1e-12)
    target[:, :, :4] = math.nan
    expected = float(loss(logits, target))
    dpm[:, :, :2], dpm[:, :, 2:4] = math.nan, 0
    found, grad = backward(loss, logits, made(height=7, width=9, scale=2)[1], dpm)
    assert found == pytest.approx(expected, rel=1e-12)
    assert bool(grad.isfinite().all())


def test_a_student_that_equals_its_teacher_has_no_kl():
    _, target = made()
    teacher = gaussian_dpm(target, EDGES, 2.0)
    assert float(TieKdLoss(EDGES, sigma_m=2.0, weight=1.0)(teacher.log(), target)) == pytest.approx(0, abs=1e-12)


def test_half_precision_logits_are_widened_before_anything_is_computed():
    logits, target = made(dtype=torch.float32)
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TieKdLoss(EDGES)(half, target)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(TieKdLoss(EDGES)(half.float(), target)), rel=1e-6)


def test_the_order_of_memory_does_not_change_the_loss():
    logits, target = made()
    last = logits.to(memory_format=torch.channels_last)
    assert float(TieKdLoss(EDGES)(last, target)) == pytest.approx(float(TieKdLoss(EDGES)(logits, target)))


@pytest.mark.parametrize("name", ["tiekd", "dpm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [torch.uint8, torch.uint16])  # of up to 255 bins, and of more
def test_stored_maps_teach_what_they_are_when_spread_over_all_bins(name, dtype, steps):
    logits, depth_m = made(dtype=dtype)
    maps = gaussian_dpm(depth_m.float(), EDGES, 1.5)
    maps[1, :, 3:9] = math.nan  # pixels without a map
    encoded = [encode_sparse(one.numpy(), 0.01, 8)[0] for one in maps]
    deepest = max(len(one.gap) for one in encoded)
    planes = [
        torch.stack([F.pad(torch.from_numpy(one[part]), (0, 0, 0, 0, 0, deepest - len(one[part]))) for one in encoded])
        for part in (0, 1)
    ]
    tail = torch.stack([torch.from_numpy(one.tail) for one in encoded])
    stored = StoredMaps(planes[0].to(steps), planes[1], tail, 12, torch.from_numpy(weight_table(8)))
    dense = torch.stack([torch.from_numpy(decode_sparse(one, 12, 8)) for one in encoded])
    assert dense[1, 0, 3:9].isnan().all()
    found = []
    for given in (stored, dense):
        leaf = logits.clone().requires_grad_()
        value = build_loss(name, EDGES)(leaf, depth_m, given)
        value.backward()
        found.append((value.detach(), leaf.grad))
    assert torch.allclose(*(value for value, _ in found), rtol=1e-6)
    assert torch.allclose(*(gradient for _, gradient in found), rtol=1e-4, atol=1e-9)


def test_every_name_and_alias_builds_and_an_unknown_one_is_refused_with_the_list():
    logits, target = made()
    for alias, name in ALIASES.items():
        assert float(build_loss(alias, EDGES)(logits, target)) == float(build_loss(name, EDGES)(logits, target))
    assert len({round(float(build_loss(name, EDGES)(logits, target)), 6) for name in OF_MAPS}) == len(OF_MAPS)
    with pytest.raises(ValueError, match="tiekd, tiekd-released, dpm, ssim"):
        build_loss("tykd", EDGES)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"weight": 1.5}, "between 0 and 1"),
        ({"sigma_m": 0.0}, "positive and finite"),
        ({"kind": "exact"}, "gaussian or released"),
        ({"skip_rows": -1}, "at least 0"),
        ({"bin_edges_m": [1.0, 3.0, 2.0]}, "ascending"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, why):
    with pytest.raises(ValueError, match=why):
        TieKdLoss(**{"bin_edges_m": EDGES, **change})


@pytest.mark.parametrize(
    ("logits", "depth", "dpm", "why"),
    [
        ((1, 11, 4, 4), (1, 1, 4, 4), None, "expected (B, 12, h, w)"),
        ((2, 12, 4, 4), (1, 1, 4, 4), None, "expected (2, 1, H, W)"),
        ((1, 12, 4, 4), (1, 4, 4), None, "expected (1, 1, H, W)"),
        ((1, 12, 4, 4), (1, 1, 2, 4), None, "less than the 2 rows"),
        ((1, 12, 4, 4), (1, 1, 8, 8), (1, 12, 6, 6), "target DPM of shape"),
        ((1, 12, 4, 4), (1, 1, 8, 8), (1, 11, 4, 4), "target DPM of shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, depth, dpm, why):
    given = None if dpm is None else torch.ones(dpm)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the next line matches, without escapes
        TieKdLoss(EDGES, skip_rows=2)(torch.ones(logits), torch.ones(depth), given)
    assert why in str(caught.value)


def test_the_gradient_of_the_likelihood_is_the_same_each_time_though_threads_share_its_logits():
    torch.manual_seed(0)
    edges = bin_edges(8, 1.0, 40.0)
    logits, target_m = torch.randn(1, 8, 2, 2), torch.rand(1, 1, 600, 600) * 30 + 2
    loss = LikelihoodLoss(edges)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = []
        for _ in range(8):
            leaf = logits.clone().requires_grad_()
            loss(leaf, target_m).backward()
            found.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)
