"""Optional parts of an opened store: signals, features, cameras and relations.

Shape legend: a b pixels of a signal or cells of features, C components, D channels.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DamagedStoreError, PipelineError
from ..format.codec import decode_chunk
from ..format.extras import BASELINE, INTRINSICS, SIGNAL_STEPS
from ..format.features import Basis
from ..format.spec import StoreSpec
from .base import StoredSamples
from .validate import read_checked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ..format.layout import StoreLayout


class StoredExtras(StoredSamples[StoreSpec]):
    """Samples that may have more than depth and maps."""

    layout: StoreLayout

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that the store has, such as `confidence` and `sky`."""
        return tuple(self.spec.extras.signals)

    def signal(self, name: str, sample: int | str) -> NDArray[np.float32]:
        """Return a signal (a, b) float32 in 0..1 over the whole view, at its own resolution; errors are at most 1/510.

        Raises PipelineError if the store lacks it, DamagedStoreError for a damaged sample.
        """
        if name not in self.spec.extras.signals:
            raise PipelineError(
                f"{self.name} has no signal {name!r} (it has {', '.join(self.signals) or 'none'}): cache a teacher "
                f"that gives it with `signals={name}`"
            )
        return _fractions(self._one(f"signals/{name}", sample))

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Names of the layers whose features the store has."""
        return tuple(self.spec.extras.features)

    @cached_property
    def bases(self) -> Mapping[str, Basis]:
        """The linear basis of each layer. Raises DamagedStoreError for a damaged one."""
        bases = {}
        for layer, features in self.spec.extras.features.items():
            parts: list[NDArray[Any]] = []
            for path in (f"features/{layer}/mean", f"features/{layer}/basis"):
                array = self._arrays[path]
                file = array.file(0)
                data = read_checked(self._files, self.name, self.manifest, file, 2 * array.chunk_bytes + 1024)
                try:
                    parts.append(decode_chunk(data, array.chunk, array.dtype))
                except DamagedStoreError as error:
                    raise DamagedStoreError(f"{self.name}/{file}: {error}; fetch the store again") from error
            mean, rows = parts
            basis = Basis(mean, rows)
            if basis.sha256 != features.basis_sha256:
                raise DamagedStoreError(f"{self.name}/features/{layer}: the basis differs from the store's attributes")
            bases[layer] = basis
        return bases

    def feature_components(self, layer: str, sample: int | str) -> NDArray[np.float32]:
        """Return the principal components (C, a, b) of a layer's features. Raises as `feature`."""
        code, scale = self._feature(layer, sample)
        return code.astype(np.float32) * scale[:, None, None]

    def feature(self, layer: str, sample: int | str) -> NDArray[np.float32]:
        """Return the features (D, a, b) of a layer over the whole view, restored from their components.

        Raises PipelineError if the store lacks the layer, DamagedStoreError for a damaged sample.
        """
        code, scale = self._feature(layer, sample)
        return self.bases[layer].restore(code, scale)

    def _feature(self, layer: str, sample: int | str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        if layer not in self.spec.extras.features:
            raise PipelineError(
                f"{self.name} has no features of layer {layer!r} (it has {', '.join(self.feature_layers) or 'none'}): "
                f"cache a teacher that gives them with `features={layer}:64`"
            )
        path = f"features/{layer}/scale"
        code, scale = self._one(f"features/{layer}/code", sample), self._one(path, sample)
        if not (np.isfinite(scale).all() and (scale >= 0).all()):
            raise self._damaged(path, self.index_of(sample), "scales are not finite, or below 0")
        return code, scale

    def intrinsics_px(self, sample: int | str) -> NDArray[np.float32]:
        """Return fx fy cx cy (4,) float32 of the camera in pixels of the view, NaN where unknown.

        Pixel centers have integer coordinates. All are NaN in a store without intrinsics.
        """
        number = self.index_of(sample)
        if self.spec.extras.intrinsics is None:
            return np.full(4, np.nan, np.float32)
        intrinsics: NDArray[np.float32] = self._cameras[0][number]
        return intrinsics

    @cached_property
    def _cameras(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        return self.rows(INTRINSICS), self.rows(BASELINE) if self.spec.extras.baseline else None

    def metres_of_disparity(self, sample: int | str, disparity_px: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return depth in metres of disparities in pixels of the view: fx * baseline / disparity.

        Raises DamagedStoreError if the sample's camera is not valid.
        """
        number = self.index_of(sample)
        baselines_m = self._cameras[1]
        assert baselines_m is not None, "a store of disparities has them"
        product = float(self._cameras[0][number, 0]) * float(baselines_m[number])
        if not 0 < product < np.inf:
            raise self._damaged(
                f"sample/{INTRINSICS}", number, f"fx * baseline is {product}: expected a positive number"
            )
        return (product / disparity_px).astype(np.float32)

    def relations(self, sample: int | str) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Return the numbers of each node's neighbours (nodes, 8) and their weights (nodes, 8) float32 in 0..1.

        Raises PipelineError if the store has none, DamagedStoreError for a damaged sample.
        """
        relations = self.spec.extras.relations
        if relations is None:
            raise PipelineError(f"{self.name} has no relations")
        neighbour, weight = self._one("relations/neighbour", sample), self._one("relations/weight", sample)
        if neighbour.max() >= len(neighbour):
            raise self._damaged("relations/neighbour", self.index_of(sample), "a node that does not exist")
        return neighbour, _fractions(weight)

    def _one(self, path: str, sample: int | str) -> NDArray[Any]:
        """Return a sample's only chunk of an array, without the axis of samples."""
        number = self.index_of(sample)
        chunk = self._chunks(path, number)[0]
        if chunk is None:
            raise self._damaged(path, number, "the chunk is missing")
        values: NDArray[Any] = chunk[0]
        return values


def _fractions(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return values in 0..1 of bytes."""
    return codes.astype(np.float32) / np.float32(SIGNAL_STEPS)
