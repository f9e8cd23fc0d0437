"""What an operator may see and do, through the facade on which dashboard and command line stand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from echo_cache import (
    Cache,
    CacheKey,
    CacheStrategy,
    ConfigurationError,
    CoordinationOptions,
    Entry,
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    RedisStore,
    StoredResponse,
    StoreError,
    TwoLevelConfig,
    TwoLevelStore,
    cached,
)
from echo_cache.codec import encode, key_digest
from echo_cache.management import Management
from echo_cache.management.entries import Pattern, url_of
from echo_cache.policy.explaining import WHY_NOT_STORED
from echo_cache.testing import ManualClock, call
from tests.servers import RedisCluster, RedisServer


@cached(ttl=600, tags=["catalog", "product:{id}"])
async def product(request: Request) -> Response:
    return PlainTextResponse("x" * (100 + int(request.path_params["id"])), headers={"x-id": request.path_params["id"]})


async def page(request: Request) -> Response:
    headers = {"cache-control": request.query_params.get("cc", "max-age=60"), "etag": '"1"'}
    return PlainTextResponse("page", headers=headers)


@cached(ttl=20)
async def brief(request: Request) -> Response:
    return PlainTextResponse("brief", headers={"cache-control": "max-age=60"} if request.query_params else {})


async def keyed(request: Request) -> Response:
    return PlainTextResponse("mine", headers={"cache-control": "public, max-age=60", "vary": "authorization"})


async def varying(request: Request) -> Response:
    headers = {"cache-control": "max-age=60", "vary": "accept-language"}
    return PlainTextResponse(request.headers.get("accept-language", "-"), headers=headers)


APP = Starlette(
    routes=[
        Route("/products/{id}", product),
        Route("/page", page),
        Route("/varying", varying),
        Route("/brief", brief),
        Route("/keyed", keyed),
        Route("/other", page),
    ]
)


class Site:
    """An app behind a cache, and the management of that."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.edge = HTTPCacheMiddleware(APP, cache=cache)
        self.management = Management(cache)

    async def get(self, path: str, **headers: str) -> None:
        await call(self.edge, "GET", path, {name.replace("_", "-"): value for name, value in headers.items()})

    async def fill(self, products: int) -> None:
        for number in range(products):
            await self.get(f"/products/{number}")


def two_levels(redis_url: str, **coordination: float) -> Site:
    store = TwoLevelStore(MemoryStore(), RedisStore(redis_url))
    return Site(Cache(store, coordination=CoordinationOptions(**coordination)))


@pytest.fixture(params=["memory", "redis", "two levels"])
async def site(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Site]:
    match request.param:
        case "memory":
            found = Site(Cache(MemoryStore()))
        case "redis":
            found = Site(Cache(RedisStore(redis_url)))
        case _:
            found = two_levels(redis_url)
    yield found
    await found.cache.aclose()


@pytest.fixture
async def both(redis_url: str) -> AsyncIterator[Site]:
    found = two_levels(redis_url)
    yield found
    await found.cache.aclose()


async def written(site: Site) -> None:
    """Wait until what was stored is in Redis."""
    while site.cache.tasks_under_way:
        await asyncio.wait(site.cache._tasks)


# --- statistics -------------------------------------------------------------------------------------------------------


async def test_a_report_says_what_was_done(site: Site) -> None:
    await site.fill(2)
    await written(site)
    await site.fill(2)
    await site.get("/page?cc=private")
    report = site.management.report().as_json()
    assert json.loads(json.dumps(report))["requests"] == 5
    assert report["l1_hits"] + report["l2_hits"] == 2
    assert (report["misses"], report["stored"], report["refused"]) == (3, 2, 1)
    assert report["refusals"] == {"private": 1}
    assert report["hit_rate"] == pytest.approx(0.4)
    assert {route["route"]: route["misses"] for route in report["routes"]} == {"/products/{id}": 2, "/page": 1}
    assert report["saved_seconds"] > 0
    assert report["log"]["heard"] is True


