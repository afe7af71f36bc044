"""Convert views to the input of a transformers network, with the library's processor or our equivalent.

The library's processor is used with its Pillow backend, so that a store does not depend on torchvision being
installed. Two families have only a torchvision processor; their steps are implemented here.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's input.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from ...common.fileio import read_json
from ...errors import PipelineError
from .device_preprocess import DevicePreparation
from .outputs import RESAMPLING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from .families import Family, OwnProcessor

DEFAULTS: dict[str, Any] = {"do_resize": True, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255}
LIMIT_PX = 2**14
PILLOW_IS_FASTER = {"cpu"}
"""Types of devices."""
CHANGE_AREA = ("do_pad", "do_center_crop")


class Processing(NamedTuple):
    """The preprocessing of one teacher."""

    where: str
    """Names the teacher in messages."""
    name: str
    """Name of the processor, for the card."""
    settings: dict[str, Any]
    """All settings of the processor, as JSON values."""
    process: Callable[..., Tensor]
    """Images (B, 3, H, W) uint8 and settings of the requested size -> (B, 3, h, w) float32."""
    size_px: tuple[int, int] | None
    """The requested input size."""
    patch_px: int | None
    """Both sides of the input must be multiples of it; otherwise the output would not cover the view."""

    def on_device(self, size_px: tuple[int, int], device: torch.device) -> DevicePreparation | None:
        """Return the same preparation of views (H, W) on a device, bit for bit; None if there is none.

        Raises PipelineError as `pixels`.
        """
        if device.type in PILLOW_IS_FASTER:
            return None
        self.pixels(torch.zeros(1, 3, *size_px, dtype=torch.uint8))
        return DevicePreparation.matching(
            lambda images, **settings: self.process(images, **{**self._size(), **settings}),
            self.settings,
            size_px,
            device,
        )

    def _size(self) -> dict[str, Any]:
        if self.size_px is None:
            return {}
        return {"size": {"height": self.size_px[0], "width": self.size_px[1]}, "keep_aspect_ratio": False}

    def pixels(self, images_uint8: Tensor) -> Tensor:
        """Convert images (B, 3, H, W) uint8 RGB to the input (B, 3, h, w) float32.

        Raises PipelineError if the processor cannot make the requested size, or makes one that the patch size does not
        divide.
        """
        try:
            pixels = self.process(images_uint8, **self._size())
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise PipelineError(
                f"{self.where}: its processor fails for a view of {_text(images_uint8.shape[-2:])} px ({error}): "
                "choose a larger `view`"
            ) from error
        size_px = (pixels.shape[-2], pixels.shape[-1])
        if self.size_px and size_px != self.size_px:
            raise PipelineError(
                f"{self.where}: its processor makes an input of {_text(size_px)} px instead of {_text(self.size_px)}: "
                f"give `input_size_px={_text(size_px)}`"
            )
        if self.patch_px and any(side % self.patch_px for side in size_px):
            nearest = [max(1, round(side / self.patch_px)) * self.patch_px for side in size_px]
            raise PipelineError(
                f"{self.where}: its processor makes an input of {_text(size_px)} px, not a multiple of the patch size "
                f"{self.patch_px}, so its depth would miss a border: give `input_size_px={_text(nearest)}`, or a "
                "`view` with such sides"
            )
        return pixels


def open_processing(
    folder: Path,
    config: Any,  # noqa: ANN401 - the library ships no types
    family: Family,
    size_px: tuple[int, int] | None,
    where: str,
    library: Callable[[], Any],
) -> Processing:
    """Open the preprocessing of a model's folder; `library` loads the library's processor.

    Raises PipelineError for settings that change the area that the output covers, and for an unsupported size.
    """
    if family.own is None:
        processor = library()
        name, settings = type(processor).__name__, json.loads(processor.to_json_string())
        process = _library_processor(processor)
    else:
        name = f"{config.model_type} by tiekd-pipeline"
        settings = _own_settings(folder / "preprocessor_config.json", family.own, where)
        process = _own_processor(settings, resize_last=family.own.resize_last)
    changes = [
        key for key in CHANGE_AREA if settings.get(key) and not (family.padding_px is not None and key == "do_pad")
    ]
    if changes:
        raise PipelineError(
            f"{where}: its preprocessor_config.json enables {' and '.join(changes)}, so its depth would cover another "
            "area than the view: disable it in a copy, and choose a `view` whose sides are multiples of its patch size"
        )
    if size_px and not ("size" in settings and (family.own or "keep_aspect_ratio" in settings)):
        raise PipelineError(f"{where}: its processor takes no size: omit `input_size_px`, and resize with `view`")
    if family.input_px:
        side = family.input_px(config)
        size = settings["size"]
        requested_px = size_px or (size["height"], size["width"])
        if not settings["do_resize"] or requested_px != (side, side):
            raise PipelineError(
                f"{where}: an input of {_text(requested_px)} px, expected {side}x{side}, the only size that its "
                f"patches cover: {'omit `input_size_px`' if size_px else 'correct its preprocessor_config.json'}"
            )
    return Processing(where, name, settings, process, size_px, patch_px(config))


def patch_px(config: Any) -> int | None:  # noqa: ANN401 - the library ships no types
    """Return the patch size of a vision transformer; None if there is none."""
    if config.model_type == "depth_pro":  # its patches are crops that are split again; see input_px
        return None
    for holder in (getattr(config, "backbone_config", None), config):
        patch = getattr(holder, "patch_size", None)
        if isinstance(patch, int) and patch > 0:
            return patch
    return None


def _library_processor(processor: Any) -> Callable[..., Tensor]:  # noqa: ANN401 - the library ships no types
    def process(images_uint8: Tensor, **size: Any) -> Tensor:  # noqa: ANN401 - settings of the processor
        images = list(images_uint8.permute(0, 2, 3, 1).numpy())
        batch = processor(images=images, return_tensors="pt", input_data_format="channels_last", **size)
        pixels: Tensor = batch["pixel_values"]
        return pixels

    return process


def _own_settings(path: Path, own: OwnProcessor, where: str) -> dict[str, Any]:
    """Read `preprocessor_config.json` over the library's defaults. Raises PipelineError for unsupported settings."""
    config = read_json(path, f"{where}: preprocessor")
    if not isinstance(config, dict):
        raise PipelineError(f"{where}: {path.name} holds {type(config).__name__}, expected an object")
    defaults = {**DEFAULTS, **own.settings}
    settings = {key: config.get(key, default) for key, default in defaults.items()}
    settings.update({key: config[key] for key in CHANGE_AREA if key in config})
    if settings["do_normalize"]:
        settings.update({key: config.get(key, settings.get(key)) for key in ("image_mean", "image_std")})
    size = settings["size"]
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else [None]
    if any(isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LIMIT_PX for side in sides):
        raise PipelineError(f'{where}: {path.name} has size {size}, expected {{"height": H, "width": W}} in pixels')
    if settings["resample"] not in (2, 3):
        raise PipelineError(
            f"{where}: {path.name} has resample {settings['resample']!r}, expected 2 or 3 (bilinear, bicubic)"
        )
    numbers = [settings["rescale_factor"]]
    for key in ("image_mean", "image_std") if settings["do_normalize"] else ():
        values = settings[key]
        if not isinstance(values, list) or len(values) != 3:
            raise PipelineError(f"{where}: {path.name} has {key} {values!r}, expected three numbers")
        numbers += values
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers) or (
        settings["do_normalize"] and not all(value > 0 for value in settings["image_std"])
    ):
        raise PipelineError(
            f"{where}: {path.name} has factor, mean and deviation {numbers}, expected numbers with positive deviations"
        )
    return settings


def _own_processor(settings: dict[str, Any], *, resize_last: bool) -> Callable[..., Tensor]:
    """Return the steps of the library's torchvision processor, which calls the same functions of torch."""

    def scale(values: Tensor) -> Tensor:
        values = values.float()
        if settings["do_rescale"]:
            values = values * settings["rescale_factor"]
        if settings["do_normalize"]:
            mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
            values = (values - mean) / std
        return values

    def process(
        images: Tensor,
        *,
        size: dict[str, int] | None = None,
        do_resize: bool = settings["do_resize"],
        keep_aspect_ratio: bool = False,  # noqa: ARG001 - as the library's
    ) -> Tensor:
        size = size or settings["size"]
        sides = size["height"], size["width"]
        mode = RESAMPLING[settings["resample"]]
        if not do_resize:
            return scale(images)
        if resize_last:
            return F.interpolate(scale(images), sides, mode=mode)
        return scale(F.interpolate(images, sides, mode=mode, antialias=True))

    return process


def _text(size_px: Any) -> str:  # noqa: ANN401 - any pair
    return "x".join(map(str, size_px))
