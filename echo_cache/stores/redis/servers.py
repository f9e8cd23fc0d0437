"""
Where a RedisStore's values are. The one rule: whatever a URL or a ready client leads to is used through one narrow
`Client`.

    urls         what a URL says
    connections  how servers are connected to and talked to
    pool         the open connections to a server
    sentinel     the server that sentinels name
    cluster      all servers of a cluster
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from echo_cache.errors import ConfigurationError
from echo_cache.stores.redis.cluster import Cluster
from echo_cache.stores.redis.connections import OwnConnection, Words, close_idle, own_connection, pool_settings
from echo_cache.stores.redis.urls import Address, ServerURL, parse_server_url, shown_address

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Client", "Place", "Words", "place_of"]

# How long at least between two times that all connections to a server that refuses writes are closed.
_STAY_SECONDS: Final = 0.5

# What is taken over from a ready RedisCluster: who asks, and how servers prove themselves. Not its hook for new
# connections, which asks replicas for reads, nor its time-outs and protocol.
_CLUSTER_SETTINGS: Final = (
    "username",
    "password",
    "credential_provider",
    "client_name",
    "driver_info",
    "socket_keepalive",
    "socket_keepalive_options",
    "connection_class",
)


class Client(Protocol):
    """
    Connections to a server, or to all servers of a cluster, for one event loop.

    Each method is one round trip to one server, and raises whatever redis-py raises. One that is cancelled closes the
    connection that it used, so that a late reply answers nobody.
    """

    def node_of(self, name: str) -> Hashable:
        """Return which server has the key *name*: what goes to one server can go in one batch."""
        ...

    async def read(self, names: Sequence[str]) -> Sequence[object]:
        """Return the values of *names*, which are on one server, None for what is no string or not there."""
        ...

    async def write(self, commands: Sequence[Words]) -> Sequence[object]:
        """Return the replies to *commands*, whose keys are on one server, in order; an error stands in its place."""
        ...

    async def time(self) -> float:
        """Return the server's time in epoch seconds; of a cluster, always the same server's, as far as can be."""
        ...

    async def nodes(self) -> Sequence[Hashable]:
        """Return all servers that `scan` has to be asked for."""
        ...

    async def scan(self, node: Hashable, cursor: int, pattern: str, count: int) -> tuple[int, list[bytes]]:
        """Return the next cursor, 0 at the end, and a page of the names at *node* that match *pattern*."""
        ...

    async def dedicated(self, name: str) -> OwnConnection:
        """
        Return a new connection to the server that has the key *name*: in no pool, and the caller's to close.

        It is up to the caller to end this in time. More than one round trip.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections, but not those of a client that was given, nor dedicated ones."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """
    What a URL or a ready client leads to.

    location: where, without secrets. connect: makes a client for the running event loop; nothing connects before the
    first command. is_given: the connections are somebody else's, of one event loop.
    """

    location: str
    connect: Callable[[], Client]
    is_given: bool = False


def place_of(server: object, timeout: float, max_connections: int) -> Place:
    """
    Return what *server*, a URL or a ready client of redis-py, leads to.

    timeout: how long connecting may take, in seconds. max_connections: for each event loop and server.
    Raises ConfigurationError.
    """
    if isinstance(server, str):
        return _from_url(server, timeout, max_connections)
    return _ready(server, timeout, max_connections)


class _OneServer:
    """A server of its own, or the one that sentinels name."""

    def __init__(self, redis: Redis, timeout: float, *, is_given: bool) -> None:
        self._redis: Any = redis  # redis-py's own types are partial
        self._timeout = timeout
        self._is_given = is_given
        # Until when, by the monotonic clock, a server that refuses writes is not left again.
        self._stay_until = 0.0

    def node_of(self, name: str) -> Hashable:
        return None

    async def read(self, names: Sequence[str]) -> Sequence[object]:
        if self._is_given:
            return _replies(await self._redis.execute_command("MGET", *names), len(names))
        # What execute_command does beside this (retries, callbacks, its own metrics) is off or idle in a client made
        # here, and costs 10 us. A connection that is cancelled or fails in between closes itself.
        pool = self._redis.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_command("MGET", *names)
            replies = await connection.read_response()
        finally:
            await pool.release(connection)
        return _replies(replies, len(names))

    async def write(self, commands: Sequence[Words]) -> Sequence[object]:
        from redis.exceptions import ReadOnlyError, ResponseError

        replies: Sequence[object]
        if len(commands) == 1:
            try:
                replies = [await self._redis.execute_command(*commands[0])]
            except ResponseError as error:
                replies = [error]
        else:
            pipeline = self._redis.pipeline(transaction=False)
            for words in commands:
                pipeline.execute_command(*words)
            replies = _replies(await pipeline.execute(raise_on_error=False), len(commands))
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            await self._leave()
        return replies

    async def _leave(self) -> None:
        """
        Close the idle connections to a server that was the primary and is none any more.

        The name may lead elsewhere by now, an open connection does not. Not at each refusal: a server that stays a
        replica is still read, and to connect for each read made them three times as long.
        """
        now = time.monotonic()
        if now < self._stay_until:
            return
        self._stay_until = now + _STAY_SECONDS
        await close_idle(self._redis.connection_pool)

    async def time(self) -> float:
        seconds, microseconds = await self._redis.execute_command("TIME")
        return int(seconds) + int(microseconds) / 1e6

    async def nodes(self) -> Sequence[Hashable]:
        return (None,)

    async def scan(self, node: Hashable, cursor: int, pattern: str, count: int) -> tuple[int, list[bytes]]:
        following, names = await self._redis.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", count)
        return int(following), names

    async def dedicated(self, name: str) -> OwnConnection:
        return await own_connection(self._redis.connection_pool, self._timeout)

    async def aclose(self) -> None:
        if not self._is_given:
            await self._redis.aclose()


def _replies(replies: object, count: int) -> Sequence[object]:
    """Return *replies* if they are what was asked for. Raises redis-py's InvalidResponse."""
    from redis.exceptions import InvalidResponse

    if not isinstance(replies, list) or len(replies) != count:
        raise InvalidResponse(f"{count} replies were expected, not {type(replies).__name__}")
    return replies


