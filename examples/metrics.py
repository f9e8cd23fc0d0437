"""
Metrics for Prometheus at /metrics, lines for the log. `--once` makes some requests and shows what is counted, else it
serves; examples/prometheus has what scrapes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.routing import Route

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached, never_cached
from echo_cache.observability.logs import LoggingObserver
from echo_cache.observability.prometheus import metrics_endpoint

url = os.environ.get("REDIS_URL")
cache = Cache(
    TwoLevelStore(MemoryStore(), RedisStore(url)) if url else MemoryStore(),
    observers=[LoggingObserver(refusals=logging.INFO)],
    name="shop",
)

app = FastAPI()
# What is scraped goes past the cache, and does not count among what a cache can answer.
app.add_middleware(HTTPCacheMiddleware, cache=cache, exclude=["/metrics"])
app.router.routes.append(Route("/metrics", metrics_endpoint(cache)))


@app.get("/products/{product_id}")
@cached(ttl=60, tags=["product:{product_id}"])
async def product(product_id: int) -> dict[str, int]:
    await asyncio.sleep(0.05)  # the database
    return {"id": product_id}


@app.get("/basket")
@never_cached
async def basket() -> list[int]:
    return [1, 2, 3]


INTERESTING = (
    "echo_cache_hits_total",
    "echo_cache_forwards_total",
    "echo_cache_refused_total",
    "echo_cache_saved_seconds_total",
    "echo_cache_fill_seconds_count",
    "echo_cache_store_entries",
    "echo_cache_breaker_state",
)


async def once() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        for path in (*["/products/1"] * 3, "/products/2", "/basket"):
            response = await client.get(path)
            print(f"GET {path:<12} {response.status_code}  {response.headers['cache-status']}")
        metrics = await client.get("/metrics")
    await cache.aclose()
    lines = [line for line in metrics.text.splitlines() if line.startswith(INTERESTING)]
    print("\nGET /metrics", *lines, sep="\n")
    if 'echo_cache_hits_total{cache="shop",route="/products/{product_id}",level="l1"} 2' not in lines:
        sys.exit("expected two hits in memory")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(once()) if "--once" in sys.argv else uvicorn.run(app)
