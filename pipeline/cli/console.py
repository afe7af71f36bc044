"""Output of the command line: progress with rate and time left, and tables.

A terminal shows one line that is updated; a log gets a line from time to time. Both show the same:

    cache teacher: 120/400 img, 17.3 img/s, 0:16 left, 82.4 KB each, waits: teacher 93 %, reading 5 %, writing 2 %
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Self

import click

from ..common.fileio import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from tqdm import tqdm

LOG_FIRST_S = 2.0
"""The first line of a log comes early, to show that work has begun."""
LOG_EVERY_S = 10.0
TERMINAL_EVERY_S = 0.1
RECENT_S = 60.0
"""Rates, fractions of waiting and the time left are computed over this recent period."""
SNAPSHOT_EVERY_S = 1.0
MIN_WAIT_FRACTION = 0.005
"""Smaller fractions of waiting are not printed."""


def echo(text: object = "", *, err: bool = False) -> None:
    """Print text with control characters escaped: text from a file could move the cursor.

    All commands print with this function.
    """
    click.echo(printable(str(text)), err=err)


def one_line(text: object) -> str:
    """Return text from a file with control characters and line breaks escaped, to print within a line."""
    return printable(str(text)).replace("\n", "\\n")


class _Snapshot(NamedTuple):
    """Progress at one moment."""

    at_s: float
    done: int
    waits_s: Mapping[str, float]


class ConsoleTask:
    """A `progress.Task` on stderr."""

    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = done
        self._facts: dict[str, object] = {}
        self._snapshots: deque[_Snapshot] = deque()
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Self:
        self._first = _Snapshot(monotonic(), self.done, {})
        self._snapshots.append(self._first)
        self._next_s = self._first.at_s + LOG_FIRST_S
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._next_s = self._first.at_s
            self._bar = tqdm(
                desc=one_line(self.title),
                total=self.total,
                initial=self.done,
                bar_format="{desc} {percentage:3.0f}%|{bar:12}|{postfix}",
                dynamic_ncols=True,
                leave=True,
            )
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = self._snapshot()
        ended = "in" if error_type is None and self.done >= self.total else "stopped after"
        rate, *others = self._rate_and_facts(self._first, now)
        took = f"{self._count()} {ended} {_duration(now.at_s - self._first.at_s)}"
        self._show([took, *([rate] if now.done > self._first.done else []), *others])
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int = 1, **facts: object) -> None:
        """Count, and print if it is time to."""
        self.done += done
        self._facts |= facts
        now = self._snapshot()
        if now.at_s - self._snapshots[-1].at_s >= SNAPSHOT_EVERY_S:
            self._snapshots.append(now)
        # Keep one older snapshot, so that slow work has a rate too
        while len(self._snapshots) > 2 and now.at_s - self._snapshots[1].at_s >= RECENT_S:
            self._snapshots.popleft()
        if now.at_s < self._next_s:
            return
        self._next_s = now.at_s + (LOG_EVERY_S if self._bar is None else TERMINAL_EVERY_S)
        since = self._snapshots[0]
        rate, *others = self._rate_and_facts(since, now)
        finished = now.done - since.done
        left = _duration((self.total - now.done) * (now.at_s - since.at_s) / finished) if finished else "?"
        self._show([self._count(), rate, f"{left} left", *others])

    def _snapshot(self) -> _Snapshot:
        waits = self._facts.get("waits_for")
        return _Snapshot(monotonic(), self.done, dict(waits) if isinstance(waits, Mapping) else {})

    def _count(self) -> str:
        if self.unit == "B":
            return f"{_bytes(self.done)}/{_bytes(self.total)}"
        return f"{self.done}/{self.total} {self.unit}"

    def _rate_and_facts(self, since: _Snapshot, now: _Snapshot) -> list[str]:
        """Return the rate between two snapshots, the facts, and the fractions of time spent waiting."""
        facts = dict(self._facts)
        each, unit = facts.pop("img_each", None), self.unit
        rate = (now.done - since.done) / max(now.at_s - since.at_s, 1e-9)
        if isinstance(each, int | float):
            rate, unit = rate * each, "img"
        parts = [f"{_bytes(rate)}/s" if unit == "B" else f"{_number(rate)} {unit}/s"]
        waits, kb_each = facts.pop("waits_for", None), facts.pop("kb_each", None)
        parts += [f"{name} {_number(value)}" for name, value in facts.items()]
        if isinstance(kb_each, int | float):
            parts.append(f"{_bytes(1e3 * kb_each)} each")
        if isinstance(waits, str):
            parts.append(f"waits for {waits}")
        seconds = {name: now.waits_s[name] - since.waits_s.get(name, 0.0) for name in now.waits_s}
        total = sum(seconds.values())
        if total > 0:
            names = sorted(seconds, key=lambda name: -seconds[name])
            waiting = [
                f"{name} {seconds[name] / total:.0%}" for name in names if seconds[name] > MIN_WAIT_FRACTION * total
            ]
            parts.append(f"waits: {', '.join(waiting)}".replace("%", " %"))
        return parts

    def _show(self, parts: list[str]) -> None:
        text = ", ".join(parts)
        if self._bar is not None:
            self._bar.n = self.done
            self._bar.set_postfix_str(one_line(text))
        elif self.total:
            echo(f"{self.title}: {text}", err=True)


class Console:
    """A `progress.Progress` on stderr."""

    def task(self, title: str, total: int, unit: str, done: int = 0) -> ConsoleTask:
        """Return a task that prints its progress."""
        return ConsoleTask(title, total, unit, done)

    def note(self, text: str) -> None:
        """Print one line."""
        from .flags import with_flags  # it imports all commands

        echo(with_flags(text), err=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: object) -> str:
    """Format a float with three significant digits, or all integer digits; other values unchanged."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 100 <= abs(value) < 1e9 else f"{value:#.3g}".rstrip(".")


def _bytes(count: float) -> str:
    """Format a number of bytes with three digits, such as 82.4 KB."""
    value, unit = count / 1e3, "KB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1e3, larger
    return f"{_number(value)} {unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as aligned text, with the first column left-aligned. Control characters in cells are escaped."""
    head, rows = [one_line(cell) for cell in head], [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])
