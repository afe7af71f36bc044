"""Read a store from a URL: byte ranges through fsspec, cached locally so that each is fetched once.

Opening fetches the manifest, the root metadata, the bin edges and the ids: four requests, the last three at once. The
other `zarr.json` files are rebuilt from their copy in the root and compared with the manifest's sha256. A sample costs
its shard's index, once, and its own chunks.

The manifest hashes whole files, so a range cannot be compared with it. Ranges are tied to the file's version instead:
the ETag, else Last-Modified, and the length, which must be the manifest's. The first range of a file pins its version
for the run and its workers, and checks that the manifest is unchanged. Later ranges, and cached ones, must have that
version. If versions differ, the whole file's sha256 decides.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import warnings
from typing import TYPE_CHECKING, Any

from ...common.fileio import pretty_json, sha256_bytes
from ...errors import DamagedStoreError, PipelineError
from ..format.layout import MANIFEST, MAX_CHUNK_BYTES
from ..read.validate import MANIFEST_LIMIT_BYTES, NODE_LIMIT_BYTES, read_manifest
from .addresses import check_url
from .file_version import RangeRequest, Version
from .range_cache import CACHE_VARIABLE, RangeCache, cache_folder, ends_in_its_crc
from .ranges import NoRangesError
from .transport import Remote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .file_version import Answer

__all__ = ["CACHE_VARIABLE", "RemoteFiles", "StoreChangedError", "cache_folder"]

IDS_LIMIT_BYTES = 2**26
NODES_LIMIT, NODES_LIMIT_BYTES = 64, 2**22
"""Limits of metadata files and their total bytes: four times the largest valid store."""
PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


class StoreChangedError(PipelineError):
    """A remote store changed after it was opened."""


class RemoteFiles:
    """Files of a remote store. Picklable; each process connects on its first read."""

    def __init__(
        self, url: str, folder: Path | None = None, *, rebuild: bool = True, whole_shards: bool = False
    ) -> None:
        """Fetch the manifest and the files that opening reads.

        `folder` is the cache; `rebuild=False` fetches every `zarr.json` instead of using its copy in the root;
        `whole_shards` fetches whole shards and compares their sha256.
        Raises PipelineError if the URL is not a complete store, ConnectionError if it cannot be read.
        """
        self.remote = Remote(check_url(url))
        self.name = self.remote.name
        try:
            (manifest,) = self.remote.fetch([RangeRequest(MANIFEST, 0, MANIFEST_LIMIT_BYTES + 1, 1)])
        except DamagedStoreError as error:
            raise PipelineError(
                f"{self.name} is not a complete store: {MANIFEST} is missing; expected the URL of a directory that "
                "`pipeline cache-teacher` wrote, with all its files"
            ) from error
        self._small = {MANIFEST: manifest.data}
        self._ahead: dict[tuple[str, int, int], bytes] = {}
        _, self._entries = read_manifest(self, self.name)
        self._whole_shards = whole_shards  # also set if the server sends no ranges
        self._whole_files: set[str] = set()
        self._versions = {MANIFEST: manifest.version}
        self._sha256 = sha256_bytes(manifest.data)
        # The manifest is part of the key: a changed store never mixes with the old one's cache.
        title = re.sub(r"[^A-Za-z0-9._-]", "_", self.name.rpartition("/")[2])[:64]
        key = sha256_bytes(f"{self.name}\n{self._sha256}".encode())[:24]
        path = cache_folder(folder) / f"{title}-{key}"
        self.cache = RangeCache(path, self.name, secrets.token_hex(6))
        if not manifest.version.is_known and not whole_shards:
            warnings.warn(
                f"{self.name}: the server sends neither ETag nor Last-Modified, so files replaced while reading go "
                "unnoticed; serve the store from one that does (nginx, caddy, S3), or copy it to this machine",
                stacklevel=2,
            )
        self._fetch_ahead(rebuild=rebuild)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": {}, "_small": {}, "_whole_files": set()}

    # --- StoreFiles --------------------------------------------------------------------------------------------

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Return the content of a file."""
        data = self._small.get(path)
        size = self._entry(path)[0] if data is None else len(data)
        if size > limit_bytes:
            raise DamagedStoreError(f"{self.name}/{path}: {size} bytes, expected at most {limit_bytes}")
        return self._whole([path])[0] if data is None else data

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`. Raises StoreChangedError for another version."""
        length = min(length, max(0, self.size(path) - offset))
        if length == self.size(path):
            return self._whole([path])[0]
        data = self._ahead.pop((path, offset, length), None)
        return self._get(path, [(offset, length)])[path, offset, length] if data is None else data

    def size(self, path: str) -> int:
        """Return a file's size from the manifest; reading detects a shorter file."""
        return self._entry(path)[0]

    def prefetch(self, path: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges (offset, length) that are read next; adjacent ranges share a request."""
        size = self.size(path)
        got = self._get(path, [(offset, min(length, max(0, size - offset))) for offset, length in ranges])
        self._ahead = {key: data for key, data in self._ahead.items() if key[0] != path} | got

    # --- opening -----------------------------------------------------------------------------------------------

    def _entry(self, path: str) -> tuple[int, str]:
        if path not in self._entries:
            raise DamagedStoreError(
                f"{self.name}/{MANIFEST} does not list {path}: the store is damaged or from another program"
            )
        if not PATH.fullmatch(path):
            raise DamagedStoreError(f"{self.name}/{MANIFEST}: path {path!r} is not a path of the store format")
        return self._entries[path]

    def _fetch_ahead(self, *, rebuild: bool) -> None:
        """Fetch all files that opening reads, in as few round trips as possible."""
        ids = [path for path in self._entries if re.fullmatch(r"sample/id/c/\d+/0", path)]
        ids = ids if sum(self._entries[path][0] for path in ids) <= IDS_LIMIT_BYTES else []
        nodes = [path for path in self._entries if path.endswith("/zarr.json")]
        first = [path for path in ("zarr.json", "dpm/bin_edges/c/0", *ids) if path in self._entries]
        # Check every path before the first request; `read` refuses files that are too large.
        sizes = {path: self._entry(path)[0] for path in {*first, *nodes}}
        small = {path for path, size in sizes.items() if size <= (NODE_LIMIT_BYTES if path not in ids else size)}
        total = sum(sizes[path] for path in small.difference(ids))
        if len(nodes) > NODES_LIMIT or total > NODES_LIMIT_BYTES:
            raise PipelineError(
                f"{self.name}/{MANIFEST}: {len(nodes)} metadata files with {total} bytes: expected at most "
                f"{NODES_LIMIT} files with {NODES_LIMIT_BYTES} bytes in a store of `pipeline cache-teacher`"
            )
        ahead: dict[str, bytes] = {}
        for part in (first if rebuild else first + nodes, nodes):
            paths = [path for path in part if path in small and path not in ahead]
            ahead |= dict(zip(paths, self._whole(paths), strict=True))
            for path, data in self._rebuilt(ahead.get("zarr.json", b"")).items():
                ahead.setdefault(path, data)
        self._small |= {path: data for path, data in ahead.items() if path not in ids}  # ids can be large

    def _rebuilt(self, root: bytes) -> dict[str, bytes]:
        """Return each `zarr.json` whose copy in the root matches the manifest."""
        found = {}
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            for name, node in json.loads(root)["consolidated_metadata"]["metadata"].items():
                data = pretty_json(node)
                if self._entries.get(f"{name}/zarr.json") == (len(data), sha256_bytes(data)):
                    found[f"{name}/zarr.json"] = data
        return found

    # --- whole files -------------------------------------------------------------------------------------------

    def _whole(self, paths: Sequence[str]) -> list[bytes]:
        """Return whole files, fetched concurrently; files that match the manifest are cached."""
        found: dict[str, bytes] = {}
        for path in paths:
            data = self.cache.read(path, "whole", 0, self._entries[path][0])
            if data is not None and self._is_right(path, data):
                found[path] = data
        missing = [path for path in paths if path not in found]
        # Request one byte more, to detect a longer file.
        requests = [RangeRequest(path, 0, self._entry(path)[0] + 1, self._entry(path)[0]) for path in missing]
        try:
            fetched = self.remote.fetch(requests)
        except NoRangesError as error:
            raise self._longer(str(error)) from error
        for path, answer in zip(missing, fetched, strict=True):
            if len(answer.data) > self._entries[path][0]:
                raise self._longer(path)
            found[path] = answer.data
            self._arrived(path, 0, answer.data)
            if self._is_right(path, answer.data):
                self.cache.write(path, "whole", answer.data)
        return [found[path] for path in paths]

    def _longer(self, path: str) -> DamagedStoreError:
        return DamagedStoreError(f"{self.name}/{path} is longer than the manifest lists; upload the store again")

    def _is_right(self, path: str, data: bytes) -> bool:
        return (len(data), sha256_bytes(data)) == self._entries[path]

    def _is_kept_whole(self, path: str) -> bool:
        """Return whether the whole file is cached; compared with the manifest once per process."""
        if path not in self._whole_files:
            data = self.cache.read(path, "whole", 0, self.size(path))
            if data is None or not self._is_right(path, data):
                return False
            self._whole_files.add(path)
        return True

    def _whole_shard(self, path: str) -> bytes:
        """Return a whole file after comparing its sha256 with the manifest."""
        size = self.size(path)
        if size > MAX_CHUNK_BYTES:
            raise ConnectionError(
                f"{self.name}: {path} with {size} bytes is too large to fetch whole, and the server "
                "sends no ranges; serve the store from one that does (nginx, caddy, S3), or copy it to this machine"
            )
        (whole,) = self._whole([path])
        if not self._is_right(path, whole):
            raise DamagedStoreError("its sha256 differs from the manifest")
        self._whole_files.add(path)
        return whole

    def _arrived(self, path: str, offset: int, data: bytes) -> None:
        """Hook that subclasses use to see the server's bytes."""

    # --- ranges ------------------------------------------------------------------------------------------------

    def _get(self, path: str, ranges: Sequence[tuple[int, int]]) -> dict[tuple[str, int, int], bytes]:
        """Return ranges inside a file, from the cache or the server."""
        wanted = sorted(set(ranges))
        if any(length > MAX_CHUNK_BYTES for _, length in wanted):
            raise DamagedStoreError(f"{self.name}/{path}: a range exceeds the largest chunk, {MAX_CHUNK_BYTES} bytes")
        if self._whole_shards or self._is_kept_whole(path):
            return self._of_whole(path, wanted)
        try:
            if self._version(path) is None and any(self.cache.ranges(path)):
                self._fetch(path, [RangeRequest(path, 0, 1, 1)])  # pins the server's version
            found, version = {}, self._version(path)
            if version is not None:
                kept = {(path, *part): self.cache.part(path, *part, version) for part in wanted}
                found = {key: data for key, data in kept.items() if data is not None}
            missing = [part for part in wanted if (path, *part) not in found]
            for (offset, length), data in self._fetched(path, missing).items():
                found[path, offset, length] = data
                self.cache.write_part(path, offset, data, self._versions[path])
        except NoRangesError:
            self._whole_shards = True
            return self._of_whole(path, wanted)
        except _OtherVersionError as error:
            self._settle(path, error)
            return self._of_whole(path, wanted)
        return found

    def _of_whole(self, path: str, ranges: list[tuple[int, int]]) -> dict[tuple[str, int, int], bytes]:
        """Return ranges of a whole file that matches the manifest."""
        found = {}
        if path in self._whole_files:
            for offset, length in ranges:
                data = self.cache.read(path, "whole", offset, length)
                if data is not None and ends_in_its_crc(data):
                    found[path, offset, length] = data
        if len(found) < len(ranges):
            whole = self._whole_shard(path)
            found = {(path, offset, length): whole[offset : offset + length] for offset, length in ranges}
        return found

    def _fetched(self, path: str, ranges: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Fetch ranges in ascending order; adjacent ranges share a request."""
        runs: list[list[tuple[int, int]]] = []
        for offset, length in ranges:
            if runs and sum(runs[-1][-1]) == offset:
                runs[-1].append((offset, length))
            else:
                runs.append([(offset, length)])
        known = self._version(path)
        requests = [RangeRequest(path, run[0][0], sum(run[-1]), sum(run[-1]) - run[0][0], known) for run in runs]
        parts: dict[tuple[int, int], bytes] = {}
        for run, data in zip(runs, self._fetch(path, requests) if requests else [], strict=True):
            start = run[0][0]
            self._arrived(path, start, data)
            parts |= {(offset, length): data[offset - start : offset - start + length] for offset, length in run}
        return parts

    def _fetch(self, path: str, requests: list[RangeRequest]) -> list[bytes]:
        """Fetch responses for one file in its pinned version; the first one also checks the manifest."""
        opened = self._versions[MANIFEST]
        manifest = [RangeRequest(MANIFEST, 0, 1, 1, opened)] if self._version(path) is None and opened.is_known else []
        *answers, last = [*self.remote.fetch([*requests, *manifest]), None][: len(requests) + 1]
        if last is not None:
            self._check_manifest(last)
        for answer in answers:
            assert answer is not None
            self._check_version(path, answer.version)
        return [answer.data for answer in answers if answer is not None]

    # --- versions ----------------------------------------------------------------------------------------------

    def _version(self, path: str) -> Version | None:
        """Return the version of a file that this run reads; None before its first range."""
        known = self._versions.get(path) or self.cache.pinned(path)
        if known is not None:
            self._versions[path] = known
        return known

    def _check_version(self, path: str, version: Version) -> None:
        """Pin the version of a file, or compare it with the pinned one."""
        size = self.size(path)
        known = self._version(path)
        if known is None:
            if version.length not in {None, size}:
                raise DamagedStoreError(
                    f"{self.name}/{path} has {version.length} bytes on the server, the manifest lists {size}: it was "
                    "truncated or replaced; upload it again"
                )
            known = self._versions[path] = self.cache.pin(path, version)
        if not known.agrees(version):
            raise _OtherVersionError(known, version)

    def _check_manifest(self, answer: Answer) -> None:
        if self._versions[MANIFEST].agrees(answer.version):
            return
        (manifest,) = self.remote.fetch([RangeRequest(MANIFEST, 0, MANIFEST_LIMIT_BYTES + 1, 1)])
        if sha256_bytes(manifest.data) != self._sha256:
            raise self._changed(MANIFEST, self._versions[MANIFEST], manifest.version)
        self._versions[MANIFEST] = manifest.version  # same content, another server

    def _settle(self, path: str, mismatch: _OtherVersionError) -> None:
        """Continue with the whole file, if it matches the manifest and the ranges read before.

        Load-balanced servers may report different versions of one file. Raises StoreChangedError for a changed file.
        """
        try:
            whole = self._whole_shard(path)
        except (DamagedStoreError, ConnectionError) as error:
            raise self._changed(path, *mismatch.args) from error
        key = self.cache.key(mismatch.args[0])
        for file, offset, length in self.cache.ranges(path):
            if (
                file.name.endswith(key)
                and self.cache.read(path, file.name, 0, length) != whole[offset : offset + length]
            ):
                raise self._changed(path, *mismatch.args)
        if self.cache.failed:  # earlier ranges are missing for comparison
            raise self._changed(path, *mismatch.args)

    def _changed(self, path: str, then: Version, now: Version) -> StoreChangedError:
        return StoreChangedError(
            f"{self.name}: {path} changed on the server since the store was opened (then {then}; now {now}). Data "
            f"read so far may belong to another store: run `pipeline store verify {self.name}`, then start again"
        )


class _OtherVersionError(Exception):
    """The server sent another version of a file (second argument) than before (first)."""
