"""Read one channel of an OpenEXR file with the package OpenEXR (extra `exr`).

The package runs in processes of their own (`exr_worker.py`): some damaged files end the process that reads them.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ...errors import PipelineError
from .images import check_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader, BufferedWriter

    from numpy.typing import NDArray

WORKER = Path(__file__).with_name("exr_worker.py")
CHANNELS = ("z", "depth", "y", "r")
"""Names of a depth channel, most specific first: Z is OpenEXR's convention; others write depth as Y (gray) or R."""
DTYPES: dict[str, np.dtype[Any]] = {"HALF": np.dtype("<f2"), "FLOAT": np.dtype("<f4")}


class _UnreadableError(Exception):
    """The file could not be read; its message says why."""


class _Worker:
    """A process that reads one file at a time."""

    def __init__(self) -> None:
        # -P: the folder of the script is not searched for modules.
        self._process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._requests = cast("BufferedWriter", self._process.stdin)
        self._answers = cast("BufferedReader", self._process.stdout)

    def header(self, data: bytes) -> dict[str, Any]:
        """Return `height`, `width` and `channels` of a file's bytes."""
        return self._ask(len(data).to_bytes(8, "little"), data)

    def planes(self, names: Sequence[str], sizes: Sequence[int]) -> list[bytearray]:
        """Return the values of channels, given the bytes of each."""
        there = self._ask(json.dumps(list(names)).encode() + b"\n")["sizes"]
        if there != list(sizes):
            raise _UnreadableError(f"channels of {there} bytes, expected {list(sizes)}")
        planes = [bytearray(size) for size in sizes]
        for plane in planes:
            if self._answers.readinto(plane) != len(plane):
                raise self._died()
        return planes

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(BrokenPipeError):  # a request that it no longer read
                pipe.close()

    def _ask(self, *parts: bytes) -> dict[str, Any]:
        try:
            for part in parts:
                self._requests.write(part)
            self._requests.flush()
        except BrokenPipeError:
            raise self._died() from None
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _UnreadableError(answer["error"])
        return answer

    def _died(self) -> _UnreadableError:
        status = self._process.wait()
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return _UnreadableError(f"the package OpenEXR ended on it with {reason}")


_idle: dict[int, list[_Worker]] = {}
"""Workers that wait for a file, by process: a fork must not use its parent's. One for each thread that ever read."""


def read_exr(data: bytes, where: str) -> NDArray[Any]:
    """Return the depth channel (H, W), float16 or float32, of a file's bytes.

    Raises PipelineError that begins with `where`: no OpenEXR, a damaged file, no depth channel.
    """
    if find_spec("OpenEXR") is None:
        raise PipelineError(f"{where}: .exr files need OpenEXR: run `pip install 'tiekd-pipeline[exr]'`")
    idle = _idle.setdefault(os.getpid(), [])
    try:
        worker = idle.pop()
    except IndexError:
        worker = _Worker()
    whole = False
    try:
        depth = _read(worker, data, where)
        whole = True
    except _UnreadableError as error:
        raise PipelineError(f"{where}: not an .exr file, or damaged ({error}): copy or write it again") from error
    finally:
        if whole:
            idle.append(worker)
        else:
            worker.close()
    return depth


def _read(worker: _Worker, data: bytes, where: str) -> NDArray[Any]:
    header = worker.header(data)
    shape = header["height"], header["width"]
    check_pixels(*shape, where)
    channels = header["channels"]
    name = _depth_channel(list(channels), where)
    names = [name]
    if name.rpartition(".")[2].lower() == "r":  # depth that was saved as a gray RGB image, or a photograph
        others = {name[:-1].lower() + letter for letter in "gb"}
        names += [other for other in channels if other.lower() in others]
    for each in names:
        kind, *sampling = channels[each]
        if kind not in DTYPES or sampling != [1, 1]:
            raise PipelineError(
                f"{where}: channel {each!r} is {kind}, sampled every {sampling[0]}x{sampling[1]} pixels, expected HALF "
                "or FLOAT at every pixel: write it as FLOAT"
            )
    dtypes = [DTYPES[channels[each][0]] for each in names]
    planes = worker.planes(names, [shape[0] * shape[1] * dtype.itemsize for dtype in dtypes])
    arrays = [np.frombuffer(plane, dtype).reshape(shape) for plane, dtype in zip(planes, dtypes, strict=True)]
    if any(not np.array_equal(arrays[0], other, equal_nan=True) for other in arrays[1:]):
        raise PipelineError(
            f"{where}: channels {', '.join(names)} differ, so this is a color image: write depth as one channel"
        )
    return arrays[0]


def _depth_channel(names: list[str], where: str) -> str:
    """Return the depth channel's name; a name may have layers before its last dot."""
    if len(names) == 1:
        return names[0]
    for wanted in CHANNELS:
        found = [name for name in names if name.rpartition(".")[2].lower() == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            break
    listed = ", ".join(repr(name[:80]) for name in names[:20]) or "(none)"
    raise PipelineError(f"{where}: channels {listed}, expected one, or one of Z, depth, Y or R: write depth alone")
