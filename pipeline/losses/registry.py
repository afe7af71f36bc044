"""Registry of losses, and of terms that are added to them."""

from __future__ import annotations

import math
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
    from .objective import Term


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


class TermEntry(NamedTuple):
    """Entry of a term in the registry."""

    module: str
    """Module in `terms/`; its `build_term(value, loss)` builds it. Imported on demand, as the losses are."""
    description: str
    """What it does, with its formula: D is the student's depth, T the target."""
    meaning: str
    """What the value is."""
    default: float | str
    """The value if none is given."""
    choices: tuple[str, ...] = ()
    """Values that are words."""
    limits: tuple[float, float] = (0.0, 1000.0)
    """Smallest and largest value that is a number."""
    signals: tuple[str, ...] = ()
    """Signals of the store that it needs."""
    unsuitable_losses: tuple[str, ...] = ()
    """Losses that it does not fit."""


IS_SKY = 0.5
"""From this probability on, a pixel is sky."""
TERMS = {
    "gradient": TermEntry(
        "gradient",
        "sum over steps of 1, 2, 4, 8 px of mean(|dx r| + |dy r|), r = ln D - ln T",
        "weight",
        0.5,
        unsuitable_losses=("ssi", "ssi+grad"),
    ),
    "trim": TermEntry(
        "trim",
        "leave the valid pixels of each image with the largest |ln D - ln T| out of the base loss",
        "fraction of the valid pixels",
        0.1,
        limits=(0.0, 0.9),
    ),
    "confidence": TermEntry(
        "confidence",
        "means over pixels weighted by the stored confidence c, as c^VALUE",
        "exponent",
        1.0,
        limits=(0.0, 10.0),
        signals=("confidence",),
    ),
    "sky": TermEntry(
        "sky",
        "pixels that are sky (stored probability of at least 0.5): T = far end of the bins, or no target",
        "far or ignore",
        "ignore",
        choices=("far", "ignore"),
        signals=("sky",),
    ),
    "texture": TermEntry(
        "texture",
        "mean |ln D(I) - ln D(J)|, J the image I with other texture and light: a second forward pass",
        "weight",
        0.1,
    ),
}


class ChosenTerm(NamedTuple):
    """A term and its value."""

    name: str
    value: float | str

    def __str__(self) -> str:
        """Return `NAME=VALUE`, the same for every spelling of the number."""
        return f"{self.name}={self.value if isinstance(self.value, str) else format(self.value, '.12g')}"


def list_losses(*, terms: bool = False) -> list[str]:
    """Return the names of all losses; with `terms`, those of the terms that can be added to a loss.

    In training, `truth-NAME` applies the loss to ground truth instead of a teacher. Raises no error.

    Example:
        >>> import pipeline as tiekd
        >>> "tiekd" in tiekd.list_losses()
        True
        >>> "gradient" in tiekd.list_losses(terms=True)
        True
    """
    return list(TERMS if terms else LOSSES)


def parse_terms(add: Sequence[str], loss: str) -> tuple[ChosenTerm, ...]:
    """Return the terms that `NAME` and `NAME=VALUE` name, for a loss in LOSSES.

    Raises PipelineError for an unknown term, a value out of range, a term given twice, and one that does not fit.
    """
    chosen = tuple(_parse_term(text) for text in add)
    names = [term.name for term in chosen]
    for name in names:
        if names.count(name) > 1:
            raise PipelineError(f"`add={name}` is given {names.count(name)} times: give each term once")
        if loss in TERMS[name].unsuitable_losses:
            raise PipelineError(f"`add={name}` does not fit `loss={loss}`: leave it out, or use another loss")
    return chosen


def _parse_term(text: str) -> ChosenTerm:
    name, separator, given = text.partition("=")
    if name not in TERMS:
        raise OptionError("add", text, f"one of {', '.join(TERMS)}, or NAME=VALUE")
    entry = TERMS[name]
    if not separator:
        return ChosenTerm(name, entry.default)
    if entry.choices:
        if given not in entry.choices:
            raise OptionError("add", text, " or ".join(f"{name}={choice}" for choice in entry.choices))
        return ChosenTerm(name, given)
    low, high = entry.limits
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise OptionError("add", text, f"{name}=VALUE, {entry.meaning}, from {low:g} to {high:g}")
    return ChosenTerm(name, value)


def signals_of(chosen: Sequence[ChosenTerm]) -> tuple[str, ...]:
    """Return the names of the store's signals that terms need."""
    return tuple(dict.fromkeys(signal for name, _ in chosen for signal in TERMS[name].signals))


def build_terms(chosen: Sequence[ChosenTerm], loss: DepthLoss) -> dict[str, Term]:
    """Build terms for a loss, by name. Initial weights, if a term has any, are drawn from torch's random numbers."""
    return {
        name: import_module(f".terms.{TERMS[name].module}", __package__).build_term(value, loss)
        for name, value in chosen
    }


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
