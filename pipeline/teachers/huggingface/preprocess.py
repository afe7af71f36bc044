"""From views to what a network of transformers takes: its own processor without torchvision, or our code for it.

The library's image processor is used in its Pillow form, so that a store does not depend on whether torchvision is
installed. Two families have a processor for torchvision alone: for those the same steps are done here.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's input.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from ...common.fileio import read_json
from ...errors import PipelineError
from .outputs import RESAMPLING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from .families import Family, Own

DEFAULTS: dict[str, Any] = {"do_resize": True, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255}
LIMIT_PX = 2**14
CHANGE_AREA = ("do_pad", "do_center_crop")


class Processing(NamedTuple):
    """How the images of one teacher become the network's input."""

    who: str
    """The teacher, for messages."""
    name: str
    """Of the processor, for the card."""
    settings: dict[str, Any]
    """JSON values: all that it depends on."""
    make: Callable[..., Tensor]
    """Pictures (B, 3, H, W) uint8, and perhaps the settings of an asked size, -> (B, 3, h, w) float32."""
    size_px: tuple[int, int] | None
    """The input that the user asked for."""
    patch_px: int | None
    """Both sides of the input must be multiples of it, or the output would lie beside the view."""

    def pixels(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 RGB in 0..1 -> the network's input (B, 3, h, w) float32.

        Raises PipelineError where the processor cannot make the asked size, or makes one that the patches do not
        divide.
        """
        # Processors expect what an image file holds.
        pictures = (images * 255).round().to(torch.uint8).cpu()
        asked: dict[str, Any] = {}
        if self.size_px:
            asked = {"size": {"height": self.size_px[0], "width": self.size_px[1]}, "keep_aspect_ratio": False}
        try:
            pixels = self.make(pictures, **asked)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise PipelineError(
                f"{self.who}: its processor can make nothing of a view of {_text(images.shape[-2:])} px ({error}); "
                "choose a larger one with `view`"
            ) from error
        made = (pixels.shape[-2], pixels.shape[-1])
        if self.size_px and made != self.size_px:
            raise PipelineError(
                f"{self.who}: asked for an input of {self.size_px} px, its processor makes {made}; give "
                f"`input_size_px={_text(made)}`"
            )
        if self.patch_px and any(side % self.patch_px for side in made):
            near = [max(1, round(side / self.patch_px)) * self.patch_px for side in made]
            raise PipelineError(
                f"{self.who}: its processor makes an input of {_text(made)} px, which patches of {self.patch_px} px do "
                f"not divide, so its depth would leave out a border; give `input_size_px={_text(near)}`, or a `view` "
                "whose sides they divide"
            )
        return pixels


def open_processing(
    folder: Path,
    config: Any,  # noqa: ANN401 - the library ships no types
    family: Family,
    size_px: tuple[int, int] | None,
    who: str,
    library: Callable[[], Any],
) -> Processing:
    """The processing that lies in a model's folder; `library` loads the library's processor of it.

    Raises PipelineError for settings after which the output would not lie over the view, and for a size that cannot be.
    """
    if family.own is None:
        processor = library()
        name, settings = type(processor).__name__, json.loads(processor.to_json_string())
        make = _of_library(processor)
    else:
        name = f"{config.model_type} by tiekd-pipeline"
        settings = _own_settings(folder / "preprocessor_config.json", family.own, who)
        make = _of_ours(settings, resize_last=family.own.resize_last)
    changes = [key for key in CHANGE_AREA if settings.get(key) and not (family.pads and key == "do_pad")]
    if changes:
        raise PipelineError(
            f"{who}: its preprocessor_config.json has {' and '.join(changes)} on, so its depth would cover "
            "another area than the view; switch that off in a copy, and choose a `view` whose sides its "
            "patches divide"
        )
    if size_px and not ("size" in settings and (family.own or "keep_aspect_ratio" in settings)):
        raise PipelineError(f"{who}: its processor takes no size; leave `input_size_px` out, and resize with `view`")
    if family.input_px:
        side = family.input_px(config)
        size = settings["size"]
        given = size_px or (size["height"], size["width"])
        if not settings["do_resize"] or given != (side, side):
            raise PipelineError(
                f"{who}: an input of {_text(given)} px, expected {side}x{side}, the only one that its patches cover; "
                f"{'leave `input_size_px` out' if size_px else 'correct its preprocessor_config.json'}"
            )
    return Processing(who, name, settings, make, size_px, _patch_px(config))


def _patch_px(config: Any) -> int | None:  # noqa: ANN401 - the library ships no types
    """The side of a patch of a vision transformer; None where the configuration has none, or it says nothing."""
    if config.model_type == "depth_pro":  # its patches are images, which are cut up once more; see input_px
        return None
    for holder in (getattr(config, "backbone_config", None), config):
        patch = getattr(holder, "patch_size", None)
        if isinstance(patch, int) and patch > 0:
            return patch
    return None


def _of_library(processor: Any) -> Callable[..., Tensor]:  # noqa: ANN401 - the library ships no types
    def make(pictures: Tensor, **asked: Any) -> Tensor:  # noqa: ANN401 - settings of the processor
        images = list(pictures.permute(0, 2, 3, 1).numpy())
        made = processor(images=images, return_tensors="pt", input_data_format="channels_last", **asked)
        pixels: Tensor = made["pixel_values"]
        return pixels

    return make


def _own_settings(path: Path, own: Own, who: str) -> dict[str, Any]:
    """The settings of a file of somebody else, over the library's defaults; what we cannot do is refused."""
    given = read_json(path, f"{who}: preprocessor")
    if not isinstance(given, dict):
        raise PipelineError(
            f"{who}: {path.name} holds {type(given).__name__}, expected an object, as the library writes"
        )
    wanted = {**DEFAULTS, **own.settings}
    settings = {key: given.get(key, default) for key, default in wanted.items()}
    settings.update({key: given[key] for key in CHANGE_AREA if key in given})
    if settings["do_normalize"]:
        settings.update({key: given.get(key, settings.get(key)) for key in ("image_mean", "image_std")})
    size = settings["size"]
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else [None]
    if any(isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LIMIT_PX for side in sides):
        raise PipelineError(f'{who}: {path.name} has size {size}, expected {{"height": H, "width": W}} in pixels')
    if settings["resample"] not in (2, 3):
        raise PipelineError(
            f"{who}: {path.name} has resample {settings['resample']!r}, expected 2 or 3 (bilinear, bicubic)"
        )
    numbers = [settings["rescale_factor"]]
    for key in ("image_mean", "image_std") if settings["do_normalize"] else ():
        values = settings[key]
        if not isinstance(values, list) or len(values) != 3:
            raise PipelineError(f"{who}: {path.name} has {key} {values!r}, expected three numbers")
        numbers += values
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers) or (
        settings["do_normalize"] and not all(value > 0 for value in settings["image_std"])
    ):
        raise PipelineError(
            f"{who}: {path.name} has factor, mean and deviation {numbers}, expected numbers, the last above 0"
        )
    return settings


def _of_ours(settings: dict[str, Any], *, resize_last: bool) -> Callable[..., Tensor]:
    """The steps of the library's processor for torchvision, which calls the same functions of torch."""

    def scale(values: Tensor) -> Tensor:
        values = values.float()
        if settings["do_rescale"]:
            values = values * settings["rescale_factor"]
        if settings["do_normalize"]:
            mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
            values = (values - mean) / std
        return values

    def make(pictures: Tensor, *, size: dict[str, int] | None = None, keep_aspect_ratio: bool = False) -> Tensor:  # noqa: ARG001
        size = size or settings["size"]
        sides = size["height"], size["width"]
        mode = RESAMPLING[settings["resample"]]
        if not settings["do_resize"]:
            return scale(pictures)
        if resize_last:
            return F.interpolate(scale(pictures), sides, mode=mode)
        return scale(F.interpolate(pictures, sides, mode=mode, antialias=True))

    return make


def _text(size_px: Any) -> str:  # noqa: ANN401 - any pair
    return "x".join(map(str, size_px))
