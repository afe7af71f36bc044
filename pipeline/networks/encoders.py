"""Encoders of the paper's students, MobileNetV2 and ResNet, without torchvision.

Parameters have the names of torchvision, so that its ImageNet weights load (`pretrained.py`).

Shape legend: B batch, H W pixels of the image; an output at 1/n has ceil(H / n) rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Expansion, width, blocks and stride of each stage, as in torchvision
_MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# As in the released configurations: strides end at 1/8, dilation keeps the field of view. As in mmsegmentation, only
# the first block of a stage has the stride and the dilation.
_DILATIONS = (1, 1, 1, 2, 2, 4, 4)
_RESNET_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
# Parts of ImageNet files that the encoders do not have: classifiers, and the last 1x1 convolution of MobileNetV2
_HEAD_PREFIXES = ("fc.", "classifier.", "features.18.")
_MAX_NAMES = 3
"""Names of each kind that an error lists."""


class Encoder(nn.Module):
    """Base class: image (B, 3, H, W) to feature maps, shallow to deep."""

    widths: tuple[int, ...]
    """Channels of each output."""
    strides: tuple[int, ...]
    """Stride of each output in pixels of the image."""
    weights_source: str
    """Library and network whose state dicts load, for messages."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature maps (B, widths[i], h_i, w_i)."""
        raise NotImplementedError

    def encoder_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the part of a classifier's state dict that belongs to this encoder, with its parameter names."""
        return {name: value for name, value in state.items() if not name.startswith(_HEAD_PREFIXES)}


class MobileNetV2(Encoder):
    """MobileNetV2 without its last 1x1 convolution. Weights have the same layout with and without dilation.

    Args:
        dilated: True as in the paper: 24 channels at 1/4; 32, 96 and 320 at 1/8. False as for classification, with a
            third of the computation: 16 channels at 1/2; 24, 32, 96 and 320 at 1/4 to 1/32.
    """

    weights_source = "torchvision's MobileNetV2"

    def __init__(self, *, dilated: bool = True) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_norm_relu6(3, 32, kernel=3, stride=2)]
        out_stages = (1, 2, 4, 6) if dilated else (0, 1, 2, 4, 6)
        self._out_blocks = []
        strides = []
        width, reduction = 32, 2
        for stage, (expansion, out, count, stride) in enumerate(_MOBILENET_STAGES):
            dilation = _DILATIONS[stage] if dilated else 1
            for i in range(count):
                first = (1 if dilation > 1 else stride, dilation) if i == 0 else (1, 1)
                reduction *= first[0]
                blocks.append(_InvertedResidual(width, out, expansion, *first))
                width = out
            if stage in out_stages:
                self._out_blocks.append(len(blocks) - 1)
                strides.append(reduction)
        self.features = nn.Sequential(*blocks)
        self.widths = tuple(_MOBILENET_STAGES[stage][1] for stage in out_stages)
        self.strides = tuple(strides)
        _init_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of the output stages."""
        outputs = []
        x = images
        for i, block in enumerate(self.features):
            x = block(x)
            if i in self._out_blocks:
                outputs.append(x)
        return outputs


class ResNet(Encoder):
    """ResNet-18 or -50. Outputs: the stem with 64 channels at 1/2, then the four stages at 1/4 to 1/32."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weights_source = f"torchvision's ResNet-{depth}"
        block = _BasicBlock if depth == 18 else _Bottleneck
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width, widths = 64, [64]
        for i, count in enumerate(_RESNET_BLOCKS[depth]):
            inner = 64 * 2**i
            blocks: list[nn.Module] = []
            for j in range(count):
                blocks.append(block(width, inner, stride=2 if i > 0 and j == 0 else 1))
                width = inner * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            widths.append(width)
        self.widths = tuple(widths)
        self.strides = (2, 4, 8, 16, 32)
        _init_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of the stem (before pooling) and of the four stages."""
        x = self.relu(self.bn1(self.conv1(images)))
        outputs = [x]
        x = self.maxpool(x)
        for i in range(4):
            x = self.get_submodule(f"layer{i + 1}")(x)
            outputs.append(x)
        return outputs


def load_imagenet(encoder: Encoder, state: Mapping[str, Tensor]) -> None:
    """Load a classifier's state dict into an encoder. Its last layers are ignored; all other tensors must match.

    Raises PipelineError with the first names or shapes that do not match.
    """
    loaded = encoder.encoder_state(state)
    expected = encoder.state_dict()
    # Files older than torch 1.0 have no batch counters; torch then starts them at 0
    missing = [name for name in expected if name not in loaded and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in loaded if name not in expected]
    mismatched = [
        f"{name} of {_shape(loaded[name])} instead of {_shape(value)}"
        for name, value in expected.items()
        if name in loaded and loaded[name].shape != value.shape
    ]
    problems = [
        f"{what} {len(names)}: {', '.join(names[:_MAX_NAMES])}{', ...' if len(names) > _MAX_NAMES else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", mismatched))
        if names
    ]
    if problems:
        raise PipelineError(f"expected the state dict of {encoder.weights_source}; {'; '.join(problems)}")
    encoder.load_state_dict(loaded, strict=True)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "1"


def _conv_norm_relu6(
    width: int, out: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = (kernel - 1) // 2 * dilation
    return nn.Sequential(
        nn.Conv2d(width, out, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(inplace=True),
    )


class _InvertedResidual(nn.Module):
    def __init__(self, width: int, out: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        inner = width * expansion
        expand = [_conv_norm_relu6(width, inner, kernel=1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_norm_relu6(inner, inner, kernel=3, stride=stride, dilation=dilation, groups=inner),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.adds = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class _Residual(nn.Module):
    """Base class of the residual blocks: shortcut around `_body`."""

    expansion = 1

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        out = inner * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or width != out:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def _body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self._body(x) + shortcut)
        return y


class _BasicBlock(_Residual):
    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__(width, inner, stride)
        self.conv1 = nn.Conv2d(width, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)

    def _body(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return y


class _Bottleneck(_Residual):
    """With the stride in the 3x3 convolution, as in torchvision (`style='pytorch'` in mmcv)."""

    expansion = 4

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__(width, inner, stride)
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, inner * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner * 4)

    def _body(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        z: Tensor = self.bn3(self.conv3(y))
        return z


def _init_convolutions(module: nn.Module) -> None:
    """Apply He initialization to every convolution, for training without ImageNet weights."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
