"""Configuration of a training run with every choice made. Its hash names the run's hidden folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..common.fileio import canonical_json, sha256_bytes, sha256_file
from ..depth.bins import bin_centers, parse_bins
from ..depth.readout import DEFAULT
from ..depth.relative import BINS, METRIC, SIGMA_BINS, Range
from ..errors import PipelineError
from ..losses.registry import build_loss, signals_of
from ..networks.initial import InitialWeights, initial_weights
from ..networks.reader import default_readout
from ..sources.base import truth_name
from .compatibility import check_flips_store, check_relative, check_store, check_terms, uses_stored_maps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..losses.base import DepthLoss
    from ..sources.base import Sample, Source
    from ..store import Store
    from .options import TrainOptions

DEFAULT_SIGMA_M = 0.5


@dataclass(frozen=True)
class DataSetRecipe:
    """Configuration of one data set of a run."""

    source: str
    samples: int
    ids_sha256: str
    store: dict[str, Any] | None
    view: str
    rotate_deg: float
    probability: float
    """Of its samples together, in each draw."""


@dataclass(frozen=True)
class Recipe:
    """Configuration of a run. `as_json` is written to the run; it does not depend on the machine."""

    options: TrainOptions
    source: str
    samples: int
    ids_sha256: str
    truth_of: str | None
    """Name of the ground truth, if it is the target."""
    store: dict[str, Any] | None
    flips: str | None
    """Digest of the store of mirrored views."""
    flips_manifest_sha256: str | None
    view: str
    bin_edges_m: tuple[float, ...]
    crop_px: tuple[int, int] | None
    rotate_deg: float
    skip_rows: int
    sigma_m: float
    sigma_bins: float | None
    depth_space: str
    """`metric_m`, or the depth space of the relative teacher (`relative.Range`)."""
    stored_maps: bool
    encoder_sha256: str | None
    """Hash of the file of encoder weights; its path does not matter."""
    init: InitialWeights | None
    """What the network starts from; None is random weights."""
    data: tuple[DataSetRecipe, ...] = ()
    """All data sets of a run on several, made by `mixed_recipe`; the fields above are those of the first."""

    @classmethod
    def make(
        cls,
        options: TrainOptions,
        source: Source,
        samples: Sequence[Sample],
        store: Store | None,
        truth: str | None,
        flips: Store | None = None,
    ) -> Recipe:
        """Resolve every choice. Raises PipelineError if stores, source and options are incompatible."""
        check_store(options, store)
        defaults = source.defaults
        teacher = None if options.on_truth else store
        if flips is not None:
            check_flips_store(flips, teacher, options)
        depth_space = METRIC if teacher is None or teacher.is_metric else teacher.spec.depth_space
        if depth_space != METRIC:
            check_relative(options, store)
        edges_m = _bin_edges_m(options, source, store, depth_space)
        stored_maps = uses_stored_maps(options, teacher)
        check_terms(options, teacher, flips, stored_maps=stored_maps)
        # An aligned store is metric, but its teacher's width is not
        store_sigma_m = teacher.spec.sigma_m if teacher is not None and teacher.spec.depth_space == METRIC else None
        default_skip_rows = 0 if teacher is None else defaults.skip_rows
        bin_edges_m = regression_edges_m(edges_m[0], edges_m[-1]) if options.head == "depth" else edges_m
        return cls(
            options=options,
            source=source.name,
            samples=len(samples),
            ids_sha256=ids_sha256(samples),
            truth_of=truth_name(source, truth or "default") if teacher is None else None,
            store=None if teacher is None else store_identity(teacher),
            flips=None if flips is None else flips.spec.digest(),
            flips_manifest_sha256=None if flips is None else flips.manifest_sha256,
            view=store.spec.view if store is not None else options.view or defaults.view,
            bin_edges_m=bin_edges_m,
            crop_px=options.crop_px or defaults.crop_px,
            rotate_deg=defaults.rotate_deg if options.rotate_deg is None else options.rotate_deg,
            skip_rows=default_skip_rows if options.skip_rows is None else options.skip_rows,
            sigma_m=options.sigma_m or store_sigma_m or defaults.sigma_m or DEFAULT_SIGMA_M,
            sigma_bins=options.sigma_bins or (None if depth_space == METRIC else SIGMA_BINS),
            depth_space=depth_space,
            stored_maps=stored_maps,
            encoder_sha256=_encoder_sha256(options.encoder_weights),
            init=_initial(options, bin_edges_m, depth_space),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the configuration as JSON: the options, overridden by the resolved choices."""
        resolved = asdict(self)
        options = resolved.pop("options")
        del options["encoder_weights"], options["init"]  # paths of this machine
        if self.readout == DEFAULT:
            del options["readout"]  # as in older configurations, so that their interrupted runs resume
        else:
            options["readout"] = self.readout
        if not self.options.add:
            del options["add"]  # as above
        if self.flips is None:
            del resolved["flips_manifest_sha256"]
        if self.init is None:
            del resolved["init"]
        if not self.data:
            del resolved["data"]
        return {**options, **resolved, "bin_edges_m": list(self.bin_edges_m)}

    def digest(self) -> str:
        """Return the hash of the configuration."""
        return sha256_bytes(canonical_json(self.as_json()))

    @property
    def relative(self) -> Range | None:
        """Range of the relative depth to learn; None for metric depth."""
        if self.depth_space == METRIC:
            return None
        near, far = self.bin_edges_m[0], self.bin_edges_m[-1]
        if self.options.head == "depth":  # a regression predicts between its bin centers
            near, far = (near + self.bin_edges_m[1]) / 2, (self.bin_edges_m[1] + far) / 2
        return Range(self.depth_space, near, far)

    @property
    def data_sets(self) -> tuple[DataSetRecipe, ...]:
        """All data sets, also if it is one."""
        if self.data:
            return self.data
        return (
            DataSetRecipe(
                self.source, self.samples, self.ids_sha256, self.store, self.view, self.rotate_deg, probability=1.0
            ),
        )

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the store's signals that the terms of the loss need."""
        return signals_of(self.options.terms)

    @property
    def readout(self) -> str:
        """How the depth terms read the student's map."""
        return self.options.readout or default_readout(self.options.head)

    def build_loss(self) -> DepthLoss:
        """Build the loss of the run."""
        loss = build_loss(
            self.options.loss_name,
            self.bin_edges_m,
            sigma_m=self.sigma_m,
            sigma_bins=self.sigma_bins,
            weight=self.options.weight,
            skip_rows=self.skip_rows,
            centered=self.options.centred,
            readout=self.readout,
            head=self.options.head,
        )
        loss.depth_space = self.depth_space
        if self.options.head == "depth":
            lowest, highest = bin_centers(loss.bin_edges_m).tolist()
            loss.range_m = (lowest, highest)
        return loss


