"""The fixtures and assertions for the tests of users: here as their tests use them, and in projects of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi
import httpx
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from echo_cache import (
    Cache,
    ConfigurationError,
    Fwd,
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    RedisStore,
    Refusal,
    TwoLevelStore,
    cached,
    pytest_plugin,
    testing,
)
from echo_cache.aside import CacheAside, Write
from echo_cache.fastapi import CacheDep
from echo_cache.policy.explaining import WHY_FORWARDED, WHY_NOT_STORED
from echo_cache.pytest_plugin import AppChange
from echo_cache.testing import (
    ManualClock,
    Response,
    ScriptedApp,
    assert_collapsed,
    assert_hit,
    assert_miss,
    assert_not_stored,
    assert_stale,
    assert_stored,
    cache_of,
    cache_status,
    in_memory,
    open_request,
    without_cache,
)

# Users have the fixtures by the entry point. Here that would import the package before coverage begins.
_echo_cache_changes = pytest_plugin._echo_cache_changes
echo_cache = pytest_plugin.echo_cache
echo_cache_app = pytest_plugin.echo_cache_app
echo_cache_clock = pytest_plugin.echo_cache_clock
echo_cache_disabled = pytest_plugin.echo_cache_disabled

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "testing.md"
# Nobody listens there. A cache that asks it is in trouble, and says so in the log.
NO_REDIS = "redis://127.0.0.1:1"


def answer(said: str | None, status: int = 200) -> Response:
    """Return a response with this Cache-Status."""
    return Response(status, [] if said is None else [(b"cache-status", said.encode())], b"", [])


# --- reading Cache-Status ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param("echo_cache; hit; ttl=57", {"hit": True, "ttl": 57}, id="hit"),
        pytest.param("echo_cache; hit; ttl=-5", {"hit": True, "ttl": -5}, id="stale"),
        pytest.param(
            "echo_cache; fwd=uri-miss; ttl=60; stored", {"fwd": "uri-miss", "ttl": 60, "stored": True}, id="stored"
        ),
        pytest.param("echo_cache;fwd=stale ;  fwd-status=304", None, id="malformed-space-before-semicolon"),
        pytest.param("echo_cache;fwd=stale;  fwd-status=304", {"fwd": "stale", "fwd_status": 304}, id="spaces"),
        pytest.param("echo_cache; fwd=miss; collapsed", {"fwd": "miss", "collapsed": True}, id="collapsed"),
        pytest.param('echo_cache; detail="a; hit, b\\"; stored"', {"detail": 'a; hit, b"; stored'}, id="string"),
        pytest.param("echo_cache; hit=?0; stored=?0; collapsed=?0", {}, id="false"),
        pytest.param("echo_cache; ttl=?1; fwd-status=1.5; fwd=7", {}, id="other-types"),
        pytest.param("echo_cache; new=:aGl0:; ttl=1", {"ttl": 1}, id="unknown-parameter"),
        pytest.param('"echo_cache"; hit', {"hit": True}, id="name-as-string"),
        pytest.param("Origin; fwd=miss, echo_cache; hit, CDN; hit; ttl=9", {"hit": True}, id="others"),
        pytest.param("echo_cache; fwd=stale, echo_cache; hit", {"hit": True}, id="the-outermost-of-two"),
        pytest.param('CDN; detail="x, echo_cache; hit", echo_cache; fwd=miss', {"fwd": "miss"}, id="not-in-a-string"),
        pytest.param('(a "b, c"); hit, echo_cache; ttl=3', {"ttl": 3}, id="beside-an-inner-list"),
    ],
)
def test_cache_status_is_read_by_rfc_9211(said: str, expected: dict[str, Any] | None) -> None:
    if expected is None:
        with pytest.raises(AssertionError, match="no list of RFC 9651"):
            cache_status(answer(said))
        return
    status = cache_status(answer(said))
    read = {name: getattr(status, name) for name in (*_PARAMETERS, "hit", "stored", "collapsed")}
    assert {name: value for name, value in read.items() if value not in (None, False)} == expected
    assert status.name == "echo_cache"
    assert status.text in said


_PARAMETERS = ("fwd", "fwd_status", "ttl", "detail")


def test_cache_status_of_a_cache_with_another_name() -> None:
    assert cache_status(answer('"my cache"; hit, echo_cache; fwd=miss'), name="my cache").hit


@pytest.mark.parametrize(
    ("said", "named"),
    [
        pytest.param(None, "no Cache-Status: no cache has seen the request", id="absent"),
        pytest.param("", "no Cache-Status", id="empty"),
        pytest.param("echo_cache; hit;", "no list of RFC 9651: 'echo_cache; hit;'", id="malformed"),
        pytest.param("CDN; hit", "no cache called 'echo_cache' in Cache-Status: 'CDN; hit'; say name=", id="another"),
    ],
)
def test_message_says_why_there_is_no_cache_status(said: str | None, named: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(named)):
        cache_status(answer(said))


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(httpx.Response(200, headers=[("Cache-Status", "a; hit"), ("cache-status", "b; hit")]), id="httpx"),
        pytest.param(PlainTextResponse(headers={"Cache-Status": "a; hit, b; hit"}), id="starlette"),
        pytest.param(Response(200, [(b"cache-status", b"a; hit"), (b"Cache-Status", b"b; hit")], b"", []), id="ours"),
    ],
)
def test_headers_of_any_client_are_read(response: Any) -> None:
    assert assert_hit(response, name="a").hit
    assert assert_hit(response, name="b").hit


# --- the assertions ---------------------------------------------------------------------------------------------------

ASSERTIONS: dict[str, Callable[[Response], object]] = {
    "hit": assert_hit,
    "stale": assert_stale,
    "miss": assert_miss,
    "stored": assert_stored,
    "not stored": assert_not_stored,
    "collapsed": assert_collapsed,
}


@pytest.mark.parametrize(
    ("said", "holds"),
    [
        ("hit; ttl=57", {"hit"}),
        ("hit", {"hit"}),
        ("hit; ttl=0", {"hit"}),
        ("hit; ttl=-1", {"stale"}),
        ("fwd=uri-miss; ttl=60; stored", {"miss", "stored"}),
        ("fwd=vary-miss; ttl=60; stored", {"miss", "stored"}),
        ("fwd=request; ttl=60; stored", {"miss", "stored"}),
        ("fwd=stale; fwd-status=304; ttl=60", {"miss", "stored"}),
        ("fwd=stale; fwd-status=500; ttl=-5; detail=stale-if-error", {"miss", "stale"}),
        ("fwd=uri-miss; ttl=60; collapsed", {"miss", "stored", "collapsed"}),
        ("fwd=uri-miss; detail=set-cookie", {"miss", "not stored"}),
        ("fwd=bypass", {"not stored"}),
        ("fwd=method; detail=method", {"not stored"}),
        ("detail=only-if-cached", {"not stored"}),
    ],
)
def test_assertions_hold_for_what_they_name_and_for_nothing_else(said: str, holds: set[str]) -> None:
    held = set()
    for name, check in ASSERTIONS.items():
        try:
            check(answer(f"echo_cache; {said}"))
        except AssertionError:
            continue
        held.add(name)
    assert held == holds


def test_assertions_return_the_whole_cache_status() -> None:
    hit, miss = answer("echo_cache; hit; ttl=9"), answer("echo_cache; fwd=uri-miss; ttl=60; stored")
    assert assert_hit(hit).ttl == 9
    assert assert_stored(miss) == assert_miss(miss) == cache_status(miss)


@pytest.mark.parametrize("fwd", [Fwd.STALE, "stale"])
def test_miss_for_a_reason_is_not_one_for_another(fwd: Fwd | str) -> None:
    assert_miss(answer("echo_cache; fwd=stale"), fwd)
    with pytest.raises(AssertionError, match="fwd=stale\n"):
        assert_miss(answer("echo_cache; fwd=uri-miss"), fwd)


def test_request_that_went_past_the_cache_is_a_miss_where_that_is_asked_for() -> None:
    assert_miss(answer("echo_cache; fwd=bypass"), "bypass")
    assert_miss(answer("echo_cache; fwd=method"), Fwd.METHOD)


@pytest.mark.parametrize("reason", [Refusal.PRIVATE, "private"])
def test_not_stored_for_a_reason_is_not_for_another(reason: Refusal | str) -> None:
    assert_not_stored(answer("echo_cache; fwd=uri-miss; detail=private"), reason)
    for other in ("detail=set-cookie", "ttl=3"):
        with pytest.raises(AssertionError, match="for the reason private\n"):
            assert_not_stored(answer(f"echo_cache; fwd=uri-miss; {other}"), reason)


def test_words_that_there_are_not_are_refused_with_those_there_are() -> None:
    said = answer("echo_cache; fwd=uri-miss")
    with pytest.raises(ConfigurationError, match=r"fwd must be one of bypass, .*, not 'urimiss'"):
        assert_miss(said, "urimiss")
    with pytest.raises(ConfigurationError, match=r"reason must be one of .*set-cookie, .*, not 'cookie'"):
        assert_not_stored(said, "cookie")


@pytest.mark.parametrize(
    ("check", "said", "sentences"),
    [
        pytest.param(
            assert_stored,
            "fwd=uri-miss; detail=set-cookie",
            [
                "expected: an answer of the app that is stored",
                "(200) has Cache-Status: echo_cache; fwd=uri-miss; det",
                "went to the app (uri-miss)",
                "was not stored (set-cookie)",
                *WHY_NOT_STORED[Refusal.SET_COOKIE],
            ],
            id="not-stored",
        ),
        pytest.param(
            assert_hit,
            "fwd=vary-miss; ttl=60; stored",
            ["expected: a fresh answer", *WHY_FORWARDED[Fwd.VARY_MISS], "was stored, fresh for another 60 s."],
            id="miss-for-hit",
        ),
        pytest.param(assert_hit, "hit; ttl=-5", ["The cache answered", "stale, for 5 s already"], id="stale-for-hit"),
        pytest.param(assert_stale, "hit; ttl=5", ["a second or more past", "fresh for another 5 s"], id="fresh"),
        pytest.param(assert_miss, "hit; ttl=5", ["expected: a miss", "The cache answered, without"], id="hit-for-miss"),
        pytest.param(assert_miss, "fwd=bypass", ["expected: a miss", *WHY_FORWARDED[Fwd.BYPASS]], id="bypass"),
        pytest.param(assert_not_stored, "hit", ["not stored", "The cache answered, without the app."], id="hit"),
        pytest.param(assert_not_stored, "fwd=stale; fwd-status=304", ["confirmed the stored"], id="confirmed"),
        pytest.param(
            assert_hit,
            "fwd=stale; fwd-status=500; ttl=-5; detail=stale-if-error",
            ["The app answered 500.", "The app failed, and a stale stored response was the answer."],
            id="stale-if-error",
        ),
        pytest.param(assert_stored, "detail=only-if-cached", ["Its detail is 'only-if-cached'."], id="other-detail"),
        pytest.param(assert_hit, "fwd=new-reason", ["went to the app (new-reason)"], id="unknown-fwd"),
        pytest.param(assert_stored, "hit=?0", ["which means: nothing that is known here."], id="nothing"),
        pytest.param(assert_not_stored, "fwd=miss; stored", ["The response was stored."], id="stored-without-ttl"),
        pytest.param(assert_hit, "fwd=miss; collapsed", ["the answer to another request"], id="collapsed"),
        pytest.param(assert_collapsed, "hit; ttl=5", ["shared the app's answer"], id="not-collapsed"),
    ],
)
def test_message_says_what_was_expected_what_was_said_and_what_it_means(
    check: Callable[[Response], object], said: str, sentences: list[str]
) -> None:
    with pytest.raises(AssertionError) as failed:
        check(answer(f"echo_cache; {said}"))
    for sentence in sentences:
        assert sentence in str(failed.value)


def test_stale_if_error_and_only_if_cached_are_said_as_the_assertions_read_them() -> None:
    """What the middleware says, not what a test believes that it says: see also the tests with an app, below."""
    clock = ManualClock()
    broken = False

    async def page(request: Request) -> PlainTextResponse:
        if broken:
            raise HTTPException(500)
        return PlainTextResponse("x", headers={"cache-control": "max-age=60, stale-if-error=60"})

    app = HTTPCacheMiddleware(Starlette(routes=[Route("/", page)]), MemoryStore())
    client = TestClient(app, raise_server_exceptions=False)
    with in_memory(app, clock=clock):
        assert assert_not_stored(client.get("/", headers={"cache-control": "only-if-cached"})).fwd is None
        assert_stored(client.get("/"))
        broken = True
        clock.advance(65)
        assert assert_stale(client.get("/")).detail == "stale-if-error"


# --- the cache of an app ----------------------------------------------------------------------------------------------


@dataclass
class Shop:
    """An app as users have it, made when it is imported, with a Redis that a test does not have."""

    app: FastAPI
    calls: list[str]
    stocked: asyncio.Event


def make_shop(**cache: Any) -> Shop:
    app = FastAPI()
    if not cache:
        cache = {"store": TwoLevelStore(MemoryStore(), RedisStore(NO_REDIS)), "default_ttl": None, "exclude": ["/raw"]}
    app.add_middleware(HTTPCacheMiddleware, **cache)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    shop = Shop(app, [], asyncio.Event())

    @app.get("/products/{product_id}")
    @cached(ttl=60, stale_while_revalidate=30, tags=["product:{product_id}"])
    async def product(product_id: int) -> dict[str, int]:
        shop.calls.append(f"product {product_id}")
        return {"id": product_id}

    @app.put("/products/{product_id}")
    async def update(product_id: int, cache: CacheDep) -> None:
        await cache.invalidate(tags=[f"product:{product_id}"])

    @app.post("/reindex")
    def reindex(cache: CacheDep) -> None:
        cache.invalidate_sync(prefix="/products/")

    @app.get("/login")
    @cached(ttl=60)
    async def login(response: fastapi.Response) -> str:
        response.set_cookie("session", "1")
        return "welcome"

    @app.get("/raw")
    async def raw() -> str:
        return "raw"

    @app.get("/stock")
    @cached(ttl=60)
    async def stock() -> str:
        shop.calls.append("stock")
        await shop.stocked.wait()
        return "much"

    return shop


@pytest.fixture
def shop(caplog: pytest.LogCaptureFixture) -> Iterator[Shop]:
    """A shop whose cache must not be in trouble: it is if it asks for Redis."""
    with caplog.at_level(logging.WARNING, logger="echo_cache"):
        yield make_shop()
    assert [record.getMessage() for record in caplog.records if record.name == "echo_cache"] == []


@pytest.fixture
async def client(shop: Shop, echo_cache_app: AppChange[Any]) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(echo_cache_app(shop.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
        yield client


def test_page_is_fresh_for_its_ttl_on_the_clock(
    shop: Shop, echo_cache_app: AppChange[Any], echo_cache_clock: ManualClock
) -> None:
    client = TestClient(echo_cache_app(shop.app))
    assert_stored(client.get("/products/7"))
    echo_cache_clock.advance(59)
    assert assert_hit(client.get("/products/7")).ttl == 1
    echo_cache_clock.advance(32)
    assert_miss(client.get("/products/7"), "uri-miss")
    assert shop.calls == ["product 7"] * 2


@pytest.mark.parametrize("started", [False, True], ids=["never-started", "started-before"])
def test_app_is_given_a_cache_whether_it_has_started_or_not(
    shop: Shop, echo_cache_app: AppChange[Any], started: bool
) -> None:
    if started:
        shop.app.middleware_stack = shop.app.build_middleware_stack()
    with TestClient(echo_cache_app(shop.app)) as client:
        assert_stored(client.get("/products/7"))
        assert_hit(client.get("/products/7"))


def test_rules_of_the_app_hold_in_the_test(shop: Shop, echo_cache_app: AppChange[Any]) -> None:
    client = TestClient(echo_cache_app(shop.app))
    assert_miss(client.get("/raw"), "bypass")
    assert_not_stored(client.get("/nowhere"), Refusal.NO_FRESHNESS)
    assert_not_stored(client.get("/login"), "set-cookie")
    assert cache_of(shop.app).options.default_ttl is None


@pytest.mark.parametrize(("method", "path"), [("PUT", "/products/7"), ("POST", "/reindex")])
def test_what_handlers_invalidate_is_gone(shop: Shop, echo_cache_app: AppChange[Any], method: str, path: str) -> None:
    client = TestClient(echo_cache_app(shop.app))
    assert_stored(client.get("/products/7"))
    assert client.request(method, path).status_code == 200
    assert_miss(client.get("/products/7"))
    assert_hit(client.get("/products/7"))


async def test_coroutine_tests_use_the_same_fixtures(
    shop: Shop, client: httpx.AsyncClient, echo_cache_clock: ManualClock
) -> None:
    assert_stored(await client.get("/products/7"))
    assert_hit(await client.get("/products/7"))
    await cache_of(shop.app).invalidate(url="/products/7")
    assert_miss(await client.get("/products/7"))
    echo_cache_clock.advance(70)
    assert_stale(await client.get("/products/7"))
    await cache_of(shop.app).aclose()  # waits for the refresh
    assert_hit(await client.get("/products/7"))
    assert len(shop.calls) == 3


def test_refresh_is_waited_for_in_the_loop_of_a_test_client(
    shop: Shop, echo_cache_app: AppChange[Any], echo_cache_clock: ManualClock
) -> None:
    with TestClient(echo_cache_app(shop.app)) as client:
        assert_stored(client.get("/products/7"))
        echo_cache_clock.advance(70)
        assert_stale(client.get("/products/7"))
        assert client.portal is not None
        client.portal.call(cache_of(shop.app).aclose)
        assert_hit(client.get("/products/7"))


async def aboard(cache: Cache, count: int) -> None:
    """Wait until *count* requests wait for one call of the app."""
    while True:
        flights = list(cache.flights._by_key.values())
        if len(flights) == 1 and len(flights[0]._passengers) == count:
            return
        await asyncio.sleep(0)


async def test_requests_that_share_a_call_are_told_apart(shop: Shop, client: httpx.AsyncClient) -> None:
    first, second = (asyncio.ensure_future(client.get("/stock")) for _ in range(2))
    await aboard(cache_of(shop.app), 2)
    shop.stocked.set()
    await asyncio.wait([first, second])
    assert_stored(first.result())
    assert_collapsed(second.result())
    assert shop.calls == ["stock"]


def test_cache_that_others_hold_is_the_one_of_the_test(
    echo_cache_app: AppChange[Any], echo_cache_clock: ManualClock
) -> None:
    own = Cache(RedisStore(NO_REDIS), PolicyOptions(default_ttl=None), name="shop", observers=[events.append])
    shop = make_shop(cache=own)
    client = TestClient(echo_cache_app(shop.app))
    events.clear()
    assert cache_of(shop.app) is own
    assert own.clock is echo_cache_clock
    assert_stored(client.get("/products/7"), name="shop")
    own.invalidate_sync(tags=["product:7"])
    assert_miss(client.get("/products/7"), name="shop")
    assert own.stats().forwards == {Fwd.URI_MISS: 2}
    assert {type(event).__name__ for event in events} >= {"Stored", "Invalidated"}


events: list[object] = []


def test_app_that_runs_stays_known_to_its_cache() -> None:
    """What warms and invalidates from outside goes through the middleware, and in the event loop, that were there."""
    threads: list[int] = []
    own = Cache(MemoryStore(), observers=[lambda event: threads.append(threading.get_ident())])
    shop = make_shop(cache=own)
    with TestClient(shop.app) as client:
        assert client.portal is not None
        in_loop = client.portal.call(threading.get_ident)
        with in_memory(shop.app):
            own.invalidate_sync(tags=["product:1"])
            assert threads == [in_loop]
            assert client.portal.call(own.warm, ["http://testserver/products/1"]).stored == 1
            assert_hit(client.get("/products/1"))


def test_afterwards_all_is_as_it_was() -> None:
    own = Cache(MemoryStore(), name="shop")
    shop = make_shop(cache=own)
    client = TestClient(shop.app)
    assert_stored(client.get("/products/1"), name="shop")
    before, stack = vars(own).copy(), shop.app.middleware_stack
    with in_memory(shop.app, clock=ManualClock()):
        assert own.stats().stored == 0
        vars(own)["noted"] = "by the test"
        assert_miss(client.get("/products/1"), name="shop")
        assert_stored(client.get("/products/2"), name="shop")
    assert vars(own) == before
    assert shop.app.middleware_stack is stack
    assert_hit(client.get("/products/1"), name="shop")
    assert_miss(client.get("/products/2"), name="shop")


def test_app_that_had_not_started_can_be_added_to_afterwards() -> None:
    shop = make_shop()
    with in_memory(shop.app):
        assert_stored(TestClient(shop.app).get("/products/1"))
    shop.app.add_middleware(CORSMiddleware)


def test_afterwards_all_is_as_it_was_when_the_test_fails() -> None:
    own = Cache(MemoryStore())
    before = vars(own).copy()
    with pytest.raises(ZeroDivisionError), in_memory(own):
        _ = 1 / 0
    assert vars(own) == before


def test_tests_see_nothing_of_each_other() -> None:
    shop = make_shop()
    for _ in range(2):
        with in_memory(shop.app):
            client = TestClient(shop.app)
            assert_miss(client.get("/products/1"))
            assert_hit(client.get("/products/1"))


def test_disabled_cache_lets_every_request_reach_the_app(shop: Shop, echo_cache_disabled: AppChange[Any]) -> None:
    with TestClient(echo_cache_disabled(shop.app)) as client:
        for _ in range(2):
            assert_miss(client.get("/products/7"), "bypass")
    assert len(shop.calls) == 2


@pytest.fixture
def shop_without_cache(shop: Shop, echo_cache_disabled: AppChange[Any]) -> Shop:
    echo_cache_disabled(shop.app)
    return shop


def test_cache_that_is_off_for_all_tests_is_on_where_one_asks_for_it(
    shop_without_cache: Shop, echo_cache_app: AppChange[Any]
) -> None:
    client = TestClient(shop_without_cache.app)
    assert_miss(client.get("/products/7"), "bypass")
    echo_cache_app(shop_without_cache.app)
    assert_stored(client.get("/products/7"))
    assert_hit(client.get("/products/7"))


@pytest.fixture
def afterwards() -> Iterator[list[Callable[[], None]]]:
    """What is to be looked at after the fixtures that were asked for behind this one have ended."""
    looks: list[Callable[[], None]] = []
    yield looks
    for look in looks:
        look()


def test_changes_are_undone_in_the_opposite_order(
    afterwards: list[Callable[[], None]], echo_cache_app: AppChange[Any], echo_cache_disabled: AppChange[Any]
) -> None:
    own = Cache(MemoryStore())
    before = vars(own).copy()

    def is_undone() -> None:
        assert vars(own) == before

    afterwards.append(is_undone)
    # The other way round than their fixtures were made.
    echo_cache_disabled(own)
    echo_cache_app(own)
    assert not own.is_disabled
    assert vars(own) != before


def test_cache_for_apps_that_tests_make(echo_cache: Cache, echo_cache_clock: ManualClock) -> None:
    client = TestClient(make_shop(cache=echo_cache).app)
    assert_stored(client.get("/products/7"))
    echo_cache_clock.advance(60)
    assert_miss(client.get("/nowhere"))
    assert echo_cache.stats().stored == 2


@pytest.mark.parametrize("number", [1, 2])
def test_cache_of_the_fixture_is_a_new_one_in_each_test(number: int, echo_cache: Cache) -> None:
    assert echo_cache.stats().stored == 0
    assert TestClient(make_shop(cache=echo_cache).app).get("/products/7").status_code == 200
    assert echo_cache.stats().stored == 1


def test_clock_stands_at_the_second_in_which_the_test_began(echo_cache_clock: ManualClock) -> None:
    began = echo_cache_clock.time()
    assert began == int(began)
    assert 0 <= time.time() - began < 3600
    echo_cache_clock.advance(0.5)
    assert echo_cache_clock.time() == began + 0.5


# --- where a cache is found -------------------------------------------------------------------------------------------


def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("x", headers={"cache-control": "max-age=60"})


def test_caches_are_found_around_in_front_of_and_below_an_app() -> None:
    a, b, c, d = (Cache(MemoryStore(), name=name) for name in "abcd")
    inner = Starlette(routes=[Route("/", page)], middleware=[Middleware(HTTPCacheMiddleware, cache=c)])
    route = Route("/", page, middleware=[Middleware(HTTPCacheMiddleware, cache=d)])
    middle = Starlette(
        routes=[Mount("/inner", inner), route],
        middleware=[Middleware(CORSMiddleware), Middleware(HTTPCacheMiddleware, cache=b)],
    )
    app = HTTPCacheMiddleware(middle, cache=a)
    assert [cache_of(app, name=name) for name in "abcd"] == [a, b, c, d]
    with pytest.raises(ConfigurationError, match=r"one cache called anything; it has \['a', 'b', 'c', 'd'\]"):
        cache_of(app)
    with without_cache(app):
        assert all(cache.is_disabled for cache in (a, b, c, d))
        assert_miss(TestClient(app).get("/inner/"), "bypass", name="c")
    assert not any(cache.is_disabled for cache in (a, b, c, d))


def test_caches_over_one_store_share_one_in_the_test() -> None:
    store = MemoryStore()
    a, b, other = Cache(store, name="a"), Cache(store, name="b"), Cache(MemoryStore(), name="other")
    app = HTTPCacheMiddleware(HTTPCacheMiddleware(HTTPCacheMiddleware(page, cache=other), cache=b), cache=a)  # type: ignore[arg-type]  # it is not called
    with in_memory(app):
        assert a.store is b.store
        assert a.log is b.log
        assert a.store is not store
        assert other.store is not a.store


@pytest.mark.parametrize("find", [cache_of, lambda app: in_memory(app).__enter__()], ids=["cache_of", "in_memory"])
def test_app_without_a_cache_is_refused(find: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigurationError, match=r"has no cache|needs an app with one cache"):
        find(Starlette(routes=[Route("/", page)]))


def test_object_that_makes_new_ones_without_end_ends() -> None:
    class Endless:
        @property
        def app(self) -> Endless:
            return Endless()

    with pytest.raises(ConfigurationError, match=r"it has \[\]"):
        cache_of(Endless())


# --- what is under way at the end -------------------------------------------------------------------------------------


async def test_call_that_is_under_way_in_another_loop_ends_with_the_test() -> None:
    """In the loop of a TestClient that goes on, the call would store into what the cache is by then."""
    own = Cache(MemoryStore())
    app = ScriptedApp()
    middleware = HTTPCacheMiddleware(app, cache=own)

    def make_request_and_leave() -> None:
        # As pytest does: the event loop of the tests stands still while fixtures end.
        loop = asyncio.new_event_loop()
        with in_memory(own):
            loop.run_until_complete(begin())
        assert app.calls[0].cancelled
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    async def begin() -> None:
        open_request(middleware).disconnect()
        await app.called()

    await asyncio.to_thread(make_request_and_leave)
    assert own.stats().stored == 0


async def test_call_that_is_under_way_in_a_loop_that_runs_ends_with_the_test() -> None:
    closing = asyncio.Event()

    class Told(Cache):
        async def aclose(self, deadline: float = 5.0) -> None:
            closing.set()
            await super().aclose(deadline)

    own = Told(MemoryStore())
    app = ScriptedApp()
    middleware = HTTPCacheMiddleware(app, cache=own)
    manager = in_memory(own)
    await asyncio.to_thread(manager.__enter__)
    request = open_request(middleware)
    asked = await app.called()
    # From a thread, as a test ends whose client has its own thread.
    ending = asyncio.ensure_future(asyncio.to_thread(manager.__exit__, None, None, None))
    await closing.wait()
    await asked.respond(200, {"cache-control": "max-age=60"}, b"late")
    await ending
    assert (await request.response()).body == b"late"
    assert own.stats().stored == 0
    assert_miss(await _again(middleware, app))


async def _again(middleware: HTTPCacheMiddleware, app: ScriptedApp) -> Response:
    request = open_request(middleware)
    await (await app.called()).respond(200, {"cache-control": "max-age=60"})
    return await request.response()


# --- projects of users ------------------------------------------------------------------------------------------------

SHOP = """
from fastapi import FastAPI
from echo_cache import HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore, cached
from echo_cache.fastapi import CacheDep

