"""Stage one by many processes and machines: `cache-teacher --scheduler ADDRESS|local:N`, on dask.distributed.

A task is one shard; each worker opens the teacher once (`cluster_worker`). Workers may join, leave or be killed: the
task of a lost worker runs on another. Only this process holds the store's lock, moves finished shards into the store
and records them, so the bytes equal those of a single process, and a run may resume with any number of workers.

Dask sends pickles: a scheduler can run any code on its workers, so run it on a trusted network.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections import Counter
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import dask
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, as_completed, get_worker

from ..common.fileio import write_durably
from ..common.parallel import SHARED_BY
from ..common.progress import Silent, Waits
from ..errors import OptionError, PipelineError
from ..sources.registry import open_source
from ..store.format.spec import digest_of_ids
from ..store.tools.diff import differing_fields
from ..store.write.writer import StoreWriter
from .cluster_worker import (
    MARKER_FILE,
    PARTS_FOLDER,
    SHARDS_IN_FLIGHT,
    ClusterWorker,
    PlanMismatch,
    StoreTarget,
    WorkerError,
)
from .plan import CacheOptions
from .run import StorePlan, check_room, fill_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..common.progress import Progress, Task
    from ..store.format.spec import StoreSpec
    from .cluster_worker import ShardResult, WorkerConfig
    from .run import CacheSummary

A = TypeVar("A")

CONNECT_WITHIN_S = 20
NOTE_AFTER_S = 15.0
"""Time without a result before a note about missing workers."""
DEATHS = 10
"""Workers that may die on one shard before the run fails."""
LOCAL_WORKERS_WITHIN_S = 300.0
"""Time without any local worker before the run fails: killed ones start again within seconds, and no other can join."""
POLL_S = 0.05


class _ClusterPlugin(WorkerPlugin):
    """Creates a `ClusterWorker` in every current and future worker."""

    def __init__(self, config: WorkerConfig, *, local: bool) -> None:
        self.config, self.local = config, local

    def setup(self, worker: Any) -> None:  # noqa: ANN401 - dask's
        # Local workers are numbered; the number selects a GPU
        self.worker = ClusterWorker(self.config, int(worker.name) if self.local else None)

    def teardown(self, worker: Any) -> None:  # noqa: ANN401, ARG002 - dask's
        self.worker.close()


def _plan_there(name: str, options: CacheOptions) -> StorePlan | WorkerError:
    return _worker(name).plan(options)


def _make_there(name: str, target: StoreTarget, shard: int) -> ShardResult | PlanMismatch | WorkerError:
    return _worker(name).make(target, shard)


def _worker(name: str) -> ClusterWorker:
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, _ClusterPlugin)
    return plugin.worker


class Cluster:
    """Workers with one teacher and split; made by `cluster_of`."""

    def __init__(self, client: Client, config: WorkerConfig, *, local: bool) -> None:
        self.client, self.config, self.local = client, config, local
        self.name = f"tiekd-{uuid4().hex}"
        client.register_plugin(_ClusterPlugin(config, local=local), name=self.name)

    def close(self) -> None:
        """Release the teachers of all workers."""
        self.client.unregister_worker_plugin(self.name)

    def workers(self) -> int:
        """Return the number of workers."""
        return len(self.client.scheduler_info(n_workers=-1)["workers"])

    def plan(self, options: CacheOptions, progress: Progress | None = None) -> StorePlan:
        """Plan the store on a worker. Raises PipelineError as `cache.plan_cache`."""
        ((_, planned),) = self._answers(partial(_plan_there, self.name), [options], progress or Silent())
        assert isinstance(planned, StorePlan)
        return planned

    def cache(self, out: Path, options: CacheOptions | None = None, progress: Progress | None = None) -> CacheSummary:
        """Write the store `out` as `cache.cache_teacher`, and raise what it raises."""
        options, progress = options or CacheOptions(), progress or Silent()
        if options.batch_size < 1:
            raise PipelineError(f"`batch_size={options.batch_size}`: expected at least 1")
        ids = [sample.id for sample in open_source(self.config.source_name).samples(self.config.split)]
        planned = self.plan(options, progress)
        spec = planned.spec
        if spec.source["ids_sha256"] != digest_of_ids(ids):
            raise PipelineError(
                f"split {self.config.split!r} has different samples on a worker ({spec.samples}) and here "
                f"({len(ids)}): give all machines the same files"
            )

        # Other workers use these bases: fitted on another machine, their last bits may differ
        made_with = replace(options, bases=planned.bases)

        def make(writer: StoreWriter, task: Task) -> int:
            return self._make(writer, made_with, task, progress)

        return fill_store(StoreWriter(out, spec, ids, dict(planned.bases)), make, progress, planned.conditions)

    def _make(self, writer: StoreWriter, options: CacheOptions, task: Task, progress: Progress) -> int:
        """Make every missing shard on the workers; return the bytes written."""
        check_room(writer)
        parts = writer.staging / PARTS_FOLDER
        shutil.rmtree(parts, ignore_errors=True)  # left by killed or late workers
        parts.mkdir()
        token = uuid4().hex
        write_durably(writer.staging / MARKER_FILE, token.encode())
        target = StoreTarget(str(writer.staging.resolve()), token, writer.spec.digest(), options)
        waits, written = Waits(), 0
        for shard, made in self._answers(partial(_make_there, self.name, target), writer.todo, progress):
            if isinstance(made, PlanMismatch):
                raise _other_store(writer.spec, made)
            first = not writer.finished
            size = writer.adopt_shard(made.record, Path(made.folder))
            shutil.rmtree(made.folder, ignore_errors=True)
            written += size
            for what, seconds in made.waited_s.items():
                waits[what] = waits.get(what, 0.0) + seconds
            count = len(writer.spec.shard_samples(shard))
            task.update(count, workers=self.workers(), kb_each=writer.sample_bytes / 1e3, waits_for=waits)
            if first:
                check_room(writer)
        return written

    def _answers(self, function: Callable[[A], Any], asked: Sequence[A], progress: Progress) -> Iterator[tuple[A, Any]]:
        """Yield the result of `function` for each of `asked`, as it arrives; retries tasks of dead workers.

        An error of a worker is raised after the results that arrived with it. Raises PipelineError if workers keep
        dying on one task, or the scheduler is lost.
        """
        futures = self.client.map(function, asked, pure=False)
        asked_by = {future.key: request for future, request in zip(futures, asked, strict=True)}
        queue = as_completed(futures, loop=self.client.loop)
        del futures  # lets the scheduler release finished results
        deaths = Counter[A]()
        since = last_result = time.monotonic()
        fault = None
        try:
            while fault is None and not queue.is_empty():
                done = queue.next_batch(block=False)
                if done:
                    since = last_result = time.monotonic()
                elif time.monotonic() - since > NOTE_AFTER_S:
                    since = time.monotonic()
                    if not self.workers():
                        self._check_may_wait(since - last_result)
                        progress.note("no workers: waiting for one to join the scheduler")
                else:
                    time.sleep(POLL_S)
                for future in done:
                    request = asked_by.pop(future.key)
                    try:
                        answer = future.result()
                    except (KilledWorker, CancelledError) as error:  # its worker died, before or after it was done
                        deaths[request] += 1
                        self._check_may_ask_again(deaths[request], error)
                        again = self.client.submit(function, request, pure=False)
                        asked_by[again.key] = request
                        queue.add(again)
                        continue
                    if isinstance(answer, WorkerError):
                        fault = fault or answer.error()
                    else:
                        yield request, answer
        finally:
            self.client.cancel(list(queue.futures))
        if fault is not None:
            raise fault

    def _check_may_wait(self, seconds: float) -> None:
        """Raise PipelineError if no local worker has answered for too long, and none is left."""
        if self.local and seconds > LOCAL_WORKERS_WITHIN_S:
            raise PipelineError(
                f"all local workers have ended, and none has started again for {seconds:.0f} s: the machine may be out "
                "of memory; run the same command with fewer workers to resume"
            )

    def _check_may_ask_again(self, deaths: int, error: BaseException) -> None:
        if self.client.status != "running":
            raise PipelineError(
                "the connection to the scheduler is lost: start it again; the same command resumes from the finished "
                "shards"
            ) from error
        if deaths >= DEATHS:
            raise PipelineError(
                f"{DEATHS} workers died on the same shard: check their logs and memory (a smaller `batch_size` needs "
                "less); the same command resumes from the finished shards"
            ) from error


def _other_store(spec: StoreSpec, other: PlanMismatch) -> PipelineError:
    fields = "; ".join(
        f"{name} is {there} there and {here} elsewhere" for name, there, here in differing_fields(other.spec, spec)
    )
    return PipelineError(
        f"a worker on {other.host} would write a different store ({fields}): give all workers the same packages and "
        "files, and run the same command again"
    )


@contextmanager
def cluster_of(scheduler: str, config: WorkerConfig) -> Iterator[Cluster]:
    """Connect to a scheduler by its address, or start `local:N` worker processes.

    Raises PipelineError if no scheduler answers, or N is not a positive number.
    """
    kind, _, number = scheduler.partition(":")
    local = kind == "local"
    if local and not (number.isdecimal() and int(number)):
        raise OptionError("scheduler", scheduler, "local:N, N processes on this machine, such as local:2")
    with _silence(), ExitStack() as stack:
        address: Any = scheduler
        if local:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            address = stack.enter_context(
                LocalCluster(
                    n_workers=int(number),
                    threads_per_worker=SHARDS_IN_FLIGHT,
                    processes=True,
                    env={SHARED_BY[0]: number},
                    memory_limit=0,  # dask must not kill a teacher for its memory
                    dashboard_address=":0",  # any free port, so that runs do not collide
                    silence_logs=logging.CRITICAL,
                    local_directory=scratch,
                )
            )
        try:
            client = stack.enter_context(Client(address, timeout=CONNECT_WITHIN_S, set_as_default=False))
        except (OSError, ValueError) as error:
            raise PipelineError(
                f"`scheduler={scheduler}`: no scheduler answers there ({error}): start `dask scheduler`, and "
                "`dask worker ADDRESS` for each GPU, or use local:N"
            ) from error
        cluster = Cluster(client, config, local=local)
        stack.callback(cluster.close)
        yield cluster


@contextmanager
def _silence() -> Iterator[None]:
    """Silence dask's logs: errors are reported once, by this project."""
    logger = logging.getLogger("distributed")
    before = logger.level
    with dask.config.set({"distributed.scheduler.allowed-failures": DEATHS}):
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(before)
