"""What requests get by the invalidation log: across workers, while it cannot be heard, and from threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import pytest

from echo_cache import (
    Cache,
    ConfigurationError,
    CoordinationOptions,
    HTTPCacheMiddleware,
    MemoryStore,
    NotPropagated,
    PolicyOptions,
    RedisStore,
    TwoLevelConfig,
    TwoLevelStore,
)
from echo_cache.coordination.log import Appended, LocalLog, Since
from echo_cache.coordination.marks import Invalidation, Verdict
from echo_cache.events import LogChanged
from echo_cache.model import CacheKey, Entry
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call, open_request
from tests.redis_support import until
from tests.servers import RedisServer

HOUR = {"cache-control": "max-age=3600", "etag": '"1"', "cache-groups": '"a"'}
STALE_ALLOWED = {"cache-control": "max-age=10, stale-while-revalidate=3600, stale-if-error=3600", "cache-groups": '"a"'}


async def hello(asked: AskedApp) -> None:
    await asked.respond(200, HOUR, b"hello")


def counting(headers: dict[str, str] = HOUR) -> ScriptedApp:
    """An app whose answers are numbered."""

    async def script(asked: AskedApp) -> None:
        await asked.respond(200, headers, b"%d" % len(app.calls))

    app = ScriptedApp(script)
    return app


# --- across workers ---------------------------------------------------------------------------------------------------


class MakeWorker(Protocol):
    def __call__(self, app: Any, url: str, **options: Any) -> Any: ...


@pytest.fixture
async def make_worker() -> AsyncIterator[MakeWorker]:
    """Make workers: each has a memory, a store, and a log of its own over one Redis."""
    caches: list[Cache] = []

    def make(app: Any, url: str, *, strategy: str = "write_through", single: bool = False, **options: Any) -> Any:
        below = RedisStore(url, timeout=options.pop("timeout", 5.0))
        store = below if single else TwoLevelStore(MemoryStore(), below, TwoLevelConfig(strategy=strategy))
        caches.append(Cache(store, **options))
        return HTTPCacheMiddleware(app, cache=caches[-1])

    yield make
    for cache in caches:
        await cache.aclose(0.5)


async def is_hit(worker: Any, path: str = "/") -> bool:
    return "; hit" in (await call(worker, path=path))["cache-status"]


async def settled(*workers: Any) -> None:
    """Return when all that the *workers* have still to do behind their answers is done."""
    for worker in workers:
        while worker.cache._tasks:
            await asyncio.wait(set(worker.cache._tasks))
        flush = getattr(worker.cache.store, "flush", None)
        if flush is not None:
            await flush()


@pytest.mark.parametrize(
    "what",
    [
        pytest.param({"tags": ["a"]}, id="tag"),
        pytest.param({"url": "http://test/"}, id="url"),
        pytest.param({"url": "/"}, id="path"),
        pytest.param({"prefix": "/"}, id="prefix"),
        pytest.param(None, id="everything"),
    ],
)
@pytest.mark.parametrize("kind", ["write_through", "cache_aside", "write_back", "single"])
async def test_what_one_worker_invalidates_no_worker_answers_with(
    what: dict[str, Any] | None, kind: str, redis_url: str, make_worker: MakeWorker
) -> None:
    app = counting()
    options = {"single": True} if kind == "single" else {"strategy": kind}
    one, other = (make_worker(app, redis_url, **options) for _ in range(2))
    assert (await call(one)).body == b"1"
    await settled(one)
    assert (await call(other)).body == b"1"
    assert (await call(other)).body == b"1"
    result = await (one.cache.clear() if what is None else one.cache.invalidate(**what))
    assert result.propagated
    assert result.log_id is not None
    await until(lambda: other.cache.log.position() >= result.position)
    assert (await call(other)).body == b"2"
    await settled(other)
    assert (await call(one)).body == b"2"
    assert len(app.calls) == 2


async def test_a_change_through_one_worker_is_seen_by_all(redis_url: str, make_worker: MakeWorker) -> None:
    async def script(asked: AskedApp) -> None:
        if asked.scope["method"] == "PUT":
            await asked.respond(204, {"cache-group-invalidation": '"a"'})
        else:
            await asked.respond(200, HOUR, b"x")

    one, other = (make_worker(ScriptedApp(script), redis_url) for _ in range(2))
    for path in ("/", "/of-the-group"):
        await call(other, path=path)
        assert await is_hit(other, path)
    await call(one, "PUT")
    position = one.cache.log.position()
    await until(lambda: other.cache.log.position() >= position)
    for path in ("/", "/of-the-group"):
        assert not await is_hit(other, path)


@pytest.mark.parametrize("strategy", ["write_through", "cache_aside", "write_back"])
async def test_a_slow_fill_never_brings_back_what_another_worker_invalidated_meanwhile(
    strategy: str, redis_url: str, make_worker: MakeWorker
) -> None:
    app = ScriptedApp()
    one, other, third = (make_worker(app, redis_url, strategy=strategy) for _ in range(3))
    slow = open_request(one)
    asked = await app.called()
    result = await other.cache.invalidate(tags=["a"])
    await asked.respond(200, HOUR, b"old")
    assert (await slow.response()).body == b"old", "who asked before gets what was true then"
    await settled(one)
    for worker in (third, other, one):
        worker.cache.start()
        await until(lambda worker=worker: worker.cache.log.position() >= result.position)
        request = open_request(worker)
        if worker is third:
            await (await app.called()).respond(200, HOUR, b"new")
        assert (await request.response()).body == b"new"
        await settled(worker)
    assert len(app.calls) == 2


async def test_a_worker_that_starts_takes_over_what_is_valid_and_nothing_else(
    redis_url: str, make_worker: MakeWorker
) -> None:
    app = counting()
    one = make_worker(app, redis_url)
    for path in ("/kept", "/gone"):
        await call(one, path=path)
    await settled(one)
    await one.cache.invalidate(url="http://test/gone")
    newcomer = make_worker(app, redis_url)
    assert await is_hit(newcomer, "/kept")
    assert not await is_hit(newcomer, "/gone")


async def test_what_is_invalidated_softly_is_stale_in_all_workers(redis_url: str, make_worker: MakeWorker) -> None:
    app = counting({**STALE_ALLOWED, "cache-control": "max-age=3600, stale-while-revalidate=60"})
    one, other = (make_worker(app, redis_url) for _ in range(2))
    await call(one)
    await settled(one)
    assert (await call(other)).body == b"1"
    result = await one.cache.invalidate(tags=["a"], soft=True)
    await until(lambda: other.cache.log.position() >= result.position)
    response = await call(other)
    assert response.body == b"1", "the stale answer, at once"
    assert "; hit" in response["cache-status"]
    await until(lambda: len(app.calls) == 2)

    async def fresh() -> bool:
        return (await call(other)).body == b"2"

    await until(fresh)


@pytest.mark.parametrize("hard", [True, False])
async def test_a_hard_invalidation_forbids_even_stale_if_error(hard: bool) -> None:
    clock = ManualClock()
    app = ScriptedApp()
    cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), clock=clock))
    first = open_request(cached)
    await (await app.called()).respond(200, STALE_ALLOWED, b"old")
    await first.response()
    await cached.cache.invalidate(tags=["a"], soft=not hard)
    clock.advance(3_000 + 620)  # past stale-while-revalidate of a soft one, and within stale-if-error of neither
    clock.advance(-100)
    second = open_request(cached)
    asked = await app.called()
    await asked.respond(500, {}, b"broken")
    response = await second.response()
    assert (response.status, response.body) == ((500, b"broken") if hard else (200, b"old"))


# --- what is told of it -----------------------------------------------------------------------------------------------


async def test_a_cache_of_one_process_has_told_all_there_are() -> None:
    cache = Cache(MemoryStore())
    result = await cache.invalidate(tags=["a"], strict=True)
    assert result.propagated
    assert result.log_id is not None
    assert result.log_id.endswith("-0")


async def test_what_redis_cannot_be_told_counts_here_and_is_said_to_be_known_here_only(
    own_redis: RedisServer, make_worker: MakeWorker
) -> None:
    app = counting()
    one = make_worker(app, own_redis.url, timeout=0.1)
    await call(one)
    assert await is_hit(one)
    own_redis.kill()
    result = await one.cache.invalidate(tags=["a"])
    assert (result.propagated, result.position, result.log_id) == (False, 0, None)
    assert (await call(one)).body == b"2"
    assert await is_hit(one), "what is filled since then answers"
    with pytest.raises(NotPropagated, match="this worker alone"):
        await one.cache.invalidate(tags=["a"], strict=True)
    assert (await call(one)).body == b"3", "it counts here all the same"
    assert (await one.cache.clear()).propagated is False
    assert (await call(one)).body == b"4"


async def test_observers_hear_of_the_log(own_redis: RedisServer, make_worker: MakeWorker) -> None:
    events: list[Any] = []
    one = make_worker(counting(), own_redis.url, timeout=0.1, observers=[events.append])
    await call(one)
    own_redis.kill()
    await until(lambda: any(isinstance(event, LogChanged) and not event.is_heard for event in events))
    own_redis.start()
    await until(lambda: any(isinstance(event, LogChanged) and event.is_heard for event in events))


# --- not heard --------------------------------------------------------------------------------------------------------


class Deaf(LocalLog):
    """A log that is not heard for as long as it is told, and says of entries what it is told."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.clock = clock
        self.heard_at = clock.time()
        self.follows = 0
        self.says: Verdict | None = None

    def unheard_for(self) -> float:
        return self.clock.time() - self.heard_at

    def hear(self) -> None:
        self.heard_at = self.clock.time()

    def follow(self) -> None:
        self.follows += 1

    def verdict(self, key: CacheKey, entry: Entry) -> Verdict | None:
        return self.says or super().verdict(key, entry)

    def say(self, verdict: Verdict | None) -> None:
        self.says = verdict
        self.version += 1


