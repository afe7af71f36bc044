"""Hidden folders of unfinished work next to the target: `.NAME.HASH.partial`, with a hash of all settings.

Work with other settings is never continued; a note names the folder and the settings that differ.
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

MAX_DIFFERENCES = 4
MAX_CHARACTERS = 60
"""Longest value in a note, in characters."""


def partial_folder(out: Path, settings: Mapping[str, Any]) -> Path:
    """Return the folder that holds the work until it is finished."""
    return out.with_name(f".{out.name}.{sha256_bytes(canonical_json(settings))[:12]}.partial")


def note_others(
    partial: Path, out: Path, settings_file: str, settings: Mapping[str, Any], state_file: str, progress: Progress
) -> None:
    """Note other unfinished work for `out`, and how its settings differ.

    `settings_file` and `state_file` are names of files in each folder: the settings, and the state to resume from.
    Raises PipelineError for work of an earlier version that recorded fewer settings, if nothing else differs: the
    missing ones may differ or not.
    """
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.partial")
    for other in sorted(path for path in out.parent.iterdir() if name.fullmatch(path.name)):
        if other == partial or not (other / state_file).is_file():
            continue
        there = _read_settings(other / settings_file)
        here = _flat(parse_json(canonical_json(settings)))  # as read from a file: lists, no tuples
        differing = [] if there is None else _differences(_flat(there), here)
        if differing or there is None:
            differences = "; ".join(differing[:MAX_DIFFERENCES]) or f"{settings_file} cannot be read"
            more = f" and {len(differing) - MAX_DIFFERENCES} more" if len(differing) > MAX_DIFFERENCES else ""
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


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        settings = read_json(path, "settings")
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None


def _flat(value: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten nested objects, with dots in the names."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{above}{name}.") if isinstance(inner, dict) and inner else {f"{above}{name}": inner}
    return flat


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """List the values that differ; names that `there` lacks are omitted."""
    return [
        f"{printable(name)}: {_short(value)} there, {_short(here[name]) if name in here else 'none'} here"
        for name, value in sorted(there.items())
        if name not in here or here[name] != value
    ]


def _short(value: object) -> str:
    text = printable(str(value))
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
