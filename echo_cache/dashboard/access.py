"""
Who may use the dashboard.

The one rule: what is not allowed by name is refused, and what was given as a secret is neither kept, shown nor logged.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import inspect
import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from starlette.requests import Request

from echo_cache.asgi.types import Scope
from echo_cache.errors import ConfigurationError

__all__ = [
    "CLOSED",
    "COOKIE",
    "LOGIN_SECONDS",
    "Auth",
    "Closed",
    "Door",
    "is_foreign",
    "is_local",
    "is_of_another_site",
]


class Closed(enum.Enum):
    """For the dashboard that nobody may use."""

    CLOSED = "closed"


CLOSED: Final = Closed.CLOSED
Auth: TypeAlias = str | Sequence[str] | Callable[[Request], bool | Awaitable[bool]] | None

COOKIE: Final = "echo_cache_dashboard"
LOGIN_SECONDS: Final = 12 * 3600

_TOKEN: Final = re.compile(r"[!-~]{16,1024}")
_COOKIE_VALUE: Final = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})")
_LOCAL_HOST: Final = re.compile(rb"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
# Whoever comes through a proxy is not on this machine, whatever the proxy's own address is. Some say nothing of
# themselves, and send the name of what is behind them as the Host.
_OF_PROXIES: Final = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
)
_DEFAULT_PORTS: Final = {b"http": b":80", b"https": b":443"}


class Door:
    """
    Who may come in, by *auth*: the holder of a token, or of one of several; whom a function says True of; None: whoever
    is on this machine; CLOSED: nobody.

    A function that judges by an address judges the browser, not who has written the page in it: a name that was made to
    lead here (DNS rebinding) has the right address. It must look at the Host, too, or at a secret.

    A login is an expiry time and an HMAC of it under a key made of the token: all workers with the token accept it,
    none keeps a session, and a token that is taken away takes its logins with it. Signing out makes the browser forget.

    Raises ConfigurationError for what cannot work, without showing it.
    """

    def __init__(self, auth: Auth | Closed) -> None:
        self.is_closed: Final = auth is CLOSED
        self.is_for_local: Final = auth is None
        self._judge = auth if callable(auth) else None
        tokens: list[Any] = []
        if isinstance(auth, str):
            tokens = [auth]
        elif isinstance(auth, list | tuple | set | frozenset) and auth:
            tokens = list(auth)
        elif not (callable(auth) or auth is None or auth is CLOSED):
            raise ConfigurationError(
                "auth must be a token, a list of one or more tokens, a function of the request, or None for this "
                f"machine alone; not a {type(auth).__name__}"
            )
        for token in tokens:
            if not isinstance(token, str) or not _TOKEN.fullmatch(token):
                raise ConfigurationError(
                    "a token of auth must have 16 to 1,024 characters, all of them visible ASCII; one has not"
                )
        # Of each token what it is compared by, and what its logins are signed with.
        self._tokens = [(_digest(token.encode()), _login_key(token.encode())) for token in tokens]

    def __repr__(self) -> str:
        if self.is_closed:
            return "<Door closed>"
        who = "this machine" if self.is_for_local else "a function" if self._judge else f"{len(self._tokens)} tokens"
        return f"<Door for {who}>"

    @property
    def has_login(self) -> bool:
        """Whether one can sign in: there are tokens."""
        return bool(self._tokens)

    def is_seen_by(self, scope: Scope) -> bool:
        """Say whether the request may know that there is a dashboard."""
        return not self.is_closed and (not self.is_for_local or is_local(scope))

    async def admits(self, scope: Scope, now: float) -> bool:
        """Say whether the request may come in. Raises what the function raises."""
        if not self.is_seen_by(scope):
            return False
        if self.is_for_local:
            return True
        if self._judge is not None:
            # Without a way to read the body, which is for whoever handles the request. Only True is yes: a function
            # that returns a response to redirect by, or a user or None, has not understood the question.
            verdict = self._judge(Request(scope))
            return (await verdict if inspect.isawaitable(verdict) else verdict) is True
        given = _bearers(scope)
        if given:
            return len(given) == 1 and self._key_of(given[0]) is not None
        return any(self._is_login(value, now) for value in _cookies(scope))

    def was_tried(self, scope: Scope, now: float) -> bool:
        """
        Say whether a request that may not come in has tried to, by what should have been a token.

        A login that has not expired is one, too: whoever guesses a token can sign with it.
        """
        return self.has_login and (
            bool(_bearers(scope)) or any(_signed_part(value, now) is not None for value in _cookies(scope))
        )

    def _key_of(self, token: bytes) -> bytes | None:
        """Return what logins by *token* are signed with; None where it is none of ours. Takes as long either way."""
        digest, found = _digest(token), None
        for known, key in self._tokens:
            if hmac.compare_digest(digest, known):
                found = key
        return found

    def login(self, token: str, now: float) -> str | None:
        """Return the value of the cookie for whoever has *token*; None where it is none of ours."""
        key = self._key_of(token.encode("utf-8", "replace"))
        if key is None:
            return None
        expires = b"%d" % (now + LOGIN_SECONDS)
        return f"{expires.decode()}.{hmac.digest(key, expires, 'sha256').hex()}"

    def _is_login(self, value: str, now: float) -> bool:
        parts = _signed_part(value, now)
        if parts is None:
            return False
        signed, signature = parts
        good = False
        for _, key in self._tokens:
            good |= hmac.compare_digest(hmac.digest(key, signed, "sha256").hex(), signature)
        return good


def _signed_part(value: str, now: float) -> tuple[bytes, str] | None:
    """Return what of a login is signed, and the signature; None for what is none, or expired."""
    parts = _COOKIE_VALUE.fullmatch(value)
    if parts is None or not now < int(parts[1]) <= now + LOGIN_SECONDS:
        return None
    return parts[1].encode(), parts[2]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _login_key(token: bytes) -> bytes:
    return hmac.digest(token, b"echo_cache dashboard login 1", "sha256")


def _values(scope: Scope, name: bytes) -> Iterator[bytes]:
    return (value for known, value in scope["headers"] if known.lower() == name)


def _bearers(scope: Scope) -> list[bytes]:
    """Return the tokens that are given as such. What a proxy in front has asked for (Basic) is not for us."""
    given = [value.partition(b" ") for value in _values(scope, b"authorization")]
    return [token.strip() for scheme, _, token in given if scheme.lower() == b"bearer"]


def _cookies(scope: Scope) -> Iterator[str]:
    """Yield the values of our cookie: another one of its name may have been set for a longer or shorter path."""
    for line in _values(scope, b"cookie"):
        for pair in line.decode("latin-1").split(";"):
            name, _, value = pair.partition("=")
            if name.strip() == COOKIE:
                yield value.strip()


# --- where a request comes from ---------------------------------------------------------------------------------------


def is_local(scope: Scope) -> bool:
    """
    Say whether a request comes from this machine, to this machine, under a name of this machine.

    The name is the browser's word for where it believes to be: a site whose name was made to lead to 127.0.0.1 (DNS
    rebinding) has another. HTTP/1.0 is what nginx speaks to whatever it stands before, unless told otherwise, and no
    browser any more; but a proxy that hides all that it is cannot be told from a browser.
    """
    hosts = list(_values(scope, b"host"))
    return (
        _is_loopback(scope.get("client"))
        and _is_loopback(scope.get("server"))
        and len(hosts) == 1
        and _LOCAL_HOST.fullmatch(hosts[0]) is not None
        and scope.get("http_version") != "1.0"
        and not any(name.lower() in _OF_PROXIES for name, _ in scope["headers"])
    )


def _is_loopback(address: object) -> bool:
    if not isinstance(address, Sequence) or not address or not isinstance(address[0], str):
        return False
    if address[0] == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(address[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return ip.is_loopback if mapped is None else bool(mapped.is_loopback)


def is_of_another_site(scope: Scope) -> bool:
    """Say whether a browser has made the request for a page of another origin, or may have."""
    if any(value not in (b"same-origin", b"none") for value in _values(scope, b"sec-fetch-site")):
        return True
    return is_foreign(scope)


def is_foreign(scope: Scope) -> bool:
    """Say whether the request names an origin that is not this host."""
    origins, hosts = list(_values(scope, b"origin")), list(_values(scope, b"host"))
    return bool(origins) and (len(hosts) != 1 or any(not _is_of_host(origin, hosts[0]) for origin in origins))


def _is_of_host(origin: bytes, host: bytes) -> bool:
    # Not by the scheme: behind a proxy that ends TLS, the app knows another one than the browser.
    scheme, sign, authority = origin.lower().partition(b"://")
    port = _DEFAULT_PORTS.get(scheme)
    if not sign or port is None:
        return False
    return authority.removesuffix(port) == host.lower().removesuffix(port)