def deaf(app: Any, *, policy: PolicyOptions | None = None, **options: Any) -> tuple[Any, Deaf, ManualClock]:
    clock = ManualClock()
    log = Deaf(clock)
    coordination = CoordinationOptions(**options)
    cache = Cache(MemoryStore(clock=clock), policy, clock=clock, log=log, coordination=coordination)
    return HTTPCacheMiddleware(app, cache=cache), log, clock


async def test_while_the_log_is_heard_hits_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cached, log, clock = deaf(counting())
    await call(cached)
    for _ in range(100):
        clock.advance(1)
        log.hear()
        assert await is_hit(cached)
    assert log.follows >= 100, "and it is seen to that it is followed"


async def test_a_log_that_is_not_heard_leaves_hits_as_they_are_until_max_unsynced() -> None:
    cached, log, clock = deaf(counting(), unsynced="bypass")
    await call(cached)
    clock.advance(4.9)
    assert await is_hit(cached)
    clock.advance(0.09)
    assert await is_hit(cached)
    clock.advance(0.02)
    response = await call(cached)
    assert "; hit" not in response["cache-status"], "not even to the end of the second"
    log.hear()
    assert await is_hit(cached)


async def test_with_cap_what_is_young_answers_and_the_app_is_called_once_in_max_unsynced() -> None:
    app = counting()
    cached, _, clock = deaf(app, unsynced="cap", max_unsynced=5)
    await call(cached)
    clock.advance(100)
    for number in range(2, 6):
        assert (await call(cached)).body == b"%d" % number
        for _ in range(4):
            clock.advance(1)
            assert (await call(cached)).body == b"%d" % number
            assert await is_hit(cached)
        clock.advance(1.01)
    assert len(app.calls) == 5


