"""
What the benchmarks compare: a bare ASGI app, a hand-written hit in front of it, and the middleware in front of it.

The one rule: every request is made of objects of its own, as a server makes them. A header name that was hashed before
is found faster, and no request in real life brings one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from echo_cache.asgi import HTTPCacheMiddleware
from echo_cache.model import CacheKey, Entry
from echo_cache.options import CacheStrategy, CoordinationOptions, TwoLevelConfig
from echo_cache.stores.base import Held, Match, StoreStats
from echo_cache.stores.memory import MemoryStore
from echo_cache.stores.redis import RedisStore
from echo_cache.stores.twolevel import TwoLevelStore

__all__ = [
    "APPS",
    "APPS_OVER_REDIS",
    "BODY",
    "PATH",
    "RESPONSE_HEADERS",
    "App",
    "Headers",
    "Message",
    "Scope",
    "catalog_app",
    "make_app",
    "make_scope",
    "product_body",
    "product_path",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

PATH = b"/products/1234"
BODY = b'{"id": 1234, "name": "echo"}'.ljust(2048, b" ")
ETAG = b'"5d8c72a5edda8d6a"'
RESPONSE_HEADERS: Headers = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BODY)),
    (b"cache-control", b"public, max-age=3600"),
    (b"etag", ETAG),
    (b"last-modified", b"Tue, 06 Oct 2026 10:00:00 GMT"),
    (b"x-content-type-options", b"nosniff"),
]
# What a browser sends for a page: eight fields, none of which changes the answer.
REQUEST_HEADERS: Headers = [
    (b"host", b"shop.example.com"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0"),
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
    (b"accept-language", b"en-GB,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"connection", b"keep-alive"),
    (b"cookie", b"theme=dark; session=0123456789abcdef"),
    (b"sec-fetch-mode", b"navigate"),
]


def make_scope(path: bytes = PATH, method: bytes = b"GET", extra: Headers | None = None) -> Scope:
    """Return the scope of a request with a browser's headers and those of *extra*, as uvicorn makes it."""
    headers = [(_own(name), _own(value)) for name, value in (*REQUEST_HEADERS, *(extra or ()))]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": method.decode(),
        "root_path": "",
        "path": path.decode(),
        "raw_path": _own(path),
        "query_string": b"",
        "headers": headers,
        "state": {},
    }


def _own(value: bytes) -> bytes:
    return bytes(bytearray(value))


