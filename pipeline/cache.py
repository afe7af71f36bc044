"""Stage one: run a teacher once over a source, and write what it says to a store.

Reading, the teacher, encoding and writing overlap: images are decoded and maps encoded in threads (both release
the interpreter lock), and a shard is written while the teacher works on the next. Batches never cross a shard, so
a resumed run shows the teacher the same batches as an uninterrupted one and writes the same bytes.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch

from .carry import CarryCost, carry
from .parallel import in_order
from .plan import CacheOptions, plan_store, settled_view
from .progress import Silent
from .store.writer import EncodedSample, StoreWriter, encode_sample
from .teachers.base import may_lack_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .progress import Progress, Task
    from .sources.base import Sample, Source
    from .sources.view import View
    from .teachers.base import Teacher

A = TypeVar("A")

MOVING = {"image", "pixel"}
"""What a store is `carried_from` whose teacher has other bins in each answer."""
CARRIED_ROWS = ("dpm_carried_kl_nats", "carried_depth_share", "carried_clipped_share")
"""Where a sample's CarryCost stands in the journal, so that a run that goes on can tell of all. The first is stored."""


class CacheSummary(NamedTuple):
    """What one run of stage one did."""

    samples: int
    samples_before: int
    """Samples that an earlier, interrupted run had finished."""
    bytes_written: int
    seconds: float
    size_px: tuple[int, int]
    invalid_share: float
    clipped_share: float
    max_rel_error: float
    carried: CarryCost | None = None
    """What carrying the teacher's maps over onto the store's bins cost; None where the store has the teacher's own."""


class _Frame(NamedTuple):
    sample: Sample
    view: NDArray[np.uint8]
    sha256: str
    image_size_px: tuple[int, int]


class _Answer(NamedTuple):
    """What the teacher said of one frame."""

    depth: NDArray[np.float32]
    dpm: NDArray[np.float32] | None
    bin_edges_m: NDArray[np.floating] | None
    """Of the map, where they are not the store's."""


def cache_teacher(
    source: Source,
    split: str,
    teacher: Teacher,
    out: Path,
    options: CacheOptions | None = None,
    progress: Progress | None = None,
) -> CacheSummary:
    """Write the store `out` of a teacher over a split; go on where an interrupted run stopped.

    Raises ValueError for input that is at fault (naming it), and OSError where the disk is; in either case the
    shards that were finished stay, and the same call goes on from them.
    """
    options = options or CacheOptions()
    progress = progress or Silent()
    if options.batch_size < 1:
        raise ValueError(f"batch size {options.batch_size}: expected at least 1")
    samples = source.samples(split)
    view = settled_view(source, teacher, options)
    spec = plan_store(source, samples, teacher, view, options)
    begin = time.monotonic()
    writer = StoreWriter(out, spec, [sample.id for sample in samples])
    try:
        with writer:
            for other in writer.other_stagings():
                progress.note(f"{other} is an unfinished store of other settings; remove it if you do not need it")
            before = sum(len(spec.shard_samples(shard)) for shard in writer.finished)
            if before:
                progress.note(f"going on with {before} of {len(samples)} samples that are finished in {writer.staging}")
            with progress.task("cache teacher", len(samples), "img", done=before) as task:
                written = _Run(writer, source, samples, view, teacher, options, task).run()
            writer.finish()
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ValueError(
                f"the disk of {out} is full ({error.strerror}): {len(writer.finished)} of {spec.shards} shards are "
                f"safe in {writer.staging}; make room and run the same command again, which goes on from there"
            ) from error
        raise
    records = list(writer.finished.values())

    def column(name: str) -> list[float]:
        return [value for record in records for value in record.rows[name]]

    return CacheSummary(
        samples=len(samples),
        samples_before=before,
        bytes_written=written,
        seconds=time.monotonic() - begin,
        size_px=records[0].size_px,
        invalid_share=float(np.mean(column("invalid_share"))),
        clipped_share=float(np.mean(column("clipped_share"))),
        max_rel_error=max(column("max_rel_error")),
        carried=None
        if spec.carried_from is None
        else CarryCost(*(float(np.mean(column(name))) for name in CARRIED_ROWS)),
    )


