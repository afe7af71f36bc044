"""Open a teacher from its KIND:ARGUMENT string. A new kind needs one file with `load` and one entry in `KINDS`."""

from __future__ import annotations

import os
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from ..common.device import is_out_of_memory
from ..depth.spaces import DEPTH_SPACES
from ..errors import MissingDependencyError, OptionError, PipelineError
from .camera import with_camera
from .mixture import flip_averaged
from .nonpositive import drop_nonpositive

if TYPE_CHECKING:
    import torch

    from .base import Teacher
    from .options import TeacherOptions


class TeacherKind(NamedTuple):
    """One kind of teacher. The texts fill its row in docs/teachers.md."""

    module: str
    """Module of this package whose `load(argument, device, options)` returns the teacher."""
    argument: str
    """Placeholder for the text after the colon."""
    options: frozenset[str]
    """The fields of TeacherOptions that it accepts, besides COMMON_OPTIONS."""
    what: str
    """What the user has."""
    required: str
    """What the user must also specify."""
    depth: str
    """Its depth space, and where that is specified."""
    stored: str
    """What the store holds."""
    package: str | None = None
    """The optional package that it imports."""
    extra: str | None = None
    """The extra of this project that installs the package."""


COMMON_OPTIONS = frozenset({"licence", "flip_average", "map_edges_m", "map_sigma_m"})
"""Options that every kind accepts."""
FILE_OPTIONS = frozenset(
    {
        *("depth_space", "drop_nonpositive", "metres_per_unit", "input_size_px", "normalise", "channels", "output"),
        *("canonical_focal_px", "focal_px"),
    }
)
KINDS = {
    "checkpoint": TeacherKind(
        "checkpoint",
        "RUN",
        frozenset({"features", "readout"}),
        what="a run of `train-teacher` or `train-student`",
        required="",
        depth="metric, or that of the run's relative teacher",
        stored="depth as the run or `readout` reads it, and maps over its own bins",
    ),
    "ensemble": TeacherKind(
        "ensemble",
        "KIND:WHAT,KIND:WHAT or FILE.json",
        frozenset({"drop_nonpositive", "focal_px", "trust_code"}),
        what="2 to 64 metric teachers of any kind, optionally weighted",
        required="",
        depth="metric",
        stored="mean depth, and the mixture of the maps",
    ),
    "litert": TeacherKind(
        "files.litert",
        "FILE",
        FILE_OPTIONS - {"input_size_px"},
        what="a .tflite file, float or quantized",
        required="`depth_space`; `normalise` unless the input is quantized to 0..1 or 0..255",
        depth="`depth_space`",
        stored="depth; an integer output has steps of the file's scale",
        package="ai_edge_litert",
        extra="litert",
    ),
    "onnx": TeacherKind(
        "files.onnx",
        "FILE",
        FILE_OPTIONS,
        what="an .onnx file, with internal or external weights",
        required="`depth_space`, `normalise`; nothing for a file of `export-student`",
        depth="`depth_space`",
        stored="depth",
        package="onnxruntime",
        extra="onnx",
    ),
    "predictions": TeacherKind(
        "predictions",
        "DIR",
        frozenset({"metres_per_unit", "depth_space", "input_size_px", "invalid"}),
        what="a folder of saved depth: 16-bit PNG, .npy, .npz, .pfm, .exr (extra `exr`)",
        required="`metres_per_unit`, or `depth_space` for relative depth",
        depth="metric, or `depth_space`",
        stored="depth, with holes",
    ),
    "python": TeacherKind(
        "python_factory",
        "module:factory",
        frozenset({"depth_space", "drop_nonpositive", "features", "focal_px"}),
        what="any network that your Python code can call",
        required="a `card` in your code",
        depth="that of its card",
        stored="depth, and maps if returned: over fixed bins, or bins for each image or pixel",
    ),
    "torchscript": TeacherKind(
        "files.torchscript",
        "FILE",
        FILE_OPTIONS | {"trust_code"},
        what="a TorchScript or .pt2 file",
        required="`depth_space`, `normalise`, `trust_code`",
        depth="`depth_space`",
        stored="depth",
    ),
    "transformers": TeacherKind(
        "huggingface.teacher",
        "DIR_OR_ID",
        frozenset(
            {"depth_space", "drop_nonpositive", "features", "input_size_px", "precision", "revision", "trust_code"}
        ),
        what="a Hugging Face model: a hub id or a `save_pretrained` directory",
        required="`depth_space` if its configuration does not specify it",
        depth="its configuration, or `depth_space`",
        stored="raw depth; maps of ZoeDepth and TIPSv2",
        package="transformers",
        extra="transformers",
    ),
}


def open_teacher(spec: str, *, device: torch.device, options: TeacherOptions) -> Teacher:
    """Open a teacher, for example `checkpoint:RUN`; see `KINDS`.

    Raises PipelineError for an unknown kind, a missing optional package, an option that the kind does not accept, and
    whatever its `load` refuses.
    """
    name, _, argument = spec.partition(":")
    if name not in KINDS:
        raise PipelineError(f"teacher {spec!r}: unknown kind {name!r}, expected one of {', '.join(sorted(KINDS))}")
    kind = KINDS[name]
    if not argument:
        raise PipelineError(f"teacher {spec!r} has nothing after the colon, expected {name}:{kind.argument}")
    _check_options(name, kind, options)
    if argument.startswith("~"):
        argument = os.path.expanduser(argument)  # noqa: PTH111 - text in, text out
    try:
        module = import_module(f".{kind.module}", __package__)
    except ModuleNotFoundError as error:
        if kind.package is None or (error.name or "").split(".")[0] != kind.package:
            raise
        raise MissingDependencyError(kind.package, str(kind.extra), f"teacher {spec!r}") from error
    try:
        teacher: Teacher = module.load(argument, device, options)
    except Exception as error:
        if is_out_of_memory(error):
            raise PipelineError(
                f"teacher {spec!r}: out of memory while opening it on {device}: use a `device` with more memory"
            ) from error
        raise
    if name == "ensemble":  # applies both options to each member
        return teacher
    teacher = with_camera(teacher, options)
    if options.drop_nonpositive:
        teacher = drop_nonpositive(teacher)
    return flip_averaged(teacher, options) if options.flip_average else teacher


def _check_options(name: str, kind: TeacherKind, options: TeacherOptions) -> None:
    if options.depth_space not in {None, *DEPTH_SPACES}:
        raise OptionError("depth_space", options.depth_space, f"one of {', '.join(DEPTH_SPACES)}")
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in kind.options | COMMON_OPTIONS:
            accepted = ", ".join(f"`{option}`" for option in sorted(kind.options | {"licence", "flip_average"}))
            raise PipelineError(
                f"`{field.name}={value!r}` does not apply to {name} teachers, which accept {accepted}: omit it"
            )
