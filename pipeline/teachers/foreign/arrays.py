"""Arrays in shared memory, between this process and a worker in another environment.

A place in a shared file is used again when neither process holds an array in it, so each side tells the other which
places it still holds. The worker imports this file by its path: it needs Python 3.8 and numpy, and nothing of ours.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Place:
    """A part of a shared file that holds one array at a time."""

    def __init__(self, fd: int, at: int, capacity: int) -> None:
        self.capacity = capacity
        self.memory = mmap.mmap(fd, capacity, offset=at)
        self.array: Callable[[], Any] = lambda: None
        """A weak reference to the bytes that this process uses; None once they are freed."""
        self.lent = False
        """Whether the other process has them."""
        self.entry: dict[str, Any] = {}
        self.address = np.frombuffer(self.memory, np.uint8, 1).ctypes.data

    def bytes(self, count: int) -> Any:
        """Return the first bytes as an array. Views of it keep it alive, and tensors on it."""
        whole = np.frombuffer(self.memory, np.uint8, max(count, 1))
        self.array = weakref.ref(whole)
        return whole[:count]

    def is_free(self) -> bool:
        """Return whether neither process uses it."""
        return not self.lent and self.array() is None


class Sender:
    """Arrays that the other process reads without a copy. Thread-safe. Closes `fd` when it is freed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        self._places: dict[int, Place] = {}
        self._end = 0
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: str) -> tuple[dict[str, Any], Any]:
        """Return a new array of this shape, and the entry of a message that names it."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._lock:
            at = self._place_for(max(count, 1))
            place = self._places[at]
            array = place.bytes(count).view(dtype).reshape(shape)
            place.entry = {"at": at, "capacity": place.capacity, "dtype": dtype, "shape": list(shape)}
        return place.entry, array

    def entry_of(self, address: int, shape: Sequence[int]) -> dict[str, Any] | None:
        """Return the entry of the array of this shape at an address; None if there is none."""
        with self._lock:
            for place in self._places.values():
                if place.address == address and place.entry["shape"] == list(shape) and place.array() is not None:
                    return place.entry
        return None

    def lend(self, at: int) -> None:
        """Note that the other process gets the array of a place."""
        self._places[at].lent = True

    def settle(self, held: Sequence[int]) -> None:
        """Take back every place that the other process does not hold."""
        with self._lock:
            for at, place in self._places.items():
                place.lent = place.lent and at in held

    def _place_for(self, count: int) -> int:
        free = [at for at, place in self._places.items() if place.is_free()]
        for at in free:
            if self._places[at].capacity >= count:
                return at
        for at in free:  # too small: return its memory to the system
            with suppress(AttributeError, OSError):
                self._places[at].memory.madvise(mmap.MADV_REMOVE)
        at, capacity = self._end, -(-count // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        os.truncate(self._fd, at + capacity)
        self._places[at] = Place(self._fd, at, capacity)
        self._end += capacity
        return at


class Receiver:
    """Arrays that the other process sent. Closes `fd` when it is freed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        self._places: dict[int, Place] = {}

    def get(self, entry: dict[str, Any]) -> Any:
        """Return the array of an entry. Raises ValueError for an entry that the file does not hold."""
        at, capacity, shape, dtype = entry["at"], entry["capacity"], entry["shape"], np.dtype(entry["dtype"])
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if dtype.hasobject or not 0 <= count <= capacity or not 0 <= at <= os.fstat(self._fd).st_size - capacity:
            raise ValueError(f"no such array: {entry}")
        if at not in self._places:
            self._places[at] = Place(self._fd, at, capacity)
        return self._places[at].bytes(count).view(dtype).reshape(shape)

    def held(self) -> list[int]:
        """Return the places whose arrays are still used here."""
        return [at for at, place in self._places.items() if not place.is_free()]


def numbers(rows: list[list[Any]]) -> Any:
    """Return an array (B, n) float32 of rows of a message, whose None is NaN."""
    return np.array(rows, np.float32)