def bare_app(headers: Headers = RESPONSE_HEADERS) -> App:
    """Return an app that answers everything at once with 2 kB and *headers*: the least that an app can do."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers.copy()})
        await send({"type": "http.response.body", "body": BODY})

    return app


_THAT_MATTER = frozenset(
    {
        *(b"host", b"cookie", b"authorization", b"cache-control", b"pragma", b"range", b"if-range"),
        *(b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"),
        *(b"content-length", b"transfer-encoding"),
    }
)


def hand_written(app: App) -> App:
    """
    Return *app* behind the least that RFC 9111 asks of a hit, in one function: the yardstick.

    Type and method, the key, the fields that matter, freshness, the mark of the last invalidation, Age and
    Cache-Status once a second, two counters, two sends. What is not in memory comes from *app* and is kept, with no
    look at whether it may be: this is no cache.
    """
    entries: dict[tuple[str, bytes, bytes, bytes], list[Any]] = {}
    reads: list[object] = []
    hits, newest_mark = 0, 0
    now = time.time

    async def hit(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal hits
        if scope["type"] == "http" and scope["method"] == "GET":
            host, credentials = b"", False
            for name, value in scope["headers"]:
                if name in _THAT_MATTER:
                    if name == b"host":
                        host = value
                    elif name == b"cookie" or name == b"authorization":
                        credentials = True
                    else:
                        break
            else:
                entry = entries.get((scope["scheme"], host.lower(), scope["raw_path"], scope["query_string"]))
                if entry is not None:
                    headers, until, stored_at, fresh_until, mark, anonymous_only, stored, body = entry
                    moment = now()
                    if moment >= until:
                        age, ttl = int(moment - stored_at), int(fresh_until - moment)
                        headers = [*stored, (b"age", b"%d" % age), (b"cache-status", b"cache; hit; ttl=%d" % ttl)]
                        entry[:2] = headers, moment + 1.0
                    if moment < fresh_until and mark >= newest_mark and not (credentials and anonymous_only):
                        hits += 1
                        await send({"type": "http.response.start", "status": 200, "headers": headers.copy()})
                        await send({"type": "http.response.body", "body": body})
                        return
        await fill(scope, receive, send)

    async def fill(scope: Scope, receive: Receive, send: Send) -> None:
        kept: Headers = []

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept.extend(message["headers"])
            else:
                host = dict(scope["headers"])[b"host"].lower()
                key = (scope["scheme"], host, scope["raw_path"], scope["query_string"])
                entries[key] = [[], 0.0, now(), now() + 3600.0, 0, False, kept, message["body"]]
                reads.clear()
            await send(message)

        await app(scope, receive, keep if scope["type"] == "http" else send)

    return hit


class UntouchedStore:
    """A second level that has nothing and is told nothing that it keeps: what a hit in memory never reaches."""

    remote: bool = True

    def get_nowait(self, key: CacheKey) -> Held | None:
        return None

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        return None

    async def set(self, key: CacheKey, entry: Entry) -> bool:
        return True

    def put(self, key: CacheKey, entry: Entry) -> None:
        return None

    def unused(self) -> None:
        pass

    async def delete(self, key: CacheKey) -> bool:
        return False

    async def clear(self) -> int:
        return 0

    async def keys(self) -> AsyncIterator[CacheKey]:
        nothing: tuple[CacheKey, ...] = ()
        for key in nothing:
            yield key

    def stats(self) -> StoreStats:
        return StoreStats(0, 0, 0, 0, 0, None, None)

    async def aclose(self) -> None:
        pass


# --- many keys, and Redis ---------------------------------------------------------------------------------------------

# One operation on a machine that is busy must not end as a miss: what is measured is a hit.
_REDIS_TIMEOUT = 5.0
# Each read that Redis counts is a request's, and none that of a report.
_NO_REPORTS = CoordinationOptions(report_every=0)
# Longer than any run, so that nothing turns stale in the middle of it.
_LONG = 3_600.0


def product_path(number: int) -> bytes:
    """Return the path of product *number*."""
    return b"/products/%d" % number


def product_body(path: bytes) -> bytes:
    """Return the 2 kB that the catalog answers for *path*; no two paths have the same."""
    return (b'{"path": "%s"}' % path).ljust(len(BODY), b" ")


def catalog_app() -> App:
    """Return an app that answers each path with 2 kB of its own, at once: what many keys are measured with."""
    bodies: dict[bytes, bytes] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["raw_path"]
        body = bodies.get(path)
        if body is None:
            body = bodies[path] = product_body(path)
        await send({"type": "http.response.start", "status": 200, "headers": RESPONSE_HEADERS.copy()})
        await send({"type": "http.response.body", "body": body})

    return app


def plain_redis_app(url: str) -> App:
    """
    Return an app that answers with what redis-py's GET gives for the path: the yardstick of a hit in Redis.

    What is not there is put there. It looks at nothing else: this is no cache.
    """
    from redis.asyncio import BlockingConnectionPool, Redis

    redis: Any = Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=16))
    found: Headers = [*RESPONSE_HEADERS, (b"cache-status", b"plain; hit")]
    made: Headers = [*RESPONSE_HEADERS, (b"cache-status", b"plain; fwd=uri-miss")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        name = b"plain:" + scope["raw_path"]
        body = await redis.get(name)
        headers = made if body is None else found
        if body is None:
            body = product_body(scope["raw_path"])
            await redis.set(name, body)
        await send({"type": "http.response.start", "status": 200, "headers": headers.copy()})
        await send({"type": "http.response.body", "body": body})

    return app


def _behind_redis(url: str) -> App:
    return HTTPCacheMiddleware(catalog_app(), store=RedisStore(url, timeout=_REDIS_TIMEOUT), coordination=_NO_REPORTS)


def _behind_two_levels(url: str, *, is_warming: bool) -> App:
    """Return the catalog behind two levels; L1 gets everything, or (cache_aside without warming) nothing ever."""
    config = TwoLevelConfig(
        strategy=CacheStrategy.WRITE_THROUGH if is_warming else CacheStrategy.CACHE_ASIDE,
        cache_warming=is_warming,
        l1_ttl=_LONG,
        l2_ttl=_LONG,
    )
    store = TwoLevelStore(MemoryStore(), RedisStore(url, timeout=_REDIS_TIMEOUT), config)
    return HTTPCacheMiddleware(catalog_app(), store=store, coordination=_NO_REPORTS)


def _varying() -> App:
    return bare_app([*RESPONSE_HEADERS[:-1], (b"vary", b"Accept-Encoding")])


def _tagged() -> App:
    return bare_app([*RESPONSE_HEADERS[:-1], (b"cache-groups", b'"catalog", "product:1234"')])


def _without_etag() -> App:
    return bare_app([line for line in RESPONSE_HEADERS if line[0] != b"etag"])


APPS: dict[str, Callable[[], App]] = {
    "bare": bare_app,
    "hand-written": lambda: hand_written(bare_app()),
    "memory": lambda: HTTPCacheMiddleware(bare_app(), store=MemoryStore()),
    "memory, vary": lambda: HTTPCacheMiddleware(_varying(), store=MemoryStore()),
    "memory, tagged": lambda: HTTPCacheMiddleware(_tagged(), store=MemoryStore()),
    "memory, no etag": lambda: HTTPCacheMiddleware(_without_etag(), store=MemoryStore()),
    "two levels": lambda: HTTPCacheMiddleware(bare_app(), store=TwoLevelStore(MemoryStore(), UntouchedStore())),
}
"""The apps by name; each call makes a new one, with an empty cache."""

APPS_OVER_REDIS: dict[str, Callable[[str], App]] = {
    "catalog": lambda url: catalog_app(),
    "plain redis-py": plain_redis_app,
    "redis": _behind_redis,
    "two levels, all in L2": lambda url: _behind_two_levels(url, is_warming=False),
    "two levels, all in L1": lambda url: _behind_two_levels(url, is_warming=True),
}
"""The apps with many keys by name, over the Redis at a URL; each has a memory of its own."""


def make_app(name: str, redis_url: str = "") -> App:
    """Return a new app called *name*. Raises KeyError."""
    return APPS_OVER_REDIS[name](redis_url) if redis_url else APPS[name]()
