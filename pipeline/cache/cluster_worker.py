"""One worker of a cluster: what it is asked, what it opens once, and the shards that it makes.

A worker is told everything in written form, and opens source and teacher itself. It writes the files of a shard into a
folder of its own inside the staging directory, and tells of them; the one process that holds the target's lock moves
them into the store and notes them. So a shard may be made twice, by workers that are lost or late, and nobody waits.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from uuid import uuid4

import torch

from ..common.device import choose_device
from ..common.progress import Waits
from ..errors import PipelineError
from ..sources.registry import open_source
from ..sources.view import View
from ..store.write.writer import write_shard_files
from ..teachers.registry import open_teacher
from .run import plan_cache
from .shard_worker import ShardMaker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..sources.base import Sample, Source
    from ..store.format.spec import StoreSpec
    from ..store.write.journal import ShardRecord
    from ..teachers.base import Teacher
    from ..teachers.options import TeacherOptions
    from .plan import CacheOptions
    from .run import StorePlan

A = TypeVar("A")

SHARDS_IN_FLIGHT = 2
"""Shards that a worker has in hand: the teacher looks at one while the other is read, or encoded and written."""
VISIBLE_WITHIN_S = 20.0
"""How long a shared file system may take to show a worker what another machine has written."""
MARKER_FILE = "cluster"
"""File of a staging directory that a worker must see, to know that it shares the disk."""
PARTS_FOLDER = "parts"
"""Folder of a staging directory into which workers write."""


@dataclass(frozen=True)
class WorkerConfig:
    """Which teacher is asked about what, in written form."""

    source_name: str
    split: str
    teacher_name: str
    teacher_options: TeacherOptions
    device: str = "auto"
    folder: str = "."
    """Where relative paths begin, and `python:` modules may lie."""
    cpu_threads: int = 1
    """Of a teacher on the CPU, whose low bits depend on their number."""


class StoreTarget(NamedTuple):
    """Where a store is being made, and which."""

    staging: str
    token: str
    digest: str
    options: CacheOptions


class ShardResult(NamedTuple):
    """A shard whose files lie below `folder`."""

    record: ShardRecord
    folder: str
    waited_s: Waits
    """For `reading`, for the `teacher` and for `writing`."""


class PlanMismatch(NamedTuple):
    """A worker's plan is not the one that was made before it came: it has other packages or another teacher."""

    spec: StoreSpec
    host: str


class WorkerError(NamedTuple):
    """An error of a worker, told and not raised: the cluster engine would log it, and wrap it in its own words."""

    kind: str
    """`OSError`, `MemoryError`, `PipelineError`, or that of a bug."""
    message: str
    errno: int | None
    filename: str | None
    trace: str

    @classmethod
    def of(cls, error: Exception) -> WorkerError:
        """Tell of an error."""
        usual = next((one for one in (OSError, MemoryError, PipelineError) if isinstance(error, one)), None)
        number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
        name = str(error.filename) if isinstance(error, OSError) and error.filename is not None else None
        kind = type(error).__name__ if usual is None else usual.__name__
        return cls(kind, text or str(error), number, name, traceback.format_exc())

    def error(self) -> Exception:
        """The same error, to be raised elsewhere; its note is the worker's traceback."""
        found: Exception
        if self.kind == "OSError" and self.errno is not None:
            found = OSError(self.errno, self.message, self.filename)
        elif self.kind == "MemoryError":
            found = MemoryError(self.message)
        elif self.kind in {"OSError", "PipelineError"}:
            found = PipelineError(self.message)
        else:
            found = RuntimeError(f"{self.kind}: {self.message}")
        found.add_note(self.trace)
        return found


