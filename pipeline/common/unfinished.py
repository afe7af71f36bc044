"""Hidden folders of unfinished work next to the target, `.NAME.HASH.partial`: HASH is of all settings.

So work with other settings is never gone on with, and what stays of it is noted with what differs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import PipelineError
from .fileio import canonical_json, parse_json, printable, read_json, sha256_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .progress import Progress

MOST_NAMED = 4
MOST_CHARACTERS = 60
"""Longest value in a note, in characters."""


def partial_folder(out: Path, asked: Mapping[str, Any]) -> Path:
    """Return the folder that holds the work until it is finished."""
    return out.with_name(f".{out.name}.{sha256_bytes(canonical_json(asked))[:12]}.partial")


def note_others(
    partial: Path, out: Path, settings: str, asked: Mapping[str, Any], state: str, progress: Progress
) -> None:
    """Note other unfinished work for `out`, and how its settings differ from what is asked for.

    `settings` is the name of the file in each folder that holds them, `state` of the one that it goes on from.
    Raises PipelineError for work of an earlier version that noted less, where nothing else differs: it may be the same,
    or not.
    """
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.partial")
    for other in sorted(path for path in out.parent.iterdir() if name.fullmatch(path.name)):
        if other == partial or not (other / state).is_file():
            continue
        there = _settings(other / settings)
        here = _flat(parse_json(canonical_json(asked)))  # as it comes back: lists, no tuples
        differing = [] if there is None else _differences(_flat(there), here)
        if differing or there is None:
            differences = "; ".join(differing[:MOST_NAMED]) or "which it does not say"
            more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
            progress.note(
                f"{other} is unfinished work with other settings ({differences}{more}) and is not continued; "
                "remove it if you do not need it"
            )
        elif not partial.exists():
            absent = ", ".join(sorted(here.keys() - _flat(there).keys()))
            raise PipelineError(
                f"{other} was started by an earlier version, which did not record {absent}: if these are unchanged, "
                f"rename it to {partial.name} to continue from it; otherwise remove it"
            )


def _settings(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path, "settings")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _flat(value: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten nested objects, with dots in the names."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{above}{name}.") if isinstance(inner, dict) and inner else {f"{above}{name}": inner}
    return flat


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """List the values that differ in `here`; names that `there` lacks are omitted."""
    return [
        f"{printable(name)}: {_short(value)} there, {_short(here[name]) if name in here else 'none'} here"
        for name, value in sorted(there.items())
        if name not in here or here[name] != value
    ]


def _short(value: object) -> str:
    text = printable(str(value))
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
