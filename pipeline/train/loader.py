"""Read batches ahead of the network: in worker processes, in a thread, or in turn. All give the same batches."""

from __future__ import annotations

import math
import resource
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from ..common.parallel import cores, in_order
from ..errors import PipelineError
from .dataset import collate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .dataset import Item, TrainingData
    from .mixed_data import MixedData
    from .sampler import EpochBatchSampler

THREAD_PREFETCH = 2
"""Batches that the thread reads ahead."""
MEASURED_STEPS = 4
"""Steps on a GPU that read in this process, to choose the number of workers; the first is not counted."""
WORKER_MARGIN = 1.5
"""Capacity of the chosen workers, in batches per step: single samples take longer than the mean."""
SHARED_MEMORY = (
    "the shared memory in /dev/shm is too small for the batches; use fewer `workers` (0 needs none), a smaller "
    "`batch_size`, or more shared memory (docker run --shm-size=8g, or --ipc=host)"
)
WORKER_ERRORS = {
    "Bus error": SHARED_MEMORY,
    "shared memory": SHARED_MEMORY,
    "No space left on device": SHARED_MEMORY,
    "/torch_": SHARED_MEMORY,  # name of a file in /dev/shm
    "Too many open files": "too many open files; use fewer `workers`, or raise the limit (ulimit -n 4096)",
    "signal: Killed": "it was killed, perhaps out of memory; use fewer `workers` or a smaller `batch_size`",
    "exited unexpectedly": "it exited, perhaps out of memory; use fewer `workers` or a smaller `batch_size`",
}
"""Part of torch's error about a worker -> cause and remedy."""
FILES_PER_RUN, FILES_PER_WORKER = 128, 48
"""Open files: a worker needs its pipes and two prefetched batches of seven tensors; doubled for safety."""


def has_free_core() -> bool:
    """Whether this process may use more cores than torch does."""
    return torch.get_num_threads() < cores()


def workers_for(read_s: float, step_s: float, processes: int = 1) -> int:
    """Return how many workers keep a network busy.

    `read_s` is the time to read one batch in one process, `step_s` that of the network for it; `processes` of this run
    share the machine's cores. At least 1, at most the process's part of the cores.
    """
    needed = math.ceil(WORKER_MARGIN * read_s / max(step_s, 1e-9))
    return max(1, min(needed, cores() // max(processes, 1)))


class _Failure(NamedTuple):
    """Error message of a sample that could not be read, returned by a worker in place of the sample."""

    message: str


class _CatchErrors(Dataset["Item | _Failure"]):
    """Samples, or the error as a `_Failure`: torch would put a worker's traceback before the message."""

    def __init__(self, data: TrainingData | MixedData) -> None:
        self.data = data

    def __getitem__(self, key: tuple[int, int]) -> Item | _Failure:
        try:
            return self.data[key]
        except ValueError as error:
            return _Failure(str(error))
        except OSError as error:
            return _Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _collate_or_failure(items: list[Item | _Failure]) -> Item | _Failure:
    read = [item for item in items if not isinstance(item, _Failure)]
    return collate(read) if len(read) == len(items) else next(item for item in items if isinstance(item, _Failure))


def _raise_failure(batch: Item | _Failure) -> Item:
    if isinstance(batch, _Failure):
        raise PipelineError(batch.message)
    return batch


def _limit_open_files(workers: int) -> None:
    """Under a low limit of open files, share tensors by file name; the default keeps a file open for each tensor."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < FILES_PER_RUN + FILES_PER_WORKER * workers:
        torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]


class Batches:
    """The remaining batches of the sampler's epoch, each time it is iterated.

    Args:
        data: samples.
        sampler: batch sampler; `sampler.set_epoch` chooses the epoch and its first batch.
        workers: worker processes; 0 reads in this process.
        device: device of the network.
    """

    def __init__(
        self, data: TrainingData | MixedData, sampler: EpochBatchSampler, workers: int, device: torch.device
    ) -> None:
        on_gpu = device.type == "cuda"
        self.data, self.sampler = data, sampler
        self.loader: DataLoader[Item | _Failure] | None = None
        if workers:
            _limit_open_files(workers)
        if workers or on_gpu:
            self.loader = DataLoader(
                _CatchErrors(data),
                batch_sampler=sampler,
                collate_fn=_collate_or_failure,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=on_gpu,
            )

    def __iter__(self) -> Iterator[Item]:
        if self.loader is not None:
            return self._from_workers(self.loader)
        # Without a free core, a thread takes twice as long as reading in turn: OpenMP's threads spin while they wait.
        return self._from_thread() if has_free_core() else map(self._read, self.sampler)

    def _from_workers(self, loader: DataLoader[Item | _Failure]) -> Iterator[Item]:
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:
                hint = next((hint for text, hint in WORKER_ERRORS.items() if text in str(error)), None)
                if hint is None:
                    raise
                raise PipelineError(
                    f"a loader worker failed with `workers={loader.num_workers}`: {hint}; the last checkpoint is kept"
                ) from error
            yield _raise_failure(batch)

    def _from_thread(self) -> Iterator[Item]:
        with ThreadPoolExecutor(1, "read") as pool:
            try:
                for future in in_order(pool, self._read, self.sampler, THREAD_PREFETCH):
                    yield future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, keys: list[tuple[int, int]]) -> Item:
        return collate([self.data[key] for key in keys])
