"""What a run of stage one is asked for: the flags, the source's customs and the teacher, settled into a StoreSpec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..depth.bins import parse_bins
from ..depth.rebin import are_bins
from ..errors import PipelineError
from ..sources.view import View
from ..store.format.layout import usual_samples_per_shard
from ..store.format.spec import StoreSpec, digest_of_ids
from ..teachers.base import VIEW, gives_maps, has_adaptive_bins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..sources.base import Sample, Source
    from ..teachers.base import Teacher

RELATIVE_BINS = 64


@dataclass(frozen=True)
class CacheOptions:
    """What the user may choose about a store. None takes what is customary on the source."""

    view: str | None = None
    bins: str | None = None
    sigma_m: float | None = None
    dpm: str = "auto"
    """`sparse` where the teacher emits maps and `gaussian` where it does not, or one of the two, or `dense`."""
    max_rel_error: float = 5e-4
    depth_range_m: tuple[float, float] = (0.1, 300.0)
    max_dpm_kl: float = 0.01
    samples_per_shard: int | None = None
    """None is 128, more for a store of millions, and 8 for dense maps, of which a shard would not fit into memory."""
    batch_size: int = 8
    accept_noise: bool = False
    """Whether a teacher may differ from itself, asked again or in another batch."""
    workers: int | None = None
    """Threads that read and encode; None is one a core, at most 8."""


def resolve_view(source: Source, teacher: Teacher, options: CacheOptions) -> View:
    """The view that is asked for; else the one that the teacher was trained on, else the source's custom.

    A network sees best what it was trained to see; at another size its depth is another.
    """
    return View.parse(options.view or str(teacher.card.preprocessing.get(VIEW, source.customs.view)))


def plan_store(
    source: Source, samples: Sequence[Sample], teacher: Teacher, view: View, options: CacheOptions
) -> StoreSpec:
    """Settle every choice about a store, and say how large its view is (the first image is opened for that).

    A teacher whose bins move is asked about that image, to learn with what they move.

    Raises PipelineError where the source has no custom and the user said nothing, or where they do not fit.
    """
    card = teacher.card
    kind = options.dpm
    if kind == "auto":
        kind = "sparse" if gives_maps(teacher) else "gaussian"
    if kind in {"sparse", "dense"} and not gives_maps(teacher):
        raise PipelineError(
            f"`dpm={kind}`: teacher {card.name!r} gives depth alone, there is no map to store; "
            "use `dpm=gaussian`, which makes one from depth"
        )
    if card.depth_space != "metric_m" and (options.bins or options.sigma_m):
        raise PipelineError(
            f"`bins` and `sigma_m` are in metres, teacher {card.name!r} gives {card.depth_space}: "
            "leave them out, and the maps are over each sample's own range"
        )
    first = source.read_image(samples[0])[0]
    sigma_m, carried_from = None, None
    if kind != "gaussian":
        edges, carried_from = _distribution_bins(source, teacher, options)
        if has_adaptive_bins(teacher):
            carried_from = _adaptive_per(teacher, view.of_image(first), samples[0].id)
    elif card.depth_space == "metric_m":
        edges, sigma_m = _metric_bins(source, options)
    else:
        edges, sigma_m = [number / RELATIVE_BINS for number in range(RELATIVE_BINS + 1)], 1 / RELATIVE_BINS
    ids = [sample.id for sample in samples]
    return StoreSpec(
        teacher=teacher.card.as_json(),
        depth_space=teacher.card.depth_space,
        source={"name": source.name, "samples": len(samples), "ids_sha256": digest_of_ids(ids)},
        view=str(view),
        view_size_px=view.size_px(*first.shape[:2]),
        max_rel_error=options.max_rel_error,
        depth_range_m=options.depth_range_m,
        dpm_kind=kind,
        bin_edges=tuple(edges),
        sigma_m=sigma_m,
        max_dpm_kl=options.max_dpm_kl if kind == "sparse" else None,
        carried_from=carried_from,
        samples_per_shard=options.samples_per_shard or usual_samples_per_shard(kind, len(samples), len(edges) - 1),
    )


def _distribution_bins(source: Source, teacher: Teacher, options: CacheOptions) -> tuple[list[float], str | None]:
    """Edges of a store of a teacher's own maps; and `fixed` where they are others than the teacher's fixed ones."""
    if has_adaptive_bins(teacher) and teacher.card.depth_space != "metric_m":
        raise PipelineError(
            f"teacher {teacher.card.name!r} gives {teacher.card.depth_space}, and maps over bins that move: there are "
            "no bins for all images that they could be carried over onto; use `dpm=gaussian`, which drops them"
        )
    own_m = None if has_adaptive_bins(teacher) else teacher.bin_edges_m
    if own_m is not None and options.bins is None:
        return own_m.tolist(), None
    edges_m = _bin_edges(source, options)
    same = own_m is not None and are_bins(own_m, np.array(edges_m))
    return edges_m, None if same else "fixed"


def _adaptive_per(teacher: Teacher, image: NDArray[np.uint8], sample_id: str) -> str:
    """Whether a teacher's bins are of each `image` or of each `pixel`, by its answer for one."""
    shown = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    edges_m = teacher.predict(shown if teacher.needs_images else None, [sample_id]).bin_edges_m
    if edges_m is None:
        raise PipelineError(
            f"teacher {teacher.card.name!r} says that it emits maps over bins of their own, but gave none for "
            f"{sample_id}: expected edges (B, K + 1) or (B, K + 1, h, w) beside each map; mend its code"
        )
    return "image" if edges_m.ndim == 2 else "pixel"


def _bin_edges(source: Source, options: CacheOptions) -> list[float]:
    """Edges in metres of the bins that the user asks for, or that are customary."""
    bins = options.bins or source.customs.bins
    if bins is None:
        raise PipelineError(
            f"source {source.name!r} has no customary depth bins: give `bins`, for example `bins=nyu` "
            "(linear:49:0.001:10, rooms), `bins=kitti` (linear:257:0.001:80, roads) or log:64:0.5:20"
        )
    edges: list[float] = parse_bins(bins).edges().tolist()
    return edges


def edges_or_default(source: Source, bins: str | None) -> tuple[float, ...] | None:
    """Edges in metres of the bins that are asked for, else of those that are customary; None where there are none."""
    text = bins or source.customs.bins
    return None if text is None else tuple(parse_bins(text).edges().tolist())


def _metric_bins(source: Source, options: CacheOptions) -> tuple[list[float], float]:
    """Edges and width of the Gaussian maps of a metric teacher, in metres."""
    edges = _bin_edges(source, options)
    sigma_m = options.sigma_m or source.customs.sigma_m
    if sigma_m is None:
        raise PipelineError(
            f"source {source.name!r} has no customary width of the Gaussian map: give `sigma_m`, for example "
            f"{(edges[-1] - edges[0]) / (len(edges) - 1):.2g} (metres, the mean width of a bin here)"
        )
    return edges, sigma_m
