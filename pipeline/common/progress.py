"""How long work tells of itself. The library counts; only the command line prints.

A `Progress` is handed down to every long function. `Silent` is what they use when nobody listens.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

A = TypeVar("A")


class Task(Protocol):
    """One piece of counted work, used as a context manager."""

    def __enter__(self) -> Self:
        """Start counting."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting, whatever happened."""
        ...

    def update(self, done: int = 1, **facts: object) -> None:
        """Count `done` more units; `facts` (such as loss=0.12) are shown beside the count until they change.

        Three facts have a meaning of their own: `img_each`, images of a unit, where the rate is better told in images;
        `kb_each`, what a sample takes in KB of 1000 bytes; and `waits_for`, seconds since the start that the work has
        waited for each thing by its name (a dictionary that may grow in place), shown as shares of the recent past.
        """
        ...


class Progress(Protocol):
    """Makes tasks and passes remarks on to whoever is watching."""

    def task(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        """Announce `total` units of work, of which `done` were finished by an earlier run."""
        ...

    def note(self, text: str) -> None:
        """Say one line that belongs to no task."""
        ...


class _SilentTask:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, done: int = 1, **facts: object) -> None:
        """Count nothing."""


class Silent:
    """A `Progress` that says nothing: the default of every library function."""

    def task(self, title: str, total: int, unit: str, done: int = 0) -> Task:  # noqa: ARG002 - the protocol's shape
        """Return a task that counts nothing."""
        return _SilentTask()

    def note(self, text: str) -> None:
        """Drop the remark."""


class Waits(dict[str, float]):
    """Seconds that work has spent on each thing, or waited for it, by name: what a task shows as `waits_for`."""

    @contextmanager
    def while_at(self, name: str) -> Iterator[Callable[[], None]]:
        """Count the time in the context as spent on `name`; calling what it gives counts what was spent so far."""
        begin = time.monotonic()

        def count() -> None:
            nonlocal begin
            now = time.monotonic()
            self[name] = self.get(name, 0.0) + now - begin
            begin = now

        try:
            yield count
        finally:
            count()

    def before_each(self, name: str, items: Iterable[A]) -> Iterator[A]:
        """The items, each of which was waited for as `name`."""
        rest, end = iter(items), object()
        while True:
            with self.while_at(name):
                item = next(rest, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # it is no end
