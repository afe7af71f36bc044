"""What people say about a teacher that comes as files: with flags, or in a JSON file that lies beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..fileio import printable, read_json

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_TEXT = 4096
"""Characters of one fact. It goes into every store of the teacher."""


def read_sidecar(path: Path) -> dict[str, Any]:
    """The facts of a JSON file, none where no such file is there.

    Raises ValueError for what is there and is no JSON object, a pipe or a dangling link included.
    """
    if not os.path.lexists(path):
        return {}
    facts = read_json(path, "description")
    if not isinstance(facts, dict):
        raise ValueError(  # noqa: TRY004 - a wrong file of the user's, not a wrong call
            f"description {path}: {type(facts).__name__}, expected an object"
        )
    return facts


def agreed(where: str, origin: str, key: str, written: object, asked: str | None) -> str | None:
    """What both say, or the one that says anything.

    `where` names the teacher in errors, `origin` what `written` stands in. Raises ValueError for two that
    contradict each other, and for a fact that is no text.
    """
    if written is not None and (not isinstance(written, str) or len(written) > LIMIT_TEXT):
        raise ValueError(
            f"{where}: {origin} says {key} {printable(str(written))[:80]}, expected a text of at most "
            f"{LIMIT_TEXT} characters"
        )
    if written is not None and asked is not None and written != asked:
        raise ValueError(
            f"{where}: {key} {asked!r} asked for but {origin} says {written!r}; leave the flag out, or correct the file"
        )
    return asked if written is None else written
