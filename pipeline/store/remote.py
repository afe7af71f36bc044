"""A store behind a URL: byte ranges through fsspec, kept in a folder on this machine so that each is fetched once.

Opening fetches the manifest, the root metadata, the bin edges and the ids: four requests, the last three at once. The
other `zarr.json` files are rebuilt from their copy in the root and compared with the manifest's sha256, as if they had
been fetched. A sample costs its shard's index, once, and its own chunks.

What is kept is checked again whenever it is taken: a small file by the manifest's sha256, a range by the crc32c that
ends it (every index and every chunk ends in one). What fails is fetched anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from ..fileio import pretty_json, sha256_bytes
from .codec import DamagedStoreError
from .layout import MANIFEST, MAX_CHUNK_BYTES
from .opening import MANIFEST_LIMIT_BYTES, read_manifest
from .transport import Ask, NoRangesError, Remote, check_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CACHE_VARIABLE = "TIEKD_STORE_CACHE"
IDS_LIMIT_BYTES = 2**26


def cache_folder(chosen: Path | None = None) -> Path:
    """Where fetched parts of stores are kept: as chosen, else TIEKD_STORE_CACHE, else the user's cache folder."""
    given = chosen or os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiekd-pipeline"


class RemoteFiles:
    """A store behind a URL, as StoreFiles. Picklable; each process makes its own connections when it first reads."""

    def __init__(
        self, url: str, folder: Path | None = None, *, rebuild: bool = True, whole_shards: bool = False
    ) -> None:
        """Fetch the manifest and what else opening needs.

        `folder` is the cache; `rebuild` False fetches every `zarr.json` instead of taking the root's copy of it;
        `whole_shards` fetches a shard whole where a range of it is asked for, and compares its sha256.
        Raises ValueError for a URL that is no finished store's, ConnectionError where it cannot be read.
        """
        self.remote = Remote(check_url(url))
        self.name = self.remote.name
        try:
            (manifest,) = self.remote.fetch([Ask(MANIFEST, 0, MANIFEST_LIMIT_BYTES + 1, 1)])
        except DamagedStoreError as error:
            raise ValueError(
                f"{self.name} is no finished store (it has no {MANIFEST}): expected the address of a directory written "
                "by `pipeline cache-teacher`, with everything in it"
            ) from error
        self._small = {MANIFEST: manifest}
        self._ahead: dict[tuple[str, int, int], bytes] = {}
        _, self._entries = read_manifest(self, self.name)
        self._whole_shards = whole_shards  # also set where a server sends no ranges
        # The manifest is in the key: a store that was changed never mixes with what is kept of the old one.
        key = sha256_bytes(f"{self.name}\n{sha256_bytes(manifest)}".encode())
        title = re.sub(r"[^A-Za-z0-9._-]", "_", self.name.rpartition("/")[2])[:64]
        self.folder = cache_folder(folder) / f"{title}-{key[:24]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"store cache {self.folder}: {error.strerror}; choose a folder that can be written with --store-cache "
                f"or {CACHE_VARIABLE}"
            ) from error
        self._fetch_ahead(rebuild=rebuild)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": {}, "_small": {}}

    # --- StoreFiles --------------------------------------------------------------------------------------------

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Whole content of a file."""
        data = self._small.get(path)
        size = self._entry(path)[0] if data is None else len(data)
        if size > limit_bytes:
            raise DamagedStoreError(f"{self.name}/{path}: {size} bytes, expected at most {limit_bytes}")
        return self._whole([path])[0] if data is None else data

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`. A part is kept if it ends in its crc32c, a whole by its sha256."""
        length = min(length, max(0, self.size(path) - offset))
        if length == self.size(path):
            return self._whole([path])[0]
        data = self._ahead.pop((path, offset, length), None)
        return self._get(path, [(offset, length)])[path, offset, length] if data is None else data

    def size(self, path: str) -> int:
        """Bytes of a file as the manifest says; a shorter one shows when it is read."""
        return self._entry(path)[0]

    def expect(self, path: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Get ranges (offset, length) ready that are about to be read; neighbours come in one request."""
        size = self.size(path)
        self._ahead = self._get(path, [(offset, min(length, max(0, size - offset))) for offset, length in ranges])

    # --- fetching ----------------------------------------------------------------------------------------------

    def _entry(self, path: str) -> tuple[int, str]:
        if path not in self._entries:
            raise DamagedStoreError(f"{self.name}/{MANIFEST} does not list {path}: the store is damaged or foreign")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", path):
            raise DamagedStoreError(f"{self.name}/{MANIFEST}: path {path!r} is none of the format's")
        return self._entries[path]

    def _fetch_ahead(self, *, rebuild: bool) -> None:
        """Everything that opening will ask for, in as few turns as can be."""
        ids = [path for path in self._entries if re.fullmatch(r"sample/id/c/\d+/0", path)]
        ids = ids if sum(self._entries[path][0] for path in ids) <= IDS_LIMIT_BYTES else []
        nodes = [path for path in self._entries if path.endswith("/zarr.json")]
        first = [path for path in ("zarr.json", "dpm/bin_edges/c/0", *ids) if path in self._entries]
        # Every path is looked at before the first request.
        small = {path for path in {*first, *nodes} if self._entry(path)[0] <= IDS_LIMIT_BYTES}
        ahead: dict[str, bytes] = {}
        for part in (first if rebuild else first + nodes, nodes):
            paths = [path for path in part if path in small and path not in ahead]
            ahead |= dict(zip(paths, self._whole(paths), strict=True))
            for path, data in self._rebuilt(ahead.get("zarr.json", b"")).items():
                ahead.setdefault(path, data)
        self._small |= {path: data for path, data in ahead.items() if path not in ids}  # which can be many

    def _rebuilt(self, root: bytes) -> dict[str, bytes]:
        """Each `zarr.json` whose copy in the root's metadata gives the bytes that the manifest lists."""
        found = {}
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            for name, node in json.loads(root)["consolidated_metadata"]["metadata"].items():
                data = pretty_json(node)
                if self._entries.get(f"{name}/zarr.json") == (len(data), sha256_bytes(data)):
                    found[f"{name}/zarr.json"] = data
        return found

    def _get(self, path: str, ranges: Sequence[tuple[int, int]]) -> dict[tuple[str, int, int], bytes]:
        """Ranges that lie inside a file, from what is kept or from the other side."""
        found, missing = {}, []
        for offset, length in sorted(set(ranges)):
            if length > MAX_CHUNK_BYTES:
                raise DamagedStoreError(f"{self.name}/{path}: {length} bytes at once, expected at most a chunk")
            data = self._kept(path, offset, length)
            if data is None:
                missing.append((offset, length))
            else:
                found[path, offset, length] = data
        for (offset, length), data in zip(missing, self._ranges(path, missing), strict=True):
            found[path, offset, length] = data
            if ends_in_its_crc(data) and not self._whole_shards:
                self._keep(path, f"{offset}-{length}", data)
        return found

    def _whole(self, paths: Sequence[str]) -> list[bytes]:
        """Files as they are, all at once; those that the manifest knows so are kept."""
        found: dict[str, bytes] = {}
        for path in paths:
            data = self._open_kept(path, "whole", 0, self._entries[path][0])
            if data is not None and self._is_right(path, data):
                found[path] = data
        missing = [path for path in paths if path not in found]
        # One byte more than there should be: a longer file is not taken for a right one.
        asks = [Ask(path, 0, self._entry(path)[0] + 1, self._entry(path)[0]) for path in missing]
        try:
            fetched = self.remote.fetch(asks)
        except NoRangesError as error:
            raise self._longer(str(error)) from error
        for path, data in zip(missing, fetched, strict=True):
            if len(data) > self._entries[path][0]:
                raise self._longer(path)
            found[path] = data
            if self._is_right(path, data):
                self._keep(path, "whole", data)
        return [found[path] for path in paths]

    def _longer(self, path: str) -> DamagedStoreError:
        return DamagedStoreError(f"{self.name}/{path} is longer than the manifest says; fetch the store again")

    def _is_right(self, path: str, data: bytes) -> bool:
        return (len(data), sha256_bytes(data)) == self._entries[path]

    def _ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Ranges in ascending order from the other side; from the whole file where it gives no less."""
        runs: list[list[tuple[int, int]]] = []
        for offset, length in ranges:
            if runs and sum(runs[-1][-1]) == offset:
                runs[-1].append((offset, length))
            else:
                runs.append([(offset, length)])
        asks = [Ask(path, run[0][0], sum(run[-1]), sum(run[-1]) - run[0][0]) for run in runs]
        answers: list[bytes] = []
        if not self._whole_shards:
            try:
                answers = self.remote.fetch(asks)
            except NoRangesError:
                self._whole_shards = True
        if self._whole_shards and asks:
            whole = self._whole_shard(path)
            answers = [whole[ask.start : ask.end] for ask in asks]
        parts = []
        for run, answer in zip(runs, answers, strict=True):
            start = run[0][0]
            parts += [answer[offset - start : offset - start + length] for offset, length in run]
        return parts

    def _whole_shard(self, path: str) -> bytes:
        size = self.size(path)
        if size > MAX_CHUNK_BYTES:
            raise ConnectionError(
                f"{self.name}: {path} has {size} bytes, too many to fetch whole, and the server sends no ranges: "
                "serve the store from one that does (nginx, caddy, S3), or copy it to this machine"
            )
        (whole,) = self._whole([path])
        if not self._is_right(path, whole):
            raise DamagedStoreError("its sha256 is not the manifest's")
        return whole

    # --- what is kept ------------------------------------------------------------------------------------------

    def _kept(self, path: str, offset: int, length: int) -> bytes | None:
        for name, start in ((f"{offset}-{length}", 0), ("whole", offset)):
            data = self._open_kept(path, name, start, length)
            if data is not None and ends_in_its_crc(data):
                return data
        return None

    def _open_kept(self, path: str, name: str, start: int, length: int) -> bytes | None:
        try:
            with (self.folder / path / name).open("rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError:
            return None
        return data if len(data) == length else None

    def _keep(self, path: str, name: str, data: bytes) -> None:
        """Write beside and rename: another worker sees the whole part or none."""
        folder = self.folder / path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(prefix=".", dir=folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(beside).replace(folder / name)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise
        except OSError as error:  # a full disk must not end a training run that can go on without
            warnings.warn(
                f"store cache {self.folder}: {error.strerror}; parts of {self.name} are fetched again each epoch: make "
                f"room, or choose another folder with --store-cache or {CACHE_VARIABLE}",
                stacklevel=2,
            )


def ends_in_its_crc(data: bytes) -> bool:
    """Whether the last four bytes are the crc32c of the others, as in every index and chunk of a store."""
    return len(data) > 4 and google_crc32c.value(data[:-4]) == int.from_bytes(data[-4:], "little")


@contextlib.contextmanager
def fetched_anew(url: str) -> Iterator[RemoteFiles]:
    """Files of a store of which nothing is taken from the cache, and nothing from the root's copies."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".anew-", dir=folder) as empty:
        yield RemoteFiles(url, Path(empty), rebuild=False)
