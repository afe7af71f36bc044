"""Turn images into the input of a network file, from its metadata, the options and its input tensor.

Shape legend: B batch, H W pixels of the view, N C H W the axes of the network's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ...common.fileio import printable
from ...depth.spaces import DEPTH_SPACES
from ...errors import PipelineError
from ...networks.saved_run import IMAGENET_MEAN, IMAGENET_STD
from ...sources.readers.images import LIMIT_PIXELS
from ..metadata import resolve_size, resolve_text
from ..predictions import resolve_scale
from .output_names import resolve_outputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from ..options import TeacherOptions
    from .tensors import InputTensor, OutputTensor

KEYS = ("channels", "depth_space", "input_size", "licence", "metres_per_unit", "name", "normalise", "output")
"""Keys of FILE.json."""
CHANNELS = ("rgb", "bgr")
NORMALISE = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "bytes": ((0.0,) * 3, (1 / 255,) * 3),
}
"""Mean and standard deviation of red, green and blue, for images in 0..1."""
DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
"""Supported input types."""
AXES = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2)}
"""Axes of channels, rows and columns by layout."""


@dataclass(frozen=True)
class FileSettings:
    """Settings from the options and FILE.json; None is not specified."""

    where: str
    """Names the teacher in messages."""
    name: str
    depth_space: str
    metres_per_unit: float | None
    input_size_px: tuple[int, int] | None
    normalise: str | None
    channels: str
    output: str | None
    """Name of the depth output; None if it has one output."""
    signals: dict[str, str]
    """Names of the outputs of signals, by signal."""
    licence: str | None


def merge_settings(
    where: str, name: str, facts: Mapping[str, Any], origin: str, options: TeacherOptions
) -> FileSettings:
    """Merge the metadata `facts` of the file `origin` with the options; `name` is the default name.

    Raises PipelineError for unknown keys, contradictions, invalid values and a missing depth space.
    """
    unknown = sorted(set(facts) - set(KEYS))
    if unknown:
        raise PipelineError(f"{where}: {origin} has unknown key {unknown[0]!r}, expected {', '.join(KEYS)}: remove it")

    def text(key: str, asked: str | None) -> str | None:
        return resolve_text(where, origin, key, facts.get(key), asked)

    depth_space = text("depth_space", options.depth_space)
    if depth_space not in DEPTH_SPACES:
        problem = "the depth space is not specified" if depth_space is None else f"unknown depth_space {depth_space!r}"
        raise PipelineError(
            f"{where}: {problem}: give `depth_space` with one of {', '.join(DEPTH_SPACES)}, or add "
            f'{{"depth_space": ...}} to {origin}'
        )
    channels = text("channels", options.channels) or "rgb"
    if channels not in CHANNELS:
        raise PipelineError(f"{where}: channels {channels!r}, expected rgb or bgr")
    output, signals = resolve_outputs(where, origin, facts, options)
    return FileSettings(
        where=where,
        name=text("name", None) or name,
        depth_space=depth_space,
        metres_per_unit=resolve_scale(
            where, origin, facts.get("metres_per_unit"), options.metres_per_unit, depth_space
        ),
        input_size_px=resolve_size(where, origin, facts.get("input_size"), options.input_size_px),
        normalise=text("normalise", options.normalise),
        channels=channels,
        output=output,
        signals=signals,
        licence=text("licence", options.licence),
    )


def check_required(
    where: str,
    origin: str,
    facts: Mapping[str, Any],
    options: TeacherOptions,
    tensor: InputTensor,
    outputs: Mapping[str, OutputTensor],
) -> None:
    """Raise PipelineError that lists all missing options, if there are several.

    A single missing option has a more detailed message where it is used.
    """
    space = facts.get("depth_space") or options.depth_space
    output = resolve_outputs(where, origin, facts, options)[0] or ""
    chosen = outputs.get(output) or (next(iter(outputs.values())) if len(outputs) == 1 else None)
    unscaled = chosen is not None and (chosen.dtype or "").startswith(("int", "uint")) and chosen.scale is None
    has_unit = facts.get("metres_per_unit") is not None or options.metres_per_unit is not None
    takes_bytes = tensor.scale is None and tensor.dtype not in {"float16", "float32"}
    missing = []
    if space is None:
        missing.append(f"`depth_space` ({', '.join(DEPTH_SPACES)})")
    if (facts.get("normalise") or options.normalise) is None and not _quantized_normalize(tensor):
        missing.append("`normalise=bytes`" if takes_bytes else f"`normalise` ({', '.join(NORMALISE)} or MEAN/STD)")
    if len(outputs) > 1 and not output:
        missing.append(f"`output` ({', '.join(map(printable, outputs))})")
    if unscaled and not has_unit and space in {None, "metric_m"}:
        missing.append("`metres_per_unit` (such as 0.001; for metric_m)")
    if len(missing) > 1:
        raise PipelineError(
            f"{where}: its input and output are not specified: give {', '.join(missing)}, or add them to {origin}"
        )


def parse_normalize(text: str, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of red, green and blue in 0..1, from a name or `MEAN/STD`.

    Raises PipelineError for anything else, and for numbers of images in 0..255.
    """
    if text in NORMALISE:
        return NORMALISE[text]
    sides = []
    for side in text.split("/"):
        try:
            numbers = tuple(float(number) for number in side.split(","))
        except ValueError:
            numbers = ()
        sides.append(numbers * 3 if len(numbers) == 1 else numbers)
    if len(sides) != 2 or any(len(side) != 3 or not all(map(math.isfinite, side)) for side in sides):
        raise PipelineError(
            f"{where}: normalise {text!r}, expected {', '.join(NORMALISE)} or MEAN/STD with one or three numbers each, "
            "such as 0.485,0.456,0.406/0.229,0.224,0.225"
        )
    mean, std = sides
    if any(abs(number) > 1 for number in mean) or not all(0 < number <= 1 for number in std):
        raise PipelineError(
            f"{where}: normalise {text!r}, expected means of at most 1 and deviations in (0, 1], for images in 0..1: "
            "divide numbers for 0..255 by 255"
        )
    return mean, std


