"""How an image becomes the input of a network that came as a file: what its owner and the file say, settled.

Shape legend: B batch, H W pixels of the view, N C H W the axes of the network's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from ...common.fileio import printable
from ...depth.spaces import DEPTH_SPACES
from ...errors import PipelineError
from ...networks.saved_run import IMAGENET_MEAN, IMAGENET_STD
from ...sources.readers.images import LIMIT_PIXELS
from ..metadata import agreed, agreed_size
from ..predictions import agreed_scale

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from ..options import TeacherOptions

KEYS = ("channels", "depth_space", "input_size", "licence", "metres_per_unit", "name", "normalise", "output")
"""What FILE.json may say: the flags' names, and whose the network is."""
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
"""Types of input that can be made."""
AXES = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2)}
"""Where a layout has its channels, rows and columns."""


@dataclass(frozen=True)
class Said:
    """What flags and description say together; None where neither says anything."""

    where: str
    """The teacher, for messages."""
    name: str
    depth_space: str
    metres_per_unit: float | None
    input_size_px: tuple[int, int] | None
    normalise: str | None
    channels: str
    output: str | None
    licence: str | None


class InputTensor(NamedTuple):
    """What a file says of its input."""

    shape: tuple[int | None, ...]
    """None for a side that may vary."""
    dtype: str
    """One of DTYPES."""
    scale: float | None = None
    """Of a quantised input: value = (number - zero_point) * scale."""
    zero_point: int = 0


def settle(where: str, name: str, facts: Mapping[str, Any], origin: str, options: TeacherOptions) -> Said:
    """Put together what `facts` of the file `origin` and the flags say; `name` is used where no other is given.

    Raises PipelineError for a fact that nobody knows, two that contradict each other, values that are none, and
    where nobody says what the numbers mean.
    """
    unknown = sorted(set(facts) - set(KEYS))
    if unknown:
        raise PipelineError(f"{where}: {origin} says {unknown[0]!r}, which is none of {', '.join(KEYS)}: take it out")

    def text(key: str, asked: str | None) -> str | None:
        return agreed(where, origin, key, facts.get(key), asked)

    depth_space = text("depth_space", options.depth_space)
    if depth_space not in DEPTH_SPACES:
        said = "nothing says what its numbers mean" if depth_space is None else f"depth_space {depth_space!r}"
        raise PipelineError(
            f"{where}: {said}; give `depth_space` with one of {', '.join(DEPTH_SPACES)}, or write it into {origin} "
            'as {"depth_space": ...}'
        )
    channels = text("channels", options.channels) or "rgb"
    if channels not in CHANNELS:
        raise PipelineError(f"{where}: channels {channels!r}, expected rgb or bgr")
    output = facts.get("output")
    return Said(
        where=where,
        name=text("name", None) or name,
        depth_space=depth_space,
        metres_per_unit=agreed_scale(where, origin, facts.get("metres_per_unit"), options.metres_per_unit, depth_space),
        input_size_px=agreed_size(where, origin, facts.get("input_size"), options.input_size_px),
        normalise=text("normalise", options.normalise),
        channels=channels,
        # The place in a tuple may be written as a number.
        output=agreed(where, origin, "output", str(output) if type(output) is int else output, options.output),
        licence=text("licence", options.licence),
    )


class OutputTensor(NamedTuple):
    """What a file says of one of its outputs."""

    dtype: str | None
    """NumPy's name, None where only running it tells."""
    scale: float | None = None
    """Of a quantised output."""


def refuse_unsaid(
    where: str,
    origin: str,
    facts: Mapping[str, Any],
    options: TeacherOptions,
    tensor: InputTensor,
    outputs: Mapping[str, OutputTensor],
) -> None:
    """Raise PipelineError with all flags that a file needs and nothing says, where these are several.

    A single one is asked for where it is needed, in more words.
    """
    space = facts.get("depth_space") or options.depth_space
    output = str(facts.get("output") or options.output or "")
    chosen = outputs.get(output) or (next(iter(outputs.values())) if len(outputs) == 1 else None)
    whole = chosen is not None and (chosen.dtype or "").startswith(("int", "uint")) and chosen.scale is None
    has_scale = facts.get("metres_per_unit") is not None or options.metres_per_unit is not None
    of_bytes = tensor.scale is None and tensor.dtype not in {"float16", "float32"}
    missing = []
    if space is None:
        missing.append(f"`depth_space` ({', '.join(DEPTH_SPACES)})")
    if (facts.get("normalise") or options.normalise) is None and not _says_normalise(tensor):
        missing.append("`normalise=bytes`" if of_bytes else f"`normalise` ({', '.join(NORMALISE)} or MEAN/STD)")
    if len(outputs) > 1 and not output:
        missing.append(f"`output` ({', '.join(map(printable, outputs))})")
    if whole and not has_scale and space in {None, "metric_m"}:
        missing.append("`metres_per_unit` (such as 0.001; for metric_m)")
    if len(missing) > 1:
        raise PipelineError(
            f"{where}: nothing says what it takes and gives; give {', '.join(missing)}, or write them into {origin}"
        )