# --- configuration ----------------------------------------------------------------------------------------------------


def _from_url(url: str, timeout: float, max_connections: int) -> Place:
    """
    Return what *url* leads to.

    Raises ConfigurationError, which does not show the URL: there may be a password in it.
    """
    parsed = parse_server_url(url)
    try:
        settings = _settings(parsed)
    except Exception as error:
        named = ", ".join(sorted(parsed.options)) or "none"
        raise ConfigurationError(
            f"redis-py cannot use this URL for {parsed.location} (options: {named}): {type(error).__name__}"
        ) from None
    if parsed.is_cluster:
        connect = _cluster(parsed.hosts, settings, timeout, max_connections)
    elif parsed.is_sentinel:
        connect = _sentinel(parsed, settings, timeout, max_connections)
    else:
        connect = _one_server(settings, timeout, max_connections)
    return Place(parsed.location, connect)


def _settings(parsed: ServerURL) -> dict[str, Any]:
    """Return what redis-py reads in a URL. Raises what a connection does that cannot be made with it."""
    from redis.asyncio import Connection
    from redis.asyncio.connection import parse_url

    settings: dict[str, Any] = {**parse_url(parsed.plain)}
    connection_class = settings.get("connection_class", Connection)
    connection_class(**{name: value for name, value in settings.items() if name != "connection_class"})
    return settings


def _one_server(settings: dict[str, Any], timeout: float, max_connections: int) -> Callable[[], Client]:
    from redis.asyncio import Redis

    from echo_cache.stores.redis.pool import Pool

    def connect() -> Client:
        pool = Pool(**settings, **pool_settings(timeout, max_connections))
        return _OneServer(Redis.from_pool(pool), timeout, is_given=False)

    return connect


