"""Reference losses in NumPy and float64, from the formulas of the method, without code of the package.

Shape legend: B batch, K bins, H W pixels of the target, h w pixels of the logits.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

C1, C2 = 0.01**2, 0.03**2
SSIM_WEIGHT = 1.5
RELEASED_SIGMA_M = 0.5


def softmax(logits):
    """Return maps (B, K, h, w)."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def centers_of(edges_m):
    """Return the midpoints (K,)."""
    return np.array([(low + high) / 2 for low, high in pairwise(edges_m)])


def gaussian_map(depth_m, edges_m, sigma_m):
    """Return the mass (K,) of N(depth, sigma) in each bin, renormalized over the range."""
    cdf = [0.5 * math.erfc((depth_m - edge) / (sigma_m * math.sqrt(2))) for edge in edges_m]
    mass = np.array([high - low for low, high in pairwise(cdf)])
    return mass / mass.sum()


def released_map(depth_m, edges_m):
    """Return the softmax (K,) over densities at the centres, with those below 1e-16 set to -1000."""
    density = [
        math.exp(-((center - depth_m) ** 2) / (2 * RELEASED_SIGMA_M**2)) / (RELEASED_SIGMA_M * math.sqrt(2 * math.pi))
        for center in centers_of(edges_m)
    ]
    scores = np.array([-1000.0 if value < 1e-16 else value for value in density])
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def kl(teacher, student):
    """Return KL(T || S) of two maps (K,) in nats."""
    return math.fsum(t * (math.log(t) - math.log(s)) for t, s in zip(teacher, student, strict=True) if t > 0)


def released_kl(teacher, student):
    """Return the KL with the epsilons of the released code, summed where S is not 0."""
    return math.fsum(t * math.log(t / (s + 1e-7) + 1e-7) for t, s in zip(teacher, student, strict=True) if s != 0)


def window():
    """Return Gaussian weights (11, 11) of sigma 1.5 with sum 1."""
    taps = np.array([math.exp(-(step**2) / (2 * 1.5**2)) for step in range(-5, 6)])
    square = np.outer(taps, taps)
    return square / square.sum()


def blur(image):
    """Return windowed sums (H, W), with zeros beyond the border."""
    padded, weights = np.pad(image, 5), window()
    windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11))
    return (windows * weights).sum(axis=(2, 3))


def ssim(x, y, *, absolute=False):
    """Return the SSIM (H, W) of two depth maps (H, W) in metres."""
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    if absolute:
        var_x, var_y, cov = abs(var_x), abs(var_y), abs(cov)
    return (2 * mean_x * mean_y + C1) * (2 * cov + C2) / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))


def resized(image, size):
    """Resize (h, w) to (H, W) bilinearly, aligning pixel areas and repeating edge pixels."""
    for axis, wanted in enumerate(size):
        count = image.shape[axis]
        position = np.clip((np.arange(wanted) + 0.5) * count / wanted - 0.5, 0, None)
        low = np.minimum(position.astype(int), count - 1)
        high, fraction = np.minimum(low + 1, count - 1), position - low
        fraction = fraction.reshape(-1, 1) if axis == 0 else fraction
        image = image.take(low, axis) * (1 - fraction) + image.take(high, axis) * fraction
    return image


def student_depth_m(logits, edges_m, size):
    """Return the expected depth (B, H, W) at the size of the target."""
    depth_m = (softmax(logits) * centers_of(edges_m).reshape(1, -1, 1, 1)).sum(axis=1)
    return np.stack([resized(image, size) for image in depth_m])


def is_valid(target_m):
    """Return where a depth is valid."""
    return np.isfinite(target_m) & (target_m > 0)


def loss_terms(name, logits, target_m, edges_m, *, sigma_m, weight, skip_rows=0, filler_m=None):
    """Return a loss and its parts, as `DepthLoss.terms` does.

    Args:
        name: name of the loss.
        logits: (B, K, h, w).
        target_m: (B, 1, H, W) metres; invalid where not finite or not positive.
        edges_m: (K + 1,).
        sigma_m: sigma of the teacher's Gaussian.
        weight: weight of the KL.
        skip_rows: number of top rows of the target to ignore.
        filler_m: (B, H, W) replaces invalid targets in SSIM. Default: the student's depth.
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
        for number, mask in enumerate(valid):
            shapes = [_shape(1 / metres[number], mask) for metres in (depth_m, clamped_m)]
            off[number][mask] = (shapes[0] - shapes[1])[mask]
        parts["ssi"] = math.fsum(np.abs(off[valid])) / valid.sum()
    if "grad" in names:
        scales = ((off[:, ::step, ::step], valid[:, ::step, ::step]) for step in (1, 2, 4, 8))
        parts["gradient"] = math.fsum(_slopes(*scale) for scale in scales)
    return {"loss": _total(name, parts, weight), **parts}


def _shape(disparity, mask):
    """Subtract the median (the lower of two) of a disparity (H, W) and divide by the mean deviation from it."""
    values = np.sort(disparity[mask])
    middle = values[(len(values) - 1) // 2]
    return (disparity - middle) / np.abs(values - middle).mean()


def _slopes(off, valid):
    """Return the sum of differences of valid neighbours, down and right, per valid pixel."""
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
        return SSIM_WEIGHT * parts["ssim_loss"] + parts["si" if name == "ssim+si" else "mse_m2"]
    return sum(parts.values())


def _map_term(name, student, target_m, edges_m, sigma_m, skip_rows):
    """Return the mean KL over pixels of the logits below the skipped rows, each with the target pixel there."""
    (height, width), (rows, columns) = student.shape[2:], target_m.shape[1:]
    values = []
    for batch, row, column in np.ndindex(len(student), height, width):
        depth_m = target_m[batch, int((row + 0.5) * rows / height), int((column + 0.5) * columns / width)]
        if is_valid(depth_m) and (row + 0.5) * rows / height >= skip_rows:
            pixel = student[batch, :, row, column]
            if name == "tiekd-released":
                values.append(released_kl(released_map(depth_m, edges_m), pixel))
            else:
                values.append(kl(gaussian_map(depth_m, edges_m, sigma_m), pixel))
    return math.fsum(values) / len(values)


def _nll(student, target_m, edges_m, skip_rows):
    """Return the mean -ln p of target pixels, interpolated between the two nearest centres."""
    centers = centers_of(edges_m)
    (height, width), (rows, columns) = student.shape[2:], target_m.shape[1:]
    values = []
    for batch, row, column in np.argwhere(is_valid(target_m)):
        if row < skip_rows:
            continue
        logs = np.log(student[batch, :, row * height // rows, column * width // columns])
        depth_m = min(max(target_m[batch, row, column], centers[0]), centers[-1])
        values.append(-np.interp(depth_m, centers, logs))
    return math.fsum(values) / len(values)
