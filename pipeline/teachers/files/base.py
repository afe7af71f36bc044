"""A teacher that runs a network file: batching, checks and scaling of its output, whatever the runtime.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's output.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...common.device import is_out_of_memory
from ...common.fileio import open_regular, printable
from ...errors import PipelineError
from ..base import POSITIVE_SPACES, TeacherCard, TeacherOutput, check_covers, concatenate
from ..signals import check_probabilities
from .output_names import DEPTH
from .preprocess import AXES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from .preprocess import FileSettings, Preparation
    from .tensors import OutputTensor

NUMBERS = frozenset(f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)) - {"float8"}
"""Types of output that can be read."""
DEVICE_ERRORS = ("CUDA", "cuda", "same device")
"""Parts of the error message of a network that was traced on a GPU and has the device in its code."""


class FileTeacher:
    """Runs a network file. `run` is the runtime: an input tensor -> the raw output of each field, on any device."""

    bin_edges_m: NDArray[np.float64] | None = None
    needs_images = True

    def __init__(
        self,
        settings: FileSettings,
        card: TeacherCard,
        prepare: Preparation,
        outputs: Mapping[str, OutputTensor],
        run: Callable[[Tensor], Mapping[str, Tensor]],
    ) -> None:
        self.card = card
        self._where = settings.where
        self._metres_per_unit = settings.metres_per_unit
        self.device = prepare.device
        self._prepare = prepare
        self._outputs = outputs
        self._run = run
        self._one_by_one = prepare.one_by_one
        self._takes_batches = False

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Predict depth (B, h, w) float32, NaN where a metric integer output is 0 or less; and the named signals.

        Raises PipelineError for an input that the network does not accept, and an output that is not what it is named.
        """
        assert images is not None, "needs_images is True"
        pixels = self._prepare(images)
        if len(pixels) > 1 and not self._one_by_one:
            try:
                output = self._output(pixels)
            except ValueError as error:
                if self._takes_batches or is_out_of_memory(error):
                    raise
                try:
                    self._output(pixels[:1])
                except ValueError:  # the batch size is not the cause
                    raise error from error.__cause__
                self._one_by_one = True  # exported for a batch of 1, although its input shape allows more
            else:
                self._takes_batches = True
                return output
        return concatenate([self._output(pixels[index : index + 1]) for index in range(len(pixels))])

    def _output(self, pixels: Tensor) -> TeacherOutput:
        """Run the network on its input and convert its outputs."""
        try:
            raw = self._run(pixels)
        except Exception as error:  # runtimes have own exception types, few of them public
            if is_out_of_memory(error):
                raise
            remedy = "choose another `input_size_px` or `view`, such as multiples of its patch size"
            if any(part in str(error) for part in DEVICE_ERRORS):
                remedy = f"its code names a device other than {self._prepare.device}: give `device`, or trace it again"
            raise PipelineError(
                f"{self._where} does not run on an input of {tuple(pixels.shape)} ({_line(error)}): {remedy}"
            ) from error
        planes = {field: self._planes(field, raw[field], pixels) for field in self._outputs}
        signals: dict[str, Any] = {
            field: self._signal(field, values) for field, values in planes.items() if field != DEPTH
        }
        return TeacherOutput(self._depth(planes[DEPTH]), **signals)

    def _planes(self, field: str, raw: Tensor, pixels: Tensor) -> Tensor:
        """Return a raw output as (B, h, w) numbers that cover the input."""
        count, name = len(pixels), self._outputs[field].name
        is_mask = field != DEPTH and raw.dtype == torch.bool
        values = _planes(raw.float() if is_mask else raw, count)
        if values is None:
            raise PipelineError(
                f"{self._where}: output {name} is {_dtype_name(raw)} {tuple(raw.shape)} for {count} "
                f"images, expected numbers ({count}, h, w), ({count}, 1, h, w) or ({count}, h, w, 1): choose another "
                "`output`"
            )
        rows, columns = AXES[self._prepare.layout][1:]
        check_covers(
            f"{self._where}: output {name}",
            values.shape[1:],
            (pixels.shape[rows], pixels.shape[columns]),
            "choose another `output`, or call the network from a python:module:factory that corrects it",
            what=field,
        )
        return values

    def _numbers(self, field: str, values: Tensor) -> Tensor:
        """Return what a quantized output stands for, float64."""
        output = self._outputs[field]
        return (values.double() - output.zero_point) * (output.scale or 1)

    def _depth(self, values: Tensor) -> Tensor:
        is_integer = not values.is_floating_point()
        if is_integer and self._metres_per_unit is None and self._outputs[DEPTH].scale is None:
            check_unit(self._where, _dtype_name(values), self.card.depth_space)
        depth = (self._numbers(DEPTH, values) * (self._metres_per_unit or 1)).float()
        if is_integer and self.card.depth_space in POSITIVE_SPACES:
            depth = depth.masked_fill(depth <= 0, torch.nan)
        return depth

    def _signal(self, field: str, values: Tensor) -> Tensor:
        signal = self._numbers(field, values).float()
        check_probabilities(f"{self._where}: output {self._outputs[field].name}", field, signal)
        return signal


