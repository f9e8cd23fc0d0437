"""
What the URL of a RedisStore says. The one rule: what is wrong is told with what is allowed, and never with the URL
itself, as there may be a password in it.

    redis://[user:password@]host[:port][/db]                        one server; rediss:// for TLS
    unix://[user[:password]@]/path/to.sock[?db=0]                   one server on this machine
    redis+sentinel://[user:password@]host[:port],.../service[/db]   the server that sentinels name
    redis+cluster://[user:password@]host[:port],...                 all servers of a cluster

User and password are the servers'. Sentinels have their own, in the options sentinel_username and sentinel_password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

from echo_cache.errors import ConfigurationError

__all__ = ["Address", "ServerURL", "parse_server_url", "shown_address"]

Address: TypeAlias = tuple[str, int]
"""A host, without brackets, and a port."""

_SERVERS: Final = ("redis", "rediss")
_SENTINELS: Final = ("redis+sentinel", "rediss+sentinel")
_CLUSTERS: Final = ("redis+cluster", "rediss+cluster")

_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379

# What a URL may say: where the server is and who asks. How it is talked to is the store's to decide: an option in a URL
# wins over all others in redis-py, and `?protocol=3` would switch off a check that this package relies on.
_OPTIONS: Final = re.compile(r"db|username|password|client_name|ssl_\w+")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")

_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([A-Za-z0-9._~-]+))(?::([0-9]{1,5}))?")

# What `sentinel monitor` takes for a name.
_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]+")

_FORMS: Final = {
    "unix": "unix://[user@]/path/to.sock?db=0",
    **dict.fromkeys(_SERVERS, "{scheme}://[user:password@]host[:port][/db]"),
    **dict.fromkeys(_SENTINELS, "{scheme}://[user:password@]host[:port],host[:port]/service[/db]"),
    **dict.fromkeys(_CLUSTERS, "{scheme}://[user:password@]host[:port],host[:port] (with database 0 only)"),
}


@dataclass(frozen=True, slots=True)
class ServerURL:
    """
    A URL in its parts.

    location: where, without secrets. plain: the URL of one server, with the credentials and options for all of them,
    as redis-py reads it. hosts: the sentinels, or the servers of a cluster that are asked first. service: what the
    sentinels call the server. sentinel_options: the credentials for the sentinels. options: the names of all options.
    """

    scheme: str
    location: str
    plain: str = field(repr=False)
    hosts: tuple[Address, ...] = ()
    service: str = ""
    sentinel_options: dict[str, str] = field(default_factory=dict, repr=False)
    options: tuple[str, ...] = ()

    @property
    def is_cluster(self) -> bool:
        return self.scheme in _CLUSTERS

    @property
    def is_sentinel(self) -> bool:
        return self.scheme in _SENTINELS

    @property
    def is_tls(self) -> bool:
        return self.scheme.startswith("rediss")


def parse_server_url(url: str) -> ServerURL:
    """Return the parts of *url*. Raises ConfigurationError, without secrets."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in _FORMS:
        raise ConfigurationError(
            "the URL of a RedisStore begins with redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, "
            "redis+cluster:// or rediss+cluster://"
        )
    return _one_server(scheme, url) if scheme in ("unix", *_SERVERS) else _many_servers(scheme, url)


def shown_address(host: str, port: int | str) -> str:
    """Return host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _one_server(scheme: str, url: str) -> ServerURL:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _not_a_url(scheme) from None
    options = _parsed_options(scheme, parts.query)
    names = tuple(options)
    database = options.get("db", "0")
    if scheme == "unix":
        if parts.fragment or not parts.path or not database.isdecimal():
            raise _not_a_url(scheme)
        return ServerURL(scheme, f"unix://{parts.path}?db={database}", url, options=names)
    path = parts.path.strip("/")
    if parts.fragment or not _is_number(path or "0") or not _is_number(database):
        raise _not_a_url(scheme)
    where = shown_address(host or "localhost", port or _REDIS_PORT)
    return ServerURL(scheme, f"{scheme}://{where}/{options.get('db', path or '0')}", url, options=names)


def _many_servers(scheme: str, url: str) -> ServerURL:
    # Not by urlsplit: to it, a comma between hosts is part of a port, and newer ones refuse two hosts in brackets.
    rest, _, query = url.partition("://")[2].partition("?")
    authority, _, path = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    if "#" in url or "@" in credentials:  # credentials stand once, before the first host
        raise _not_a_url(scheme)
    options = _parsed_options(scheme, query)
    names = tuple(options)
    is_cluster = scheme in _CLUSTERS
    addresses = tuple(
        _address(scheme, host, _REDIS_PORT if is_cluster else _SENTINEL_PORT) for host in hosts.split(",")
    )
    words = [word for word in path.split("/") if word]
    service = "" if is_cluster or not words else words.pop(0)
    database = options.pop("db", words[0] if words else "0")
    if len(words) > 1 or not _is_number(words[0] if words else "0") or not _is_number(database):
        raise _not_a_url(scheme)
    if int(database) != 0 if is_cluster else not _SERVICE.fullmatch(service):
        raise _not_a_url(scheme)
    own = {name.removeprefix("sentinel_"): options.pop(name) for name in _SENTINEL_OPTIONS if name in options}
    location = f"{scheme}://{','.join(shown_address(*address) for address in addresses)}"
    plain = f"{scheme.partition('+')[0]}://{credentials}{at}{shown_address(*addresses[0])}/{database}"
    return ServerURL(
        scheme,
        location if is_cluster else f"{location}/{service}/{database}",
        f"{plain}?{urlencode(options)}" if options else plain,
        addresses,
        service,
        own,
        names,
    )


def _parsed_options(scheme: str, query: str) -> dict[str, str]:
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:
        raise _not_a_url(scheme) from None
    also = _SENTINEL_OPTIONS if scheme in _SENTINELS else ()
    for name in options:
        if not _OPTIONS.fullmatch(name) and name not in also:
            if "@" in query:
                # A password with a ? in it: what looks like an option is the rest of the password.
                raise _not_a_url(scheme)
            allowed = ", ".join(("db", "username", "password", "client_name", *also))
            raise ConfigurationError(
                f"the URL of a RedisStore may have the options {allowed} and ssl_*, not {name!r}; "
                "timeout and max_connections are arguments of RedisStore"
            )
    return options


def _address(scheme: str, text: str, default_port: int) -> Address:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match[3] or default_port) < 65536:
        raise _not_a_url(scheme)
    return match[1] or match[2], int(match[3] or default_port)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _not_a_url(scheme: str) -> ConfigurationError:
    form = _FORMS[scheme].format(scheme=scheme)
    return ConfigurationError(
        f"a {scheme} URL has the form {form}; in user and password, write / ? # @ as %2F %3F %23 %40"
    )
