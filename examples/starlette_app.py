"""Starlette: the app's own Cache-Control is enough; a decorator says more. `--once` shows it, else it serves."""

from __future__ import annotations

import asyncio
import sys

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions, cached, never_cached

# An object of its own, since handlers use it. default_ttl=None: what says nothing about caching is not cached.
cache = Cache(MemoryStore(), PolicyOptions(default_ttl=None))


async def news(request: Request) -> Response:
    return PlainTextResponse("nothing new\n", headers={"cache-control": "max-age=10, stale-if-error=600"})


@cached(ttl=60, tags=["product:{product_id}"])
async def product(request: Request) -> Response:
    return JSONResponse({"product": request.path_params["product_id"]})


@never_cached
async def basket(request: Request) -> Response:
    return PlainTextResponse("yours alone\n")


async def update(request: Request) -> Response:
    await cache.invalidate(tags=[f"product:{request.path_params['product_id']}"])
    return Response(status_code=204)


app = Starlette(
    routes=[
        Route("/news", news),
        Route("/products/{product_id:int}", product),
        Route("/products/{product_id:int}", update, methods=["PUT"]),
        Route("/basket", basket),
    ],
    middleware=[Middleware(HTTPCacheMiddleware, cache=cache)],
)


async def once() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        for method, path, said in [
            *[("GET", "/news", "stored"), ("GET", "/news", "hit")],
            *[("GET", "/products/1", "stored"), ("GET", "/products/1", "hit"), ("HEAD", "/products/1", "hit")],
            *[("PUT", "/products/1", "fwd=method"), ("GET", "/products/1", "stored")],
            *[("GET", "/basket", "route"), ("GET", "/basket", "route")],
        ]:
            response = await client.request(method, path)
            print(f"{method:<4} {path:<11} {response.status_code}  {response.headers['cache-status']}")
            if said not in response.headers["cache-status"]:
                sys.exit(f"expected {said!r} in Cache-Status")


if __name__ == "__main__":
    asyncio.run(once()) if "--once" in sys.argv else uvicorn.run(app)
