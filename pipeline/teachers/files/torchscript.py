"""Networks that PyTorch saved with their code: `torchscript:FILE`, TorchScript or a `.pt2` of torch.export.

Both are programs, and loading one runs what its maker wrote: so they need `--trust-code`.

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
from ..metadata import read_sidecar
from .base import Answer, FileTeacher, card_of, choose_output, read_bytes, refused
from .preprocess import InputTensor, Preparation, refuse_unsaid, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from ..options import TeacherOptions

jit: Any = torch.jit  # has no types

LIMIT_BYTES = 2**34
UNKNOWN = InputTensor((None, 3, None, None), "float32")
"""Of TorchScript, which does not keep the shape of its input: as PyTorch's networks have it."""


def load(argument: str, device: torch.device, options: TeacherOptions) -> FileTeacher:
    """Open a file of torch.jit.save, or of torch.export.save if its name ends in `.pt2`.

    Raises PipelineError without `trust_code`, for a file that does not load or takes no image, and for words about it
    that are missing or contradict each other.
    """
    path, where = Path(argument), f"teacher torchscript:{argument}"
    if path.is_dir() or not path.exists():
        raise PipelineError(f"{where}: no such file, expected one of torch.jit.save, or a .pt2 of torch.export.save")
    if not options.trust_code:
        raise PipelineError(
            f"{where}: such a file is a program, which runs with your rights as soon as it is loaded; give "
            "`trust_code` if you trust its maker, or have it exported to ONNX, which is none"
        )
    data = read_bytes(path, where, LIMIT_BYTES)
    beside = path.with_name(path.name + ".json")
    facts = read_sidecar(beside)
    refuse_unsaid(where, beside.name, facts, options, UNKNOWN, {})
    said = settle(where, path.name, facts, beside.name, options)
    try:
        network, tensor = (_exported if path.suffix == ".pt2" else _scripted)(data, device, where)
    except (RuntimeError, OSError, KeyError, TypeError, AttributeError) as error:
        raise refused(where, "torch", error) from error
    prepare = Preparation(said, tensor, device)
    answer = Answer(said.output or "the only one", None)
    card = card_of("torchscript", said, prepare, answer, sha256_bytes(data))
    return FileTeacher(said, card, prepare, answer, _runner(network, said.output, where))


def _scripted(data: bytes, device: torch.device, where: str) -> tuple[Any, InputTensor]:  # noqa: ARG001 - as _exported
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export, which cannot read what people have.
        warnings.simplefilter("ignore", DeprecationWarning)
        network = jit.load(io.BytesIO(data), map_location=device)
    if hasattr(network, "training"):  # a frozen one has none, and is in eval mode for ever
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
        raise PipelineError(
            f"{where}: takes {len(names)} inputs, expected an image alone; export it with that one input"
        )
    shape = tuple(side if isinstance(side, int) else None for side in shapes[0])
    return program.module(), InputTensor(shape, str(nodes[0].meta["val"].dtype).removeprefix("torch."))


def _runner(network: Any, output: str | None, where: str) -> Callable[[Tensor], NDArray[Any]]:  # noqa: ANN401 - made by others
    def run(given: Tensor) -> NDArray[Any]:
        # As it is written: else TorchScript rewrites a network after its first calls, and a resumed store begins anew.
        with jit.optimized_execution(should_optimize=False):
            returned = network(given)
        found = _named(returned)
        chosen = found[choose_output(where, {name: _shape(value) for name, value in found.items()}, output)]
        if not isinstance(chosen, torch.Tensor):
            raise TypeError(f"it gives a {type(chosen).__name__}")
        return (chosen.float() if chosen.is_floating_point() else chosen).cpu().numpy()

    return run


def _named(returned: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a stranger's network returns
    """What a network returned, by the names that `--output` may have: keys, or places from 0."""
    if isinstance(returned, dict):
        return {str(key): value for key, value in returned.items()}
    return {
        str(place): value for place, value in enumerate(returned if isinstance(returned, tuple | list) else [returned])
    }


def _shape(value: Any) -> str:  # noqa: ANN401 - as above
    return f"({', '.join(map(str, value.shape))})" if isinstance(value, torch.Tensor) else type(value).__name__
