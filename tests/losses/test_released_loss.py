"""`tiekd-released` is what the released code computes: written once more from its description, by direct convolutions.

All in float32 as there, but for the sums of SSIM: at 80 m a float32 window mean of squares is wrong by about C2, the
constant that it is added to. The last tests say by how much, and that there is no float32 figure to agree with.

Shape legend: B batch, K bins, H W pixels of the crop.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paths import REAL as REAL_DATA
from PIL import Image

from pipeline.depth.bins import parse_bins
from pipeline.losses.registry import build_loss
from pipeline.losses.ssim import ssim_map

SKIPPED = 110
FRAMES = (
    "2011_09_26_2011_09_26_drive_0001_sync_image_02_data_0000000005.png",
    "2011_09_26_2011_09_26_drive_0002_sync_image_03_data_0000000008.png",
)


def window(dtype):
    """(1, 1, 11, 11): the outer product of a Gaussian of sigma 1.5 with itself."""
    taps = torch.exp(-((torch.arange(11, dtype=dtype) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    return torch.outer(taps, taps)[None, None]


def direct(maps):
    """Windowed means, by one convolution with zero padding."""
    return F.conv2d(maps, window(maps.dtype), padding=5)


def separable(maps):
    """The same in exact arithmetic: rows, then columns."""
    taps = window(maps.dtype)[0, 0].sum(0)
    return F.conv2d(F.conv2d(maps, taps.view(1, 1, 1, 11), padding=(0, 5)), taps.view(1, 1, 11, 1), padding=(5, 0))


def released_ssim_loss(x, y, mean=direct):
    """1 - mean SSIM of maps (B, 1, H, W), with absolute variances and covariance, in the maps' precision."""
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = (mean(x * x) - mean_x**2).abs(), (mean(y * y) - mean_y**2).abs()
    cov = (mean(x * y) - mean_x * mean_y).abs()
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(1 - similar.mean())


def expected_m(student, edges_m):
    """Depth (B, 1, H, W) float32 of maps (B, K, H, W)."""
    centers = ((edges_m[:-1] + edges_m[1:]) / 2).float().view(1, -1, 1, 1)
    return (student * centers).sum(dim=1, keepdim=True)


def released_terms(logits, depth_m, edges_m, sums=torch.float64):
    """The released loss and its two terms; `sums` is the precision of SSIM's."""
    edges_m = edges_m.float()
    centers = ((edges_m[:-1] + edges_m[1:]) / 2).view(1, -1, 1, 1)
    student = torch.softmax(logits, dim=1)
    density = torch.exp(-((centers - depth_m) ** 2) / (2 * 0.5**2)) / math.sqrt(2 * math.pi * 0.5**2)
    density[density < 1e-16] = -1000
    teacher = torch.softmax(density, dim=1)
    kl = teacher * torch.log(teacher / (student + 1e-7) + 1e-7)
    kl = torch.where(student != 0, kl, torch.zeros(())).sum(dim=1)[:, SKIPPED:].mean()
    student_m = expected_m(student, edges_m)
    ssim_loss = released_ssim_loss(student_m[:, :, SKIPPED:].to(sums), depth_m[:, :, SKIPPED:].to(sums))
    return {
        "loss": 10 * (0.1 * float(kl) + 0.9 * ssim_loss),
        "kl_nats": float(kl),
        "ssim_loss": ssim_loss,
    }


def ours(logits, depth_m, edges_m):
    with torch.no_grad():
        found = build_loss("tiekd-released", edges_m, skip_rows=SKIPPED).terms(logits, depth_m)
    assert all(value.dtype == torch.float32 for value in found.values())
    return {name: float(value) for name, value in found.items()}


def smooth_student(depth_m, edges_m):
    """Logits (B, K, H, W) float32 about a blurred teacher that is wrong by some 5 % in large patches."""
    random = torch.Generator().manual_seed(0)
    patches = torch.randn(len(depth_m), 1, 12, 23, generator=random)
    off = F.interpolate(patches, depth_m.shape[2:], mode="bicubic", align_corners=True)
    blurred = F.avg_pool2d(F.pad(depth_m, (6, 6, 6, 6), mode="replicate"), 13, stride=1)
    middle_m = (blurred * (1 + 0.05 * off)).clamp(0.5, 79)
    centers = ((edges_m[:-1] + edges_m[1:]) / 2).float().view(1, -1, 1, 1)
    return -(((centers - middle_m) / (0.8 + 0.05 * middle_m)) ** 2) / 2


