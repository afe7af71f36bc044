"""Terms added to a loss: their values and gradients are those of the formulas, in NumPy and float64."""

from __future__ import annotations

import math

import loss_formulas
import numpy as np
import pytest
import texture_formulas
import torch

import pipeline as tiekd
from pipeline.depth.bins import bin_edges
from pipeline.losses.base import LazyLogits
from pipeline.losses.objective import Objective, StepInputs
from pipeline.losses.registry import LOSSES, TERMS, build_loss, build_terms, parse_terms
from pipeline.losses.terms.texture import illumination, retinex_jitter

EDGES = bin_edges(12, 0.5, 20.0, "log")
OF_MAPS = sorted(name for name, entry in LOSSES.items() if "dpm" in entry.heads)
EVERY_TERM = ("gradient", "trim=0.3", "confidence=2", "sky=far", "texture")


def made(height=20, width=17, scale=1, batch=2):
    """Logits, a target with holes, and both signals."""
    random = torch.Generator().manual_seed(height * width)
    logits = torch.randn(batch, 12, height, width, generator=random, dtype=torch.float64)
    shape = (batch, 1, height * scale, width * scale)
    target = 0.3 + 22 * torch.rand(shape, generator=random, dtype=torch.float64)
    target[:, :, 3:5, 2:6] = math.nan
    target[0, 0, ::3, ::2] = math.nan
    confidence, sky = torch.rand(2, *shape, generator=random, dtype=torch.float64)
    return logits, target, {"confidence": confidence, "sky": sky}


def inputs(logits, target, signals, network=None):
    """A step on random images, of which `network` gives the logits."""
    images = torch.rand(len(target), 3, *target.shape[2:], generator=torch.Generator().manual_seed(0)).double()
    return StepInputs(logits, target, None, signals, lambda: images, network or (lambda _: logits))


def objective(add, loss="tiekd", **settings):
    base = build_loss(loss, EDGES, **settings)
    return Objective(base, build_terms(parse_terms(add, loss), base))


def floats(terms):
    return {name: float(value.detach()) for name, value in terms.items()}


def student_m(logits, size):
    return loss_formulas.student_depth_m(logits.numpy(), EDGES.numpy(), size)


# gradient


@pytest.mark.parametrize("skip_rows", [0, 4])
@pytest.mark.parametrize("scale", [1, 2])
def test_gradient_is_its_formula(skip_rows, scale):
    logits, target, signals = made(scale=scale)
    found = objective(["gradient=0.7"], "mse", skip_rows=skip_rows).terms(inputs(logits, target, signals))
    depth_m = student_m(logits, target.shape[2:])[:, skip_rows:]
    target_m = target.numpy()[:, 0, skip_rows:]
    valid = loss_formulas.is_valid(target_m)
    ratio = np.where(valid, np.log(depth_m) - np.log(np.clip(np.where(valid, target_m, 1), 0.5, 20)), 0)
    assert float(found["gradient"]) == pytest.approx(loss_formulas.multiscale_slopes(ratio, valid), rel=1e-9)
    assert float(found["loss"]) == pytest.approx(float(found["mse_m2"] + 0.7 * found["gradient"]), rel=1e-12)


# trim


def kept_by(logits, target, fraction, weights=None):
    """The target without the worst pixels of each image, found one by one."""
    depth_m, trimmed = student_m(logits, target.shape[2:]), target.clone()
    for image, depth in enumerate(depth_m):
        clamped = np.clip(target[image, 0].numpy(), 0.5, 20)
        errors = {
            at: abs(math.log(depth[at]) - math.log(clamped[at]))
            for at in np.ndindex(depth.shape)
            if loss_formulas.is_valid(target[image, 0].numpy()[at]) and (weights is None or weights[image, 0][at] > 0)
        }
        worst = sorted(errors, key=lambda at: -errors[at])[: math.floor(fraction * len(errors) + 1e-9)]
        for at in worst:
            trimmed[image, 0][at] = math.nan
    return trimmed


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.29, 0.9])
@pytest.mark.parametrize("loss", ["tiekd", "ssim+si", "mse", "nll"])
def test_trim_is_the_loss_without_the_worst_pixels_of_each_image(loss, fraction):
    logits, target, signals = made()
    found = objective([f"trim={fraction}"], loss).terms(inputs(logits, target, signals))
    base = build_loss(loss, EDGES)
    # The student is compared with the trimmed target, as if these pixels had never had one
    assert floats(found) == pytest.approx(floats(base.terms(logits, kept_by(logits, target, fraction))), rel=1e-9)


