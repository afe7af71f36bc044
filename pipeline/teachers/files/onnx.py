"""Any network as an ONNX file: `onnx:FILE`, run by ONNX Runtime on the CPU or a CUDA GPU.

FILE.json beside it, or flags, say what its numbers mean and how it wants its pixels (`file_input.KEYS`); a file
that `export-student` wrote says all of that itself. Weights in files of their own are read by us, not by the
runtime, which would open whatever path a stranger's file names.

Shape legend: B batch, K bins.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import canonical_json, printable, sha256_bytes
from ...errors import MissingDependencyError, PipelineError
from ..base import VIEW
from ..metadata import read_sidecar
from .base import Answer, FileTeacher, card_of, choose_output, read_bytes, refused
from .preprocess import InputTensor, OutputTensor, Preparation, refuse_unsaid, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from ..options import TeacherOptions

runtime: Any = import_module("onnxruntime")  # ships no types

STUDENT = "tiekd-student-1"
"""`format` in the metadata of a file of export-student: see docs/export.md."""
LIMIT_BYTES = 2**31
"""Of the file itself: protobuf holds no more."""
LIMIT_WEIGHTS_BYTES = 2**34
"""Of the files of weights beside it, together."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def load(argument: str, device: torch.device, options: TeacherOptions) -> FileTeacher:
    """Open an ONNX file.

    Raises PipelineError for a file that does not load or takes no image, for words about it that are missing or
    contradict each other, and for a GPU that this ONNX Runtime cannot use.
    """
    path, where = Path(argument), f"teacher onnx:{argument}"
    if path.is_dir() or not path.exists():
        raise PipelineError(f"{where}: no such file, expected the .onnx file of a network")
    data = read_bytes(path, where, LIMIT_BYTES)
    weights = _weights(path, data, where)
    session = _session(data, weights, device, where)
    metadata = session.get_modelmeta().custom_metadata_map
    if metadata.get("format") == STUDENT:
        more = {VIEW: metadata["view"]} if "view" in metadata else {}
        said = settle(where, path.name, _facts_of_student(metadata), "its metadata", options)
    else:
        more, beside = {}, path.with_name(path.name + ".json")
        facts = read_sidecar(beside)
        refuse_unsaid(where, beside.name, facts, options, _input(session, where), _outputs(session))
        said = settle(where, path.name, facts, beside.name, options)
    prepare = Preparation(said, _input(session, where), device)
    outputs = {node.name: node for node in session.get_outputs()}
    name = choose_output(where, {key: _shape(node.shape) for key, node in outputs.items()}, said.output)
    answer = Answer(name, _dtype(outputs[name].type))
    files = {path.name: data, **weights}
    digests = {key: sha256_bytes(value) for key, value in files.items()}
    sha256 = canonical_json(sorted(digests.items())) if weights else b""
    return FileTeacher(
        said,
        card_of("onnx", said, prepare, answer, sha256_bytes(sha256) if weights else digests[path.name], **more),
        prepare,
        answer,
        _runner(session, name),
    )


def _runner(session: Any, output: str) -> Callable[[Tensor], NDArray[Any]]:  # noqa: ANN401 - the library ships no types
    (node,) = session.get_inputs()

    def run(given: Tensor) -> NDArray[Any]:
        (raw,) = session.run([output], {node.name: given.cpu().numpy()})
        if not isinstance(raw, np.ndarray):
            raise TypeError(f"it gives a {type(raw).__name__}")
        return raw

    return run


def _session(data: bytes, weights: dict[str, bytes], device: torch.device, where: str) -> Any:  # noqa: ANN401 - as above
    provider, there = PROVIDERS[device.type], runtime.get_available_providers()
    if provider not in there:
        raise PipelineError(
            f"{where}: `device={device}`, but this onnxruntime has {', '.join(there)} alone; install onnxruntime-gpu "
            "in its place, or use `device=cpu`"
        )
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4  # its errors are raised as well, and its warnings are of its own optimisations
    settings.use_deterministic_compute = True  # a resumed store is to be the same bytes
    if weights:
        if not hasattr(settings, "add_external_initializers_from_files_in_memory"):
            raise PipelineError(
                f"{where}: its weights lie in files of their own, which onnxruntime {runtime.__version__} cannot take "
                "from memory; run: pip install -U onnxruntime"
            )
        settings.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(value) for value in weights.values()]
        )
    chosen = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
    try:
        # Without a fallback, which would print, and take the CPU where a GPU does not start.
        session = runtime.InferenceSession(data, settings, providers=[chosen], enable_fallback=0)
    except Exception as error:  # onnxruntime has a dozen kinds, none of them public
        raise refused(where, "onnxruntime", error) from error
    if provider not in session.get_providers():
        raise PipelineError(
            f"{where}: `device={device}`, but onnxruntime cannot start {provider} here; use `device=cpu`, or install "
            "the CUDA and cuDNN that onnxruntime-gpu was built for"
        )
    return session