async def test_the_sum_of_all_workers_is_known_to_each(redis_url: str) -> None:
    sites = [two_levels(redis_url) for _ in range(3)]
    for number, site in enumerate(sites):
        await site.fill(number + 1)
    for site in sites:
        await site.management.stats()  # which tells the others, too
    for site in sites:
        stats = await site.management.stats()
        assert stats["workers_known"] is True
        assert len(stats["workers"]) == 3
        assert stats["total"]["requests"] == 6
        assert stats["total"]["misses"] + stats["total"]["l2_hits"] == 6
        (route,) = stats["total"]["routes"]
        assert route["l2_hits"] + route["misses"] == 6
    await sites[0].cache.aclose()
    await sites[1].management.stats()
    assert len((await sites[1].management.stats())["workers"]) == 2
    for site in sites[1:]:
        await site.cache.aclose()


async def test_workers_tell_each_other_by_themselves(redis_url: str) -> None:
    site = two_levels(redis_url, report_every=0.1)
    await site.fill(1)
    onlooker = Management(Cache(RedisStore(redis_url)))
    while not (stats := await onlooker.stats())["workers"]:  # noqa: ASYNC110  # it happens in Redis
        await asyncio.sleep(0.02)
    assert stats["total"]["misses"] == 1
    assert [worker["id"] for worker in stats["workers"]] == [site.cache.worker_id]
    await site.cache.aclose()
    assert (await onlooker.stats())["workers"] == []  # it has taken its report back
    await onlooker.cache.aclose()


@pytest.mark.parametrize(
    "planted",
    [
        *(b"", b"7", b"[]", b"{}", b'{"id": 7}', b"\xff", b"[" * 100_000, b'{"id": ""}', b"x" * 70_000),
        b'{"id": "evil", "l1_hits": "many", "requests": 1e308, "routes": 7, "forwards": [], "log": 5, "breaker": "x"}',
        b'{"id": "evil", "routes": [{"route": 7, "misses": -1}, 5], "forwards": {"a": true}, "log": {"heard": "no"}}',
        b'{"id": "evil", "name": 5, "time": NaN, "uptime": Infinity, "l1_bytes": -99999999999999999999}',
    ],
)
async def test_what_others_plant_among_the_reports_does_no_harm(planted: bytes, both: Site, redis_url: str) -> None:
    await both.fill(1)
    server = RedisStore(redis_url).server
    words = ("evil", planted)
    script = "local t = redis.call('TIME') return redis.call('HSET', KEYS[1], ARGV[1], (t[1] + 5) .. '000:' .. ARGV[2])"
    await server.evaluate(script, ("echo_cache:workers",), words)
    stats = await both.management.stats()
    json.dumps(stats, allow_nan=False)
    assert stats["total"]["misses"] in (1, 0)
    assert both.cache.worker_id in [worker["id"] for worker in stats["workers"]]
    await server.aclose()


async def test_a_key_of_another_type_among_the_reports_is_replaced(both: Site, redis_url: str) -> None:
    server = RedisStore(redis_url).server
    await server.evaluate("return redis.call('SET', KEYS[1], 'x')", ("echo_cache:workers",), ())
    await both.fill(1)
    assert (await both.management.stats())["total"]["misses"] == 1
    await server.aclose()


async def test_reports_of_workers_that_are_gone_are_dropped(both: Site, redis_url: str) -> None:
    server = RedisStore(redis_url).server
    await server.evaluate(
        "return redis.call('HSET', KEYS[1], 'gone', '1000:{\"id\":\"gone\"}')", ("echo_cache:workers",), ()
    )
    await both.fill(1)
    assert [worker["id"] for worker in (await both.management.stats())["workers"]] == [both.cache.worker_id]
    await server.aclose()


