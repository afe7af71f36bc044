"""Compare a store with its teacher: the error of the store, and the noise of the teacher.

In half precision or on a GPU, two runs of a teacher differ. So the live teacher runs twice, and the store must be
within its own bound plus this noise.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..common.fileio import canonical_json
from ..common.progress import Silent
from ..depth.rebin import rebin
from ..depth.spaces import ABSOLUTE_SPACES
from ..errors import PipelineError
from ..sources.intrinsics import intrinsics_of_view
from ..sources.splits import evenly
from ..sources.view import View
from ..teachers.base import Framing, gives_maps, has_adaptive_bins, images_of_views, on_cpu, run_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..sources.base import Sample, Source
    from ..store import Store
    from ..teachers.base import Teacher

NOISE_DRAWS = 2
"""Allowance for noise: the error of the store is another draw of it, and may be larger than the measured one."""
DENSE_KL_NATS = 1e-4
"""Bound of a `dense` map, which is stored as float16: 2^-11 of each weight, 6e-8 for the smallest."""
SMALLEST = 1e-12
NEWER_KEYS = ("python", "config_sha256")
"""Keys of a card's preprocessing that stores of earlier releases lack: a factory's code, a network's configuration."""


class Distance(NamedTuple):
    """Distance of two predictions."""

    median: float
    largest: float


class Agreement(NamedTuple):
    """Depth or maps of a store compared with its live teacher."""

    name: str
    """`depth`, a fraction of it (of the sample's range if relative), or `maps`, in nats."""
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


class _Prediction(NamedTuple):
    depth: NDArray[np.float32]
    dpm: NDArray[np.float32] | None


