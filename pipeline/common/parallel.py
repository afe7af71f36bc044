"""Work done ahead in threads, returned in order, with a bound on what is pending."""

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
MOST_THREADS = 8
"""More rarely help: the disk or the network is the limit."""


def cores() -> int:
    """Return the number of cores that this process may use; on macOS, of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_threads(asked: int | None = None) -> int:
    """Return the number of threads to read, encode or hash with: `asked`, or one per core up to MOST_THREADS."""
    return asked or min(MOST_THREADS, cores())


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[Future[B]]:
    """Yield futures of `function` over `items` in order, with at most `ahead` submitted."""
    rest = iter(items)
    queue = deque(pool.submit(function, item) for item in islice(rest, ahead))
    while queue:
        yield queue.popleft()
        queue.extend(pool.submit(function, item) for item in islice(rest, 1))


class Aside:
    """Runs calls one at a time in a thread, so that the caller can be interrupted and can show progress.

    A call into C does not react to Ctrl-C before it returns. The thread is a daemon, so a call that never ends does not
    keep the process alive.
    """

    def __init__(self, name: str = "aside") -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._submitted: deque[Future[Any]] = deque()
        self._thread: Thread | None = None

    left: ClassVar[list[Future[Any]]] = []
    """Interrupted calls that may still run."""

    @classmethod
    def is_left_running(cls) -> bool:
        """Return whether an interrupted call still runs: C++ code may crash when the process ends."""
        return any(not future.done() for future in cls.left)

    def call(self, function: Callable[[], A], every_s: float, beat: Callable[[], None]) -> A:
        """Return or raise what `function` does; call `beat` every `every_s` seconds meanwhile."""
        return self.wait(self.submit(function), every_s, beat)

    def submit(self, function: Callable[[], A]) -> Future[A]:
        """Queue a call behind those that were submitted before."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[A] = Future()
        self._calls.put((function, future))
        self._submitted.append(future)
        return future

    def wait(self, future: Future[A], every_s: float, beat: Callable[[], None]) -> A:
        """Return or raise what a submitted call does; call `beat` every `every_s` seconds meanwhile."""
        try:
            while True:
                try:
                    return future.result(every_s)
                except TimeoutError:
                    if future.done():  # it is the function's own
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
            except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
                future.set_exception(error)
            del call, function, future  # and what they hold, while the next is waited for
