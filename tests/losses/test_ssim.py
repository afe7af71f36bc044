"""SSIM of depth maps beside direct sums, beside scikit-image, and where float32 would fail."""

from __future__ import annotations

import loss_formulas
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from pipeline.losses import ssim
from pipeline.losses.registry import build_loss
from pipeline.losses.ssim import ssim_map


def made(height=14, width=17, seed=0):
    """A smooth map (2, 1, H, W) from 0.3 to 25 m, with noise."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.linspace(0.3, 24, height, dtype=torch.float64).view(1, 1, -1, 1)
    return rows + torch.rand(2, 1, height, width, generator=random, dtype=torch.float64)


def skimage_ssim(x, y):
    """(H - 10, W - 10) of two maps (H, W): 5 px inside, where no window meets the border. Windows are 11x11 too."""
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    constants = {"data_range": 1.0, "K1": 0.01, "K2": 0.03}  # C = (K data_range)^2
    _, whole = structural_similarity(x, y, full=True, **settings, **constants)
    return whole[5:-5, 5:-5]


def ours(x, y, *, released=False):
    """The same pixels of ours."""
    pair = [torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (x, y)]
    return ssim_map(*pair, released=released)[0, 0, 5:-5, 5:-5].numpy()


def street(height=60, width=90):
    """A smooth street that is flat at 80 m in its upper part, and a student's view of it."""
    down, across = np.mgrid[1 : 0 : height * 1j, 0 : 6 : width * 1j]
    depth_m = np.minimum(4 + 110 * down**2 + 2 * np.sin(across), 80)
    return depth_m, np.minimum(depth_m * (1 + 0.05 * np.sin(3 * across + 5 * down)), 79.9)


def noise(height=40, width=50):
    """Two unrelated maps of any depth from 0.1 to 80 m."""
    random = np.random.default_rng(0)
    return random.uniform(0.1, 80, (height, width)), random.uniform(0.1, 80, (height, width))


@pytest.mark.parametrize("make", [street, noise])
def test_away_from_the_border_ssim_is_that_of_scikit_image(make):
    x, y = make()
    found = ours(x, y)
    assert found == pytest.approx(skimage_ssim(x, y), rel=1e-6, abs=1e-9)
    assert found.std() > 0.01


@pytest.mark.realdata
def test_on_real_depth_ssim_is_that_of_scikit_image_away_from_the_border(real):
    frames = sorted((real / "kitti" / "teacher_png16").iterdir())[:2]
    maps = []
    for path in frames:
        with Image.open(path) as image:
            maps.append(np.asarray(image, dtype=np.float64)[110:250, 256:560] / 65535 * 80)
    assert ours(*maps) == pytest.approx(skimage_ssim(*maps), rel=1e-6, abs=1e-7)


def test_the_released_ssim_is_scikit_images_where_the_maps_rise_together_and_nowhere_else():
    for x, y in (street(), noise()):
        theirs, found = skimage_ssim(x, y), ours(x, y, released=True)
        covariance = (loss_formulas.blur(x * y) - loss_formulas.blur(x) * loss_formulas.blur(y))[5:-5, 5:-5]
        together, apart = covariance > 0, covariance < -1e-6
        assert together.any()
        assert apart.any()
        assert found[together] == pytest.approx(theirs[together], rel=1e-6)
        assert (found[apart] > theirs[apart]).all()


def test_the_loss_ssim_has_no_absolute_variances_and_covariance_unlike_the_released_one():
    # By design: for the released `ssim_loss.py` a slope the wrong way is as good as one the right way.
    edges = torch.linspace(0.5, 20, 13, dtype=torch.float64)
    logits = torch.randn(2, 12, 14, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = made().clamp(0.5, 20)
    depth = loss_formulas.student_depth_m(logits.numpy(), edges.numpy(), (14, 17))
    values = [
        1
        - np.mean(
            [loss_formulas.ssim(x, y, absolute=absolute) for x, y in zip(depth, target[:, 0].numpy(), strict=True)]
        )
        for absolute in (False, True)
    ]
    found = float(build_loss("ssim", edges)(logits, target))
    assert found == pytest.approx(values[0], rel=1e-9)
    assert abs(values[1] - values[0]) > 0.01


def test_ssim_of_a_map_with_itself_is_one_everywhere():
    x = made()
    assert torch.allclose(ssim_map(x, x), torch.ones_like(x))


@pytest.mark.parametrize("released", [False, True])
def test_ssim_is_symmetric_and_that_of_the_direct_sum(released):
    x, y = made(), made(seed=1).flip(2)
    found = ssim_map(x, y, released=released)
    assert torch.allclose(found, ssim_map(y, x, released=released))
    assert found[1, 0].numpy() == pytest.approx(
        loss_formulas.ssim(x[1, 0].numpy(), y[1, 0].numpy(), absolute=released), rel=1e-8
    )


def test_only_the_released_ssim_rewards_a_slope_the_wrong_way():
    x = torch.linspace(1, 3, 40, dtype=torch.float64).view(1, 1, 1, 40).expand(1, 1, 40, 40)
    middle = (slice(None), slice(None), 15, 20)
    assert float(ssim_map(x, x.flip(3))[middle]) < -0.5
    assert float(ssim_map(x, x.flip(3), released=True)[middle]) > 0.5


def test_ssim_of_flat_float32_maps_is_not_drowned_in_rounding():
    # E[x^2] - E[x]^2 at 80 m is wrong by about C2 in float32
    x = torch.full((1, 1, 30, 30), 79.83)
    assert float((ssim_map(x, x + 0.01)[..., 8:-8, 8:-8] - 1).abs().max()) < 1e-5


def test_a_window_cached_in_inference_mode_can_be_trained_with():
    x = torch.rand(1, 1, 23, 29)
    with torch.inference_mode():
        ssim_map(x, x)
    x.requires_grad_()
    ssim_map(x, x.detach() + 1).sum().backward()
    assert bool(x.grad.isfinite().all())


def plain_ssim(x, y, *, released):
    """SSIM of maps (B, 1, H, W) by whole convolutions, which autograd takes the slope of."""
    weights = torch.from_numpy(loss_formulas.window())[None, None]

    def means(maps):
        return torch.nn.functional.conv2d(maps, weights, padding=5)

    mean_x, mean_y = means(x), means(y)
    var_x, var_y, covariance = means(x * x) - mean_x**2, means(y * y) - mean_y**2, means(x * y) - mean_x * mean_y
    if released:
        var_x, var_y, covariance = var_x.abs(), var_y.abs(), covariance.abs()
    top = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
    return top / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (57, 21)])
def test_strip_by_strip_ssim_and_its_gradient_are_those_of_whole_convolutions(size, released, monkeypatch):
    monkeypatch.setattr(ssim, "STRIP_PIXELS", 1)  # as few rows as there may be: 20
    x, y = made(*size), made(*size, seed=1).flip(2)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x.requires_grad_()
    found, expected = ssim_map(x, y, released=released), plain_ssim(x, y, released=released)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    slopes = [torch.autograd.grad((one * weights).sum(), x)[0] for one in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)
