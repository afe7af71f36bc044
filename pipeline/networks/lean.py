"""Depthwise-separable U-Net for small devices, and its decoder for other encoders. Own design, from no paper.

Shape legend: B batch, K bins, H W pixels of the image, h w half of them (rounded up).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder import init_head

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTHS = (16, 24, 40, 72, 112)  # at 1/2, 1/4, 1/8, 1/16, 1/32
_BLOCKS = (0, 1, 2, 2, 2)  # of the encoder; none at 1/2, where one costs as much as all at 1/8 and below
_HEAD_WIDTH = 32
_PYRAMID_WIDTHS = {2: 24, 4: 40, 8: 64, 16: 112, 32: 168}  # 1.5 times the U-Net's, for larger encoders
_PYRAMID_HEAD_WIDTH = 48


class _LeanDecoder(nn.Module):
    """Base class: decoder from feature maps to logits at half of the image's resolution.

    Half resolution, because the head and the loss take most of the time and depth is smooth except at edges. Global
    average pooling is added to the deepest map, because the scale of a scene depends on the whole image.
    """

    def _add_decoder(self, widths: Sequence[int], head_width: int, bin_count: int) -> None:
        """Create the layers; saved weights and seeds depend on the order. `widths` are shallow to deep."""
        deepest = widths[-1]
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(deepest, deepest, 1), nn.ReLU(inplace=True))
        self.laterals = nn.ModuleList(nn.Conv2d(deep, shallow, 1, bias=False) for shallow, deep in pairwise(widths))
        self.fusions = nn.ModuleList(_separable(count, count) for count in widths[:-1])
        self.before_head = _separable(widths[0], head_width)
        self.head = nn.Conv2d(head_width, bin_count, 1)

    def _init_convolutions(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        init_head(self.head)

    def _fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps, shallow to deep, into one of the size and width of the first."""
        *skips, deepest = features
        x: Tensor = deepest + self.context(deepest)
        for level in reversed(range(len(skips))):
            skip = skips[level]
            # The 1x1 convolution commutes with the interpolation and reduces channels, so it goes first
            x = F.interpolate(self.laterals[level](x), skip.shape[2:], mode="bilinear", align_corners=False)
            x = self.fusions[level](x + skip)
        return x


class LeanUNet(_LeanDecoder):
    """U-Net from images (B, 3, H, W) to logits (B, K, h, w).

    Uses the memory format channels_last, which trains 1.5 times as fast on a CPU.

    Args:
        bin_count: K.
        width: factor on all channel counts.
        depth: factor on the number of encoder blocks.
    """

    def __init__(self, bin_count: int, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        widths = [8 * round(width * count / 8) for count in _WIDTHS]
        counts = [round(depth * count) for count in _BLOCKS]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False), *_norm_relu(widths[0]))
        self.stages = nn.ModuleList(
            nn.Sequential(_halve(shallow, deep), *(_Block(deep) for _ in range(count)))
            for (shallow, deep), count in zip(pairwise(widths), counts[1:], strict=True)
        )
        self._add_decoder(widths, 8 * round(width * _HEAD_WIDTH / 8), bin_count)
        self._init_convolutions()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of ImageNet-normalized images (B, 3, H, W)."""
        logits: Tensor = self.head(self.decoded(self.encoded(images)))
        return logits

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each map of `encoded`."""
        return tuple(2 ** (level + 1) for level in range(len(self.stages) + 1))

    def encoded(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps, shallow to deep."""
        features = [self.stem(images.contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features

    def decoded(self, features: Sequence[Tensor]) -> Tensor:
        """Return the input (B, C, h, w) of the head, of the encoder's maps."""
        last: Tensor = self.before_head(self._fuse(features))
        return last


class LeanPyramid(_LeanDecoder):
    """The U-Net's decoder for any encoder: feature maps, shallow to deep, to the input of its `head`.

    A 1x1 convolution first reduces the channels of each map, so that the decoder costs the same with every encoder.

    Args:
        in_widths: channels of the encoder's outputs, shallow to deep.
        strides: strides of these outputs, ascending; the first is 2 or 4.
        bin_count: K.
    """

    def __init__(self, in_widths: Sequence[int], strides: Sequence[int], bin_count: int) -> None:
        super().__init__()
        assert strides[0] in {2, 4}
        assert all(deep > shallow for shallow, deep in pairwise(strides))
        widths = [_PYRAMID_WIDTHS.get(stride, _PYRAMID_WIDTHS[32]) for stride in strides]
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, 1, bias=False), nn.BatchNorm2d(width))
            for count, width in zip(in_widths, widths, strict=True)
        )
        self._add_decoder(widths, _PYRAMID_HEAD_WIDTH, bin_count)
        self._upsamples = strides[0] > 2
        self._init_convolutions()

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the input (B, C, h, w) of the head for the image size `size` = (H, W)."""
        x = self._fuse([project(feature) for project, feature in zip(self.projections, features, strict=True)])
        if self._upsamples:
            half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            x = F.interpolate(x, half, mode="bilinear", align_corners=False)
        last: Tensor = self.before_head(x)
        return last


class _Block(nn.Module):
    """Residual block: depthwise 5x5, norm, 1x1 to twice the width, ReLU, 1x1 to the width, norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


def _norm_relu(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width), nn.ReLU(inplace=True)


def _halve(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, out, 1, bias=False),
        *_norm_relu(out),
    )


def _separable(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.Conv2d(width, out, 1, bias=False),
        *_norm_relu(out),
    )
