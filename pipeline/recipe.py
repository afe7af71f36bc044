"""What a training run is asked to be. Its hash names the unfinished run, so that nothing else resumes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .dpm import parse_bins
from .fileio import canonical_json, sha256_bytes
from .loss_base import ALIASES
from .students.build import STUDENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .loss_base import DepthLoss
    from .sources.base import Sample, Source
    from .store import Store

MAPS = ("auto", "stored", "from-depth")
LOSSES_WITH_MAP = ("tiekd", "dpm")
LOSSES = {
    "tiekd": ".losses",
    "tiekd-released": ".losses",
    "dpm": ".losses",
    "ssim": ".losses",
    "mse": ".losses",
    "si": ".losses",
    "ssim+si": ".losses",
    "ssim+mse": ".losses",
    "nll": ".likelihood",
}
"""Name -> module whose `build_loss` makes it."""
ON_TRUTH = "truth-"


@dataclass(frozen=True)
class TrainOptions:
    """The recipe of the paper where nothing else is said. None takes what is customary on the source."""

    student: str = "mobilenetv2"
    loss: str = "tiekd"
    """A name in LOSSES; with `truth-` in front, it is taken to ground truth and not to a store's targets."""
    epochs: int = 24
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip_norm: float = 35.0
    crop_px: tuple[int, int] | None = None
    rotate_deg: float | None = None
    flip: bool = True
    colour: bool = True
    sigma_m: float | None = None
    """Width of the Gaussian map; None takes the store's."""
    weight: float = 0.1
    """Share of the KL in the TIE-KD loss."""
    skip_rows: int | None = None
    maps: str = "auto"
    """`stored` learns from the store's sparse maps, `from-depth` from Gaussians about its depth; `auto` is
    `stored` where there are any and the loss can use them."""
    view: str | None = None
    """For training on ground truth; a store brings its own."""
    bins: str | None = None
    """As `view`."""
    seed: int = 0
    precision: str = "auto"
    validation_images: int = 32

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate {self.learning_rate}: expected a number above 0")
        if self.student not in STUDENTS:
            raise ValueError(f"student {self.student!r}: expected one of {', '.join(STUDENTS)}")
        if self.loss_name not in LOSSES:
            raise ValueError(
                f"loss {self.loss!r}: expected one of {', '.join(LOSSES)}, or truth-LOSS to learn from ground truth"
            )
        if self.maps not in MAPS:
            raise ValueError(f"--maps {self.maps}: expected one of {', '.join(MAPS)}")

    @property
    def on_truth(self) -> bool:
        """Whether the target is ground truth."""
        return self.loss.startswith(ON_TRUTH)

    @property
    def loss_name(self) -> str:
        """Name of the loss in LOSSES, whatever its target."""
        name = self.loss.removeprefix(ON_TRUTH)
        return ALIASES.get(name, name)


@dataclass(frozen=True)
class Recipe:
    """A run with every choice made. `as_json` goes into the run; nothing in it depends on the machine."""

    options: TrainOptions
    source: str
    samples: int
    ids_sha256: str
    truth_of: str | None
    """Name of the ground truth, where it is the target."""
    store: dict[str, Any] | None
    view: str
    bin_edges_m: tuple[float, ...]
    crop_px: tuple[int, int] | None
    rotate_deg: float
    skip_rows: int
    sigma_m: float
    stored_maps: bool

    @classmethod
    def make(
        cls,
        options: TrainOptions,
        source: Source,
        samples: Sequence[Sample],
        store: Store | None,
        truth: str | None,
    ) -> Recipe:
        """Settle every choice. Raises ValueError where the store, the source and the options do not fit."""
        customs = source.customs
        if not options.on_truth and store is None:
            raise ValueError("no store to learn from: give --store, or --loss truth-si")
        if store is None:
            bins = options.bins or customs.bins
            if bins is None:
                raise ValueError(
                    f"source {source.name!r} has no customary depth bins: give --bins, for example nyu "
                    "(linear:49:0.001:10), kitti (linear:257:0.001:80) or log:64:0.5:20"
                )
            edges = tuple(parse_bins(bins).edges().tolist())
            view = options.view or customs.view
        else:
            if options.bins or options.view:
                raise ValueError("--bins and --view are the store's when there is one: leave them out")
            if store.spec.depth_space != "metric_m":
                raise ValueError(
                    f"{store.name} holds {store.spec.depth_space}: this loss needs metres; use a store of a metric "
                    "teacher"
                )
            edges, view = store.spec.bin_edges, store.spec.view
        teacher = None if options.on_truth else store
        has_maps = teacher is not None and teacher.spec.dpm_kind == "sparse"
        usable = has_maps and options.loss_name in LOSSES_WITH_MAP
        if options.maps == "stored" and not usable:
            raise ValueError(
                f"--maps stored: {'this loss has no use for a map' if has_maps else 'the store has no sparse maps'}; "
                f"use --maps from-depth, or {'--loss tiekd' if has_maps else 'a teacher that emits maps'}"
            )
        of_store = teacher.spec.sigma_m if teacher is not None else None
        return cls(
            options=options,
            source=source.name,
            samples=len(samples),
            ids_sha256=sha256_bytes("\n".join(sample.id for sample in samples).encode()),
            truth_of=truth or "default" if teacher is None else None,
            store=None if teacher is None else {"teacher": teacher.spec.teacher, "digest": teacher.spec.digest()},
            view=view,
            bin_edges_m=edges,
            crop_px=options.crop_px or customs.crop_px,
            rotate_deg=customs.rotate_deg if options.rotate_deg is None else options.rotate_deg,
            skip_rows=(customs.skip_rows if teacher is not None else 0)
            if options.skip_rows is None
            else options.skip_rows,
            sigma_m=options.sigma_m or of_store or customs.sigma_m or 0.5,
            stored_maps=usable and options.maps != "from-depth",
        )

    def as_json(self) -> dict[str, Any]:
        """JSON form; the choices that the options left open stand beside them."""
        whole = asdict(self)
        options = whole.pop("options")
        return {**options, **whole, "bin_edges_m": list(self.bin_edges_m)}

    def digest(self) -> str:
        """Hash of the whole recipe."""
        return sha256_bytes(canonical_json(self.as_json()))

    def build_loss(self) -> DepthLoss:
        """Return the loss that the run minimises.

        Its module is imported by name: what trains a teacher does not depend on what teaches a student, so that
        `dvc repro` after a change to a distillation loss leaves the teacher alone.
        """
        name = self.options.loss_name
        module = import_module(LOSSES[name], __package__)
        loss: DepthLoss = module.build_loss(
            name, self.bin_edges_m, sigma_m=self.sigma_m, weight=self.options.weight, skip_rows=self.skip_rows
        )
        return loss
