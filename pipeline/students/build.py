"""Students by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .decoder import Decoder
from .encoders import Encoder, MobileNetV2, ResNet
from .lean import LeanUNet

if TYPE_CHECKING:
    from collections.abc import Callable

STUDENTS = {
    "mobilenetv2": "the paper's main student: 17.65 M parameters at 257 bins, logits at full resolution",
    "resnet18": "the paper's ResNet-18 student: 16.5 M parameters at 257 bins",
    "resnet50": "the paper's ResNet-50 student: 78.1 M parameters at 257 bins",
    "lean": "a depthwise-separable U-Net for small machines: 0.2 M parameters, logits at half resolution",
    "lean-large": "the same, twice as wide and half as deep again: 1.2 M parameters, the demo's teacher",
}


class Student(nn.Module):
    """A network from images to a depth probability map, before its softmax.

    Attributes:
        name: its name in STUDENTS.
        bin_count: K.
        encoder: the part that ImageNet weights fit, or None.
    """

    encoder: Encoder | None

    def __init__(self, name: str, bin_count: int, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.name = name
        self.bin_count = bin_count
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w) of ImageNet-normalised RGB images (B, 3, H, W)."""
        raise NotImplementedError


class _PaperStudent(Student):
    """Encoder and decoder as in the paper; logits at the image's resolution."""

    encoder: Encoder

    def __init__(self, name: str, bin_count: int, encoder: Encoder, widths: tuple[int, ...], final_blocks: int) -> None:
        super().__init__(name, bin_count, encoder)
        self.decoder = Decoder(encoder.widths, widths, bin_count, final_blocks)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.encoder(images), (images.shape[2], images.shape[3]))
        return logits


class _LeanStudent(Student):
    def __init__(self, name: str, bin_count: int, width: float, depth: float) -> None:
        super().__init__(name, bin_count)
        self.net = LeanUNet(bin_count, width, depth)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


_BUILDERS: dict[str, Callable[[str, int], Student]] = {
    "mobilenetv2": lambda name, bins: _PaperStudent(name, bins, MobileNetV2(), (128, 256, 512, 2048), 2),
    "resnet18": lambda name, bins: _PaperStudent(name, bins, ResNet(18), (128, 128, 256, 256, 512), 1),
    "resnet50": lambda name, bins: _PaperStudent(name, bins, ResNet(50), (128, 256, 512, 1024, 2048), 1),
    "lean": lambda name, bins: _LeanStudent(name, bins, width=1.0, depth=1.0),
    "lean-large": lambda name, bins: _LeanStudent(name, bins, width=2.0, depth=1.5),
}


def build_student(name: str, bin_count: int) -> Student:
    """A student with fresh weights (torch's generator decides them) for `bin_count` bins.

    Raises ValueError for an unknown name, listing the known ones, or for fewer than 2 bins.
    """
    if name not in STUDENTS:
        raise ValueError(f"student {name!r}: expected one of {', '.join(STUDENTS)}")
    if bin_count < 2:
        raise ValueError(f"{bin_count} bins: expected 2 or more")
    return _BUILDERS[name](name, bin_count)
