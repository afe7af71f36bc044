"""Fetch ranges of files through fsspec, with their versions and limits of size and time.

A request may take START_S, plus a second per MIN_BYTES_S received: a stalling server times out, a slow connection does
not.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

from .addresses import login_of_host, without_login
from .file_version import Answer, RangeRequest, version_of_headers, version_of_info

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

CONNECT_S, SILENCE_S = 10.0, 30.0
"""Timeouts for connecting and for the next bytes."""
START_S, MIN_BYTES_S = 60.0, 10_000.0
MAX_REDIRECTS = 5
REDIRECTS = {301, 302, 303, 307, 308}
AT_ONCE = 6
"""Concurrent requests, as in browsers; small servers drop connections beyond their queue."""
PIECE_BYTES = 2**18
PRECONDITION_FAILED = 412


class NoRangesError(Exception):
    """The server sends whole files only, and this file is longer than the requested range."""


def fetch_all(system: Any, url: str, requests: Sequence[RangeRequest]) -> list[Any]:  # noqa: ANN401 - fsspec has no types
    """Return responses to all requests, fetched concurrently; failed requests give their exception."""
    if not system.async_impl:
        return [_fetch_now(system, url, request) for request in requests]
    from fsspec.asyn import sync

    answer = getattr(system, "answer", None) or _Plain(system).answer

    async def all_of_them() -> list[Any]:
        free = asyncio.Semaphore(AT_ONCE)

        async def one(request: RangeRequest) -> Answer:
            async with free:
                found: Answer = await answer(f"{url}/{request.path}", request)
                return found

        return await asyncio.gather(*map(one, requests), return_exceptions=True)

    found: list[Any] = sync(system.loop, all_of_them)
    return found


def _fetch_now(system: Any, url: str, request: RangeRequest) -> Answer | Exception:  # noqa: ANN401 - as above
    path = f"{url}/{request.path}"
    try:
        return Answer(system.cat_file(path, start=request.start, end=request.end), version_of_info(system.info(path)))
    except Exception as error:  # noqa: BLE001 - judged by the caller
        return error


class _Plain:
    """Other file systems: versions come from a separate call, made once per file."""

    def __init__(self, system: Any) -> None:  # noqa: ANN401 - as above
        self.system = system

    async def answer(self, url: str, request: RangeRequest) -> Answer:
        """Return a range of a file."""
        limit_s = START_S + (request.end - request.start) / MIN_BYTES_S
        async with asyncio.timeout(limit_s):
            version = request.expected or version_of_info(await self.system._info(url))  # noqa: SLF001 - as fsspec calls it
            return Answer(await self.system._cat_file(url, start=request.start, end=request.end), version)  # noqa: SLF001


async def _bounded(limit: asyncio.Timeout, read: Callable[[], Awaitable[bytes]], most: int) -> bytes:
    """Read to the end or one byte beyond `most`; the time limit grows with the bytes received."""
    begin, data = asyncio.get_running_loop().time(), bytearray()
    while len(data) <= most and (piece := await read()):
        data += piece
        limit.reschedule(begin + START_S + len(data) / MIN_BYTES_S)
    return bytes(data)


def _too_slow(error: TimeoutError, limit: asyncio.Timeout) -> TimeoutError:
    """Return the error for a timeout, stating our own limit if it expired."""
    if not limit.expired():
        return error
    return TimeoutError(f"no complete response in {START_S:g} s at less than {MIN_BYTES_S / 1000:g} KB per second")


@cache
def bounded_http() -> Any:  # noqa: ANN401 - fsspec has no types
    """Return fsspec's HTTP file system with checked, bounded responses."""
    from fsspec.implementations.http import HTTPFileSystem

    class BoundedHttp(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
        async def answer(self, url: str, request: RangeRequest) -> Answer:
            session, condition = await self.set_session(), {}
            if request.expected is not None and request.expected.is_strong:
                condition = {"If-Match": request.expected.etag}
            try:
                async with asyncio.timeout(START_S) as limit:
                    return await _http_answer(session, url, request, condition, limit)
            except TimeoutError as error:
                raise _too_slow(error, limit) from error

    return BoundedHttp


async def _http_answer(
    session: Any,  # noqa: ANN401 - aiohttp's
    url: str,
    request: RangeRequest,
    condition: dict[str, str],
    limit: asyncio.Timeout,
) -> Answer:
    headers = {"Range": f"bytes={request.start}-{request.end - 1}", "Accept-Encoding": "identity", **condition}
    async with await _follow(session, url, headers) as answer:
        version = version_of_headers(answer.status, answer.headers)
        if answer.status == PRECONDITION_FAILED and condition:
            # Another version, or a proxy's own comparison: the headers of the bytes decide
            return await _http_answer(session, url, request, {}, limit)
        if answer.status == 416:  # the file ends before the range
            return Answer(b"", version)
        if answer.status in {404, 410}:
            raise FileNotFoundError(request.path)
        answer.raise_for_status()
        whole, asked = answer.status == 200, request.end - request.start
        if whole and (request.start > 0 or (answer.content_length or 0) > request.end):
            raise NoRangesError
        if not whole and not answer.headers.get("Content-Range", "").startswith(f"bytes {request.start}-"):
            raise OSError(f"HTTP {answer.status} with another range than requested")
        data = await _bounded(limit, lambda: answer.content.read(PIECE_BYTES), asked)
        if len(data) > asked:
            raise NoRangesError if whole else OSError("more bytes than requested")
        return Answer(data, version)


async def _follow(session: Any, url: str, headers: dict[str, str]) -> Any:  # noqa: ANN401 - aiohttp's
    """Request a URL and follow http(s) redirects; the login is sent to its own server only."""
    from yarl import URL

    plain, login = without_login(url)
    first = here = URL(plain)
    login = login or await asyncio.to_thread(login_of_host, first.host)
    for _ in range(MAX_REDIRECTS + 1):
        auth = {"Authorization": login} if login and _same_server(first, here) else {}
        proxy = await asyncio.to_thread(_proxy_of, here)
        answer = await session.get(here, headers=headers | auth, allow_redirects=False, **proxy)
        target = answer.headers.get("Location")
        if answer.status not in REDIRECTS or target is None:
            return answer
        answer.release()
        try:  # keep a signed URL's encoding
            there = here.join(URL(target, encoded=target.isascii() and " " not in target))
            there.port  # noqa: B018 - validated here
        except ValueError:
            raise PermissionError("redirected to an invalid URL") from None
        if there.scheme not in {"http", "https"} or not there.host:
            raise PermissionError(f"redirected to another protocol, {there.scheme[:20]!r}")
        if here.scheme == "https" and there.scheme != "https":
            raise PermissionError("redirected from https to http")
        here = there.with_user(None)
    raise OSError(f"redirected more than {MAX_REDIRECTS} times")


def _same_server(one: Any, other: Any) -> bool:  # noqa: ANN401 - yarl's URLs
    """Return whether the login of one URL may be sent to another: same server, or its https port."""
    if one.host != other.host:
        return False
    upgraded = (one.scheme, one.port, other.scheme, other.port) == ("http", 80, "https", 443)
    return upgraded or (one.scheme, one.port) == (other.scheme, other.port)


def _proxy_of(url: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
    """Return request arguments for the proxy of a URL, from the environment."""
    address = None if proxy_bypass(url.host) else getproxies().get(url.scheme)
    if address is None:
        return {}
    plain, login = without_login(address if "://" in address else f"http://{address}")
    login = login or login_of_host(plain.partition("://")[2].partition("/")[0].rpartition(":")[0])
    return {"proxy": plain, "proxy_headers": {"Proxy-Authorization": login} if login else None}


@cache
def versioned_s3() -> Any:  # noqa: ANN401 - fsspec has no types
    """Return s3fs with file versions and time limits."""
    from s3fs import S3FileSystem

    class VersionedS3(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
        async def answer(self, url: str, request: RangeRequest) -> Answer:
            bucket, key, _ = self.split_path(url)
            wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={request.start}-{request.end - 1}"}
            condition = {}
            if request.expected is not None and request.expected.is_strong:
                condition = {"IfMatch": request.expected.etag}
            try:
                async with asyncio.timeout(START_S) as limit:
                    got = await self._object(wanted, condition)
                    body, facts = got["Body"], got["ResponseMetadata"]
                    try:
                        version = version_of_headers(facts["HTTPStatusCode"], _named(facts["HTTPHeaders"]))
                        data = await _bounded(limit, lambda: body.read(PIECE_BYTES), request.end - request.start)
                    finally:
                        body.close()
            except TimeoutError as error:
                raise _too_slow(error, limit) from error
            if len(data) > request.end - request.start:
                raise OSError("more bytes than requested")
            return Answer(data, version)

        async def _object(self, wanted: dict[str, str], condition: dict[str, str]) -> Any:  # noqa: ANN401 - botocore's
            try:
                return await self._call_s3("get_object", **wanted, **condition)
            except OSError as error:
                facts = getattr(error.__cause__, "response", None) or {}
                status = facts.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if not condition or status != PRECONDITION_FAILED:
                    raise
            return await self._call_s3("get_object", **wanted)  # the headers of the bytes decide

    return VersionedS3


def _named(headers: dict[str, str]) -> dict[str, str]:
    """Return headers by their usual names; botocore lowercases them."""
    return {name: headers[name.lower()] for name in _NAMES if name.lower() in headers}


_NAMES = ("ETag", "Last-Modified", "Content-Range", "Content-Length")
