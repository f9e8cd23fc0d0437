"""
Requests of the command line to an app. The one rule: whoever answers is a stranger: its bytes and its time are bounded,
and what goes wrong is told in words.

No redirect is followed, as a token would follow it; no cookie is kept, as it would change the next answer; nothing is
decoded, as it might grow.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from echo_cache import fields
from echo_cache.cli.text import shown
from echo_cache.errors import ConfigurationError, EchoCacheError
from echo_cache.model import Headers
from echo_cache.options import PolicyOptions
from echo_cache.policy import key_of_url

if TYPE_CHECKING:
    import httpx

__all__ = ["Reply", "Unavailable", "client", "fetch", "flaw_of", "parse_header", "require_url", "shown_url"]

_LONGEST_SHOWN: Final = 300
_LONGEST_URL: Final = 8_192
# Names that never lead through a proxy, whatever the environment says: they are this machine.
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_AS_SENT: Final = PolicyOptions()
# As browsers have it, so that what is asked here is what they get; bodies are not decoded.
_LIKE_BROWSERS: Final = {"accept": "*/*", "accept-encoding": "gzip, deflate, br, zstd", "user-agent": "echo-cache"}


class Unavailable(EchoCacheError):
    """Raised when what is to be asked cannot be reached, refuses, or is not what it should be; says what to do."""


@dataclass(frozen=True, slots=True)
class Reply:
    """
    An answer, and what was asked: *sent* has the fields of the request. seconds: until its head was there.

    body: its bytes as they came, if they were wanted. is_whole: whether its end came in time.
    """

    status: int
    headers: Headers
    sent: Headers
    seconds: float
    body: bytes = b""
    is_whole: bool = True

    def get(self, name: bytes) -> str:
        """Return the value of the field *name*, "" where there is none, for being shown."""
        value = fields.get_joined(self.headers, name)
        return "" if value is None else shown(value, _LONGEST_SHOWN)


@asynccontextmanager
async def client(concurrency: int = 8) -> AsyncIterator[httpx.AsyncClient]:
    """Lend a client for *concurrency* requests at a time."""
    import httpx  # it takes longer to import than most commands take to run

    nothing = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    async with httpx.AsyncClient(
        headers=_LIKE_BROWSERS,
        cookies=nothing,
        follow_redirects=False,
        # `fetch` measures the time of a request as a whole.
        timeout=httpx.Timeout(None),
        limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        mounts={f"all://{host}": None for host in _LOOPBACK},
    ) as lent:
        yield lent


async def fetch(
    lent: httpx.AsyncClient,
    method: str,
    url: str,
    headers: Sequence[tuple[str, str]] = (),
    *,
    content: bytes | None = None,
    most_bytes: int | None = None,
    timeout: float = 30.0,
    where: str = "",
) -> Reply:
    """
    Return the answer to one request, within *timeout* seconds.

    most_bytes: how long a body may be that is wanted; None: it is read and dropped, and may be cut off by the time.
    where: what a message calls it; the URL if empty. Raises Unavailable.
    """
    import httpx

    where = where or shown_url(url)
    octets = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    # The reply as far as it has come.
    reply: Reply | None = None

    async def ask() -> Reply:
        nonlocal reply
        started = time.monotonic()
        async with lent.stream(method, url, headers=octets, content=content) as response:
            told = tuple([(name.lower(), value) for name, value in response.headers.raw])
            sent = tuple([(name.lower(), value) for name, value in response.request.headers.raw])
            reply = Reply(response.status_code, told, sent, time.monotonic() - started, is_whole=False)
            parts, size = [], 0
            async for part in response.aiter_raw():
                size += len(part)
                if most_bytes is not None:
                    if size > most_bytes:
                        raise Unavailable(f"{where} answers with more than {most_bytes} bytes")
                    parts.append(part)
            return replace(reply, body=b"".join(parts), is_whole=True)

    try:
        async with asyncio.timeout(timeout):
            try:
                return await ask()
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # A server may close a connection in the moment in which it is used again, as it does behind a handler
                # that has raised.
                if reply is not None or method != "GET":
                    raise
                return await ask()
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        if reply is not None and most_bytes is None:
            return reply
        raise Unavailable(_trouble(error, where, timeout)) from error


def _trouble(error: BaseException, where: str, timeout: float) -> str:
    """Return what is wrong and what to do about it, in a sentence or two."""
    import httpx

    chain = list(_causes(error))
    words = shown(next((str(one) for one in chain if str(one)), type(error).__name__), _LONGEST_SHOWN)
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
        return (
            f"{where} has a certificate that is not trusted ({words}). Use the name that it was made for, or name the "
            "file of its authority in SSL_CERT_FILE."
        )
    if any(isinstance(one, ssl.SSLError) for one in chain):
        return f"{where} does not speak TLS as it should ({words}). If it is plain HTTP, write http://."
    if any(isinstance(one, socket.gaierror) for one in chain):
        return f"{where} cannot be reached: the name of its host is not known ({words}). Look for a typing mistake."
    if any(isinstance(one, ConnectionRefusedError) for one in chain):
        return f"{where} cannot be reached: nothing listens there. See whether the app runs, and on which port."
    if any(isinstance(one, TimeoutError | httpx.TimeoutException) for one in chain):
        return f"{where} did not answer within {timeout:g} s. See whether the app hangs, or give --timeout more."
    if any(isinstance(one, httpx.ConnectError) for one in chain):
        return f"{where} cannot be reached ({words})."
    return f"{where} does not answer as an HTTP server should ({words})."


def _causes(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    for _ in range(10):
        if following is None:
            return
        yield following
        following = following.__cause__ or following.__context__


def flaw_of(url: str) -> str:
    """Return what keeps *url* from being asked for, in words that have nothing of it; "" where nothing does."""
    try:
        is_sound = len(url) <= _LONGEST_URL and url.isprintable() and " " not in url
        if is_sound:
            key_of_url(url, _AS_SENT)
            parts = urlsplit(url)
            is_sound = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # also what key_of_url raises, and names that no host has
        is_sound = False
    if not is_sound:
        return "an absolute URL is needed, as http://localhost:8000/products/7"
    if "@" in urlsplit(url).netloc:
        return "there must be no user and password in the URL; give them as a field: -H 'Authorization: ...'"
    return ""


def require_url(url: str) -> str:
    """Return *url* if it can be asked for. Raises ConfigurationError, without what may be a password."""
    flaw = flaw_of(url)
    if flaw:
        raise ConfigurationError(f"{flaw}; not {shown_url(url)!r}")
    return url


def shown_url(url: str, most: int = _LONGEST_SHOWN) -> str:
    """Return *url* for a message: without user and password, printable, cut to *most* characters."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return shown(url, most)
    authority, slash, path = rest.partition("/")
    return shown(f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path}", most)


def parse_header(line: str) -> tuple[str, str]:
    """Return name and value of a field that is given as "Name: value". Raises ConfigurationError, without either."""
    name, colon, value = line.partition(":")
    try:
        octets = name.strip().lower().encode("ascii"), value.strip().encode("latin-1")
    except UnicodeError:
        octets = b"", b""
    if not colon or not fields.is_valid_field_name(octets[0]) or not fields.is_valid_field_value(octets[1]):
        # Where the colon is missing, what is a name is not to be told from what is a secret.
        raise ConfigurationError("a field is given as 'Name: value', in one line of Latin-1")
    return name.strip(), value.strip()
