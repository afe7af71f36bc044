"""What a training run is asked to be, as far as it is said: the recipe of the paper where nothing else is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import OptionError, PipelineError
from ..losses.base import ALIASES
from ..losses.registry import LOSSES
from ..networks.registry import check_student

if TYPE_CHECKING:
    from pathlib import Path

MAPS = ("auto", "stored", "from-depth")
HEADS = ("dpm", "depth")
ON_TRUTH = "truth-"


@dataclass(frozen=True)
class TrainOptions:
    """The recipe of the paper where nothing else is said. None takes what is customary on the source."""

    student: str = "mobilenetv2"
    loss: str = "tiekd"
    """A name in LOSSES; with `truth-` in front, it is taken to ground truth and not to a store's targets."""
    head: str = "dpm"
    """`depth` is a plain regression, without a map, for comparison (`regression_edges_m`)."""
    encoder_weights: Path | None = None
    """File of ImageNet weights that the encoder starts from."""
    epochs: int = 24
    batch_size: int = 16
    """Of one step, over all parts and all processes."""
    accumulate: int = 1
    """Parts in which a batch goes through the network, one after another."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip_norm: float = 35.0
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then the student; 0 keeps none."""
    crop_px: tuple[int, int] | None = None
    rotate_deg: float | None = None
    flip: bool = True
    colour: bool = True
    sigma_m: float | None = None
    """Width of the Gaussian map; None takes the store's."""
    sigma_bins: float | None = None
    """The same counted in bins, so that over log bins it is a share of the depth (`dpm.bin_gaussian_dpm`)."""
    centred: bool = False
    """Whether each Gaussian is moved so that the mean of its map is the depth."""
    weight: float = 0.1
    """Share of the KL in the TIE-KD loss."""
    skip_rows: int | None = None
    maps: str = "auto"
    """`stored` learns from the store's sparse maps, `from-depth` from Gaussians about its depth; `auto` is
    `stored` where there are any and the loss can use them."""
    view: str | None = None
    """For training on ground truth; a store brings its own."""
    bins: str | None = None
    """Beside a store, for maps that are made from its depth; a stored map has bins of its own."""
    seed: int = 0
    precision: str = "auto"
    validation_images: int = 32

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise OptionError(name, getattr(self, name), "at least 1")
        if self.batch_size % self.accumulate:
            raise PipelineError(
                f"`batch_size={self.batch_size}`: expected a multiple of `accumulate`, {self.accumulate}, because its "
                "parts are equal"
            )
        if not self.learning_rate > 0:
            raise OptionError("learning_rate", self.learning_rate, "a number above 0")
        if not 0 <= self.ema < 1:
            raise OptionError("ema", self.ema, "0 (none) to less than 1, such as 0.999")
        if self.sigma_m is not None and self.sigma_bins is not None:
            raise PipelineError("`sigma_m` and `sigma_bins` say the same in two units: give one of them")
        if self.sigma_bins is not None and not 0 < self.sigma_bins < math.inf:
            raise OptionError("sigma_bins", self.sigma_bins, "a finite number above 0")
        if self.maps not in MAPS:
            raise OptionError("maps", self.maps, f"one of {', '.join(MAPS)}")
        check_student(self.student)
        self._check_loss()

    def _check_loss(self) -> None:
        if self.loss_name not in LOSSES:
            raise PipelineError(
                f"loss {self.loss!r}: expected one of {', '.join(LOSSES)}, or truth-LOSS to learn from ground truth"
            )
        if self.head not in HEADS:
            raise OptionError("head", self.head, f"one of {', '.join(HEADS)}")
        if self.head == "depth" and LOSSES[self.loss_name].compares_maps:
            raise PipelineError(
                f"`head=depth` has no map, which `loss={self.loss}` compares: use `loss=ssim+si` or another of depth "
                "alone, or `head=dpm`"
            )

    @property
    def on_truth(self) -> bool:
        """Whether the target is ground truth."""
        return self.loss.startswith(ON_TRUTH)

    @property
    def loss_name(self) -> str:
        """Name of the loss in LOSSES, whatever its target."""
        name = self.loss.removeprefix(ON_TRUTH)
        return ALIASES.get(name, name)
