"""`transformers:DIR_OR_ID`: depth networks of Hugging Face transformers, with safetensors weights only.

`families` describes the architectures. The store gets the network's raw output, not the upsampled one, unless the
library's post-processing is part of the method.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's output.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ...errors import PipelineError
from ..base import TeacherCard, TeacherOutput, check_covers, concatenate
from .families import FAMILIES, REFUSED, UNKNOWN
from .hidden_states import HiddenStates
from .hub import code_sha256, config_sha256, model_folder, weights_sha256
from .preprocess import open_processing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..options import TeacherOptions
    from .device_preprocess import DevicePreparation
    from .families import Family
    from .preprocess import Processing

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNUSED_WEIGHTS = re.compile(r"neck\.fusion_stage\.layers\.0\.residual_layer1\.|\.pooler\.")
"""Missing from published DPT weights and not used for depth."""


class TransformersTeacher:
    """A network with its preprocessing and output reader. See `load`."""

    needs_images = True

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - the library ships no types
        processing: Processing,
        card: TeacherCard,
        family: Family,
        device: torch.device,
        layers: Sequence[str] = (),
    ) -> None:
        self.card = card
        self._network = network.eval().to(device)
        self._processing = processing
        self._reader = family.reader(network, processing.settings)
        padding_px = family.padding_px if processing.settings.get("do_pad", True) else None
        where = f"teacher {card.name!r}"
        self._hidden = HiddenStates(where, network.config, layers, padding_px) if layers else None
        self.device = device
        self._on_device: dict[tuple[int, int], DevicePreparation | None] = {}
        """By size of the view."""
        self._choosing = Lock()
        self.bin_edges_m = self._reader.bin_edges_m
        self.emits_maps = self._reader.emits_maps
        """Set to False to skip maps over bins of each pixel."""
        if card.precision != "float32":
            assert family.heads, "load refuses a family without heads"
            for name in family.heads:
                head = getattr(network, name, None)
                if head is not None:
                    _keep_float32(head, device)

    def prepare(self, view: NDArray[np.uint8]) -> Tensor:
        """Prepare a view (H, W, 3) as (3, h, w) float32; returns the view where the device prepares it.

        Thread-safe. Raises PipelineError for an unsupported input size.
        """
        if self._preparation((view.shape[0], view.shape[1])) is not None:
            return torch.from_numpy(view)
        return self._processing.pixels(torch.from_numpy(view).permute(2, 0, 1)[None])[0]

    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """Predict depth (B, h, w) float32, and maps (B, K, h, w) if the network has them.

        Raises PipelineError for an unsupported input size, overflow of float16, and implausible output.
        """
        assert images is not None, "needs_images is True"
        # Processors expect bytes, as in an image file.
        views = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        inputs = torch.stack([self.prepare(view) for view in views.numpy()])
        output = self.predict_prepared(inputs, (images.shape[-2], images.shape[-1]), ids)
        if self.card.precision == "float16" and not bool(output.depth.isfinite().all()):
            raise PipelineError(
                f"teacher {self.card.name!r}: its depth overflows in float16 (images {', '.join(ids)}): use "
                "`precision=bfloat16` or float32"
            )
        return output

    @torch.no_grad()
    def predict_prepared(self, inputs: Tensor, view_size_px: tuple[int, int], ids: Sequence[str]) -> TeacherOutput:
        """Predict as `predict` for stacked results of `prepare`; does not check float16 for overflow."""
        pixels = inputs.to(self.device)
        if pixels.dtype == torch.uint8:
            preparation = self._preparation(view_size_px)
            assert preparation is not None, "prepare gives bytes only then"
            pixels = preparation(pixels)
        step = 1 if self._reader.one_image else len(pixels)
        outputs = [
            self._read(pixels[begin : begin + step], view_size_px, ids[begin : begin + step])
            for begin in range(0, len(pixels), step)
        ]
        return concatenate(outputs)

    def _preparation(self, view_size_px: tuple[int, int]) -> DevicePreparation | None:
        with self._choosing:
            if view_size_px not in self._on_device:
                self._on_device[view_size_px] = self._processing.on_device(view_size_px, self.device)
            return self._on_device[view_size_px]

    def _read(self, pixels: Tensor, view_size_px: tuple[int, int], ids: Sequence[str]) -> TeacherOutput:
        try:
            with self._autocast():
                more = {} if self._hidden is None else {"output_hidden_states": True}
                output = self._network(pixel_values=pixels, **more)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:  # for example, the library's DPT takes only square inputs
            size = "x".join(map(str, pixels.shape[-2:]))
            raise PipelineError(
                f"teacher {self.card.name!r}: its network refuses an input of {size} px ({error}): choose another "
                "`input_size_px` or `view`"
            ) from error
        except TypeError as error:  # of code that comes with the weights
            if self._hidden is None:
                raise
            raise PipelineError(
                f"teacher {self.card.name!r}: its network gives no hidden states ({error}): omit `features`, or return "
                "them from a python:module:factory"
            ) from error
        depth = output.predicted_depth
        assert depth.ndim == 3, "predicted_depth is (B, h, w)"
        assert len(depth) == len(pixels), "one depth for each image"
        remedy = "choose another `input_size_px`, or call the network from a python:module:factory that corrects it"
        check_covers(f"teacher {self.card.name!r}", depth.shape[1:], pixels.shape[2:], remedy)
        maps = self.emits_maps or self.bin_edges_m is not None
        try:
            read = self._reader.read(output, view_size_px, ids, maps=maps)
        except ValueError as error:
            raise PipelineError(f"teacher {self.card.name!r}: {error}") from error
        if self._hidden is None:
            return read
        input_px = (pixels.shape[-2], pixels.shape[-1])
        return read._replace(features=self._hidden.read(output, input_px, view_size_px))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.card.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.card.precision])


def load(argument: str, device: torch.device, options: TeacherOptions) -> TransformersTeacher:
    """Open a directory of `save_pretrained`, or a hub id (from the cache only with HF_HUB_OFFLINE=1).

    Raises PipelineError for missing, incomplete or pickled weights, an architecture that does not predict depth, a
    missing or contradictory depth space, and whatever the library refuses.
    """
    where = f"teacher transformers:{argument}"
    folder, commit = model_folder(argument, options.revision, code=options.trust_code)
    sha256 = weights_sha256(folder)
    code = code_sha256(folder) if options.trust_code else None
    library: Any = transformers  # ships no types
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()  # warnings that matter are errors below
    loading = {"local_files_only": True, "trust_remote_code": options.trust_code}
    asked = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    config = _loaded(where, library.AutoConfig, folder, **loading)
    _check_family(config.model_type, where)
    family = FAMILIES.get(config.model_type, UNKNOWN)
    size = options.input_size_px

    def library_processor() -> Any:  # noqa: ANN401 - the library ships no types
        return _loaded(where, library.AutoImageProcessor, folder, backend="pil", **loading)

    processing = open_processing(folder, config, family, size, where, library_processor)
    network, report = _loaded(where, library.AutoModelForDepthEstimation, folder, config=config, **asked, **loading)
    absent = sorted(name for name in report["missing_keys"] if not UNUSED_WEIGHTS.search(name))
    if absent:
        raise PipelineError(
            f"{where}: {len(absent)} weights are missing, such as {', '.join(absent[:3])}, and would be random: give a "
            "complete network that was trained for depth"
        )
    card = TeacherCard(
        kind="transformers",
        name=argument if commit else folder.resolve().name,
        depth_space=_depth_space(family, config, options.depth_space, where),
        weights_sha256=sha256,
        revision=commit,
        preprocessing={
            "processor": processing.name,
            "settings": processing.settings,
            "input_size_px": list(size) if size else None,
            **({"code_sha256": code} if code else {}),
            # A hub commit pins the configuration; a directory can be edited.
            **({} if commit else {"config_sha256": config_sha256(folder)}),
        },
        precision=_precision(options.precision, family, device, where),
        licence=options.licence,
    )
    return TransformersTeacher(network, processing, card, family, device, options.features)


def _loaded(where: str, auto: Any, folder: Path, **options: Any) -> Any:  # noqa: ANN401 - untyped library
    """Load a directory with one of the library's Auto classes. Raises PipelineError for whatever it refuses."""
    try:
        return auto.from_pretrained(folder, **options)
    except (ValueError, OSError, ImportError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"{where}: transformers cannot load it ({error}); expected a depth estimation network and its image "
            "processor, as written by save_pretrained"
        ) from error


