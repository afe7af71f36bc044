"""Features of a layer as their first principal components, in bytes.

Shape legend: C components, D channels, a b cells of a grid, n cells of several images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CODE_STEPS = 127
TINY = 1e-30


class EncodedFeatures(NamedTuple):
    """Components of one image."""

    code: NDArray[np.int8]
    """(C, a, b)."""
    scale: NDArray[np.float32]
    """(C,): component = code * scale."""
    mean_cosine: float
    """Mean over cells of the cosine between features and restored features."""
    explained_variance: float
    """1 - |restored - features|^2 / |features - mean|^2, over all cells and channels."""


@dataclass(frozen=True)
class Basis:
    """A linear basis: restored features = mean + sum of component * row."""

    mean: NDArray[np.float32]
    """(D,)."""
    rows: NDArray[np.float32]
    """(C, D), orthonormal."""

    @property
    def sha256(self) -> str:
        """Hash of its bytes, as the store's attributes state it."""
        hasher = hashlib.sha256(np.ascontiguousarray(self.mean, "<f4").tobytes())
        hasher.update(np.ascontiguousarray(self.rows, "<f4").tobytes())
        return hasher.hexdigest()

    def encode(self, features: NDArray[np.floating]) -> EncodedFeatures:
        """Encode features (D, a, b). Raises PipelineError for values that are not finite."""
        channels, height, width = features.shape
        flat = features.reshape(channels, -1).astype(np.float64)
        if not np.isfinite(flat).all():
            raise PipelineError(f"{np.count_nonzero(~np.isfinite(flat))} values of the features are NaN or infinite")
        centered = flat - self.mean[:, None].astype(np.float64)
        components = self.rows.astype(np.float64) @ centered
        scale = (np.abs(components).max(axis=1) / CODE_STEPS).astype(np.float32)
        code = np.rint(components / np.maximum(scale, TINY)[:, None]).clip(-CODE_STEPS, CODE_STEPS).astype(np.int8)
        restored = self.restore(code.reshape(-1, height, width), scale).reshape(channels, -1).astype(np.float64)
        lengths = np.linalg.norm(flat, axis=0) * np.linalg.norm(restored, axis=0)
        cosine = (flat * restored).sum(axis=0) / np.maximum(lengths, TINY)
        lost, whole = np.square(restored - flat).sum(), np.square(centered).sum()
        return EncodedFeatures(
            code.reshape(-1, height, width), scale, float(cosine.mean()), float(1 - lost / max(whole, TINY))
        )

    def restore(self, code: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features (D, a, b) of codes (C, a, b)."""
        components = code.astype(np.float32) * scale[:, None, None]
        restored = np.tensordot(self.rows.T, components, axes=1) + self.mean[:, None, None]
        return restored.astype(np.float32)


class BasisFitter:
    """Principal components of the features of many images, one image at a time; memory is D^2."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sum = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def add(self, features: NDArray[np.floating]) -> None:
        """Add an image's features (D, a, b)."""
        flat = features.reshape(features.shape[0], -1).astype(np.float64)
        self._count += flat.shape[1]
        self._sum += flat.sum(axis=1)
        self._products += flat @ flat.T

    def basis(self, components: int) -> Basis:
        """Return the basis of the `components` directions of largest variance.

        The sign of a row is that of its largest coefficient, so that equal features give an equal basis.
        """
        mean = self._sum / self._count
        values, vectors = np.linalg.eigh(self._products / self._count - np.outer(mean, mean))
        rows = vectors[:, np.argsort(values)[::-1][:components]].T
        largest = np.abs(rows).argmax(axis=1)
        rows = rows * np.sign(rows[np.arange(len(rows)), largest])[:, None]
        return Basis(mean.astype(np.float32), rows.astype(np.float32))
