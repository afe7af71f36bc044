"""Any network that a few lines of Python can call: `python:module:factory`.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from contextlib import contextmanager, suppress
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
from .python_source import source_of, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from .options import TeacherOptions

EXAMPLE = """for example
    class Mine:
        card = {"name": "my-net", "depth_space": "metric_m", "weights": ["net.pth"]}  # or fields of TeacherCard
        def __init__(self, device): self.net = build().eval().to(device)
        def __call__(self, images): return self.net(images)  # (B, 3, H, W) in 0..1 -> (B, h, w)"""
SUM_TOLERANCE = 1e-3


class PythonTeacher:
    """Calls what a user's factory returned, and checks what it gives. See `load`."""

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
        self._device = device

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Depth (B, h, w), maps (B, K, h, w) and edges of their own if it gives them, on the CPU.

        Raises PipelineError quoting what was returned, if that is anything else.
        """
        assert images is not None, "needs_images is True"
        with _users_code(f"teacher {self.card.name!r}"):
            returned = self._model(images.to(self._device))
        parts = tuple(returned) if isinstance(returned, tuple) and len(returned) in {2, 3} else (returned,)
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
            return TeacherOutput(depth.float().cpu())
        edges_m = self._checked_edges(edges, dpm, depth)
        return TeacherOutput(depth.float().cpu(), self._checked_dpm(dpm, depth, edges_m), edges_m)

    def _check_size(self, depth: Tensor, images: Tensor) -> None:
        """Refuse depth of another aspect than the view's, unless the card states why: see docs/teachers.md."""
        output_px, view_px = (depth.shape[1], depth.shape[2]), (images.shape[2], images.shape[3])
        stated = self.card.preprocessing
        turned = aspect_off_px(output_px[::-1], view_px) < aspect_off_px(output_px, view_px)
        if same_aspect(output_px, view_px) or (stated.get("covers_view") is True and not turned):
            return
        input_px = _size_of(stated.get("input_size_px"))
        remedy = (
            "if its network resizes the view, and the depth covers all of it, state that in its card, "
            '"preprocessing": {"input_size_px": [height, width]}, or {"covers_view": true} where that size varies'
        )
        where = f"teacher {self.card.name!r}"
        check_covers(where, output_px, input_px or view_px, remedy, strict=input_px is None)

    def _check_no_maps_promised(self, edges: Any) -> None:  # noqa: ANN401 - whatever the user returned
        if self.emits_maps or edges is not None:
            promised = "its emits_maps is True" if self.emits_maps else f"bin edges {_quoted(edges)}"
            raise PipelineError(
                f"teacher {self.card.name!r} returned no dpm, but {promised}; return (depth, dpm, bin_edges_m), or "
                "depth alone and leave that out"
            )

    def _checked_edges(self, edges: Any, dpm: Any, depth: Tensor) -> Tensor | None:  # noqa: ANN401 - whatever the user returned
        """Edges (B, K + 1) or (B, K + 1, h, w) in metres as given; None where the attribute has them."""
        if edges is None:
            if self.bin_edges_m is None:
                raise PipelineError(
                    f"teacher {self.card.name!r} returned a dpm {_quoted(dpm)} but has no bin_edges_m; give it the "
                    "attribute bin_edges_m, (K + 1,) metres, ascending; or, where each image or pixel has its own, "
                    "the attribute emits_maps = True, and return (depth, dpm, bin_edges_m)"
                )
            return None
        if self.bin_edges_m is not None or not self.emits_maps:
            fix = "set emits_maps = True" if self.bin_edges_m is None else "leave one of the two out"
            raise PipelineError(
                f"teacher {self.card.name!r} returned bin edges {_quoted(edges)}, which are of each image or pixel, "
                f"but its bin_edges_m is {_quoted(self.bin_edges_m)} and its emits_maps {self.emits_maps}: {fix}"
            )
        if not isinstance(edges, Tensor) or not edges.is_floating_point() or edges.ndim not in {2, 4}:
            raise PipelineError(
                f"teacher {self.card.name!r} returned bin edges {_quoted(edges)}, expected a tensor "
                f"({len(depth)}, K + 1) or ({len(depth)}, K + 1, h, w) of a float type, in metres"
            )
        if len(edges) != len(depth):
            raise PipelineError(
                f"teacher {self.card.name!r} returned bin edges {_quoted(edges)}, expected them for {len(depth)} images"
            )
        edges_m = edges.detach().cpu()
        edges_m = edges_m if edges_m.dtype == torch.float64 else edges_m.float()
        try:
            for one in edges_m.numpy():
                check_edges(one, len(one) - 1, tuple(depth.shape[1:]))
        except ValueError as error:
            raise PipelineError(f"teacher {self.card.name!r} returned edges that are none: {error}") from error
        return edges_m

    def _checked_dpm(self, dpm: Any, depth: Tensor, edges_m: Tensor | None) -> Tensor:  # noqa: ANN401 - as above
        own_m = self.bin_edges_m if edges_m is None else edges_m[0]
        assert own_m is not None, "_checked_edges refuses it"
        shape = (len(depth), len(own_m) - 1, *depth.shape[1:])
        if not _is_float(dpm, 4) or dpm.shape != shape:
            raise PipelineError(
                f"teacher {self.card.name!r} returned a dpm {_quoted(dpm)}, expected {shape} of a float "
                f"type: {shape[1]} bins, and the pixels of its depth"
            )
        maps: Tensor = dpm.float().cpu()
        worst = float((maps.sum(dim=1) - 1).abs().max())
        if not worst <= SUM_TOLERANCE or bool((maps < 0).any()):
            raise PipelineError(
                f"teacher {self.card.name!r} returned a dpm from {float(dpm.min()):g} to "
                f"{float(dpm.max()):g}, whose sums over K are off 1 by up to {worst:g}, expected "
                "probabilities: apply softmax over dim 1"
            )
        return maps


