"""What a worker says about values and errors of the user's code. It imports this file by its path, as `arrays.py`."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .arrays import Sender

MOST_TEXT = 500
"""Characters of an error's message that are passed on."""
MOST_TRACE = 2000
"""Characters of the end of a traceback that are passed on."""


class TooLargeError(Exception):
    """An answer has more bytes than allowed."""


class Encoder:
    """Encodes what a user's code returned: numbers and text as JSON, arrays and tensors in the shared file."""

    def __init__(self, sender: Sender, limit_bytes: int, fields: Sequence[str]) -> None:
        self._sender = sender
        self._left = limit_bytes
        self._fields = set(fields)

    def encode(self, value: Any, levels: int = 3) -> Any:
        """Return one key that names the type, and the content. Raises TooLargeError."""
        if value is None or isinstance(value, (bool, int, float)):
            return {"json": value}
        array = self._array(value)
        if array is not None:
            return {"array": array}
        fields = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None) or ()
        if levels and "depth" in fields and self._fields.issuperset(fields):
            return {"output": [[name, self.encode(getattr(value, name), levels - 1)] for name in fields]}
        if levels and isinstance(value, tuple):
            return {"tuple": [self.encode(item, levels - 1) for item in value]}
        if levels and isinstance(value, dict):
            return {"dict": [[str(key)[:MOST_TEXT], self.encode(item, levels - 1)] for key, item in value.items()]}
        return {"other": [type(value).__name__, str(value)[:MOST_TEXT]]}

    def _array(self, value: Any) -> dict[str, Any] | None:
        """Copy a tensor or array of numbers into the shared file; None if it is neither."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor) and value.layout is torch.strided:
            if value.is_floating_point() and value.dtype not in {torch.float16, torch.float32, torch.float64}:
                value = value.float()  # numpy has no bfloat16
            with suppress(TypeError):  # numpy has no such type
                entry, array = self._empty(value.shape, np.dtype(str(value.dtype).rpartition(".")[2]))
                torch.from_numpy(array).copy_(value.detach())
                return entry
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
            entry, array = self._empty(value.shape, value.dtype.newbyteorder("="))
            array[...] = value
            return entry
        return None

    def _empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[dict[str, Any], Any]:
        self._left -= int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if self._left < 0:
            raise TooLargeError
        entry, array = self._sender.empty(tuple(shape), dtype.str)
        self._sender.lend(entry["at"])
        return entry, array


def described(error: BaseException) -> dict[str, Any]:
    """Return what an error answer has of an exception of the user's code."""
    ours = str(Path(__file__).parent)
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(ours)]
    lines = traceback.format_list(frames) + traceback.format_exception_only(type(error), error)
    return {
        "type": type(error).__name__,
        "text": str(error)[:MOST_TEXT],
        "at": f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else None,
        "trace": "".join(lines)[-MOST_TRACE:],
    }
