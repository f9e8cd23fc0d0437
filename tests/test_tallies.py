"""What is counted, by route, and what of it is shown."""

from __future__ import annotations

from collections import Counter

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.aside import CacheAside
from echo_cache.codec import MAX_ROUTE
from echo_cache.tallies import MAX_ROUTES, OTHER_ROUTES, Favourites, Histogram, Tallies
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call


async def page(request: Request) -> Response:
    return PlainTextResponse("page", headers={"cache-control": "max-age=60"})


async def counted(app: object, *paths: str) -> Cache:
    """Return the cache around *app* after each of *paths* was asked for twice."""
    cache = Cache(MemoryStore())
    edge = HTTPCacheMiddleware(app, cache=cache)  # type: ignore[arg-type]
    for path in paths:
        for _ in range(2):
            assert (await call(edge, "GET", path)).status in (200, 404)
    return cache


def fastapi_app() -> FastAPI:
    app = FastAPI()
    inner = APIRouter(prefix="/products")

    @inner.get("/{product_id}")
    @cached(ttl=60)
    async def product(product_id: int) -> int:
        return product_id

    app.include_router(inner, prefix="/v1")
    return app


@pytest.mark.parametrize(
    ("app", "path", "route"),
    [
        pytest.param(Starlette(routes=[Route("/p/{id:int}", page)]), "/p/7", "/p/{id:int}", id="starlette"),
        pytest.param(
            Starlette(routes=[Mount("/api", routes=[Route("/p/{id}", page)])]), "/api/p/7", "/api/p/{id}", id="mounted"
        ),
        pytest.param(fastapi_app(), "/v1/products/7", "/v1/products/{product_id}", id="fastapi-with-prefixes"),
        pytest.param(Starlette(routes=[Route("/p", page)]), "/nowhere", "", id="no-route"),
    ],
)
async def test_requests_are_counted_by_the_pattern_of_their_route(app: object, path: str, route: str) -> None:
    cache = await counted(app, path)
    (counters,) = cache.stats_of_routes()
    assert counters.route == route
    assert (counters.l1_hits, counters.misses, counters.stored, counters.fills) == (1, 1, 1, 1)
    assert counters.fill_seconds > 0


async def test_what_clients_put_into_a_mounted_path_is_no_name_of_a_route() -> None:
    inner = [Route("/x", page), Route("/{id}/y", page)]
    app = Starlette(routes=[Mount("/t/{tenant}", routes=inner), Mount("/p/{rest:path}", routes=inner)])
    cache = await counted(app, *(f"/t/{n}/x" for n in range(5)), "/t/7/7/y", "/t/t/x", "/p/a/b/x", "/t/%2F/x")
    routes = {one.route for one in cache.stats_of_routes()}
    assert routes <= {"/t/{tenant}/x", "/t/{tenant}/{id}/y", "/{tenant}/t/x", "/p/{rest}/x", "/{...}/x", ""}


async def test_a_route_that_fails_to_tell_its_path_harms_nobody() -> None:
    class Odd:
        @property
        def path(self) -> str:
            raise RuntimeError("odd")

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        scope["route"] = Odd()
        await PlainTextResponse("x", headers={"cache-control": "max-age=60"})(scope, receive, send)

    cache = await counted(app, "/x")
    assert (cache.stats().l1_hits, cache.stats().misses, cache.stats().failures) == (1, 1, 1)


@pytest.mark.parametrize("path", ["/" + "x" * MAX_ROUTE, "/a\nb"], ids=["too-long", "with-a-line-feed"])
async def test_a_pattern_that_cannot_be_told_is_no_reason_not_to_store(path: str) -> None:
    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        scope["route"] = Route(path, page)
        await PlainTextResponse("x", headers={"cache-control": "max-age=60"})(scope, receive, send)

    cache = await counted(app, "/x")
    (counters,) = cache.stats_of_routes()
    assert (counters.route, counters.stored, counters.l1_hits) == ("", 1, 1)


async def test_a_route_is_known_in_another_worker_by_what_it_finds_in_redis(redis_url: str) -> None:
    app = Starlette(routes=[Route("/p/{id}", page)])
    caches = [Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url))) for _ in range(2)]
    for cache in caches:
        assert (await call(HTTPCacheMiddleware(app, cache=cache), "GET", "/p/1")).status == 200
        await cache.aclose()
    (filled,), (found,) = (cache.stats_of_routes() for cache in caches)
    assert (filled.route, filled.l2_hits, filled.misses) == ("/p/{id}", 0, 1)
    assert (found.route, found.l2_hits, found.misses) == ("/p/{id}", 1, 0)


async def test_hits_refusals_and_rescues_are_told_apart() -> None:
    clock = ManualClock()

    async def script(asked: AskedApp) -> None:
        if asked.headers.get("x-fail"):
            await asked.respond(503)
        elif asked.scope["path"] == "/private":
            await asked.respond(200, {"cache-control": "private"})
        else:
            await asked.respond(
                200, {"cache-control": "max-age=10, stale-while-revalidate=10, stale-if-error=60"}, b"x"
            )

    cache = Cache(MemoryStore(clock=clock), clock=clock)
    edge = HTTPCacheMiddleware(ScriptedApp(script), cache=cache)
    await call(edge, "GET", "/private")
    await call(edge, "GET", "/")
    await call(edge, "GET", "/")
    clock.advance(15)
    assert "hit" in (await call(edge, "GET", "/"))["cache-status"]
    await cache.aclose()
    clock.advance(30)
    await call(edge, "GET", "/", {"x-fail": "1"})
    stats = cache.stats()
    assert (stats.hits, stats.l1_hits, stats.l2_hits, stats.stale_hits, stats.rescued) == (2, 2, 0, 1, 1)
    assert stats.refused == {"private": 1}
    assert stats.stored == 2
    assert stats.misses == 4
    assert stats.hit_rate == pytest.approx(2 / 6)


