"""Connection to a remote store: fetch ranges of its files, with retries."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from ...errors import DamagedStoreError
from . import ranges
from .addresses import PROTOCOLS, hidden
from .ranges import NoRangesError, bounded_http, fetch_all, versioned_s3

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .file_version import Answer, RangeRequest

ATTEMPTS = 4
PAUSE_S = 0.1
"""Wait before the second attempt; quadruples for each later one."""
FINAL_HTTP = set(range(400, 500)) - {408, 425, 429}
FOREIGN = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "azure", "adlfs", "fsspec")
"""Packages whose errors mean a failed server."""

_PARENT_FILE_SYSTEMS: list[Any] = []
"""File systems of the parent process, kept alive: closing one would wait for a thread that a fork lacks."""


class Remote:
    """Ranges of files under a URL."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, hidden(url)
        self._made_by: int | None = None
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made_by": None, "_made": None}

    def fetch(self, requests: Sequence[RangeRequest]) -> list[Answer]:
        """Fetch all requests concurrently.

        Raises DamagedStoreError for a missing file, PermissionError if access is denied, NoRangesError naming the file,
        and ConnectionError after ATTEMPTS failures.
        """
        found: dict[RangeRequest, Answer] = {}
        failure = ""
        for attempt in range(ATTEMPTS):
            left = [request for request in requests if request not in found]
            if not left:
                break
            if attempt:
                time.sleep(PAUSE_S * 4 ** (attempt - 1))
            for request, answer in zip(left, self._try(left), strict=True):
                if isinstance(answer, BaseException):
                    failure = self._failure(request, answer)
                elif len(answer.data) < request.least:
                    failure = f"{request.path}: the response ends after {len(answer.data)} of {request.least} bytes"
                    if request.expected is not None and not request.expected.agrees(answer.version):
                        found[request] = answer  # another version: the caller handles it
                else:
                    found[request] = answer
        if len(found) < len(set(requests)):
            raise ConnectionError(
                f"{self.name}: {failure}; tried {ATTEMPTS} times. Check the connection and the server, then run the "
                "same command again: fetched data is cached"
            )
        return [found[request] for request in requests]

    def _try(self, requests: Sequence[RangeRequest]) -> list[Any]:
        try:
            return fetch_all(self._file_system(), self.url, requests)
        except (OSError, TimeoutError) as error:
            return [error] * len(requests)

    def _failure(self, request: RangeRequest, error: BaseException) -> str:
        """Return a description of an error worth a retry; raise any other."""
        where, status = f"{self.name}/{request.path}", getattr(error, "status", None)
        if isinstance(error, NoRangesError):
            raise NoRangesError(request.path) from error
        if isinstance(error, FileNotFoundError) or status in {404, 410}:
            raise DamagedStoreError(f"{where} is missing on the server; upload the whole store") from error
        if isinstance(error, PermissionError) or status in FINAL_HTTP or "Credentials" in type(error).__name__:
            reason = f"HTTP {status}" if status else hidden(str(error))
            public = "; FSSPEC_S3_ANON=true reads a public bucket" if self.url.startswith("s3:") else ""
            raise PermissionError(
                f"{where}: access denied ({reason}); check the URL and your permissions (credentials come from the "
                f"environment, as usual for the protocol{public})"
            ) from error
        ours = not type(error).__module__.startswith(FOREIGN)
        if isinstance(error, ImportError) or (ours and not isinstance(error, (OSError, TimeoutError))):
            raise error
        reason = f"HTTP {status}" if status else hidden(f"{type(error).__name__} {error}".strip())
        return f"{request.path}: {reason}"

    def _file_system(self) -> Any:  # noqa: ANN401 - fsspec has no types
        if self._made_by != os.getpid():
            _PARENT_FILE_SYSTEMS.append(self._made)
            protocol = self.url.partition("://")[0]
            try:
                self._made = _file_system(protocol)
            except ImportError as error:
                raise ImportError(f"{self.name} needs a package that is missing: {PROTOCOLS[protocol]}") from error
            self._made_by = os.getpid()
        return self._made


def _file_system(protocol: str) -> Any:  # noqa: ANN401 - fsspec has no types
    """Return a file system for this process; one made before a fork has its event loop in the parent."""
    if protocol in {"http", "https"}:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=ranges.CONNECT_S, sock_read=ranges.SILENCE_S)
        # No decompression: lengths are of the bytes sent. No trust_env: it sends ~/.netrc logins to every host.
        options = {"timeout": limits, "trust_env": False, "auto_decompress": False}
        return bounded_http()(client_kwargs=options, skip_instance_cache=True)
    import fsspec

    if protocol != "s3":
        return fsspec.filesystem(protocol, skip_instance_cache=True)
    waits = {
        "connect_timeout": ranges.CONNECT_S,
        "read_timeout": ranges.SILENCE_S,
        "retries": {"total_max_attempts": 1},
    }
    s3 = versioned_s3()(skip_instance_cache=True, config_kwargs=waits)
    s3.retries = 1  # we count attempts ourselves
    return s3
