"""Byte ranges of files under a URL, through fsspec: bounded in size and time, and asked for again where that helps."""

from __future__ import annotations

import os
import re
import time
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .codec import DamagedStoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOCOLS = {
    "http": "pip install 'tiekd-pipeline[http]'",
    "https": "pip install 'tiekd-pipeline[http]'",
    "s3": "pip install 'tiekd-pipeline[s3]'",
    "gs": "pip install gcsfs",
    "az": "pip install adlfs",
    "memory": "pip install fsspec",
}
"""Protocols that a store may come by, and what to install where the package behind one is missing."""
ATTEMPTS = 4
PAUSE_S = 0.1
"""Before the second attempt; four times as long before each one after it."""
CONNECT_S, SILENCE_S, WHOLE_S = 10.0, 30.0, 600.0
"""Longest wait for a connection, for the next bytes, and for one whole answer."""
MAX_REDIRECTS = 5
AT_ONCE = 6
"""Requests to an HTTP server at once, as in browsers; a small server drops connections that it cannot queue."""
FINAL_HTTP = set(range(400, 500)) - {408, 425, 429}
FOREIGN = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "azure", "adlfs", "fsspec")
"""Packages whose errors mean that the other side failed, whatever they derive from."""


class NoRangesError(Exception):
    """The server sends whole files only, and this one is longer than what was asked for."""


class Ask(NamedTuple):
    """Bytes `start` to `end` of a file; an answer of fewer than `least` is a failure."""

    path: str
    start: int
    end: int
    least: int


def check_url(url: str) -> str:
    """Return the URL of a store without a slash at its end.

    Raises ValueError for another protocol, a chain of them, or a URL that is more than a plain address.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in PROTOCOLS:
        hint = "; give a path on this machine without file://" if protocol in {"file", "local"} else ""
        raise ValueError(f"{hidden(url)}: protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}{hint}")
    rest = rest.rstrip("/")
    if not rest.strip("/") or (rest.startswith("/") and protocol != "memory"):
        raise ValueError(f"{hidden(url)}: expected {protocol}://HOST_OR_BUCKET/PATH/NAME.zarr")
    if re.search(r"[?#\s\\]|::|%2[ef]", rest, re.IGNORECASE) or {".", ".."} & set(rest.split("/")):
        raise ValueError(
            f"{hidden(url)}: expected a plain address without ?, #, '..', '::' or blanks; a signed address names one "
            "file and cannot serve a store"
        )
    return f"{protocol}://{rest}"


def hidden(url: str) -> str:
    """Return the URL as messages show it: without a password."""
    return re.sub(r"://[^/@]*@", "://***@", url)


_LEFT_BEHIND: list[Any] = []
"""File systems of the process that this one was forked from: to close one waits for a thread that is not here."""


class Remote:
    """The other side: ranges of files under a URL, asked for again where that may help."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, hidden(url)
        self._made_by: int | None = None
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made_by": None, "_made": None}

    def fetch(self, asks: Sequence[Ask]) -> list[bytes]:
        """Answers to all, fetched at once.

        Raises DamagedStoreError for a file that is not there, PermissionError for one that is refused, NoRangesError
        naming the file, and ConnectionError once ATTEMPTS have failed.
        """
        found: dict[Ask, bytes] = {}
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
                elif len(answer) < ask.least:
                    failure = f"{ask.path}: the answer ends after {len(answer)} of {ask.least} bytes"
                else:
                    found[ask] = answer
        if len(found) < len(asks):
            raise ConnectionError(
                f"{self.name}: {failure}; tried {ATTEMPTS} times. Look at the connection and the server, then run the "
                "same command again: what was fetched is kept"
            )
        return [found[ask] for ask in asks]

    def _try(self, asks: Sequence[Ask]) -> list[Any]:
        paths = [f"{self.url}/{ask.path}" for ask in asks]
        starts, ends = [ask.start for ask in asks], [ask.end for ask in asks]
        try:
            answers: list[Any] = self._file_system().cat_ranges(paths, starts, ends, on_error="return")
        except (OSError, TimeoutError) as error:
            return [error] * len(asks)
        return answers

    def _failure(self, ask: Ask, error: BaseException) -> str:
        """What went wrong, where another attempt may go right; raises where it cannot."""
        where, status = f"{self.name}/{ask.path}", getattr(error, "status", None)
        if isinstance(error, NoRangesError):
            raise NoRangesError(ask.path) from error
        if isinstance(error, FileNotFoundError) or status in {404, 410}:
            raise DamagedStoreError(f"{where} is not there; see that the whole store was uploaded") from error
        if isinstance(error, PermissionError) or status in FINAL_HTTP or "Credentials" in type(error).__name__:
            said = f"HTTP {status}" if status else str(error)
            public = "; FSSPEC_S3_ANON=true reads a public bucket" if self.url.startswith("s3:") else ""
            raise PermissionError(
                f"{where} is refused ({said}): see the address, and that you may read it (credentials come from the "
                f"environment, as usual for its protocol{public})"
            ) from error
        ours = not type(error).__module__.startswith(FOREIGN)
        if isinstance(error, ImportError) or (ours and not isinstance(error, (OSError, TimeoutError))):
            raise error
        said = f"HTTP {status}" if status else f"{type(error).__name__} {error}".strip().replace(self.url, self.name)
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

        limits = aiohttp.ClientTimeout(total=WHOLE_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        # trust_env: proxies and ~/.netrc. Nothing is unpacked: lengths are of what is sent.
        options = {"timeout": limits, "trust_env": True, "auto_decompress": False}
        http = _bounded_http()(client_kwargs=options, skip_instance_cache=True)
        http.batch_size = AT_ONCE
        return http
    import fsspec

    if protocol != "s3":
        return fsspec.filesystem(protocol, skip_instance_cache=True)
    waits = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S, "retries": {"total_max_attempts": 1}}
    s3 = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs=waits)
    s3.retries = 1  # we count attempts ourselves
    return s3


@cache
def _bounded_http() -> Any:  # noqa: ANN401 - fsspec has no types
    """Return fsspec's HTTP, with each answer looked at before and while it is read; its own reads whatever comes."""
    from fsspec.implementations.http import HTTPFileSystem

    class BoundedHttp(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
        async def _cat_file(self, url: str, start: int, end: int) -> bytes:
            session = await self.set_session()
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            # aiohttp follows to http and https alone, never to file:
            async with session.get(self.encode_url(url), headers=headers, max_redirects=MAX_REDIRECTS) as answer:
                if answer.status == 416:  # nothing there: the file ends before
                    return b""
                self._raise_not_found_for_status(answer, url)
                if url.startswith("https:") and any(hop.url.scheme != "https" for hop in (*answer.history, answer)):
                    raise PermissionError("redirected from https to http")
                whole = answer.status == 200
                if whole and (start > 0 or (answer.content_length or 0) > end):
                    raise NoRangesError
                if not whole and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise OSError(f"HTTP {answer.status} with another range than asked for")
                data = bytearray()
                async for piece in answer.content.iter_chunked(2**18):
                    data += piece
                    if len(data) > end - start:
                        raise NoRangesError if whole else OSError("more bytes than asked for")
                return bytes(data)

    return BoundedHttp