def _input(session: Any, where: str) -> InputTensor:  # noqa: ANN401 - the library ships no types
    nodes = session.get_inputs()
    if len(nodes) != 1:
        listed = ", ".join(f"{printable(node.name)} {_shape(node.shape)}" for node in nodes)
        raise PipelineError(
            f"{where}: takes {listed or 'nothing'}, expected an image alone; export it with that one input"
        )
    shape = tuple(side if isinstance(side, int) else None for side in nodes[0].shape)
    return InputTensor(shape, _dtype(nodes[0].type))


def _outputs(session: Any) -> dict[str, OutputTensor]:  # noqa: ANN401 - as above
    return {node.name: OutputTensor(_dtype(node.type)) for node in session.get_outputs()}


def _dtype(text: str) -> str:
    """NumPy's name of `tensor(float)`, or what stands there where NumPy has none."""
    inside = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inside, inside)


def _shape(sides: list[int | str | None]) -> str:
    return f"({', '.join(str(side) if isinstance(side, int) else 'any' for side in sides)})"


def _facts_of_student(metadata: dict[str, str]) -> dict[str, Any]:
    """What a file of export-student says, in the words of a description."""
    facts: dict[str, Any] = {key: metadata[key] for key in ("depth_space", "licence", "name") if key in metadata}
    return facts | {"normalise": "unit", "channels": "rgb", "output": "depth_m"}


def _weights(path: Path, data: bytes, where: str) -> dict[str, bytes]:
    """The files of weights that a model names: name -> content.

    Raises PipelineError for one that is missing, too large, or lies elsewhere than beside the model.
    """
    try:
        onnx: Any = import_module("onnx")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("onnx", "onnx", where) from error
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # of protobuf, which has implementations with kinds of their own
        raise refused(where, "onnx", error) from error
    names = sorted({name for tensor in _tensors(model, onnx.TensorProto) for name in _locations(tensor, where)})
    # A cache of a hub keeps both as links into one other folder.
    homes = {path.parent.resolve(), path.resolve().parent}
    found, left = {}, LIMIT_WEIGHTS_BYTES
    for name in names:
        pure = PurePosixPath(name)
        file = path.parent / pure
        odd = str(pure) != name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name
        if odd or not homes & {*file.resolve().parents}:
            raise PipelineError(
                f"{where}: takes weights from {printable(name)[:200]!r}, which does not lie beside it: such a file may "
                "be made to read others of this machine; export it again with its weights beside it"
            )
        found[name] = read_bytes(file, where, left)
        left -= len(found[name])
    return found


def _tensors(message: Any, tensor_type: type) -> Iterator[Any]:  # noqa: ANN401 - protobuf's classes are made at run time
    """Every tensor within a message: weights, constants, those of subgraphs and functions."""
    pending = [message]
    while pending:
        one = pending.pop()
        if isinstance(one, tensor_type):
            yield one
            continue
        for field, value in one.ListFields():
            if field.message_type is not None:
                pending += value if hasattr(value, "__len__") else [value]


def _locations(tensor: Any, where: str) -> list[str]:  # noqa: ANN401 - as above
    found = [entry.value for entry in tensor.external_data if entry.key == "location"]
    outside = tensor.data_location == tensor.EXTERNAL or tensor.external_data
    if outside and len(found) != 1:
        raise PipelineError(
            f"{where}: tensor {printable(tensor.name)[:80]!r} names {len(found)} files of weights, expected one; "
            "export it again"
        )
    return found
