"""The smallest app that caches. `examples/quickstart.py --once` asks it three times; without --once it serves."""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from fastapi import FastAPI

from echo_cache import HTTPCacheMiddleware, MemoryStore, cached
from echo_cache.testing import call

app = FastAPI()
app.add_middleware(HTTPCacheMiddleware, store=MemoryStore())


@app.get("/products/{product_id}")
@cached(ttl=60)
async def product(product_id: int) -> dict[str, int]:
    await asyncio.sleep(0.2)  # a slow database
    return {"id": product_id}


async def once() -> None:
    for path, said in [("/products/7", "stored"), ("/products/7", "hit"), ("/products/8", "stored")]:
        response = await call(app, "GET", path)
        print(f"GET {path}  {response.status}  {response['cache-status']}")
        if said not in response["cache-status"]:
            sys.exit(f"expected {said!r} in Cache-Status")


if __name__ == "__main__":
    asyncio.run(once()) if "--once" in sys.argv else uvicorn.run(app)