def file_card(
    kind: str,
    settings: FileSettings,
    prepare: Preparation,
    outputs: Mapping[str, OutputTensor],
    sha256: str,
    **more: object,
) -> TeacherCard:
    """Return the card of a file. Its precision is the type of its depth."""
    output = outputs[DEPTH]
    if output.dtype not in {None, *NUMBERS}:
        raise PipelineError(
            f"{settings.where}: output {printable(output.name)} has type {output.dtype}, expected numbers: choose "
            "another `output`"
        )
    if output.dtype is not None and np.dtype(output.dtype).kind in "ui" and output.scale is None:
        check_unit(settings.where, output.dtype, settings.depth_space, settings.metres_per_unit)
    quantized = {} if output.scale is None else {"output_scale": output.scale, "output_zero_point": output.zero_point}
    return TeacherCard(
        kind=kind,
        name=settings.name,
        depth_space=settings.depth_space,
        weights_sha256=sha256,
        preprocessing={
            **prepare.as_json(),
            "output": output.name,
            "metres_per_unit": (settings.metres_per_unit or 1.0) if settings.depth_space == "metric_m" else None,
            **quantized,
            **({"signals": settings.signals} if settings.signals else {}),  # not stated in stores of older versions
            **more,
        },
        precision=output.dtype or "float32",
        licence=settings.licence,
    )


def check_unit(where: str, dtype: str, depth_space: str, metres_per_unit: float | None = None) -> None:
    """Refuse metric integer output without a unit."""
    if depth_space == "metric_m" and metres_per_unit is None:
        raise PipelineError(
            f"{where}: its output is {dtype} and the unit is not specified: give `metres_per_unit`, such as 0.001 for "
            "millimetres"
        )


def select_outputs(settings: FileSettings, outputs: Mapping[str, str]) -> dict[str, str]:
    """Return the name of the output of each field, depth first, among `outputs` (name -> shape as text).

    Raises PipelineError for several outputs of which none is selected as depth, and for an unknown name.
    """
    asked = settings.output
    if asked is None and len(outputs) == 1:
        asked = next(iter(outputs))
    selected = {DEPTH: asked, **settings.signals}
    for field, name in selected.items():
        if name is None or name not in outputs:
            listed = ", ".join(f"{printable(name)} {shape}" for name, shape in outputs.items())
            raise PipelineError(
                f"{settings.where} has {f'no output {name!r}, only' if name is not None else 'the outputs'} "
                f"{listed or 'none'}: select the {field} with `output`"
            )
    return {field: name for field, name in selected.items() if name is not None}


def read_bytes(path: Path, where: str, limit_bytes: int) -> bytes:
    """Read a file. Raises PipelineError if it is missing, not a regular file, empty, or too large."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size <= limit_bytes:
                raise PipelineError(f"{where}: {path.name} has {size} bytes, expected 1 to {limit_bytes}")
            return file.read(limit_bytes)
    except OSError as error:
        raise PipelineError(f"{where}: {path}: {error.strerror}; expected a network file") from error


def refused(where: str, runtime: str, error: Exception) -> PipelineError:
    """Return the error for a file that a runtime does not load."""
    return PipelineError(
        f"{where}: {runtime} does not load it ({_line(error)}): check that the file is complete and of this format"
    )


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _planes(raw: Tensor, count: int) -> Tensor | None:
    """Return (B, h, w) of an output with or without a channel axis; None if its shape or type is not depth."""
    if raw.ndim == 4:
        raw = raw[:, 0] if raw.shape[1] == 1 else raw[..., 0] if raw.shape[3] == 1 else raw
    elif raw.ndim == 2 and count == 1:
        raw = raw[None]
    is_number = not raw.is_complex() and raw.dtype != torch.bool
    fits = raw.ndim == 3 and len(raw) == count and 0 not in raw.shape and is_number
    return raw if fits else None


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:300]
