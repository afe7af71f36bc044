"""Start the Python of another environment with `worker.py`, and exchange messages with it.

However the run ends, the process ends too: this one kills it, and the system does when this one is killed. The shared
memory has no name, so nothing of it is left over.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from ...errors import OptionError, PipelineError
from .arrays import Receiver, Sender
from .messages import packed, unpacked

WORKER = Path(__file__).resolve().with_name("worker.py")
PACKAGE = Path(__file__).resolve().parents[2]
SILENT_S = 300.0
"""How long a worker may give no sign of life: more is a process that is stopped, or C code that blocks all threads."""
CALL_S = 60 * 60.0
"""How long one call may take: of the factory, which may download weights, or of the model with a batch."""
POLL_S = 0.5
MOST_MESSAGE_BYTES = 2**26
MOST_OUTPUT = 1500
"""Characters of what the process printed last that an error quotes."""
RESUME = "the same command resumes the run"


class WorkerProcess:
    """A process of the Python at `python`. `where` names the teacher in errors. Not thread-safe, except `images`."""

    def __init__(self, python: str, where: str) -> None:
        self.python, self.where = interpreter(python), where
        image_file, result_file = _memory_file("images"), _memory_file("results")
        self.images, self._results = Sender(image_file), Receiver(result_file)
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        life, our_life = os.pipe()
        theirs = (requests, answers, image_file, result_file, life)
        ours = (self._requests, self._answers, our_life)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - an interpreter that the user named, and our own file
                [self.python, str(WORKER), *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=theirs,
                start_new_session=True,
                env=_environment(),
            )
        except OSError as error:
            _close(ours)
            raise PipelineError(
                f"{where}: `teacher_python={self.python}` does not start ({error.strerror}): give the Python of an "
                "environment, such as /path/to/env/bin/python"
            ) from error
        finally:
            _close((requests, answers, life))
        self._printed = _Printed(self._process)
        self._buffer = bytearray()
        self.close = weakref.finalize(self, _end, self._process, ours, os.getpid())
        """Kill the process and everything that it started; at the end of this process at the latest."""
        self._greet()

    def call(self, name: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
        """Return the message with the `answer` to a request, or an `error` of the user's code.

        Raises PipelineError if the process has ended, is silent or takes too long, and ends it.
        """
        if not self.close.alive:
            raise PipelineError(f"{self.where}: its process ({self.python}) has ended; open the teacher again")
        try:
            message = {"call": name, "held": self._results.held(), **request}
            data = memoryview(packed(message))
            while data:
                data = data[os.write(self._requests, data) :]
            answer = self._receive()
        except OSError:
            raise self._ended() from None
        except BaseException:  # Ctrl-C: its answer must not be taken for the next one
            self.close()
            raise
        self.images.settle(answer["held"])
        return answer

    def array(self, entry: dict[str, Any]) -> Any:  # noqa: ANN401 - an array of any type
        """Return the array that a message names. It stays valid as long as it is held."""
        return self._results.get(entry)

    def _greet(self) -> None:
        greeting: Any = self._receive(starting=True).get("hello", {})
        if "lacks" in greeting:
            self.close()
            raise PipelineError(
                f"{self.where}: `teacher_python={self.python}` (Python {greeting['python']}) lacks "
                f"{greeting['lacks']}: install it there, or give the Python of another environment"
            )
        self._printed.shown = True

    def _receive(self, *, starting: bool = False) -> dict[str, Any]:
        """Wait for a message that is more than a sign of life."""
        begin = last = time.monotonic()
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while True:
            if poll.poll(1000 * POLL_S):
                data = os.read(self._answers, 1 << 20)
                if not data:
                    raise self._ended(starting=starting)
                last = time.monotonic()
                message = self._message(data)
                if message is not None:
                    return message
            elif self._process.poll() is not None:  # what it started may still hold the pipe
                raise self._ended(starting=starting)
            self._check_time(begin, last)

    def _message(self, data: bytes) -> dict[str, Any] | None:
        """Add what has arrived, and return a message that is more than a sign of life."""
        self._buffer += data
        try:
            while (message := unpacked(self._buffer)) is not None:
                if "alive" not in message:
                    return message
        except ValueError as error:
            raise self._failed(f"sent what is not a message ({error})") from error
        if len(self._buffer) > MOST_MESSAGE_BYTES:
            raise self._failed(f"sent a message of more than {MOST_MESSAGE_BYTES} bytes")
        return None

    def _check_time(self, begin: float, last: float) -> None:
        now = time.monotonic()
        if now - last > SILENT_S:
            raise self._failed(
                f"has given no sign of life for {SILENT_S:.3g} s: it was stopped, or C code in it blocks all threads"
            )
        if now - begin > CALL_S:
            raise self._failed(
                f"works on one call for more than {CALL_S / 60:.3g} minutes: if it does not hang, use a smaller "
                "`batch_size`"
            )

    def _ended(self, *, starting: bool = False) -> PipelineError:
        """Return the error for a process that ended by itself."""
        with suppress(subprocess.TimeoutExpired):  # its pipe closes first
            self._process.wait(5)
        status = self._process.returncode
        if status is not None and status < 0:
            reason = next((f"signal {each.name}" for each in signal.Signals if each == -status), f"signal {-status}")
            if status == -signal.SIGKILL:
                reason += ", as the system does when memory is full (then use a smaller `batch_size`)"
        else:
            reason = f"exit status {status}"
        self.close()
        if starting:
            return PipelineError(
                f"{self.where}: `teacher_python={self.python}` ended with {reason} instead of running {WORKER.name}: "
                f"give the Python of an environment, such as /path/to/env/bin/python{self._printed.quoted()}"
            )
        return PipelineError(
            f"{self.where}: its process ({self.python}) ended with {reason}; {RESUME}{self._printed.quoted()}"
        )

    def _failed(self, what: str) -> PipelineError:
        """Kill the process and return the error for it."""
        self.close()
        return PipelineError(f"{self.where}: its process ({self.python}) {what}; {RESUME}{self._printed.quoted()}")


class _Printed:
    """What a process prints: the last lines are kept, and all is passed on to our stderr once `shown` is set."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.shown = False
        self._last: deque[bytes] = deque(maxlen=64)
        assert process.stdout is not None
        self._thread = Thread(target=self._read, args=(process.stdout,), name="teacher output", daemon=True)
        self._thread.start()

    def quoted(self) -> str:
        """Return the last lines for an error message, or nothing. Waits for the end of the process."""
        self._thread.join(1)
        text = b"".join(self._last).decode(errors="replace")[-MOST_OUTPUT:].strip()
        return f"; it printed last:\n{text}" if text else ""

    def _read(self, pipe: Any) -> None:  # noqa: ANN401 - a pipe of subprocess
        with pipe:
            while data := os.read(pipe.fileno(), 1 << 12):
                self._last.append(data)
                if self.shown:
                    with suppress(OSError):
                        os.write(2, data)


