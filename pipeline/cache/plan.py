"""Plan a run of stage one: options, defaults of the source, and the teacher become a StoreSpec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..depth.bins import parse_bins
from ..depth.rebin import are_bins
from ..depth.spaces import DISPARITY
from ..errors import OptionError, PipelineError
from ..sources.stereo import baseline_of
from ..sources.view import View
from ..store.format.extras import CAMERA_FROM, FEATURE_ARRAYS
from ..store.format.shard_size import default_samples_per_shard
from ..store.format.spec import StoreSpec, digest_of_ids
from ..teachers.base import VIEW, gives_maps, has_adaptive_bins
from ..teachers.camera import wants_right
from .extras import Asker, Bases, plan_extras

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..sources.base import Sample, Source
    from ..teachers.base import Teacher

RELATIVE_BINS = 64
DISPARITY_BINS, DISPARITY_SIGMA_PX = 192, 1.0
"""Bins of one pixel, and the width, of Gaussian maps of a stereo teacher without maps of its own."""
SMALLEST_DISPARITY_PX = 0.1
GRADES = {"archive": 5e-4, "training": 1e-2}
"""Largest relative error of depth by grade: for every use of a store, or for students alone, in half of the bytes."""


@dataclass(frozen=True)
class CacheOptions:
    """Options of a store. None is the default of the source."""

    view: str | None = None
    bins: str | None = None
    sigma_m: float | None = None
    dpm: str = "auto"
    """`auto` (`sparse` if the teacher has maps, otherwise `gaussian`), `sparse`, `gaussian` or `dense`."""
    grade: str | None = None
    """One of GRADES; None is `archive`."""
    max_rel_error: float | None = None
    """Largest relative error of stored depth, instead of a grade's."""
    depth_range_m: tuple[float, float] = (0.1, 300.0)
    max_dpm_kl: float = 0.01
    samples_per_shard: int | None = None
    """None is 128, more for millions of samples, and 8 for dense maps, whose shards must fit into memory."""
    compression_level: int = 5
    """1 is fast to write, 9 is small and fast to read; 5 is a store of format version 1 or 2, others of version 3."""
    batch_size: int = 8
    accept_noise: bool = False
    """Accept a teacher whose predictions vary between calls or batches."""
    workers: int | None = None
    """Threads that read and encode; None is one per core, at most 8."""
    signals: tuple[str, ...] = ()
    """Signals to keep: any of `store.format.extras.SIGNALS` that the teacher gives."""
    intrinsics: str | None = None
    """Keep the intrinsics of each view that the `source` has, or that the `teacher` predicts."""
    features: tuple[str, ...] = ()
    """Layers whose features to keep, of those that the teacher was opened with."""
    feature_components: int = 64
    """Largest number of principal components of each layer's features."""
    max_feature_cosine_error: float | None = None
    """Keep the fewest components whose mean cosine error is at most this; None keeps `feature_components`."""
    feature_images: int = 64
    """Evenly spaced images that the components are fitted on."""
    bases: Bases = ()
    """Bases of the features to use instead of fitting them, so that parts of a split can be merged."""
    data_licence: str | None = None
    """Licence of the images, recorded in the store."""

    def __post_init__(self) -> None:
        if self.grade not in {None, *GRADES}:
            raise OptionError("grade", self.grade, f"one of {', '.join(GRADES)}")
        if self.grade is not None and self.max_rel_error is not None:
            raise PipelineError(
                f"`grade={self.grade}` and `max_rel_error={self.max_rel_error:g}` both set the error: leave one out"
            )
        if self.intrinsics not in {None, *CAMERA_FROM}:
            raise OptionError("intrinsics", self.intrinsics, f"one of {', '.join(CAMERA_FROM)}")
        for name in ("feature_components", "feature_images"):
            if getattr(self, name) < 1:
                raise OptionError(name, getattr(self, name), "at least 1")
        if self.max_feature_cosine_error is not None and not 0 < self.max_feature_cosine_error < 1:
            raise OptionError("max_feature_cosine_error", self.max_feature_cosine_error, "a number between 0 and 1")

    @property
    def rel_error(self) -> float:
        """Largest relative error of stored depth."""
        return GRADES[self.grade or "archive"] if self.max_rel_error is None else self.max_rel_error


