"""Reference of the Retinex jitter in NumPy and float64, without code of the package.

Shape legend: H W pixels of the image.
"""

from __future__ import annotations

import math

import numpy as np


def box_mean(image, radius=15):
    """Return the mean (H, W) of the window of each pixel, of the pixels that lie in the image."""
    height, width = image.shape
    means = np.empty_like(image)
    for row, column in np.ndindex(height, width):
        window = image[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
        means[row, column] = window.mean()
    return means


def illumination(image):
    """Return the largest channel of an image (3, H, W), smoothed by a guided filter of which it is the guide."""
    light = image.max(axis=0)
    mean = box_mean(light)
    variance = box_mean(light * light) - mean**2
    slope = variance / (variance + 1e-3)
    return np.maximum(box_mean(slope) * light + box_mean(mean - slope * mean), 0)


def jittered(image, g, h, blur, noise, normal):
    """Return R^g L^h, blurred by `blur` px, with `noise` times `normal` (3, H, W); all in 0..1."""
    light = illumination(image)
    varied = np.clip((image / (light + 1e-3)) ** g * light**h, 0, 1)
    taps = np.array([math.exp(-(step**2) / (2 * max(blur, 1e-3) ** 2)) for step in range(-4, 5)])
    taps /= taps.sum()
    padded = np.pad(varied, ((0, 0), (4, 4), (4, 4)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(1, 2))
    blurred = (windows * np.outer(taps, taps)).sum(axis=(3, 4))
    return np.clip(blurred + noise * normal, 0, 1)
