"""URLs of stores: validation, and display without passwords or signatures."""

from __future__ import annotations

import base64
import netrc
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import PipelineError

PROTOCOLS = {
    "http": "pip install 'tiekd-pipeline[http]'",
    "https": "pip install 'tiekd-pipeline[http]'",
    "s3": "pip install 'tiekd-pipeline[s3]'",
    "gs": "pip install gcsfs",
    "az": "pip install adlfs",
    "memory": "pip install fsspec",
}
"""Supported protocols, and how to install the package that each one needs."""

# A password may contain `@`, so everything up to the last `@` before the path is hidden. If no port follows the first
# colon, the password contains `/`, `?` or `#`, and everything up to the last `@` is hidden.
_LOGIN = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#:@[]*:(?!\d+(?:[/?#]|$))\S*@)")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\")>]*")


def check_url(url: str) -> str:
    """Return the URL of a store without a trailing slash.

    Raises PipelineError for another protocol, chained protocols, or a URL with a query, fragment, `..` or blanks.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in PROTOCOLS:
        hint = "; give a local path without file://" if protocol in {"file", "local"} else ""
        raise PipelineError(f"{hidden(url)}: protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}{hint}")
    rest = rest.rstrip("/")
    if not rest.strip("/") or (rest.startswith("/") and protocol != "memory"):
        raise PipelineError(f"{hidden(url)}: expected {protocol}://HOST_OR_BUCKET/PATH/NAME.zarr")
    if re.search(r"[?#\s\\]|::|%2[ef]", rest, re.IGNORECASE) or {".", ".."} & set(rest.split("/")):
        raise PipelineError(
            f"{hidden(url)}: expected a URL without ?, #, '..', '::' or blanks; a signed URL covers one file "
            "and cannot serve a store"
        )
    return f"{protocol}://{rest}"


def hidden(text: str) -> str:
    """Return a text with user names, passwords and signatures of its URLs hidden."""
    return _QUERY.sub(r"\1?***", _LOGIN.sub("***@", text))


def without_login(url: str) -> tuple[str, str | None]:
    """Split an http(s) URL into the URL without login, and the Authorization header of the login."""
    head, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    parts = urlsplit(url)
    plain = f"{head}://{host.rpartition('@')[2]}{slash}{path}"
    if parts.username is None:
        return plain, None
    return plain, _basic(unquote(parts.username), unquote(parts.password or ""))


def login_of_host(host: str | None) -> str | None:
    """Return the Authorization header for a host from the user's .netrc file, if any."""
    try:
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        login = netrc.netrc(path).authenticators(host or "") if path.is_file() else None
    except (OSError, RuntimeError, netrc.NetrcParseError):  # no home directory, or an unreadable file
        return None
    return None if login is None else _basic(login[0], login[2] or "")


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
