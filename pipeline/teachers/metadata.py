"""What people say about a teacher that comes as files: with flags, or in a JSON file that lies beside it."""

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
"""Characters of one fact. It goes into every store of the teacher."""


def read_sidecar(path: Path, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """The facts of a JSON file, none where no such file is there.

    Raises PipelineError for what is there and is no JSON object, a pipe or a dangling link included, and for a key that
    is none of `keys`.
    """
    if not os.path.lexists(path):
        return {}
    facts = read_json(path, "description")
    if not isinstance(facts, dict):
        raise PipelineError(f"description {path}: {type(facts).__name__}, expected an object")
    unknown = sorted(set(facts) - set(facts if keys is None else keys))
    if unknown:
        raise PipelineError(
            f"description {path}: key {printable(unknown[0])[:80]!r}, expected {', '.join(keys or ())}: take it out"
        )
    return facts


def agreed_size(where: str, origin: str, written: object, asked: tuple[int, int] | None) -> tuple[int, int] | None:
    """The (height, width) that both say, or the one that says anything. Raises PipelineError as `agreed`."""
    if written is None:
        return asked
    if not isinstance(written, list) or len(written) != 2:
        raise PipelineError(f"{where}: {origin} says input_size {written!r}, expected [height, width] in pixels")
    if not all(type(side) is int and 0 < side <= LIMIT_PX for side in written):
        raise PipelineError(f"{where}: {origin} says input_size {written!r}, expected sides of 1 to {LIMIT_PX} pixels")
    size = (written[0], written[1])
    if asked not in {None, size}:
        raise PipelineError(
            f"{where}: input_size {asked} asked for but {origin} says {size}; leave the flag out, or correct the file"
        )
    return size


def agreed(where: str, origin: str, key: str, written: object, asked: str | None) -> str | None:
    """What both say, or the one that says anything.

    `where` names the teacher in errors, `origin` what `written` stands in. Raises PipelineError for two that
    contradict each other, and for a fact that is no text.
    """
    if written is not None and (not isinstance(written, str) or len(written) > LIMIT_TEXT):
        raise PipelineError(
            f"{where}: {origin} says {key} {printable(str(written))[:80]}, expected a text of at most "
            f"{LIMIT_TEXT} characters"
        )
    if written is not None and asked is not None and written != asked:
        raise PipelineError(
            f"{where}: {key} {asked!r} asked for but {origin} says {written!r}; leave the flag out, or correct the file"
        )
    return asked if written is None else written
