"""Progress of long work. Long functions take a `Progress`, by default `Silent`; only the command line prints."""

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
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting, also after an error."""
        ...

    def update(self, done: int = 1, **facts: object) -> None:
        """Count `done` more units; `facts` (such as loss=0.12) are shown until they change.

        Three facts have a special meaning: `img_each`, images in a unit, to show the rate in images; `kb_each`, size of
        a sample in KB of 1000 bytes; `waits_for`, seconds waited since the start by name (a dictionary that may change
        in place), shown as fractions of the recent time.
        """
        ...


class Progress(Protocol):
    """Makes tasks and shows notes."""

    def task(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        """Return a task of `total` units, of which an earlier run finished `done`."""
        ...

    def note(self, text: str) -> None:
        """Show one line."""
        ...


class _SilentTask:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, done: int = 1, **facts: object) -> None:
        """Count nothing."""


class Silent:
    """A `Progress` that shows nothing."""

    def task(self, title: str, total: int, unit: str, done: int = 0) -> Task:  # noqa: ARG002 - the protocol's shape
        """Return a task that counts nothing."""
        return _SilentTask()

    def note(self, text: str) -> None:
        """Ignore the note."""


class Waits(dict[str, float]):
    """Seconds spent on, or waiting for, each thing by name: the fact `waits_for` of a task."""

    @contextmanager
    def while_at(self, name: str) -> Iterator[Callable[[], None]]:
        """Count the time in the context as spent on `name`. The function it yields updates the count meanwhile."""
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
        """Yield the items, and count the time until each arrives as spent on `name`."""
        iterator, end = iter(items), object()
        while True:
            with self.while_at(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # not `end`
