"""Messages between this process and a worker in another environment, which imports this file by its path.

A message is its length (4 bytes, big-endian) and as many bytes of JSON.
"""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTH = struct.Struct(">I")


def packed(message: dict[str, Any]) -> bytes:
    """Return the bytes of a message."""
    data = json.dumps(message).encode()
    return LENGTH.pack(len(data)) + data


def unpacked(buffer: bytearray) -> dict[str, Any] | None:
    """Take the first message out of the bytes that have arrived; None if it is not complete.

    Raises ValueError for anything else.
    """
    if len(buffer) < LENGTH.size:
        return None
    end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    message = json.loads(buffer[LENGTH.size : end].decode())
    del buffer[:end]
    if not isinstance(message, dict):
        raise ValueError(f"{type(message).__name__}, expected an object")  # noqa: TRY004 - one error for all
    return message