async def test_each_worker_says_for_itself_how_long_it_is_waited_for(redis_url: str) -> None:
    slow, quick = two_levels(redis_url, report_every=60), two_levels(redis_url, report_every=0.1)
    for site in (slow, quick):
        await site.fill(1)
    await slow.management.stats()
    await asyncio.sleep(0.6)  # longer than the quick one would be waited for
    assert len((await quick.management.stats())["workers"]) == 2
    for site in (slow, quick):
        await site.cache.aclose()


async def test_reports_too_large_or_of_the_dead_are_dropped_before_they_are_read(both: Site, redis_url: str) -> None:
    server = RedisStore(redis_url, timeout=5).server
    script = "for n = 1, 8 do redis.call('HSET', KEYS[1], 'big' .. n, string.rep('x', 20000000)) end return 1"
    await server.evaluate(script, ("echo_cache:workers",), ())
    script = "for n = 1, 255 do redis.call('HSET', KEYS[1], 'dead' .. n, '1000:{}') end return 1"
    await server.evaluate(script, ("echo_cache:workers",), ())
    await both.fill(1)
    workers = both.cache.workers
    assert workers is not None
    for _ in range(2):
        await workers._exchange(b'{"id":"me"}')  # as every two seconds, though nobody looks on
    found = await server.evaluate("return redis.call('HKEYS', KEYS[1])", ("echo_cache:workers",), ())
    assert found == [both.cache.worker_id.encode()]
    assert both.management.report().breaker == "closed"
    await server.aclose()


