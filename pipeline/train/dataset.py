"""Joins a source and a store into training tensors, with one joint geometry for image, teacher and truth.

Every random choice is drawn from (seed, epoch, sample) alone, so that neither the number of loader workers nor an
interruption changes what a student sees.

Shape legend: B batch, M planes of a sparse map, K bins, H W pixels of the training crop, h w of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..depth.resize import upsampled
from ..errors import PipelineError
from ..sources.truth import read_truth_of_view_m
from .augment import Augmentation, ColorJitter, Geometry, identity_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..depth.relative import Range
    from ..sources.base import Sample, Source
    from ..sources.view import View
    from ..store import Store
    from ..store.images.reader import ImageCache

__all__ = ["Augmentation", "Item", "TrainingData", "collate", "cut", "upsampled"]


class Item(NamedTuple):
    """What a student learns from: one sample, or a batch with B in front of each shape."""

    image: Tensor
    """(3, H, W) uint8, a quarter of what floats would take from process to process and to the device."""
    color_tables: Tensor
    """(3, 1, 256) float32 in 0..1: what each value of each colour stands for (`augment.apply_tables`)."""
    target_depth_m: Tensor
    """(1, H, W) float32 metres, NaN where there is none: the teacher's depth, or ground truth. Of a relative teacher it
    is relative depth (`relative.Range`)."""
    gap: Tensor | None
    """(M, h, w), with `weight` (M, h, w) and `tail` (h, w): the teacher's sparse map as the store holds it."""
    weight: Tensor | None
    tail: Tensor | None


