"""Prediction of maps and depth with a student, and validation during training.

Shape legend: B batch, K bins, H W pixels of the view, h w of the logits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from ..depth.metrics import PROTOCOLS, depth_metrics, mean_metrics
from ..sources.frames import frames_in_batches, images_of
from ..sources.splits import evenly
from .saved_run import normalize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..sources.base import Source
    from ..sources.view import View
    from .reader import Reader


@torch.inference_mode()
def predict_outputs(network: nn.Module, images: Tensor) -> Tensor:
    """Predict outputs (B, C, h, w), for a `Reader`, of images (B, 3, H, W) in 0..1 on the device of the network."""
    outputs: Tensor = network(normalize(images))
    return outputs


@torch.inference_mode()
def predict_map(network: nn.Module, images: Tensor, reader: Reader) -> Tensor:
    """Predict maps (B, K, h, w), float32, of images (B, 3, H, W) in 0..1 on the device of the network."""
    return reader.maps(predict_outputs(network, images))


@torch.inference_mode()
def predict_depth_m(network: nn.Module, images: Tensor, reader: Reader, *, flip_average: bool) -> Tensor:
    """Predict depth (B, H, W) in metres of images (B, 3, H, W) in 0..1, upsampled from the resolution of the outputs.

    With `flip_average`, it is averaged with the prediction for the mirrored image, mirrored back.
    """
    depth_m = reader.depth_m(predict_outputs(network, images))
    if flip_average:
        mirrored = reader.depth_m(predict_outputs(network, images.flip(-1)))
        depth_m = (depth_m + mirrored.flip(-1)) / 2
    return resize_to(images, depth_m)


class BatchViews(NamedTuple):
    """Predictions for images and for their mirror images."""

    maps: Tensor
    """(B, K, h, w) of the images, not flip-averaged"""
    depth_m: Tensor
    """(B, H, W) equal to `predict_depth_m`"""
    direct_m: Tensor
    """(B, H, W) of the images, not flip-averaged"""
    mirrored_m: Tensor
    """(B, H, W) of the mirrored images, mirrored back"""


@torch.inference_mode()
def predict_views(network: nn.Module, images: Tensor, reader: Reader, *, flip_average: bool) -> BatchViews:
    """Predict images (B, 3, H, W) in 0..1 and their mirror images. `flip_average` averages depth, not maps."""
    # The mirror images first, so that their maps are freed before the others are made
    mirrored_m = reader.depth_m(predict_outputs(network, images.flip(-1))).flip(-1)
    outputs = predict_outputs(network, images)
    maps = reader.maps(outputs)
    direct_m = reader.depth_m(outputs, maps)
    depth_m = (direct_m + mirrored_m) / 2 if flip_average else direct_m
    return BatchViews(maps, *(resize_to(images, each_m) for each_m in (depth_m, direct_m, mirrored_m)))


def resize_to(images: Tensor, depth_m: Tensor) -> Tensor:
    """Resize depth (B, 1, h, w) to the size of the images: (B, H, W)."""
    if depth_m.shape[-2:] != images.shape[-2:]:
        depth_m = F.interpolate(depth_m, images.shape[-2:], mode="bilinear", align_corners=False)
    return depth_m[:, 0]


def validate(
    network: nn.Module,
    reader: Reader,
    source: Source,
    split: str,
    view: View,
    count: int,
    device: torch.device,
    align: str = "none",
) -> dict[str, float]:
    """Return mean metrics of a network over `count` evenly spaced images of a split, without flip average.

    `align` as in `metrics.Protocol`. Empty if no image has ground truth inside the protocol.
    """
    protocol = replace(PROTOCOLS[source.defaults.protocol], flip_average=False, align=align)
    metrics: list[dict[str, float]] = []
    for frames in frames_in_batches(source, evenly(source.samples(split), count), view, 4):
        depth_m = predict_depth_m(network, images_of(frames, device), reader, flip_average=False).cpu().numpy()
        for frame, predicted_m in zip(frames, depth_m, strict=True):
            mask = None if frame.truth_m is None else protocol.mask(frame.truth_m)
            if mask is not None and frame.truth_m is not None and mask.any():
                metrics.append(depth_metrics(protocol.prepared(predicted_m, frame.truth_m, mask), frame.truth_m, mask))
    return mean_metrics(metrics) if metrics else {}
