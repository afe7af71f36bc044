"""`onnx:FILE`: an ONNX file, run by ONNX Runtime on the CPU or a CUDA GPU.

Options or FILE.json specify its input and output (`preprocess.KEYS`); a file of `export-student` has them in its
metadata. External weights are read here and not by the runtime, which would open any path that the file names.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...common.fileio import canonical_json, printable, sha256_bytes
from ...errors import MissingDependencyError, PipelineError
from ..base import VIEW
from ..metadata import read_metadata
from .base import FileTeacher, file_card, read_bytes, refused, select_outputs
from .preprocess import Preparation, check_required, merge_settings
from .tensors import InputTensor, OutputTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from ..options import TeacherOptions

runtime: Any = import_module("onnxruntime")  # ships no types

STUDENT = "tiekd-student-1"
"""`format` in the metadata of a file of export-student, see docs/export.md."""
LIMIT_BYTES = 2**31
"""Largest protobuf file."""
LIMIT_WEIGHTS_BYTES = 2**34
"""Of all external weights together."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def load(argument: str, device: torch.device, options: TeacherOptions) -> FileTeacher:
    """Open an ONNX file.

    Raises PipelineError for a file that does not load or takes no image, missing or contradictory settings, and a GPU
    that this ONNX Runtime cannot use.
    """
    path, where = Path(argument), f"teacher onnx:{argument}"
    if path.is_dir() or not path.exists():
        raise PipelineError(f"{where}: no such file, expected an .onnx file")
    data = read_bytes(path, where, LIMIT_BYTES)
    weights = _weights(path, data, where)
    session = _session(data, weights, device, where)
    outputs = {node.name: OutputTensor(node.name, _dtype(node.type)) for node in session.get_outputs()}
    metadata = session.get_modelmeta().custom_metadata_map
    trained_view = {}
    if metadata.get("format") == STUDENT:
        trained_view = {VIEW: metadata["view"]} if "view" in metadata else {}
        settings = merge_settings(where, path.name, _student_settings(metadata), "its metadata", options)
    else:
        metadata_path = path.with_name(path.name + ".json")
        facts = read_metadata(metadata_path)
        check_required(where, metadata_path.name, facts, options, _input(session, where), outputs)
        settings = merge_settings(where, path.name, facts, metadata_path.name, options)
    prepare = Preparation(settings, _input(session, where), device)
    shapes = {node.name: _shape(node.shape) for node in session.get_outputs()}
    selected = {field: outputs[name] for field, name in select_outputs(settings, shapes).items()}
    digests = {name: sha256_bytes(content) for name, content in {path.name: data, **weights}.items()}
    sha256 = sha256_bytes(canonical_json(sorted(digests.items()))) if weights else digests[path.name]
    card = file_card("onnx", settings, prepare, selected, sha256, **trained_view)
    runner = _runner(session, {field: output.name for field, output in selected.items()})
    return FileTeacher(settings, card, prepare, selected, runner)


def _runner(session: Any, names: dict[str, str]) -> Callable[[Tensor], dict[str, Tensor]]:  # noqa: ANN401 - ships no types
    (node,) = session.get_inputs()

    def run(pixels: Tensor) -> dict[str, Tensor]:
        arrays = session.run(list(names.values()), {node.name: pixels.cpu().numpy()})
        for raw in arrays:
            if not isinstance(raw, np.ndarray):
                raise TypeError(f"its output is a {type(raw).__name__}")
        return {field: torch.from_numpy(raw) for field, raw in zip(names, arrays, strict=True)}

    return run


