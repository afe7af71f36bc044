"""The folder of this user for files that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """Return `tiekd-pipeline` in $XDG_CACHE_HOME or ~/.cache. Raises RuntimeError if there is no home directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiekd-pipeline"
