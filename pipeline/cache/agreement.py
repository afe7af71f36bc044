"""Distances between a store, its live teacher, and the teacher asked again.

Shape legend: K bins, P pixels, a b pixels of a signal, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..depth.spaces import ABSOLUTE_SPACES
from ..store.format.extras import SIGNAL_STEPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..sources.base import Sample
    from ..store import Store

NOISE_DRAWS = 2
"""Allowance for noise: the error of the store is another draw of it, and may be larger than the measured one."""
DENSE_KL_NATS = 1e-4
"""Bound of a `dense` map, which is stored as float16: 2^-11 of each weight, 6e-8 for the smallest."""
SIGNAL_ERROR = 1 / (2 * SIGNAL_STEPS) + 1e-6
"""Bound of a signal: half a step, and the rounding of float32."""
SMALLEST = 1e-12


class Distance(NamedTuple):
    """Distance of two predictions."""

    median: float
    largest: float


class Agreement(NamedTuple):
    """Depth, maps or a signal of a store compared with its live teacher."""

    name: str
    """`depth`, a fraction of it (of the sample's range if relative); `maps`, in nats; or a signal, in its unit."""
    bound: float
    """Guaranteed by the store."""
    cache: Distance
    """Between the live teacher and the store."""
    noise: Distance
    """Between two runs of the live teacher."""
    worst: str
    """Id of the sample with the largest `cache`."""

    @property
    def limit(self) -> Distance:
        """Largest distance that the bound and the teacher's noise explain."""
        return Distance(*(self.bound + NOISE_DRAWS * noise for noise in self.noise))

    @property
    def holds(self) -> bool:
        """Whether the store agrees with the teacher."""
        return self.cache.median <= self.limit.median and self.cache.largest <= self.limit.largest


class Prediction(NamedTuple):
    """What the teacher gives of one image, over the store's bins."""

    depth: NDArray[np.float32]
    dpm: NDArray[np.float32] | None
    signals: dict[str, NDArray[np.float32]]
    """Those that the store holds."""


class Comparison:
    """Distances of all samples: of depth for every pixel, of maps for every sample."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._samples: list[Sample] = []
        self._rounding = 0.0
        self._depth: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
        self._maps: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
        self._signals: dict[str, tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]] = {
            name: ([], []) for name in store.signals
        }

    def add(self, sample: Sample, live: Prediction, again: Prediction) -> None:
        """Compare one sample of the store with the teacher, and the teacher's two runs."""
        store, number = self._store, self._store.index_of(sample.id)
        self._samples.append(sample)
        for errors, other in zip(self._depth, (store.depth(number), again.depth), strict=True):
            errors.append(_depth_error(store, live.depth, other))
        # float32 rounding matters for values that are large compared with their range.
        self._rounding = max(self._rounding, float(np.spacing(_largest(live.depth)) / _span(live.depth)))
        if store.spec.dpm_kind != "gaussian":
            for errors, map_ in zip(self._maps, (store.dpm(number), again.dpm), strict=True):
                errors.append(np.array([_mean_kl(live.dpm, map_)]))
        for name, errors_of in self._signals.items():
            for errors, values in zip(errors_of, (store.signal(name, number), again.signals[name]), strict=True):
                errors.append(np.abs(values.astype(np.float64) - live.signals[name]).ravel())

    def agreements(self) -> list[Agreement]:
        """Return the result for depth, and for maps and signals if the store has them."""
        spec = self._store.spec
        bounds = {"depth": spec.max_rel_error + (self._rounding if spec.depth_space not in ABSOLUTE_SPACES else 0)}
        if spec.dpm_kind != "gaussian":
            bounds["maps"] = DENSE_KL_NATS if spec.max_dpm_kl is None else spec.max_dpm_kl
        errors = {"depth": self._depth, "maps": self._maps, **self._signals}
        bounds |= dict.fromkeys(self._signals, SIGNAL_ERROR)
        return [
            Agreement(name, bound, _distance(cache), _distance(noise), self._samples[_worst(cache)].id)
            for name, bound in bounds.items()
            for cache, noise in [errors[name]]
        ]


def _depth_error(store: Store, live: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the relative error (P,) of pixels inside the codec's range; infinite if only one of the two has a value.

    Relative to the live depth; for relative depth, to the range of the live sample.
    """
    counted = ~(np.isnan(live) & np.isnan(other))
    scale: NDArray[np.float64] | float = _span(live)
    if store.spec.depth_space in ABSOLUTE_SPACES:
        low, high = store.spec.code_range
        counted &= ~((live < low) | (live > high))
        scale = live[counted].astype(np.float64)
    error: NDArray[np.float64] = np.abs(other[counted].astype(np.float64) - live[counted]) / scale
    return np.where(np.isnan(error), np.inf, error)


def _span(depth: NDArray[np.float32]) -> float:
    known = depth[np.isfinite(depth)].astype(np.float64)
    return float(np.ptp(known)) or 1.0 if known.size else 1.0


def _largest(depth: NDArray[np.float32]) -> np.float32:
    return np.float32(np.abs(depth[np.isfinite(depth)]).max(initial=0))


def _mean_kl(live: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> float:
    """Return the mean KL(live || other) in nats over pixels with a live map (K, h, w); infinite if other has none."""
    assert live is not None
    assert other is not None
    known = ~np.isnan(live).any(axis=0)
    if not known.any():
        return 0.0
    true, stored = (maps[:, known].astype(np.float64) for maps in (live, other))
    if np.isnan(stored).any():
        return float("inf")
    true /= true.sum(axis=0)
    ratio = np.log(np.maximum(true, SMALLEST)) - np.log(np.maximum(stored, SMALLEST))
    return float((true * ratio).sum(axis=0).mean())


def _distance(errors: list[NDArray[np.float64]]) -> Distance:
    whole = np.concatenate(errors)
    if not whole.size:
        return Distance(0.0, 0.0)
    return Distance(float(np.median(whole)), float(whole.max()))


def _worst(errors: list[NDArray[np.float64]]) -> int:
    return int(np.argmax([error.max(initial=0.0) for error in errors]))
