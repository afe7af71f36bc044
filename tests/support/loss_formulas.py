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


def loss_terms(name, logits, target_m, edges_m, *, sigma_m, weight, skip_rows=0, filler_m=None, weights=None):
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
        weights: (B, 1, H, W) of the target's pixels. Default: ones.
    """
    weights = np.ones_like(target_m)[:, 0] if weights is None else weights[:, 0]
    depth_m = student_depth_m(logits, edges_m, target_m.shape[2:])
    filler_m = depth_m if filler_m is None else filler_m
    parts = {}
    if name in {"tiekd", "tiekd-released", "dpm"}:
        parts["kl_nats"] = _map_term(name, softmax(logits), target_m[:, 0], weights, edges_m, sigma_m, skip_rows)
    if name == "nll":
        parts["nll_nats"] = _nll(softmax(logits), target_m[:, 0], weights, edges_m, skip_rows)
    names = {"tiekd": "ssim", "tiekd-released": "ssim", "dpm": "", "nll": "si"}.get(name, name).split("+")
    depth_m, filler_m, target_m = depth_m[:, skip_rows:], filler_m[:, skip_rows:], target_m[:, 0, skip_rows:]
    weights, valid = weights[:, skip_rows:], is_valid(target_m)
    of_valid = weights[valid]
    clamped_m = np.clip(np.where(valid, target_m, 1.0), edges_m[0], edges_m[-1])
    if "ssim" in names:
        filled_m = np.where(valid, clamped_m, filler_m)
        pairs = zip(depth_m, filled_m, strict=True)
        similar = np.stack([ssim(x, y, absolute=name == "tiekd-released") for x, y in pairs])
        parts["ssim_loss"] = float(np.average(1 - similar[valid], weights=of_valid))
    if "mse" in names:
        parts["mse_m2"] = float(np.average((depth_m - clamped_m)[valid] ** 2, weights=of_valid))
    if "si" in names:
        g = np.log(depth_m[valid] + 1e-3) - np.log(clamped_m[valid] + 1e-3)
        mean = np.average(g, weights=of_valid)
        freedom = of_valid.sum() - (of_valid**2).sum() / of_valid.sum()  # n - 1 for n weights of 1
        parts["si"] = math.sqrt((of_valid * (g - mean) ** 2).sum() / freedom + 0.15 * mean**2)
    if "ssi" in names:
        off = np.zeros_like(depth_m)
        for number, mask in enumerate(valid):
            shapes = [_shape(1 / metres[number], mask, weights[number]) for metres in (depth_m, clamped_m)]
            off[number][mask] = (shapes[0] - shapes[1])[mask]
        parts["ssi"] = float(np.average(np.abs(off[valid]), weights=of_valid))
    if "grad" in names:
        parts["gradient"] = multiscale_slopes(off, valid, weights)
    return {"loss": _total(name, parts, weight), **parts}


def _shape(disparity, mask, weights):
    """Subtract the median (the lower of two) of a disparity (H, W) and divide by the mean deviation, both weighted."""
    values = disparity[mask]
    order = np.argsort(values)
    reached = np.cumsum(weights[mask][order])
    middle = values[order][np.argmax(reached >= reached[-1] / 2)]
    return (disparity - middle) / np.average(np.abs(values - middle), weights=weights[mask])


def multiscale_slopes(off, valid, weights=None):
    """Return the sum of `_slopes` of every 1st, 2nd, 4th and 8th row and column of maps (B, H, W)."""
    weights = np.ones_like(off) if weights is None else weights
    scales = ((maps[:, ::step, ::step] for maps in (off, valid, weights)) for step in (1, 2, 4, 8))
    return math.fsum(_slopes(*scale) for scale in scales)


def _slopes(off, valid, weights):
    """Return the sum of differences of valid neighbours, down and right, per weight of the valid pixels."""
    total = 0.0
    for batch, row, column in np.argwhere(valid):
        for down, right in ((1, 0), (0, 1)):
            other = (batch, row + down, column + right)
            if other[1] < valid.shape[1] and other[2] < valid.shape[2] and valid[other]:
                pair = min(weights[other], weights[batch, row, column])
                total += pair * abs(off[other] - off[batch, row, column])
    return total / weights[valid].sum()


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


def _map_term(name, student, target_m, weights, edges_m, sigma_m, skip_rows):
    """Return the mean KL over pixels of the logits below the skipped rows, each with the target pixel there."""
    (height, width), (rows, columns) = student.shape[2:], target_m.shape[1:]
    values, of_values = [], []
    for batch, row, column in np.ndindex(len(student), height, width):
        nearest = batch, int((row + 0.5) * rows / height), int((column + 0.5) * columns / width)
        depth_m = target_m[nearest]
        if is_valid(depth_m) and (row + 0.5) * rows / height >= skip_rows:
            pixel = student[batch, :, row, column]
            of_values.append(weights[nearest])
            if name == "tiekd-released":
                values.append(released_kl(released_map(depth_m, edges_m), pixel))
            else:
                values.append(kl(gaussian_map(depth_m, edges_m, sigma_m), pixel))
    return float(np.average(values, weights=of_values))


def _nll(student, target_m, weights, edges_m, skip_rows):
    """Return the mean -ln p of target pixels, interpolated between the two nearest centres."""
    centers = centers_of(edges_m)
    (height, width), (rows, columns) = student.shape[2:], target_m.shape[1:]
    values, of_values = [], []
    for batch, row, column in np.argwhere(is_valid(target_m)):
        if row < skip_rows:
            continue
        logs = np.log(student[batch, :, row * height // rows, column * width // columns])
        depth_m = min(max(target_m[batch, row, column], centers[0]), centers[-1])
        values.append(-np.interp(depth_m, centers, logs))
        of_values.append(weights[batch, row, column])
    return float(np.average(values, weights=of_values))
