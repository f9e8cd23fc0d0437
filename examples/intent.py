"""
A chat that asks a classifier what a message wants, once for all who say the same. `--once` shows it, else it serves.

With $REDIS_URL all workers share the answers; without it they are in the memory of this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.aside import typed
from echo_cache.recipes import IntentCache

REDIS_URL = os.environ.get("REDIS_URL")
INTENTS = {"order": "track_order", "refund": "refund", "human": "human"}


@dataclass
class Intent:
    name: str
    score: float


# One cache for pages and for intents. What is below it is closed with it.
cache = Cache(TwoLevelStore(MemoryStore(), RedisStore(REDIS_URL)) if REDIS_URL else MemoryStore())
# With another model, another prompt or other labels comes another version, and what the old one said is not asked for.
intents = IntentCache(cache, version="keywords-1", serializer=typed(Intent))
asked: list[str] = []


async def classify(message: str) -> Intent:
    """Return what a model would say, after the time that it would take."""
    asked.append(message)
    await asyncio.sleep(0.05)
    found = [name for word, name in INTENTS.items() if word in message.lower()]
    return Intent(found[0], 0.9) if found else Intent("small_talk", 0.3)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await cache.aclose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(HTTPCacheMiddleware, cache=cache)


@app.post("/{tenant}/messages")
async def say(tenant: str, text: str, locale: str = "en") -> Intent:
    return await intents.get_or_classify(text, classify, tenant=tenant, locale=locale)


@app.get("/intents")
@cached(ttl=60)
async def known() -> list[str]:
    return sorted({*INTENTS.values(), "small_talk"})


async def once() -> None:
    # Of this run only, also where the Redis still has what the last one left.
    acme, other = f"acme-{secrets.token_hex(4)}", f"other-{secrets.token_hex(4)}"
    async with (
        lifespan(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://chat") as client,
    ):
        for tenant, text, locale, calls in [
            (acme, "Where is my order?", "en", 1),
            (acme, "  where is MY order? ", "en", 1),
            (acme, "Where is my order", "en", 2),
            (acme, "Where is my order?", "de", 3),
            (other, "Where is my order?", "en", 4),
        ]:
            response = await client.post(f"/{tenant}/messages", params={"text": text, "locale": locale})
            print(f"{tenant:<14} {locale}  {text!r:<24} {response.json()}  {len(asked)} classified")
            if response.json()["name"] != "track_order" or len(asked) != calls:
                sys.exit(f"expected track_order after {calls} calls of the classifier")
        many = [client.post(f"/{acme}/messages", params={"text": "a human, please"}) for _ in range(20)]
        answers = {(await response).json()["name"] for response in asyncio.as_completed(many)}
        print(f"20 at once: {answers}  {len(asked)} classified")
        if answers != {"human"} or len(asked) != 5:
            sys.exit("expected one call of the classifier for 20 messages")
        await client.get("/intents")
        page = await client.get("/intents")
        print(f"GET /intents  {page.status_code}  {page.headers['cache-status']}")
        if "; hit; ttl=" not in page.headers["cache-status"]:
            sys.exit("expected a hit in Cache-Status")


if __name__ == "__main__":
    asyncio.run(once()) if "--once" in sys.argv else uvicorn.run(app)
