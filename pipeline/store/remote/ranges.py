"""Ranges of files through fsspec's file systems, each answer with its version, bounded in size and time.

A request may take START_S, and a second more for each MIN_BYTES_S that came: so a server that drips is left, and a slow
line that moves is not.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

from .addresses import login_of_host, without_login
from .file_version import Answer, Ask, version_of_headers, version_of_info

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

CONNECT_S, SILENCE_S = 10.0, 30.0
"""Longest wait for a connection, and for the next bytes."""
START_S, MIN_BYTES_S = 60.0, 10_000.0
MAX_REDIRECTS = 5
REDIRECTS = {301, 302, 303, 307, 308}
AT_ONCE = 6
"""Requests at once, as in browsers; a small server drops connections that it cannot queue."""
PIECE_BYTES = 2**18
PRECONDITION_FAILED = 412


class NoRangesError(Exception):
    """The server sends whole files only, and this one is longer than what was asked for."""


def ask_all(system: Any, url: str, asks: Sequence[Ask]) -> list[Any]:  # noqa: ANN401 - fsspec has no types
    """Answers of a file system to all, at once; an error in the place of an answer that did not come."""
    if not system.async_impl:
        return [_ask_now(system, url, ask) for ask in asks]
    from fsspec.asyn import sync

    answer = getattr(system, "answer", None) or _Plain(system).answer

    async def all_of_them() -> list[Any]:
        free = asyncio.Semaphore(AT_ONCE)

        async def one(ask: Ask) -> Answer:
            async with free:
                found: Answer = await answer(f"{url}/{ask.path}", ask)
                return found

        return await asyncio.gather(*map(one, asks), return_exceptions=True)

    found: list[Any] = sync(system.loop, all_of_them)
    return found


def _ask_now(system: Any, url: str, ask: Ask) -> Answer | Exception:  # noqa: ANN401 - as above
    path = f"{url}/{ask.path}"
    try:
        return Answer(system.cat_file(path, start=ask.start, end=ask.end), version_of_info(system.info(path)))
    except Exception as error:  # noqa: BLE001 - judged by the caller
        return error


class _Plain:
    """Any other file system: it tells versions apart from the bytes, so they are asked for once a file."""

    def __init__(self, system: Any) -> None:  # noqa: ANN401 - as above
        self.system = system

    async def answer(self, url: str, ask: Ask) -> Answer:
        """Bytes of a file."""
        limit_s = START_S + (ask.end - ask.start) / MIN_BYTES_S
        async with asyncio.timeout(limit_s):
            version = ask.expected or version_of_info(await self.system._info(url))  # noqa: SLF001 - as fsspec calls it
            return Answer(await self.system._cat_file(url, start=ask.start, end=ask.end), version)  # noqa: SLF001


async def _bounded(limit: asyncio.Timeout, read: Callable[[], Awaitable[bytes]], most: int) -> bytes:
    """Read to the end, or until there is one byte more than `most`; the time that it may take grows with what came."""
    begin, data = asyncio.get_running_loop().time(), bytearray()
    while len(data) <= most and (piece := await read()):
        data += piece
        limit.reschedule(begin + START_S + len(data) / MIN_BYTES_S)
    return bytes(data)


def _too_slow(error: TimeoutError, limit: asyncio.Timeout) -> TimeoutError:
    """What to say where an answer took too long: as it was said, or that it was our own limit."""
    if not limit.expired():
        return error
    return TimeoutError(f"nothing whole in {START_S:g} s, at less than {MIN_BYTES_S / 1000:g} KB a second")


@cache
def bounded_http() -> Any:  # noqa: ANN401 - fsspec has no types
    """Return fsspec's HTTP, with each answer looked at before and while it is read; its own reads whatever comes."""
    from fsspec.implementations.http import HTTPFileSystem

    class BoundedHttp(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
        async def answer(self, url: str, ask: Ask) -> Answer:
            session, condition = await self.set_session(), {}
            if ask.expected is not None and ask.expected.is_strong:
                condition = {"If-Match": ask.expected.etag}
            try:
                async with asyncio.timeout(START_S) as limit:
                    return await _http_answer(session, url, ask, condition, limit)
            except TimeoutError as error:
                raise _too_slow(error, limit) from error

    return BoundedHttp


async def _http_answer(
    session: Any,  # noqa: ANN401 - aiohttp's
    url: str,
    ask: Ask,
    condition: dict[str, str],
    limit: asyncio.Timeout,
) -> Answer:
    headers = {"Range": f"bytes={ask.start}-{ask.end - 1}", "Accept-Encoding": "identity", **condition}
    async with await _follow(session, url, headers) as answer:
        version = version_of_headers(answer.status, answer.headers)
        if answer.status == PRECONDITION_FAILED and condition:
            # Another version, or a server on the way that judges by its own: the bytes' own headers decide
            return await _http_answer(session, url, ask, {}, limit)
        if answer.status == 416:  # nothing there: the file ends before
            return Answer(b"", version)
        if answer.status in {404, 410}:
            raise FileNotFoundError(ask.path)
        answer.raise_for_status()
        whole, asked = answer.status == 200, ask.end - ask.start
        if whole and (ask.start > 0 or (answer.content_length or 0) > ask.end):
            raise NoRangesError
        if not whole and not answer.headers.get("Content-Range", "").startswith(f"bytes {ask.start}-"):
            raise OSError(f"HTTP {answer.status} with another range than asked for")
        data = await _bounded(limit, lambda: answer.content.read(PIECE_BYTES), asked)
        if len(data) > asked:
            raise NoRangesError if whole else OSError("more bytes than asked for")
        return Answer(data, version)


async def _follow(session: Any, url: str, headers: dict[str, str]) -> Any:  # noqa: ANN401 - aiohttp's
    """Ask, and follow redirects to http and https; name and password go to no other host than the one they are for."""
    from yarl import URL

    plain, login = without_login(url)
    first = here = URL(plain)
    login = login or await asyncio.to_thread(login_of_host, first.host)
    for _ in range(MAX_REDIRECTS + 1):
        own = {"Authorization": login} if login and _same_server(first, here) else {}
        proxy = await asyncio.to_thread(_proxy_of, here)
        answer = await session.get(here, headers=headers | own, allow_redirects=False, **proxy)
        target = answer.headers.get("Location")
        if answer.status not in REDIRECTS or target is None:
            return answer
        answer.release()
        try:  # a signed address must go out as it came
            there = here.join(URL(target, encoded=target.isascii() and " " not in target))
            there.port  # noqa: B018 - looked at for the first time here
        except ValueError:
            raise PermissionError("redirected to what is no address") from None
        if there.scheme not in {"http", "https"} or not there.host:
            raise PermissionError(f"redirected to another protocol, {there.scheme[:20]!r}")
        if here.scheme == "https" and there.scheme != "https":
            raise PermissionError("redirected from https to http")
        here = there.with_user(None)
    raise OSError(f"redirected more than {MAX_REDIRECTS} times")


def _same_server(one: Any, other: Any) -> bool:  # noqa: ANN401 - yarl's URLs
    """Whether what is for the first address may be sent to the second: the same server, or its port for https."""
    if one.host != other.host:
        return False
    upgraded = (one.scheme, one.port, other.scheme, other.port) == ("http", 80, "https", 443)
    return upgraded or (one.scheme, one.port) == (other.scheme, other.port)


def _proxy_of(url: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
    """Arguments for the proxy that the environment names for a URL."""
    address = None if proxy_bypass(url.host) else getproxies().get(url.scheme)
    if address is None:
        return {}
    plain, login = without_login(address if "://" in address else f"http://{address}")
    login = login or login_of_host(plain.partition("://")[2].partition("/")[0].rpartition(":")[0])
    return {"proxy": plain, "proxy_headers": {"Proxy-Authorization": login} if login else None}


@cache
def versioned_s3() -> Any:  # noqa: ANN401 - fsspec has no types
    """Return s3fs, with versions and a limit of time; its own reads tell neither."""
    from s3fs import S3FileSystem

    class VersionedS3(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
        async def answer(self, url: str, ask: Ask) -> Answer:
            bucket, key, _ = self.split_path(url)
            wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={ask.start}-{ask.end - 1}"}
            condition = {}
            if ask.expected is not None and ask.expected.is_strong:
                condition = {"IfMatch": ask.expected.etag}
            try:
                async with asyncio.timeout(START_S) as limit:
                    got = await self._object(wanted, condition)
                    body, facts = got["Body"], got["ResponseMetadata"]
                    try:
                        version = version_of_headers(facts["HTTPStatusCode"], _named(facts["HTTPHeaders"]))
                        data = await _bounded(limit, lambda: body.read(PIECE_BYTES), ask.end - ask.start)
                    finally:
                        body.close()
            except TimeoutError as error:
                raise _too_slow(error, limit) from error
            if len(data) > ask.end - ask.start:
                raise OSError("more bytes than asked for")
            return Answer(data, version)

        async def _object(self, wanted: dict[str, str], condition: dict[str, str]) -> Any:  # noqa: ANN401 - botocore's
            try:
                return await self._call_s3("get_object", **wanted, **condition)
            except OSError as error:
                facts = getattr(error.__cause__, "response", None) or {}
                status = facts.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if not condition or status != PRECONDITION_FAILED:
                    raise
            return await self._call_s3("get_object", **wanted)  # the bytes' own headers decide

    return VersionedS3


def _named(headers: dict[str, str]) -> dict[str, str]:
    """Headers by their usual names; botocore gives them in small letters."""
    return {name: headers[name.lower()] for name in _NAMES if name.lower() in headers}


_NAMES = ("ETag", "Last-Modified", "Content-Range", "Content-Length")