async def test_with_bypass_every_request_asks_the_app_and_nothing_is_lost() -> None:
    app = counting()
    cached, log, clock = deaf(app, unsynced="bypass")
    await call(cached)
    clock.advance(100)
    for number in range(2, 6):
        assert (await call(cached)).body == b"%d" % number
    log.hear()
    assert await is_hit(cached)
    assert (await call(cached)).body == b"5", "what was stored meanwhile is used again"


async def test_what_may_have_been_invalidated_is_confirmed_by_the_app() -> None:
    async def script(asked: AskedApp) -> None:
        if "if-none-match" in asked.headers:
            await asked.respond(304, {"etag": '"1"', "cache-control": "max-age=3600"})
        else:
            await asked.respond(200, HOUR, b"whole")

    app = ScriptedApp(script)
    cached, log, _ = deaf(app)
    await call(cached)
    log.say(Verdict.DOUBTFUL)
    response = await call(cached)
    assert response.body == b"whole"
    assert "fwd=stale; fwd-status=304" in response["cache-status"]
    assert len(app.calls) == 2
    log.say(None)
    assert await is_hit(cached)


@pytest.mark.parametrize("headers", [{}, {"cache-control": "max-stale=100000"}], ids=["plain", "max-stale"])
async def test_what_may_have_been_invalidated_is_not_served_in_place_of_an_error(headers: dict[str, str]) -> None:
    app = ScriptedApp()
    cached, log, clock = deaf(app)
    first = open_request(cached)
    await (await app.called()).respond(200, STALE_ALLOWED, b"old")
    await first.response()
    clock.advance(20)
    log.hear()
    log.say(Verdict.DOUBTFUL)
    second = open_request(cached, headers=headers)
    await (await app.called()).respond(500, {}, b"broken")
    assert (await second.response()).body == b"broken"


