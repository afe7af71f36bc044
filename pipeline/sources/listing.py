"""What lies in a folder, asked of the disk once a folder and never once a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .splits import find_list

if TYPE_CHECKING:
    from pathlib import Path


def file_names(folder: Path | str) -> list[str]:
    """Names in a folder, sorted; none where there is no such folder. Hidden ones are passed over.

    Folders are among them: callers look for names of their own form. Raises ValueError for an unreadable folder.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(f"folder {folder}: {error.strerror}; expected a readable folder") from error


def folder_names(folder: Path | str) -> list[str]:
    """Names of the folders in a folder, sorted, links to folders among them; none where there is no such folder.

    Raises ValueError for an unreadable folder.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(f"folder {folder}: {error.strerror}; expected a readable folder") from error


def find_list_or_name(split: str, folder: Path, names: str) -> Path:
    """As `find_list`, for a split that is none of the source's own names; the error tells `names` too."""
    try:
        return find_list(split, folder)
    except ValueError as error:
        raise ValueError(f"{error}; or {names}") from error
