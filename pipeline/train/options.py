"""Options of a training run. The defaults are the paper's recipe (arXiv 2402.14340)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..depth.log_distribution import FAMILIES
from ..depth.readout import TRAINABLE
from ..errors import OptionError, PipelineError
from ..losses.registry import ALIASES, LOSSES, parse_terms
from ..networks.reader import check_head_readout, default_readout
from ..networks.registry import check_student

if TYPE_CHECKING:
    from pathlib import Path

    from ..losses.registry import ChosenTerm

MAPS = ("auto", "stored", "from-depth")
ON_TRUTH = "truth-"


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run. None takes the default of the source, unless a field says otherwise."""

    student: str = "mobilenetv2"
    loss: str = "tiekd"
    """A name in LOSSES; the prefix `truth-` applies it to ground truth instead of a store."""
    add: tuple[str, ...] = ()
    """Terms added to the loss, `NAME` or `NAME=VALUE` with a name in TERMS, such as `gradient=0.5`."""
    head: str = "dpm"
    """One of `reader.HEADS`. `depth` regresses depth directly (`regression_edges_m`); `gaussian` and `laplace` are
    distributions of ln depth with two outputs."""
    readout: str | None = None
    """How the depth terms of the loss read the student's map, and later evaluation and export: `mean` or `geometric`.
    None is `mean`, and `geometric` for `gaussian` and `laplace`."""
    encoder_weights: Path | None = None
    """File of ImageNet weights to initialize the encoder with."""
    init: Path | None = None
    """Finished run of the same student to start from. Its last layer is used if the outputs mean the same."""
    epochs: int = 24
    batch_size: int = 16
    """Samples in one optimizer step, over all accumulated parts and all ranks."""
    accumulate: int = 1
    """Gradient accumulation: the number of parts that a batch is split into."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip_norm: float = 35.0
    ema: float = 0.0
    """EMA decay of the weights; the averaged weights are the student. 0 disables it."""
    crop_px: tuple[int, int] | None = None
    rotate_deg: float | None = None
    flip: bool = True
    colour: bool = True
    sigma_m: float | None = None
    """Width of the Gaussian map in metres; None takes the store's."""
    sigma_bins: float | None = None
    """Width in bins instead; with log bins it is proportional to depth (`dpm.bin_gaussian_dpm`)."""
    centred: bool = False
    """Shift each Gaussian so that the mean of its map is the depth."""
    weight: float = 0.1
    """Weight w of the KL term in the TIE-KD loss."""
    skip_rows: int | None = None
    maps: str = "auto"
    """`stored` learns from the store's sparse maps, `from-depth` from Gaussians around its depth; `auto` takes `stored`
    if the store has maps and the loss uses them."""
    view: str | None = None
    """For training on ground truth without a store; a store has its own view."""
    bins: str | None = None
    """With a store, only for maps made from its depth; stored maps have their own bins."""
    seed: int = 0
    precision: str = "auto"
    validation_images: int = 32

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise OptionError(name, getattr(self, name), "at least 1")
        if self.batch_size % self.accumulate:
            raise PipelineError(f"`batch_size={self.batch_size}` must be a multiple of `accumulate={self.accumulate}`")
        if not self.learning_rate > 0:
            raise OptionError("learning_rate", self.learning_rate, "a number above 0")
        if not 0 <= self.ema < 1:
            raise OptionError("ema", self.ema, "0 (none) to less than 1, such as 0.999")
        if self.sigma_m is not None and self.sigma_bins is not None:
            raise PipelineError("`sigma_m` and `sigma_bins` are mutually exclusive: both set the width of the map")
        if self.sigma_bins is not None and not 0 < self.sigma_bins < math.inf:
            raise OptionError("sigma_bins", self.sigma_bins, "a finite number above 0")
        if self.maps not in MAPS:
            raise OptionError("maps", self.maps, f"one of {', '.join(MAPS)}")
        self._check_student()
        self._check_loss()
        if isinstance(self.add, str):
            raise OptionError("add", self.add, f"a list, such as [{self.add!r}]")
        object.__setattr__(self, "add", tuple(str(term) for term in self.terms))  # of a frozen class

    def _check_student(self) -> None:
        check_student(self.student)
        if self.init is not None and self.encoder_weights is not None:
            raise PipelineError(
                "`init` and `encoder_weights` are mutually exclusive: the run given to `init` has an encoder"
            )

    def _check_loss(self) -> None:
        if self.loss_name not in LOSSES:
            raise PipelineError(
                f"loss {self.loss!r}: expected one of {', '.join(LOSSES)}; truth-LOSS learns from ground truth"
            )
        readout = self.readout or default_readout(self.head)
        check_head_readout(self.head, readout)
        if readout not in TRAINABLE:
            raise PipelineError(
                f"`readout={readout}` has no useful gradient: train with {' or '.join(TRAINABLE)}, and choose "
                f"`readout={readout}` in evaluation, prediction and export"
            )
        if self.head in FAMILIES and readout != default_readout(self.head):
            raise PipelineError(f"`readout={readout}`: `head={self.head}` trains with geometric; choose another later")
        if self.head not in LOSSES[self.loss_name].heads and self.head in FAMILIES:
            suitable = [name for name, entry in LOSSES.items() if self.head in entry.heads]
            raise PipelineError(f"`loss={self.loss}` does not fit `head={self.head}`: use {' or '.join(suitable)}")
        if self.loss_name == "nll+ssim" and self.head not in FAMILIES:
            raise PipelineError(f"`loss={self.loss}` needs `head={' or head='.join(FAMILIES)}`: use `loss=tiekd` here")
        if self.head == "depth" and LOSSES[self.loss_name].compares_maps:
            raise PipelineError(
                f"`loss={self.loss}` compares maps, and `head=depth` predicts none: use `head=dpm`, or a loss on depth "
                "such as `loss=ssim+si`"
            )

    @property
    def terms(self) -> tuple[ChosenTerm, ...]:
        """The terms that are added to the loss."""
        return parse_terms(self.add, self.loss_name)

    @property
    def on_truth(self) -> bool:
        """Whether the target is ground truth instead of a store."""
        return self.loss.startswith(ON_TRUTH)

    @property
    def loss_name(self) -> str:
        """Name of the loss in LOSSES, without `truth-`."""
        name = self.loss.removeprefix(ON_TRUTH)
        return ALIASES.get(name, name)
