"""What Prometheus reads of a cache: names, labels and values, and what a scrape costs those who wait."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from echo_cache import (
    Cache,
    ConfigurationError,
    CoordinationOptions,
    HTTPCacheMiddleware,
    MemoryStore,
    RedisStore,
    TwoLevelConfig,
    TwoLevelStore,
)
from echo_cache.observability.metrics import INSTRUMENTS
from echo_cache.observability.prometheus import CacheCollector, metrics_endpoint, register, unregister
from echo_cache.tallies import MAX_ROUTES, OTHER_ROUTES
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call
from tests.redis_support import until
from tests.servers import RedisServer
from tests.store_contract import make_entry, make_key


async def page(request: Request) -> Response:
    return PlainTextResponse("page", headers={"cache-control": "max-age=60"})


async def private(request: Request) -> Response:
    return PlainTextResponse("yours", headers={"cache-control": "private"})


APP = Starlette(routes=[Route("/p/{id}", page, methods=["GET", "PUT"]), Route("/me", private)])


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def values_of(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return the values in *text*: by name, and by the labels in order, without that of the cache."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "cache"))
            of_name = found.setdefault(sample.name, {})
            assert labels not in of_name, f"{sample.name}{labels} is there twice"
            of_name[labels] = sample.value
    return found


def scraped(registry: CollectorRegistry) -> Callable[..., float | None]:
    """Return a function that tells the value of a metric by its name, without the prefix, and its labels."""
    values = values_of(generate_latest(registry).decode())

    def value(name: str, **labels: str) -> float | None:
        return values.get(f"echo_cache_{name}", {}).get(tuple(sorted(labels.items())))

    return value


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[Cache]:
    """A cache in memory and in Redis."""
    cache = Cache(TwoLevelStore(MemoryStore(max_bytes=2**20), RedisStore(redis_url)))
    yield cache
    await cache.aclose()


async def test_requests_are_told_by_route_level_and_reason(worker: Cache, registry: CollectorRegistry) -> None:
    register(worker, registry)
    edge = HTTPCacheMiddleware(APP, cache=worker)
    for path in ("/p/1", "/p/1", "/p/1", "/p/2", "/me"):
        await call(edge, "GET", path)
    await worker.aclose()  # what is under way is written
    await worker.store.clear_l1()  # type: ignore[attr-defined]
    await call(edge, "GET", "/p/1")
    await call(edge, "PUT", "/p/9")
    value = scraped(registry)
    route = "/p/{id}"
    assert value("hits_total", route=route, level="l1") == 2
    assert value("hits_total", route=route, level="l2") == 1
    assert value("forwards_total", route=route, fwd="uri-miss") == 2
    assert value("forwards_total", route=route, fwd="method") == 1
    assert value("forwards_total", route="/me", fwd="uri-miss") == 1
    assert value("refused_total", route="/me", reason="private") == 1
    assert value("stored_total", route=route) == 2
    assert value("collapsed_total", route=route) == 0
    assert value("fill_seconds_count", route=route) == 2
    assert value("fill_seconds_bucket", route=route, le="+Inf") == 2
    assert value("fill_seconds_count", route="/me") is None
    seconds = value("fill_seconds_sum", route=route)
    assert seconds is not None
    assert value("saved_seconds_total", route=route) == pytest.approx(3 * seconds / 2)
    assert value("invalidations_total") == 1
    assert value("failures_total") == 0


async def test_stale_answers_and_rescues_are_told(registry: CollectorRegistry) -> None:
    clock = ManualClock()

    async def script(asked: AskedApp) -> None:
        headers = {"cache-control": "max-age=10, stale-while-revalidate=10, stale-if-error=60"}
        await (asked.respond(503) if asked.headers.get("x-fail") else asked.respond(200, headers, b"x"))

    cache = Cache(MemoryStore(clock=clock), clock=clock)
    register(cache, registry)
    edge = HTTPCacheMiddleware(ScriptedApp(script), cache=cache)
    await call(edge, "GET", "/")
    clock.advance(15)
    await call(edge, "GET", "/")
    await cache.aclose()
    clock.advance(30)
    await call(edge, "GET", "/", {"x-fail": "1"})
    value = scraped(registry)
    assert (value("stale_hits_total", route=""), value("rescued_total", route="")) == (1, 1)


async def test_a_store_of_two_levels_is_told_by_level(worker: Cache, registry: CollectorRegistry) -> None:
    register(worker, registry)
    edge = HTTPCacheMiddleware(APP, cache=worker)
    await call(edge, "GET", "/p/1")
    assert scraped(registry)("tasks")
    await until(lambda: scraped(registry)("tasks") == 0)
    value = scraped(registry)
    stats = worker.store.l1.stats()  # type: ignore[attr-defined]
    assert value("store_entries", level="l1") == stats.entries == 1
    assert value("store_bytes", level="l1") == stats.bytes
    assert value("store_max_bytes", level="l1") == 2**20
    assert value("store_entries", level="l2") is None
    for level in ("l1", "l2"):
        assert (value("store_evictions_total", level=level), value("store_errors_total", level=level)) == (0, 0)
    reads, writes = value("l2_seconds_count", operation="read"), value("l2_seconds_count", operation="write")
    latencies = worker.store.server.latencies  # type: ignore[attr-defined]
    assert (reads, writes) == (latencies["read"].count, latencies["write"].count)
    assert reads
    assert writes
    assert value("l2_seconds_sum", operation="read") == pytest.approx(latencies["read"].total)
    assert [value("breaker_state", state=state) for state in ("closed", "half_open", "open")] == [1, 0, 0]
    assert (value("log_heard"), value("log_synced"), value("log_pending")) == (1, 1, 0)
    for name in ("l2_timeouts_total", "l2_soft_timeouts_total", "l2_rejected_total", "l2_forged_total"):
        assert value(name) == 0
    for name in ("write_back_queue", "write_back_queue_bytes", "dropped_writes_total", "dropped_promotions_total"):
        assert value(name) == 0
    assert (value("flights"), value("tasks"), value("filling_bytes"), value("disabled")) == (0, 0, 0, 0)
    assert value("info", store="TwoLevelStore", strategy="write_through") == 1


@pytest.mark.parametrize("level", ["l1", "l2"])
async def test_a_store_of_one_level_is_told_as_that(level: str, redis_url: str, registry: CollectorRegistry) -> None:
    cache = Cache(MemoryStore() if level == "l1" else RedisStore(redis_url))
    register(cache, registry)
    edge = HTTPCacheMiddleware(APP, cache=cache)
    for _ in range(2):
        await call(edge, "GET", "/p/1")
        await cache.aclose()
    value = scraped(registry)
    other = {"l1": "l2", "l2": "l1"}[level]
    assert (value("hits_total", route="/p/{id}", level=level), value("store_errors_total", level=level)) == (1, 0)
    assert value("hits_total", route="/p/{id}", level=other) is None
    assert value("store_errors_total", level=other) is None
    assert (value("breaker_state", state="closed") is None) == (level == "l1")
    assert value("write_back_queue") is None


async def test_a_redis_that_is_gone_is_told(own_redis: RedisServer, registry: CollectorRegistry) -> None:
    redis = RedisStore(own_redis.url, breaker_failures=1, probe_interval=3600)
    config = TwoLevelConfig(strategy="write_back", drain_timeout=0.0)
    options = CoordinationOptions(max_unsynced=0.1)
    async with Cache(TwoLevelStore(MemoryStore(), redis, config), coordination=options) as cache:
        register(cache, registry)
        edge = HTTPCacheMiddleware(APP, cache=cache)
        await call(edge, "GET", "/p/1")
        own_redis.stop()
        await until(lambda: scraped(registry)("log_heard") == 0)
        await call(edge, "GET", "/p/2")
        await cache.invalidate(tags=["a", "b"])
        await until(lambda: scraped(registry)("breaker_state", state="open") == 1)
        await until(lambda: scraped(registry)("log_synced") == 0)
        value = scraped(registry)
        assert [value("breaker_state", state=state) for state in ("closed", "half_open")] == [0, 0]
        assert value("log_pending") == 2
        assert (value("log_unheard_seconds") or 0) > 0
        assert (value("store_errors_total", level="l2") or 0) > 0
        assert (value("failures_total") or 0) > 0
        assert value("info", store="TwoLevelStore", strategy="write_back") == 1
        queue, size = value("write_back_queue"), value("write_back_queue_bytes")
        assert queue
        assert size
    assert (scraped(registry)("dropped_writes_total") or 0) >= queue


async def test_what_was_forged_in_redis_is_told(
    redis_server: RedisServer, redis_url: str, registry: CollectorRegistry
) -> None:
    stores = [RedisStore(redis_url), RedisStore(redis_url, secret="0123456789abcdef")]
    await stores[0].set(make_key(), make_entry())
    cache = Cache(stores[1])
    register(cache, registry)
    assert await stores[1].get(make_key(), lambda vary: True) is None
    value = scraped(registry)
    assert (value("l2_forged_total"), value("l2_rejected_total")) == (1, 1)
    for store in stores:
        await store.aclose()


async def test_a_reset_of_the_statistics_lowers_no_counter(registry: CollectorRegistry) -> None:
    cache = Cache(MemoryStore())
    register(cache, registry)
    edge = HTTPCacheMiddleware(APP, cache=cache)
    for path in ("/p/1", "/p/1", "/me"):
        await call(edge, "GET", path)
    await cache.invalidate(tags=["a"])

    def counters() -> dict[str, Any]:
        values = values_of(generate_latest(registry).decode())
        return {name: found for name, found in values.items() if name.endswith(("_total", "_count", "_sum"))}

    before = counters()
    cache.reset_counters()
    assert counters() == before
    assert before["echo_cache_hits_total"][("level", "l1"), ("route", "/p/{id}")] == 1


def test_saved_seconds_never_fall_when_fills_become_faster(registry: CollectorRegistry) -> None:
    cache = Cache(MemoryStore())
    register(cache, registry)
    tally = cache.tallies.of("/")
    tally.l1_hits += 3
    assert scraped(registry)("saved_seconds_total", route="/") == 0  # nobody knows yet what they saved
    tally.fills.observe(2.0)
    assert scraped(registry)("saved_seconds_total", route="/") == 6
    for _ in range(3):
        tally.fills.observe(0.0)  # 0.5 s on average now
    assert scraped(registry)("saved_seconds_total", route="/") == 6
    tally.l2_hits += 1
    tally.collapsed += 1
    assert scraped(registry)("saved_seconds_total", route="/") == 7


# --- registering ------------------------------------------------------------------------------------------------------


def test_registering_needs_no_data_and_names_what_is_collected(registry: CollectorRegistry) -> None:
    described = {metric.name: metric.type for metric in CacheCollector().describe()}
    assert len(described) == len(INSTRUMENTS)
    cache = Cache(MemoryStore())
    register(cache, registry)
    assert {metric.name: metric.type for metric in registry.collect()} == described
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(CacheCollector())


def test_the_global_registry_is_the_default() -> None:
    cache = Cache(MemoryStore(), name="by-default")
    register(cache)
    assert 'echo_cache_flights{cache="by-default"} 0.0' in generate_latest(REGISTRY).decode()
    unregister(cache)
    assert "echo_cache_" not in generate_latest(REGISTRY).decode()


def test_caches_of_a_process_are_told_apart_by_their_names_and_labels(registry: CollectorRegistry) -> None:
    shop, news = Cache(MemoryStore(), name="shop"), Cache(MemoryStore(), name="news")
    collector = register(shop, registry, labels={"team": "a"})
    assert register(shop, registry) is register(news, registry) is collector
    assert repr(collector) == "<CacheCollector of ['news', 'shop']>"
    text = generate_latest(registry).decode()
    assert 'echo_cache_flights{cache="shop",team="a"} 0.0' in text
    assert 'echo_cache_flights{cache="news"} 0.0' in text
    assert text.count("# TYPE echo_cache_flights gauge") == 1
    unregister(shop, registry)
    assert 'cache="shop"' not in generate_latest(registry).decode()
    unregister(shop, registry)
    unregister(news, registry)
    unregister(news, registry)
    assert generate_latest(registry) == b""
    register(news, registry)
    assert 'cache="news"' in generate_latest(registry).decode()


def test_another_cache_of_the_same_name_is_an_error_while_the_first_is_there(registry: CollectorRegistry) -> None:
    first = Cache(MemoryStore())
    register(first, registry)
    second = Cache(MemoryStore())
    with pytest.raises(ConfigurationError, match="another cache is called 'echo_cache'"):
        register(second, registry)
    first.tallies.of("/").l1_hits = 5
    del first
    gc.collect()
    assert "cache=" not in generate_latest(registry).decode()
    register(second, registry)
    assert 'echo_cache_flights{cache="echo_cache"} 0.0' in generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param({"route": "/"}, "none of .*'route'", id="has-a-meaning-here"),
        pytest.param({"job": "a"}, "none of .*'job'", id="is-prometheus's"),
        pytest.param({"le": "a"}, "none of .*'le'", id="is-that-of-buckets"),
        pytest.param({'a="b",c': "a"}, "letters, digits", id="is-no-name"),
        pytest.param({"__name__": "a"}, "letters, digits", id="is-reserved"),
        pytest.param({"team": 1}, "must be a string, not 1", id="is-no-text"),
    ],
)
def test_a_label_that_cannot_be_is_an_error(labels: dict[str, Any], message: str, registry: CollectorRegistry) -> None:
    with pytest.raises(ConfigurationError, match=message):
        register(Cache(MemoryStore()), registry, labels=labels)
    assert generate_latest(registry) == b""


def test_whatever_a_route_is_called_is_one_value_of_a_label(registry: CollectorRegistry) -> None:
    # Names of routes come from Redis, too.
    hostile = ['/a"} 1\necho_cache_flights 7', "/back\\slash\\", "/\r\n", "/{id}", "", '/",le="1']
    cache = Cache(MemoryStore())
    register(cache, registry)
    for number, route in enumerate(hostile):
        cache.tallies.of(route).stored = number
        cache.tallies.of(route).fills.observe(0.1)
    for text in (generate_latest(registry).decode(), "".join(_collector(cache).pages())):
        values = values_of(text)
        assert values["echo_cache_stored_total"] == {
            (("route", route),): number for number, route in enumerate(hostile)
        }
        assert values["echo_cache_flights"] == {(): 0.0}


def test_a_store_that_fails_to_say_what_it_has_hides_no_other_metric(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryStore):
        def stats(self) -> Any:
            raise OSError("no disk")

    cache = Cache(Broken())
    register(cache, registry)
    value = scraped(registry)
    assert value("store_entries", level="l1") is None
    assert (value("store_max_bytes", level="l1"), value("flights")) == (MemoryStore().max_bytes, 0)
    assert "the metric store_entries of 'echo_cache' cannot be read: OSError('no disk')" in caplog.messages


def test_openmetrics_is_well_formed_too(registry: CollectorRegistry) -> None:
    cache = Cache(MemoryStore())
    cache.tallies.of("/").fills.observe(0.1)
    register(cache, registry)
    assert generate_openmetrics(registry).endswith(b"# EOF\n")


# --- what a scrape costs ----------------------------------------------------------------------------------------------


def _collector(*caches: Cache) -> CacheCollector:
    collector = CacheCollector()
    for cache in caches:
        collector.add(cache)
    return collector


def _calls(work: Callable[[], object]) -> int:
    """Return how many functions are called by *work*."""
    calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def test_a_scrape_does_the_same_work_however_many_entries_there_are(registry: CollectorRegistry) -> None:
    store = MemoryStore()
    cache = Cache(store)
    register(cache, registry)
    pages = _collector(cache).pages

    def counted(number: int) -> list[int]:
        for one in range(number):
            assert store.set_nowait(("GET", "http", b"shop", b"/%d" % one, b""), make_entry())
        assert store.stats().entries == number
        return [_calls(lambda: list(registry.collect())), _calls(lambda: list(pages()))]

    few = counted(10)
    assert counted(3_000) == few


def test_a_page_has_few_lines_however_many_routes_there_are() -> None:
    cache = Cache(MemoryStore())
    for number in range(2 * MAX_ROUTES):
        cache.tallies.of(f"/{number}").fills.observe(0.1)
    pages = list(_collector(cache).pages())
    lines = [page.count("\n") for page in pages]
    assert max(lines) == 200
    assert sum(lines) > 10_000
    assert sum(f'route="{OTHER_ROUTES}"' in line for line in "".join(pages).splitlines()) > 0


# --- the endpoint -----------------------------------------------------------------------------------------------------


async def test_endpoint_says_what_the_collector_says(worker: Cache, registry: CollectorRegistry) -> None:
    register(worker, registry)
    app = Starlette(routes=[*APP.routes, Route("/metrics", metrics_endpoint(worker))])
    edge = HTTPCacheMiddleware(app, cache=worker, exclude=["/metrics"])
    for path in ("/p/1", "/p/1", "/me"):
        await call(edge, "GET", path)
    await worker.aclose()
    response = await call(app, "GET", "/metrics")
    assert response.status == 200
    assert response["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    wanted = values_of(generate_latest(registry).decode())
    found = values_of(response.body.decode())
    moving = "echo_cache_log_unheard_seconds"
    assert found.pop(moving).keys() == wanted.pop(moving).keys()
    assert found == wanted


async def test_endpoint_lets_others_go_on_between_its_parts() -> None:
    cache = Cache(MemoryStore())
    for number in range(MAX_ROUTES):
        cache.tallies.of(f"/{number}").fills.observe(0.1)
    turns = 0
    ended = asyncio.Event()

    async def other() -> None:
        nonlocal turns
        while not ended.is_set():
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    body = (await call(metrics_endpoint(cache), "GET", "/metrics")).body
    ended.set()
    await task
    assert turns >= body.count(b"\n") // 200


async def test_endpoint_is_never_stored_by_the_cache_before_it() -> None:
    cache = Cache(MemoryStore())
    app = Starlette(routes=[Route("/metrics", metrics_endpoint(cache))])
    edge = HTTPCacheMiddleware(app, cache=cache)
    for _ in range(2):
        response = await call(edge, "GET", "/metrics")
        assert response["cache-control"] == "no-store"
        assert "fwd=uri-miss; detail=no-store" in response["cache-status"]


async def test_endpoint_answers_get_and_head_alone() -> None:
    endpoint = metrics_endpoint(Cache(MemoryStore()))
    assert (await call(endpoint, "HEAD", "/metrics")).status == 200
    assert (await call(endpoint, "HEAD", "/metrics")).body == b""
    response = await call(endpoint, "POST", "/metrics")
    assert (response.status, response["allow"], response.body) == (405, "GET, HEAD", b"")
    with pytest.raises(RuntimeError, match="not 'websocket'"):
        await endpoint({"type": "websocket"}, None, None)  # type: ignore[arg-type]
    assert repr(endpoint) == "<metrics_endpoint of <CacheCollector of ['echo_cache']>>"


def test_endpoint_needs_caches_of_different_names() -> None:
    with pytest.raises(ConfigurationError, match="needs a cache"):
        metrics_endpoint()
    with pytest.raises(ConfigurationError, match="another cache"):
        metrics_endpoint(*[Cache(MemoryStore()) for _ in range(2)])


def test_endpoint_keeps_its_cache() -> None:
    endpoint: Any = metrics_endpoint(Cache(MemoryStore()))
    gc.collect()
    pages: Iterator[str] = endpoint._collector.pages()
    assert 'cache="echo_cache"' in "".join(pages)
