"""Training samples: augmented images of a source with targets from a store or from ground truth.

Augmentations depend on seed, epoch and sample alone, not on the number of workers or on interruptions.

Shape legend: B batch, M planes of a sparse map, K bins, H W pixels of the training crop, h w of the logits.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..depth.resize import upsampled
from ..errors import PipelineError
from ..losses.registry import IS_SKY
from ..sources.truth import read_truth_of_view_m
from .augment import Augmentation, ColorJitter, Geometry, identity_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..depth.relative import Range
    from ..sources.base import Sample, Source
    from ..sources.view import View
    from ..store import Store
    from ..store.images.reader import ImageCache

__all__ = ["Augmentation", "Item", "TrainingData", "collate", "split_batch"]


class Item(NamedTuple):
    """One training sample; or a batch, with B in front of each shape."""

    image: Tensor
    """(3, H, W) uint8, a quarter of the bytes of float32 to copy between processes and to the device."""
    color_tables: Tensor
    """(3, 1, 256) float32: value in 0..1 of each uint8 value, for each channel (`augment.apply_tables`)."""
    target_depth_m: Tensor
    """(1, H, W) float32 metres, NaN where invalid: the teacher's depth or ground truth; relative depth for a relative
    teacher (`relative.Range`)."""
    gap: Tensor | None
    """(M, h, w), with `weight` (M, h, w) and `tail` (h, w): the teacher's sparse map, encoded as in the store."""
    weight: Tensor | None
    tail: Tensor | None
    signals: dict[str, Tensor] | None = None
    """(1, H, W) float32 in 0..1 each, 0 outside of the view: signals of the store that terms of the loss need."""

    def to(self, device: torch.device) -> Item:
        """Return the sample or batch on a device."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Item:
        """Return the sample or batch with each tensor changed."""
        tensors = {name: change(value) for name, value in self._asdict().items() if isinstance(value, Tensor)}
        signals = None if self.signals is None else {name: change(value) for name, value in self.signals.items()}
        return self._replace(**tensors, signals=signals)


class TrainingData(Dataset[Item]):
    """Samples of a split, with keys (epoch, index): each epoch augments a sample differently.

    Args:
        source: images and ground truth.
        samples: samples of the split.
        view: view of the images, the same as the store's.
        store: cached teacher; None takes ground truth as the target.
        maps_px: size (h, w) of the sparse maps to read from the store; None reads none.
        augmentation: augmentations to apply.
        seed: seed of the augmentations.
        relative: range of the relative depth to learn, computed over each crop, which is all that the network sees.
        flips: the same teacher's store of the mirrored view. Mirrored crops take its prediction; without it, they take
            the mirrored prediction.
        images: image cache to read instead of image files; it does not change the samples.
        signals: names of the store's signals to read.

    Raises PipelineError if the store lacks a sample of the split, or was made from other images.
    """

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        view: View,
        *,
        store: Store | None,
        maps_px: tuple[int, int] | None,
        augmentation: Augmentation,
        seed: int,
        relative: Range | None = None,
        flips: Store | None = None,
        images: ImageCache | None = None,
        signals: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.samples = samples
        self.view = view
        self.store = store
        self.maps_px = maps_px
        self.augmentation = augmentation
        self.seed = seed
        self.relative = relative
        self.flips = flips
        self.signals = signals
        if store is not None:
            self.store_rows = store.indexes_of([sample.id for sample in samples])
        if flips is not None:
            assert store is not None
            self.flip_rows = flips.indexes_of([sample.id for sample in samples])
            remedy = "make both in one run of `pipeline cache-teacher` with `cache_flips`"
            store.check_same_images(self.store_rows, flips, self.flip_rows, remedy)
        self.images = images
        if images is not None:
            self.image_rows = self._image_rows(images)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        return self.item(index, np.random.default_rng([self.seed, epoch, index]))

    def item(self, index: int, random: np.random.Generator) -> Item:
        """Return a sample, with augmentations drawn from `random`."""
        sample = self.samples[index]
        image, image_px = self._image(sample, index)
        view_px = (image.shape[0], image.shape[1])
        geometry = Geometry.draw(self.augmentation, view_px, random)
        if self.store is None:
            target_m = self._truth_m(sample, image_px, view_px)
        else:
            target_m = self._teacher_m(index, view_px, geometry.mirrored)
        depth_m = geometry.warp_map(target_m, view_px, geometry.size_px, np.nan)
        if self.relative is not None:
            depth_m = self.relative.of(depth_m)
        jitter = ColorJitter.draw(random) if self.augmentation.color else None
        color_tables = identity_table() if jitter is None else jitter.table()
        item = Item(geometry.warp_image(image), color_tables, torch.from_numpy(depth_m)[None], None, None, None)
        if self.maps_px is not None:
            store, row, step = self._store_row(index, geometry.mirrored)
            stored = store.sparse_dpm(row)
            gap, weight, tail = (geometry.warp_map(part[..., ::step], view_px, self.maps_px, 0) for part in stored)
            item = item._replace(
                gap=torch.from_numpy(gap), weight=torch.from_numpy(weight), tail=torch.from_numpy(tail)
            )
        if self.signals:
            signals = {name: self._signal(name, index, geometry, view_px) for name in self.signals}
            item = item._replace(signals=signals)
        return item

    def sample_id(self, index: int) -> str:
        """Return the id of a sample, for errors."""
        return self.samples[index].id

    def whole_target_m(self, index: int) -> NDArray[np.float32]:
        """Return the target (H, W) of the whole view without augmentation.

        NaN where invalid, and where the signals that are read say so: sky, or no confidence.
        """
        sample = self.samples[index]
        image, image_px = self._image(sample, index)
        view_px = (image.shape[0], image.shape[1])
        if self.store is None:
            return self._truth_m(sample, image_px, view_px)
        target = self._teacher_m(index, view_px, mirrored=False)
        whole = Geometry(0.0, mirrored=False, top=0, left=0, size_px=view_px)
        for name in self.signals:
            signal = self._signal(name, index, whole, view_px)[0].numpy()
            ignored = signal >= IS_SKY if name == "sky" else signal <= 0
            target = np.where(ignored, np.float32(np.nan), target)
        return target if self.relative is None else self.relative.of(target)

    def _image(self, sample: Sample, index: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """View of an image, checked against the store, and the size (H, W) of the whole image."""
        if self.images is not None:
            row = int(self.image_rows[index])
            height, width = self.images.image_size_px[row].tolist()
            return self.images.image(row), (height, width)
        image, sha256 = self.source.read_image(sample)
        if self.store is not None:
            self.store.check_image(int(self.store_rows[index]), sample.image_path, sha256)
        return self.view.of_image(image), (image.shape[0], image.shape[1])

    def _image_rows(self, images: ImageCache) -> NDArray[np.int64]:
        """Rows of the samples in an image cache. Raises PipelineError if its view or images differ from the store's."""
        if images.spec.view != str(self.view):
            raise PipelineError(
                f"{images.name} holds the view {images.spec.view}, but training uses {self.view}: run "
                f"`pipeline cache-images` with `view={self.view}`"
            )
        rows = images.numbers([sample.id for sample in self.samples])
        if self.store is not None:
            remedy = "run `pipeline cache-images` and `pipeline cache-teacher` over the same images"
            self.store.check_same_images(self.store_rows, images, rows, remedy)
        return rows

    def _store_row(self, index: int, mirrored: bool) -> tuple[Store, int, int]:
        """Store and row with the prediction of a sample, and the step (1 or -1) that puts its columns in view order."""
        if mirrored and self.flips is not None:
            return self.flips, int(self.flip_rows[index]), -1
        assert self.store is not None
        return self.store, int(self.store_rows[index]), 1

    def _truth_m(self, sample: Sample, image_px: tuple[int, int], view_px: tuple[int, int]) -> NDArray[np.float32]:
        """Ground truth (H, W) of the view, NaN where invalid."""
        truth_m = read_truth_of_view_m(self.source, sample, self.view, image_px)
        return np.full(view_px, np.nan, np.float32) if truth_m is None else truth_m

    def _teacher_m(self, index: int, view_px: tuple[int, int], mirrored: bool) -> NDArray[np.float32]:
        """The teacher's depth (H, W) of the view, in the columns of the view that is not mirrored."""
        store, row, step = self._store_row(index, mirrored)
        depth_m = store.depth_m(row) if self.relative is None else store.depth(row)
        return upsampled(depth_m, view_px)[:, ::step]

    def _signal(self, name: str, index: int, geometry: Geometry, view_px: tuple[int, int]) -> Tensor:
        """A signal (1, H, W) of the crop: the nearest value, as for depth, and 0 outside of the view.

        There the teacher is not confident, and sees no sky.
        """
        store, row, step = self._store_row(index, geometry.mirrored)
        signal = geometry.warp_map(store.signal(name, row)[:, ::step], view_px, geometry.size_px, 0.0)
        return torch.from_numpy(signal)[None]


def collate(items: list[Item]) -> Item:
    """Stack samples; sparse maps are padded with empty planes to the most planes of the batch."""

    def stack(parts: list[Tensor | None]) -> Tensor | None:
        tensors = [part for part in parts if part is not None]
        if not tensors:
            return None
        if tensors[0].ndim == 3:
            planes = max(len(tensor) for tensor in tensors)
            tensors = [F.pad(tensor, (0, 0, 0, 0, 0, planes - len(tensor))) for tensor in tensors]
        stacked: Tensor = default_collate(tensors)  # in a worker, directly into shared memory
        return stacked

    return Item(
        default_collate([item.image for item in items]),
        default_collate([item.color_tables for item in items]),
        default_collate([item.target_depth_m for item in items]),
        stack([item.gap for item in items]),
        stack([item.weight for item in items]),
        stack([item.tail for item in items]),
        None if items[0].signals is None else default_collate([item.signals for item in items]),
    )


def split_batch(batch: Item, parts: int) -> list[Item]:
    """Split a batch into equal parts, in order."""
    size = len(batch.image) // parts
    ranges = [slice(part * size, (part + 1) * size) for part in range(parts)]
    return [batch.mapped(itemgetter(images)) for images in ranges]
