"""What a run of stage one is asked for: the flags, the source's customs and the teacher, settled into a StoreSpec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dpm import parse_bins
from .store.spec import StoreSpec, digest_of_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .sources.base import Sample, Source
    from .sources.view import View
    from .teachers.base import Teacher

RELATIVE_BINS = 64
SAMPLES_PER_SHARD = {"gaussian": 128, "sparse": 128, "dense": 8}


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
    """None is 128, and 8 for dense maps, of which a shard would not fit into memory."""
    batch_size: int = 8
    workers: int | None = None
    """Threads that read and encode; None is one a core, at most 8."""


def plan_store(
    source: Source, samples: Sequence[Sample], teacher: Teacher, view: View, options: CacheOptions
) -> StoreSpec:
    """Settle every choice about a store, and say how large its view is (the first image is opened for that).

    Raises ValueError where the source has no custom and the user said nothing, or where they do not fit.
    """
    kind = options.dpm
    if kind == "auto":
        kind = "gaussian" if teacher.bin_edges_m is None else "sparse"
    if kind in {"sparse", "dense"} and teacher.bin_edges_m is None:
        raise ValueError(
            f"--dpm {kind}: teacher {teacher.card.name!r} gives depth alone, there is no map to store; "
            "use --dpm gaussian, which makes one from depth"
        )
    if kind != "gaussian":
        assert teacher.bin_edges_m is not None
        edges, sigma_m = teacher.bin_edges_m.tolist(), None
    elif teacher.card.depth_space == "metric_m":
        edges, sigma_m = _metric_bins(source, options)
    else:
        if options.bins or options.sigma_m:
            raise ValueError(
                f"--bins and --sigma-m are in metres, teacher {teacher.card.name!r} gives {teacher.card.depth_space}: "
                "leave them out, and the maps are over each sample's own range"
            )
        edges, sigma_m = [number / RELATIVE_BINS for number in range(RELATIVE_BINS + 1)], 1 / RELATIVE_BINS
    first = source.read_image(samples[0])[0]
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
        samples_per_shard=options.samples_per_shard or SAMPLES_PER_SHARD[kind],
    )


def _metric_bins(source: Source, options: CacheOptions) -> tuple[list[float], float]:
    """Edges and width of the Gaussian maps of a metric teacher, in metres."""
    bins = options.bins or source.customs.bins
    if bins is None:
        raise ValueError(
            f"source {source.name!r} has no customary depth bins: give --bins, for example `--bins nyu` "
            "(linear:49:0.001:10, rooms), `--bins kitti` (linear:257:0.001:80, roads) or log:64:0.5:20"
        )
    edges: list[float] = parse_bins(bins).edges().tolist()
    sigma_m = options.sigma_m or source.customs.sigma_m
    if sigma_m is None:
        raise ValueError(
            f"source {source.name!r} has no customary width of the Gaussian map: give --sigma-m, for example "
            f"{(edges[-1] - edges[0]) / (len(edges) - 1):.2g} (metres, the mean width of a bin here)"
        )
    return edges, sigma_m
