"""Depth networks of Hugging Face transformers: `transformers:DIR_OR_ID`, weights as safetensors only.

The library's own image processor prepares the input, in its Pillow form, so that a store does not depend on
whether torchvision is installed. What the store gets is the network's raw output, not the upsampled one.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's output.
"""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from .base import TeacherCard, TeacherOutput
from .hub import model_folder, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from .registry import TeacherOptions

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNUSED_WEIGHTS = re.compile(r"neck\.fusion_stage\.layers\.0\.residual_layer1\.|\.pooler\.")
"""Absent from published DPT weights, and never called for depth."""


class Family(NamedTuple):
    """What this adapter has to know of one of the library's architectures."""

    depth_space: Callable[[Any], str | None]
    """Of its configuration; None where that does not say, so that the user must."""
    head: str | None = None
    """Module that turns features into depth. It stays in float32, for bfloat16 gives depth two digits."""
    padded: bool = False
    """The processor pads as ZoeDepth does, and the output covers the padding too."""


def _depth_anything_space(config: Any) -> str:  # noqa: ANN401 - the library ships no types
    return "metric_m" if config.depth_estimation_type == "metric" else "affine_disparity"


def _dpt_space(config: Any) -> str | None:  # noqa: ANN401 - the library ships no types
    # MiDaS networks give inverse depth; those on DINOv2 were trained on metres of NYU or KITTI, or on others.
    backbone = getattr(config.backbone_config, "model_type", None)
    return None if backbone in {"dinov2", "dinov2_with_registers"} else "affine_disparity"


FAMILIES = {
    "depth_anything": Family(_depth_anything_space, head="head"),
    "dpt": Family(_dpt_space, head="head"),
    "glpn": Family(lambda _: "metric_m", head="head"),
    "zoedepth": Family(lambda _: "metric_m", padded=True),
}
UNKNOWN = Family(lambda _: None)
"""Any other whose `predicted_depth` covers the view; the user says what it means."""
REFUSED = {
    "chmv2": "it measures the height of trees",
    "depth_pro": "its raw output is no depth before its focal length is applied",
    "prompt_depth_anything": "it needs a depth map as prompt",
}


class TransformersTeacher:
    """A network and its processor. See `load`."""

    bin_edges_m: NDArray[np.float64] | None = None
    needs_images = True

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - the library ships no types
        processor: Any,  # noqa: ANN401 - the library ships no types
        card: TeacherCard,
        family: Family,
        input_size_px: tuple[int, int] | None,
        device: torch.device,
    ) -> None:
        self.card = card
        self._network = network.eval().to(device)
        self._processor = processor
        self._padded = family.padded
        self._input_size_px = input_size_px
        self._device = device
        if card.precision != "float32":
            assert family.head is not None, "load refuses it"
            _keep_float32(getattr(network, family.head), device)

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """The raw depth (B, h, w) float32 in the card's space, on the CPU.

        Raises ValueError where the processor cannot make the asked input size, or float16 overflows.
        """
        assert images is not None, "needs_images is True"
        # The library's processors expect what an image file holds.
        pictures = list((images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy())
        asked: dict[str, Any] = {}
        if self._input_size_px:
            height, width = self._input_size_px
            asked = {"size": {"height": height, "width": width}, "keep_aspect_ratio": False}
        pixels = self._processor(images=pictures, return_tensors="pt", **asked)["pixel_values"]
        made = tuple(pixels.shape[-2:])
        if self._input_size_px and made != self._input_size_px:
            raise ValueError(
                f"teacher {self.card.name!r}: asked for an input of {self._input_size_px} px, its processor "
                f"makes {made}; give --input-size {made[0]}x{made[1]}"
            )
        with self._autocast():
            depth = self._network(pixel_values=pixels.to(self._device)).predicted_depth.float()
        assert depth.ndim == 3, "predicted_depth is (B, h, w)"
        assert len(depth) == len(images), "one depth an image"
        if self.card.precision == "float16" and not bool(depth.isfinite().all()):
            raise ValueError(
                f"teacher {self.card.name!r}: its depth overflows in float16 (images {', '.join(ids)}); use "
                "--precision bfloat16 or float32"
            )
        if self._padded:
            depth = _without_padding(depth, images.shape[-2], images.shape[-1])
        return TeacherOutput(depth.cpu())

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.card.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, PRECISIONS[self.card.precision])


