"""Batches of training data, read while the network works on those before them.

What a batch holds depends on seed, epoch and numbers alone, so that it is the same whoever reads it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader

from .dataset import collate
from .parallel import in_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from .dataset import Item, TrainingData
    from .order import EpochOrder

AHEAD = 2
"""So many batches are read ahead where a thread reads them."""
GPU_WORKERS = 8


class Batches:
    """The rest of an epoch's batches, each time it is iterated.

    Args:
        data: the samples.
        order: which of them make a batch; `order.start_at` chooses the epoch.
        workers: processes that read; 0 is one thread. None is a thread beside a CPU, whose cores the network needs,
            and 8 processes beside a GPU.
        device: the network's.
    """

    def __init__(self, data: TrainingData, order: EpochOrder, workers: int | None, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        if workers is None:
            workers = GPU_WORKERS if on_gpu else 0
        self.data, self.order = data, order
        self.loader: DataLoader[Item] | None = None
        if workers or on_gpu:
            self.loader = DataLoader(
                data,
                batch_sampler=order,
                collate_fn=collate,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=on_gpu,
            )

    def __iter__(self) -> Iterator[Item]:
        return iter(self.loader) if self.loader is not None else self._in_a_thread()

    def _in_a_thread(self) -> Iterator[Item]:
        with ThreadPoolExecutor(1, "read") as pool:
            try:
                for future in in_order(pool, self._read, self.order, AHEAD):
                    yield future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)  # nobody asks for the rest

    def _read(self, keys: list[tuple[int, int]]) -> Item:
        return collate([self.data[key] for key in keys])
