"""Stage one: run a teacher once over a source and write its predictions to a store.

Reading, prediction, encoding and writing overlap, see `shard_worker`. A resumed run uses the same batches as an
uninterrupted one and writes the same bytes.
"""

from __future__ import annotations

import errno
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..common.device import is_out_of_memory
from ..common.progress import Silent, Waits
from ..depth.rebin import RebinCost
from ..errors import PipelineError
from ..sources.view import View
from ..store.tools.info import unstated
from ..store.write.writer import StoreWriter
from ..teachers.base import NONPOSITIVE, package_versions
from .conditions import conditions_of, notes_on_resume
from .encoder import REBIN_ROWS
from .outcome import Outside, check, column
from .plan import CacheOptions, plan_store, resolve_view
from .shard_worker import ShardMaker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..common.profile import Profile
    from ..common.progress import Progress, Task
    from ..sources.base import Sample, Source
    from ..store.format.spec import StoreSpec
    from ..store.write.writer import EncodedSample
    from ..teachers.base import Teacher
    from .extras import Bases


class CacheSummary(NamedTuple):
    """Summary of one run of stage one."""

    samples: int
    samples_before: int
    """Samples finished by an earlier, interrupted run."""
    bytes_written: int
    sample_bytes: float
    """Mean over all samples, as `store.sizes.chunk_bytes`."""
    seconds: float
    size_px: tuple[int, int]
    invalid_share: float
    clipped_share: float
    max_rel_error: float
    rebinned: RebinCost | None = None
    """Cost of rebinning the teacher's maps to the store's bins; None if they are the same."""
    outside: Outside | None = None
    """Fractions of depth outside the bins and the stored range; None for relative depth, whose range is per sample."""
    dropped: tuple[int, int] | None = None
    """With `drop_nonpositive`: pixels of 0 or less, and samples with such pixels."""


class StorePlan(NamedTuple):
    """The planned store, and the facts about the teacher that it depends on."""

    spec: StoreSpec
    view: str
    needs_images: bool
    teacher: str
    """Name of the teacher."""
    conditions: dict[str, str]
    """`conditions_of` the process that runs the teacher."""
    bases: Bases = ()
    """Bases of the features."""


def plan_cache(source: Source, samples: Sequence[Sample], teacher: Teacher, options: CacheOptions) -> StorePlan:
    """Plan the store. Raises PipelineError as `plan.plan_store`."""
    view = resolve_view(source, teacher, options)
    spec, bases = plan_store(source, samples, teacher, view, options)
    conditions = {**conditions_of(spec.teacher), **package_versions([teacher])}
    return StorePlan(spec, str(view), teacher.needs_images, teacher.card.name, conditions, bases)


def cache_teacher(
    source: Source,
    split: str,
    teacher: Teacher,
    out: Path,
    options: CacheOptions | None = None,
    progress: Progress | None = None,
    profile: Profile | None = None,
) -> CacheSummary:
    """Write the store `out` of a teacher over a split; go on where an interrupted run stopped.

    `profile` receives the spans of reading, preparing, the teacher, encoding and writing.
    Raises PipelineError that names invalid input, and OSError for errors of the disk. Finished shards stay, and the
    same call resumes from them.
    """
    options = options or CacheOptions()
    if options.batch_size < 1:
        raise PipelineError(f"`batch_size={options.batch_size}`: expected at least 1")
    samples = source.samples(split)
    planned = plan_cache(source, samples, teacher, options)
    spec, view = planned.spec, View.parse(planned.view)

    def make(writer: StoreWriter, task: Task) -> int:
        with ShardMaker(spec, source, samples, view, teacher, options, profile, planned.bases) as maker:
            return _LocalRun(maker, writer, task).run()

    writer = StoreWriter(out, spec, [sample.id for sample in samples], dict(planned.bases))
    return fill_store(writer, make, progress or Silent(), planned.conditions)


def fill_store(
    writer: StoreWriter, make: Callable[[StoreWriter, Task], int], progress: Progress, conditions: dict[str, str]
) -> CacheSummary:
    """Call `make` to write all missing shards, then finish the store. `make` returns the bytes that it wrote.

    Raises what `make` and the writer raise; a full disk or memory becomes a PipelineError that says how to resume.
    """
    begin = time.monotonic()
    spec = writer.spec
    try:
        with writer:
            for note in [*writer.notes, *_unstated(spec.teacher), *notes_on_resume(writer, conditions)]:
                progress.note(note)
            before = writer.samples_done
            if before:
                progress.note(f"resuming: {before} of {spec.samples} samples are finished in {writer.staging}")
            with progress.task("cache teacher", spec.samples, "img", done=before) as task:
                written = make(writer, task)
            records = list(writer.finished.values())
            outside, warnings = check(spec, records)
            each = writer.sample_bytes
            writer.finish(progress)
            for warning in warnings:
                progress.note(warning)
    except Exception as error:
        message = _how_to_resume(error, writer)
        if message is None:
            raise
        raise PipelineError(message) from error
    invalid = column(records, "invalid_share")
    height, width = records[0].size_px
    drops = NONPOSITIVE in (spec.teacher.get("preprocessing") or ())
    return CacheSummary(
        samples=spec.samples,
        samples_before=before,
        bytes_written=written,
        sample_bytes=each,
        seconds=time.monotonic() - begin,
        size_px=records[0].size_px,
        invalid_share=float(np.mean(invalid)),
        clipped_share=float(np.mean(column(records, "clipped_share"))),
        max_rel_error=float(np.max(column(records, "max_rel_error"))),
        rebinned=None
        if spec.carried_from is None
        else RebinCost(*(float(np.mean(column(records, name))) for name in REBIN_ROWS)),
        outside=outside,
        dropped=(round(float(invalid.sum()) * height * width), int((invalid > 0).sum())) if drops else None,
    )


