"""A network that came as a file, once a runtime can run it: reading, checking and scaling what it answers.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's output.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ...common.device import is_out_of_memory
from ...common.fileio import open_regular, printable
from ...errors import PipelineError
from ..base import NEVER_0, TeacherCard, TeacherOutput, check_covers
from .preprocess import AXES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from .preprocess import Preparation, Said

NUMBERS = frozenset(f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)) - {"float8"}


OF_ANOTHER_DEVICE = ("CUDA", "cuda", "same device")
"""What the error of a network says that was traced on a GPU, with the device in its code."""


class Answer(NamedTuple):
    """What a file says of its output."""

    name: str
    dtype: str | None
    """NumPy's name of its type, None where only running it tells."""
    scale: float | None = None
    """Of a quantised output: value = (number - zero_point) * scale."""
    zero_point: int = 0


class FileTeacher:
    """Runs a file over views. What differs between runtimes is `run`: an input tensor to the raw output."""

    bin_edges_m: NDArray[np.float64] | None = None
    needs_images = True

    def __init__(
        self, said: Said, card: TeacherCard, prepare: Preparation, answer: Answer, run: Callable[[Tensor], NDArray[Any]]
    ) -> None:
        self.card = card
        self._where = said.where
        self._metres_per_unit = said.metres_per_unit
        self._prepare = prepare
        self._answer = answer
        self._run = run
        self._one_by_one = prepare.one_by_one
        self._takes_batches = False

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Depth (B, h, w) float32 in the card's space, on the CPU; NaN where an integer output says 0 or less.

        Raises PipelineError for an input that the network does not take, and an output that is no depth.
        """
        assert images is not None, "needs_images is True"
        given = self._prepare(images)
        if len(given) > 1 and not self._one_by_one:
            try:
                depth = self._depth(given)
            except ValueError as error:
                if self._takes_batches or is_out_of_memory(error):
                    raise
                try:
                    self._depth(given[:1])
                except ValueError:  # more than the batch is wrong
                    raise error from error.__cause__
                self._one_by_one = True  # exported for a batch of 1, though its input says otherwise
            else:
                self._takes_batches = True
                return TeacherOutput(depth)
        return TeacherOutput(torch.cat([self._depth(given[number : number + 1]) for number in range(len(given))]))

    def _depth(self, given: Tensor) -> Tensor:
        try:
            raw = self._run(given)
        except Exception as error:  # every runtime has kinds of its own, few of them public
            if is_out_of_memory(error):
                raise
            remedy = "choose another `input_size_px` or `view`, such as sides that its patches divide"
            if any(sign in str(error) for sign in OF_ANOTHER_DEVICE):
                remedy = f"its code names a device, this is {self._prepare.device}: give `device`, or trace it there"
            raise PipelineError(
                f"{self._where}: does not run on an input of {tuple(given.shape)} ({_line(error)}); {remedy}"
            ) from error
        values = _planes(raw, len(given))
        if values is None:
            raise PipelineError(
                f"{self._where}: output {self._answer.name} is {raw.dtype} {raw.shape} for {len(given)} images, "
                f"expected numbers ({len(given)}, h, w), ({len(given)}, 1, h, w) or ({len(given)}, h, w, 1); choose "
                "another with `output`"
            )
        rows, columns = AXES[self._prepare.layout][1:]
        check_covers(
            f"{self._where}: output {self._answer.name}",
            values.shape[1:],
            (given.shape[rows], given.shape[columns]),
            "choose another with `output`, or call the network from a python:module:factory that puts it right",
        )
        whole = values.dtype.kind in "ui"
        if whole and self._metres_per_unit is None and self._answer.scale is None:
            check_scale_is_said(self._where, str(values.dtype), self.card.depth_space)
        numbers = (values.astype(np.float64) - self._answer.zero_point) * (self._answer.scale or 1)
        depth = (numbers * (self._metres_per_unit or 1)).astype(np.float32)
        if whole and self.card.depth_space in NEVER_0:
            depth[depth <= 0] = np.nan
        return torch.from_numpy(depth)


def card_of(kind: str, said: Said, prepare: Preparation, answer: Answer, sha256: str, **more: object) -> TeacherCard:
    """The card of a file. Its precision is the type of the numbers that it gives."""
    if answer.dtype not in {None, *NUMBERS}:
        raise PipelineError(
            f"{said.where}: output {printable(answer.name)} is of type {answer.dtype}, expected numbers; choose "
            "another with `output`"
        )
    if answer.dtype is not None and np.dtype(answer.dtype).kind in "ui" and answer.scale is None:
        check_scale_is_said(said.where, answer.dtype, said.depth_space, said.metres_per_unit)
    quantised = {} if answer.scale is None else {"output_scale": answer.scale, "output_zero_point": answer.zero_point}
    return TeacherCard(
        kind=kind,
        name=said.name,
        depth_space=said.depth_space,
        weights_sha256=sha256,
        preprocessing={
            **prepare.as_json(),
            "output": answer.name,
            "metres_per_unit": (said.metres_per_unit or 1.0) if said.depth_space == "metric_m" else None,
            **quantised,
            **more,
        },
        precision=answer.dtype or "float32",
        licence=said.licence,
    )


def check_scale_is_said(where: str, dtype: str, depth_space: str, metres_per_unit: float | None = None) -> None:
    """Refuse metres in whole numbers of which nobody says how long one is."""
    if depth_space == "metric_m" and metres_per_unit is None:
        raise PipelineError(
            f"{where}: its output is {dtype} and nothing says how long a unit is; give `metres_per_unit`, such as "
            "0.001 for millimetres"
        )


def choose_output(where: str, outputs: Mapping[str, str], asked: str | None) -> str:
    """Name of the output that is depth, among `outputs` (name -> shape in words).

    Raises PipelineError where there are several and none is asked for, or another than there are.
    """
    name = next(iter(outputs)) if asked is None and len(outputs) == 1 else asked
    if name is None or name not in outputs:
        listed = ", ".join(f"{printable(name)} {shape}" for name, shape in outputs.items())
        raise PipelineError(
            f"{where}: gives {listed or 'nothing'}; choose the one that is depth with `output`"
            + ("" if asked is None else f"; {asked!r} is none of them")
        )
    return name


def read_bytes(path: Path, where: str, limit_bytes: int) -> bytes:
    """All of a file. Raises PipelineError for one that is missing, no regular file, empty, or too large."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size <= limit_bytes:
                raise PipelineError(f"{where}: {path.name} has {size} bytes, expected 1 to {limit_bytes}")
            return file.read(limit_bytes)
    except OSError as error:
        raise PipelineError(f"{where}: {path}: {error.strerror}; expected the file of a network") from error


def refused(where: str, runtime: str, error: Exception) -> PipelineError:
    """The error for a file that a runtime does not load."""
    return PipelineError(f"{where}: {runtime} does not load it ({_line(error)}); is the file whole, and of this kind?")


def _planes(raw: NDArray[Any], count: int) -> NDArray[Any] | None:
    """(B, h, w) of an output with or without an axis of one channel; None where it is none."""
    if raw.ndim == 4:
        raw = raw[:, 0] if raw.shape[1] == 1 else raw[..., 0] if raw.shape[3] == 1 else raw
    elif raw.ndim == 2 and count == 1:
        raw = raw[None]
    fits = raw.ndim == 3 and len(raw) == count and 0 not in raw.shape and raw.dtype.kind in "fui"
    return raw if fits else None


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:300]