def _sentinel(
    parsed: ServerURL, settings: dict[str, Any], timeout: float, max_connections: int
) -> Callable[[], Client]:
    from echo_cache.stores.redis.sentinel import SentinelRedis, managed_connection

    to_server = {name: value for name, value in settings.items() if name not in ("host", "port")}
    to_server["connection_class"] = managed_connection(is_tls=parsed.is_tls)
    # A sentinel has no databases, and its own users.
    to_sentinels = {name: value for name, value in settings.items() if name.startswith("ssl_") or name == "client_name"}
    to_sentinels |= {**parsed.sentinel_options, "ssl": parsed.is_tls}

    def connect() -> Client:
        redis = SentinelRedis(parsed.hosts, parsed.service, timeout, max_connections, to_server, to_sentinels)
        return _OneServer(redis, timeout, is_given=False)

    return connect


def _cluster(
    seeds: Sequence[Address],
    settings: dict[str, Any],
    timeout: float,
    max_connections: int,
    remap: Callable[[Address], Address] | None = None,
) -> Callable[[], Client]:
    from echo_cache.stores.redis.pool import Pool

    def make_pool(address: Address) -> object:
        host, port = address
        where = {**settings, "host": host, "port": port}
        return Pool(**where, **pool_settings(timeout, max_connections))

    return lambda: Cluster(seeds, make_pool, timeout, remap)


def _ready(client: object, timeout: float, max_connections: int) -> Place:
    """Return what the ready *client* leads to. Raises ConfigurationError."""
    from redis.asyncio import Redis, RedisCluster

    if not isinstance(client, Redis | RedisCluster):
        raise ConfigurationError(
            "a RedisStore is made of a URL, a redis.asyncio.Redis (also one that a Sentinel made by master_for) or a "
            f"redis.asyncio.RedisCluster, not {type(client).__module__}.{type(client).__qualname__}"
        )
    if client.get_encoder().decode_responses:
        raise ConfigurationError("a RedisStore reads bytes: make its client with decode_responses=False")
    if isinstance(client, RedisCluster):
        return _ready_cluster(client, timeout, max_connections)
    location = _location(client.connection_pool)
    return Place(location, lambda: _OneServer(client, timeout, is_given=True), is_given=True)


def _ready_cluster(client: Any, timeout: float, max_connections: int) -> Place:
    """
    Return the cluster that *client* leads to.

    Its addresses, credentials and TLS settings are used and its connections are not: they are not looked at for
    left-over bytes, and more than it may have are refused instead of waited for.
    """
    from redis.asyncio import SSLConnection

    given = client.get_connection_kwargs()
    settings = {name: value for name, value in given.items() if name in _CLUSTER_SETTINGS or name.startswith("ssl_")}
    seeds = list(dict.fromkeys((node.host, int(node.port)) for node in client.startup_nodes))
    scheme = "rediss" if issubclass(settings["connection_class"], SSLConnection) else "redis"
    location = f"{scheme}+cluster://{','.join(shown_address(*seed) for seed in seeds)}"
    remap = client.nodes_manager.address_remap
    return Place(location, _cluster(seeds, settings, timeout, max_connections, remap))


def _location(pool: Any) -> str:
    """Return where *pool* leads to, without secrets."""
    from redis.asyncio import SSLConnection
    from redis.asyncio.sentinel import SentinelConnectionPool

    where = pool.connection_kwargs
    database = where.get("db") or 0
    if "path" in where:
        return f"unix://{where['path']}?db={database}"
    scheme = "rediss" if issubclass(pool.connection_class, SSLConnection) else "redis"
    if isinstance(pool, SentinelConnectionPool):
        each = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
        hosts = ",".join(shown_address(one["host"], one["port"]) for one in each)
        return f"{scheme}+sentinel://{hosts}/{pool.service_name}/{database}"
    return f"{scheme}://{shown_address(where.get('host', 'localhost'), where.get('port', 6379))}/{database}"
