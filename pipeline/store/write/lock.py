"""Staging directories that killed writers left next to a target."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from ...common.locks import TargetLock
from ...common.outputs import already_exists
from ...common.own_files import remove_own

if TYPE_CHECKING:
    from pathlib import Path


def stagings(target: Path) -> list[Path]:
    """Return the staging directories of a target, of any specification."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.staging")
    return sorted(path for path in target.parent.iterdir() if name.fullmatch(path.name))


def remove_leftovers(target: Path) -> None:
    """Remove staging directories without finished shards. The target's lock must be held.

    Without `store` the store was renamed already; without a journal no shard was finished.
    """
    for staging in stagings(target):
        if not (staging / "store").exists() or not (staging / "journal").exists():
            remove_own(staging)


def refuse_existing(target: Path) -> None:
    """Raise PipelineError if `target` exists.

    Also removes the staging directory of a run that was killed after renaming its store.
    """
    if not target.exists() and not target.is_symlink():
        return
    with suppress(OSError, ValueError):  # an unwritable folder, or another writer that is cleaning up
        if stagings(target) or TargetLock(target).path.exists():
            with TargetLock(target):
                remove_leftovers(target)
    raise already_exists(target)
