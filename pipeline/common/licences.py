"""Licences of a teacher's output and of the images: from a store to all that is made from it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TEACHER, DATA = "the teacher's output", "the images"
BOTH = " and "
"""Joins licences that all apply."""


NOT_STATED = "not stated"


def distinct(licences: Iterable[str | None]) -> list[str]:
    """Return the different licences of several parts, in order, with NOT_STATED for None."""
    parts = (part for licence in licences for part in (licence or NOT_STATED).split(BOTH))
    return list(dict.fromkeys(parts))


def united(licences: Iterable[str | None]) -> str | None:
    """Return the licences of several parts as one text, since all apply; None if no part states one."""
    names = distinct(licences)
    return None if names == [NOT_STATED] else BOTH.join(names)


def check_licences(where: str, stated: Mapping[str, str | None], patterns: Sequence[str]) -> None:
    """Raise PipelineError unless every licence matches a pattern, such as `apache*` or `CC BY 4.0`, in any case.

    `stated` is what each licence is of (TEACHER, DATA) and its text; None is not stated, and matches nothing. Of a
    merged store's licences, `A and B`, each has to match. Without patterns, anything is allowed.
    """
    if not patterns:
        return
    for of, licence in stated.items():
        for part in [None] if licence is None else licence.split(BOTH):
            if part is None or not any(fnmatchcase(part.strip().lower(), pattern.lower()) for pattern in patterns):
                stated_as = NOT_STATED if part is None else repr(part.strip())
                raise PipelineError(
                    f"{where}: the licence of {of} is {stated_as}, and `require_licence` allows {', '.join(patterns)}: "
                    "use another store, or allow it; `pipeline cache-teacher` records `licence` and `data_licence`"
                )