def real_depth_m(folder, name):
    """A crop of 352x704 of real predictions, as the released code reads them."""
    with Image.open(folder / "kitti" / "teacher_png16" / name) as image:
        depth_m = np.asarray(image, dtype=np.float32) / 65535 * 80
    return torch.from_numpy(depth_m[:, 256:960].copy())[None, None]


def road_m(height=150, width=80):
    """A smooth street: near below, far above, cut off at 80 m as a clamped teacher is."""
    down = torch.linspace(1, 0, height).view(1, 1, -1, 1)
    across = torch.linspace(0, 6, width).view(1, 1, 1, -1)
    return (4 + 110 * down**2 + 2 * torch.sin(across)).clamp(max=80)


def noise_m(most_m):
    """Depth without any likeness between neighbours."""
    return 0.05 + (most_m - 0.05) * torch.rand(1, 1, 160, 120, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bins", ["kitti", "linear:64:0.001:80"])
def test_on_a_smooth_street_every_term_is_the_released_formula_to_5_digits(bins):
    edges = parse_bins(bins).edges()
    depth_m = torch.cat([road_m(), road_m().flip(3) * 0.6])
    logits = smooth_student(depth_m, edges)
    assert ours(logits, depth_m, edges) == pytest.approx(released_terms(logits, depth_m, edges), rel=1e-5)


# 257 bins at 352x704 take 6 s. The formulas are the same with 32.
COARSE = parse_bins("linear:32:0.001:80").edges()


@pytest.fixture(scope="module", params=FRAMES)
def real_pair(request):
    """(student's logits, teacher's depth) of 352x704."""
    depth_m = real_depth_m(REAL_DATA, request.param)
    assert depth_m.shape == (1, 1, 352, 704)
    assert float((depth_m[:, :, SKIPPED:] > 79).float().mean()) > 0.03
    return smooth_student(depth_m, COARSE), depth_m


@pytest.mark.realdata
def test_on_real_depth_of_352x704_every_term_is_the_released_formula_to_5_digits(real_pair):
    assert ours(*real_pair, COARSE) == pytest.approx(released_terms(*real_pair, COARSE), rel=1e-5)


@pytest.mark.realdata
def test_on_real_far_depth_float32_convolutions_are_off_by_a_twentieth_each_its_own_way_and_ours_is_not(real_pair):
    logits, depth_m = real_pair
    student_m = expected_m(logits.softmax(1), COARSE)
    pair = [maps[:, :, SKIPPED:] for maps in (student_m, depth_m)]
    exact = released_ssim_loss(*(maps.double() for maps in pair))
    found = 1 - float(ssim_map(*pair, released=True).double().mean())
    assert found == pytest.approx(exact, rel=1e-6)
    assert released_ssim_loss(*(maps.double() for maps in pair), separable) == pytest.approx(exact, rel=1e-6)
    off = [released_ssim_loss(*pair, way) / exact - 1 for way in (direct, separable)]
    assert abs(off[0]) > 0.05
    assert abs(off[1] - off[0]) > 0.05


@pytest.mark.parametrize("most_m", [1.0, 80.0])
def test_where_depth_varies_as_much_as_it_measures_it_is_the_released_float32_arithmetic_too(most_m):
    edges = parse_bins("kitti").edges()
    depth_m = noise_m(most_m)
    logits = smooth_student(depth_m, edges).clamp(min=-80)  # no probability underflows
    found = released_terms(logits, depth_m, edges, sums=torch.float32)
    assert ours(logits, depth_m, edges) == pytest.approx(found, rel=1e-5)


def test_the_kl_leaves_out_the_bins_that_softmax_makes_zero_and_no_others():
    edges = parse_bins("kitti").edges()
    depth_m = noise_m(80.0)
    logits = smooth_student(depth_m, edges)
    assert float((logits.softmax(1) == 0).double().mean()) > 0.01
    expected = released_terms(logits, depth_m, edges)["kl_nats"]
    assert ours(logits, depth_m, edges)["kl_nats"] == pytest.approx(expected, rel=1e-5)
