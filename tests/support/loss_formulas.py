"""Every loss once more, in NumPy and float64: direct sums from the method's formulas, sharing no code with the package.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

C1, C2 = 0.01**2, 0.03**2
SSIM_SHARE = 1.5
RELEASED_SIGMA_M = 0.5


def softmax(logits):
    """Maps (B, K, h, w)."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def centers_of(edges_m):
    """(K,) midpoints."""
    return np.array([(low + high) / 2 for low, high in pairwise(edges_m)])


def gaussian_map(depth_m, edges_m, sigma_m):
    """(K,) mass of N(depth, sigma) in each bin, renormalised over the range."""
    cdf = [0.5 * math.erfc((depth_m - edge) / (sigma_m * math.sqrt(2))) for edge in edges_m]
    mass = np.array([high - low for low, high in pairwise(cdf)])
    return mass / mass.sum()


def released_map(depth_m, edges_m):
    """(K,) softmax over densities at the centres, those below 1e-16 set to -1000."""
    density = [
        math.exp(-((center - depth_m) ** 2) / (2 * RELEASED_SIGMA_M**2)) / (RELEASED_SIGMA_M * math.sqrt(2 * math.pi))
        for center in centers_of(edges_m)
    ]
    scores = np.array([-1000.0 if one < 1e-16 else one for one in density])
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def kl(teacher, student):
    """KL(T || S) of two (K,) in nats."""
    return math.fsum(t * (math.log(t) - math.log(s)) for t, s in zip(teacher, student, strict=True) if t > 0)


def released_kl(teacher, student):
    """The same with the released code's epsilons, summed where S is not 0."""
    return math.fsum(t * math.log(t / (s + 1e-7) + 1e-7) for t, s in zip(teacher, student, strict=True) if s != 0)


def window():
    """(11, 11) Gaussian weights of sigma 1.5 by an outer product, sum 1."""
    taps = np.array([math.exp(-(step**2) / (2 * 1.5**2)) for step in range(-5, 6)])
    square = np.outer(taps, taps)
    return square / square.sum()


def blur(image):
    """Windowed sums (H, W), zeros beyond the border."""
    padded, weights = np.pad(image, 5), window()
    windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11))
    return (windows * weights).sum(axis=(2, 3))


def ssim(x, y, *, absolute=False):
    """(H, W) similarity of two maps (H, W) of metres."""
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    if absolute:
        var_x, var_y, cov = abs(var_x), abs(var_y), abs(cov)
    return (2 * mean_x * mean_y + C1) * (2 * cov + C2) / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))


def resized(image, size):
    """Bilinear (h, w) -> (H, W), pixel centres kept, edge pixels repeated beyond the edge."""
    for axis, wanted in enumerate(size):
        count = image.shape[axis]
        place = np.clip((np.arange(wanted) + 0.5) * count / wanted - 0.5, 0, None)
        low = np.minimum(place.astype(int), count - 1)
        high, share = np.minimum(low + 1, count - 1), place - low
        share = share.reshape(-1, 1) if axis == 0 else share
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


def student_depth_m(logits, edges_m, size):
    """(B, H, W) expected depth at the target's size."""
    depth_m = (softmax(logits) * centers_of(edges_m).reshape(1, -1, 1, 1)).sum(axis=1)
    return np.stack([resized(image, size) for image in depth_m])


def is_valid(target_m):
    """Where there is a depth."""
    return np.isfinite(target_m) & (target_m > 0)


