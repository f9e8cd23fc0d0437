"""What the levels below memory change: one look for all who wait, and what is found there answers them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, TwoLevelStore
from echo_cache.model import CacheKey, Entry
from echo_cache.stores.base import Held, Match
from echo_cache.testing import AskedApp, ClientRequest, ManualClock, ScriptedApp, call, open_request

HOUR = {"cache-control": "max-age=3600"}
REVALIDATING = {"cache-control": "max-age=10, stale-while-revalidate=3600", "etag": '"1"'}


class Distant(MemoryStore):
    """A store that answers when it is told to; nothing of it is at hand."""

    remote = True

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.clock = clock
        self.looks = 0
        self.answering = asyncio.Event()
        self.answering.set()

    def get_nowait(self, key: CacheKey) -> Held | None:
        return None

    async def get(self, key: CacheKey, match: Match) -> Entry | None:
        self.looks += 1
        await self.answering.wait()
        return await super().get(key, match)


def edge(app: Any) -> tuple[Any, Distant, ManualClock]:
    clock = ManualClock()
    store = Distant(clock)
    return HTTPCacheMiddleware(app, cache=Cache(store, clock=clock)), store, clock


async def looking(*requests: ClientRequest) -> None:
    """Return when all *requests* are under way and none can go on: one looks, the others wait for what it finds."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(request.task.done() for request in requests)


async def hello(asked: AskedApp) -> None:
    await asked.respond(200, HOUR, b"hello")


async def test_many_requests_are_one_look_and_each_is_a_hit() -> None:
    app = ScriptedApp(hello)
    cached, store, _ = edge(app)
    await call(cached)
    store.looks = 0
    store.answering.clear()
    requests = [open_request(cached) for _ in range(100)]
    await looking(*requests)
    store.answering.set()
    for request in requests:
        response = await request.response()
        assert (response.body, response["cache-status"]) == (b"hello", "echo_cache; hit; ttl=3600")
    assert store.looks == 1
    assert len(app.calls) == 1
    assert cached.cache.stats().hits == 100


async def test_each_gets_what_it_asked_for_of_what_was_found() -> None:
    cached, store, _ = edge(ScriptedApp(hello))
    await call(cached)
    etag = (await call(cached))["etag"]
    store.answering.clear()
    whole = open_request(cached)
    known = open_request(cached, headers={"if-none-match": etag})
    await looking(whole, known)
    store.answering.set()
    assert [(await request.response()).status for request in (whole, known)] == [200, 304]


async def test_head_and_range_are_answered_from_below_too() -> None:
    app = ScriptedApp(hello)
    cached, _, _ = edge(app)
    await call(cached)
    assert (await call(cached, "HEAD")).status == 200
    assert (await call(cached, headers={"range": "bytes=0-1"})).body == b"he"
    assert (await call(cached, headers={"cache-control": "only-if-cached"})).body == b"hello"
    assert len(app.calls) == 1


async def test_invalidation_during_the_look_is_seen() -> None:
    app = ScriptedApp()
    cached, store, _ = edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, {**HOUR, "cache-groups": '"blue"'}, b"old")
    await first.response()
    store.answering.clear()
    early = open_request(cached)
    await looking(early)
    await cached.cache.invalidate(tags=["blue"])
    late = open_request(cached)
    store.answering.set()
    asked = await app.called()
    await asked.respond(200, HOUR, b"new")
    assert {(await request.response()).body for request in (early, late)} == {b"new"}


async def test_stale_response_found_below_answers_at_once_and_is_refreshed_behind() -> None:
    app = ScriptedApp()
    cached, _, clock = edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, REVALIDATING, b"old")
    await first.response()
    clock.advance(60)
    requests = [open_request(cached) for _ in range(5)]
    for request in requests:
        response = await request.response()
        assert (response.body, "hit" in response["cache-status"]) == (b"old", True)
    refresh = await app.called()
    assert refresh.headers["if-none-match"] == '"1"'
    await refresh.respond(200, REVALIDATING, b"new")
    await cached.cache.aclose()
    assert (await call(cached)).body == b"new"
    assert len(app.calls) == 2