def test_trim_has_no_gradient_at_the_pixels_left_out():
    logits, target, signals = made()
    logits.requires_grad_()
    objective(["trim=0.3"], "mse").terms(inputs(logits, target, signals))["loss"].backward()
    left_out = kept_by(logits.detach(), target, 0.3).isnan()
    assert torch.equal(logits.grad.abs().sum(1, keepdim=True) == 0, left_out)


def test_trim_of_a_loss_without_scale_ranks_what_that_loss_compares():
    logits, target, signals = made()
    base = build_loss("ssi", EDGES)
    found = objective(["trim=0.2"], "ssi").terms(inputs(logits, target, signals))
    errors = base._difference(*base.depths(base.pixels(logits, target).depth_m, target), None).abs()
    trimmed = target.clone()
    for image, depth in enumerate(target):
        valid = depth > 0
        count = int(valid.sum()) // 5
        worst = errors[image].masked_fill(~valid, -1).flatten().topk(count).indices
        trimmed[image].view(-1)[worst] = math.nan
    assert floats(found) == pytest.approx(floats(base.terms(logits, trimmed)), rel=1e-9)


def test_trim_counts_neither_ignored_rows_nor_pixels_without_weight():
    logits, target, signals = made()
    signals["confidence"][:, :, :, ::2] = 0
    found = objective(["confidence", "trim=0.3"], "mse").terms(inputs(logits, target, signals))
    trimmed = kept_by(logits, target, 0.3, signals["confidence"])
    base = build_loss("mse", EDGES)
    expected = base.means(base.pixels(logits, trimmed), trimmed, signals["confidence"])
    assert floats(found) == pytest.approx(floats(expected), rel=1e-9)
    skipped = objective(["trim=0.3"], "mse", skip_rows=5).terms(inputs(logits, target, signals))
    cropped = objective(["trim=0.3"], "mse").terms(inputs(logits[:, :, 5:], target[:, :, 5:], signals))
    assert floats(skipped) == pytest.approx(floats(cropped), rel=1e-9)


def test_trim_does_not_apply_to_other_terms():
    logits, target, signals = made()
    alone = objective(["gradient"]).terms(inputs(logits, target, signals))
    both = objective(["trim=0.5", "gradient"]).terms(inputs(logits, target, signals))
    assert float(both["gradient"]) == float(alone["gradient"])
    assert float(both["kl_nats"]) < float(alone["kl_nats"])


# confidence and sky


