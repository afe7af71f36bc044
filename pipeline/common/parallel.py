"""Threads: results in order with bounded prefetching, and calls that Ctrl-C can interrupt."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import ThreadPoolExecutor

A = TypeVar("A")
B = TypeVar("B")
SHARED_BY = ("TIEKD_PROCESSES", "LOCAL_WORLD_SIZE")
"""Environment variables with the number of processes of a run on this machine: ours for `local:N`, and torchrun's."""
MAX_THREADS = 8
"""More threads rarely help: the disk or the network is the limit."""


def cores() -> int:
    """Return the number of cores that this process may use; on macOS, of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_threads(asked: int | None = None) -> int:
    """Return the number of threads to read, encode or hash with.

    `asked`, or one for each of this process's part of the cores, up to MAX_THREADS.
    """
    processes = next((os.environ[name] for name in SHARED_BY if os.environ.get(name, "").isdecimal()), "1")
    return asked or max(1, min(MAX_THREADS, cores() // max(1, int(processes))))


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[Future[B]]:
    """Yield futures of `function` over `items` in order, with at most `ahead` submitted."""
    remaining = iter(items)
    queue = deque(pool.submit(function, item) for item in islice(remaining, ahead))
    while queue:
        yield queue.popleft()
        queue.extend(pool.submit(function, item) for item in islice(remaining, 1))


class Aside:
    """A thread that runs calls one at a time, while the caller can be interrupted and can show progress.

    A call into C code ignores Ctrl-C until it returns. The thread is a daemon, so a call that never returns does not
    keep the process alive.
    """

    def __init__(self, name: str = "aside") -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._submitted: deque[Future[Any]] = deque()
        self._thread: Thread | None = None

    left: ClassVar[list[Future[Any]]] = []
    """Calls that may still run after an interrupt."""

    @classmethod
    def is_left_running(cls) -> bool:
        """Return whether a call still runs after an interrupt: C++ code may crash when the process exits."""
        return any(not future.done() for future in cls.left)

    def call(self, function: Callable[[], A], every_s: float, beat: Callable[[], None]) -> A:
        """Call `function` in the thread; return its value or raise its error. Call `beat` every `every_s` seconds."""
        return self.wait(self.submit(function), every_s, beat)

    def submit(self, function: Callable[[], A]) -> Future[A]:
        """Queue a call."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[A] = Future()
        self._calls.put((function, future))
        self._submitted.append(future)
        return future

    def wait(self, future: Future[A], every_s: float, beat: Callable[[], None]) -> A:
        """Wait for a submitted call as `call` does."""
        try:
            while True:
                try:
                    return future.result(every_s)
                except TimeoutError:
                    if future.done():  # the function raised it
                        raise
                    beat()
        except KeyboardInterrupt:
            self.left.extend(other for other in self._submitted if not other.cancel())
            raise
        finally:
            while self._submitted and self._submitted[0].done():
                self._submitted.popleft()

    def close(self) -> None:
        """End the thread after its current call."""
        self._calls.put(None)

    def _run(self) -> None:
        while call := self._calls.get():
            function, future = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised in `wait`
                future.set_exception(error)
            del call, function, future  # free what they hold before waiting for the next call