async def test_stale_response_found_below_is_validated_once_for_all_and_the_status_says_why() -> None:
    app = ScriptedApp()
    cached, _, clock = edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, {**HOUR, "etag": '"1"'}, b"hello")
    await first.response()
    clock.advance(3601)
    requests = [open_request(cached) for _ in range(5)]
    asked = await app.called()
    assert asked.headers["if-none-match"] == '"1"'
    await asked.respond(304, {**HOUR, "etag": '"1"'})
    statuses = [(await request.response())["cache-status"] for request in requests]
    assert statuses[0] == "echo_cache; fwd=stale; fwd-status=304; ttl=3600"
    assert set(statuses[1:]) == {"echo_cache; fwd=stale; fwd-status=304; ttl=3600; collapsed"}
    assert len(app.calls) == 2


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        pytest.param({**HOUR, "etag": '"1"', "x-new": "yes"}, True, id="RFC 9111 4.3.5 same validator freshens"),
        pytest.param({**HOUR, "etag": '"2"'}, False, id="RFC 9111 4.3.5 another one invalidates"),
    ],
)
async def test_answer_of_the_app_to_a_head_tells_of_the_stored_get(headers: dict[str, str], kept: bool) -> None:
    app = ScriptedApp()
    cached, _, clock = edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, {**HOUR, "etag": '"1"'}, b"hello")
    await first.response()
    clock.advance(3601)
    head = open_request(cached, "HEAD")
    await (await app.called()).respond(200, headers)
    await head.response()
    await cached.cache.aclose()
    second = open_request(cached)
    if kept:
        response = await second.response()
        assert (response.body, response["x-new"], "hit" in response["cache-status"]) == (b"hello", "yes", True)
    else:
        asked = await app.called()
        assert "if-none-match" not in asked.headers
        await asked.respond(200, HOUR, b"new")
        assert (await second.response()).body == b"new"


# --- one look for those who ask for the same, and what each of them may have ------------------------------------------


async def german_or_french(asked: AskedApp) -> None:
    language = asked.headers.get("accept-language", "none")
    await asked.respond(200, {**HOUR, "vary": "accept-language"}, language.encode())


async def test_miss_is_one_look_and_one_call_for_all_who_ask_at_once() -> None:
    app = ScriptedApp()
    cached, store, _ = edge(app)
    store.answering.clear()
    requests = [open_request(cached) for _ in range(500)]
    await looking(*requests)
    assert (store.looks, len(app.calls)) == (1, 0)
    store.answering.set()
    asked = await app.called()
    await asked.respond(200, HOUR, b"hello")
    assert {(await request.response()).body for request in requests} == {b"hello"}
    assert (store.looks, len(app.calls)) == (1, 1)


async def test_requests_that_come_while_the_app_is_called_do_not_look() -> None:
    app = ScriptedApp()
    cached, store, _ = edge(app)
    first = open_request(cached)
    asked = await app.called()
    store.looks = 0
    late = [open_request(cached) for _ in range(100)]
    await looking(first, *late)
    await asked.respond(200, HOUR, b"hello")
    assert {(await request.response()).body for request in (first, *late)} == {b"hello"}
    assert store.looks == 0
    assert len(app.calls) == 1


@pytest.mark.parametrize("stored", [True, False])
async def test_one_who_looks_may_leave_and_one_of_those_who_wait_looks_next(stored: bool) -> None:
    app = ScriptedApp(hello)
    cached, store, _ = edge(app)
    if stored:
        await call(cached)
    before = len(app.calls)
    store.looks = 0
    store.answering.clear()
    requests = [open_request(cached) for _ in range(100)]
    await looking(*requests)
    requests[0].cancel()
    await asyncio.wait([requests[0].task])
    await looking(*requests[1:])
    assert store.looks == 2
    requests[1].cancel()
    await asyncio.wait([requests[1].task])
    await looking(*requests[2:])
    assert store.looks == 3
    store.answering.set()
    assert {(await request.response()).body for request in requests[2:]} == {b"hello"}
    assert (store.looks, len(app.calls)) == (3, 1)
    assert len(app.calls) - before == (0 if stored else 1)


async def test_those_who_wait_may_leave_and_the_one_who_looks_is_not_harmed() -> None:
    cached, store, _ = edge(ScriptedApp(hello))
    await call(cached)
    store.looks = 0
    store.answering.clear()
    requests = [open_request(cached) for _ in range(10)]
    await looking(*requests)
    for request in requests[1:]:
        request.cancel()
    await asyncio.wait([request.task for request in requests[1:]])
    store.answering.set()
    assert (await requests[0].response()).body == b"hello"
    assert store.looks == 1


async def test_all_who_look_for_the_same_may_leave() -> None:
    app = ScriptedApp(hello)
    cached, store, _ = edge(app)
    store.answering.clear()
    requests = [open_request(cached) for _ in range(10)]
    await looking(*requests)
    for request in requests:
        request.cancel()
    await asyncio.wait([request.task for request in requests])
    assert cached.cache._looking == {}
    store.answering.set()
    assert (await call(cached)).body == b"hello"


