"""Encoders of the timm package, an optional extra: `timm:NAME`. Nothing but this file imports it, and only when asked.

Shape legend: B batch, H W pixels of the image.
"""

from __future__ import annotations

import difflib
import re
import warnings
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from ..errors import MissingDependencyError, PipelineError
from .encoders import Encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

MAX_PARAMETERS = 100_000_000
"""More would not fit the largest file of weights that a run is read back from (MAX_WEIGHTS_BYTES of run.py)."""
_TRIAL_PX = (90, 150)
"""No multiple of 32, and not square: a network that takes this takes any size."""
_REFUSALS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What timm raises, depending on the network, where it has no feature maps or wants images of one size."""


class TimmEncoder(Encoder):
    """A network of timm as feature maps, with fresh weights; nothing is fetched.

    Args:
        name: as in `timm.list_models()`, with or without the tag of its weights.

    Raises PipelineError where timm is absent or broken, for an unknown name, for a network whose feature maps are no
    pyramid from 1/2 or 1/4 down, that takes images of one size only, or has over 100 M parameters.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = _import_timm()
        # The pattern too: timm takes `hf-hub:...` and `local-dir:...`, which fetch or read what a stranger's run names
        if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
            like = f"did you mean {', '.join(close)}? " if close else ""
            raise PipelineError(
                f"student timm:{name}: timm {timm.__version__} has no such model; {like}see timm.list_models()"
            )
        self.name = name
        self.weights_are = f"timm's {name}"
        strides = _try_out(timm, name)
        self._first = 1 if strides[0] == 1 else 0
        self.strides = strides[self._first :]
        self.net = timm.create_model(name, pretrained=False, features_only=True)
        self.widths = tuple(self.net.feature_info.channels()[self._first :])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, widths[i], H / strides[i], W / strides[i]), each about so large."""
        features: list[Tensor] = self.net(images)
        return features[self._first :]

    def own_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What timm's weights file of the whole network holds for this encoder, under its names.

        As a pyramid timm writes some names with `_` where the whole network has `.`; and what the whole network has
        beyond the pyramid is dropped. Whatever neither has stays, for the error about it.
        """
        timm = _import_timm()
        with torch.device("meta"):
            whole = {_key(name) for name in timm.create_model(self.name, pretrained=False).state_dict()}
        ours = {_key(name): name for name in self.state_dict()}
        found = {}
        for name, value in state.items():
            key = _key(f"net.{name}")
            if key in ours:
                found[ours[key]] = value
            elif _key(name) not in whole:
                found[name] = value
        return found


def _key(name: str) -> str:
    return name.replace(".", "_")


def _import_timm() -> Any:  # noqa: ANN401 - a module that type checkers need not have
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        raise MissingDependencyError(missing, "timm", "students timm:NAME") from error
    except (ImportError, OSError, RuntimeError) as error:  # torchvision made for another torch raises any of them
        raise PipelineError(
            f"timm does not import ({error}): it needs the torchvision that belongs to torch {torch.__version__}; "
            "install that one, from the index that torch came from"
        ) from error


def _try_out(timm: Any, name: str) -> tuple[int, ...]:  # noqa: ANN401 - the module
    """Strides of a network's feature maps, found without memory. Raises PipelineError if they do not fit."""
    try:
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = timm.create_model(name, pretrained=False, features_only=True).eval()
            shapes = [tuple(one.shape) for one in net(torch.empty(1, 3, *_TRIAL_PX))]
    except _REFUSALS as error:
        why = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise PipelineError(
            f"student timm:{name}: it gives no feature maps for an image of {_TRIAL_PX[0]}x{_TRIAL_PX[1]} px "
            f"({why}): expected a network that takes every size, as convolutional ones do"
        ) from error
    count = sum(part.numel() for part in net.parameters())
    if count > MAX_PARAMETERS:
        raise PipelineError(
            f"student timm:{name}: {count / 1e6:.0f} M parameters, expected at most {MAX_PARAMETERS // 10**6} M: take "
            "a smaller one, or make it the teacher"
        )
    strides: tuple[int, ...] = tuple(net.feature_info.reduction())
    used = [stride for stride in strides if stride > 1]
    rising = len(used) >= 3 and used[0] in {2, 4} and all(deep > shallow for shallow, deep in pairwise(used))
    if not rising or [shape[1] for shape in shapes] != list(net.feature_info.channels()):
        maps = ", ".join("x".join(map(str, shape[1:])) for shape in shapes)
        raise PipelineError(
            f"student timm:{name}: its feature maps are {maps} for an image of {_TRIAL_PX[0]}x{_TRIAL_PX[1]} px, "
            "expected (channels first) a pyramid that begins at 1/2 or 1/4, as convolutional networks give"
        )
    return strides
