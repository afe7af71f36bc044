"""`torchscript:FILE`: TorchScript, or a `.pt2` file of torch.export.

Both are programs: loading one runs its code, so they need `trust_code`.

Shape legend: B batch, H W pixels of the view.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export.passes import move_to_device_pass

from ...common.fileio import sha256_bytes
from ...errors import PipelineError
from ..metadata import read_metadata
from .base import FileTeacher, file_card, read_bytes, refused, select_outputs
from .output_names import DEPTH
from .preprocess import Preparation, check_required, merge_settings
from .tensors import InputTensor, OutputTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..options import TeacherOptions
    from .preprocess import FileSettings

jit: Any = torch.jit  # ships no types

LIMIT_BYTES = 2**34
UNKNOWN = InputTensor((None, 3, None, None), "float32")
"""Assumed input of TorchScript, which does not store its shape."""


def load(argument: str, device: torch.device, options: TeacherOptions) -> FileTeacher:
    """Open a file of torch.jit.save, or of torch.export.save if its name ends in `.pt2`.

    Raises PipelineError without `trust_code`, for a file that does not load or takes no image, and for missing or
    contradictory settings.
    """
    path, where = Path(argument), f"teacher torchscript:{argument}"
    if path.is_dir() or not path.exists():
        raise PipelineError(
            f"{where}: no such file, expected a file of torch.jit.save or a .pt2 file of torch.export.save"
        )
    if not options.trust_code:
        raise PipelineError(
            f"{where} is a program that runs with your permissions when loaded: give `trust_code` if you trust its "
            "author, or use an ONNX export, which runs no code"
        )
    data = read_bytes(path, where, LIMIT_BYTES)
    metadata_path = path.with_name(path.name + ".json")
    facts = read_metadata(metadata_path)
    check_required(where, metadata_path.name, facts, options, UNKNOWN, {})
    settings = merge_settings(where, path.name, facts, metadata_path.name, options)
    try:
        network, tensor = (_exported if path.suffix == ".pt2" else _scripted)(data, device, where)
    except (RuntimeError, OSError, KeyError, TypeError, AttributeError) as error:
        raise refused(where, "torch", error) from error
    prepare = Preparation(settings, tensor, device)
    named = {DEPTH: settings.output or "the only one", **settings.signals}
    outputs = {field: OutputTensor(name, None) for field, name in named.items()}
    card = file_card("torchscript", settings, prepare, outputs, sha256_bytes(data))
    return FileTeacher(settings, card, prepare, outputs, _runner(network, settings))


def _scripted(data: bytes, device: torch.device, where: str) -> tuple[Any, InputTensor]:  # noqa: ARG001 - as _exported
    with warnings.catch_warnings():
        # torch deprecates TorchScript in favor of torch.export, but existing files still need it.
        warnings.simplefilter("ignore", DeprecationWarning)
        network = jit.load(io.BytesIO(data), map_location=device)
    if hasattr(network, "training"):  # a frozen network has no modes
        network.eval()
    return network, UNKNOWN


def _exported(data: bytes, device: torch.device, where: str) -> tuple[Any, InputTensor]:
    program = torch.export.load(io.BytesIO(data))
    if device.type != "cpu":
        program = move_to_device_pass(program, str(device))
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in nodes]
    if len(shapes) != 1 or shapes[0] is None:
        raise PipelineError(f"{where} has {len(names)} inputs, expected one image: export it with this input only")
    shape = tuple(side if isinstance(side, int) else None for side in shapes[0])
    return program.module(), InputTensor(shape, str(nodes[0].meta["val"].dtype).removeprefix("torch."))


def _runner(network: Any, settings: FileSettings) -> Callable[[Tensor], dict[str, Tensor]]:  # noqa: ANN401 - untyped
    def run(pixels: Tensor) -> dict[str, Tensor]:
        # The optimizer rewrites a network after its first calls, which would change the bytes of a resumed store.
        with jit.optimized_execution(should_optimize=False):
            outputs = _named(network(pixels))
        selected = select_outputs(settings, {name: _shape(value) for name, value in outputs.items()})
        return {field: _numbers(outputs[name]) for field, name in selected.items()}

    return run


def _numbers(value: Any) -> Tensor:  # noqa: ANN401 - any value
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"its output is a {type(value).__name__}")
    return value.float() if value.is_floating_point() else value


def _named(returned: Any) -> dict[str, Any]:  # noqa: ANN401 - any value
    """Return outputs by the names that `output` accepts: keys of a dict, or indices from 0."""
    if isinstance(returned, dict):
        return {str(key): value for key, value in returned.items()}
    values = returned if isinstance(returned, tuple | list) else [returned]
    return {str(index): value for index, value in enumerate(values)}


def _shape(value: Any) -> str:  # noqa: ANN401 - as above
    return f"({', '.join(map(str, value.shape))})" if isinstance(value, torch.Tensor) else type(value).__name__