class Preparation:
    """Converts images to the input tensor of a file."""

    def __init__(self, settings: FileSettings, tensor: InputTensor, device: torch.device) -> None:
        """Raise PipelineError for an input that is not an image, and a missing normalization."""
        self.layout = _layout(settings.where, tensor)
        _, rows, columns = AXES[self.layout]
        self._fixed_px = tensor.shape[rows], tensor.shape[columns]
        if settings.input_size_px is not None and any(
            fixed not in {None, side} for fixed, side in zip(self._fixed_px, settings.input_size_px, strict=True)
        ):
            raise PipelineError(
                f"{settings.where}: its input is {_times(self._fixed_px)} px, which contradicts "
                f"`input_size_px={_times(settings.input_size_px)}`: omit it"
            )
        self._asked_px = settings.input_size_px or (None, None)
        if math.prod(side or 1 for side in self._sides()) > LIMIT_PIXELS:  # before it is allocated
            raise PipelineError(
                f"{settings.where}: its input is {_times(self._sides())} px, expected at most {LIMIT_PIXELS} pixels: "
                "check the file"
            )
        if tensor.shape[0] not in {None, 1}:
            raise PipelineError(
                f"{settings.where}: its batch size is {tensor.shape[0]}, expected 1 or variable: export it with a "
                "batch size of 1"
            )
        self.one_by_one = tensor.shape[0] == 1
        self.normalise = settings.normalise or _required_normalize(settings.where, tensor)
        mean, std = parse_normalize(self.normalise, settings.where)
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)
        self._channels = settings.channels
        self._tensor = tensor
        self.device = device
        if tensor.scale is None and tensor.dtype not in {"float16", "float32"} and (mean, std) != NORMALISE["bytes"]:
            raise PipelineError(
                f"{settings.where}: its input is {tensor.dtype} without a scale, so it takes image bytes: give "
                "`normalise=bytes`, or export it with a float input"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Convert images (B, 3, H, W) float32 RGB in 0..1 to the input (B, 3, h, w) or (B, h, w, 3) on the device."""
        images = images.to(self.device)
        height, width = (side or own for side, own in zip(self._sides(), images.shape[2:], strict=True))
        if (height, width) != images.shape[2:]:
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)
        values = (images - self._mean) / self._std
        if self._channels == "bgr":
            values = values.flip(1)
        if self.layout == "NHWC":
            values = values.permute(0, 2, 3, 1)
        dtype = DTYPES[self._tensor.dtype]
        if not dtype.is_floating_point:
            limits = torch.iinfo(dtype)
            numbers = values / (self._tensor.scale or 1) + self._tensor.zero_point
            values = numbers.round().clamp(limits.min, limits.max)
        return values.to(dtype).contiguous()

    def _sides(self) -> tuple[int | None, ...]:
        """Return height and width of the input; None is that of the view."""
        return tuple(fixed or asked for fixed, asked in zip(self._fixed_px, self._asked_px, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Return the entries of a card: everything that decides the input."""
        mean, std = parse_normalize(self.normalise, "")
        sides = self._sides()
        return {
            "input_size_px": list(sides) if any(sides) else None,
            "resize": "bilinear, antialias",
            "mean": list(mean),
            "std": list(std),
            "channels": self._channels,
            "layout": self.layout,
            "input_type": self._tensor.dtype,
        }


def _times(sides: Iterable[int | None]) -> str:
    return "x".join("any" if side is None else str(side) for side in sides)


def _layout(where: str, tensor: InputTensor) -> str:
    if tensor.dtype not in DTYPES:
        raise PipelineError(f"{where}: its input has type {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    shape = ", ".join("any" if side is None else str(side) for side in tensor.shape)
    layouts = [name for name, axes in AXES.items() if len(tensor.shape) == 4 and tensor.shape[axes[0]] == 3]
    if len(layouts) != 1:
        problem = "may be N,3,H,W or N,H,W,3" if layouts else "is neither N,3,H,W nor N,H,W,3"
        raise PipelineError(
            f"{where}: its input ({shape}) {problem}: export it with three channels and height and width other than 3, "
            "or write a python:module:factory"
        )
    return layouts[0]


def _quantized_normalize(tensor: InputTensor) -> str | None:
    """Return the normalization of a quantized input whose range is 0..1 or 0..255; otherwise None."""
    if tensor.scale is not None and tensor.dtype in {"int8", "uint8"}:
        least = torch.iinfo(DTYPES[tensor.dtype]).min
        for name, scale in (("unit", 1 / 255), ("bytes", 1.0)):
            if tensor.zero_point == least and math.isclose(tensor.scale, scale, rel_tol=1e-4):
                return name
    return None


def _required_normalize(where: str, tensor: InputTensor) -> str:
    name = _quantized_normalize(tensor)
    if name is not None:
        return name
    raise PipelineError(
        f"{where}: the normalization of its input is not specified: give `normalise` with one of "
        f"{', '.join(NORMALISE)} or MEAN/STD, as in its training code; a wrong value gives plausible but wrong depth"
    )
