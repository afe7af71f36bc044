"""A trained student over the images of a split: its maps, its depth, and the ground truth beside them.

Shape legend: B batch, K bins, H W pixels of the view, h w of the logits.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..common.parallel import in_order
from ..depth.dpm import expected_depth
from ..depth.metrics import PROTOCOLS, depth_metrics, mean_metrics
from ..sources.truth import read_truth_of_view_m
from .saved_run import normalise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from ..sources.base import Sample, Source
    from ..sources.view import View


class Frame(NamedTuple):
    """One image with its ground truth, both as the view shows them."""

    sample: Sample
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    image_sha256: str
    truth_m: NDArray[np.float32] | None
    """(H, W) metres, NaN where there is none; None where the source has no truth for the image."""


def read_frame(source: Source, sample: Sample, view: View) -> Frame:
    """Read an image and its truth. Raises ValueError naming the file that is at fault."""
    image, sha256 = source.read_image(sample)
    truth_m = read_truth_of_view_m(source, sample, view, (image.shape[0], image.shape[1]))
    return Frame(sample, view.of_image(image), sha256, truth_m)


def frames_in_batches(source: Source, samples: Sequence[Sample], view: View, batch_size: int) -> Iterator[list[Frame]]:
    """Frames in order, read ahead in threads; a batch ends early where the next image has another size."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "read") as pool:
        futures = in_order(pool, lambda sample: read_frame(source, sample, view), samples, 2 * batch_size)
        batch: list[Frame] = []
        for future in futures:
            frame = future.result()
            if batch and (len(batch) == batch_size or frame.image.shape != batch[0].image.shape):
                yield batch
                batch = []
            batch.append(frame)
        if batch:
            yield batch


@torch.inference_mode()
def predict_map(network: nn.Module, images: Tensor) -> Tensor:
    """Depth probability maps (B, K, h, w) float32 for images (B, 3, H, W) in 0..1 on the network's device."""
    return torch.softmax(network(normalise(images)).float(), dim=1)


@torch.inference_mode()
def predict_depth_m(network: nn.Module, images: Tensor, bin_edges_m: Tensor, *, flip_average: bool) -> Tensor:
    """Depth (B, H, W) metres for images (B, 3, H, W) in 0..1, upsampled from the map's own resolution.

    With `flip_average`, the mean of the prediction and of the mirrored image's, mirrored back.
    """
    depth_m = expected_depth(predict_map(network, images), bin_edges_m)
    if flip_average:
        mirrored = expected_depth(predict_map(network, images.flip(-1)), bin_edges_m)
        depth_m = (depth_m + mirrored.flip(-1)) / 2
    return _as_large_as(images, depth_m)


class Looks(NamedTuple):
    """What a student says of images and of their mirrored ones."""

    maps: Tensor
    """(B, K, h, w) of the images themselves"""
    depth_m: Tensor
    """(B, H, W) the prediction, exactly as `predict_depth_m` gives it"""
    plain_m: Tensor
    """(B, H, W) of the images themselves"""
    mirrored_m: Tensor
    """(B, H, W) of the mirrored images, mirrored back"""


@torch.inference_mode()
def predict_looks(network: nn.Module, images: Tensor, bin_edges_m: Tensor, *, flip_average: bool) -> Looks:
    """Look at images (B, 3, H, W) in 0..1 twice. A flip average is one of depths: the maps are never mixed."""
    # The mirrored look first: its maps are gone before the others are there.
    mirrored_m = expected_depth(predict_map(network, images.flip(-1)), bin_edges_m).flip(-1)
    maps = predict_map(network, images)
    plain_m = expected_depth(maps, bin_edges_m)
    depth_m = (plain_m + mirrored_m) / 2 if flip_average else plain_m
    return Looks(maps, *(_as_large_as(images, each_m) for each_m in (depth_m, plain_m, mirrored_m)))


def _as_large_as(images: Tensor, depth_m: Tensor) -> Tensor:
    """Depth (B, H, W) as large as the images, of depth (B, 1, h, w)."""
    if depth_m.shape[-2:] != images.shape[-2:]:
        depth_m = F.interpolate(depth_m, images.shape[-2:], mode="bilinear", align_corners=False)
    return depth_m[:, 0]


def images_of(frames: Sequence[Frame], device: torch.device) -> Tensor:
    """Images (B, 3, H, W) float32 in 0..1 on the device."""
    stacked = torch.from_numpy(np.stack([frame.image for frame in frames]))
    return stacked.to(device).permute(0, 3, 1, 2).float() / 255


def evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples spread evenly over a split, or all of them where it has fewer."""
    if count >= len(samples):
        return list(samples)
    return [samples[number * len(samples) // count] for number in range(count)]


def validate(
    network: nn.Module,
    bin_edges_m: Tensor,
    source: Source,
    split: str,
    view: View,
    count: int,
    device: torch.device,
    align: str = "none",
) -> dict[str, float]:
    """Mean metrics of a network in training over `count` images of a split, spread evenly, without flip average.

    `align` as in `metrics.Protocol`.
    """
    protocol = replace(PROTOCOLS[source.customs.protocol], flip_average=False, align=align)
    found: list[dict[str, float]] = []
    for frames in frames_in_batches(source, evenly(source.samples(split), count), view, 4):
        depth_m = predict_depth_m(network, images_of(frames, device), bin_edges_m, flip_average=False).cpu().numpy()
        for frame, one in zip(frames, depth_m, strict=True):
            mask = None if frame.truth_m is None else protocol.mask(frame.truth_m)
            if mask is not None and frame.truth_m is not None and mask.any():
                found.append(depth_metrics(protocol.prepared(one, frame.truth_m, mask), frame.truth_m, mask))
    return mean_metrics(found) if found else {}
