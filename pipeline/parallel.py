"""Work done ahead in threads, handed on in order, with a bound on how much lies waiting."""

from __future__ import annotations

import os
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

A = TypeVar("A")
B = TypeVar("B")


def cores() -> int:
    """Cores that this process may use; of the machine where the system does not tell (macOS, Windows)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[Future[B]]:
    """Futures of `function` over `items` in their order, with at most `ahead` under way."""
    rest = iter(items)
    queue = deque(pool.submit(function, item) for item in islice(rest, ahead))
    while queue:
        yield queue.popleft()
        queue.extend(pool.submit(function, item) for item in islice(rest, 1))
