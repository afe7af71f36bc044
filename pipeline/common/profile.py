"""Records when each part of a pipeline worked: the fraction of time it waited, and a timeline."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .fileio import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_SPANS = 200_000
"""Later spans are counted but not listed: memory and file stay at about 25 MB for any data set."""


class Profile:
    """Spans of work, by part and thread. Safe in threads.

    Args:
        record: keep the spans for `write`; otherwise only the total time of each part is kept.
    """

    def __init__(self, *, record: bool = False) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._start_s = time.perf_counter()
        self._active: dict[str, int] = {}
        self._active_since_s: dict[str, float] = {}
        self._busy_s: dict[str, float] = {}
        self._spans: list[tuple[str, int, float, float]] = []
        self._thread_names: dict[int, str] = {}

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Count the time in the context as work of `part`."""
        begin_s = time.perf_counter()
        with self._lock:
            if not self._active.get(part):
                self._active_since_s[part] = begin_s
            self._active[part] = self._active.get(part, 0) + 1
        try:
            yield
        finally:
            end_s = time.perf_counter()
            with self._lock:
                self._active[part] -= 1
                if not self._active[part]:
                    busy_s = end_s - self._active_since_s[part]
                    self._busy_s[part] = self._busy_s.get(part, 0.0) + busy_s
                if self._record and len(self._spans) < MAX_SPANS:
                    thread = threading.current_thread()
                    self._thread_names[thread.native_id or 0] = thread.name
                    self._spans.append((part, thread.native_id or 0, begin_s, end_s))

    def waiting(self) -> dict[str, float]:
        """Return for each part the fraction of the time since the start in which no thread worked on it."""
        with self._lock:
            total_s = max(time.perf_counter() - self._start_s, 1e-9)
            return {part: max(0.0, 1 - busy_s / total_s) for part, busy_s in self._busy_s.items()}

    def write(self, path: Path) -> None:
        """Write a Chrome trace (JSON) for https://ui.perfetto.dev or chrome://tracing. Raises OSError."""
        with self._lock:
            spans, names = list(self._spans), dict(self._thread_names)
        events: list[dict[str, object]] = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": thread, "args": {"name": name}}
            for thread, name in names.items()
        ]
        events += [
            {
                "name": part,
                "ph": "X",
                "pid": 1,
                "tid": thread,
                "ts": round(1e6 * (begin_s - self._start_s), 1),
                "dur": round(1e6 * (end_s - begin_s), 1),
            }
            for part, thread, begin_s, end_s in spans
        ]
        write_durably(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
