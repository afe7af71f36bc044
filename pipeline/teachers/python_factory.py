"""`python:module:factory`: any network that a user's Python code can call.

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
from ..errors import PipelineError
from .base import TeacherCard
from .camera import INPUTS
from .python_output import OutputCheck, quoted
from .python_source import source_of, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from .base import TeacherOutput
    from .options import TeacherOptions

EXAMPLE = """for example
    class MyNet:
        card = {"name": "my-net", "depth_space": "metric_m", "weights": ["net.pth"]}  # or fields of TeacherCard
        def __init__(self, device): self.net = build().eval().to(device)
        def __call__(self, images): return self.net(images)  # (B, 3, H, W) in 0..1 -> (B, h, w)"""


class PythonTeacher:
    """Calls the model that a user's factory returned, and validates its output. See `load`."""

    needs_images = True

    def __init__(
        self,
        model: Callable[..., Any],
        card: TeacherCard,
        bin_edges_m: NDArray[np.float64] | None,
        device: torch.device,
        layers: tuple[str, ...] = (),
    ) -> None:
        self.card = card
        self.bin_edges_m = bin_edges_m
        self.emits_maps = bool(getattr(model, "emits_maps", False))
        self._model = model
        self.device = device
        self._layers = layers
        self._first: list[str] | None = None
        """What the first batch gave."""

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str], **inputs: Tensor) -> TeacherOutput:
        """Predict depth (B, h, w), and whatever else of a TeacherOutput the model returns.

        `inputs` are those that the card names: `intrinsics_px` (B, 4) fx fy cx cy of the views, NaN where unknown.

        Raises PipelineError, quoting the returned value, for anything else, and for other fields than before.
        """
        assert images is not None, "needs_images is True"
        with _user_code(f"teacher {self.card.name!r}"):
            returned = self._model(images.to(self.device), **inputs)
        output = self._check().output(returned, images)
        self._check_same_fields(output, ids)
        return output

    def _check(self) -> OutputCheck:
        return OutputCheck(self.card, self.bin_edges_m, self.emits_maps, self._layers)

    def _check_same_fields(self, output: TeacherOutput, ids: Sequence[str]) -> None:
        """Refuse fields that differ from those of the first batch: a store has the same for every image."""
        given = [name for name, value in output._asdict().items() if value is not None and name != "features"]
        given += [f"{layer} with {values.shape[1]} channels" for layer, values in (output.features or {}).items()]
        if self._first is None:
            self._first = given
        if given != self._first:
            raise PipelineError(
                f"teacher {self.card.name!r} returned {', '.join(given)} for images {', '.join(ids)}, and "
                f"{', '.join(self._first)} before: return the same for every image, NaN for unknown intrinsics"
            )


def load(argument: str, device: torch.device, options: TeacherOptions) -> PythonTeacher:
    """Import `module:factory`, from the current directory too, and call `factory(device)` or `factory()`.

    torch modules in the returned model are put into eval mode. The card gets hashes of the source code and of the
    weights that it names. Raises PipelineError for a missing or invalid module, factory, card or bin edges.
    """
    module_name, _, factory_name = argument.partition(":")
    if not module_name or not factory_name:
        raise PipelineError(f"teacher python:{argument}: expected python:module:factory, {EXAMPLE}")
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
        model = factory(device) if _takes_device(factory) else factory()
    if not callable(model):
        raise PipelineError(
            f"teacher python:{argument}: the factory returned {quoted(model)}, expected a callable, {EXAMPLE}"
        )
    for network in _networks(model):
        network.eval()
    card = _card(argument, model, module, options)
    edges_m = _edges(argument, getattr(model, "bin_edges_m", None))
    return PythonTeacher(model, card, edges_m, device, options.features)


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


def _takes_device(factory: Callable[..., Any]) -> bool:
    if getattr(factory, "__init__", None) is torch.nn.Module.__init__:  # its signature has *args, which it refuses
        return False
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # classes and functions of C may have no signature
        return False
    return any(parameter.kind not in {parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD} for parameter in parameters)


def _networks(model: Any) -> Iterator[torch.nn.Module]:  # noqa: ANN401 - the user's object
    """Yield the torch modules of a model: itself, its attributes (also in lists and dicts), and its closure."""
    values = [model, getattr(model, "__self__", None), *getattr(model, "__dict__", {}).values()]
    for cell in getattr(model, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            values.append(cell.cell_contents)
    for value in values:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        yield from (item for item in items if isinstance(item, torch.nn.Module))


def _card(argument: str, model: Any, module: ModuleType, options: TeacherOptions) -> TeacherCard:  # noqa: ANN401 - the user's object
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
            if INPUTS in card:  # not a field of TeacherCard, whose fields are in every store
                card["preprocessing"] = {**card.get("preprocessing", {}), INPUTS: card.pop(INPUTS)}
            card = TeacherCard(**{"kind": "python", "name": argument, **card})
        except (TypeError, ValueError) as error:
            raise PipelineError(f"{where}: its card {model.card!r} is not valid ({error}), {EXAMPLE}") from error
    if not isinstance(card, TeacherCard):
        raise PipelineError(f"{where}: its card is {quoted(card)}, expected a TeacherCard or a dict, {EXAMPLE}")
    if options.depth_space not in {None, card.depth_space}:
        raise PipelineError(
            f"{where}: `depth_space={options.depth_space}` contradicts {card.depth_space} in its card: omit the option "
            "or correct the card"
        )
    code = source_of(module).as_json(argument)
    if weights_named and card.weights_sha256 is None:
        code["weights"] = "none"
    card = replace(card, preprocessing={**card.preprocessing, "python": code})
    try:
        canonical_json(card.as_json())
    except (TypeError, ValueError) as error:
        raise PipelineError(f"{where}: its card is not valid JSON ({error}): use numbers, text and lists") from error
    return card if options.licence is None else replace(card, licence=options.licence)


def _edges(argument: str, edges: Any) -> NDArray[np.float64] | None:  # noqa: ANN401 - the user's object
    if edges is None:
        return None
    edges_m = np.asarray(edges.cpu() if isinstance(edges, Tensor) else edges, dtype=np.float64)
    if edges_m.ndim != 1 or len(edges_m) < 3 or not np.isfinite(edges_m).all() or not (np.diff(edges_m) > 0).all():
        raise PipelineError(
            f"teacher python:{argument}: bin_edges_m {quoted(edges)}, expected (K + 1,) finite metres, ascending, for "
            "at least two bins"
        )
    return edges_m