def _how_to_resume(error: Exception, writer: StoreWriter) -> str | None:
    """Return the message for a full memory or disk; None for other errors."""
    finished = f"{len(writer.finished)} of {writer.spec.shards} shards are"
    if is_out_of_memory(error):
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return (
            f"out of memory ({what}): give a smaller `batch_size` or `view`; {finished} finished and stay in "
            f"{writer.staging}; the same command resumes from them"
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"the disk of {writer.target} is full ({error.strerror}): {finished} safe in {writer.staging}; free space "
            "and run the same command to resume"
        )
    return None


def _unstated(teacher: dict[str, Any]) -> list[str]:
    missing = unstated(teacher)
    note = (
        f"not stated: {', '.join(missing)}; changes would not be detected, and one store could mix two teachers. "
        'List the files in the card, "weights": ["net.pth"], or [] for none'
    )
    return [note] if missing else []


def check_room(writer: StoreWriter, each_bytes: float | None = None) -> None:
    """Raise PipelineError if the store will not fit, judged by `each_bytes` per sample or by the finished shards."""
    spec, finished = writer.spec, writer.finished.values()
    if each_bytes is None and finished:
        each_bytes = writer.sample_bytes
    left = sum(len(spec.shard_samples(shard)) for shard in writer.todo)
    free = shutil.disk_usage(writer.target.parent).free
    if each_bytes is not None and each_bytes * left > free:
        kept = f"; {len(finished)} finished shards stay in {writer.staging}" if finished else ""
        raise PipelineError(
            f"{left} samples of about {each_bytes / 1e3:.3g} KB need {each_bytes * left / 1e9:.3g} GB, but the disk of "
            f"{writer.target} has {free / 1e9:.3g} GB free: free space, or choose another `out`{kept}"
        )


class _LocalRun:
    """Makes the missing shards here: one is written while the teacher works on the next."""

    def __init__(self, maker: ShardMaker, writer: StoreWriter, task: Task) -> None:
        self.maker, self.writer, self.task = maker, writer, task
        self.bytes_written = 0
        self.waits = Waits()
        self.room_checked = bool(writer.finished)
        self.before = writer.samples_done
        self.bytes_before = writer.sample_bytes * self.before if self.before else 0.0

    def run(self) -> int:
        """Make every missing shard; returns the bytes written."""
        check_room(self.writer)
        disk = ThreadPoolExecutor(1, "write")
        try:
            todo = self.writer.todo
            batches = self.maker.batches(todo)
            if todo:
                batches = chain([next(batches)], batches)  # asked for one, it reads ahead, during the probe
                self.maker.probe(self.waits, self._beat)
            predictions = self.maker.predictions(batches, self.waits, self._beat)
            pending: Future[None] | None = None
            for shard in todo:
                encoded = self.maker.encode_shard(shard, predictions, self.waits, self._after_batch)
                self._wait_for(pending)
                pending = disk.submit(self._write, shard, encoded)
            self._wait_for(pending)
            self._beat()  # the size of all samples, now that all are encoded
        finally:
            # After a fault the shard that was handed to the disk is still finished; the rest is dropped.
            disk.shutdown(wait=True)
        return self.bytes_written

    def _wait_for(self, written: Future[None] | None) -> None:
        if written:
            with self.waits.while_at("writing"):
                written.result()

    def _after_batch(self, count: int, encoded: Sequence[Future[EncodedSample]]) -> None:
        if not self.room_checked:
            self.room_checked = True
            check_room(self.writer, sum(future.result().size_bytes for future in encoded) / len(encoded))
        self._beat(count)

    def _beat(self, count: int = 0) -> None:
        encoded, size = self.maker.encoded
        each = (self.bytes_before + size) / max(self.before + encoded, 1)
        self.task.update(count, kb_each=each / 1e3, waits_for=self.waits)

    def _write(self, shard: int, encoded: list[Future[EncodedSample]]) -> None:
        samples = [future.result() for future in encoded]
        with self.maker.profile.span("write"):
            self.bytes_written += self.writer.write_shard(shard, samples)