class TrainingData(Dataset[Item]):
    """Samples of a split for training, keyed by (epoch, number) so that each epoch varies them anew.

    Raises PipelineError where the store lacks a sample of the split or was made for other images.
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
    ) -> None:
        """`store` None trains on ground truth; `maps_px` (h, w) asks for the store's sparse maps at that size.

        With `relative` the target is relative depth, ranged over what the network is shown, the crop: it has no way to
        know what lies outside. `flips` is the same teacher's store of the mirrored view: a mirrored crop then gets
        what the teacher said of the mirrored image, in place of its word of the image, mirrored. `images` holds the
        views of the source's images, which are then not read, and changes nothing else.
        """
        self.source = source
        self.samples = samples
        self.view = view
        self.store = store
        self.maps_px = maps_px
        self.augmentation = augmentation
        self.seed = seed
        self.relative = relative
        self.flips = flips
        if store is not None:
            self.numbers = store.indexes_of([sample.id for sample in samples])
        if flips is not None:
            assert store is not None
            self.flip_numbers = flips.indexes_of([sample.id for sample in samples])
            same = store.image_sha256[self.numbers] == flips.image_sha256[self.flip_numbers]
            if not same.all():
                other = samples[int(np.flatnonzero(~same.all(axis=1))[0])].id
                raise PipelineError(
                    f"{flips.name} and {store.name} were made from different images of {other!r} (sha256): make both "
                    "in one run of `pipeline cache-teacher` with `cache_flips`"
                )
        self.images = images
        if images is not None:
            self.image_numbers = self._kept(images)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, number = key
        random = np.random.default_rng([self.seed, epoch, number])
        sample = self.samples[number]
        image, image_px = self._image(sample, number)
        view_px = (image.shape[0], image.shape[1])
        geometry = Geometry.draw(self.augmentation, view_px, random)
        if self.store is None:
            target_m = self._truth_m(sample, image_px, view_px)
        else:
            target_m = self._taught_m(number, view_px, geometry.mirrored)
        depth_m = geometry.warp_map(target_m, view_px, geometry.size_px, np.nan)
        if self.relative is not None:
            depth_m = self.relative.of(depth_m)
        jitter = ColorJitter.draw(random) if self.augmentation.colour else None
        color_tables = identity_table() if jitter is None else jitter.table()
        planes: tuple[Tensor, Tensor, Tensor] | tuple[None, None, None] = (None, None, None)
        if self.maps_px is not None:
            store, place, back = self._teacher(number, geometry.mirrored)
            stored = store.sparse_dpm(place)
            gap, weight, tail = (geometry.warp_map(part[..., ::back], view_px, self.maps_px, 0) for part in stored)
            planes = (torch.from_numpy(gap), torch.from_numpy(weight), torch.from_numpy(tail))
        return Item(geometry.warp_image(image), color_tables, torch.from_numpy(depth_m)[None], *planes)

    def whole_target_m(self, number: int) -> NDArray[np.float32]:
        """What is learned of a sample, (H, W) of the whole view, neither cropped nor mirrored; NaN for no value."""
        sample = self.samples[number]
        image, image_px = self._image(sample, number)
        view_px = (image.shape[0], image.shape[1])
        if self.store is None:
            return self._truth_m(sample, image_px, view_px)
        target = self._taught_m(number, view_px, mirrored=False)
        return target if self.relative is None else self.relative.of(target)

    def _image(self, sample: Sample, number: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The view of the image, if it is the one that the teacher saw, and the size (H, W) of the whole image."""
        if self.images is not None:
            place = int(self.image_numbers[number])
            height, width = self.images.image_size_px[place].tolist()
            return self.images.image(place), (height, width)
        image, sha256 = self.source.read_image(sample)
        if self.store is not None:
            expected = self.store.image_sha256[self.numbers[number]].tobytes().hex()
            if sha256 != expected:
                raise PipelineError(
                    f"{sample.image_path} is not the image that the teacher saw: its sha256 is {sha256[:16]}..., "
                    f"{self.store.name} was made from {expected[:16]}...; use the same images, or run "
                    "`pipeline cache-teacher` over these"
                )
        return self.view.of_image(image), (image.shape[0], image.shape[1])

    def _kept(self, images: ImageCache) -> NDArray[np.int64]:
        """Positions of the kept images. Raises PipelineError unless they are what the teacher saw."""
        if images.spec.view != str(self.view):
            raise PipelineError(
                f"{images.name} holds the view {images.spec.view}, training looks at {self.view}: run "
                f"`pipeline cache-images` with `view={self.view}`"
            )
        numbers = images.numbers([sample.id for sample in self.samples])
        if self.store is not None:
            same = images.image_sha256[numbers] == self.store.image_sha256[self.numbers]
            if not same.all():
                other = self.samples[int(np.flatnonzero(~same.all(axis=1))[0])].id
                raise PipelineError(
                    f"{images.name} and {self.store.name} were made from different images of {other!r} (sha256): run "
                    "`pipeline cache-images` and `pipeline cache-teacher` over the same"
                )
        return numbers

    def _teacher(self, number: int, mirrored: bool) -> tuple[Store, int, int]:
        """Store and position that teach a crop, and the step that brings its columns into the view's order."""
        if mirrored and self.flips is not None:
            return self.flips, int(self.flip_numbers[number]), -1
        assert self.store is not None
        return self.store, int(self.numbers[number]), 1

    def _truth_m(self, sample: Sample, image_px: tuple[int, int], view_px: tuple[int, int]) -> NDArray[np.float32]:
        """Ground truth (H, W) of the view, NaN where there is none."""
        truth_m = read_truth_of_view_m(self.source, sample, self.view, image_px)
        return np.full(view_px, np.nan, np.float32) if truth_m is None else truth_m

    def _taught_m(self, number: int, view_px: tuple[int, int], mirrored: bool) -> NDArray[np.float32]:
        """What the teacher said, (H, W) as the view lies, before the crop and its mirroring."""
        store, place, back = self._teacher(number, mirrored)
        depth_m = store.depth_m(place) if self.relative is None else store.depth(place)
        return upsampled(depth_m, view_px)[:, ::back]


def collate(items: list[Item]) -> Item:
    """Stack samples; sparse maps are padded with empty planes to the deepest of the batch."""

    def stack(parts: list[Tensor | None]) -> Tensor | None:
        known = [part for part in parts if part is not None]
        if not known:
            return None
        if known[0].ndim == 3:
            deepest = max(len(part) for part in known)
            known = [F.pad(part, (0, 0, 0, 0, 0, deepest - len(part))) for part in known]
        stacked: Tensor = default_collate(known)  # in a loader process, straight into memory that processes share
        return stacked

    return Item(
        default_collate([item.image for item in items]),
        default_collate([item.color_tables for item in items]),
        default_collate([item.target_depth_m for item in items]),
        stack([item.gap for item in items]),
        stack([item.weight for item in items]),
        stack([item.tail for item in items]),
    )


def cut(batch: Item, parts: int) -> list[Item]:
    """A batch as equal parts, in order."""
    pieces = [[None] * parts if whole is None else whole.chunk(parts) for whole in batch]
    return [Item(*part) for part in zip(*pieces, strict=True)]