def resolve_view(source: Source, teacher: Teacher, options: CacheOptions) -> View:
    """Return the requested view, otherwise the one that the teacher was trained on, otherwise the source's default.

    The depth of a network changes with the view.
    """
    return View.parse(options.view or str(teacher.card.preprocessing.get(VIEW, source.defaults.view)))


def plan_store(
    source: Source, samples: Sequence[Sample], teacher: Teacher, view: View, options: CacheOptions
) -> tuple[StoreSpec, Bases]:
    """Plan a store, and the bases of its features; opens the first image for the size of the view.

    A teacher with adaptive bins predicts that image, to learn whether bins are per image or per pixel; so does one
    whose signals or features are kept.

    Raises PipelineError for a missing option without a default, and for options that do not fit the teacher.
    """
    card = teacher.card
    if options.grade == "training" and card.depth_space != "metric_m":
        raise PipelineError(
            f"`grade=training` is an error of 1 % of metric depth, but teacher {card.name!r} predicts "
            f"{card.depth_space}: give `max_rel_error`, a fraction of each sample's range"
        )
    _check_pairs(source, samples[0], teacher, view)
    kind = options.dpm
    if kind == "auto":
        kind = "sparse" if gives_maps(teacher) else "gaussian"
    if kind in {"sparse", "dense"} and not gives_maps(teacher):
        raise PipelineError(
            f"`dpm={kind}`: teacher {card.name!r} predicts depth without maps: use `dpm=gaussian`, which makes maps "
            "from depth"
        )
    if card.depth_space != "metric_m" and (options.bins or options.sigma_m):
        raise PipelineError(
            f"`bins` and `sigma_m` are in metres, but teacher {card.name!r} predicts {card.depth_space}: omit them; "
            "maps then cover each sample's own range"
        )
    first = source.read_image(samples[0])[0]
    asker = Asker(source, samples, view, teacher)
    sigma_m, carried_from = None, None
    if kind != "gaussian":
        edges, carried_from = _distribution_bins(source, teacher, options)
        if has_adaptive_bins(teacher):
            carried_from = _adaptive_per(asker)
    elif card.depth_space == "metric_m":
        edges, sigma_m = _metric_bins(source, options)
    elif card.depth_space == DISPARITY:
        edges, sigma_m = [float(edge) for edge in range(DISPARITY_BINS + 1)], DISPARITY_SIGMA_PX
    else:
        edges, sigma_m = [number / RELATIVE_BINS for number in range(RELATIVE_BINS + 1)], 1 / RELATIVE_BINS
    ids = [sample.id for sample in samples]
    extras, bases = plan_extras(asker, options)
    spec = StoreSpec(
        teacher=teacher.card.as_json(),
        depth_space=teacher.card.depth_space,
        source={"name": source.name, "samples": len(samples), "ids_sha256": digest_of_ids(ids)},
        view=str(view),
        view_size_px=view.size_px(*first.shape[:2]),
        max_rel_error=options.rel_error,
        code_range=options.depth_range_m
        if card.depth_space != DISPARITY
        else (SMALLEST_DISPARITY_PX, float(view.size_px(*first.shape[:2])[1])),
        dpm_kind=kind,
        bin_edges=tuple(edges),
        sigma_m=sigma_m,
        max_dpm_kl=options.max_dpm_kl if kind == "sparse" else None,
        carried_from=carried_from,
        compression_level=options.compression_level,
        samples_per_shard=options.samples_per_shard
        or default_samples_per_shard(
            kind, len(samples), len(edges) - 1, len(extras.signals) + FEATURE_ARRAYS * len(extras.features)
        ),
        extras=extras,
    )
    return spec, bases