async def test_each_gets_its_own_variant_of_what_is_looked_for_at_once() -> None:
    app = ScriptedApp(german_or_french)
    cached, store, _ = edge(app)
    for language in ("de", "fr"):
        await call(cached, headers={"accept-language": language})
    # Another worker, which knows nothing of the key yet.
    for worker in (HTTPCacheMiddleware(app, cache=Cache(store, clock=store.clock)), cached):
        store.answering.clear()
        requests = {
            language: [open_request(worker, headers={"accept-language": language}) for _ in range(10)]
            for language in ("de", "fr", "it")
        }
        await looking(*(request for some in requests.values() for request in some))
        store.answering.set()
        for language, some in requests.items():
            assert {(await request.response()).body for request in some} == {language.encode()}
        await worker.cache.flights.aclose(5)
    assert len(app.calls) == 3


async def test_variants_are_looked_for_beside_each_other_once_it_is_known_that_they_vary() -> None:
    app = ScriptedApp(german_or_french)
    cached, store, _ = edge(app)
    for language in ("de", "fr"):
        await call(cached, headers={"accept-language": language})
    other = HTTPCacheMiddleware(app, cache=Cache(store, clock=store.clock))
    await call(other, headers={"accept-language": "de"})
    store.looks = 0
    store.answering.clear()
    requests = [open_request(other, headers={"accept-language": language}) for language in ("de", "fr") * 10]
    await looking(*requests)
    # No request waits for a look that is not for it, or it would wait for two, one after the other.
    assert store.looks == 2
    store.answering.set()
    for request, language in zip(requests, (b"de", b"fr") * 10, strict=True):
        assert (await request.response()).body == language
    assert store.looks == 2


async def test_requests_with_credentials_look_apart_and_do_not_get_what_is_for_strangers_only() -> None:
    async def silent(asked: AskedApp) -> None:  # says nothing of freshness: default_ttl, for strangers only
        await asked.respond(200, {}, asked.headers.get("cookie", "stranger").encode())

    app = ScriptedApp(silent)
    cached, store, _ = edge(app)
    assert (await call(cached)).body == b"stranger"
    store.answering.clear()
    strangers = [open_request(cached) for _ in range(5)]
    known = [open_request(cached, headers={"cookie": f"user={number}"}) for number in range(5)]
    await looking(*strangers, *known)
    store.answering.set()
    assert {(await request.response()).body for request in strangers} == {b"stranger"}
    assert [(await request.response()).body for request in known] == [b"user=%d" % number for number in range(5)]


async def test_what_is_stored_for_validation_alone_is_looked_for_once_and_never_a_hit() -> None:
    async def validating(asked: AskedApp) -> None:
        status, body = (304, b"") if "if-none-match" in asked.headers else (200, b"hello")
        await asked.respond(status, {"cache-control": "no-cache", "etag": '"1"'}, body)

    app = ScriptedApp(validating)
    cached, store, _ = edge(app)
    await call(cached)
    # Another worker: this one remembers for a while that nobody need wait for a response like that.
    worker = HTTPCacheMiddleware(app, cache=Cache(store, clock=store.clock))
    store.looks = 0
    store.answering.clear()
    requests = [open_request(worker) for _ in range(20)]
    await looking(*requests)
    assert store.looks == 1
    store.answering.set()
    for request in requests:
        response = await request.response()
        assert (response.status, response.body) == (200, b"hello")
        assert "hit" not in response["cache-status"]
    assert "if-none-match" in app.calls[1].headers


async def test_stale_response_below_answers_all_while_one_refresh_is_under_way() -> None:
    app = ScriptedApp()
    cached, store, clock = edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, REVALIDATING, b"old")
    await first.response()
    clock.advance(60)
    assert (await call(cached)).body == b"old"
    refresh = await app.called()
    for _ in range(3):  # a refresh is nobody's to wait for: each wave looks once and is answered
        store.looks = 0
        store.answering.clear()
        requests = [open_request(cached) for _ in range(20)]
        await looking(*requests)
        store.answering.set()
        assert {(await request.response()).body for request in requests} == {b"old"}
        assert store.looks == 1
    await refresh.respond(200, REVALIDATING, b"new")
    await cached.cache.aclose()
    assert (await call(cached)).body == b"new"
    assert len(app.calls) == 2


