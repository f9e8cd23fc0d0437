"""
Requests to an app in this process, and what they leave in a Redis. The one rule: the client costs as little as it can,
for what is measured is the app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from echo_cache.errors import StoreError
from echo_cache.stores import RedisStore

__all__ = ["App", "Message", "Receive", "Send", "ask", "clean", "reserve"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_LIKE_A_BROWSER: Final = (
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0"),
    (b"accept", b"text/html,application/xhtml+xml,*/*;q=0.8"),
    (b"accept-language", b"en-GB,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"connection", b"keep-alive"),
)


async def ask(app: App, target: bytes, method: str = "GET", host: bytes = b"localhost") -> tuple[int, bytes]:
    """Ask *app* for *target*, path and query. Return the status, and Cache-Status, empty where there is none."""
    status, told, waiting = 0, b"", False

    async def send(message: Message) -> None:
        nonlocal status, told
        if message["type"] == "http.response.start":
            status = message["status"]
            told = next((value for name, value in message["headers"] if name == b"cache-status"), b"")

    async def receive() -> Message:
        nonlocal waiting
        if waiting:
            await asyncio.Event().wait()  # the client does not leave
        waiting = True
        return {"type": "http.request", "body": b"", "more_body": False}

    path, _, query = target.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": method,
        "root_path": "",
        "path": path.decode(),
        "raw_path": path,
        "query_string": query,
        "headers": [(b"host", host), *_LIKE_A_BROWSER],
        "state": {},
    }
    await app(scope, receive, send)
    return status, told


# KEYS[1]  the stream of the invalidation log    KEYS[2]  the run of the server that has it
# ARGV[1]  seconds until both end
_RESERVE: Final = """
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('XADD', KEYS[1], '*', 'open', run) end
redis.call('SET', KEYS[2], run)
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""


async def reserve(store: RedisStore, seconds: int) -> None:
    """
    Begin the log of *store*'s prefix, to end by itself after *seconds*: whoever is killed cleans nothing.

    Raises StoreError.
    """
    await store.server.evaluate(_RESERVE, _log_names(store), (seconds,))


async def clean(store: RedisStore) -> None:
    """Delete what is stored under *store*'s prefix, and its log, as far as Redis can be reached, and close it."""
    with suppress(StoreError):
        await store.clear()
        await store.server.evaluate("return redis.call('UNLINK', KEYS[1], KEYS[2])", _log_names(store), ())
    await store.aclose()


def _log_names(store: RedisStore) -> tuple[str, str]:
    return f"{{{store.prefix}:log}}", f"{{{store.prefix}:log}}:run"