def _check_pairs(source: Source, sample: Sample, teacher: Teacher, view: View) -> None:
    """Raise PipelineError if a teacher of stereo pairs cannot be cached from this source and view."""
    stereo = wants_right(teacher)
    if not stereo and teacher.card.depth_space != DISPARITY:
        return
    if baseline_of(source, sample) is None:
        raise PipelineError(
            f"teacher {teacher.card.name!r} {'wants right images' if stereo else f'predicts {DISPARITY}'}, but source "
            f"{source.name!r} has no stereo pair with a baseline for {sample.id!r}: use kitti, kitti-raw (image_02) or "
            "vkitti2 (Camera_0) with their calibration"
        )
    if stereo and view.mirror:
        raise PipelineError(
            f"`view={view}`: mirroring swaps left and right, so teacher {teacher.card.name!r} would see another pair: "
            "leave ,mirror and `cache_flips` out"
        )


def _distribution_bins(source: Source, teacher: Teacher, options: CacheOptions) -> tuple[list[float], str | None]:
    """Return the bin edges for a teacher's maps, and `fixed` if they differ from the teacher's fixed bins."""
    if has_adaptive_bins(teacher) and teacher.card.depth_space != "metric_m":
        raise PipelineError(
            f"teacher {teacher.card.name!r} predicts {teacher.card.depth_space} with adaptive bins, which cannot be "
            "rebinned to the same bins for all images: use `dpm=gaussian`, which drops the maps"
        )
    own_m = None if has_adaptive_bins(teacher) else teacher.bin_edges_m
    if own_m is not None and options.bins is None:
        return own_m.tolist(), None
    edges_m = _bin_edges(source, options)
    same = own_m is not None and are_bins(own_m, np.array(edges_m))
    return edges_m, None if same else "fixed"


def _adaptive_per(asker: Asker) -> str:
    """Return whether adaptive bins are per `image` or per `pixel`, from the prediction for the first image."""
    edges_m = asker.output(0).bin_edges_m
    if edges_m is None:
        raise PipelineError(
            f"teacher {asker.teacher.card.name!r} has emits_maps = True, but returned no bin edges for "
            f"{asker.samples[0].id}, expected (B, K + 1) or (B, K + 1, h, w): correct its code"
        )
    return "image" if edges_m.ndim == 2 else "pixel"


def _bin_edges(source: Source, options: CacheOptions) -> list[float]:
    """Return edges in metres of the requested bins, otherwise of the source's default."""
    bins = options.bins or source.defaults.bins
    if bins is None:
        raise PipelineError(
            f"source {source.name!r} has no default depth bins: give `bins`, for example `bins=nyu` "
            "(linear:49:0.001:10, rooms), `bins=kitti` (linear:257:0.001:80, roads) or log:64:0.5:20"
        )
    edges: list[float] = parse_bins(bins).edges().tolist()
    return edges


def edges_or_default(source: Source, bins: str | None) -> tuple[float, ...] | None:
    """Return edges in metres of the requested bins, otherwise of the source's default; None if there is none."""
    text = bins or source.defaults.bins
    return None if text is None else tuple(parse_bins(text).edges().tolist())


def _metric_bins(source: Source, options: CacheOptions) -> tuple[list[float], float]:
    """Return edges and width of the Gaussian maps of a metric teacher, in metres."""
    edges = _bin_edges(source, options)
    sigma_m = options.sigma_m or source.defaults.sigma_m
    if sigma_m is None:
        raise PipelineError(
            f"source {source.name!r} has no default width of the Gaussian map: give `sigma_m`, for example "
            f"{(edges[-1] - edges[0]) / (len(edges) - 1):.2g} (metres, the mean bin width)"
        )
    return edges, sigma_m