def load(argument: str, device: torch.device, options: TeacherOptions) -> PythonTeacher:
    """Import `module:factory`, also from the current directory, and call `factory(device)` or `factory()`.

    Modules of torch in what it returns are put into eval mode. The card gets hashes of the source and of the weights
    that it names. Raises PipelineError for a module, factory, card or bin edges that are missing or wrong.
    """
    module_name, _, factory_name = argument.partition(":")
    if not module_name or not factory_name:
        raise PipelineError(f"teacher python:{argument}: expected python:module:factory, {EXAMPLE}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # a console script has its own folder there, not the user's
    try:
        with _users_code(f"teacher python:{argument}"):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        where = f"neither in {here} nor installed"
        raise PipelineError(
            f"teacher python:{argument}: module {missing!r} is {where}; run from its folder, or install it"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise PipelineError(f"teacher python:{argument}: {module.__file__} has no function {factory_name!r}, {EXAMPLE}")
    with _users_code(f"teacher python:{argument}"):
        model = factory(device) if _takes_device(factory) else factory()
    if not callable(model):
        raise PipelineError(f"teacher python:{argument}: the factory returned {_quoted(model)}, {EXAMPLE}")
    for network in _networks(model):
        network.eval()
    card = _card(argument, model, module, options)
    return PythonTeacher(model, card, _edges(argument, getattr(model, "bin_edges_m", None)), device)


@contextmanager
def _users_code(where: str) -> Iterator[None]:
    """Around code of the user: what it raises is an error of theirs, with the line that raised it.

    Errors of files, of memory and of modules that are missing pass; each has a message of its own.
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


def _takes_device(factory: Callable[..., Any]) -> bool:
    if getattr(factory, "__init__", None) is torch.nn.Module.__init__:  # which says *args, and takes none
        return False
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a class or function of C has no signature
        return False
    return any(parameter.kind not in {parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD} for parameter in parameters)


def _networks(model: Any) -> Iterator[torch.nn.Module]:  # noqa: ANN401 - the user's object
    """Modules of torch that a model is, has as attributes or in lists of them, or closes over as a function."""
    cells = getattr(model, "__closure__", None) or ()
    held = [model, getattr(model, "__self__", None), *getattr(model, "__dict__", {}).values()]
    for cell in cells:
        with suppress(ValueError):  # an empty one
            held.append(cell.cell_contents)
    for one in held:
        several = one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple) else [one]
        yield from (each for each in several if isinstance(each, torch.nn.Module))


def _card(argument: str, model: Any, module: ModuleType, options: TeacherOptions) -> TeacherCard:  # noqa: ANN401 - the user's object
    where, card = f"teacher python:{argument}", getattr(model, "card", None)
    unhashed = object()
    weights: object = unhashed
    if isinstance(card, dict):
        card = dict(card)
        weights = card.pop("weights", unhashed)
        if weights is not unhashed:
            if card.get("weights_sha256") is not None:
                raise PipelineError(f"{where}: its card has both weights and weights_sha256; leave one of the two out")
            card["weights_sha256"] = weights_sha256(where, weights)
        try:
            card = TeacherCard(**{"kind": "python", "name": argument, **card})
        except (TypeError, ValueError) as error:
            raise PipelineError(
                f"teacher python:{argument}: its card {model.card!r} is wrong ({error}), {EXAMPLE}"
            ) from error
    if not isinstance(card, TeacherCard):
        raise PipelineError(
            f"teacher python:{argument}: its card is {_quoted(card)}, expected a TeacherCard or a dict, {EXAMPLE}"
        )
    if options.depth_space not in {None, card.depth_space}:
        raise PipelineError(
            f"teacher python:{argument}: `depth_space={options.depth_space}` but its card says "
            f"{card.depth_space}; leave the flag out, or correct the card"
        )
    made_of = source_of(module).as_json(argument)
    if weights is not unhashed and card.weights_sha256 is None:
        made_of["weights"] = "none"
    card = replace(card, preprocessing={**card.preprocessing, "python": made_of})
    try:
        canonical_json(card.as_json())
    except (TypeError, ValueError) as error:
        raise PipelineError(f"teacher python:{argument}: its card is no JSON ({error}); use plain values") from error
    return card if options.licence is None else replace(card, licence=options.licence)


def _edges(argument: str, edges: Any) -> NDArray[np.float64] | None:  # noqa: ANN401 - the user's object
    if edges is None:
        return None
    edges_m = np.asarray(edges.cpu() if isinstance(edges, Tensor) else edges, dtype=np.float64)
    if edges_m.ndim != 1 or len(edges_m) < 3 or not np.isfinite(edges_m).all() or not (np.diff(edges_m) > 0).all():
        raise PipelineError(
            f"teacher python:{argument}: bin_edges_m {_quoted(edges)}, expected (K + 1,) finite metres, "
            "ascending, of two bins or more"
        )
    return edges_m


def _size_of(value: Any) -> tuple[int, int] | None:  # noqa: ANN401 - any JSON value of a card
    """A size (height, width) that a card states, None where it states none."""
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
