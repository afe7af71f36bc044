"""Encoders of timm, an optional extra: `timm:NAME`. Only this module imports timm, on demand.

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
"""More exceed the largest file of weights that a run may have (MAX_WEIGHTS_BYTES of saved_run.py)."""
_TRIAL_PX = (90, 150)
"""Not a multiple of 32 and not square: a network that accepts this size accepts any."""
_TIMM_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of timm, depending on the network, if it has no feature maps or a fixed image size."""


class TimmEncoder(Encoder):
    """Feature maps of a timm network with random weights. Nothing is downloaded.

    Args:
        name: as in `timm.list_models()`, with or without the tag of its weights.

    Raises PipelineError if timm is not installed or does not import, and for an unknown name, feature maps that are not
    a pyramid from 1/2 or 1/4 down, a fixed image size, or more than 100 M parameters.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = _import_timm()
        # The pattern excludes `hf-hub:...` and `local-dir:...`, with which a run could download or read files
        if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
            hint = f"did you mean {', '.join(close)}? " if close else ""
            raise PipelineError(
                f"student timm:{name}: timm {timm.__version__} has no such model; {hint}see timm.list_models()"
            )
        self.name = name
        self.weights_source = f"timm's {name}"
        strides = _trial_strides(timm, name)
        self._first = 1 if strides[0] == 1 else 0
        self.strides = strides[self._first :]
        self.net = timm.create_model(name, pretrained=False, features_only=True)
        self.widths = tuple(self.net.feature_info.channels()[self._first :])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature maps (B, widths[i], about H / strides[i], about W / strides[i])."""
        features: list[Tensor] = self.net(images)
        return features[self._first :]

    def encoder_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the part of timm's state dict of the full network that belongs to this encoder, with its names.

        With `features_only`, timm writes `_` for some `.` in names. Other tensors of the full network are dropped.
        Tensors of neither stay, so that loading reports them.
        """
        timm = _import_timm()
        with torch.device("meta"):
            full = {_key(name) for name in timm.create_model(self.name, pretrained=False).state_dict()}
        names = {_key(name): name for name in self.state_dict()}
        matched = {}
        for name, value in state.items():
            key = _key(f"net.{name}")
            if key in names:
                matched[names[key]] = value
            elif _key(name) not in full:
                matched[name] = value
        return matched


def _key(name: str) -> str:
    return name.replace(".", "_")


def _import_timm() -> Any:  # noqa: ANN401 - a module that type checkers need not have
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        raise MissingDependencyError(missing, "timm", "students timm:NAME") from error
    except (ImportError, OSError, RuntimeError) as error:  # from a torchvision for another torch version
        raise PipelineError(
            f"timm does not import ({error}): it needs the torchvision that matches torch {torch.__version__}; "
            "install it from the index that torch came from"
        ) from error


def _trial_strides(timm: Any, name: str) -> tuple[int, ...]:  # noqa: ANN401 - an optional module
    """Return the strides of a network's feature maps, from a trial on the meta device.

    Raises PipelineError if they are not suitable.
    """
    try:
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = timm.create_model(name, pretrained=False, features_only=True).eval()
            shapes = [tuple(feature.shape) for feature in net(torch.empty(1, 3, *_TRIAL_PX))]
    except _TIMM_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise PipelineError(
            f"student timm:{name}: no feature maps for an image of {_TRIAL_PX[0]}x{_TRIAL_PX[1]} px ({reason}): "
            "expected a network that accepts any size, as convolutional networks do"
        ) from error
    count = sum(part.numel() for part in net.parameters())
    if count > MAX_PARAMETERS:
        raise PipelineError(
            f"student timm:{name}: {count / 1e6:.0f} M parameters, expected at most {MAX_PARAMETERS // 10**6} M: use "
            "a smaller network, or use it as the teacher"
        )
    strides: tuple[int, ...] = tuple(net.feature_info.reduction())
    used = [stride for stride in strides if stride > 1]
    is_pyramid = len(used) >= 3 and used[0] in {2, 4} and all(deep > shallow for shallow, deep in pairwise(used))
    if not is_pyramid or [shape[1] for shape in shapes] != list(net.feature_info.channels()):
        maps = ", ".join("x".join(map(str, shape[1:])) for shape in shapes)
        raise PipelineError(
            f"student timm:{name}: feature maps (channels first) of {maps} for an image of "
            f"{_TRIAL_PX[0]}x{_TRIAL_PX[1]} px, expected a pyramid of at least three maps that starts at 1/2 or 1/4"
        )
    return strides
