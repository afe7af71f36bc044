"""`python:module:factory`: any network that a user's Python code can call.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..common.device import is_out_of_memory
from ..common.fileio import canonical_json
from ..depth.rebin import check_edges
from ..errors import PipelineError
from ..sources.view import aspect_off_px, same_aspect
from .base import TeacherCard, TeacherOutput, check_covers
from .foreign.factories import networks_of, takes_device
from .foreign.model import ForeignModel
from .python_source import source_of, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from .options import TeacherOptions
    from .python_source import Source

EXAMPLE = """for example
    class MyNet:
        card = {"name": "my-net", "depth_space": "metric_m", "weights": ["net.pth"]}  # or fields of TeacherCard
        def __init__(self, device): self.net = build().eval().to(device)
        def __call__(self, images): return self.net(images)  # (B, 3, H, W) in 0..1 -> (B, h, w)"""
SUM_TOLERANCE = 1e-3


class PythonTeacher:
    """Calls the model that a user's factory returned, and validates its output. See `load`."""

    needs_images = True

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        card: TeacherCard,
        bin_edges_m: NDArray[np.float64] | None,
        device: torch.device,
    ) -> None:
        self.card = card
        self.bin_edges_m = bin_edges_m
        self.emits_maps = bool(getattr(model, "emits_maps", False))
        self._model = model
        self.device = device

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Predict depth (B, h, w), and maps (B, K, h, w) and adaptive edges if the model returns them.

        Raises PipelineError, quoting the returned value, for anything else.
        """
        assert images is not None, "needs_images is True"
        with _user_code(f"teacher {self.card.name!r}"):
            returned = self._model(images.to(self.device))
        answer = returned[:3] if isinstance(returned, TeacherOutput) else returned
        parts = tuple(answer) if isinstance(answer, tuple) and len(answer) in {2, 3} else (answer,)
        depth, dpm, edges = (*parts, None, None)[:3]
        if not _is_float(depth, 3) or len(depth) != len(images) or 0 in depth.shape:
            raise PipelineError(
                f"teacher {self.card.name!r} returned {_quoted(returned)} for images {tuple(images.shape)}, "
                f"expected depth ({len(images)}, h, w) of a float type, or a tuple of that and a dpm "
                f"({len(images)}, K, h, w), or of these and its bin edges ({len(images)}, K + 1) or "
                f"({len(images)}, K + 1, h, w)"
            )
        self._check_size(depth, images)
        if dpm is None:
            self._check_no_maps_promised(edges)
            return TeacherOutput(depth.float())
        edges_m = self._checked_edges(edges, dpm, depth)
        return TeacherOutput(depth.float(), self._checked_dpm(dpm, depth, edges_m), edges_m)

    def _check_size(self, depth: Tensor, images: Tensor) -> None:
        """Refuse depth whose aspect ratio differs from the view's, unless the card allows it: see docs/teachers.md."""
        output_px, view_px = (depth.shape[1], depth.shape[2]), (images.shape[2], images.shape[3])
        preprocessing = self.card.preprocessing
        transposed = aspect_off_px(output_px[::-1], view_px) < aspect_off_px(output_px, view_px)
        if same_aspect(output_px, view_px) or (preprocessing.get("covers_view") is True and not transposed):
            return
        input_px = _size_of(preprocessing.get("input_size_px"))
        remedy = (
            "if the network resizes the view and its depth covers all of it, add to its card "
            '"preprocessing": {"input_size_px": [height, width]}, or {"covers_view": true} if that size varies'
        )
        where = f"teacher {self.card.name!r}"
        check_covers(where, output_px, input_px or view_px, remedy, strict=input_px is None)

    def _check_no_maps_promised(self, edges: Any) -> None:  # noqa: ANN401 - whatever the user returned
        if self.emits_maps or edges is not None:
            promised = "its emits_maps is True" if self.emits_maps else f"bin edges {_quoted(edges)}"
            raise PipelineError(
                f"teacher {self.card.name!r} returned no dpm, but {promised}: return (depth, dpm, bin_edges_m), or "
                "depth without emits_maps and edges"
            )

    def _checked_edges(self, edges: Any, dpm: Any, depth: Tensor) -> Tensor | None:  # noqa: ANN401 - whatever the user returned
        """Return adaptive edges (B, K + 1) or (B, K + 1, h, w) in metres; None if the bins are fixed."""
        if edges is None:
            if self.bin_edges_m is None:
                raise PipelineError(
                    f"teacher {self.card.name!r} returned a dpm {_quoted(dpm)} but has no bin_edges_m: add the "
                    "attribute bin_edges_m, (K + 1,) ascending metres; for bins of each image or pixel, set the "
                    "attribute emits_maps = True and return (depth, dpm, bin_edges_m)"
                )
            return None
        if self.bin_edges_m is not None or not self.emits_maps:
            fix = "set emits_maps = True" if self.bin_edges_m is None else "remove one of the two"
            raise PipelineError(
                f"teacher {self.card.name!r} returned adaptive bin edges {_quoted(edges)}, but has bin_edges_m "
                f"{_quoted(self.bin_edges_m)} and emits_maps {self.emits_maps}: {fix}"
            )
        if not isinstance(edges, Tensor) or not edges.is_floating_point() or edges.ndim not in {2, 4}:
            raise PipelineError(
                f"teacher {self.card.name!r} returned bin edges {_quoted(edges)}, expected a tensor "
                f"({len(depth)}, K + 1) or ({len(depth)}, K + 1, h, w) of a float type, in metres"
            )
        if len(edges) != len(depth):
            raise PipelineError(
                f"teacher {self.card.name!r} returned bin edges {_quoted(edges)}, expected one row for each of "
                f"{len(depth)} images"
            )
        edges_m = edges.detach().cpu()
        edges_m = edges_m if edges_m.dtype == torch.float64 else edges_m.float()
        try:
            for edges_of_image in edges_m.numpy():
                check_edges(edges_of_image, len(edges_of_image) - 1, tuple(depth.shape[1:]))
        except ValueError as error:
            raise PipelineError(f"teacher {self.card.name!r} returned invalid bin edges: {error}") from error
        return edges_m

    def _checked_dpm(self, dpm: Any, depth: Tensor, edges_m: Tensor | None) -> Tensor:  # noqa: ANN401 - as above
        own_m = self.bin_edges_m if edges_m is None else edges_m[0]
        assert own_m is not None, "_checked_edges refuses it"
        shape = (len(depth), len(own_m) - 1, *depth.shape[1:])
        if not _is_float(dpm, 4) or dpm.shape != shape:
            raise PipelineError(
                f"teacher {self.card.name!r} returned a dpm {_quoted(dpm)}, expected shape {shape} of a float type: "
                f"{shape[1]} bins at the size of its depth"
            )
        maps: Tensor = dpm.float()
        worst = float((maps.sum(dim=1) - 1).abs().max())
        if not worst <= SUM_TOLERANCE or bool((maps < 0).any()):
            raise PipelineError(
                f"teacher {self.card.name!r} returned a dpm with values from {float(dpm.min()):g} to "
                f"{float(dpm.max()):g} and sums over K up to {worst:g} away from 1, expected probabilities: apply "
                "softmax over dim 1"
            )
        return maps