def ids_sha256(samples: Sequence[Sample]) -> str:
    """Return the hash of the samples' ids, in order."""
    return sha256_bytes("\n".join(sample.id for sample in samples).encode())


def regression_edges_m(lo_m: float, hi_m: float) -> tuple[float, float, float]:
    """Edges of two bins with the centers `lo_m` and `hi_m`.

    A map over them is a regression: its expected depth is lo + (hi - lo) sigmoid(logit_1 - logit_0). So losses, metrics
    and exports need no code for regression.
    """
    half_m = (hi_m - lo_m) / 2
    return (lo_m - half_m, lo_m + half_m, hi_m + half_m)


def store_identity(store: Store) -> dict[str, Any]:
    """Specification and content of a store; two stores of one specification may hold different numbers."""
    return {
        "teacher": store.spec.teacher,
        "digest": store.spec.digest(),
        "manifest_sha256": store.manifest_sha256,
        **({"data_licence": store.spec.extras.data_licence} if store.spec.extras.data_licence else {}),
    }


def _bin_edges_m(options: TrainOptions, source: Source, store: Store | None, depth_space: str) -> tuple[float, ...]:
    """Bin edges from, in this order: the options, the store, the defaults of the depth space or the source."""
    if depth_space != METRIC:
        return _edges_m(options.bins or BINS[depth_space])
    if not options.bins and store is not None and store.spec.depth_space == METRIC:
        return store.spec.bin_edges
    bins = options.bins or source.defaults.bins
    if bins is None:
        raise PipelineError(
            f"source {source.name!r} has no default depth bins; give `bins`, such as nyu (linear:49:0.001:10), "
            "kitti (linear:257:0.001:80) or log:64:0.5:20"
        )
    return _edges_m(bins)


def _edges_m(bins: str) -> tuple[float, ...]:
    return tuple(parse_bins(bins).edges().tolist())


def _initial(options: TrainOptions, bin_edges_m: Sequence[float], depth_space: str) -> InitialWeights | None:
    if options.init is None:
        return None
    return initial_weights(options.init, options.student, options.head, bin_edges_m, depth_space)


def _encoder_sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise PipelineError(f"`encoder_weights={path}`: no such file; expected a state dict in torchvision's layout")
    return sha256_file(path)