@pytest.mark.parametrize("loss", OF_MAPS)
@pytest.mark.parametrize("exponent", [1, 2])
def test_confidence_weighs_every_mean_of_the_loss(loss, exponent):
    logits, target, signals = made(scale=2)
    add = ["confidence"] if exponent == 1 else ["confidence=2"]
    found = objective(add, loss).terms(inputs(logits, target, signals))
    arrays, weights = (logits.numpy(), target.numpy(), EDGES.numpy()), signals["confidence"].numpy() ** exponent
    settings = {"sigma_m": 0.5, "weight": 0.1}
    expected = loss_formulas.loss_terms(loss, *arrays, **settings, weights=weights)
    assert floats(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", OF_MAPS)
@pytest.mark.parametrize(("value", "depth_m"), [("far", 20.0), ("ignore", math.nan)])
def test_sky_has_the_farthest_depth_or_none(loss, value, depth_m):
    logits, target, signals = made()
    found = objective([f"sky={value}"], loss).terms(inputs(logits, target, signals))
    changed = target.where(signals["sky"] < 0.5, depth_m)
    assert floats(found) == pytest.approx(floats(build_loss(loss, EDGES).terms(logits, changed)), rel=1e-12)


# texture


def test_texture_is_the_mean_difference_to_the_depth_of_the_jittered_image():
    logits, target, signals = made()
    others = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    seen = []
    found = objective(["texture=0.3"], "mse").terms(
        inputs(logits, target, signals, lambda images: seen.append(images) or others)
    )
    size = target.shape[2:]
    expected = np.abs(np.log(student_m(logits, size)) - np.log(student_m(others, size))).mean()
    assert float(found["texture"]) == pytest.approx(expected, rel=1e-9)
    assert float(found["loss"]) == pytest.approx(float(found["mse_m2"] + 0.3 * found["texture"]))
    assert seen[0].shape == (2, 3, *size)


def test_the_first_prediction_is_a_fixed_target_of_texture():
    logits, target, signals = made()
    others = torch.zeros_like(logits).requires_grad_()
    logits.requires_grad_()
    step = inputs(logits, torch.full_like(target, math.nan), signals, lambda _: others)
    objective(["texture"], "mse").terms(step)["loss"].backward()
    assert bool((logits.grad == 0).all())
    assert bool((others.grad != 0).any())


def test_the_illumination_is_that_of_a_guided_filter():
    images = torch.rand(2, 3, 40, 37, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = illumination(images)
    for number, image in enumerate(images.numpy()):
        assert found[number, 0].numpy() == pytest.approx(texture_formulas.illumination(image), abs=1e-12)


def test_jittered_images_are_their_formula_with_torchs_random_numbers():
    images = torch.rand(2, 3, 40, 37, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(5)
    found = retinex_jitter(images)
    torch.manual_seed(5)
    g, h, blur, noise = torch.rand(4, 2, 1, 1, 1, dtype=torch.float64).flatten(1).tolist()
    normal = torch.randn(2, 3, 40, 37, dtype=torch.float64).numpy()
    for number, image in enumerate(images.numpy()):
        values = 0.6 + g[number], 0.6 + h[number], 1.5 * blur[number], 0.05 * noise[number]
        expected = texture_formulas.jittered(image, *values, normal[number])
        assert found[number].numpy() == pytest.approx(expected, abs=1e-9)


def test_a_black_image_smaller_than_the_window_is_jittered_too():
    found = retinex_jitter(torch.zeros(1, 3, 6, 8))
    assert bool(found.isfinite().all())


# all of them


@pytest.mark.parametrize("loss", ["tiekd", "ssim+si", "nll"])
def test_gradients_of_all_terms_together_are_those_of_finite_differences(loss):
    logits, target, signals = made(5, 4, batch=1)
    target = target.nan_to_num(7.0)
    # In SSIM a pixel left out takes the student's depth as its target, unknown to its gradient
    add = [name for name in EVERY_TERM if loss == "nll" or "trim" not in name]
    combined = objective(add, loss, sigma_m=0.8)
    # The first prediction is a fixed target of `texture`, unknown to its gradient; here the second one is fixed too
    others = logits.clone()

    def loss_of(x):
        torch.manual_seed(0)
        return combined.terms(inputs(x, target, signals, lambda _: others))["loss"]

    fixed = objective([name for name in add if name != "texture"], loss, sigma_m=0.8)

    def fixed_loss_of(x):
        return fixed.terms(inputs(x, target, signals))["loss"]

    assert torch.autograd.gradcheck(fixed_loss_of, [logits.requires_grad_()], atol=1e-6)
    gradients = [torch.autograd.grad(call(logits), logits)[0] for call in (loss_of, fixed_loss_of)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("loss", OF_MAPS)
@pytest.mark.parametrize("nothing", ["target", "confidence", "all sky"])
def test_without_a_valid_pixel_loss_and_gradient_are_finite(loss, nothing):
    logits, target, signals = made()
    add = [
        name for name in ("gradient", "trim", "confidence", "sky", "texture") if name != "gradient" or "ssi" not in loss
    ]
    if nothing == "target":
        target = torch.full_like(target, math.nan)
    signals["confidence"] *= nothing != "confidence"
    signals["sky"] = signals["sky"] * 0 + (nothing == "all sky")
    logits = logits.float().requires_grad_()
    terms = objective(add, loss).terms(inputs(logits, target, signals))
    terms["loss"].backward()
    assert bool(terms["loss"].isfinite())
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("extreme", [1e-30, 1e30])
def test_extreme_logits_and_depths_give_finite_gradients(extreme):
    logits, target, signals = made()
    target[:, :, 0] = extreme
    edges = torch.linspace(0, 20, 13, dtype=torch.float64)
    base = build_loss("mse", edges)
    combined = Objective(base, build_terms(parse_terms(EVERY_TERM, "mse"), base))
    logits = (logits.float() * 1e4).requires_grad_()
    terms = combined.terms(inputs(logits, target, signals))
    terms["loss"].backward()
    assert bool(terms["loss"].isfinite())
    assert bool(logits.grad.isfinite().all())


def test_terms_work_with_a_head_computed_in_the_loss():
    _, target, signals = made(scale=2)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 20, 17, generator=random, dtype=torch.float64)
    weight, bias = torch.randn(12, 5, generator=random).double(), torch.randn(12, generator=random).double()
    found = []
    for lazy in (True, False):
        leaf = features.clone().requires_grad_()

        def logits_of(scale, leaf=leaf, lazy=lazy):
            if lazy:
                return LazyLogits(scale * leaf, weight, bias)
            return torch.einsum("kc,bchw->bkhw", weight, scale * leaf) + bias.view(1, -1, 1, 1)

        torch.manual_seed(0)
        step = inputs(logits_of(1.0), target, signals, lambda _, logits_of=logits_of: logits_of(0.5))
        terms = objective(EVERY_TERM).terms(step)
        terms["loss"].backward()
        found.append((floats(terms), leaf.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


def test_without_terms_the_objective_is_the_loss():
    logits, target, _ = made()
    found = objective([]).terms(inputs(logits, target, {}))
    expected = build_loss("tiekd", EDGES).terms(logits, target)
    assert {name: value.item() for name, value in found.items()} == {k: v.item() for k, v in expected.items()}


# the registry


def test_terms_are_listed():
    assert tiekd.list_losses(terms=True) == list(TERMS)
    assert not set(TERMS) & set(tiekd.list_losses())


def test_a_value_has_one_spelling():
    chosen = parse_terms(["gradient", "trim=.10", "confidence=2.0", "sky"], "tiekd")
    assert [str(term) for term in chosen] == ["gradient=0.5", "trim=0.1", "confidence=2", "sky=ignore"]


@pytest.mark.parametrize(
    ("add", "match"),
    [
        (["edges"], r"`add='edges'`: expected one of gradient, trim, confidence, sky, texture, or NAME=VALUE"),
        (["gradient=much"], r"`add='gradient=much'`: expected gradient=VALUE, weight, from 0 to 1000"),
        (["gradient=nan"], "expected gradient=VALUE"),
        (["gradient=-1"], "expected gradient=VALUE"),
        (["gradient="], "expected gradient=VALUE"),
        (["trim=0.95"], r"expected trim=VALUE, fraction of the valid pixels, from 0 to 0.9"),
        (["sky=near"], r"`add='sky=near'`: expected sky=far or sky=ignore"),
        (["trim", "trim=0.2"], r"`add=trim` is given 2 times"),
    ],
)
def test_a_wrong_term_is_refused(add, match):
    with pytest.raises(tiekd.PipelineError, match=match):
        parse_terms(add, "tiekd")


@pytest.mark.parametrize("loss", ["ssi", "ssi+grad"])
def test_gradient_does_not_fit_losses_without_scale(loss):
    with pytest.raises(tiekd.PipelineError, match=rf"`add=gradient` does not fit `loss={loss}`".replace("+", r"\+")):
        parse_terms(["gradient"], loss)
