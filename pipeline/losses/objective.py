"""One objective: a base loss, and named terms that are added to it or change what it learns from.

A term is one file of `terms/` with `build_term(value, loss)` and an entry in `registry.TERMS`.

Shape legend: B batch, K bins, H W pixels of image and target, h w pixels of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .base import AnyLogits, DepthLoss, DepthPixels, Maps


class Target(NamedTuple):
    """What the base loss learns from."""

    depth_m: Tensor
    """(B, 1, H, W) metres; NaN, infinite or not positive is invalid"""
    weights: Tensor | None = None
    """(B, 1, H, W) weights of pixels, at least 0; None weighs all equally"""


@dataclass
class StepInputs:
    """One batch, or a part of it, as the trainer gives it."""

    logits: AnyLogits
    """(B, K, h, w) of the student"""
    target_depth_m: Tensor
    """(B, 1, H, W), see `Target`"""
    target_dpm: Maps | None
    """see `DepthLoss.terms`"""
    signals: Mapping[str, Tensor]
    """(B, 1, H, W) float32 in 0..1: the signals of the store that the terms ask for; 0 outside of the view"""
    read_images: Callable[[], Tensor]
    """Returns the images (B, 3, H, W) float32 in 0..1 that the student saw, before normalization."""
    logits_of: Callable[[Tensor], AnyLogits]
    """Returns the student's logits of other images (B, 3, H, W) in 0..1, with gradient."""


class Step:
    """One batch as terms see it. What not every term needs is computed once, when the first one asks for it.

    Attributes:
        loss: the base loss, with the bins and their range.
        signals: as in `StepInputs`.
        target: the target, as changed by the terms so far; `trim` does not change it, but that of the base loss alone.
        pixels: the student compared with `target`, see `DepthLoss.pixels`; for terms that need the prediction.
    """

    pixels: DepthPixels

    def __init__(self, loss: DepthLoss, inputs: StepInputs) -> None:
        self.loss, self.signals, self._inputs = loss, inputs.signals, inputs
        self.target = Target(inputs.target_depth_m)

    @cached_property
    def images(self) -> Tensor:
        """Images (B, 3, H, W) float32 in 0..1."""
        return self._inputs.read_images()

    def compare(self) -> None:
        """Compare student and target; the objective does so when `target` is final."""
        self.pixels = self.loss.pixels(self._inputs.logits, self.target.depth_m, self._inputs.target_dpm)

    @cached_property
    def depths(self) -> tuple[Tensor, Tensor, Tensor]:
        """Student depth, target depth and validity at the target's resolution, see `DepthLoss.depths`."""
        return self.loss.depths(self.pixels.depth_m, self.target.depth_m.to(self.pixels.depth_m.dtype))

    @cached_property
    def depth_m(self) -> Tensor:
        """Student depth (B, 1, H, W) in metres, with gradient."""
        return _resized(self.pixels.depth_m, self.target.depth_m.shape[2:])

    def predict(self, images: Tensor) -> Tensor:
        """Return the student's depth (B, 1, H, W) of other images (B, 3, H, W) in 0..1: a second forward pass.

        In this pass batch norms use the statistics of these images, and leave their running statistics unchanged.
        """
        return _resized(self.loss.depth_of(self._inputs.logits_of(images)), images.shape[2:])


class Term(nn.Module):
    """Base class of terms. Its parameters and buffers are trained, checkpointed and resumed with the student.

    They are no part of the student that the run saves. Sums over pixels must go through `means.mean_where` or
    `all_sum`, so that several ranks compute the loss of one.
    """


class TargetTerm(Term):
    """A term that changes the target or the weights of pixels."""

    needs_prediction = False
    """Whether it uses the student's depth. It is then applied after all others, and changes the base loss alone."""

    def change(self, target: Target, step: Step) -> Target:
        """Return the target to use instead."""
        raise NotImplementedError


class LossTerm(Term):
    """A term that is added to the base loss with a weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def value(self, step: Step) -> Tensor:
        """Return the unweighted scalar. It must be differentiable and finite without a valid pixel, too."""
        raise NotImplementedError


class Objective(nn.Module):
    """A base loss with terms.

    Args:
        loss: base loss.
        added: terms by name, in the order in which they are applied.
    """

    def __init__(self, loss: DepthLoss, added: Mapping[str, Term] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.added = nn.ModuleDict(added)

    def terms(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Return the total as "loss", the parts of the base loss, and the unweighted value of each added term."""
        if not self.added:
            return self.loss.terms(inputs.logits, inputs.target_depth_m, inputs.target_dpm)
        with torch.autocast(inputs.target_depth_m.device.type, enabled=False):
            step = Step(self.loss, inputs)
            changes = [term for term in self.added.values() if isinstance(term, TargetTerm)]
            for change in changes:
                if not change.needs_prediction:
                    step.target = change.change(step.target, step)
            step.compare()
            of_loss = step.target
            for change in changes:
                if change.needs_prediction:
                    of_loss = change.change(of_loss, step)
            terms = self.loss.means(step.pixels, *of_loss)
            for name, term in self.added.items():
                if isinstance(term, LossTerm):
                    terms[name] = term.value(step)
                    terms["loss"] = terms["loss"] + term.weight * terms[name]
        return terms


def _resized(depth_m: Tensor, size: torch.Size) -> Tensor:
    if depth_m.shape[2:] == size:
        return depth_m
    return F.interpolate(depth_m, size, mode="bilinear", align_corners=False)
