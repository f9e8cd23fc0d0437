"""Invalidation through the edge: by requests that change something and by the app, also against slow fills."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from echo_cache import Cache, ConfigurationError, HTTPCacheMiddleware, MemoryStore
from echo_cache.coordination.exchange import current_exchange
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call, open_request

HOUR = {"cache-control": "max-age=3600"}


def edge(app: Any, clock: ManualClock | None = None, **options: Any) -> Any:
    clock = clock or ManualClock()
    return HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), clock=clock), **options)


async def is_hit(cached: Any, path: str = "/") -> bool:
    return "hit" in (await call(cached, path=path))["cache-status"]


def changing(headers: dict[str, str] | None = None, status: int = 200) -> Any:
    async def script(asked: AskedApp) -> None:
        if asked.scope["method"] == "GET":
            await asked.respond(200, HOUR, b"x")
        else:
            await asked.respond(status, headers or {})

    return script


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "FROB"])
async def test_change_invalidates_its_target(method: str) -> None:
    cached = edge(ScriptedApp(changing()))
    await call(cached)
    assert await is_hit(cached)
    await call(cached, method)
    assert not await is_hit(cached)


@pytest.mark.parametrize("field", ["location", "content-location"])
async def test_change_invalidates_what_its_answer_names(field: str) -> None:
    cached = edge(ScriptedApp(changing({field: "/other?a=1"}, 201)))
    await call(cached, path="/other?a=1")
    await call(cached, "POST", "/things")
    assert not await is_hit(cached, "/other?a=1")


@pytest.mark.parametrize(("method", "status"), [("POST", 500), ("PUT", 404), ("OPTIONS", 200), ("HEAD", 200)])
async def test_error_answers_and_safe_methods_invalidate_nothing(method: str, status: int) -> None:
    cached = edge(ScriptedApp(changing(status=status)))
    await call(cached)
    await call(cached, method)
    assert await is_hit(cached)


async def test_change_on_an_excluded_path_or_past_the_cache_invalidates_too() -> None:
    cached = edge(ScriptedApp(changing({"location": "/other"})), exclude=["/admin"])
    await call(cached, path="/other")
    await call(cached, "POST", "/admin")
    assert not await is_hit(cached, "/other")
    with cached.cache.disabled():
        await call(cached, "POST", "/admin")
    assert not await is_hit(cached, "/other")


async def test_invalidation_is_done_before_the_head_of_the_answer_leaves() -> None:
    cached = edge(ScriptedApp(changing()))
    await call(cached)
    marks = []

    async def noticing(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            marks.append((message["type"], cached.cache.store.stats().entries))
            await send(message)

        await cached(scope, receive, noting)

    await call(noticing, "PUT")
    assert marks[0] == ("http.response.start", 0)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param({"url": "http://test/a/b?c=d"}, id="url"),
        pytest.param({"url": "/a/b?c=d"}, id="path"),
        pytest.param({"tags": ["blue"]}, id="tags"),
        pytest.param({"prefix": "/a"}, id="prefix"),
        pytest.param({"prefix": "http://test/a"}, id="prefix-of-origin"),
    ],
)
@pytest.mark.parametrize("soft", [False, True])
async def test_application_invalidates(what: dict[str, Any], soft: bool) -> None:
    async def tagging(asked: AskedApp) -> None:
        exchange = current_exchange.get()
        assert exchange is not None
        exchange.cache.tag("blue", "green")
        headers = {"cache-control": "max-age=3600, stale-while-revalidate=600", "etag": '"1"'}
        await asked.respond(304 if "if-none-match" in asked.headers else 200, headers, b"")

    app = ScriptedApp(tagging)
    cached = edge(app)
    await call(cached, path="/a/b?c=d")
    await call(cached, path="/z")
    assert await is_hit(cached, "/a/b?c=d")
    await cached.cache.invalidate(**what, soft=soft)
    assert await is_hit(cached, "/a/b?c=d") is soft
    await cached.cache.aclose()
    if soft:
        assert len(app.calls) == 3  # refreshed behind the stale answer
        assert "if-none-match" in app.calls[-1].headers
    if "tags" not in what:
        assert await is_hit(cached, "/z")


async def test_clear_makes_everything_gone() -> None:
    cached = edge(ScriptedApp(changing()))
    await call(cached, path="/a")
    await call(cached, path="/b")
    await cached.cache.clear()
    assert not await is_hit(cached, "/a")
    assert not await is_hit(cached, "/b")


async def test_tag_outside_of_a_request_is_a_configuration_error() -> None:
    cached = edge(ScriptedApp(changing()))
    with pytest.raises(ConfigurationError, match="behind HTTPCacheMiddleware"):
        cached.cache.tag("blue")


async def test_slow_fill_that_began_before_an_invalidation_is_not_stored() -> None:
    app = ScriptedApp()
    cached = edge(app)
    request = open_request(cached)
    asked = await app.called()
    await cached.cache.invalidate(url="/")
    await asked.respond(200, HOUR, b"old")
    assert (await request.response()).body == b"old"
    again = open_request(cached)
    await (await app.called()).respond(200, HOUR, b"new")
    assert (await again.response()).body == b"new"
    assert cached.cache.stats().refused == {"overtaken": 1}


WHATS = [
    pytest.param({"url": "http://test/"}, id="url"),
    pytest.param({"url": "/"}, id="path"),
    pytest.param({"tags": ["blue"]}, id="tags"),
    pytest.param({"prefix": "/"}, id="prefix"),
]


@pytest.mark.parametrize("moment", ["waiting", "streaming"])
@pytest.mark.parametrize("what", WHATS)
async def test_who_asks_after_an_invalidation_does_not_get_what_was_under_way_before_it(
    what: dict[str, Any], moment: str
) -> None:
    app = ScriptedApp()
    cached = edge(app)
    old = {**HOUR, "cache-groups": '"blue"'}
    leader, waiter = open_request(cached), open_request(cached)
    asked = await app.called()
    if moment == "streaming":
        await asked.start(200, old)
        await asked.body(b"o", more=True)
        await leader.message()
    await cached.cache.invalidate(**what)
    late = [open_request(cached) for _ in range(20)]
    if moment == "waiting":
        for _ in range(5):
            await asyncio.sleep(0)
        await asked.start(200, old)
        await asked.body(b"o", more=True)
    other = await app.called()
    await asked.body(b"ld")
    await asked.finish()
    await other.respond(200, HOUR, b"new")
    assert {(await request.response()).body for request in late} == {b"new"}
    assert len(app.calls) == 2
    # Those who had asked before it may have either; they were aboard and got what was there.
    assert (await leader.response()).body == b"old"
    assert (await waiter.response()).body == b"old"


async def test_invalidations_in_a_row_do_not_end_in_a_stampede() -> None:
    app = ScriptedApp()
    cached = edge(app)
    requests = []
    for _ in range(6):
        requests += [open_request(cached) for _ in range(20)]
        await app.called()
        await cached.cache.invalidate(url="/")
    for asked in app.calls:
        await asked.respond(200, HOUR, b"x")
    assert {(await request.response()).status for request in requests} == {200}
    assert len(app.calls) == 6


async def test_invalidation_of_something_else_lets_requests_come_aboard() -> None:
    app = ScriptedApp()
    cached = edge(app)
    first = open_request(cached)
    asked = await app.called()
    await cached.cache.invalidate(url="/other")
    second = open_request(cached)
    for _ in range(5):
        await asyncio.sleep(0)
    await asked.respond(200, HOUR, b"x")
    assert ((await first.response()).body, (await second.response()).body) == (b"x", b"x")
    assert len(app.calls) == 1


async def test_validation_that_an_invalidation_overtook_is_not_for_who_asked_later() -> None:
    clock = ManualClock()
    app = ScriptedApp()
    cached = edge(app, clock)
    first = open_request(cached)
    await (await app.called()).respond(200, {**HOUR, "etag": '"1"', "cache-groups": '"blue"'}, b"old")
    await first.response()
    clock.advance(3601)
    early = open_request(cached)
    asked = await app.called()
    await cached.cache.invalidate(tags=["blue"])
    late = open_request(cached)
    for _ in range(5):
        await asyncio.sleep(0)
    await asked.respond(304, {**HOUR, "etag": '"1"', "cache-groups": '"blue"'})
    assert (await early.response()).body == b"old"
    await (await app.called()).respond(200, HOUR, b"new")
    assert (await late.response()).body == b"new"
