"""A trained student over the images of a split: its maps, its depth, and the ground truth beside them.

Shape legend: B batch, K bins, H W pixels of the view, h w of the logits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from ..depth.dpm import expected_depth
from ..depth.metrics import PROTOCOLS, depth_metrics, mean_metrics
from ..sources.frames import frames_in_batches, images_of
from ..sources.splits import evenly
from .saved_run import normalize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..sources.base import Source
    from ..sources.view import View


@torch.inference_mode()
def predict_map(network: nn.Module, images: Tensor) -> Tensor:
    """Depth probability maps (B, K, h, w) float32 for images (B, 3, H, W) in 0..1 on the network's device."""
    return torch.softmax(network(normalize(images)).float(), dim=1)


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
