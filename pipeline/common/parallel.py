"""Work done ahead in threads, handed on in order, with a bound on how much lies waiting."""

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
"""More hardly help: the disk or the network that they feed is the limit."""


def cores() -> int:
    """Cores that this process may use; of the machine where the system does not tell (macOS, Windows)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_threads(asked: int | None = None) -> int:
    """How many threads read, encode or hash: what was asked for, else one a core, at most MOST_THREADS."""
    return asked or min(MOST_THREADS, cores())


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[Future[B]]:
    """Futures of `function` over `items` in their order, with at most `ahead` under way."""
    rest = iter(items)
    queue = deque(pool.submit(function, item) for item in islice(rest, ahead))
    while queue:
        yield queue.popleft()
        queue.extend(pool.submit(function, item) for item in islice(rest, 1))


class Aside:
    """Runs calls in one thread of its own, one at a time, while whoever calls can be interrupted and can show life.

    A call into C does not see Ctrl-C before it returns. The thread is a daemon: one that never ends keeps no process.
    """

    def __init__(self, name: str = "aside") -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._submitted: deque[Future[Any]] = deque()
        self._thread: Thread | None = None

    left: ClassVar[list[Future[Any]]] = []
    """Calls that were interrupted, and may still run."""

    @classmethod
    def is_left_running(cls) -> bool:
        """Whether a call that was interrupted still runs: C++ that is at work does not survive the end of a process."""
        return any(not future.done() for future in cls.left)

    def call(self, function: Callable[[], A], every_s: float, beat: Callable[[], None]) -> A:
        """What `function` returns or raises; `beat` is called each `every_s` seconds until then."""
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
        """What a submitted call returns or raises; `beat` is called each `every_s` seconds until then."""
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
        """Let the thread end, after the call that it is at."""
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
