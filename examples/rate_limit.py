"""
A search that a client may ask five times a minute, counted by the package limits. `--once` shows it, else it serves.

With $REDIS_URL all workers count together, in the same Redis that has the cached answers; without it this one counts
alone. Answers from the cache cost nothing, so they are not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.recipes import RATE_LIMIT_WINDOW

REDIS_URL = os.environ.get("REDIS_URL")
LIMIT = RateLimitItemPerSecond(5, RATE_LIMIT_WINDOW)

cache = Cache(TwoLevelStore(MemoryStore(), RedisStore(REDIS_URL)) if REDIS_URL else MemoryStore())
# A limit is not worth a wait. The tour has patience: it shows the same on a slow machine.
TIMEOUT = 10.0 if "--once" in sys.argv else 0.1
pool = BlockingConnectionPool.from_url(
    REDIS_URL or "redis://",
    protocol=2,
    max_connections=16,
    timeout=TIMEOUT,
    socket_timeout=TIMEOUT,
    socket_connect_timeout=TIMEOUT,
    retry=Retry(NoBackoff(), 0),
)


def counters() -> MemoryStorage | RedisStorage:
    """Return where requests are counted."""
    if REDIS_URL is None:
        return MemoryStorage()
    # The pool has the address.
    options: dict[str, Any] = {"connection_pool": pool, "implementation": "redispy"}
    return RedisStorage("redis://", wrap_exceptions=True, **options)


# The window slides: it is the minute before each request, so Retry-After is exact. It keeps the times of the last five
# requests of a client; for limits of thousands SlidingWindowCounterRateLimiter keeps two numbers, and estimates.
limiter = MovingWindowRateLimiter(counters())


async def limited(request: Request) -> None:
    """
    Answer 429 to a client that asks too often.

    The client is the address of the connection: behind a proxy, have the server believe that proxy (uvicorn's
    --forwarded-allow-ips) and never a header that everybody can send. Without Redis nobody is refused: this limit
    spares a search. One that guards passwords answers 503 instead.
    """
    client = request.client.host if request.client else "unknown"
    try:
        if await limiter.hit(LIMIT, client):
            return
        window = await limiter.get_window_stats(LIMIT, client)
    except StorageError:
        return
    retry_after = max(1, math.ceil(window.reset_time - time.time()))
    # no-store: it is this client's alone. So whoever waits for the same answer asks for himself.
    raise HTTPException(429, "too many requests", {"Retry-After": str(retry_after), "Cache-Control": "no-store"})


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await cache.aclose()
    await pool.aclose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(HTTPCacheMiddleware, cache=cache)


@app.get("/search", dependencies=[Depends(limited)])
@cached(ttl=60)
async def search(q: str) -> list[str]:
    return [f"the best {q}", f"another {q}"]


async def once() -> None:
    # Of this run only, also where the Redis still has what the last one left.
    run = secrets.token_hex(4)
    transport = httpx.ASGITransport(app, client=(f"client-{run}", 0))
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://search") as client:
        for number in range(5):
            await show(client, f"{run}-{number}", 200, "stored")
        refused = await show(client, f"{run}-5", 429, "fwd=uri-miss")
        print(f"Retry-After: {refused.headers['retry-after']}")
        if not 1 <= int(refused.headers["retry-after"]) <= RATE_LIMIT_WINDOW:
            sys.exit(f"expected a Retry-After of 1 to {RATE_LIMIT_WINDOW} s")
        await show(client, f"{run}-0", 200, "; hit; ttl=")


async def show(client: httpx.AsyncClient, words: str, status: int, said: str) -> httpx.Response:
    response = await client.get("/search", params={"q": words})
    print(f"GET /search?q={words}  {response.status_code}  {response.headers['cache-status']}")
    if response.status_code != status or said not in response.headers["cache-status"]:
        sys.exit(f"expected {status}, and {said!r} in Cache-Status")
    return response


if __name__ == "__main__":
    asyncio.run(once()) if "--once" in sys.argv else uvicorn.run(app)
