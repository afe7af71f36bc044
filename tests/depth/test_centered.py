"""Gaussian maps whose mean is the depth itself, and Gaussians whose width is counted in bins."""

import math

import pytest
import torch

from pipeline.depth.bins import bin_centers, parse_bins
from pipeline.depth.dpm import bin_gaussian_dpm, expected_depth, gaussian_dpm, released_dpm
from pipeline.losses.registry import build_loss
from pipeline.losses.tiekd import TieKdLoss

NYU = parse_bins("nyu").edges()


def depths(edges_m, count=2000):
    """Depths from the first centre to the last, (1, 1, 1, count) float64."""
    centers_m = bin_centers(edges_m)
    return torch.linspace(float(centers_m[0]), float(centers_m[-1]), count, dtype=torch.float64).view(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("make", "bins", "sigma", "worst_m"),
    [
        # 8 sigma beyond the end is as far as a Gaussian is moved: what is left there is under a tenth of a bin.
        (gaussian_dpm, "nyu", 0.5, 0.02),
        (gaussian_dpm, "kitti", 0.5, 0.02),
        (bin_gaussian_dpm, "log:64:1:100", 2.0, 0.2),
        (bin_gaussian_dpm, "inverse:32:1:40", 1.0, 1.0),
    ],
)
def test_the_mean_of_a_centered_map_is_the_depth(make, bins, sigma, worst_m):
    edges_m = parse_bins(bins).edges()
    depth_m = depths(edges_m)
    off_m = (expected_depth(make(depth_m, edges_m, sigma, centered=True), edges_m) - depth_m).abs()
    plain_m = (expected_depth(make(depth_m, edges_m, sigma), edges_m) - depth_m).abs()
    assert off_m.max() < worst_m
    assert off_m.mean() < plain_m.mean() / 20


def test_without_centering_table_a_map_near_the_end_of_the_range_has_its_mean_further_inside():
    depth_m = torch.tensor([0.3, 5.0, 9.7], dtype=torch.float64).view(1, 1, 1, 3)
    bias_m = (expected_depth(gaussian_dpm(depth_m, NYU, 0.5), NYU) - depth_m).flatten()
    assert bias_m[0] > 0.1
    assert bias_m[1].abs() < 1e-3
    assert bias_m[2] < -0.1
    # The released maps reach 4.2 m to each side: in a room hardly any depth is far enough from both ends.
    released_m = (expected_depth(released_dpm(depth_m, NYU), NYU) - depth_m).flatten()
    assert released_m[0] > 1.5
    assert released_m[2] < -1.5


def test_far_from_the_ends_centering_table_moves_nothing():
    depth_m = torch.linspace(3.0, 7.0, 50, dtype=torch.float64).view(1, 1, 1, -1)
    torch.testing.assert_close(
        gaussian_dpm(depth_m, NYU, 0.3, centered=True), gaussian_dpm(depth_m, NYU, 0.3), atol=1e-4, rtol=0
    )


def test_a_centered_map_keeps_invalid_pixels_empty_and_depths_beyond_the_range_in_the_end_bin():
    depth_m = torch.tensor([math.nan, -5.0, 0.0, 50.0, math.inf]).view(1, 1, 1, 5)
    for make in (gaussian_dpm, bin_gaussian_dpm):
        dpm = make(depth_m, NYU, 0.5, centered=True)
        assert not dpm[..., 0].any()
        torch.testing.assert_close(dpm[..., 1:].sum(1), torch.ones(1, 1, 4))
        assert dpm[0, :, 0, 1:].argmax(0).tolist() == [0, 0, 48, 48]


def test_over_linear_bins_a_width_in_bins_is_one_in_metres():
    depth_m = torch.linspace(-2, 14, 80, dtype=torch.float64).view(1, 1, 4, 20)
    width_m = float(NYU[1] - NYU[0])
    torch.testing.assert_close(bin_gaussian_dpm(depth_m, NYU, 1.7), gaussian_dpm(depth_m, NYU, 1.7 * width_m))


def test_over_log_bins_a_width_in_bins_is_a_share_of_the_depth():
    edges_m = parse_bins("log:64:1:100").edges()
    near, far = (
        bin_gaussian_dpm(torch.full((1, 1, 1, 1), float(bin_centers(edges_m)[index])), edges_m, 1.5).flatten()
        for index in (20, 40)
    )
    torch.testing.assert_close(near[15:26], far[35:46], atol=1e-6, rtol=0)


def test_the_loss_uses_them_when_asked_and_never_for_the_released_maps():
    torch.manual_seed(0)
    logits = torch.randn(1, 49, 6, 8)
    target_m = torch.rand(1, 1, 6, 8) + 0.1
    plain = build_loss("dpm", NYU, sigma_m=0.5)
    for changes, maps in (
        ({"sigma_m": 0.5, "centered": True}, gaussian_dpm(target_m, NYU, 0.5, centered=True)),
        ({"sigma_bins": 2.0}, bin_gaussian_dpm(target_m, NYU, 2.0)),
    ):
        loss = build_loss("dpm", NYU, **changes)
        torch.testing.assert_close(loss(logits, target_m), plain(logits, target_m, maps))
        assert (loss(logits, target_m) - plain(logits, target_m)).abs() > 0.01
    with pytest.raises(ValueError, match="no centering"):
        TieKdLoss(NYU, kind="released", centered=True)
    with pytest.raises(ValueError, match="`sigma_bins=0` must be positive and finite"):
        TieKdLoss(NYU, sigma_bins=0)
    assert build_loss("released", NYU, centered=True, sigma_bins=2.0).sigma_m == 0.5
