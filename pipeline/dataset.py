"""Joins a source and a store into training tensors, with one joint geometry for image, teacher and truth.

Every random choice is drawn from (seed, epoch, sample) alone, so that neither the number of loader workers nor an
interruption changes what a student sees.

Shape legend: B batch, M planes of a sparse map, K bins, H W pixels of the training crop, h w of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .relative import Range
    from .sources.base import Sample, Source
    from .sources.view import View
    from .store import Store

COLOUR_RANGE = (0.9, 1.1)


@dataclass(frozen=True)
class Augmentation:
    """What is varied in training; the defaults change nothing."""

    crop_px: tuple[int, int] | None = None
    """(H, W) of a random crop; None keeps the whole view."""
    rotate_deg: float = 0.0
    """Half of the range of rotation, used with probability 1/2."""
    flip: bool = False
    """Mirror with probability 1/2."""
    colour: bool = False
    """Gamma, brightness and colour balance from 0.9 to 1.1, with probability 1/2; on the image alone."""


class Geometry(NamedTuple):
    """Where each pixel of a training crop comes from: rotate about the centre, mirror, crop, in this order."""

    angle_rad: float
    mirrored: bool
    top: int
    left: int
    size_px: tuple[int, int]

    @classmethod
    def draw(cls, augmentation: Augmentation, view_px: tuple[int, int], random: np.random.Generator) -> Geometry:
        """Choose at random. Raises ValueError where the view is smaller than the crop."""
        size = augmentation.crop_px or view_px
        if size[0] > view_px[0] or size[1] > view_px[1]:
            raise ValueError(
                f"--crop {size[0]}x{size[1]} px is larger than the view, {view_px[0]}x{view_px[1]} px: choose a smaller"
            )
        angle = np.deg2rad(random.uniform(-augmentation.rotate_deg, augmentation.rotate_deg))
        rotated = random.random() < 0.5
        mirrored = random.random() < 0.5
        top = int(random.integers(view_px[0] - size[0] + 1))
        left = int(random.integers(view_px[1] - size[1] + 1))
        return cls(float(angle) if rotated else 0.0, augmentation.flip and mirrored, top, left, size)

    def source_positions(
        self, view_px: tuple[int, int], out_px: tuple[int, int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(rows, columns), each (h, w), in the view's pixels, of a grid of `out_px` laid evenly over the crop."""
        rows = self.top + (np.arange(out_px[0]) + 0.5) * (self.size_px[0] / out_px[0]) - 0.5
        columns = self.left + (np.arange(out_px[1]) + 0.5) * (self.size_px[1] / out_px[1]) - 0.5
        if self.mirrored:
            columns = view_px[1] - 1 - columns
        centre_row, centre_column = (view_px[0] - 1) / 2, (view_px[1] - 1) / 2
        down, right = rows[:, None] - centre_row, columns[None, :] - centre_column
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        return centre_row + cos * down + sin * right, centre_column - sin * down + cos * right

    def of_map(
        self, values: NDArray[Any], view_px: tuple[int, int], out_px: tuple[int, int], outside: float
    ) -> NDArray[Any]:
        """Nearest values (..., h, w) of a map (..., any size) that covers the view; `outside` beyond its edge.

        Nearest, because a depth between two surfaces belongs to neither. The map may have its own resolution.
        """
        height, width = values.shape[-2:]
        if self._plain(out_px) and (height, width) == view_px:
            part = values[..., self.top : self.top + out_px[0], self._columns(view_px)]
            return np.ascontiguousarray(part[..., ::-1] if self.mirrored else part)
        rows, columns = self.source_positions(view_px, out_px)
        row = np.floor((rows + 0.5) * (height / view_px[0])).astype(np.intp)
        column = np.floor((columns + 0.5) * (width / view_px[1])).astype(np.intp)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        taken = values[..., np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
        return np.where(inside, taken, np.asarray(outside, values.dtype))

    def of_image(self, image: NDArray[np.uint8]) -> Tensor:
        """Bilinear image (3, H, W) float32 in 0..1 of an image (view H, view W, 3); black beyond its edge."""
        view_px = (image.shape[0], image.shape[1])
        if self._plain(self.size_px):
            part = image[self.top : self.top + self.size_px[0], self._columns(view_px)]
            part = np.ascontiguousarray(part[:, ::-1] if self.mirrored else part)
            return torch.from_numpy(part).permute(2, 0, 1).float() / 255
        rows, columns = self.source_positions(view_px, self.size_px)
        grid = np.stack([columns / (view_px[1] - 1) * 2 - 1, rows / (view_px[0] - 1) * 2 - 1], -1)
        whole = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()[None] / 255
        turned: Tensor = F.grid_sample(whole, torch.from_numpy(grid).float()[None], align_corners=True)[0]
        return turned

    def _plain(self, out_px: tuple[int, int]) -> bool:
        return self.angle_rad == 0 and out_px == self.size_px

    def _columns(self, view_px: tuple[int, int]) -> slice:
        left = view_px[1] - self.left - self.size_px[1] if self.mirrored else self.left
        return slice(left, left + self.size_px[1])


def vary_colour(image: Tensor, random: np.random.Generator) -> Tensor:
    """Gamma, brightness and colour balance of an image (3, H, W) in 0..1, with probability 1/2."""
    gamma, brightness = random.uniform(*COLOUR_RANGE, 2)
    balance = random.uniform(*COLOUR_RANGE, 3)
    if random.random() < 0.5:
        return image
    scale = torch.from_numpy(brightness * balance).float().view(3, 1, 1)
    return (image.pow(float(gamma)) * scale).clamp(0, 1)


class Item(NamedTuple):
    """What a student learns from: one sample, or a batch with B in front of each shape."""

    image: Tensor
    """(3, H, W) float32 in 0..1."""
    target_depth_m: Tensor
    """(1, H, W) float32 metres, NaN where there is none: the teacher's depth, or ground truth. Of a relative teacher it
    is relative depth (`relative.Range`)."""
    gap: Tensor | None
    """(M, h, w), with `weight` (M, h, w) and `tail` (h, w): the teacher's sparse map as the store holds it."""
    weight: Tensor | None
    tail: Tensor | None


class TrainingData(Dataset[Item]):
    """Samples of a split for training, keyed by (epoch, number) so that each epoch varies them anew.

    Raises ValueError where the store lacks a sample of the split or was made for other images.
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
    ) -> None:
        """`store` None trains on ground truth; `maps_px` (h, w) asks for the store's sparse maps at that size.

        With `relative` the target is relative depth, ranged over what the network is shown, the crop: it has no way to
        know what lies outside. `flips` is the same teacher's store of the mirrored view: a mirrored crop then gets
        what the teacher said of the mirrored image, in place of its word of the image, mirrored.
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
            self.numbers = np.array([store.index_of(sample.id) for sample in samples])
        if flips is not None:
            assert store is not None
            self.flip_numbers = np.array([flips.index_of(sample.id) for sample in samples])
            same = store.image_sha256[self.numbers] == flips.image_sha256[self.flip_numbers]
            if not same.all():
                other = samples[int(np.flatnonzero(~same.all(axis=1))[0])].id
                raise ValueError(
                    f"{flips.name} and {store.name} were made from different images of {other!r} (sha256): make both "
                    "in one run, `pipeline cache-teacher --cache-flips`"
                )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, number = key
        random = np.random.default_rng([self.seed, epoch, number])
        sample = self.samples[number]
        image = self._image(sample, number)
        view_px = (image.shape[0], image.shape[1])
        geometry = Geometry.draw(self.augmentation, view_px, random)
        target_m = self._target_m(sample, number, view_px, geometry.mirrored)
        depth_m = geometry.of_map(target_m, view_px, geometry.size_px, np.nan)
        if self.relative is not None:
            depth_m = self.relative.of(depth_m)
        picture = geometry.of_image(image)
        if self.augmentation.colour:
            picture = vary_colour(picture, random)
        planes: tuple[Tensor, Tensor, Tensor] | tuple[None, None, None] = (None, None, None)
        if self.maps_px is not None:
            store, place, back = self._teacher(number, geometry.mirrored)
            stored = store.sparse_dpm(place)
            gap, weight, tail = (geometry.of_map(part[..., ::back], view_px, self.maps_px, 0) for part in stored)
            planes = (torch.from_numpy(gap), torch.from_numpy(weight), torch.from_numpy(tail))
        return Item(picture, torch.from_numpy(depth_m)[None], *planes)

    def _image(self, sample: Sample, number: int) -> NDArray[np.uint8]:
        """The view of the image, if it is the one that the teacher saw."""
        image, sha256 = self.source.read_image(sample)
        if self.store is not None:
            expected = self.store.image_sha256[self.numbers[number]].tobytes().hex()
            if sha256 != expected:
                raise ValueError(
                    f"{sample.image_path} is not the image that the teacher saw: its sha256 is {sha256[:16]}..., "
                    f"{self.store.name} was made from {expected[:16]}...; use the same images, or run "
                    "`pipeline cache-teacher` over these"
                )
        return self.view.of_image(image)

    def _teacher(self, number: int, mirrored: bool) -> tuple[Store, int, int]:
        """Store and position that teach a crop, and the step that brings its columns into the view's order."""
        if mirrored and self.flips is not None:
            return self.flips, int(self.flip_numbers[number]), -1
        assert self.store is not None
        return self.store, int(self.numbers[number]), 1

    def _target_m(self, sample: Sample, number: int, view_px: tuple[int, int], mirrored: bool) -> NDArray[np.float32]:
        """What is learned, (H, W) as the view lies, before the crop and its mirroring."""
        if self.store is None:
            truth_m = self.source.read_truth_m(sample)
            if truth_m is None:
                return np.full(view_px, np.nan, np.float32)
            return self.view.of_truth_m(truth_m)
        store, place, back = self._teacher(number, mirrored)
        depth_m = store.depth_m(place) if self.relative is None else store.depth(place)
        return upsampled(depth_m, view_px)[:, ::back]


def upsampled(depth_m: NDArray[np.float32], size_px: tuple[int, int]) -> NDArray[np.float32]:
    """Depth (h, w) at another size (H, W), bilinear; pixels that touch an invalid one are invalid."""
    if depth_m.shape == size_px:
        return depth_m
    resized = F.interpolate(torch.from_numpy(depth_m)[None, None], size_px, mode="bilinear", align_corners=False)
    larger: NDArray[np.float32] = resized[0, 0].numpy()
    return larger


def collate(items: list[Item]) -> Item:
    """Stack samples; sparse maps are padded with empty planes to the deepest of the batch."""

    def stack(parts: list[Tensor | None]) -> Tensor | None:
        known = [part for part in parts if part is not None]
        if not known:
            return None
        if known[0].ndim == 3:
            deepest = max(len(part) for part in known)
            known = [F.pad(part, (0, 0, 0, 0, 0, deepest - len(part))) for part in known]
        return torch.stack(known)

    images = torch.stack([item.image for item in items])
    depth_m = torch.stack([item.target_depth_m for item in items])
    return Item(
        images,
        depth_m,
        stack([item.gap for item in items]),
        stack([item.weight for item in items]),
        stack([item.tail for item in items]),
    )


def cut(batch: Item, parts: int) -> list[Item]:
    """A batch as equal parts, in order."""
    pieces = [[None] * parts if whole is None else whole.chunk(parts) for whole in batch]
    return [Item(*part) for part in zip(*pieces, strict=True)]


def dense_maps(batch: Item, bins: int, table: Tensor) -> Tensor | None:
    """Maps (B, K, h, w) float32 of a batch on its device, zero where there is no value; None if it has none.

    `table` is the probability of each weight code, from the store's format. Mirrors `store.sparse.decode_sparse`.
    """
    if batch.gap is None or batch.weight is None or batch.tail is None:
        return None
    gap = batch.gap.long()
    present = gap > 0
    # Planes that a pixel does not use write to a row of their own, which is cut off.
    target = torch.where(present, gap.cumsum(1) - 1, bins)
    count = present.sum(1, keepdim=True)
    share = table[batch.tail.long()][:, None] / (bins - count).clamp(min=1)
    whole = share.expand(-1, bins + 1, -1, -1).clone()
    whole.scatter_(1, target, table[batch.weight.long()])
    whole = whole[:, :bins] * (count > 0)
    return whole / whole.sum(1, keepdim=True).clamp(min=torch.finfo(whole.dtype).tiny)
