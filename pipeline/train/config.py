"""What a training run is, every choice made. Its hash names the unfinished run, so that nothing else resumes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..common.fileio import canonical_json, sha256_bytes, sha256_file
from ..depth.bins import bin_centers, parse_bins
from ..depth.relative import BINS, METRIC, SIGMA_BINS, Range
from ..errors import PipelineError
from ..losses.registry import LOSSES, build_loss
from ..sources.base import truth_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..losses.base import DepthLoss
    from ..sources.base import Sample, Source
    from ..store import Store
    from .options import TrainOptions


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
    flips: str | None
    """Digest of the store that mirrored crops are taught from."""
    flips_manifest_sha256: str | None
    view: str
    bin_edges_m: tuple[float, ...]
    crop_px: tuple[int, int] | None
    rotate_deg: float
    skip_rows: int
    sigma_m: float
    sigma_bins: float | None
    depth_space: str
    """`metric_m`, or that of the teacher whose shapes the student learns (`relative.Range`)."""
    stored_maps: bool
    encoder_sha256: str | None
    """Of the file that the encoder starts from; where it lies makes no difference."""

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
        """Settle every choice. Raises PipelineError where the stores, the source and the options do not fit."""
        customs = source.customs
        if not options.on_truth and store is None:
            raise PipelineError("no store to learn from: give `store`, or `loss=truth-si`")
        if store is not None and options.view:
            raise PipelineError("`view` is the store's when there is one: leave it out")
        view = store.spec.view if store is not None else options.view or customs.view
        teacher = None if options.on_truth else store
        if flips is not None:
            _check_flips(flips, teacher, options)
        depth_space = METRIC if teacher is None or teacher.is_metric else teacher.spec.depth_space
        if depth_space != METRIC:
            _check_relative(options, store)
            edges = _edges_m(options.bins or BINS[depth_space])
        elif options.bins or store is None or store.spec.depth_space != METRIC:
            edges = _metric_edges_m(options, source)
        else:
            edges = store.spec.bin_edges
        has_maps = teacher is not None and teacher.spec.dpm_kind == "sparse" and teacher.spec.depth_space == METRIC
        usable = has_maps and LOSSES[options.loss_name].takes_stored_maps
        if options.maps == "stored" and not usable:
            raise PipelineError(
                f"`maps=stored`: {'this loss has no use for a map' if has_maps else 'the store has no sparse maps'}; "
                f"use `maps=from-depth`, or {'`loss=tiekd`' if has_maps else 'a teacher that emits maps'}"
            )
        stored_maps = usable and options.maps != "from-depth"
        if stored_maps and (options.bins or options.sigma_bins or options.centred):
            assert store is not None
            asked = f"`bins={options.bins}`" if options.bins else "`sigma_bins`" if options.sigma_bins else "`centred`"
            raise PipelineError(
                f"{asked}: the maps in {store.name} are as the teacher gave them; add `maps=from-depth` to learn from "
                "maps made from its depth"
            )
        of_store = teacher.spec.sigma_m if teacher is not None and teacher.spec.depth_space == METRIC else None
        sigma_m = options.sigma_m or of_store or customs.sigma_m or 0.5
        return cls(
            options=options,
            source=source.name,
            samples=len(samples),
            ids_sha256=sha256_bytes("\n".join(sample.id for sample in samples).encode()),
            truth_of=truth_name(source, truth or "default") if teacher is None else None,
            store=None if teacher is None else _identity(teacher),
            flips=None if flips is None else flips.spec.digest(),
            flips_manifest_sha256=None if flips is None else flips.manifest_sha256,
            view=view,
            bin_edges_m=regression_edges_m(edges[0], edges[-1]) if options.head == "depth" else edges,
            crop_px=options.crop_px or customs.crop_px,
            rotate_deg=customs.rotate_deg if options.rotate_deg is None else options.rotate_deg,
            skip_rows=(customs.skip_rows if teacher is not None else 0)
            if options.skip_rows is None
            else options.skip_rows,
            sigma_m=sigma_m,
            sigma_bins=options.sigma_bins or (None if depth_space == METRIC else SIGMA_BINS),
            depth_space=depth_space,
            stored_maps=stored_maps,
            encoder_sha256=_sha256_of(options.encoder_weights),
        )

    def as_json(self) -> dict[str, Any]:
        """JSON form; the choices that the options left open stand beside them."""
        whole = asdict(self)
        options = whole.pop("options")
        del options["encoder_weights"]  # a path, which another machine does not have
        if self.flips is None:
            del whole["flips_manifest_sha256"]
        return {**options, **whole, "bin_edges_m": list(self.bin_edges_m)}

    def digest(self) -> str:
        """Hash of the whole recipe."""
        return sha256_bytes(canonical_json(self.as_json()))

    @property
    def relative(self) -> Range | None:
        """Which relative depth is learned; None where the target is metres."""
        if self.depth_space == METRIC:
            return None
        low, high = self.bin_edges_m[0], self.bin_edges_m[-1]
        if self.options.head == "depth":  # its edges lie outside of what it can say
            low, high = (low + self.bin_edges_m[1]) / 2, (self.bin_edges_m[1] + high) / 2
        return Range(self.depth_space, low, high)

    def build_loss(self) -> DepthLoss:
        """Return the loss that the run minimizes."""
        loss = build_loss(
            self.options.loss_name,
            self.bin_edges_m,
            sigma_m=self.sigma_m,
            sigma_bins=self.sigma_bins,
            weight=self.options.weight,
            skip_rows=self.skip_rows,
            centred=self.options.centred,
        )
        loss.depth_space = self.depth_space
        if self.options.head == "depth":
            lowest, highest = bin_centers(loss.bin_edges_m).tolist()
            loss.range_m = (lowest, highest)
        return loss


def _identity(store: Store) -> dict[str, Any]:
    """What a store was asked to be, and what it holds: another of the same specification has other numbers."""
    return {
        "teacher": store.spec.teacher,
        "digest": store.spec.digest(),
        "manifest_sha256": store.manifest_sha256,
    }


def regression_edges_m(lo_m: float, hi_m: float) -> tuple[float, float, float]:
    """Edges of two bins with the centres `lo_m` and `hi_m`.

    Two logits over them are a plain regression from `lo_m` to `hi_m`: the expected depth is
    lo + (hi - lo) sigmoid(difference of the logits). So it needs no code of its own in losses, measures or exports.
    """
    half_m = (hi_m - lo_m) / 2
    return (lo_m - half_m, lo_m + half_m, hi_m + half_m)


def _check_relative(options: TrainOptions, store: Store | None) -> None:
    """Refuse what needs metres where the store holds relative depth."""
    assert store is not None
    hint = f"align it to ground truth first, `pipeline store align {store.name}`, or leave it out"
    if LOSSES[options.loss_name].needs_metres:
        raise PipelineError(
            f"`loss={options.loss}`: its maps are 0.5 m wide, and {store.name} holds {store.spec.depth_space}; use "
            f"`loss=tiekd` or ssi+grad, or align the store to ground truth, `pipeline store align {store.name}`"
        )
    if options.sigma_m is not None:
        raise PipelineError(
            f"`sigma_m={options.sigma_m}` is in metres, and {store.name} holds {store.spec.depth_space}: {hint} (the "
            f"width is then {SIGMA_BINS:g} bin, or `sigma_bins`)"
        )


def _check_flips(flips: Store, store: Store | None, options: TrainOptions) -> None:
    """Refuse a store of the mirrored view that does not belong to the other, or that nobody would ask."""
    if store is None or not options.flip:
        why = "ground truth is mirrored as it is" if store is None else "nothing is mirrored"
        raise PipelineError(
            f"`flips_store={flips.name}`: with {'`flip=False`' if store else options.loss} {why}: leave it out"
        )
    mine, theirs = store.spec, flips.spec
    pairs = {
        "teacher": (mine.teacher, theirs.teacher),
        "view": (f"{mine.view},mirror", theirs.view),
        "depth space": (mine.depth_space, theirs.depth_space),
        "kind of maps": (mine.dpm_kind, theirs.dpm_kind),
        "bins": (mine.bin_edges, theirs.bin_edges),
        "alignment": (mine.alignment, theirs.alignment),
    }
    for name, (expected, found) in pairs.items():
        if expected != found:
            said = f" {expected} in {store.name} and {found}" if name not in {"teacher", "bins"} else ""
            raise PipelineError(
                f"`flips_store={flips.name}`: another {name}{said}; expected what "
                f"`pipeline cache-teacher` with `cache_flips` wrote beside {store.name}"
            )


def _metric_edges_m(options: TrainOptions, source: Source) -> tuple[float, ...]:
    """Edges where the store has none in metres."""
    bins = options.bins or source.customs.bins
    if bins is None:
        raise PipelineError(
            f"source {source.name!r} has no customary depth bins: give `bins`, for example nyu "
            "(linear:49:0.001:10), kitti (linear:257:0.001:80) or log:64:0.5:20"
        )
    return _edges_m(bins)


def _edges_m(bins: str) -> tuple[float, ...]:
    return tuple(parse_bins(bins).edges().tolist())


def _sha256_of(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise PipelineError(f"`encoder_weights={path}`: no such file; expected a state dict in torchvision's layout")
    return sha256_file(path)
