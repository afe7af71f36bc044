"""Output paths: existing files are overwritten only on request."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import PipelineError
from .locks import locked
from .own_files import make_folder, sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .progress import Progress


def named_after(path: Path, suffix: str, of: str = ".json") -> Path:
    """Return the path with another suffix: `m.csv` for `m.json`.

    Only the suffix `of` is replaced; other names get the suffix appended, so that `lr_0.001` and `lr_0.004` do not
    both become `lr_0.csv`, and `r.csv` does not name itself.
    """
    return path.with_suffix(suffix) if path.suffix.lower() == of else path.with_name(path.name + suffix)


def refuse_existing(*paths: Path, overwrite: bool = False, option: str = "out") -> None:
    """Raise PipelineError for a path that is a folder, and without `overwrite` for one that exists."""
    for path in paths:
        if path.is_dir():
            raise PipelineError(f"{path} is a folder: expected the name of a file for `{option}`")
        if os.path.lexists(path) and not overwrite:
            raise already_exists(path, f"choose another `{option}`, or add `overwrite`")


def refuse_existing_target(path: Path) -> None:
    """Raise PipelineError if the path of a store, run or folder exists: those are never overwritten."""
    if os.path.lexists(path):
        raise already_exists(path)


@contextmanager
def locked_target(out: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a path, which must not exist. Raises PipelineError if another process holds it."""
    make_folder(out.parent)
    with locked(out, progress):
        refuse_existing_target(out)  # another process may have finished before this one got the lock
        yield


def publish(partial: Path, out: Path) -> None:
    """Rename finished work to its target, so that the target is either complete or absent, also after a crash."""
    partial.rename(out)
    sync_directory(out.parent)


def already_exists(path: Path, remedy: str = "remove it, or choose another `out`") -> PipelineError:
    """Return the error for an output path that exists."""
    return PipelineError(f"{path} already exists; refusing to overwrite: {remedy}")