async def test_a_reset_begins_anew_and_tallies_go_on() -> None:
    cache = await counted(Starlette(routes=[Route("/p/{id}", page)]), "/p/1", "/p/2")
    await cache.invalidate(tags=["a"])
    assert (cache.stats().hits, cache.stats().invalidations) == (2, 1)
    cache.reset_counters()
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.forwards, stats.invalidations, stats.saved_seconds) == (
        (0, 0, 0, {}, 0, 0.0)
    )
    assert cache.stats_of_routes() == []
    assert sum(tally.hits for tally in cache.tallies) == 2


async def test_what_is_saved_is_known_after_a_reset_too() -> None:
    cache = Cache(MemoryStore())
    edge = HTTPCacheMiddleware(Starlette(routes=[Route("/p/{id}", page)]), cache=cache)
    await call(edge, "GET", "/p/1")
    cache.reset_counters()
    await call(edge, "GET", "/p/1")
    assert cache.stats().saved_seconds > 0


async def test_values_are_not_counted_as_responses() -> None:
    cache = Cache(MemoryStore())
    aside = CacheAside(cache, "user")

    async def fetch() -> str:
        return "ada"

    assert [await aside.get("1", fetch) for _ in range(3)] == ["ada"] * 3
    assert (cache.stats().stored, cache.stats().hits, cache.stats_of_routes()) == (0, 0, [])
    await aside.aclose()


@pytest.mark.parametrize("ttl", [1, 2, 60])
async def test_what_is_hit_most_is_known_for_short_lives_too(ttl: int) -> None:
    clock = ManualClock()

    async def script(asked: AskedApp) -> None:
        await asked.respond(200, {"cache-control": f"max-age={ttl}"}, b"x")

    cache = Cache(MemoryStore(clock=clock), clock=clock)
    edge = HTTPCacheMiddleware(ScriptedApp(script), cache=cache)
    for _ in range(10):
        for _ in range(20):
            await call(edge, "GET", "/")
        clock.advance(1.0)
    await call(edge, "GET", "/")
    ((_, hits),) = cache.favourites.most(1)
    assert cache.stats().hits - 2 <= hits <= cache.stats().hits


async def test_what_is_hit_most_is_known() -> None:
    clock = ManualClock()
    cache = Cache(MemoryStore(clock=clock), clock=clock)
    edge = HTTPCacheMiddleware(Starlette(routes=[Route("/{id}", page)]), cache=cache)
    for _ in range(5):
        for number in range(3):
            for _ in range(number + 1):
                await call(edge, "GET", f"/{number}")
        clock.advance(1.5)
    most = [(key[3], count) for key, count in cache.favourites.most(2)]  # type: ignore[index]
    assert most == [(b"/2", 12), (b"/1", 8)]  # all but what came in the last second, after its first


def test_a_histogram_counts_in_buckets_whose_upper_ends_belong_to_them() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 5.0):
        histogram.observe(seconds)
    assert histogram.counts == [2, 1, 1]
    assert histogram.count == 4
    assert histogram.mean == pytest.approx(5.65 / 4)
    assert Histogram().mean == 0.0
    assert repr(histogram) == "<Histogram 4 in 5.65 s>"


def test_routes_beyond_the_bound_share_a_tally() -> None:
    tallies = Tallies()
    for number in range(MAX_ROUTES + 10):
        tallies.of(f"/{number}").l1_hits += 1
    assert len(list(tallies)) == MAX_ROUTES + 1
    assert tallies.of(OTHER_ROUTES).l1_hits == 10
    assert tallies.of("/0").l1_hits == 1
    assert repr(tallies.of("/0")) == "<Tally '/0' [1 hits, 0 collapsed, 0 misses]>"


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)), max_size=400))
def test_favourites_never_overcount_and_are_exact_for_few(counts: list[tuple[int, int]]) -> None:
    favourites = Favourites(places=8)
    exact: Counter[object] = Counter()
    for name, count in counts:
        favourites.add(name, count)
        exact[name] += count
    shown = dict(favourites.most(8))
    assert len(shown) == min(8, len(exact))
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert all(count <= exact[name] for name, count in shown.items())
    if len(exact) <= 40:
        assert all(count == exact[name] for name, count in shown.items())
    favourites.clear()
    assert favourites.most(8) == []


def test_favourites_find_the_few_among_very_many() -> None:
    favourites = Favourites()
    for number in range(20_000):
        favourites.add(f"once {number}", 1)
        if number % 10 == 0:
            favourites.add(f"often {number % 50}", 1)
    assert {name for name, _ in favourites.most(5)} == {f"often {number}" for number in (0, 10, 20, 30, 40)}