def load(argument: str, device: torch.device, options: TeacherOptions) -> TransformersTeacher:
    """Open a directory of `save_pretrained`, or a hub id (from the cache alone with HF_HUB_OFFLINE=1).

    Raises ValueError for weights that are absent, incomplete or pickled, an architecture that this adapter
    cannot use, a depth space that is unsaid or contradicted, and whatever the library refuses.
    """
    where = f"teacher transformers:{argument}"
    folder, commit = model_folder(argument, options.revision, code=options.trust_code)
    sha256 = weights_sha256(folder)
    library: Any = transformers  # ships no types
    library.utils.logging.disable_progress_bar()
    loading = {"local_files_only": True, "trust_remote_code": options.trust_code}
    asked = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    config = _loaded(where, library.AutoConfig, folder, **loading)
    _check_family(config.model_type, where)
    processor = _loaded(where, library.AutoImageProcessor, folder, backend="pil", **loading)
    network, report = _loaded(where, library.AutoModelForDepthEstimation, folder, config=config, **asked, **loading)
    absent = sorted(name for name in report["missing_keys"] if not UNUSED_WEIGHTS.search(name))
    if absent:
        raise ValueError(
            f"{where}: its files lack {len(absent)} weights, such as {', '.join(absent[:3])}, which would be "
            "random; give a network that was trained for depth, and whole"
        )
    family = FAMILIES.get(config.model_type, UNKNOWN)
    settings = json.loads(processor.to_json_string())
    _check_processor(settings, family, options, where)
    size = options.input_size_px
    card = TeacherCard(
        kind="transformers",
        name=argument if commit else folder.resolve().name,
        depth_space=_depth_space(family.depth_space(config), options.depth_space, where),
        weights_sha256=sha256,
        revision=commit,
        preprocessing={
            "processor": type(processor).__name__,
            "settings": settings,
            "input_size_px": list(size) if size else None,
        },
        precision=_precision(options.precision, family, device, where),
        licence=options.licence,
    )
    return TransformersTeacher(network, processor, card, family, size, device)


def _loaded(where: str, auto: Any, folder: Path, **options: Any) -> Any:  # noqa: ANN401 - untyped library
    """What one of the library's Auto classes makes of a directory. Raises ValueError for what it refuses."""
    try:
        return auto.from_pretrained(folder, **options)
    except (ValueError, OSError, ImportError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where}: transformers cannot load it ({error}); expected a depth estimation network and its "
            "image processor, as save_pretrained writes them"
        ) from error


def _check_family(model_type: str, where: str) -> None:
    if model_type in REFUSED:
        raise ValueError(
            f"{where}: a {model_type} network, which this adapter cannot use: {REFUSED[model_type]}; "
            f"expected one of {', '.join(FAMILIES)}, or write a python:module:factory"
        )


def _depth_space(known: str | None, asked: str | None, where: str) -> str:
    if known is None and asked is None:
        raise ValueError(
            f"{where}: its configuration does not say what its numbers mean; give --depth-space metric_m, "
            "affine_depth, affine_disparity or scale_invariant, as its model card says"
        )
    if known is not None and asked is not None and known != asked:
        raise ValueError(f"{where}: --depth-space {asked}, but its configuration says {known}: leave it out")
    return known or asked or ""


def _check_processor(settings: dict[str, Any], family: Family, options: TeacherOptions, where: str) -> None:
    """Refuse a processor after which the output would not lie over the view."""
    changes = [key for key in ("do_pad", "do_center_crop") if settings.get(key) and not family.padded]
    if changes:
        raise ValueError(
            f"{where}: its preprocessor_config.json has {' and '.join(changes)} on, so its depth would cover "
            "another area than the view; switch that off in a copy, and choose a --view whose sides its "
            "patches divide"
        )
    if options.input_size_px and not {"size", "keep_aspect_ratio"} <= settings.keys():
        raise ValueError(f"{where}: its processor takes no size; leave --input-size out, and resize with --view")


def _precision(asked: str, family: Family, device: torch.device, where: str) -> str:
    if asked == "auto":
        # float16 has three more bits than bfloat16, and an overflow does not pass unseen.
        return "float16" if device.type == "cuda" and family.head else "float32"
    if asked not in PRECISIONS:
        raise ValueError(f"{where}: precision {asked!r}, expected auto or one of {', '.join(PRECISIONS)}")
    if asked != "float32" and family.head is None:
        raise ValueError(f"{where}: --precision {asked} is not supported for its architecture: use float32")
    return asked


def _keep_float32(head: torch.nn.Module, device: torch.device) -> None:
    """Let a head that takes a list of features compute in float32 within an autocast region."""
    forward = head.forward

    def in_float32(features: Sequence[Tensor], *rest: object) -> Any:  # noqa: ANN401 - as the head's own
        with torch.autocast(device.type, enabled=False):
            return forward([feature.float() for feature in features], *rest)

    head.forward = in_float32


def _without_padding(depth: Tensor, height: int, width: int) -> Tensor:
    """ZoeDepth's own post-processing, which in the library needs torchvision: (B, h, w) -> (B, H, W)."""
    rows, columns = int(np.sqrt(height / 2) * 3), int(np.sqrt(width / 2) * 3)
    size = (height + 2 * rows, width + 2 * columns)
    full = F.interpolate(depth[:, None], size, mode="bicubic", align_corners=False)[:, 0]
    return full[:, rows : rows + height, columns : columns + width].contiguous()
