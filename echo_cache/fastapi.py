"""
FastAPI dependencies: the cache in a handler, and per-route rules where dependencies are preferred to decorators.

    @app.put("/products/{product_id}")
    async def update(product_id: int, cache: CacheDep) -> None:
        await cache.invalidate(tags=[f"product:{product_id}"])

    @app.get("/products", dependencies=[Depends(Cached(ttl=60, tags=["catalog"]))])
    async def products() -> list[Product]: ...
"""

from __future__ import annotations

from typing import Annotated, Unpack

from fastapi import Depends
from fastapi.requests import HTTPConnection

from echo_cache.cache import Cache
from echo_cache.coordination.exchange import Exchange, current_exchange
from echo_cache.errors import ConfigurationError
from echo_cache.options import RouteRules, route_options

__all__ = ["CacheDep", "Cached", "get_cache"]


async def get_cache() -> Cache:
    """
    Return the cache whose middleware handles this request.

    Raises ConfigurationError where there is none.
    """
    cache = _exchange("get_cache").cache
    assert isinstance(cache, Cache)
    return cache


CacheDep = Annotated[Cache, Depends(get_cache)]
"""The cache, as a handler's parameter."""


class Cached:
    """
    The rules of @cached as a dependency: `dependencies=[Depends(Cached(ttl=60))]` on a route or a router.

    Raises ConfigurationError for values that cannot work, and in a request that no cache handles.
    """

    def __init__(self, **rules: Unpack[RouteRules]) -> None:
        self._options = route_options(rules)

    async def __call__(self, connection: HTTPConnection) -> None:
        if connection.scope["type"] == "websocket":
            return  # a router's rule meets its WebSocket routes too, and has nothing to say there
        _exchange("Cached(...)").route = self._options


def _exchange(what: str) -> Exchange:
    exchange = current_exchange.get()
    if exchange is None:
        raise ConfigurationError(f"{what} needs app.add_middleware(HTTPCacheMiddleware, store=...) around the app")
    return exchange
