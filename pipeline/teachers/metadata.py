"""Metadata of a teacher of files: options, and the JSON file next to the teacher. They must not contradict."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..common.fileio import printable, read_json
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LIMIT_PX = 2**14
LIMIT_TEXT = 4096
"""Characters of one value, which becomes part of every store of the teacher."""


def read_metadata(path: Path, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file.

    Raises PipelineError for anything but a JSON object, including a pipe or a broken link, and for a key that is not
    one of `keys`.
    """
    if not os.path.lexists(path):
        return {}
    facts = read_json(path, "metadata")
    if not isinstance(facts, dict):
        raise PipelineError(f"metadata {path} holds {type(facts).__name__}, expected an object")
    unknown = sorted(set(facts) - set(facts if keys is None else keys))
    if unknown:
        raise PipelineError(
            f"metadata {path} has unknown key {printable(unknown[0])[:80]!r}, expected {', '.join(keys or ())}: "
            "remove it"
        )
    return facts


def resolve_size(where: str, origin: str, written: object, asked: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) from the metadata or the option. Raises PipelineError as `resolve_text`."""
    if written is None:
        return asked
    if not isinstance(written, list) or len(written) != 2:
        raise PipelineError(f"{where}: {origin} has input_size {written!r}, expected [height, width] in pixels")
    if not all(type(side) is int and 0 < side <= LIMIT_PX for side in written):
        raise PipelineError(f"{where}: {origin} has input_size {written!r}, expected sides of 1 to {LIMIT_PX} pixels")
    size = (written[0], written[1])
    if asked is not None and asked != size:
        raise PipelineError(
            f"{where}: `input_size_px={asked[0]}x{asked[1]}` contradicts {size[0]}x{size[1]} in {origin}: omit the "
            "option or correct the file"
        )
    return size


def resolve_text(where: str, origin: str, key: str, written: object, asked: str | None) -> str | None:
    """Return the value of the metadata (`written`, from `origin`) or of the option (`asked`).

    `where` names the teacher in errors. Raises PipelineError if the two contradict, or the metadata is not text.
    """
    if written is not None and (not isinstance(written, str) or len(written) > LIMIT_TEXT):
        raise PipelineError(
            f"{where}: {origin} has {key} {printable(str(written))[:80]}, expected text of at most {LIMIT_TEXT} "
            "characters"
        )
    if written is not None and asked is not None and written != asked:
        raise PipelineError(
            f"{where}: `{key}={asked}` contradicts {written!r} in {origin}: omit the option or correct the file"
        )
    return asked if written is None else written
