"""The other side of a store behind a URL: ranges of its files, asked for again where that may help."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from ...errors import DamagedStoreError
from . import ranges
from .addresses import PROTOCOLS, hidden
from .ranges import NoRangesError, ask_all, bounded_http, versioned_s3

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .file_version import Answer, Ask

ATTEMPTS = 4
PAUSE_S = 0.1
"""Before the second attempt; four times as long before each one after it."""
FINAL_HTTP = set(range(400, 500)) - {408, 425, 429}
FOREIGN = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "azure", "adlfs", "fsspec")
"""Packages whose errors mean that the other side failed, whatever they derive from."""

_LEFT_BEHIND: list[Any] = []
"""File systems of the process that this one was forked from: to close one waits for a thread that is not here."""


class Remote:
    """Ranges of files under a URL."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, hidden(url)
        self._made_by: int | None = None
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made_by": None, "_made": None}

    def fetch(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answers to all, fetched at once.

        Raises DamagedStoreError for a file that is not there, PermissionError for one that is refused, NoRangesError
        naming the file, and ConnectionError once ATTEMPTS have failed.
        """
        found: dict[Ask, Answer] = {}
        failure = ""
        for attempt in range(ATTEMPTS):
            left = [ask for ask in asks if ask not in found]
            if not left:
                break
            if attempt:
                time.sleep(PAUSE_S * 4 ** (attempt - 1))
            for ask, answer in zip(left, self._try(left), strict=True):
                if isinstance(answer, BaseException):
                    failure = self._failure(ask, answer)
                elif len(answer.data) < ask.least:
                    failure = f"{ask.path}: the answer ends after {len(answer.data)} of {ask.least} bytes"
                    if ask.expected is not None and not ask.expected.agrees(answer.version):
                        found[ask] = answer  # of another version: the caller says so
                else:
                    found[ask] = answer
        if len(found) < len(set(asks)):
            raise ConnectionError(
                f"{self.name}: {failure}; tried {ATTEMPTS} times. Look at the connection and the server, then run the "
                "same command again: what was fetched is kept"
            )
        return [found[ask] for ask in asks]

    def _try(self, asks: Sequence[Ask]) -> list[Any]:
        try:
            return ask_all(self._file_system(), self.url, asks)
        except (OSError, TimeoutError) as error:
            return [error] * len(asks)

    def _failure(self, ask: Ask, error: BaseException) -> str:
        """What went wrong, where another attempt may go right; raises where it cannot."""
        where, status = f"{self.name}/{ask.path}", getattr(error, "status", None)
        if isinstance(error, NoRangesError):
            raise NoRangesError(ask.path) from error
        if isinstance(error, FileNotFoundError) or status in {404, 410}:
            raise DamagedStoreError(f"{where} is not there; see that the whole store was uploaded") from error
        if isinstance(error, PermissionError) or status in FINAL_HTTP or "Credentials" in type(error).__name__:
            said = f"HTTP {status}" if status else hidden(str(error))
            public = "; FSSPEC_S3_ANON=true reads a public bucket" if self.url.startswith("s3:") else ""
            raise PermissionError(
                f"{where} is refused ({said}): see the address, and that you may read it (credentials come from the "
                f"environment, as usual for its protocol{public})"
            ) from error
        ours = not type(error).__module__.startswith(FOREIGN)
        if isinstance(error, ImportError) or (ours and not isinstance(error, (OSError, TimeoutError))):
            raise error
        said = f"HTTP {status}" if status else hidden(f"{type(error).__name__} {error}".strip())
        return f"{ask.path}: {said}"

    def _file_system(self) -> Any:  # noqa: ANN401 - fsspec has no types
        if self._made_by != os.getpid():
            _LEFT_BEHIND.append(self._made)
            protocol = self.url.partition("://")[0]
            try:
                self._made = _file_system(protocol)
            except ImportError as error:
                raise ImportError(f"{self.name} needs a package that is missing: {PROTOCOLS[protocol]}") from error
            self._made_by = os.getpid()
        return self._made


def _file_system(protocol: str) -> Any:  # noqa: ANN401 - fsspec has no types
    """Return a file system of this process alone: one that was made before a fork has its loop on the other side."""
    if protocol in {"http", "https"}:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=ranges.CONNECT_S, sock_read=ranges.SILENCE_S)
        # Nothing is unpacked: lengths are of what is sent. No trust_env: it gives ~/.netrc's logins to every host.
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
