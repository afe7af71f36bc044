"""Every loss by its name: what it computes, which module builds it, and what it can learn from."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from ..errors import PipelineError
from .base import ALIASES, LossSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .base import DepthLoss


class LossKind(NamedTuple):
    """One loss."""

    module: str
    """Module of this package whose `build_loss(name, bin_edges_m, settings)` makes it. It is imported when the loss is
    built, so that training with one loss does not depend on the code of another."""
    text: str
    """What it computes, in a few words."""
    takes_stored_maps: bool = False
    """Whether it can learn from the sparse maps of a store."""
    needs_metres: bool = False
    """Whether it prescribes something in metres, which means nothing in relative depth."""
    compares_maps: bool = False
    """Whether it needs a student that predicts a map."""


LOSSES = {
    "tiekd": LossKind(
        "tiekd", "KL to a depth probability map, and SSIM of depth", takes_stored_maps=True, compares_maps=True
    ),
    "tiekd-released": LossKind(
        "tiekd", "the same as the released code computes it", needs_metres=True, compares_maps=True
    ),
    "dpm": LossKind("tiekd", "KL to a depth probability map alone", takes_stored_maps=True, compares_maps=True),
    "ssim": LossKind("response", "SSIM of depth"),
    "mse": LossKind("response", "mean squared error of depth"),
    "si": LossKind("response", "scale-invariant log error of depth"),
    "ssim+si": LossKind("response", "1.5 SSIM + scale-invariant log error"),
    "ssim+mse": LossKind("response", "1.5 SSIM + mean squared error"),
    "ssi": LossKind("relative", "depth up to scale and shift, image by image"),
    "ssi+grad": LossKind("relative", "the same, and its gradients at four scales"),
    "nll": LossKind(
        "likelihood", "likelihood of the truth under the map, and scale-invariant error", compares_maps=True
    ),
}


def list_losses() -> list[str]:
    """Names of all losses. `truth-NAME` is the same loss on ground truth instead of a teacher's depth.

    Example:
        >>> import pipeline as tiekd
        >>> "tiekd" in tiekd.list_losses()
        True
    """
    return list(LOSSES)


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], **settings: float | None) -> DepthLoss:
    """Build a loss.

    Args:
        name: one of `list_losses()`, or an alias (`gaussian`, `released`).
        bin_edges_m: (K + 1,) ascending.
        settings: fields of `LossSettings`. Each loss uses those that mean something to it.

    Raises PipelineError for an unknown name or a setting out of range.
    """
    known = ALIASES.get(name, name)
    if known not in LOSSES:
        raise PipelineError(f"loss {name!r}: expected one of {', '.join([*LOSSES, *ALIASES])}")
    module = import_module(f".{LOSSES[known].module}", __package__)
    loss: DepthLoss = module.build_loss(known, bin_edges_m, LossSettings(**settings))  # type: ignore[arg-type] # by name
    return loss