def loss_terms(name, logits, target_m, edges_m, *, sigma_m, weight, skip_rows=0, filler_m=None):
    """The loss of a name and its parts, as `DepthLoss.terms` has them.

    Args:
        name: of a loss.
        logits: (B, K, h, w).
        target_m: (B, 1, H, W) metres, any of it not finite or not above 0 where there is none.
        edges_m: (K + 1,).
        sigma_m: of the teacher's Gaussian.
        weight: of the KL.
        skip_rows: top rows of the target left out.
        filler_m: (B, H, W) what a target that is not there is taken for in SSIM; the student's own depth if left out.
    """
    depth_m = student_depth_m(logits, edges_m, target_m.shape[2:])
    filler_m = depth_m if filler_m is None else filler_m
    parts = {}
    if name in {"tiekd", "tiekd-released", "dpm"}:
        parts["kl_nats"] = _map_term(name, softmax(logits), target_m[:, 0], edges_m, sigma_m, skip_rows)
    if name == "nll":
        parts["nll_nats"] = _nll(softmax(logits), target_m[:, 0], edges_m, skip_rows)
    names = {"tiekd": "ssim", "tiekd-released": "ssim", "dpm": "", "nll": "si"}.get(name, name).split("+")
    depth_m, filler_m, target_m = depth_m[:, skip_rows:], filler_m[:, skip_rows:], target_m[:, 0, skip_rows:]
    valid = is_valid(target_m)
    clamped_m = np.clip(np.where(valid, target_m, 1.0), edges_m[0], edges_m[-1])
    if "ssim" in names:
        filled_m = np.where(valid, clamped_m, filler_m)
        pairs = zip(depth_m, filled_m, strict=True)
        similar = np.stack([ssim(x, y, absolute=name == "tiekd-released") for x, y in pairs])
        parts["ssim_loss"] = float((1 - similar[valid]).mean())
    if "mse" in names:
        parts["mse_m2"] = float(((depth_m - clamped_m)[valid] ** 2).mean())
    if "si" in names:
        g = np.log(depth_m[valid] + 1e-3) - np.log(clamped_m[valid] + 1e-3)
        parts["si"] = math.sqrt(((g - g.mean()) ** 2).sum() / (len(g) - 1) + 0.15 * g.mean() ** 2)
    if "ssi" in names:
        off = np.zeros_like(depth_m)
        for place, known in enumerate(valid):
            shapes = [_shape(1 / one[place], known) for one in (depth_m, clamped_m)]
            off[place][known] = (shapes[0] - shapes[1])[known]
        parts["ssi"] = math.fsum(np.abs(off[valid])) / valid.sum()
    if "grad" in names:
        scales = ((off[:, ::step, ::step], valid[:, ::step, ::step]) for step in (1, 2, 4, 8))
        parts["gradient"] = math.fsum(_slopes(*scale) for scale in scales)
    return {"loss": _total(name, parts, weight), **parts}


def _shape(disparity, known):
    """(H, W) without its median (the lower of two), by its mean deviation from it."""
    values = np.sort(disparity[known])
    middle = values[(len(values) - 1) // 2]
    return (disparity - middle) / np.abs(values - middle).mean()


def _slopes(off, valid):
    """Sum of the differences of valid neighbours, down and right, by the number of valid pixels."""
    total = 0.0
    for batch, row, column in np.argwhere(valid):
        for down, right in ((1, 0), (0, 1)):
            other = (batch, row + down, column + right)
            if other[1] < valid.shape[1] and other[2] < valid.shape[2] and valid[other]:
                total += abs(off[other] - off[batch, row, column])
    return total / valid.sum()


def _total(name, parts, weight):
    if name in {"tiekd", "tiekd-released"}:
        return 10 * (weight * parts["kl_nats"] + (1 - weight) * parts["ssim_loss"])
    if name == "dpm":
        return 10 * parts["kl_nats"]
    if name == "ssi+grad":
        return parts["ssi"] + 0.5 * parts["gradient"]
    if name in {"ssim+si", "ssim+mse"}:
        return SSIM_SHARE * parts["ssim_loss"] + parts["si" if name == "ssim+si" else "mse_m2"]
    return sum(parts.values())


def _map_term(name, student, target_m, edges_m, sigma_m, skip_rows):
    """Mean KL over the logits' pixels whose centre lies below the skipped rows, each with the target pixel there."""
    (height, width), (rows, columns) = student.shape[2:], target_m.shape[1:]
    found = []
    for batch, row, column in np.ndindex(len(student), height, width):
        depth_m = target_m[batch, int((row + 0.5) * rows / height), int((column + 0.5) * columns / width)]
        if is_valid(depth_m) and (row + 0.5) * rows / height >= skip_rows:
            pixel = student[batch, :, row, column]
            if name == "tiekd-released":
                found.append(released_kl(released_map(depth_m, edges_m), pixel))
            else:
                found.append(kl(gaussian_map(depth_m, edges_m, sigma_m), pixel))
    return math.fsum(found) / len(found)


def _nll(student, target_m, edges_m, skip_rows):
    """Mean -ln p of every target pixel, shared by the two centres about it, at the logit that it falls on."""
    centers = centers_of(edges_m)
    (height, width), (rows, columns) = student.shape[2:], target_m.shape[1:]
    found = []
    for batch, row, column in np.argwhere(is_valid(target_m)):
        if row < skip_rows:
            continue
        logs = np.log(student[batch, :, row * height // rows, column * width // columns])
        depth_m = min(max(target_m[batch, row, column], centers[0]), centers[-1])
        found.append(-np.interp(depth_m, centers, logs))  # the same as sharing: linear between two centres
    return math.fsum(found) / len(found)