class OwnEnvironmentTeacher(PythonTeacher):
    """A teacher whose model runs in another Python environment (`teacher_python`)."""

    def __init__(self, model: ForeignModel, card: TeacherCard, bin_edges_m: NDArray[np.float64] | None) -> None:
        super().__init__(model, card, bin_edges_m, torch.device("cpu"))  # where the other process reads images
        self.stage = model.stage
        self.package_versions = model.package_versions


def load(argument: str, device: torch.device, options: TeacherOptions) -> PythonTeacher:
    """Import `module:factory`, from the current directory too, and call `factory(device)` or `factory()`.

    torch modules in the returned model are put into eval mode. The card gets hashes of the source code and of the
    weights that it names. Raises PipelineError for a missing or invalid module, factory, card or bin edges.
    """
    if not all(argument.partition(":")):
        raise PipelineError(f"teacher python:{argument}: expected python:module:factory, {EXAMPLE}")
    if options.teacher_python is not None:
        other = ForeignModel(argument, options.teacher_python, device, EXAMPLE)
        return OwnEnvironmentTeacher(other, _card(argument, other, other.source, options), _edges(argument, other))
    module, model = _imported(argument, device)
    return PythonTeacher(model, _card(argument, model, source_of(module), options), _edges(argument, model), device)


