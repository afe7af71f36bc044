"""What the command line shows: progress with the time left, and tables.

In a terminal there is one line that moves; in a log, plain lines now and then.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from tqdm import tqdm

LOG_EVERY_S = 10.0


class ConsoleTask:
    """A `progress.Task` on stderr."""

    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.before = done
        self._bar: tqdm[None] | None = None
        self._begin = self._told = 0.0

    def __enter__(self) -> Self:
        self._begin = self._told = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.title,
                total=self.total,
                initial=self.done,
                unit=self.unit,
                dynamic_ncols=True,
                leave=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self.total:
            seconds = time.monotonic() - self._begin
            click.echo(f"{self.title}: {self.done}/{self.total} {self.unit} in {_duration(seconds)}", err=True)

    def update(self, done: int = 1, **facts: object) -> None:
        """Count, and say so if it is time."""
        self.done += done
        if self._bar is not None:
            self._bar.set_postfix({name: str(value) for name, value in facts.items()}, refresh=False)
            self._bar.update(done)
            return
        now = time.monotonic()
        if now - self._told < LOG_EVERY_S:
            return
        self._told = now
        rate = (self.done - self.before) / (now - self._begin)
        left = _duration((self.total - self.done) / rate) if rate else "?"
        told = "".join(f", {name} {value}" for name, value in facts.items())
        click.echo(
            f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, {left} left{told}",
            err=True,
        )


class Console:
    """A `progress.Progress` on stderr."""

    def task(self, title: str, total: int, unit: str, done: int = 0) -> ConsoleTask:
        """Announce counted work."""
        return ConsoleTask(title, total, unit, done)

    def note(self, text: str) -> None:
        """Say one line."""
        click.echo(text, err=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text: the first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])
