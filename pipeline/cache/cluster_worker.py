"""One worker of a cluster: opens source and teacher once, and makes shards.

A worker gets only text and numbers. It writes a shard into its own folder inside the staging directory; the process
that holds the store's lock moves it into the store and records it. So lost or late workers may make a shard twice.
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
"""Shards of a worker at once: the teacher runs on one while the other is read, or encoded and written."""
VISIBLE_WITHIN_S = 20.0
"""How long a shared file system may take to show a file from another machine."""
MARKER_FILE = "cluster"
"""File of the staging directory that proves that a worker shares the disk."""
PARTS_FOLDER = "parts"
"""Folder of the staging directory for the files of workers."""


@dataclass(frozen=True)
class WorkerConfig:
    """Source, split and teacher of the workers."""

    source_name: str
    split: str
    teacher_name: str
    teacher_options: TeacherOptions
    device: str = "auto"
    folder: str = "."
    """Base of relative paths and `python:` modules."""
    cpu_threads: int = 1
    """Threads of a teacher on the CPU; the low bits of its depth depend on it."""


class StoreTarget(NamedTuple):
    """The store that is being made."""

    staging: str
    token: str
    digest: str
    options: CacheOptions


class ShardResult(NamedTuple):
    """A shard whose files lie below `folder`."""

    record: ShardRecord
    folder: str
    waited_s: Waits
    """Seconds waited for `reading`, the `teacher` and `writing`."""


class PlanMismatch(NamedTuple):
    """The plan of a worker with other packages or another teacher."""

    spec: StoreSpec
    host: str


class WorkerError(NamedTuple):
    """An error of a worker as a value; dask would log and wrap a raised one."""

    kind: str
    """`OSError`, `MemoryError`, `PipelineError`, or the name of another type."""
    message: str
    errno: int | None
    filename: str | None
    trace: str

    @classmethod
    def of(cls, error: Exception) -> WorkerError:
        """Describe an error."""
        usual = next((base for base in (OSError, MemoryError, PipelineError) if isinstance(error, base)), None)
        number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
        name = str(error.filename) if isinstance(error, OSError) and error.filename is not None else None
        kind = type(error).__name__ if usual is None else usual.__name__
        return cls(kind, text or str(error), number, name, traceback.format_exc())

    def error(self) -> Exception:
        """Return the same error, to be raised in another process; its note is the worker's traceback."""
        error: Exception
        if self.kind == "OSError" and self.errno is not None:
            error = OSError(self.errno, self.message, self.filename)
        elif self.kind == "MemoryError":
            error = MemoryError(self.message)
        elif self.kind in {"OSError", "PipelineError"}:
            error = PipelineError(self.message)
        else:
            error = RuntimeError(f"{self.kind}: {self.message}")
        error.add_note(self.trace)
        return error


class ClusterWorker:
    """State of a worker process; thread-safe."""

    def __init__(self, config: WorkerConfig, number: int | None = None) -> None:
        """`number` is the local number of this worker, which selects its GPU."""
        self.config = config
        self._number = number
        self._opening, self._asking = Lock(), Lock()
        self._slots = Semaphore(SHARDS_IN_FLIGHT)
        self._plans: dict[CacheOptions, StorePlan] = {}
        self._makers: dict[CacheOptions, ShardMaker] = {}
        self._probed: set[CacheOptions] = set()
        self._id_bytes = 0

    def close(self) -> None:
        """Stop the threads."""
        for maker in self._makers.values():
            maker.__exit__()

    def plan(self, options: CacheOptions) -> StorePlan | WorkerError:
        """Plan the store."""
        return _error_as_value(lambda: self._plan(options))

    def make(self, target: StoreTarget, shard: int) -> ShardResult | PlanMismatch | WorkerError:
        """Make a shard of the store at `target`."""
        return _error_as_value(lambda: self._make(target, shard))

    def _plan(self, options: CacheOptions) -> StorePlan:
        maker = self._maker(options)
        with self._asking:
            if options not in self._probed:
                maker.probe(Waits())
                self._probed.add(options)
        return self._plans[options]

    def _make(self, target: StoreTarget, shard: int) -> ShardResult | PlanMismatch:
        with self._slots:
            check_shared(Path(target.staging), target.token)
            maker = self._maker(target.options)
            if maker.spec.digest() != target.digest:
                return PlanMismatch(maker.spec, socket.gethostname())
            waits = Waits()
            batches = maker.batches([shard])
            batches = chain([next(batches)], batches)  # asked for one, it reads ahead, while another shard is taught
            with self._asking:
                encoding = maker.encode_shard(shard, maker.predictions(batches, waits), waits)
            indexes = maker.spec.shard_samples(shard)
            folder = Path(target.staging) / PARTS_FOLDER / f"{shard}-{uuid4().hex}"
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
        """Return the maker of a store's shards, planned on the first call."""
        with self._opening:
            if options not in self._makers:
                os.chdir(self.config.folder)
                with self._asking:  # the plan may ask the teacher too
                    planned = plan_cache(self._source, self._samples, self._teacher, options)
                view = View.parse(planned.view)
                made = ShardMaker(
                    planned.spec, self._source, self._samples, view, self._teacher, options, bases=planned.bases
                )
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
    """Raise PipelineError unless the staging directory shows the token within VISIBLE_WITHIN_S."""
    last = time.monotonic() + VISIBLE_WITHIN_S
    while True:
        with suppress(OSError):
            if (staging / MARKER_FILE).read_text() == token:
                return
        if time.monotonic() > last:
            raise PipelineError(
                f"a worker on {socket.gethostname()} does not see the files in {staging}: all workers and this process "
                "must share a file system at the same path; choose an `out` on one"
            )
        with suppress(OSError):
            list(staging.parent.iterdir())  # refreshes the cache of a network file system
        time.sleep(0.2)


def _error_as_value(function: Callable[[], A]) -> A | WorkerError:
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - raised again by the main process
        return WorkerError.of(error)
