"""
What the security tests share: requests as bytes on the wire would make them, and the bare app as the judge.

The one rule: an answer through the cache is compared with the answer of the same app without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions
from echo_cache.stores.base import Store

Headers = Sequence[tuple[bytes, bytes]]
Handler = Callable[[dict[str, Any], bytes], tuple[int, Headers, bytes]]
App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

HANGS = 5.0

FRESH = (b"cache-control", b"max-age=60")

# What a cache may add to an answer, or make of it.
OF_THE_CACHE = frozenset({b"age", b"etag", b"content-length", b"cache-status"})


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


@dataclass
class Answer:
    """What came back: the messages, and the parts that tests ask for."""

    messages: list[dict[str, Any]]

    @property
    def start(self) -> dict[str, Any]:
        return next(message for message in self.messages if message["type"] == "http.response.start")

    @property
    def status(self) -> int:
        return self.start["status"]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.start.get("headers", ()))

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_complete(self) -> bool:
        last = self.messages[-1]
        return last["type"] == "http.response.body" and not last.get("more_body", False)

    def get(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def cache_status(self) -> bytes:
        return self.get(b"cache-status") or b""

    @property
    def is_hit(self) -> bool:
        return b"; hit" in self.cache_status

    @property
    def is_stored(self) -> bool:
        return b"; stored" in self.cache_status

    @property
    def of_the_app(self) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """What must be the same with and without the cache."""
        kept = [(name.lower(), value) for name, value in self.headers if name.lower() not in OF_THE_CACHE]
        return self.status, sorted(kept), self.body


def http_scope(
    raw_path: bytes | None = b"/",
    *,
    method: str = "GET",
    headers: Headers = (),
    query: bytes = b"",
    host: bytes | None = b"example.com",
    scheme: str = "http",
    path: str | None = None,
) -> dict[str, Any]:
    """Return the scope that a server makes of a request; raw_path None is a server that gives the decoded one only."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": scheme,
        "path": path if path is not None else unquote_to_bytes(raw_path or b"/").decode("utf-8", "surrogateescape"),
        "query_string": query,
        "root_path": "",
        "headers": [*([] if host is None else [(b"host", host)]), *headers],
        "client": ("192.0.2.1", 1234),
        "server": ("192.0.2.2", 80),
    }
    if raw_path is not None:
        scope["raw_path"] = raw_path
    return scope


async def call(app: App, scope: dict[str, Any], body: bytes = b"", *, leaves: asyncio.Event | None = None) -> Answer:
    """Return what *app* sends for *scope*; the client stays until *leaves* is set."""
    messages: list[dict[str, Any]] = []
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}
        await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        messages.append(dict(message))

    # A guard against tests that hang; nothing is measured by it.
    async with asyncio.timeout(HANGS):
        await app(scope, receive, send)
    return Answer(messages)


async def ask(app: App, raw_path: bytes | None = b"/", *, body: bytes = b"", **request: Any) -> Answer:
    """Return the answer of *app* to one request, in the terms of http_scope."""
    return await call(app, http_scope(raw_path, **request), body)


class Naive:
    """An app that trusts its requests. It remembers the scopes that it was called with."""

    def __init__(self, handler: Handler | None = None, *, headers: Headers = (FRESH,), status: int = 200) -> None:
        self.handler = handler or (lambda scope, body: (status, headers, b"answer %d" % len(self.calls)))
        self.calls: list[dict[str, Any]] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.calls.append(scope)
        body = (await receive()).get("body", b"")
        status, headers, content = self.handler(scope, body)
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": content})


def field(scope: dict[str, Any], name: bytes) -> bytes:
    """Return the first field line called *name*, as most frameworks do; b"" where it is absent."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def behind_cache(app: Any, store: Store | None = None, *, clock: Any = None, **policy: Any) -> HTTPCacheMiddleware:
    """Return *app* behind the middleware, in memory unless *store* is given, with PolicyOptions(**policy)."""
    if store is None:
        store = MemoryStore(clock=clock)
    return HTTPCacheMiddleware(app, cache=Cache(store, PolicyOptions(**policy), clock=clock))


async def assert_as_bare(app: Naive, requests: Iterable[dict[str, Any]], **policy: Any) -> HTTPCacheMiddleware:
    """Assert that *app* behind a cache answers *requests*, one after the other, as it does without one."""
    cached = behind_cache(app, **policy)
    for request in requests:
        raw_path = request.get("raw_path", b"/")
        others = {name: value for name, value in request.items() if name != "raw_path"}
        through = await ask(cached, raw_path, **others)
        bare = await ask(app, raw_path, **others)
        assert through.of_the_app == bare.of_the_app, request
    return cached


async def test_the_harness_tells_a_hit_from_a_miss() -> None:
    app = Naive()
    cached = behind_cache(app)

    first, second = await ask(cached), await ask(cached)

    assert first.is_stored
    assert not first.is_hit
    assert second.is_hit
    assert second.body == first.body == b"answer 1"
    assert len(app.calls) == 1