class _Run:
    """One run over the shards that are still to be made."""

    def __init__(
        self,
        writer: StoreWriter,
        source: Source,
        samples: Sequence[Sample],
        view: View,
        teacher: Teacher,
        options: CacheOptions,
        task: Task,
    ) -> None:
        self.writer = writer
        self.spec = writer.spec
        self.source = source
        self.samples = samples
        self.view = view
        self.teacher = teacher
        self.options = options
        self.task = task
        self.bytes_written = 0
        self.room_checked = False
        self.waited_s = {"reading": 0.0, "teacher": 0.0, "writing": 0.0}

    def run(self) -> int:
        """Make every missing shard; returns the bytes written."""
        workers = self.options.workers or min(8, os.cpu_count() or 1)
        readers = ThreadPoolExecutor(workers, "read")
        encoders = ThreadPoolExecutor(workers, "encode")
        disk = ThreadPoolExecutor(1, "write")
        try:
            wanted = (self.samples[i] for shard in self.writer.todo for i in self.spec.shard_samples(shard))
            frames = in_order(readers, self._read, wanted, ahead=2 * self.options.batch_size + workers)
            pending: Future[None] | None = None
            if self.writer.finished:
                written = [size for record in self.writer.finished.values() for size, _ in record.files.values()]
                self._check_room(sum(written) / self._count(self.writer.finished))
            for shard in list(self.writer.todo):
                encoded = self._teach(len(self.spec.shard_samples(shard)), frames, encoders)
                if pending:
                    self._wait("writing", pending)
                pending = disk.submit(self._write, shard, encoded)
            if pending:
                self._wait("writing", pending)
        finally:
            # After a fault the shard that was handed to the disk is still finished; the rest is dropped.
            readers.shutdown(wait=False, cancel_futures=True)
            disk.shutdown(wait=True)
            encoders.shutdown(wait=False, cancel_futures=True)
        return self.bytes_written

    def _wait(self, name: str, future: Future[A]) -> A:
        begin = time.monotonic()
        try:
            return future.result()
        finally:
            self.waited_s[name] += time.monotonic() - begin

    def _read(self, sample: Sample) -> _Frame:
        image, sha256 = self.source.read_image(sample)
        height, width = image.shape[:2]
        try:
            view = self.view.of_image(image)
        except ValueError as error:
            raise ValueError(f"{sample.image_path}: {error}") from error
        if view.shape[:2] != self.spec.view_size_px:
            expected = "x".join(map(str, self.spec.view_size_px))
            raise ValueError(
                f"{sample.image_path}: the view {self.view} of it is {view.shape[0]}x{view.shape[1]} px, of the "
                f"first image {expected}: a store holds one size; choose --view kb, center:HxW or full,resize:HxW"
            )
        return _Frame(sample, view, sha256, (height, width))

    def _teach(
        self, count: int, frames: Iterator[Future[_Frame]], encoders: ThreadPoolExecutor
    ) -> list[Future[EncodedSample]]:
        """Show the teacher the next `count` frames, batch by batch; encoding goes on behind."""
        encoded: list[Future[EncodedSample]] = []
        while len(encoded) < count:
            size = min(self.options.batch_size, count - len(encoded))
            batch = [self._wait("reading", future) for future in islice(frames, size)]
            begin = time.monotonic()
            answers = self._predict(batch)
            self.waited_s["teacher"] += time.monotonic() - begin
            encoded += [encoders.submit(self._encode, *both) for both in zip(batch, answers, strict=True)]
            if not self.room_checked:
                self._check_room(sum(future.result().size_bytes for future in encoded) / len(encoded))
            self.task.update(len(batch), waits_for=max(self.waited_s, key=lambda name: self.waited_s[name]))
        return encoded

    def _predict(self, batch: list[_Frame]) -> list[_Answer]:
        images = None
        if self.teacher.needs_images:
            stacked = np.stack([frame.view for frame in batch])
            images = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
        depth, dpm, edges = self.teacher.predict(images, [frame.sample.id for frame in batch])
        if depth.ndim != 3 or len(depth) != len(batch):
            raise ValueError(
                f"teacher {self.teacher.card.name!r} gave depth of shape {tuple(depth.shape)} for {len(batch)} "
                "images: expected (B, h, w)"
            )
        for frame, one in zip(batch, depth, strict=True):
            whole = frame.image_size_px
            if tuple(one.shape) == whole != self.spec.view_size_px:
                raise ValueError(
                    f"the teacher's output for {frame.sample.id} has the size of the whole image, "
                    f"{whole[0]}x{whole[1]} px, but the view {self.view} is a part of it: use --view full"
                )
            wrong = one.isinf() if may_lack_values(self.teacher) else ~one.isfinite()
            if self.teacher.needs_images and bool(wrong.any()):
                bad = int(wrong.sum())
                raise ValueError(
                    f"teacher {self.teacher.card.name!r} gave NaN or inf at {bad} pixels of {frame.sample.id}: "
                    "expected finite depth; try --precision float32"
                )
        depths = depth.float().numpy()
        if self.spec.dpm_kind == "gaussian":
            return [_Answer(one, None, None) for one in depths]
        if dpm is None or (edges is not None) != (self.spec.carried_from in MOVING):
            found = "no map" if dpm is None else f"a map {'without' if edges is None else 'with'} bins of its own"
            raise ValueError(
                f"teacher {self.teacher.card.name!r} gave {found} for {batch[0].sample.id}, but not for the first "
                "sample: expected every answer to be of one kind; mend its code, or use --dpm gaussian"
            )
        if edges is None:
            own = self.teacher.bin_edges_m if self.spec.carried_from else None
            return [_Answer(one, its, own) for one, its in zip(depths, dpm.float().numpy(), strict=True)]
        return [_Answer(*each) for each in zip(depths, dpm.float().numpy(), edges.numpy(), strict=True)]

    def _encode(self, frame: _Frame, answer: _Answer) -> EncodedSample:
        depth, dpm, edges_m = answer
        cost: CarryCost | None = None
        try:
            if dpm is not None and edges_m is not None:
                dpm, cost = carry(dpm, edges_m, np.array(self.spec.bin_edges))
            encoded = encode_sample(self.spec, depth, dpm, None if cost is None else cost.kl_nats)
        except ValueError as error:
            raise ValueError(f"{frame.sample.id}, teacher {self.teacher.card.name!r}: {error}") from error
        if cost is not None:
            encoded.row.update(zip(CARRIED_ROWS, cost, strict=True))
        encoded.row["image_sha256"] = frame.sha256
        encoded.row["image_size_px"] = list(frame.image_size_px)
        return encoded

    def _write(self, shard: int, encoded: list[Future[EncodedSample]]) -> None:
        self.bytes_written += self.writer.write_shard(shard, [future.result() for future in encoded])

    def _count(self, shards: Iterable[int]) -> int:
        return sum(len(self.spec.shard_samples(shard)) for shard in shards)

    def _check_room(self, each_bytes: float) -> None:
        """Refuse a store that will not fit, by the samples that an earlier run wrote or else the first batch."""
        self.room_checked = True
        left = self._count(self.writer.todo)
        free = shutil.disk_usage(self.writer.target.parent).free
        if each_bytes * left > free:
            kept = f"; {len(self.writer.finished)} finished shards stay in {self.writer.staging}"
            raise ValueError(
                f"{left} samples at about {each_bytes / 1e3:.3g} KB each need {each_bytes * left / 1e9:.3g} GB, the "
                f"disk of {self.writer.target} has {free / 1e9:.3g} GB free: make room, or choose another --out"
                f"{kept if self.writer.finished else ''}"
            )
