"""One rule for the files that a command writes: never over an existing one, unless that is asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def named_after(path: Path, suffix: str, of: str = ".json") -> Path:
    """The file beside `path` with another suffix: `m.csv` of `m.json`.

    Only the suffix `of` is exchanged; any other name is kept whole, so that `lr_0.001` and `lr_0.004` do not share one
    `lr_0.csv`, and `r.csv` does not name itself.
    """
    return path.with_suffix(suffix) if path.suffix.lower() == of else path.with_name(path.name + suffix)


def refuse_existing(*paths: Path, overwrite: bool = False, flag: str = "--out") -> None:
    """Raise ValueError for the first path where something is, whatever it is; with `overwrite` for a folder alone."""
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: expected the name of a file for {flag}")
        if os.path.lexists(path) and not overwrite:
            raise ValueError(f"{path} already exists; choose another {flag}, or add --overwrite")
