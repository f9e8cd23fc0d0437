"""
Values with a database behind, and pages made of them. Run it with --once for a tour, or without to serve it.

One cache keeps both: rows of the database, and the responses that are made of them. A tag names a product in both, so
one invalidation drops the row and the page. Redis is used if $REDIS_URL names one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, Store, TwoLevelStore, cached
from echo_cache.aside import CacheAside, typed


@dataclass
class Product:
    """A row."""

    id: int
    name: str
    price: int


@dataclass
class NewProduct:
    """What a client may say of it."""

    name: str
    price: int


database = sqlite3.connect(":memory:", check_same_thread=False)
database.execute("CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
database.executemany("INSERT INTO product VALUES (?, ?, ?)", [(1, "tea", 4), (2, "cup", 9)])
queries: list[int] = []

store: Store = MemoryStore()
if url := os.environ.get("REDIS_URL"):
    store = TwoLevelStore(MemoryStore(), RedisStore(url, prefix="aside-example"))
cache = Cache(store)
products = CacheAside(cache, "product", default_ttl=600, serializer=typed(Product | None), cache_none=True)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Drop what an earlier process has left in Redis, as this database is new in each; yours has no need to."""
    await cache.clear()
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(HTTPCacheMiddleware, cache=cache)


@products.cached(key="{product_id}", tags=["product:{product_id}"])
async def load(product_id: int) -> Product | None:
    """Ask the database; a product that is not there is remembered too."""
    queries.append(product_id)
    row = database.execute("SELECT id, name, price FROM product WHERE id = ?", (product_id,)).fetchone()
    return None if row is None else Product(*row)


async def save(key: str, product: Product | None) -> None:
    """Write to the database. What is raised here reaches the caller, and nothing is kept."""
    assert product is not None
    with database:
        done = database.execute(
            "UPDATE product SET name = ?, price = ? WHERE id = ?", (product.name, product.price, key)
        )
    if not done.rowcount:
        raise HTTPException(404)


@app.get("/products/{product_id}")
@cached(ttl=60, tags=["product:{product_id}"])
async def page(product_id: int) -> Product:
    product = await load(product_id)
    if product is None:
        raise HTTPException(404)
    return product


@app.put("/products/{product_id}")
async def change(product_id: int, new: NewProduct) -> Product:
    product = Product(product_id, new.name, new.price)
    # First the database, then the cache; then the pages that were made of the old one are dropped.
    await products.write_through(str(product_id), product, save, tags=[f"product:{product_id}"])
    await cache.invalidate(url=f"/products/{product_id}")
    return product


async def tour() -> None:
    """Show what the database is asked."""
    await cache.clear()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://example") as client:
        await asyncio.gather(*(load(1) for _ in range(100)))
        print(f"100 readers at once: {len(queries)} query")
        for _ in range(2):
            response = await client.get("/products/1")
            print(f"GET /products/1   {response.json()}   {response.headers['cache-status']}")
        await client.put("/products/1", json={"name": "tea", "price": 5})
        response = await client.get("/products/1")
        print(f"after a PUT       {response.json()}   {response.headers['cache-status']}")
        response = await client.put("/products/3", json={"name": "none", "price": 1})
        print(f"PUT /products/3   {response.status_code}: it is not in the database, and not in the cache")
        await load(3)
        await load(3)
        print(f"queries in all: {queries}, hits: {products.stats().hits}")
    await cache.aclose()


if __name__ == "__main__":
    if "--once" in sys.argv[1:]:
        asyncio.run(tour())
    else:
        uvicorn.run(app, port=8000)
