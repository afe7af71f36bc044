"""Stage one over the mirrored images too, into a store beside the first: `train.zarr` and `train.mirrored.zarr`.

A network's answer for a mirrored image is not its answer, mirrored. Students see half of their crops mirrored, and what
the teacher says of those is known only if it was asked.
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
    """What one call did of the two stores; None of a store that was there already."""

    plain: CacheSummary | None
    mirrored: CacheSummary | None


def mirrored_path(out: Path) -> Path:
    """Where the store of the mirrored images lies, beside `out`."""
    return out.with_name(f"{out.stem}.mirrored{out.suffix}")


class StoreMaker(Protocol):
    """Who makes a store: this process, or `cluster.Cluster`."""

    def plan(self, options: CacheOptions) -> StorePlan:
        """What the store will be."""
        ...

    def cache(self, out: Path, options: CacheOptions, progress: Progress) -> CacheSummary:
        """As `cache.cache_teacher`."""
        ...


class LocalMaker(NamedTuple):
    """This process makes stores, with an opened teacher."""

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
    """Write the store `out`, then the one of the mirrored view beside it; go on where an interrupted run stopped.

    A store that is finished and is what this call would write is kept: the flips can be added later. Raises
    PipelineError for a teacher that cannot be shown a mirrored image, for a store of other settings at either place,
    and whatever `cache_teacher` raises.
    """
    return make_both(LocalMaker(source, split, teacher), out, options, progress)


def make_both(
    maker: StoreMaker, out: Path, options: CacheOptions | None = None, progress: Progress | None = None
) -> FlipSummaries:
    """`cache_with_flips` by whoever makes stores."""
    options, progress = options or CacheOptions(), progress or Silent()
    planned = maker.plan(options)
    if not planned.needs_images:
        raise PipelineError(
            f"`cache_flips`: teacher {planned.teacher!r} is a folder of predictions, which nobody can ask about the "
            "mirrored images: predict those too, into a folder of their own, and cache it with a `view` that ends in "
            ",mirror"
        )
    view = View.parse(planned.view)
    if view.mirror:
        raise PipelineError(f"`cache_flips` beside `view={view}`: it adds the mirrored view itself; leave ,mirror out")
    done: list[CacheSummary | None] = []
    for place, one in ((out, view), (mirrored_path(out), replace(view, mirror=True))):
        asked = replace(options, view=str(one))
        if place.exists():
            if open_store(place).spec.digest() != maker.plan(asked).spec.digest():
                refuse_existing(place)
            progress.note(f"{place} is there already, and is kept")
            done.append(None)
        else:
            done.append(maker.cache(place, asked, progress))
    return FlipSummaries(*done)
