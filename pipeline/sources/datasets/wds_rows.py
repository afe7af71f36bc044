"""Samples in a tar shard: its members by key, kept in an index file in the user's cache folder.

The key of a member is its path up to the first dot of its file name, as in WebDataset; the rest is its extension.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...common.fileio import printable
from ...common.parallel import worker_threads
from ...common.user_cache import user_cache_folder
from ...errors import PipelineError
from ..readers.arrays import ARRAY_SUFFIXES
from ..readers.images import IMAGE_SUFFIXES
from ..readers.tar_headers import FileStamp, TarMember, scan_tar
from ..sample_table import TEXT
from ..splits import checked_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

INDEX_VERSION = 1
NO_TRUTH = -1
NOTED_SHARDS = 100
"""From so many on, reading headers may take minutes."""
LOG = logging.getLogger(__name__)
PLACE = np.dtype(
    [
        ("image", "<i8"),
        ("image_end", "<i8"),
        ("image_suffix", "u1"),
        ("truth", "<i8"),
        ("truth_end", "<i8"),
        ("truth_suffix", "u1"),
    ]
)
"""Bytes of a sample's image and ground truth in its shard, and their suffixes as positions in IMAGE_SUFFIXES and
ARRAY_SUFFIXES. `truth` is NO_TRUTH without ground truth."""


class ShardRows(NamedTuple):
    """The samples of one shard, in the order of their images."""

    ids: NDArray[Any]
    """(samples,) text, as an array: a million Python strings take 70 MB"""
    places: NDArray[np.void]
    """(samples,) PLACE"""
    stamp: FileStamp
    """Of the shard when it was scanned."""


def shard_rows(paths: Sequence[str], truth: str) -> list[ShardRows]:
    """Return the samples of shards, from their index files or their headers. `truth` is the extension of ground truth.

    Raises PipelineError as `scan_tar`, and as `rows_of`.
    """

    def scanned(path: str) -> ShardRows:
        members, stamp = scan_tar(path)
        rows = rows_of(members, stamp, truth, path)
        _write_index(path, truth, rows)
        return rows

    with ThreadPoolExecutor(worker_threads(), "headers") as pool:
        known = list(pool.map(lambda path: _read_index(path, truth), paths))
        unknown = [path for path, rows in zip(paths, known, strict=True) if rows is None]
        if len(unknown) >= NOTED_SHARDS:
            LOG.warning("%s: reading the headers of %d shards; they are then in an index", unknown[0], len(unknown))
        found = pool.map(scanned, unknown)
        return [next(found) if rows is None else rows for rows in known]


def rows_of(members: Sequence[TarMember], stamp: FileStamp, truth: str, path: str) -> ShardRows:
    """Group members to samples. Files that are neither images nor ground truth, and hidden ones, are left out.

    Raises PipelineError for a key that cannot be an id, two images or ground truths of a key, and for an image or
    ground truth that is a link or a sparse file.
    """
    images: dict[str, TarMember] = {}
    truths: dict[str, TarMember] = {}
    image_extensions = {suffix[1:] for suffix in IMAGE_SUFFIXES}
    truth_extensions = {f"{truth}{suffix}" for suffix in ARRAY_SUFFIXES}
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        extension = extension.lower()
        group = images if extension in image_extensions else truths if extension in truth_extensions else None
        if group is None or not stem:
            continue
        where = f"shard {path}: member {printable(member.name)[:200]!r}"
        if member.kind != "file":
            raise PipelineError(
                f"{where} is a {member.kind}; expected a regular file: pack the files that links point to, or leave "
                "it out"
            )
        key = checked_path(unicodedata.normalize("NFC", f"{folder}{slash}{stem}").removeprefix("./"), where)
        if group.setdefault(key, member) is not member:
            what = "image" if group is images else f"{truth} file"
            raise PipelineError(
                f"{where} is the second {what} of the key {key!r}, beside {printable(group[key].name)[:200]!r}; "
                "remove one"
            )
    places = np.empty(len(images), PLACE)
    for row, (key, image) in enumerate(images.items()):
        depth = truths.get(key)
        places[row] = (
            *_place(image, IMAGE_SUFFIXES),
            *((NO_TRUTH, NO_TRUTH, 0) if depth is None else _place(depth, ARRAY_SUFFIXES)),
        )
    return ShardRows(np.array(list(images), TEXT), places, stamp)


def _place(member: TarMember, suffixes: tuple[str, ...]) -> tuple[int, int, int]:
    suffix = f".{member.name.rpartition('.')[2].lower()}"
    return member.offset, member.offset + member.size, suffixes.index(suffix)


def _index_path(path: str, truth: str) -> Path | None:
    try:
        folder = user_cache_folder() / "wds"
    except RuntimeError:  # no home directory
        return None
    name = "\0".join([str(INDEX_VERSION), os.path.realpath(path), truth])
    return folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.npz"


def _read_index(path: str, truth: str) -> ShardRows | None:
    """Return the samples of an index file; None if there is none for the shard as it is."""
    index = _index_path(path, truth)
    if index is None:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - text, for many shards
        with np.load(index, allow_pickle=False) as arrays:
            stamp = FileStamp(*arrays["stamp"].tolist())
            places, text = arrays["places"], arrays["ids"]
        ids = np.array(text.tobytes().decode().split("\n") if text.size else [], TEXT)
        fits = places.dtype == PLACE and places.shape == ids.shape and text.dtype == np.uint8
    except Exception:  # noqa: BLE001 - a missing or damaged index: numpy and zipfile raise a dozen types
        return None
    return ShardRows(ids, places, stamp) if fits and stamp == (status.st_size, status.st_mtime_ns) else None


def _write_index(path: str, truth: str, rows: ShardRows) -> None:
    """Write an index file as a whole or not at all. Without space or permission there is none."""
    index = _index_path(path, truth)
    if index is None:
        return
    data = io.BytesIO()
    ids = np.frombuffer("\n".join(rows.ids.tolist()).encode(), np.uint8)
    np.savez(data, ids=ids, places=rows.places, stamp=np.array(rows.stamp, np.int64))
    temporary = None
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: other processes of a run write the same index
        handle, temporary = tempfile.mkstemp(prefix=".", dir=index.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data.getbuffer())
        Path(temporary).replace(index)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