def _session(data: bytes, weights: dict[str, bytes], device: torch.device, where: str) -> Any:  # noqa: ANN401 - as above
    provider, available = PROVIDERS[device.type], runtime.get_available_providers()
    if provider not in available:
        raise PipelineError(
            f"{where}: `device={device}`, but this onnxruntime supports only {', '.join(available)}: replace it with "
            "onnxruntime-gpu, or use `device=cpu`"
        )
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4  # errors are raised too; warnings are about its own optimizations
    settings.use_deterministic_compute = True  # a resumed store must have the same bytes
    if weights:
        if not hasattr(settings, "add_external_initializers_from_files_in_memory"):
            raise PipelineError(
                f"{where}: onnxruntime {runtime.__version__} cannot load external weights from memory; run: "
                "pip install -U onnxruntime"
            )
        settings.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(value) for value in weights.values()]
        )
    chosen = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
    try:
        # The fallback would print, and use the CPU if the GPU does not start.
        session = runtime.InferenceSession(data, settings, providers=[chosen], enable_fallback=0)
    except Exception as error:  # onnxruntime has a dozen exception types, none public
        raise refused(where, "onnxruntime", error) from error
    if provider not in session.get_providers():
        raise PipelineError(
            f"{where}: `device={device}`, but onnxruntime cannot start {provider}: use `device=cpu`, or install the "
            "CUDA and cuDNN versions that onnxruntime-gpu needs"
        )
    return session


def _input(session: Any, where: str) -> InputTensor:  # noqa: ANN401 - the library ships no types
    nodes = session.get_inputs()
    if len(nodes) != 1:
        listed = ", ".join(f"{printable(node.name)} {_shape(node.shape)}" for node in nodes)
        raise PipelineError(
            f"{where} has the inputs {listed or 'none'}, expected one image: export it with this input only"
        )
    shape = tuple(side if isinstance(side, int) else None for side in nodes[0].shape)
    return InputTensor(shape, _dtype(nodes[0].type))


def _dtype(text: str) -> str:
    """Return NumPy's name of a type such as `tensor(float)`; unknown names as they are."""
    inside = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inside, inside)


def _shape(sides: list[int | str | None]) -> str:
    return f"({', '.join(str(side) if isinstance(side, int) else 'any' for side in sides)})"


def _student_settings(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the metadata of a file of export-student under the keys of FILE.json."""
    facts: dict[str, Any] = {key: metadata[key] for key in ("depth_space", "licence", "name") if key in metadata}
    return facts | {"normalise": "unit", "channels": "rgb", "output": "depth_m"}


def _weights(path: Path, data: bytes, where: str) -> dict[str, bytes]:
    """Read the external weights of a model: name -> content.

    Raises PipelineError for a file that is missing, too large, or outside the model's folder.
    """
    try:
        onnx: Any = import_module("onnx")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("onnx", "onnx", where) from error
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # the implementations of protobuf have own exception types
        raise refused(where, "onnx", error) from error
    names = sorted({name for tensor in _tensors(model, onnx.TensorProto) for name in _locations(tensor, where)})
    # The cache of the Hugging Face hub has both files as links into another folder.
    folders = {path.parent.resolve(), path.resolve().parent}
    weights, bytes_left = {}, LIMIT_WEIGHTS_BYTES
    for name in names:
        pure = PurePosixPath(name)
        file = path.parent / pure
        unsafe = str(pure) != name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name
        if unsafe or not folders & {*file.resolve().parents}:
            raise PipelineError(
                f"{where}: its external weights {printable(name)[:200]!r} are outside its folder, so it could read any "
                "file of this machine: export it with the weights in its folder"
            )
        weights[name] = read_bytes(file, where, bytes_left)
        bytes_left -= len(weights[name])
    return weights


def _tensors(message: Any, tensor_type: type) -> Iterator[Any]:  # noqa: ANN401 - protobuf's classes are made at run time
    """Yield all tensors of a message: weights and constants, also of subgraphs and functions."""
    pending = [message]
    while pending:
        part = pending.pop()
        if isinstance(part, tensor_type):
            yield part
            continue
        for field, value in part.ListFields():
            if field.message_type is not None:
                pending += value if hasattr(value, "__len__") else [value]


def _locations(tensor: Any, where: str) -> list[str]:  # noqa: ANN401 - as above
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    external = tensor.data_location == tensor.EXTERNAL or tensor.external_data
    if external and len(locations) != 1:
        raise PipelineError(
            f"{where}: tensor {printable(tensor.name)[:80]!r} names {len(locations)} files of weights, expected one: "
            "export it again"
        )
    return locations
