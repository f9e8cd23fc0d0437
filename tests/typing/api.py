"""
The public API as users write it, for mypy --strict; it runs, too.

assert_type states what a checker must see: above all, that decorators leave an endpoint's signature alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, assert_type

from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from echo_cache import (
    Cache,
    CacheCounters,
    CacheStats,
    CacheStrategy,
    ConfigurationError,
    CoordinationOptions,
    EchoCacheError,
    HTTPCacheMiddleware,
    InvalidationResult,
    MemoryStore,
    NotPropagated,
    PolicyOptions,
    RedisStore,
    RequestDirectiveMode,
    Store,
    StoreStats,
    SyncMode,
    SyncReport,
    TwoLevelConfig,
    TwoLevelStore,
    UnsyncedMode,
    WarmReport,
    cached,
    never_cached,
)
from echo_cache.aside import CacheAside, Write, typed
from echo_cache.fastapi import Cached, CacheDep, get_cache
from echo_cache.recipes import IntentCache

# Stores: any of them wherever a Store is asked for.

memory = MemoryStore(max_bytes=64 * 1024 * 1024, max_entries=10_000, policy="lfu")
redis = RedisStore("redis://localhost", prefix="shop", timeout=0.05)
config = TwoLevelConfig(strategy=CacheStrategy.WRITE_THROUGH, l1_ttl=60, l2_ttl=600, sync_mode=SyncMode.SYNC)
two_level = TwoLevelStore(memory, redis, config)
by_name = TwoLevelStore(MemoryStore(), RedisStore("redis://localhost"), TwoLevelConfig(strategy="cache_aside"))
stores: list[Store] = [memory, redis, two_level, by_name]
signed = RedisStore("redis+cluster://10.0.0.1,10.0.0.2", secret=["new" * 8, "old" * 8], breaker_failures=5)


async def manage_levels() -> None:
    assert_type(two_level.get_stats(), CacheStats)
    assert_type((await two_level.get_full_stats()).l2_size, int | None)
    await two_level.sync_l2_to_l1(lambda progress: print(progress.copied))
    assert_type(await two_level.sync_l1_to_l2(), SyncReport)
    assert_type(await two_level.clear_l1(), int | None)
    await two_level.flush()


# Policies.

safe = PolicyOptions(default_ttl=None, request_directives=RequestDirectiveMode.IGNORE)
public = PolicyOptions(request_directives="ignore", allowed_hosts=["shop.example"], ignored_query_parameters=["utm_id"])
plain = PolicyOptions.rfc9111(max_body_bytes=32 * 1024 * 1024)
assert_type(plain, PolicyOptions)
ahead = PolicyOptions(early_refresh=0.8, expiry_jitter=0.1, negative_ttl=timedelta(seconds=5).total_seconds())

# How workers act together.

together = CoordinationOptions(max_unsynced=2, unsynced=UnsyncedMode.BYPASS, lease_wait=1, max_refreshes=8)
by_value = CoordinationOptions(unsynced="cap", lease_wait=0)

# The middleware: in each of the ways in which Starlette and FastAPI take one.

cache = Cache(memory, safe, name="shop", fill_timeout=10)
app = FastAPI()
app.add_middleware(HTTPCacheMiddleware, store=TwoLevelStore(MemoryStore(), RedisStore("redis://localhost")))
FastAPI().add_middleware(
    HTTPCacheMiddleware,
    store=memory,
    default_ttl=30,
    include={"/products/*": 60, "/static/*": timedelta(hours=1), "/news": None},
    exclude=["/products/*/stock"],
    skip=lambda scope: scope["path"] == "/health",
    name="edge",
)
Starlette().add_middleware(HTTPCacheMiddleware, store=memory, policy=public, include=["/products/*"])
Starlette(middleware=[Middleware(HTTPCacheMiddleware, cache=cache)])
Starlette().add_middleware(HTTPCacheMiddleware, store=memory, coordination=together)
HTTPCacheMiddleware(Starlette(), cache=cache)
HTTPCacheMiddleware(Starlette(), memory)

# Decorators: an endpoint stays what it is.


@app.get("/products/{product_id}")
@cached(ttl=60, stale_while_revalidate=30, tags=["catalog", "product:{product_id}"])
async def product(product_id: int, full: bool = False) -> dict[str, int]:
    return {"id": product_id}


@cached(ttl=timedelta(minutes=5), client_ttl=60, stale_if_error=timedelta(days=1), vary=["Accept-Language"])
@app.get("/categories")
def categories() -> list[str]:
    return ["shoes"]


@cached(ttl=60, share_authorized=True, store_set_cookie=False)
async def page(request: Request) -> Response:
    return PlainTextResponse("page")


@cached(ttl=3600, negative_ttl=timedelta(seconds=5))
async def article(request: Request) -> Response:
    return PlainTextResponse("article", status_code=404)


@never_cached
def basket(request: Request) -> Response:
    return PlainTextResponse("basket")


class Shop:
    """An endpoint may be a method."""

    @cached(ttl=1)
    async def front(self, request: Request) -> Response:
        return PlainTextResponse("front")


assert_type(categories(), list[str])
page_as_endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = page
basket_as_endpoint: Callable[[Request], Response] = basket
front_as_endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = Shop().front
Starlette(routes=[Route("/page", page), Route("/basket", basket), Route("/", Shop().front)])


async def call() -> None:
    """What is decorated is called as before."""
    assert_type(await product(1, full=True), dict[str, int])
    assert_type(await product(product_id=1), dict[str, int])


async def mistakes() -> None:
    """What a checker must find."""
    cached(60)  # type: ignore[arg-type]
    cached(ttl="60")  # type: ignore[arg-type]
    cached(tll=60)  # type: ignore[call-arg]
    PolicyOptions(default_ttl="180")  # type: ignore[arg-type]
    Cache("redis://localhost")  # type: ignore[arg-type]
    await product("1")  # type: ignore[arg-type]


# Dependencies.

router = APIRouter(dependencies=[Depends(Cached(ttl=60, tags=["catalog"]))])


@router.get("/latest")
async def latest() -> list[int]:
    return [1]


@app.put("/products/{product_id}")
async def update(product_id: int, cache: CacheDep) -> None:
    assert_type(cache, Cache)
    result = await cache.invalidate(tags=[f"product:{product_id}"])
    assert_type(result, InvalidationResult)
    assert_type(result.propagated, bool)
    assert_type(result.log_id, str | None)


@app.delete("/products/{product_id}")
def delete(product_id: int, cache: CacheDep) -> None:
    """In a thread: without await."""
    try:
        assert_type(cache.invalidate_sync(tags=[f"product:{product_id}"], strict=True), InvalidationResult)
    except NotPropagated:
        print("the other workers hear of it when Redis is back")


@app.get("/stats")
@never_cached
async def stats(cache: Cache = Depends(get_cache)) -> dict[str, int]:
    return {"hits": cache.stats().hits}


app.include_router(router)

# The engine.


async def manage(cache: Cache) -> None:
    async with cache:
        await cache.invalidate(url="/products/1")
        await cache.invalidate(url="https://shop.example/products/1", soft=True)
        await cache.invalidate(prefix="/products/", tags=("catalog", "front"))
        assert_type(await cache.clear(strict=True), InvalidationResult)
        Starlette(middleware=[Middleware(HTTPCacheMiddleware, cache=cache)]).build_middleware_stack()
        report = await cache.warm(["http://shop.example/"], concurrency=4, progress=lambda report: print(report.done))
        assert_type(report, WarmReport)
        with cache.disabled():
            assert_type(cache.is_disabled, bool)
        counters = cache.stats()
        assert_type(counters, CacheCounters)
        assert_type(counters.hit_rate, float)
        assert_type(counters.store, StoreStats)
        cache.reset_counters()
        try:
            cache.tag("product:1")
        except ConfigurationError as error:
            caught: EchoCacheError = error
            assert "behind HTTPCacheMiddleware" in str(caught)
    await cache.aclose(deadline=1.0)


# Values.


async def values(cache: Cache) -> None:
    users = CacheAside(cache, "user", default_ttl=timedelta(hours=1), serializer=typed(dict[int, str]))

    async def load() -> dict[int, str]:
        return {1: "Ada"}

    async def save(key: str, value: dict[int, str]) -> None: ...

    @users.cached(key="{user_id}:{full}", ttl=60, tags=["user:{user_id}"])
    async def user(user_id: int, full: bool = False) -> dict[int, str]:
        return {user_id: "Ada"}

    assert_type(await users.get("1", load), dict[int, str])
    assert_type(await users.get_with_lock("1", load, 60, lock_timeout=1), dict[int, str])
    assert_type(await users.refresh("1", load), dict[int, str])
    await users.write_through("1", {1: "Ada"}, save, ttl=5)
    assert_type(await user(7, full=True), dict[int, str])
    assert_type(user.key(7), str)
    assert_type(await user.invalidate(7), InvalidationResult)

    @users.saver
    async def store_user(write: Write[dict[int, str]]) -> None: ...

    assert store_user is not None
    intents = IntentCache(cache, version="1")

    async def classify(message: str) -> str:
        return "greeting"

    assert_type(await intents.get_or_classify("hello", classify), str)


if __name__ == "__main__":
    asyncio.run(call())
    asyncio.run(values(Cache(MemoryStore())))
    asyncio.run(manage(cache))
