"""Files and folders with generated names, such as `.NAME.tmp`, and names that survive a crash.

Someone may have planted such a name as a link to another file. Nothing is written or removed through a link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EISDIR}
"""Errors of file systems that cannot sync a directory (some FUSE, SMB and network file systems)."""
LONGEST_NAME = 255
"""Bytes of a file's name, on every common file system."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an OSError without one, as calls on open handles raise."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def hidden_name(path: Path, ending: str) -> Path:
    """Return `.NAME.ENDING` next to a path; a hash replaces a NAME that is too long for the file system."""
    name = f".{path.name}.{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{ending}"
    return path.with_name(name)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, as after a rename. Does nothing if the file system cannot do it."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, with durable names."""
    if not path.exists():
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    # Also if it existed: the process that made it may have been killed before the name was durable.
    with suppress(PermissionError):  # a parent such as /home may be unreadable, but then we made nothing in it
        sync_directory(path.parent)


def make_own_folder(path: Path) -> None:
    """Make a folder with a generated name. Raises PipelineError for a link."""
    _refuse_link(path)
    make_folder(path)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise PipelineError(f"{path} is a symbolic link, expected a folder: remove the link")


def make_folder_below(root: Path, folder: str) -> None:
    """Make `root`/`folder` and the folders in between, without making their names durable.

    Raises PipelineError for a link on the way, or for `..`.
    """
    path = root
    for part in folder.split("/"):
        if part == "..":
            raise PipelineError(f"{root}/{folder} is outside {root}: expected a path without `..`")
        if part not in {"", "."}:
            path /= part
            _refuse_link(path)
            path.mkdir(exist_ok=True)


def remove_own(path: Path) -> None:
    """Remove a file, folder or link with a generated name, if it exists; never what a link points to."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


def open_new(path: Path) -> int:
    """Open a new file with a generated name for writing; an existing file or link is removed. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)  # noqa: PTH108 - calls of `os` alone, see `_write_and_sync`
        return os.open(path, flags, 0o666)


def open_to_append(path: Path) -> int:
    """Open a file for appending, and create it if it is missing. Raises OSError, also for a link."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise refused_link(path, error) from None


def refused_link(path: Path, error: OSError) -> OSError:
    """Return a clear error for O_NOFOLLOW on a link; the system's says "too many levels"."""
    if error.errno != errno.ELOOP:
        return error
    return OSError(errno.ELOOP, "a symbolic link, expected a file of this program: remove the link", str(path))