app = FastAPI()
app.add_middleware(HTTPCacheMiddleware, store=TwoLevelStore(MemoryStore(), RedisStore("redis://127.0.0.1:1")))


@app.get("/products/{product_id}")
@cached(ttl=60, tags=["product:{product_id}"])
async def product(product_id: int) -> dict[str, int]:
    return {"id": product_id}


@app.put("/products/{product_id}")
async def update(product_id: int, cache: CacheDep) -> None:
    await cache.invalidate(tags=[f"product:{product_id}"])
"""

# The marker stands for the plugin that runs coroutines.
ASYNC_TESTS = """
import httpx
import pytest
from shop import app
from echo_cache.testing import assert_hit, assert_miss, assert_stored, cache_of

pytestmark = pytest.mark.{marker}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@{fixture}
async def client(echo_cache_app):
    transport = httpx.ASGITransport(echo_cache_app(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
        yield client


@pytest.mark.parametrize("product", [1, 1, 2])
async def test_cached_for_a_minute(client, echo_cache_clock, product):
    assert_miss(await client.get(f"/products/{{product}}"))
    assert_hit(await client.get(f"/products/{{product}}"))
    echo_cache_clock.advance(60)
    assert_stored(await client.get(f"/products/{{product}}"))


async def test_put_invalidates(client):
    assert_miss(await client.get("/products/1"))
    await client.put("/products/1")
    assert_miss(await client.get("/products/1"))


async def test_cache_of_my_own(echo_cache):
    await echo_cache.invalidate(tags=["a"])


async def test_off(client, echo_cache_disabled):
    echo_cache_disabled(app)
    assert_miss(await client.get("/products/1"), "bypass")
    assert cache_of(app).is_disabled


async def test_leaves_work_behind(client, echo_cache_clock):
    assert_miss(await client.get("/products/1"))
"""

FAILING_TEST = """
from fastapi.testclient import TestClient
from shop import app
from echo_cache.testing import assert_hit


def test_is_a_hit(echo_cache_app):
    assert_hit(TestClient(echo_cache_app(app)).get("/products/1"))
"""


def run_pytest(folder: Path, files: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in *folder*, with *files* in it, as a user does who has no other plugins."""
    for name, text in {"pytest.ini": "[pytest]\nfilterwarnings = error\n", **files}.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    # Not by the entry point: the checkout may be tested without being installed.
    paths = [str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", "-p", "echo_cache.pytest_plugin", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize(
    ("plugin", "marker", "fixture", "setting"),
    [
        pytest.param("anyio", "anyio", "pytest.fixture", "anyio_mode=strict", id="anyio"),
        pytest.param(
            "pytest_asyncio.plugin",
            "asyncio",
            "__import__('pytest_asyncio').fixture",
            "asyncio_default_fixture_loop_scope=function",
            id="pytest-asyncio",
        ),
    ],
)
def test_project_with_coroutine_tests_passes(
    tmp_path: Path, plugin: str, marker: str, fixture: str, setting: str
) -> None:
    tests = ASYNC_TESTS.format(marker=marker, fixture=fixture)
    done = run_pytest(tmp_path, {"shop.py": SHOP, "test_shop.py": tests}, "-p", plugin, "-o", setting)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_failure_shows_the_line_of_the_test_and_what_was_said(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, {"shop.py": SHOP, "test_shop.py": FAILING_TEST})
    assert done.returncode == 1, done.stdout + done.stderr
    assert '>       assert_hit(TestClient(echo_cache_app(app)).get("/products/1"))' in done.stdout
    assert "E       AssertionError: expected: a fresh answer from the cache" in done.stdout
    assert "but the response (200) has Cache-Status: echo_cache; fwd=uri-miss; ttl=60; stored" in done.stdout
    assert WHY_FORWARDED[Fwd.URI_MISS][0] in done.stdout
    assert "raise _failure" not in done.stdout  # nothing of how it is found out


def test_fixtures_tell_what_they_are_for(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, {"test_nothing.py": "def test_nothing(): pass\n"}, "--fixtures")
    listed = re.findall(r"^(echo_cache\w*) -- .*\n    (\w.*)$", done.stdout, re.MULTILINE)
    assert {name for name, _ in listed} == {"echo_cache", "echo_cache_app", "echo_cache_clock", "echo_cache_disabled"}


# Each is complete by itself, as all Python of the documents.
DOCUMENTED = re.findall(r"^```python\n(# (test_\w+\.py)\n.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize(("code", "name"), [pytest.param(code, name, id=name) for code, name in DOCUMENTED])
def test_tests_of_the_page_pass(code: str, name: str, tmp_path: Path) -> None:
    # What the cache logs there, it would have asked Redis for.
    done = run_pytest(tmp_path, {name: code.replace("redis://localhost", NO_REDIS)}, "-p", "anyio", "-rP")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{code.count('def test_')} passed" in done.stdout
    assert "Captured log" not in done.stdout


def test_page_names_all_assertions_and_fixtures() -> None:
    named = set(re.findall(r"`(\w+)[`(]", PAGE.read_text(encoding="utf-8")))
    assert named >= {name for name in testing.__all__ if name.startswith("assert_")}
    assert named >= set(pytest_plugin.__all__) - {"AppChange"}
    assert len(DOCUMENTED) == 5


async def test_writes_behind_reach_no_redis_in_a_test(redis_url: str) -> None:
    store = RedisStore(redis_url)
    users = CacheAside(Cache(store), "user")
    saved: list[tuple[str, str]] = []
    done = asyncio.Event()

    @users.saver
    async def save(write: Write[str]) -> None:
        saved.append((write.key, write.value))
        done.set()

    with in_memory(users.cache):
        await users.write_behind("1", "ada", save)
        await done.wait()
        assert saved == [("1", "ada")]
        await users.aclose()
    script = "return redis.call('KEYS', '*user*')"
    assert await store.server.evaluate(script, ("echo_cache:any",), ()) == []
    await users.aclose()
    await store.aclose()
