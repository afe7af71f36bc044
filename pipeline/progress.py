"""How long work tells of itself. The library counts; only the command line prints.

A `Progress` is handed down to every long function. `Silent` is what they use when nobody listens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType


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
        """Count `done` more units; `facts` (such as loss=0.12) are shown beside the count."""
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
