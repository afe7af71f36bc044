"""Opens a teacher by its written form KIND:ARGUMENT. A new kind is one file with `load` and one line here."""

from __future__ import annotations

import os
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from ..common.device import is_out_of_memory
from ..depth.spaces import DEPTH_SPACES
from ..errors import MissingDependencyError, OptionError, PipelineError
from .mixture import flip_averaged
from .nonpositive import drop_nonpositive

if TYPE_CHECKING:
    import torch

    from .base import Teacher
    from .options import TeacherOptions


class Kind(NamedTuple):
    """One way a teacher comes. The texts make its row in docs/teachers.md."""

    module: str
    """Module of this package whose `load(argument, device, options)` returns the teacher."""
    argument: str
    """What stands after the colon, for messages."""
    uses: frozenset[str]
    """The fields of TeacherOptions that mean something to it, beside those of ALL."""
    what: str
    """What it is."""
    depth: str
    """Which depth it gives, and who says so."""
    stored: str
    """What of it goes into the store."""
    needs: str | None = None
    """The optional package it imports."""
    extra: str | None = None
    """The extra of ours that brings it."""

    def own_options(self) -> list[str]:
        """Names of the options that are its own."""
        return sorted(self.uses)


ALL = frozenset({"licence", "flip_average", "map_edges_m", "map_sigma_m"})
"""Options that mean something to every kind."""
FILE_OPTIONS = frozenset(
    {"depth_space", "drop_nonpositive", "metres_per_unit", "input_size_px", "normalise", "channels", "output"}
)
KINDS = {
    "checkpoint": Kind(
        "checkpoint",
        "RUN",
        frozenset(),
        what="a network that `train-teacher` or `train-student` made",
        depth="metric, or as the teacher of a relative run; its configuration says",
        stored="depth, and its maps over its own bins",
    ),
    "ensemble": Kind(
        "ensemble",
        "FILE.json or KIND:WHAT,KIND:WHAT",
        frozenset({"drop_nonpositive", "trust_code"}),
        what="2 to 64 teachers of any kind, weighed",
        depth="metric alone: relative numbers of two networks cannot be mixed",
        stored="mean depth, and the mixture of their maps",
    ),
    "litert": Kind(
        "files.litert",
        "FILE",
        FILE_OPTIONS - {"input_size_px"},
        what="a .tflite file, float or quantised",
        depth="`depth_space` or FILE.json; of integers, in steps of the file's scale",
        stored="depth",
        needs="ai_edge_litert",
        extra="litert",
    ),
    "onnx": Kind(
        "files.onnx",
        "FILE",
        FILE_OPTIONS,
        what="an .onnx file, weights in it or beside it",
        depth="`depth_space` or FILE.json; nothing for a file of `export-student`",
        stored="depth",
        needs="onnxruntime",
        extra="onnx",
    ),
    "predictions": Kind(
        "predictions",
        "DIR",
        frozenset({"metres_per_unit", "depth_space", "input_size_px", "invalid"}),
        what="a folder of depth that somebody wrote: 16-bit PNG, .npy, .npz, .pfm, .exr (extra `exr`)",
        depth="metric, or `depth_space` or predictions.json",
        stored="depth, holes included",
    ),
    "python": Kind(
        "python_factory",
        "module:factory",
        frozenset({"depth_space", "drop_nonpositive"}),
        what="any network that a few lines of yours call",
        depth="its card says",
        stored="depth, and maps if it gives them: fixed bins, of each image, or of each pixel",
    ),
    "torchscript": Kind(
        "files.torchscript",
        "FILE",
        FILE_OPTIONS | {"trust_code"},
        what="a TorchScript or .pt2 file; both are code, so `trust_code`",
        depth="`depth_space` or FILE.json",
        stored="depth",
    ),
    "transformers": Kind(
        "huggingface.teacher",
        "DIR_OR_ID",
        frozenset({"depth_space", "drop_nonpositive", "precision", "trust_code", "revision", "input_size_px"}),
        what="a model of the hub, or a directory of `save_pretrained`",
        depth="its configuration says, else `depth_space`",
        stored="raw depth; maps of ZoeDepth and TIPSv2",
        needs="transformers",
        extra="transformers",
    ),
}


def open_teacher(spec: str, *, device: torch.device, options: TeacherOptions) -> Teacher:
    """Open `checkpoint:RUN`, `python:module:factory`, or another of `KINDS`; with `flip_average`, see `mixture`.

    Raises PipelineError for an unknown kind, an optional package that is absent, an option that means nothing to
    the kind, and for whatever the adapter finds wrong.
    """
    name, _, argument = spec.partition(":")
    if name not in KINDS:
        raise PipelineError(f"teacher {spec!r}: unknown kind {name!r}, expected one of {', '.join(sorted(KINDS))}")
    kind = KINDS[name]
    if not argument:
        raise PipelineError(f"teacher {spec!r}: nothing after the colon, expected {name}:{kind.argument}")
    _check_options(name, kind, options)
    if argument.startswith("~"):
        argument = os.path.expanduser(argument)  # noqa: PTH111 - text in, text out
    try:
        module = import_module(f".{kind.module}", __package__)
    except ModuleNotFoundError as error:
        if kind.needs is None or (error.name or "").split(".")[0] != kind.needs:
            raise
        raise MissingDependencyError(kind.needs, str(kind.extra), f"teacher {spec!r}") from error
    try:
        teacher: Teacher = module.load(argument, device, options)
    except Exception as error:
        if is_out_of_memory(error):
            raise PipelineError(
                f"teacher {spec!r}: out of memory while it was opened, on {device}; use a `device` with more"
            ) from error
        raise
    if options.drop_nonpositive and name != "ensemble":  # whose members do
        teacher = drop_nonpositive(teacher)
    if options.flip_average and name != "ensemble":  # which averages each of its members
        return flip_averaged(teacher, options)
    return teacher


def _check_options(name: str, kind: Kind, options: TeacherOptions) -> None:
    if options.depth_space not in {None, *DEPTH_SPACES}:
        raise OptionError("depth_space", options.depth_space, f"one of {', '.join(DEPTH_SPACES)}")
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in kind.uses | ALL:
            raise PipelineError(
                f"`{field.name}={value!r}` means nothing to {name} teachers, which take "
                f"{', '.join(f'`{used}`' for used in sorted(kind.uses | {'licence', 'flip_average'}))}: leave it out"
            )