async def test_an_append_of_marks_happens_beside_the_freeing_of_keys_and_a_failing_store_is_no_trouble() -> None:
    class Failing(MemoryStore):
        async def delete(self, key: CacheKey) -> bool:
            raise RuntimeError("broken")

    cached = HTTPCacheMiddleware(counting(), cache=Cache(Failing()))
    await call(cached)
    assert (await cached.cache.invalidate(url="http://test/")).propagated
    assert not await is_hit(cached)


async def test_a_log_that_fails_to_append_is_not_hidden_from_who_invalidates() -> None:
    class Full(LocalLog):
        async def append(self, marks: Sequence[Invalidation], since: Since | None = None) -> Appended:
            await super().append(marks)
            return Appended(0, OSError("full"))

    cache = Cache(MemoryStore(), log=Full(ManualClock()))
    assert (await cache.invalidate(tags=["a"])).propagated is False


# --- early refresh ----------------------------------------------------------------------------------------------------


async def test_a_request_late_in_the_lifetime_starts_one_refresh_and_gets_its_answer_at_once() -> None:
    app = ScriptedApp()
    cached, log, clock = deaf(app, policy=PolicyOptions(early_refresh=0.5))
    first = open_request(cached)
    await (await app.called()).respond(200, {"cache-control": "max-age=100"}, b"1")
    await first.response()
    for seconds, started in ((49, 0), (2, 1), (1, 1), (10, 1)):
        clock.advance(seconds)
        log.hear()
        assert (await call(cached)).body == b"1"
        assert (await call(cached)).body == b"1"
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(app.calls) == 1 + started
    await app.calls[1].respond(200, {"cache-control": "max-age=100"}, b"2")
    await cached.cache.flights.aclose(5.0)
    assert (await call(cached)).body == b"2"
    clock.advance(44)  # it was 11 s old when it came, and is not half of what was left then older now
    log.hear()
    assert (await call(cached)).body == b"2"
    assert len(app.calls) == 2


# --- from threads -----------------------------------------------------------------------------------------------------