def _check_family(model_type: str, where: str) -> None:
    if model_type in REFUSED:
        raise PipelineError(
            f"{where}: a {model_type} network is not a depth teacher: {REFUSED[model_type]}; expected one of "
            f"{', '.join(FAMILIES)}, or write a python:module:factory"
        )


def _depth_space(family: Family, config: Any, asked: str | None, where: str) -> str:  # noqa: ANN401 - untyped library
    configured = family.depth_space(config)
    if configured is None and asked is None:
        raise PipelineError(
            f"{where}: its configuration does not specify its depth space: give `depth_space=metric_m`, affine_depth, "
            f"affine_disparity or scale_invariant, according to its model card{family.hint}"
        )
    if configured is not None and asked is not None and configured != asked:
        raise PipelineError(f"{where}: `depth_space={asked}` contradicts {configured} in its configuration: omit it")
    return configured or asked or ""


def _precision(asked: str, family: Family, device: torch.device, where: str) -> str:
    if asked == "auto":
        # float16 has three more mantissa bits than bfloat16, and overflow is detected.
        return "float16" if device.type == "cuda" and family.heads else "float32"
    if asked not in PRECISIONS:
        raise PipelineError(f"{where}: precision {asked!r}, expected auto or one of {', '.join(PRECISIONS)}")
    if asked != "float32" and not family.heads:
        raise PipelineError(f"{where}: `precision={asked}` is not supported for its architecture: use float32")
    return asked


def _keep_float32(head: torch.nn.Module, device: torch.device) -> None:
    """Make a head compute in float32 inside an autocast region."""
    forward = head.forward

    def in_float32(*given: object, **named: object) -> Any:  # noqa: ANN401 - as the head's own
        with torch.autocast(device.type, enabled=False):
            return forward(*_float32(given), **_float32(named))

    head.forward = in_float32


def _float32(value: Any) -> Any:  # noqa: ANN401 - what a head is called with
    """Convert tensors to float32, also in lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_float32(item) for item in value)
    if isinstance(value, dict):
        return {name: _float32(item) for name, item in value.items()}
    return value