def interpreter(python: str) -> str:
    """Return the absolute path of a Python, links kept: they tell an environment.

    A name without a folder is looked up in PATH. Raises OptionError for a missing file.
    """
    given = os.path.expanduser(python)  # noqa: PTH111 - text in, text out
    found = given if os.sep in given else shutil.which(given)
    expected = "the Python of an environment, such as /path/to/env/bin/python"
    if found is None or not Path(found).is_file():
        inside = Path(given) / "bin" / "python"
        raise OptionError("teacher_python", python, f"{expected}; try {inside}" if inside.is_file() else expected)
    return os.path.abspath(found)  # noqa: PTH100 - resolving links would leave the environment


def search_folders() -> tuple[list[str], list[str]]:
    """Return folders to search for modules before and after those of the environment: the current one, PYTHONPATH.

    Those that hold this package come last, where it does not replace another package of its name.
    """
    folders = [str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    ours = [folder for folder in folders if Path(folder, PACKAGE.name).resolve() == PACKAGE]
    return [folder for folder in folders if folder not in ours], ours


def _environment() -> dict[str, str]:
    """Return the variables of this process without those about its own Python; `search_folders` has PYTHONPATH."""
    dropped = {"PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"}
    return {**{name: text for name, text in os.environ.items() if name not in dropped}, "PYTHONUNBUFFERED": "1"}


def _memory_file(name: str) -> int:
    """Return a file in memory; without memfd (macOS), one on disk without a name."""
    if sys.platform == "linux":
        return os.memfd_create(f"teacher-{name}")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(process: subprocess.Popen[bytes], descriptors: tuple[int, ...], owner: int) -> None:
    if os.getpid() != owner:  # a fork
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # with what it started
    process.wait()
    _close(descriptors)


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
