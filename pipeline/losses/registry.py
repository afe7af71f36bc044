"""Registry of losses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from ..depth.log_distribution import FAMILIES
from ..depth.readout import DEFAULT
from ..errors import OptionError, PipelineError
from .base import LossSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .base import DepthLoss


class LossEntry(NamedTuple):
    """Entry of a loss in the registry."""

    module: str
    """Module in this package; its `build_loss(name, bin_edges_m, settings)` builds it. Imported on demand, so that
    dvc.yaml can make training with one loss independent of the code of the others."""
    description: str
    takes_stored_maps: bool = False
    """Whether it can use the sparse maps of a store."""
    needs_metres: bool = False
    """Whether it has constants in metres, which do not apply to relative depth."""
    compares_maps: bool = False
    """Whether it needs a student that predicts maps."""
    heads: tuple[str, ...] = ("dpm", "depth")
    """Heads of students that it can train."""


ALIASES = {"gaussian": "tiekd", "released": "tiekd-released"}
"""Other names of losses."""


LOSSES = {
    "tiekd": LossEntry(
        "tiekd",
        "KL divergence of depth probability maps, and SSIM of depth",
        takes_stored_maps=True,
        compares_maps=True,
    ),
    "tiekd-released": LossEntry(
        "tiekd", "tiekd as the released code computes it", needs_metres=True, compares_maps=True
    ),
    "dpm": LossEntry("tiekd", "KL divergence of depth probability maps", takes_stored_maps=True, compares_maps=True),
    "ssim": LossEntry("response", "SSIM of depth"),
    "mse": LossEntry("response", "mean squared error of depth"),
    "si": LossEntry("response", "scale-invariant log error of depth"),
    "ssim+si": LossEntry("response", "1.5 SSIM + scale-invariant log error"),
    "ssim+mse": LossEntry("response", "1.5 SSIM + mean squared error"),
    "ssi": LossEntry("relative", "depth up to a scale and shift of each image"),
    "ssi+grad": LossEntry("relative", "ssi, and gradients at four scales"),
    "nll": LossEntry(
        "likelihood",
        "likelihood of the depth under the map, and scale-invariant log error; of a head of two outputs, likelihood "
        "alone",
        compares_maps=True,
        heads=("dpm", *FAMILIES),
    ),
    "nll+ssim": LossEntry("two_outputs", "likelihood of the depth and SSIM, weighted as in tiekd", heads=FAMILIES),
}


def list_losses() -> list[str]:
    """Return the names of all losses. In training, `truth-NAME` applies the loss to ground truth instead of a teacher.

    Example:
        >>> import pipeline as tiekd
        >>> "tiekd" in tiekd.list_losses()
        True
    """
    return list(LOSSES)


def build_loss(name: str, bin_edges_m: Tensor | Sequence[float], **settings: float | str | None) -> DepthLoss:
    """Build a loss.

    Args:
        name: one of `list_losses()`, or an alias (`gaussian`, `released`).
        bin_edges_m: (K + 1,) ascending.
        settings: fields of `LossSettings`. Each loss uses those that apply to it.

    Raises PipelineError for an unknown name or a setting out of range.
    """
    resolved = ALIASES.get(name, name)
    if resolved not in LOSSES:
        raise PipelineError(f"loss {name!r}: expected one of {', '.join([*LOSSES, *ALIASES])}")
    chosen = LossSettings(**settings)  # type: ignore[arg-type] # by name
    if chosen.head not in {"dpm", "depth", *FAMILIES}:
        raise OptionError("head", chosen.head, f"one of dpm, depth, {', '.join(FAMILIES)}")
    if chosen.head in FAMILIES and chosen.readout not in {DEFAULT, "geometric"}:
        raise OptionError("readout", chosen.readout, f"geometric for `head={chosen.head}`")
    module = "two_outputs" if chosen.head in FAMILIES else LOSSES[resolved].module
    loss: DepthLoss = import_module(f".{module}", __package__).build_loss(resolved, bin_edges_m, chosen)
    return loss
