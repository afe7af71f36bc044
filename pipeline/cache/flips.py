"""Stage one for images and mirrored images, into two stores: `train.zarr` and `train.mirrored.zarr`.

A network's prediction for a mirrored image is not its mirrored prediction, and training mirrors half of the crops.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..common.progress import Silent
from ..errors import PipelineError
from ..sources.view import View
from ..store import open_store
from ..store.write.lock import refuse_existing
from .plan import CacheOptions
from .run import cache_teacher, plan_cache

if TYPE_CHECKING:
    from pathlib import Path

    from ..common.profile import Profile
    from ..common.progress import Progress
    from ..sources.base import Source
    from ..teachers.base import Teacher
    from .run import CacheSummary, StorePlan


class FlipSummaries(NamedTuple):
    """Summaries of the two stores; None for a store that existed already."""

    plain: CacheSummary | None
    mirrored: CacheSummary | None


def mirrored_path(out: Path) -> Path:
    """Return the path of the store of mirrored images, next to `out`."""
    return out.with_name(f"{out.stem}.mirrored{out.suffix}")


class StoreMaker(Protocol):
    """Makes stores: in this process, or with `cluster.Cluster`."""

    def plan(self, options: CacheOptions) -> StorePlan:
        """Plan the store."""
        ...

    def cache(self, out: Path, options: CacheOptions, progress: Progress) -> CacheSummary:
        """As `cache.cache_teacher`."""
        ...


class LocalMaker(NamedTuple):
    """Makes stores in this process, with an opened teacher."""

    source: Source
    split: str
    teacher: Teacher
    profile: Profile | None = None

    def plan(self, options: CacheOptions) -> StorePlan:
        """As `StoreMaker`."""
        return plan_cache(self.source, self.source.samples(self.split), self.teacher, options)

    def cache(self, out: Path, options: CacheOptions, progress: Progress) -> CacheSummary:
        """As `StoreMaker`."""
        return cache_teacher(self.source, self.split, self.teacher, out, options, progress, self.profile)


def cache_with_flips(
    source: Source,
    split: str,
    teacher: Teacher,
    out: Path,
    options: CacheOptions | None = None,
    progress: Progress | None = None,
) -> FlipSummaries:
    """Write the store `out`, then the store of the mirrored view next to it; resume interrupted runs.

    A complete store with the same settings is kept, so flips can be added later. Raises PipelineError for a teacher of
    files, for an existing store with other settings, and whatever `cache_teacher` raises.
    """
    return make_both(LocalMaker(source, split, teacher), out, options, progress)


def make_both(
    maker: StoreMaker, out: Path, options: CacheOptions | None = None, progress: Progress | None = None
) -> FlipSummaries:
    """`cache_with_flips` with a maker."""
    options, progress = options or CacheOptions(), progress or Silent()
    if options.features and not options.bases and out.exists():  # fitted again, the last bits may differ
        options = replace(options, bases=tuple(open_store(out).bases.items()))
    planned = maker.plan(options)
    if not planned.needs_images:
        raise PipelineError(
            f"`cache_flips`: teacher {planned.teacher!r} is a folder of predictions and cannot predict mirrored "
            "images: save their predictions in another folder, and cache it with a `view` that ends in ,mirror"
        )
    view = View.parse(planned.view)
    if view.mirror:
        raise PipelineError(f"`cache_flips` with `view={view}`: it adds the mirrored view itself; omit ,mirror")
    done: list[CacheSummary | None] = []
    for path, own_view in ((out, view), (mirrored_path(out), replace(view, mirror=True))):
        # One basis for both, so that a student learns the same components from either
        own_options = replace(options, view=str(own_view), bases=planned.bases)
        if path.exists():
            if open_store(path).spec.digest() != maker.plan(own_options).spec.digest():
                refuse_existing(path)
            progress.note(f"{path} exists already and is kept")
            done.append(None)
        else:
            done.append(maker.cache(path, own_options, progress))
    return FlipSummaries(*done)
