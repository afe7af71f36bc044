"""Registry of students."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import PipelineError
from .decoder import Decoder
from .encoders import Encoder, MobileNetV2, ResNet
from .lean import LeanPyramid, LeanUNet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STUDENTS = {
    "mobilenetv2": "the paper's main student: 17.65 M parameters at 257 bins, logits at full resolution",
    "resnet18": "the paper's ResNet-18 student: 16.5 M parameters at 257 bins",
    "resnet50": "the paper's ResNet-50 student: 78.1 M parameters at 257 bins",
    "lean": "a depthwise-separable U-Net for small machines: 0.2 M parameters, logits at half resolution",
    "lean-large": "lean with 2 times the width and 1.5 times the depth: 1.2 M parameters, the demo's teacher",
    "lean-small": "lean with 0.75 times the width and 0.5 times the depth: 0.1 M parameters",
    "mobilenetv2-lean": "MobileNetV2 without dilation and a light decoder: 2.0 M parameters",
    "resnet18-lean": "ResNet-18 and a light decoder: 11.4 M parameters",
}
WITH_ENCODER = ("mobilenetv2", "resnet18", "resnet50", "mobilenetv2-lean", "resnet18-lean")
"""Students whose encoder can load ImageNet weights (`pretrained.py`)."""
TIMM = "timm:"
"""Prefix of students with an encoder of timm and the light decoder."""


class Student(nn.Module):
    """Base class: network from images to the logits of depth probability maps.

    Attributes:
        name: name in STUDENTS, or timm:NAME.
        bin_count: K.
        encoder: encoder that can load ImageNet weights, or None.
    """

    encoder: Encoder | None

    def __init__(self, name: str, bin_count: int, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.name = name
        self.bin_count = bin_count
        self.encoder = encoder

    @property
    def head(self) -> nn.Conv2d:
        """The last layer, a 1x1 convolution from features to logits."""
        raise NotImplementedError

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each map of `encoded`, in pixels of the image."""
        raise NotImplementedError

    def encoded(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps (B, C_i, h_i, w_i), shallow to deep, of ImageNet-normalized RGB images."""
        raise NotImplementedError

    def decoded(self, maps: Sequence[Tensor], size_px: tuple[int, int]) -> Tensor:
        """Return the input (B, C, h, w) of the head, of the encoder's maps for images of this size (H, W)."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """Return the input (B, C, h, w) of the head, for ImageNet-normalized RGB images (B, 3, H, W)."""
        return self.decoded(self.encoded(images), (images.shape[2], images.shape[3]))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of ImageNet-normalized RGB images (B, 3, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class _PaperStudent(Student):
    """Encoder and decoder of the paper; logits at the resolution of the image."""

    encoder: Encoder

    def __init__(self, name: str, bin_count: int, encoder: Encoder, widths: tuple[int, ...], final_blocks: int) -> None:
        super().__init__(name, bin_count, encoder)
        self.decoder = Decoder(encoder.widths, widths, bin_count, final_blocks)

    @property
    def head(self) -> nn.Conv2d:
        return self.decoder.head

    @property
    def strides(self) -> tuple[int, ...]:
        return self.encoder.strides

    def encoded(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.encoder(images)
        return maps

    def decoded(self, maps: Sequence[Tensor], size_px: tuple[int, int]) -> Tensor:
        last: Tensor = self.decoder(maps, size_px)
        return last


class _LeanStudent(Student):
    def __init__(self, name: str, bin_count: int, width: float, depth: float) -> None:
        super().__init__(name, bin_count)
        self.net = LeanUNet(bin_count, width, depth)

    @property
    def head(self) -> nn.Conv2d:
        return self.net.head

    @property
    def strides(self) -> tuple[int, ...]:
        return self.net.strides

    def encoded(self, images: Tensor) -> list[Tensor]:
        return self.net.encoded(images)

    def decoded(self, maps: Sequence[Tensor], size_px: tuple[int, int]) -> Tensor:  # noqa: ARG002 - half the size
        return self.net.decoded(maps)


class _PyramidStudent(Student):
    """Any encoder with the light decoder; logits at half resolution."""

    encoder: Encoder

    def __init__(self, name: str, bin_count: int, encoder: Encoder) -> None:
        super().__init__(name, bin_count, encoder)
        self.decoder = LeanPyramid(encoder.widths, encoder.strides, bin_count)

    @property
    def head(self) -> nn.Conv2d:
        return self.decoder.head

    @property
    def strides(self) -> tuple[int, ...]:
        return self.encoder.strides

    def encoded(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return maps

    def decoded(self, maps: Sequence[Tensor], size_px: tuple[int, int]) -> Tensor:
        last: Tensor = self.decoder(maps, size_px)
        return last


_BUILDERS: dict[str, Callable[[str, int], Student]] = {
    "mobilenetv2": lambda name, bins: _PaperStudent(name, bins, MobileNetV2(), (128, 256, 512, 2048), 2),
    "resnet18": lambda name, bins: _PaperStudent(name, bins, ResNet(18), (128, 128, 256, 256, 512), 1),
    "resnet50": lambda name, bins: _PaperStudent(name, bins, ResNet(50), (128, 256, 512, 1024, 2048), 1),
    "lean": lambda name, bins: _LeanStudent(name, bins, width=1.0, depth=1.0),
    "lean-large": lambda name, bins: _LeanStudent(name, bins, width=2.0, depth=1.5),
    "lean-small": lambda name, bins: _LeanStudent(name, bins, width=0.75, depth=0.5),
    "mobilenetv2-lean": lambda name, bins: _PyramidStudent(name, bins, MobileNetV2(dilated=False)),
    "resnet18-lean": lambda name, bins: _PyramidStudent(name, bins, ResNet(18)),
}


def check_student(name: str) -> None:
    """Raise PipelineError unless `name` is in STUDENTS or has the form timm:NAME. Does not import timm."""
    # str() because an untrusted configuration may have another type
    if name not in STUDENTS and not (str(name).startswith(TIMM) and name != TIMM):
        raise PipelineError(f"student {name!r}: expected one of {', '.join(STUDENTS)}, or timm:NAME")


def build_student(name: str, bin_count: int) -> Student:
    """Build a student for `bin_count` bins, with random weights from torch's global generator.

    Raises PipelineError for an unknown name, for fewer than 2 bins, and for `timm:NAME` if timm is not installed, has
    no such model, or the model does not give suitable feature maps.
    """
    check_student(name)
    if bin_count < 2:
        raise PipelineError(f"{bin_count} bins: expected at least 2")
    if name in _BUILDERS:
        return _BUILDERS[name](name, bin_count)
    from .timm_encoder import TimmEncoder

    return _PyramidStudent(name, bin_count, TimmEncoder(name.removeprefix(TIMM)))