async def test_a_handler_in_a_thread_invalidates_in_its_request() -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    seen: list[Any] = []

    def page(request: Request) -> PlainTextResponse:
        cache.tag("from-a-thread")
        return PlainTextResponse(f"{len(seen)}", headers={"cache-control": "max-age=60"})

    def change(request: Request) -> PlainTextResponse:
        seen.append((threading.current_thread(), cache.invalidate_sync(url="/page")))
        seen.append(cache.invalidate_sync(tags=["from-a-thread"]))
        return PlainTextResponse("")

    cache = Cache(MemoryStore())
    app = Starlette(routes=[Route("/page", page), Route("/other", page), Route("/change", change, methods=["POST"])])
    cached = HTTPCacheMiddleware(app, cache=cache)
    for path in ("/page", "/other"):
        await call(cached, path=path)
        assert await is_hit(cached, path)
    await call(cached, "POST", "/change")
    assert seen[0][0] is not threading.main_thread()
    assert seen[0][1].propagated
    assert not await is_hit(cached, "/page"), "a path is of the request's own origin"
    assert not await is_hit(cached, "/other")


def test_a_process_without_an_event_loop_invalidates_in_one_of_its_own(redis_url: str) -> None:
    cache = Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=5.0)))
    for _ in range(3):
        assert cache.invalidate_sync(tags=["a"], strict=True).propagated


async def test_a_thread_uses_the_loop_that_the_cache_works_in(redis_url: str, make_worker: MakeWorker) -> None:
    one = make_worker(counting(), redis_url)
    await call(one)
    one.cache.start()
    result = await asyncio.to_thread(one.cache.invalidate_sync, tags=["a"])
    assert result.propagated
    assert not await is_hit(one)


async def test_an_event_loops_own_thread_is_told_to_await() -> None:
    with pytest.raises(ConfigurationError, match="await invalidate"):
        Cache(MemoryStore()).invalidate_sync(tags=["a"])


# --- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"unsynced": "panic"}, "must be one of 'cap', 'bypass'", id="unsynced"),
        pytest.param({"max_unsynced": 0}, "max_unsynced must be at least 0.1", id="no-patience"),
        pytest.param({"lease_ttl": -1}, "lease_ttl must be a number", id="negative"),
        pytest.param({"max_refreshes": 0}, "max_refreshes must be a whole number", id="no-refreshes"),
    ],
)
def test_coordination_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CoordinationOptions(**options)


def test_what_is_no_coordination_options_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="coordination must be"):
        Cache(MemoryStore(), coordination={"max_unsynced": 5})  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("what", [{}, {"tags": []}, {"tags": [""]}, {"tags": "a"}, {"prefix": "/a?b=c"}, {"url": "x"}])
async def test_an_invalidation_that_names_nothing_is_refused(what: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        await Cache(MemoryStore()).invalidate(**what)


# --- found by review --------------------------------------------------------------------------------------------------


async def test_a_304_keeps_the_tags_that_the_whole_response_had() -> None:
    cache = Cache(MemoryStore())

    async def script(asked: AskedApp) -> None:
        if "if-none-match" in asked.headers:
            await asked.respond(304, {"etag": '"1"', "cache-control": "max-age=60"})
        else:
            asked.scope["tag"]()
            await asked.respond(200, {"etag": '"1"', "cache-control": "max-age=60"}, b"v1")

    async def tagging(scope: Any, receive: Any, send: Any) -> None:
        if "if-none-match" not in dict(scope["headers"]):
            scope["tag"] = lambda: None
            if b"if-none-match" not in dict(scope["headers"]):
                cache.tag("product:7")
        await app(scope, receive, send)

    app = ScriptedApp(script)
    cached = HTTPCacheMiddleware(tagging, cache=cache)
    await call(cached)
    await cache.invalidate(tags=["other"])
    await call(cached, headers={"cache-control": "no-cache"})
    assert len(app.calls) == 2
    assert await is_hit(cached)
    await cache.invalidate(tags=["product:7"])
    assert not await is_hit(cached)


async def test_a_head_of_the_same_length_does_not_confirm_a_body() -> None:
    body = b"old"

    async def script(asked: AskedApp) -> None:
        await asked.respond(200, {"cache-control": "max-age=3600", "content-length": "3"}, body)

    cached, _, clock = deaf(ScriptedApp(script), max_unsynced=5)
    await call(cached)
    body = b"new"
    for _ in range(3):
        clock.advance(3)
        await call(cached, "HEAD", headers={"cache-control": "no-cache"})
    assert (await call(cached)).body == b"new"


@pytest.mark.parametrize("boarded", [False, True], ids=["who-asked-before", "who-asks-after"])
async def test_a_call_that_fails_gives_nobody_what_was_invalidated_meanwhile(boarded: bool) -> None:
    clock = ManualClock()
    app = ScriptedApp()
    cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), clock=clock))
    first = open_request(cached)
    await (await app.called()).respond(
        200, {**STALE_ALLOWED, "cache-control": "max-age=10, stale-if-error=3600"}, b"old"
    )
    await first.response()
    clock.advance(20)
    requests = [open_request(cached)]
    asked = await app.called()
    await cached.cache.invalidate(tags=["a"])
    if boarded:
        requests.append(open_request(cached))
        for _ in range(10):
            await asyncio.sleep(0)
    await asked.respond(500, {}, b"broken")
    if boarded:
        await (await app.called()).respond(500, {}, b"broken")
    assert {(await request.response()).body for request in requests} == {b"broken"}


