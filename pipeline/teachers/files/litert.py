"""Networks for phones and small boards: `litert:FILE`, a .tflite file, float or quantised, on the CPU.

A quantised file says itself what its numbers stand for: value = (number - zero point) * scale. Its depth then has as
many steps as its type, and its largest number stands for all that is farther.

Shape legend: H W pixels of the view.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import sha256_bytes
from ...errors import PipelineError
from ..metadata import read_sidecar
from .base import Answer, FileTeacher, card_of, choose_output, read_bytes, refused
from .preprocess import InputTensor, OutputTensor, Preparation, refuse_unsaid, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from ..options import TeacherOptions

runtime: Any = import_module("ai_edge_litert.interpreter")  # ships no types

LIMIT_BYTES = 2**31
"""The format holds no more."""
THREADS = 1
"""Many of these networks take milliseconds; and no scheduler then has a part in what a store's bytes are."""


def load(argument: str, device: torch.device, options: TeacherOptions) -> FileTeacher:
    """Open a .tflite file.

    Raises PipelineError for a file that does not load or takes no image, for words about it that are missing or
    contradict each other, and for a GPU.
    """
    path, where = Path(argument), f"teacher litert:{argument}"
    if device.type != "cpu":
        raise PipelineError(f"{where}: `device={device}`, but LiteRT runs on the CPU here: use `device=cpu`")
    if path.is_dir() or not path.exists():
        raise PipelineError(f"{where}: no such file, expected the .tflite file of a network")
    data = read_bytes(path, where, LIMIT_BYTES)
    try:
        interpreter = runtime.Interpreter(model_content=data, num_threads=THREADS)
    except Exception as error:  # RuntimeError and ValueError at least, of its own C++
        raise refused(where, "LiteRT", error) from error
    beside = path.with_name(path.name + ".json")
    tensors, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(tensors) != 1:
        listed = ", ".join(f"{one['name']} {_shape(one)}" for one in tensors)
        raise PipelineError(
            f"{where}: takes {listed or 'nothing'}, expected an image alone; export it with that one input"
        )
    (tensor,) = tensors
    sides = tuple(int(side) if side > 0 else None for side in tensor["shape_signature"])
    # One at a time, whatever the batch may be: the files of this format are made so.
    batch = 1 if sides[:1] == (None,) else sides[0] if sides else None
    taken = InputTensor((batch, *sides[1:]), np.dtype(tensor["dtype"]).name, *_quantisation(tensor, where))
    facts = read_sidecar(beside)
    given = {one["name"]: OutputTensor(np.dtype(one["dtype"]).name, one["quantization"][0] or None) for one in outputs}
    refuse_unsaid(where, beside.name, facts, options, taken, given)
    said = settle(where, path.name, facts, beside.name, options)
    prepare = Preparation(said, taken, device)
    name = choose_output(where, {one["name"]: _shape(one) for one in outputs}, said.output)
    (output,) = [one for one in outputs if one["name"] == name]
    answer = Answer(name, np.dtype(output["dtype"]).name, *_quantisation(output, where))
    card = card_of("litert", said, prepare, answer, sha256_bytes(data))
    return FileTeacher(said, card, prepare, answer, _runner(interpreter, tensor["index"], output["index"]))


def _runner(interpreter: Any, tensor: int, output: int) -> Callable[[Tensor], NDArray[Any]]:  # noqa: ANN401 - ships no types
    shape: list[tuple[int, ...]] = []

    def run(given: Tensor) -> NDArray[Any]:
        numbers = given.numpy()
        if shape != [numbers.shape]:
            interpreter.resize_tensor_input(tensor, numbers.shape, strict=True)
            interpreter.allocate_tensors()
            shape[:] = [numbers.shape]
        interpreter.set_tensor(tensor, numbers)
        interpreter.invoke()
        raw: NDArray[Any] = interpreter.get_tensor(output)
        return raw

    return run


def _quantisation(tensor: dict[str, Any], where: str) -> tuple[float | None, int]:
    """(scale, zero point), (None, 0) of what is not quantised. Raises PipelineError for one a channel."""
    scales = tensor["quantization_parameters"]["scales"]
    if len(scales) > 1:
        raise PipelineError(f"{where}: {tensor['name']} has {len(scales)} scales, expected one; quantise it by tensor")
    scale, zero_point = tensor["quantization"]
    whole = np.dtype(tensor["dtype"]).kind in "ui"
    return (float(scale), int(zero_point)) if whole and scale > 0 else (None, 0)


def _shape(tensor: dict[str, Any]) -> str:
    return f"({', '.join('any' if side < 0 else str(side) for side in tensor['shape_signature'])})"
