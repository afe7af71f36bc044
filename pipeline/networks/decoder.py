"""Decoder of the paper's students (DenseDepth-like), up to logits at the image's resolution.

Shape legend: B batch, K bins, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

FINAL_WIDTH = 128


class Decoder(nn.Module):
    """Decoder from feature maps, shallow to deep, to the input of its `head`, which gives logits (B, K, H, W).

    Source: released `densedepth_head_dpm.py`.

    A 1x1 convolution of the deepest map without activation; for each skip, deep to shallow: bilinear upsampling to its
    size (align_corners), concatenation, two 3x3 convolutions with ReLU and no norm; then `final_blocks` times the same
    without a skip, each doubling the size; then a 1x1 convolution to the bins.

    Args:
        in_widths: channels of the encoder's outputs, shallow to deep.
        widths: channels of the decoder at the same levels; the first must be 128.
        bin_count: K.
        final_blocks: number of upsampling blocks after the shallowest map. The last one upsamples to the size of the
            image, which is less than double if that is odd.
    """

    def __init__(self, in_widths: Sequence[int], widths: Sequence[int], bin_count: int, final_blocks: int) -> None:
        super().__init__()
        assert len(in_widths) == len(widths)
        assert widths[0] == FINAL_WIDTH
        self.bottleneck = nn.Conv2d(in_widths[-1], widths[-1], 1)
        pairs = pairwise(reversed(widths))
        skips = reversed(in_widths[:-1])
        self.fusions = nn.ModuleList(
            _two_convolutions(deep + skip, out) for (deep, out), skip in zip(pairs, skips, strict=True)
        )
        self.finals = nn.ModuleList(_two_convolutions(FINAL_WIDTH, FINAL_WIDTH) for _ in range(final_blocks))
        self.head = nn.Conv2d(FINAL_WIDTH, bin_count, 1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and part is not self.head:
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        init_head(self.head)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the input (B, 128, H, W) of the head for the image size `size` = (H, W)."""
        *skips, deepest = features
        x: Tensor = self.bottleneck(deepest)
        for fusion, skip in zip(self.fusions, reversed(skips), strict=True):
            x = fusion(torch.cat([_resize(x, (skip.shape[2], skip.shape[3])), skip], dim=1))
        for i, final in enumerate(self.finals):
            last = i == len(self.finals) - 1
            x = final(_resize(x, size if last else (2 * x.shape[2], 2 * x.shape[3])))
        return x


def init_head(head: nn.Conv2d) -> None:
    """Initialize a head with small weights and zero bias, so that maps start nearly uniform.

    With larger weights, random logits put the mass of each pixel on a few random bins.
    """
    nn.init.normal_(head.weight, std=0.01)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def _two_convolutions(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, out, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)
