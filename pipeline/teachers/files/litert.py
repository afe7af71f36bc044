"""`litert:FILE`: a .tflite file, float or quantized, on the CPU.

A quantized file defines its numbers: value = (number - zero point) * scale. Its depth has as many steps as its type,
and saturates at the largest.

Shape legend: H W pixels of the view.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...common.fileio import sha256_bytes
from ...errors import PipelineError
from ..metadata import read_metadata
from .base import FileTeacher, file_card, read_bytes, refused, select_outputs
from .preprocess import Preparation, check_required, merge_settings
from .tensors import InputTensor, OutputTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..options import TeacherOptions

runtime: Any = import_module("ai_edge_litert.interpreter")  # ships no types

LIMIT_BYTES = 2**31
"""Largest file of the format."""
THREADS = 1
"""One thread keeps the bytes of a store independent of the number of cores."""


def load(argument: str, device: torch.device, options: TeacherOptions) -> FileTeacher:
    """Open a .tflite file.

    Raises PipelineError for a file that does not load or takes no image, missing or contradictory settings, and a GPU.
    """
    path, where = Path(argument), f"teacher litert:{argument}"
    if device.type != "cpu":
        raise PipelineError(f"{where}: `device={device}`, but LiteRT teachers run on the CPU only: use `device=cpu`")
    if path.is_dir() or not path.exists():
        raise PipelineError(f"{where}: no such file, expected a .tflite file")
    data = read_bytes(path, where, LIMIT_BYTES)
    try:
        interpreter = runtime.Interpreter(model_content=data, num_threads=THREADS)
    except Exception as error:  # RuntimeError, ValueError and others of its C++
        raise refused(where, "LiteRT", error) from error
    inputs = interpreter.get_input_details()
    outputs = {detail["name"]: detail for detail in interpreter.get_output_details()}
    if len(inputs) != 1:
        listed = ", ".join(f"{detail['name']} {_shape(detail)}" for detail in inputs)
        raise PipelineError(
            f"{where} has the inputs {listed or 'none'}, expected one image: export it with this input only"
        )
    (tensor,) = inputs
    sides = tuple(int(side) if side > 0 else None for side in tensor["shape_signature"])
    # A variable batch runs one image at a time: files of this format are made for that.
    batch = 1 if sides[:1] == (None,) else sides[0] if sides else None
    input_tensor = InputTensor((batch, *sides[1:]), _dtype(tensor), *_quantization(tensor, where))
    metadata_path = path.with_name(path.name + ".json")
    facts = read_metadata(metadata_path)
    named = {
        name: OutputTensor(name, _dtype(detail), detail["quantization"][0] or None) for name, detail in outputs.items()
    }
    check_required(where, metadata_path.name, facts, options, input_tensor, named)
    settings = merge_settings(where, path.name, facts, metadata_path.name, options)
    prepare = Preparation(settings, input_tensor, device)
    names = select_outputs(settings, {name: _shape(detail) for name, detail in outputs.items()})
    selected = {
        field: OutputTensor(name, _dtype(outputs[name]), *_quantization(outputs[name], where))
        for field, name in names.items()
    }
    card = file_card("litert", settings, prepare, selected, sha256_bytes(data))
    runner = _runner(interpreter, tensor["index"], {field: outputs[name]["index"] for field, name in names.items()})
    return FileTeacher(settings, card, prepare, selected, runner)


def _runner(
    interpreter: Any,  # noqa: ANN401 - ships no types
    tensor: int,
    outputs: dict[str, int],
) -> Callable[[Tensor], dict[str, Tensor]]:
    shape: list[tuple[int, ...]] = []

    def run(pixels: Tensor) -> dict[str, Tensor]:
        numbers = pixels.numpy()
        if shape != [numbers.shape]:
            interpreter.resize_tensor_input(tensor, numbers.shape, strict=True)
            interpreter.allocate_tensors()
            shape[:] = [numbers.shape]
        interpreter.set_tensor(tensor, numbers)
        interpreter.invoke()
        return {field: torch.from_numpy(interpreter.get_tensor(index)) for field, index in outputs.items()}

    return run


def _quantization(tensor: dict[str, Any], where: str) -> tuple[float | None, int]:
    """Return (scale, zero point), or (None, 0) if not quantized. Raises PipelineError for a scale for each channel."""
    scales = tensor["quantization_parameters"]["scales"]
    if len(scales) > 1:
        raise PipelineError(f"{where}: {tensor['name']} has {len(scales)} scales, expected one: quantize it per tensor")
    scale, zero_point = tensor["quantization"]
    is_integer = np.dtype(tensor["dtype"]).kind in "ui"
    return (float(scale), int(zero_point)) if is_integer and scale > 0 else (None, 0)


def _dtype(tensor: dict[str, Any]) -> str:
    name: str = np.dtype(tensor["dtype"]).name
    return name


def _shape(tensor: dict[str, Any]) -> str:
    return f"({', '.join('any' if side < 0 else str(side) for side in tensor['shape_signature'])})"
