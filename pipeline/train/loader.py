"""Batches of training data, read while the network works on those before them, where a core is free.

What a batch holds depends on seed, epoch and numbers alone, so that it is the same whoever reads it.
"""

from __future__ import annotations

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
    from .sampler import EpochOrder

AHEAD = 2
"""So many batches are read ahead where a thread reads them."""
GPU_WORKERS = 8
SHARED_MEMORY = (
    "the shared memory in /dev/shm is too small for the batches: use fewer `workers` (0 needs none), a smaller "
    "`batch_size`, or more of it (docker run --shm-size=8g, or --ipc=host)"
)
OF_WORKERS = {
    "Bus error": SHARED_MEMORY,
    "shared memory": SHARED_MEMORY,
    "No space left on device": SHARED_MEMORY,
    "/torch_": SHARED_MEMORY,  # the name of a file in it
    "Too many open files": "too many open files: use fewer `workers`, or raise the limit (ulimit -n 4096)",
    "signal: Killed": "it was killed, perhaps for want of memory: use fewer `workers` or a smaller `batch_size`",
    "exited unexpectedly": "it ended, perhaps for want of memory: use fewer `workers` or a smaller `batch_size`",
}
"""Part of what torch says of a loader process -> what to do about it."""
HANDLES, HANDLES_A_WORKER = 128, 48
"""Open files of a run, and of each worker: two batches ahead of seven tensors each, and its pipes, twice over."""


def a_core_is_free() -> bool:
    """Whether this process may use more cores than torch does."""
    return torch.get_num_threads() < cores()


class _Failure(NamedTuple):
    """What was wrong with the input, as a worker process tells it."""

    message: str


class _Telling(Dataset["Item | _Failure"]):
    """Samples, or what is wrong with them: torch would put a worker's traceback before the message."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __getitem__(self, key: tuple[int, int]) -> Item | _Failure:
        try:
            return self.data[key]
        except ValueError as error:
            return _Failure(str(error))
        except OSError as error:  # too many open files, a disk or a connection that failed
            return _Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _collate_or_tell(items: list[Item | _Failure]) -> Item | _Failure:
    read = [item for item in items if not isinstance(item, _Failure)]
    return collate(read) if len(read) == len(items) else next(item for item in items if isinstance(item, _Failure))


def _checked(batch: Item | _Failure) -> Item:
    if isinstance(batch, _Failure):
        raise PipelineError(batch.message)
    return batch


def _share_with_few_handles(workers: int) -> None:
    """Where this process may open few files, let workers hand over memory by name: else each tensor takes a handle."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < HANDLES + HANDLES_A_WORKER * workers:
        torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]


class Batches:
    """The rest of an epoch's batches, each time it is iterated.

    Args:
        data: the samples.
        order: which of them make a batch; `order.start_at` chooses the epoch.
        workers: processes that read; 0 reads here. None is 0 beside a CPU, whose cores the network needs, and 8
            processes beside a GPU.
        device: the network's.
    """

    def __init__(self, data: TrainingData, order: EpochOrder, workers: int | None, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        if workers is None:
            workers = GPU_WORKERS if on_gpu else 0
        self.data, self.order = data, order
        self.loader: DataLoader[Item | _Failure] | None = None
        if workers:
            _share_with_few_handles(workers)
        if workers or on_gpu:
            self.loader = DataLoader(
                _Telling(data),
                batch_sampler=order,
                collate_fn=_collate_or_tell,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=on_gpu,
            )

    def __iter__(self) -> Iterator[Item]:
        if self.loader is not None:
            return self._in_processes(self.loader)
        # A thread beside a network that has every core takes twice as long as reading in turn: OpenMP's threads spin
        # while they wait for each other, and there is no core to wait on.
        return self._in_a_thread() if a_core_is_free() else map(self._read, self.order)

    def _in_processes(self, loader: DataLoader[Item | _Failure]) -> Iterator[Item]:
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:
                hint = next((hint for text, hint in OF_WORKERS.items() if text in str(error)), None)
                if hint is None:
                    raise
                raise PipelineError(
                    f"a loader process failed with `workers={loader.num_workers}`: {hint}; the last checkpoint is kept"
                ) from error
            yield _checked(batch)

    def _in_a_thread(self) -> Iterator[Item]:
        with ThreadPoolExecutor(1, "read") as pool:
            try:
                for future in in_order(pool, self._read, self.order, AHEAD):
                    yield future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)  # nobody asks for the rest

    def _read(self, keys: list[tuple[int, int]]) -> Item:
        return collate([self.data[key] for key in keys])
