"""What the levels below memory change: one look for all who wait, and what is found there answers them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore
from echo_cache.model import CacheKey, Entry
from echo_cache.stores.base import Held, Match
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call, open_request

HOUR = {"cache-control": "max-age=3600"}
REVALIDATING = {"cache-control": "max-age=10, stale-while-revalidate=3600", "etag": '"1"'}


class Distant(MemoryStore):
    """A store that answers when it is told to; nothing of it is at hand."""

    remote = True

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
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


async def aboard(cached: Any, count: int) -> None:
    while True:
        flights = list(cached.cache.flights._by_key.values())
        if len(flights) == 1 and len(flights[0]._passengers) == count:
            return
        await asyncio.sleep(0)


async def hello(asked: AskedApp) -> None:
    await asked.respond(200, HOUR, b"hello")


async def test_many_requests_are_one_look_and_each_is_a_hit() -> None:
    app = ScriptedApp(hello)
    cached, store, _ = edge(app)
    await call(cached)
    store.looks = 0
    store.answering.clear()
    requests = [open_request(cached) for _ in range(100)]
    await aboard(cached, 100)
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
    await aboard(cached, 2)
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
    await aboard(cached, 1)
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