async def test_invalidation_after_the_look_makes_those_who_come_next_look_again() -> None:
    app = ScriptedApp()
    cached, store, _ = edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, {**HOUR, "cache-groups": '"blue"'}, b"old")
    await first.response()
    store.answering.clear()
    early = [open_request(cached) for _ in range(5)]
    await looking(*early)
    store.answering.set()
    await asyncio.sleep(0)  # the look is over; those who waited for it have not gone on yet
    await cached.cache.invalidate(tags=["blue"])
    late = [open_request(cached) for _ in range(5)]
    asked = await app.called()
    await asked.respond(200, HOUR, b"new")
    assert {(await request.response()).body for request in late} == {b"new"}
    # Their requests began before the invalidation: either answer is right, none is missing.
    assert {(await request.response()).body for request in early} <= {b"old", b"new"}
    assert len(app.calls) == 2


async def test_store_that_fails_as_no_store_may_is_asked_once_for_all_and_felt_by_none() -> None:
    app = ScriptedApp()
    cached, store, _ = edge(app)

    async def get(key: CacheKey, match: Match) -> Entry | None:
        store.looks += 1
        await store.answering.wait()
        raise RuntimeError("a bug in a store")

    store.get = get  # type: ignore[method-assign]
    store.answering.clear()
    requests = [open_request(cached) for _ in range(100)]
    await looking(*requests)
    store.answering.set()
    asked = await app.called()
    await asked.respond(200, HOUR, b"hello")
    assert {(await request.response()).body for request in requests} == {b"hello"}
    assert (store.looks, len(app.calls)) == (1, 1)


async def test_what_memory_got_during_the_look_answers_what_was_not_found_below() -> None:
    app = ScriptedApp()
    clock = ManualClock()
    below = Distant(clock)
    cached = HTTPCacheMiddleware(
        app, cache=Cache(TwoLevelStore(MemoryStore(clock=clock), below, clock=clock), clock=clock)
    )
    below.answering.clear()
    slow = open_request(cached)
    await looking(slow)
    other = open_request(cached, headers={"cookie": "a=1"})  # does not wait with strangers, nor look with them
    await looking(slow, other)
    blocked, below.answering = below.answering, asyncio.Event()
    below.answering.set()
    third = open_request(cached, headers={"cache-control": "no-cache"})
    asked = await app.called()
    await asked.respond(200, HOUR, b"hello")
    assert (await third.response()).body == b"hello"
    blocked.set()
    for request in (slow, other):
        response = await request.response()
        assert (response.body, "hit" in response["cache-status"]) == (b"hello", True)
    assert len(app.calls) == 1
    await cached.cache.aclose()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"exclude": ["/*"]}, id="exclude"),
        pytest.param({"include": ["/other/*"]}, id="include"),
        pytest.param({"skip": lambda scope: True}, id="skip"),
    ],
)
async def test_requests_that_go_past_the_cache_are_not_looked_for(options: dict[str, Any]) -> None:
    app = ScriptedApp(hello)
    cached, store, _ = edge(app)
    await call(cached)
    store.looks = 0
    past = HTTPCacheMiddleware(app, cache=cached.cache, **options)
    response = await call(past)
    assert "hit" not in response["cache-status"]
    with cached.cache.disabled():
        assert "hit" not in (await call(cached))["cache-status"]
    assert store.looks == 0
    assert len(app.calls) == 3


@pytest.mark.parametrize("headers", [{}, {"cookie": "a=1"}, {"accept-language": "de"}])
async def test_two_middlewares_that_share_a_cache_look_once_and_call_once(headers: dict[str, str]) -> None:
    app = ScriptedApp(german_or_french)
    clock = ManualClock()
    store = Distant(clock)
    cache = Cache(store, clock=clock)
    cached = HTTPCacheMiddleware(HTTPCacheMiddleware(app, cache=cache), cache=cache)
    async with asyncio.timeout(30):  # neither waits for itself
        for turn in range(3):
            store.looks = 0
            responses = await asyncio.gather(*(call(cached, headers=headers) for _ in range(20)))
            assert {response.body for response in responses} == {headers.get("accept-language", "none").encode()}
            assert store.looks == 1, turn
            clock.advance(3601)
    assert len(app.calls) == 3
    await cache.aclose()


async def test_look_of_another_event_loop_is_not_waited_for() -> None:
    app = ScriptedApp(hello)
    cached, store, _ = edge(app)
    await call(cached)
    store.looks = 0

    def in_a_thread() -> bytes:
        store.answering.set()  # nobody waits there
        return asyncio.run(call(cached)).body

    store.answering.clear()
    here = open_request(cached)
    await looking(here)
    assert await asyncio.to_thread(in_a_thread) == b"hello"
    assert (await here.response()).body == b"hello"
    assert store.looks == 2
    assert len(app.calls) == 1
    assert cached.cache.stats().failures == 0