class ClusterWorker:
    """What a worker process holds; safe in its threads."""

    def __init__(self, config: WorkerConfig, number: int | None = None) -> None:
        """`number` is that of this worker among those of its machine, where each is to take a GPU of its own."""
        self.config = config
        self._number = number
        self._opening, self._asking = Lock(), Lock()
        self._slots = Semaphore(SHARDS_IN_FLIGHT)
        self._plans: dict[CacheOptions, StorePlan] = {}
        self._makers: dict[CacheOptions, ShardMaker] = {}
        self._probed: set[CacheOptions] = set()
        self._id_bytes = 0

    def close(self) -> None:
        """Let the threads go."""
        for maker in self._makers.values():
            maker.__exit__()

    def plan(self, options: CacheOptions) -> StorePlan | WorkerError:
        """What the store will be."""
        return _error_as_value(lambda: self._plan(options))

    def make(self, place: StoreTarget, shard: int) -> ShardResult | PlanMismatch | WorkerError:
        """Make a shard of the store at `place`."""
        return _error_as_value(lambda: self._make(place, shard))

    def _plan(self, options: CacheOptions) -> StorePlan:
        maker = self._maker(options)
        with self._asking:
            if options not in self._probed:
                maker.probe(Waits())
                self._probed.add(options)
        return self._plans[options]

    def _make(self, place: StoreTarget, shard: int) -> ShardResult | PlanMismatch:
        with self._slots:
            check_shared(Path(place.staging), place.token)
            maker = self._maker(place.options)
            if maker.spec.digest() != place.digest:
                return PlanMismatch(maker.spec, socket.gethostname())
            waits = Waits()
            batches = maker.batches([shard])
            batches = chain([next(batches)], batches)  # asked for one, it reads ahead, while another shard is taught
            with self._asking:
                encoding = maker.teach(shard, maker.answers(batches, waits))
            indexes = maker.spec.shard_samples(shard)
            folder = Path(place.staging) / PARTS_FOLDER / f"{shard}-{uuid4().hex}"
            folder.mkdir()  # not its parents: where they are gone, so is the run that this worker is too late for
            try:
                named = {
                    self._samples[index].id: future.result() for index, future in zip(indexes, encoding, strict=True)
                }
                with waits.while_at("writing"):
                    record = write_shard_files(folder, maker.spec, shard, named, self._id_bytes)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return ShardResult(record, str(folder), waits)

    def _maker(self, options: CacheOptions) -> ShardMaker:
        """What makes a store's shards, planned on the first call."""
        with self._opening:
            if options not in self._makers:
                os.chdir(self.config.folder)
                with self._asking:  # the plan may ask the teacher too
                    planned = plan_cache(self._source, self._samples, self._teacher, options)
                view = View.parse(planned.view)
                made = ShardMaker(planned.spec, self._source, self._samples, view, self._teacher, options)
                self._plans[options] = planned
                self._id_bytes = max(len(sample.id.encode()) for sample in self._samples)
                self._makers[options] = made
            return self._makers[options]

    @cached_property
    def _teacher(self) -> Teacher:
        device = choose_device(self.config.device, self._number)
        if device.type == "cpu":
            torch.set_num_threads(self.config.cpu_threads)
        return open_teacher(self.config.teacher_name, device=device, options=self.config.teacher_options)

    @cached_property
    def _source(self) -> Source:
        return open_source(self.config.source_name)

    @cached_property
    def _samples(self) -> Sequence[Sample]:
        return self._source.samples(self.config.split)


def check_shared(staging: Path, token: str) -> None:
    """Raise PipelineError unless this process sees the token in a staging directory, at once or soon."""
    last = time.monotonic() + VISIBLE_WITHIN_S
    while True:
        with suppress(OSError):
            if (staging / MARKER_FILE).read_text() == token:
                return
        if time.monotonic() > last:
            raise PipelineError(
                f"a worker on {socket.gethostname()} does not see what is written to {staging}: expected a file system "
                "that workers and this process share, at the same path; choose an `out` on one"
            )
        with suppress(OSError):
            list(staging.parent.iterdir())  # makes a file system of the network look anew
        time.sleep(0.2)


def _error_as_value(function: Callable[[], A]) -> A | WorkerError:
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - whatever it is goes to the process that can tell it
        return WorkerError.of(error)
