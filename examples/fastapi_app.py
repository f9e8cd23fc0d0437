"""FastAPI: one line caches the app, decorators and dependencies say more. `--once` shows it, else it serves."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime

import httpx
import uvicorn
from fastapi import Depends, FastAPI

from echo_cache import HTTPCacheMiddleware, MemoryStore, cached, never_cached
from echo_cache.fastapi import Cached, CacheDep

app = FastAPI()
app.add_middleware(
    HTTPCacheMiddleware, store=MemoryStore()
)  # before Redis: TwoLevelStore(MemoryStore(), RedisStore(url))


@app.get("/products/{product_id}")
@cached(ttl=60, stale_while_revalidate=30, tags=["product:{product_id}"])
async def product(product_id: int) -> dict[str, str]:
    return {"product": str(product_id), "made": datetime.now().astimezone().isoformat()}


@app.get("/products", dependencies=[Depends(Cached(ttl=60, tags=["catalog"]))])
def products() -> list[int]:  # endpoints without async are cached the same way
    return [1, 2, 3]


@app.get("/stock")
@never_cached
async def stock() -> dict[str, int]:
    return {"1": 7}


@app.put("/products/{product_id}")
async def update(product_id: int, cache: CacheDep) -> None:
    await cache.invalidate(tags=["catalog", f"product:{product_id}"])


async def once() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        for method, path, said in [
            *[("GET", "/products/1", "stored"), ("GET", "/products/1", "hit")],
            *[("GET", "/products", "stored"), ("GET", "/products", "hit")],
            *[("GET", "/stock", "route"), ("GET", "/stock", "route")],
            *[("PUT", "/products/1", "fwd=method"), ("GET", "/products/1", "stored"), ("GET", "/products", "stored")],
        ]:
            response = await client.request(method, path)
            print(f"{method} {path:<12} {response.status_code}  {response.headers['cache-status']}")
            if said not in response.headers["cache-status"]:
                sys.exit(f"expected {said!r} in Cache-Status")


if __name__ == "__main__":
    asyncio.run(once()) if "--once" in sys.argv else uvicorn.run(app)