def _imported(argument: str, device: torch.device) -> tuple[ModuleType, Any]:
    """Import the module and call its factory. Raises as `load`."""
    module_name, _, factory_name = argument.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a console script has its own folder there, not the user's
    try:
        with _user_code(f"teacher python:{argument}"):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PipelineError(
            f"teacher python:{argument}: module {error.name or module_name!r} is neither in {folder} nor installed: "
            "run from its folder, or install it"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise PipelineError(f"teacher python:{argument}: {module.__file__} has no function {factory_name!r}, {EXAMPLE}")
    with _user_code(f"teacher python:{argument}"):
        model = factory(device) if takes_device(factory) else factory()
    if not callable(model):
        raise PipelineError(
            f"teacher python:{argument}: the factory returned {_quoted(model)}, expected a callable, {EXAMPLE}"
        )
    for network in networks_of(model):
        network.eval()
    return module, model


@contextmanager
def _user_code(where: str) -> Iterator[None]:
    """Turn an exception of the user's code into a PipelineError that names the line that raised it.

    Errors of files and memory, and missing modules, pass: they have their own messages.
    """
    try:
        yield
    except (PipelineError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise PipelineError(
            f"{where}: its code raised {type(error).__name__}: {str(error)[:500]} ({Path(last.filename).name}, line "
            f"{last.lineno}); `debug` shows the traceback"
        ) from error


def _card(argument: str, model: Any, source: Source, options: TeacherOptions) -> TeacherCard:  # noqa: ANN401 - the user's object
    where, card = f"teacher python:{argument}", getattr(model, "card", None)
    weights_named = False
    if isinstance(card, dict):
        card = dict(card)
        weights_named = "weights" in card
        if weights_named:
            if card.get("weights_sha256") is not None:
                raise PipelineError(f"{where}: its card has both weights and weights_sha256: remove one of the two")
            card["weights_sha256"] = weights_sha256(where, card.pop("weights"))
        try:
            card = TeacherCard(**{"kind": "python", "name": argument, **card})
        except (TypeError, ValueError) as error:
            raise PipelineError(f"{where}: its card {model.card!r} is not valid ({error}), {EXAMPLE}") from error
    if not isinstance(card, TeacherCard):
        raise PipelineError(f"{where}: its card is {_quoted(card)}, expected a TeacherCard or a dict, {EXAMPLE}")
    if options.depth_space not in {None, card.depth_space}:
        raise PipelineError(
            f"{where}: `depth_space={options.depth_space}` contradicts {card.depth_space} in its card: omit the option "
            "or correct the card"
        )
    code = source.as_json(argument)
    if weights_named and card.weights_sha256 is None:
        code["weights"] = "none"
    card = replace(card, preprocessing={**card.preprocessing, "python": code})
    try:
        canonical_json(card.as_json())
    except (TypeError, ValueError) as error:
        raise PipelineError(f"{where}: its card is not valid JSON ({error}): use numbers, text and lists") from error
    return card if options.licence is None else replace(card, licence=options.licence)


def _edges(argument: str, model: Any) -> NDArray[np.float64] | None:  # noqa: ANN401 - the user's object
    edges = getattr(model, "bin_edges_m", None)
    if edges is None:
        return None
    edges_m = np.asarray(edges.cpu() if isinstance(edges, Tensor) else edges, dtype=np.float64)
    if edges_m.ndim != 1 or len(edges_m) < 3 or not np.isfinite(edges_m).all() or not (np.diff(edges_m) > 0).all():
        raise PipelineError(
            f"teacher python:{argument}: bin_edges_m {_quoted(edges)}, expected (K + 1,) finite metres, ascending, for "
            "at least two bins"
        )
    return edges_m


def _size_of(value: Any) -> tuple[int, int] | None:  # noqa: ANN401 - any JSON value of a card
    """Return the size (height, width) of a card; None if it has none."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(side) is int for side in value):
        return None
    return (value[0], value[1]) if min(value) > 0 else None


def _is_float(value: Any, dimensions: int) -> bool:  # noqa: ANN401 - whatever the user returned
    return isinstance(value, Tensor) and value.ndim == dimensions and value.is_floating_point()


def _quoted(value: Any) -> str:  # noqa: ANN401 - whatever the user returned
    if isinstance(value, tuple):
        return f"({', '.join(map(_quoted, value))})"
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"{type(value).__name__} {str(value)[:60]!r}"
    return f"{type(value).__name__} {tuple(shape)} {getattr(value, 'dtype', '')}".rstrip()