def parse_normalise(text: str, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of red, green and blue in 0..1, of a name or of `MEAN/STD`.

    Raises PipelineError for anything else, and for numbers that are of images in 0..255.
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
            f"{where}: normalise {text!r}, expected {', '.join(NORMALISE)} or MEAN/STD, with one number each or three "
            "such as 0.485,0.456,0.406/0.229,0.224,0.225"
        )
    mean, std = sides
    if any(abs(number) > 1 for number in mean) or not all(0 < number <= 1 for number in std):
        raise PipelineError(
            f"{where}: normalise {text!r}, expected means up to 1 and deviations above 0 and up to 1, for images in "
            "0..1; divide numbers of 0..255 by 255"
        )
    return mean, std


class Preparation:
    """Turns views into a file's input."""

    def __init__(self, said: Said, tensor: InputTensor, device: torch.device) -> None:
        """Settle how. Raises PipelineError for an input that is no image, and where the normalisation is unsaid."""
        self.layout = _layout(said.where, tensor)
        _, rows, columns = AXES[self.layout]
        self._fixed_px = tensor.shape[rows], tensor.shape[columns]
        if said.input_size_px is not None and any(
            fixed not in {None, side} for fixed, side in zip(self._fixed_px, said.input_size_px, strict=True)
        ):
            raise PipelineError(
                f"{said.where}: takes an input of {_times(self._fixed_px)} px, asked for {_times(said.input_size_px)}: "
                "leave `input_size_px` out"
            )
        self._asked_px = said.input_size_px or (None, None)
        if math.prod(side or 1 for side in self._sides()) > LIMIT_PIXELS:  # before it is allocated
            raise PipelineError(
                f"{said.where}: takes {_times(self._sides())} px, expected at most {LIMIT_PIXELS} pixels; is it whole?"
            )
        if tensor.shape[0] not in {None, 1}:
            raise PipelineError(
                f"{said.where}: takes {tensor.shape[0]} images at once, expected one, or any number; export it again "
                "with a batch of 1"
            )
        self.one_by_one = tensor.shape[0] == 1
        self.normalise = said.normalise or _own_normalise(said.where, tensor)
        mean, std = parse_normalise(self.normalise, said.where)
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)
        self._channels = said.channels
        self._tensor = tensor
        self.device = device
        if tensor.scale is None and tensor.dtype not in {"float16", "float32"} and (mean, std) != NORMALISE["bytes"]:
            raise PipelineError(
                f"{said.where}: its input is {tensor.dtype} without a scale, which takes the bytes of an image; give "
                "`normalise=bytes`, or export it with a float input"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Input (B, 3, h, w) or (B, h, w, 3) on the device, of views (B, 3, H, W) float32 RGB in 0..1."""
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
        """Height and width of the input, None where they are the view's."""
        return tuple(fixed or asked for fixed, asked in zip(self._fixed_px, self._asked_px, strict=True))

    def as_json(self) -> dict[str, Any]:
        """For a card: all that decides what the network sees."""
        mean, std = parse_normalise(self.normalise, "")
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
        raise PipelineError(f"{where}: its input is of type {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    shape = ", ".join("any" if side is None else str(side) for side in tensor.shape)
    found = [name for name, axes in AXES.items() if len(tensor.shape) == 4 and tensor.shape[axes[0]] == 3]
    if len(found) != 1:
        why = "may be N,3,H,W or N,H,W,3" if found else "is neither N,3,H,W nor N,H,W,3"
        raise PipelineError(
            f"{where}: its input ({shape}) {why}; export it with three channels and other sides than 3, or write a "
            "python:module:factory"
        )
    return found[0]


def _says_normalise(tensor: InputTensor) -> str | None:
    """What a quantised input says by its own range: 0..1 or 0..255 from the least number to the largest."""
    if tensor.scale is not None and tensor.dtype in {"int8", "uint8"}:
        least = torch.iinfo(DTYPES[tensor.dtype]).min
        for name, scale in (("unit", 1 / 255), ("bytes", 1.0)):
            if tensor.zero_point == least and math.isclose(tensor.scale, scale, rel_tol=1e-4):
                return name
    return None


def _own_normalise(where: str, tensor: InputTensor) -> str:
    found = _says_normalise(tensor)
    if found is not None:
        return found
    raise PipelineError(
        f"{where}: nothing says how its pixels are normalised; give `normalise={', '.join(NORMALISE)}` or MEAN/STD, as "
        "in the code that it was trained with: a wrong one gives depth that looks right and is not"
    )