def compare_with_teacher(
    store: Store,
    source: Source,
    split: str,
    teacher: Teacher,
    *,
    count: int = 16,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[Agreement]:
    """Run a teacher twice on `count` samples, spread evenly over a split, and compare it with the store.

    The first run uses batches, as stage one; the second single images, because other images in a batch may change the
    low bits. Rebinned maps are compared over the store's bins.

    Raises PipelineError if the teacher, an image or the split differs from what the store was made from.
    """
    if count < 1 or batch_size < 1:
        raise PipelineError(f"{count} samples in batches of {batch_size}: expected at least 1 of each")
    _check_card(store, teacher)
    samples = evenly(source.samples(split), count)
    view = View.parse(store.spec.view)
    comparison = _Comparison(store)
    with (progress or Silent()).task("run the teacher twice", 2 * len(samples), "img") as task:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            seen = [_image(store, source, sample, view) for sample in batch]
            images, images_px = [image for image, _ in seen], [image_px for _, image_px in seen]
            cameras = [
                intrinsics_of_view(source, sample, view, image_px)
                for sample, image_px in zip(batch, images_px, strict=True)
            ]
            framing = Framing(view, images_px, cameras)
            first = _answers(store, teacher, batch, images, framing)
            task.update(len(batch))
            for number, sample in enumerate(batch):
                alone = Framing(view, images_px[number : number + 1], cameras[number : number + 1])
                (second,) = _answers(store, teacher, [sample], images[number : number + 1], alone)
                comparison.add(sample, first[number], second)
                task.update(1)
    return comparison.agreements()


def _check_card(store: Store, teacher: Teacher) -> None:
    live: dict[str, Any] = json.loads(canonical_json(teacher.card.as_json()))
    stored = store.spec.teacher
    for key in NEWER_KEYS:
        if key not in (stored.get("preprocessing") or ()):
            live["preprocessing"].pop(key, None)
    different = [
        f"{name} is {stored.get(name)!r} in the store and {live.get(name)!r} live"
        for name in sorted(stored.keys() | live.keys())
        if stored.get(name) != live.get(name)
    ]
    if store.spec.carried_from is not None:
        live_from = "no" if not gives_maps(teacher) else "adaptive" if has_adaptive_bins(teacher) else "fixed"
        if (live_from == "fixed") != (store.spec.carried_from == "fixed") or live_from == "no":
            different.append(
                f"maps were rebinned from {store.spec.carried_from} bins, the teacher has {live_from} bins"
            )
    elif store.spec.dpm_kind != "gaussian":
        edges = None if teacher.bin_edges_m is None else tuple(teacher.bin_edges_m.tolist())
        if edges != store.spec.bin_edges:
            bins = "none" if edges is None else f"{len(edges) - 1} from {edges[0]:g} to {edges[-1]:g}"
            known = store.spec.bin_edges
            different.append(
                f"bins are {store.spec.bin_count} from {known[0]:g} to {known[-1]:g} in the store and {bins} live"
            )
    if different:
        raise PipelineError(
            f"{store.name} was made from another teacher: {'; '.join(different)}. Give `against` and its options as "
            f"they were given to `pipeline cache-teacher` (see `pipeline store info {store.name}`), or the store of "
            "this teacher"
        )


def _answers(
    store: Store, teacher: Teacher, batch: Sequence[Sample], images: Sequence[NDArray[np.uint8]], framing: Framing
) -> list[_Prediction]:
    """Run the teacher on images of the store; rebin maps to the store's bins if it did."""
    pixels = images_of_views(torch.from_numpy(np.stack(images))) if teacher.needs_images else None
    output = on_cpu(run_teacher(teacher, pixels, [sample.id for sample in batch], framing))
    depth, dpm, adaptive_m = output[:3]
    if tuple(depth.shape) != (len(batch), *store.layout.size_px):
        height, width = store.layout.size_px
        raise PipelineError(
            f"teacher {teacher.card.name!r} returned depth of shape {tuple(depth.shape)} for {len(batch)} images, but "
            f"{store.name} holds {height}x{width} px: use the input size and code that made the store"
        )
    depths = depth.float().numpy()
    if store.spec.dpm_kind == "gaussian":
        return [_Prediction(each, None) for each in depths]
    if dpm is None:
        raise PipelineError(
            f"teacher {teacher.card.name!r} returned no maps, but {store.name} holds {store.spec.dpm_kind} maps: use "
            "the code that made the store"
        )
    maps = dpm.float().numpy()
    if store.spec.carried_from is not None:
        edges = [teacher.bin_edges_m] * len(batch) if adaptive_m is None else list(adaptive_m.numpy())
        onto = np.array(store.spec.bin_edges)
        return [
            _Prediction(each, None if own is None else rebin(dpm_of_image, own, onto)[0])
            for each, dpm_of_image, own in zip(depths, maps, edges, strict=True)
        ]
    return [_Prediction(*each) for each in zip(depths, maps, strict=True)]


def _image(store: Store, source: Source, sample: Sample, view: View) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the view of an image and the size (H, W) of the whole image, after checking its hash."""
    image, sha256 = source.read_image(sample)
    store.check_image(store.index_of(sample.id), sample.image_path, sha256)
    return view.of_image(image), (image.shape[0], image.shape[1])


class _Comparison:
    """Distances of all samples: of depth for every pixel, of maps for every sample."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._samples: list[Sample] = []
        self._rounding = 0.0
        self._depth: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
        self._maps: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])

    def add(self, sample: Sample, live: _Prediction, again: _Prediction) -> None:
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

    def agreements(self) -> list[Agreement]:
        """Return the result for depth, and for maps if the store has them."""
        spec = self._store.spec
        bounds = {"depth": spec.max_rel_error + (self._rounding if spec.depth_space not in ABSOLUTE_SPACES else 0)}
        if spec.dpm_kind != "gaussian":
            bounds["maps"] = DENSE_KL_NATS if spec.max_dpm_kl is None else spec.max_dpm_kl
        return [
            Agreement(name, bound, _distance(cache), _distance(noise), self._samples[_worst(cache)].id)
            for (name, bound), (cache, noise) in zip(bounds.items(), (self._depth, self._maps), strict=False)
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
