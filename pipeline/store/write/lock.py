"""What killed writers left beside a target. `locks.TargetLock` keeps it to one writer."""

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
    """Staging directories of a target, whatever their specification."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.staging")
    return sorted(path for path in target.parent.iterdir() if name.fullmatch(path.name))


def remove_leftovers(target: Path) -> None:
    """Remove stagings that hold nothing to go on from. The target's lock must be held.

    Where `store` is missing it has got its name already; where there is no journal no shard was finished.
    """
    for staging in stagings(target):
        if not (staging / "store").exists() or not (staging / "journal").exists():
            remove_own(staging)


def refuse_existing(target: Path) -> None:
    """Raise PipelineError if there is something at `target`.

    A run that was killed between naming its store and tidying up has left a staging directory: that goes too.
    """
    if not target.exists() and not target.is_symlink():
        return
    with suppress(OSError, ValueError):  # a folder that may not be written, or a writer that is tidying up itself
        if stagings(target) or TargetLock(target).path.exists():
            with TargetLock(target):
                remove_leftovers(target)
    raise already_exists(target)