async def test_a_clock_that_is_set_back_does_not_make_entries_younger() -> None:
    app = counting()
    cached, log, clock = deaf(app, max_unsynced=5)
    await call(cached)
    clock.advance(100)
    await call(cached)
    clock.advance(-60)
    log.heard_at = clock.time() - 1_000
    assert (await call(cached)).body == b"3"


async def test_a_path_that_is_not_ascii_is_invalidated_where_the_server_gives_only_the_decoded_path() -> None:
    cached = HTTPCacheMiddleware(counting(), cache=Cache(MemoryStore()))

    async def hit() -> bool:
        response = await call(cached, path="/\u00e4/x", raw_path=None)
        return "; hit" in response["cache-status"]

    for what in ({"prefix": "/\u00e4/"}, {"prefix": "http://test/\u00e4"}, {"url": "/\u00e4/x"}):
        await hit()
        assert await hit()
        await cached.cache.invalidate(**what)
        assert not await hit(), what


async def test_a_tag_that_is_no_text_harms_no_log(redis_url: str, make_worker: MakeWorker) -> None:
    one, other = (make_worker(counting(), redis_url) for _ in range(2))
    await call(other)
    result = await one.cache.invalidate(tags=["product:\ud800"])
    assert result.propagated
    await until(lambda: other.cache.log.position() >= result.position)
    assert await is_hit(other), "and nothing is in doubt"


@pytest.mark.parametrize(
    "what",
    [{"tags": [7]}, {"tags": 7}, {"tags": [b"x"]}, {"url": 7}, {"prefix": b"/x"}, {"tags": ["a"], "soft": 1}],
)
async def test_an_invalidation_of_a_wrong_type_is_refused(what: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        await Cache(MemoryStore()).invalidate(**what)


def test_threads_without_an_event_loop_do_not_get_in_each_others_way(redis_url: str) -> None:
    cache = Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=5.0)))
    results: list[Any] = []

    def work() -> None:
        results.extend(cache.invalidate_sync(tags=["a"], timeout=30.0) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.propagated for result in results] == [True] * 40


async def test_a_thread_finds_the_loop_of_the_requests(redis_url: str, make_worker: MakeWorker) -> None:
    one = make_worker(counting(), redis_url, strategy="write_back")
    await call(one)
    assert await is_hit(one)
    assert (await asyncio.to_thread(one.cache.invalidate_sync, tags=["a"])).propagated
    assert not await is_hit(one)
    assert one.cache._tasks is not None


def test_what_is_pending_is_appended_by_the_next_process_of_one_shot(own_redis: RedisServer) -> None:
    cache = Cache(RedisStore(own_redis.url, timeout=0.2))
    assert cache.invalidate_sync(tags=["a"]).propagated
    own_redis.kill()
    assert not cache.invalidate_sync(tags=["b"]).propagated
    own_redis.start()
    for _ in range(20):  # the breaker wants to see it first
        if cache.invalidate_sync(tags=["c"]).propagated:
            break
    assert cache.log.pending == 0  # type: ignore[attr-defined]  # a shared log