async def test_a_worker_that_may_not_report_says_so_once(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.command("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all", "-hset")
    site = two_levels(own_redis.url.replace("redis://", "redis://app:s3cret@"), report_every=0.1)
    await site.fill(1)
    while "does not permit workers to report" not in caplog.text:  # noqa: ASYNC110  # it happens in Redis
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert caplog.text.count("does not permit workers to report") == 1
    await site.cache.aclose()


async def test_a_reset_reaches_all_workers_but_those_that_come_later(redis_url: str) -> None:
    one, other = two_levels(redis_url), two_levels(redis_url)
    for site in (one, other):
        await site.fill(2)
        await site.management.stats()
    await one.management.reset()
    assert one.management.report().requests == 0
    assert other.management.report().requests == 2
    await other.management.stats()  # it reports, and hears of it
    assert other.management.report().requests == 0
    await other.management.stats()
    late = two_levels(redis_url)
    await late.fill(1)
    assert (await late.management.stats())["worker"]["requests"] == 1
    assert (await one.management.stats())["total"]["requests"] == 1
    for site in (one, other, late):
        await site.cache.aclose()


async def test_memory_alone_shares_nothing() -> None:
    site = Site(Cache(MemoryStore()))
    await site.fill(1)
    stats = await site.management.stats()
    assert (stats["shared"], stats["workers_known"], stats["total"]["misses"]) == (False, False, 1)
    assert stats["worker"]["id"] == site.cache.worker_id != ""


async def test_without_redis_a_worker_shows_itself(own_redis: RedisServer) -> None:
    site = two_levels(own_redis.url)
    await site.fill(1)
    own_redis.kill()
    stats = await site.management.stats()
    assert stats["workers_known"] is False
    assert stats["total"]["misses"] == 1
    assert (await site.management.entries(level="l1"))["entries"]
    for asked in (
        site.management.entries(level="l2"),
        site.management.purge(tag="catalog", dry_run=True),
        site.management.sync("l2"),
        site.management.sync("l1"),
    ):
        with pytest.raises(StoreError):
            await asked
    seen = await site.management.inspect("http://test/products/0")
    assert (seen["unknown"], len(seen["levels"]["l1"]), "l2" in seen["levels"]) == (["l2"], 1, False)
    assert (await site.management.purge(tag="catalog"))["propagated"] is False
    assert (await site.management.reset())["told"] is False
    await site.cache.aclose()


async def test_a_reset_begins_anew(site: Site) -> None:
    await site.fill(2)
    done = await site.management.reset()
    assert (done["reset"], done["worker"]) == (True, site.cache.worker_id)
    assert done["told"] is (None if isinstance(site.cache.store, MemoryStore) else True)
    report = site.management.report()
    assert (report.requests, report.misses, report.stored, report.routes) == (0, 0, 0, ())


async def test_refusals_come_newest_first_with_words(site: Site) -> None:
    await site.get("/page?cc=private")
    await site.get("/page?cc=no-store")
    newest, before = site.management.refusals()
    assert (newest["url"], newest["reason"]) == ("http://test/page?cc=no-store", "no-store")
    assert before["reason"] == "private"
    assert (newest["explanation"], newest["remedy"]) == next(
        why for reason, why in WHY_NOT_STORED.items() if reason == "no-store"
    )
    for number in range(60):
        await site.get(f"/page?cc=private&n={number}")
    assert len(site.management.refusals()) == 50


async def test_what_takes_most_room_is_known(both: Site) -> None:
    await both.fill(30)
    for number in (900, 500):
        await both.get(f"/products/{number}")
    largest = (await both.management.top(2))["by_bytes"]
    assert [one["url"] for one in largest] == ["http://test/products/900", "http://test/products/500"]
    assert largest[0]["bytes"] > 1_000


# --- what is stored ---------------------------------------------------------------------------------------------------


async def listed(site: Site, **how: Any) -> list[str]:
    """Return the URLs of all pages."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await site.management.entries(cursor=cursor, **how)
        found += [entry["url"] for entry in page["entries"]]
        cursor = page["cursor"]
        if cursor is None:
            return sorted(found)


async def test_all_is_listed_in_pages(site: Site) -> None:
    await site.fill(25)
    await written(site)
    everything = sorted(f"http://test/products/{number}" for number in range(25))
    for limit in (1, 7, 500):
        assert await listed(site, limit=limit) == everything
    assert await listed(site, match="products/1*", limit=5) == [url for url in everything if "products/1" in url]
    assert await listed(site, match="PRODUCTS*7") == ["http://test/products/17", "http://test/products/7"]
    assert await listed(site, tag="product:3") == ["http://test/products/3"]
    assert await listed(site, tag="catalog", limit=4) == everything
    assert await listed(site, tag="nothing") == []
    (entry,) = (await site.management.entries(tag="product:3"))["entries"]
    assert (entry["status"], entry["variants"], entry["route"]) == (200, 1, "/products/{id}")
    assert entry["tags"] == ["catalog", "product:3"]
    assert 290 < entry["ttl"] <= 600  # memory before Redis caps it
    assert entry["bytes"] > 103
    assert entry["stands"] == "fresh"


async def test_looking_through_redis_reads_no_bodies_and_counts_as_nothing(own_redis: RedisServer) -> None:
    site = two_levels(own_redis.url)
    for number in range(40):
        await site.get(f"/products/{10_000_000 // 2 + number}")  # 5 MB each, under a time-out of 0.1 s
        await written(site)
    for language in ("de", "en"):
        await site.get("/varying", accept_language=language)
    await written(site)
    before, sent = site.cache.store.stats(), bytes_sent(own_redis)
    page = await site.management.entries(level="l2", limit=100)
    assert len(page["entries"]) == 41
    assert sorted({entry["variants"] for entry in page["entries"]}) == [1, 2]
    assert sum(entry["bytes"] for entry in page["entries"]) > 200_000_000
    assert (await site.management.purge(tag="catalog", dry_run=True))["matched"] == 40
    seen = await site.management.inspect(page["entries"][0]["url"])
    assert seen["levels"]["l2"]
    assert bytes_sent(own_redis) - sent < 2_000_000
    after = site.cache.store.stats()
    assert (after.hits, after.misses, after.errors) == (before.hits, before.misses, before.errors)
    assert site.management.report().breaker == "closed"
    await site.cache.aclose()


def bytes_sent(server: RedisServer) -> int:
    return int(server.command("INFO", "stats").partition("total_net_output_bytes:")[2].split()[0])


async def test_long_heads_and_long_indexes_are_read_whole(redis_url: str) -> None:
    store = RedisStore(redis_url)
    key: CacheKey = ("GET", "http", b"test", b"/", b"")
    for number in range(30):
        headers = tuple((f"x-{row}".encode(), b"v" * 100) for row in range(60))
        vary = ((b"x-number", b"%d" % number + b"n" * 300),)
        now = time.time() + number
        response = StoredResponse(200, headers, b"b" * number)
        assert await store.set(key, Entry(response, now, now, now + 60, now + 60, vary))
    (variants,) = await store.heads([key])
    assert [size for _, size in variants] == list(range(29, -1, -1))
    assert all(len(entry.response.headers) == 60 and entry.response.body == b"" for entry, _ in variants)
    assert await store.heads([("GET", "http", b"test", b"/none", b"")]) == [[]]
    assert await store.heads([]) == []
    await store.aclose()


async def test_what_others_plant_in_redis_is_not_listed(both: Site, redis_url: str) -> None:
    await both.fill(3)
    await written(both)
    store = RedisStore(redis_url)
    key: CacheKey = ("GET", "http", b"test", b"/products/1", b"")
    (name,) = [f"echo_cache:1:{{{key_digest(key)}}}"]
    for planted in (b"", b"x" * 10_000, encode(("GET", "http", b"test", b"/", b""), entry_of(b"x"))):
        await store.server.evaluate("return redis.call('SET', KEYS[1], ARGV[1])", (name,), (planted,))
        assert await listed(both, level="l2") == ["http://test/products/0", "http://test/products/2"]
    await store.server.evaluate("return {redis.call('DEL', KEYS[1]), redis.call('LPUSH', KEYS[1], 'a')}", (name,), ())
    assert await listed(both, level="l2") == ["http://test/products/0", "http://test/products/2"]
    await store.aclose()


def entry_of(body: bytes) -> Entry:
    now = time.time()
    return Entry(StoredResponse(200, (), body), now, now, now + 60, now + 60)


async def test_a_server_that_refuses_to_be_looked_through_is_not_taken_for_an_empty_one(own_redis: RedisServer) -> None:
    own_redis.command("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all", "-getrange")
    site = two_levels(own_redis.url.replace("redis://", "redis://app:s3cret@"))
    await site.fill(1)
    await written(site)
    with pytest.raises(StoreError, match="getrange"):
        await site.management.entries(level="l2")
    assert (await site.management.inspect("http://test/products/0"))["unknown"] == ["l2"]
    await site.cache.aclose()


async def test_a_cluster_is_listed(cluster: RedisCluster) -> None:
    site = two_levels(cluster.url)
    await site.fill(20)
    await site.get("/varying", accept_language="de")
    await written(site)
    assert len(await listed(site, level="l2", limit=6)) == 21
    assert (await site.management.purge(tag="catalog", dry_run=True))["matched"] == 20
    await site.management.stats()
    assert len((await site.management.stats())["workers"]) == 1
    await site.cache.aclose()


async def test_both_levels_are_listed(both: Site) -> None:
    await both.fill(3)
    await written(both)
    await both.management.clear("l1")
    assert await listed(both, level="l1") == []
    assert len(await listed(both, level="l2")) == 3
    await both.management.clear("l2")
    assert await listed(both, level="l2") == []


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"limit": 0}, "limit must be 1 to 500"),
        ({"limit": 501}, "limit must be 1 to 500"),
        ({"level": "l3"}, "there is no level 'l3' here"),
        ({"cursor": "x"}, "no cursor"),
        ({"cursor": "-1"}, "no cursor"),
        ({"cursor": "9" * 5000}, "no cursor"),
        ({"cursor": "1_0"}, "no cursor"),
        ({"cursor": " 5"}, "no cursor"),
        ({"cursor": "\u0663"}, "no cursor"),
    ],
)
async def test_wrong_questions_are_told(how: dict[str, Any], message: str, site: Site) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await site.management.entries(**how)


async def test_an_entry_is_shown_whole(site: Site) -> None:
    await site.get("/products/7")
    await site.get("/varying", accept_language="de")
    await site.get("/varying", accept_language="en")
    await written(site)
    seen = await site.management.inspect("http://test/products/7")
    level = seen["selected"]["level"]
    shown = seen["levels"][level][seen["selected"]["index"]]
    assert (shown["status"], shown["body_bytes"], shown["route"]) == (200, 107, "/products/{id}")
    assert ["x-id", "7"] in shown["headers"]
    assert shown["tags"] == ["catalog", "product:7"]
    assert shown["why"] == "fresh for 10 min by the ttl of its route or path pattern"
    assert seen["verdict"].startswith("a hit: the stored response, fresh for")
    seen = await site.management.inspect("http://test/varying", [("Accept-Language", "de")])
    assert len(seen["levels"][level]) == 2
    assert seen["levels"][level][seen["selected"]["index"]]["vary"] == {"accept-language": "de"}
    seen = await site.management.inspect("http://test/varying", [("Accept-Language", "fr")])
    assert (seen["selected"], "vary-miss" in seen["verdict"]) == (None, True)
    seen = await site.management.inspect("http://test/nowhere")
    assert "uri-miss" in seen["verdict"]
    assert all(found == [] for found in seen["levels"].values())
    json.dumps(seen)


async def test_what_was_invalidated_is_said_to_be(site: Site) -> None:
    await site.get("/products/7")
    await written(site)
    await site.management.purge(tag="catalog", soft=True)
    seen = await site.management.inspect("http://test/products/7")
    variants = [one for level in seen["levels"].values() for one in level]
    assert {one["stands"] for one in variants} == {"stale"}
    await site.management.purge(tag="catalog")
    seen = await site.management.inspect("http://test/products/7")
    assert {one["stands"] for level in seen["levels"].values() for one in level} == {"gone"}
    assert "has been invalidated" in seen["verdict"]


@pytest.mark.parametrize(
    "headers", [[("", "x")], [("a b", "x")], [("x", "a\r\nb")], [("é", "x")], [("x", "\N{SNOWMAN}")]]
)
async def test_a_request_field_that_is_none_is_refused(headers: list[tuple[str, str]], both: Site) -> None:
    with pytest.raises(ConfigurationError, match="not a request field"):
        await both.management.inspect("http://test/", headers)


@pytest.mark.parametrize(
    ("cache_control", "why"),
    [
        pytest.param("max-age=60", "fresh for 60 s by Cache-Control: max-age=60", id="max-age"),
        pytest.param("s-maxage=30, max-age=60", "fresh for 30 s by Cache-Control: s-maxage=30", id="s-maxage"),
        pytest.param("public", "fresh for 3 min by default_ttl: it says nothing of how long it is fresh", id="default"),
        pytest.param("no-cache", "stored to be validated: no-cache asks for that at each use", id="no-cache"),
        pytest.param("max-age=9000", "fresh for 2 h by Cache-Control: max-age=9000", id="hours"),
    ],
)
async def test_why_it_is_stored_is_said(cache_control: str, why: str) -> None:
    site = Site(Cache(MemoryStore()))
    await site.get(f"/page?cc={cache_control.replace(' ', '')}")
    (entry,) = (await site.management.entries())["entries"]
    seen = await site.management.inspect(entry["url"])
    assert seen["levels"]["l1"][0]["why"] == why


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/brief", "fresh for 20 s by the ttl of its route or path pattern"),
        (
            "/brief?a=1",
            "fresh for 20 s by the ttl of its route, l2_ttl or an invalidation; it says Cache-Control: max-age=60",
        ),
    ],
)
async def test_why_a_route_has_it_stored_is_said(path: str, why: str) -> None:
    site = Site(Cache(MemoryStore()))
    await site.get(path)
    seen = await site.management.inspect(f"http://test{path}")
    assert seen["levels"]["l1"][0]["why"] == why


async def test_a_cap_and_a_guess_are_told_from_the_response_itself(redis_url: str) -> None:
    clock = ManualClock()
    store = TwoLevelStore(
        MemoryStore(clock=clock), RedisStore(redis_url, clock=clock), TwoLevelConfig(l1_ttl=10), clock=clock
    )
    site = Site(Cache(store, PolicyOptions(targeted_fields=("cdn-cache-control",)), clock=clock))
    await site.get("/page?cc=max-age=600")
    seen = await site.management.inspect("http://test/page?cc=max-age=600")
    assert "as long as this level may call anything fresh" in seen["levels"]["l1"][0]["why"]
    assert seen["levels"]["l2"][0]["why"] == "fresh for 10 min by Cache-Control: max-age=600"
    await site.cache.aclose()


# --- steering ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "matched"),
    [
        ({"url": "/products/7"}, 1),
        ({"url": "http://test/products/7"}, 1),
        ({"url": "http://other/products/7"}, 0),
        ({"prefix": "/products/1"}, 1 + 3),
        ({"prefix": "http://test/products"}, 13),
        ({"tag": "product:7"}, 1),
        ({"tag": "catalog"}, 13),
        ({"everything": True}, 14),
    ],
)
async def test_a_dry_run_counts_and_changes_nothing(named: dict[str, Any], matched: int, site: Site) -> None:
    await site.fill(13)
    await site.get("/other")
    await written(site)
    before = await listed(site)
    said = await site.management.purge(**named, dry_run=True)
    assert (said["matched"], said["is_complete"], said["purged"]) == (matched, True, False)
    assert len(said["sample"]) == min(matched, 10)
    assert await listed(site) == before
    assert site.cache.stats().invalidations == 0
    misses = site.cache.stats().misses
    done = await site.management.purge(**named)
    assert (await site.management.purge(**named, dry_run=True))["matched"] == 0  # it has gone
    assert (done["purged"], done["propagated"]) == (True, True)
    await site.fill(13)
    await site.get("/other")
    assert site.cache.stats().misses == misses + matched


async def test_a_soft_purge_of_all_makes_stale(site: Site) -> None:
    await site.get("/page?cc=max-age=60,stale-while-revalidate=60")
    await written(site)
    await site.management.purge(everything=True, soft=True)
    (entry,) = (await site.management.entries())["entries"]
    assert entry["stands"] == "stale"
    await site.get("/page?cc=max-age=60,stale-while-revalidate=60")
    assert site.cache.stats().stale_hits == 1


@pytest.mark.parametrize(
    "named", [{"prefix": "/a?b=1"}, {"prefix": "http://h/a?b"}, {"url": "ftp://h/a"}, {"url": "a"}]
)
async def test_a_dry_run_refuses_what_a_purge_refuses(named: dict[str, Any], both: Site) -> None:
    for dry_run in (True, False):
        with pytest.raises(ConfigurationError):
            await both.management.purge(**named, dry_run=dry_run)


async def test_credentials_that_select_a_variant_are_not_shown(site: Site) -> None:
    await site.get("/keyed", authorization="Bearer TOPSECRET")
    await written(site)
    seen = await site.management.inspect("http://test/keyed", [("authorization", "Bearer TOPSECRET")])
    assert seen["selected"] is not None
    assert "(16 bytes, not shown)" in json.dumps(seen)
    assert "TOPSECRET" not in json.dumps(seen)


async def test_long_urls_are_looked_through_without_holding_up_others() -> None:
    site = Site(Cache(MemoryStore()))
    for number in range(300):
        await site.get(f"/other?{number}={'u' * 60_000}")
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    await site.management.entries(match="nothing", limit=500)
    await site.management.purge(prefix="/other", dry_run=True)
    task.cancel()
    assert turns >= 6


@pytest.mark.parametrize("named", [{}, {"url": "/a", "tag": "b"}, {"everything": True, "prefix": "/"}])
async def test_a_purge_names_one_thing(named: dict[str, Any], both: Site) -> None:
    with pytest.raises(ConfigurationError, match="name exactly one of url, tag, prefix and all"):
        await both.management.purge(**named)


async def test_levels_are_synced_both_ways(both: Site) -> None:
    await both.fill(5)
    await written(both)
    await both.management.clear("l2")
    seen: list[int] = []
    done = await both.management.sync("l2", lambda progress: seen.append(progress.seen))
    assert (done["copied"], done["failed"], seen[-1]) == (5, 0, 5)
    await both.management.clear("l1")
    assert (await both.management.sync("l1"))["copied"] == 5
    with pytest.raises(ConfigurationError, match="'l1' or 'l2'"):
        await both.management.sync("l3")


async def test_one_level_has_nothing_to_sync() -> None:
    with pytest.raises(ConfigurationError, match="there is nothing to sync"):
        await Site(Cache(MemoryStore())).management.sync("l1")


async def test_everything_is_cleared(site: Site) -> None:
    await site.fill(3)
    await written(site)
    assert (await site.management.clear("all"))["propagated"] is True
    assert await listed(site) == []


async def test_urls_are_warmed(site: Site) -> None:
    done = await site.management.warm(["http://test/products/1", "http://test/page?cc=private"])
    assert done == {"done": 2, "stored": 1, "hits": 0, "uncached": 1, "failed": 0}


# --- the small parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "url"),
    [
        (("GET", "https", b"shop.test", b"/a", b""), "https://shop.test/a"),
        (("GET", "http", b"shop.test", b"/a", b"b=c"), "http://shop.test/a?b=c"),
        (("GET", "http", None, b"/", b""), "http:///"),
        (("GET decoded", "http", b"h", "/größe \x1b[31m".encode(), b""), "http://h/gr%C3%B6%C3%9Fe%20%1B[31m"),
        (("GET", "user", None, b"7", b""), "user:7"),
        (("GET", "us\ner", None, b"7\n", b""), "'us\\ner':7%0A"),
    ],
)
def test_a_key_is_shown_as_a_url_in_printable_ascii(key: Any, url: str) -> None:
    assert url_of(key) == url


def test_a_long_key_is_cut() -> None:
    assert len(url_of(("GET", "http", b"h", b"/" + b"a" * 100_000, b""))) == 8_192


@pytest.mark.parametrize(
    ("glob", "matches"),
    [("", True), ("*", True), ("/a*c", True), ("B", True), ("c*a", False), ("a**b", True), ("x", False)],
)
def test_a_glob_is_found_anywhere_in_a_url(glob: str, matches: bool) -> None:
    assert Pattern(glob)("http://h/abc") is matches


def test_a_glob_of_many_stars_is_quick() -> None:
    assert not Pattern("*a" * 5_000 + "b")("a" * 100_000)


async def test_strategy_and_breaker_are_told(redis_url: str) -> None:
    store = TwoLevelStore(
        MemoryStore(1_000_000), RedisStore(redis_url), TwoLevelConfig(strategy=CacheStrategy.WRITE_BACK)
    )
    report = Management(Cache(store)).report()
    assert (report.store, report.strategy, report.breaker) == ("TwoLevelStore", "write_back", "closed")
    assert (report.l1_max_bytes, report.l1_entries) == (1_000_000, 0)
    await store.aclose()
