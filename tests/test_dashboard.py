"""The dashboard's interface: what it tells, what it changes, its stream, how it is mounted."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelStore
from echo_cache.cache.report import Report
from echo_cache.dashboard import Dashboard, asked, events, mount
from echo_cache.dashboard.app import ENDPOINTS
from echo_cache.dashboard.openapi import openapi
from echo_cache.errors import ConfigurationError, StoreError, StoreTimeout
from echo_cache.management import Management
from echo_cache.stores.twolevel import CacheStats
from echo_cache.testing import ClientRequest, assert_hit, assert_miss, call, open_request
from tests.servers import RedisServer

TOKEN = "a-token-of-the-tests"
BEARER = {"authorization": f"Bearer {TOKEN}"}
JSON = {**BEARER, "content-type": "application/json"}
HOSTILE = "<script>alert(1)</script>"


async def product(request: Request) -> Response:
    number = request.path_params["number"]
    headers = {"cache-control": "s-maxage=60", "cache-groups": f'"products", "product:{number}"', "x-note": HOSTILE}
    return PlainTextResponse(f"product {number}", headers=headers)


async def private(request: Request) -> Response:
    return PlainTextResponse("mine", headers={"cache-control": "private"})


ROUTES = [Route("/products/{number}", product), Route("/private", private)]


def shop(cache: Cache, auth: Any = TOKEN) -> Starlette:
    app = Starlette(routes=list(ROUTES), middleware=[Middleware(HTTPCacheMiddleware, cache=cache)])
    mount(app, auth=auth)
    return app


@asynccontextmanager
async def two_levels(redis_url: str) -> AsyncIterator[tuple[Starlette, Cache]]:
    async with Cache(TwoLevelStore(MemoryStore(), RedisStore(redis_url))) as cache:
        yield shop(cache), cache


async def ask(app: Any, method: str, path: str, body: object = None, **headers: str) -> Any:
    """Return the JSON of the answer, which is expected to be 200."""
    raw = b"" if body is None else json.dumps(body).encode()
    response = await call(
        app, method, f"/_cache{path}", {**(JSON if body is not None else BEARER), **headers}, body=raw
    )
    assert response.status == 200, response.body
    assert response["content-type"] == "application/json"
    return json.loads(response.body)


async def refused(app: Any, method: str, path: str, body: object = None) -> tuple[int, str]:
    raw = b"" if body is None else json.dumps(body).encode()
    response = await call(app, method, f"/_cache{path}", JSON if body is not None else BEARER, body=raw)
    told = json.loads(response.body)
    assert list(told) == ["error"]
    return response.status, told["error"]


# --- what is told -----------------------------------------------------------------------------------------------------


async def test_stats_tell_what_was_done_for_requests(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, _):
        await call(app, "GET", "/products/1")
        await call(app, "GET", "/products/1")
        await call(app, "GET", "/private")
        stats = await ask(app, "GET", "/api/stats")
    worker = stats["worker"]
    assert set(worker) == {field.name for field in fields(Report)}
    assert (worker["requests"], worker["misses"], worker["l1_hits"], worker["stored"]) == (3, 2, 1, 1)
    assert worker["refusals"] == {"private": 1}
    assert {route["route"] for route in worker["routes"]} == {"/products/{number}", "/private"}
    assert stats["total"]["requests"] == 3


async def test_requests_for_the_dashboard_count_as_nothing_and_invalidate_nothing(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, cache):
        await call(app, "GET", "/products/1")
        before = cache.stats()
        for _ in range(3):
            await ask(app, "GET", "/api/stats")
            await call(app, "HEAD", "/_cache/", BEARER)
            await call(app, "GET", "/_cache")
            await ask(app, "POST", "/api/purge", {"all": True, "dry_run": True})
        after = cache.stats()
    assert (after.forwards, after.refused, after.invalidations) == (before.forwards, before.refused, 0)


async def test_requests_for_the_dashboard_wait_for_none_of_each_other() -> None:
    # In a cache that lets requests for one URL share a call, the second would get nothing before the first ends.
    app = shop(Cache(MemoryStore()))
    streams = [open_request(app, "GET", "/_cache/api/events", BEARER) for _ in range(2)]
    for stream in streams:
        assert (await stream.message())["status"] == 200
        assert "cache-status" not in dict((await stream_events(stream, 1))[0][1])
        stream.disconnect()
        await stream.response()


async def test_entries_are_listed_by_glob_tag_and_level_in_pages(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, cache):
        for number in range(5):
            await call(app, "GET", f"/products/{number}")
        await cache.store.flush()  # type: ignore[attr-defined]
        everything = await ask(app, "GET", "/api/entries")
        assert {entry["url"] for entry in everything["entries"]} == {f"http://test/products/{n}" for n in range(5)}
        assert everything["cursor"] is None
        matching = await ask(app, "GET", "/api/entries?match=*/products/3")
        assert [entry["url"] for entry in matching["entries"]] == ["http://test/products/3"]
        tagged = await ask(app, "GET", "/api/entries?tag=product:4&level=l2")
        assert [(entry["url"], entry["level"]) for entry in tagged["entries"]] == [("http://test/products/4", "l2")]
        first = await ask(app, "GET", "/api/entries?limit=2&level=l1")
        second = await ask(app, "GET", f"/api/entries?limit=500&level=l1&cursor={first['cursor']}")
    assert len(first["entries"]) == 2
    assert len(second["entries"]) == 3


async def test_entry_tells_all_of_a_url_with_odd_values_as_data(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, _):
        url = "/products/%3Cscript%3E?q=%3Cimg%20src=x%20onerror=alert(1)%3E"
        await call(app, "GET", url)
        told = await ask(
            app,
            "GET",
            "/api/entry?url=http://test/products/%253Cscript%253E%3Fq=%253Cimg%2520src=x%2520onerror=alert(1)%253E&header=Accept:%20*/*",
        )
    (variant,) = told["levels"]["l1"]
    assert ["x-note", HOSTILE] in variant["headers"]
    assert told["selected"] == {"level": "l1", "index": 0}


async def test_top_and_refusals_are_told(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, _):
        await call(app, "GET", "/products/1")
        await call(app, "GET", "/private")
        top = await ask(app, "GET", "/api/top")
        refusals = await ask(app, "GET", "/api/refusals")
    assert [one["url"] for one in top["by_bytes"]] == ["http://test/products/1"]
    assert [(one["url"], one["reason"]) for one in refusals] == [("http://test/private", "private")]


async def test_flat_stats_have_the_fields_of_the_store(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, _):
        await call(app, "GET", "/products/1")
        flat = await ask(app, "GET", "/stats")
    assert set(flat) == {field.name for field in fields(CacheStats)}
    flat = await ask(shop(Cache(MemoryStore())), "GET", "/stats")
    assert {"hits", "misses", "entries", "bytes"} <= set(flat)


# --- what is changed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    [
        {"url": "http://test/products/1"},
        {"url": "/products/1"},
        {"tag": "product:1"},
        {"prefix": "/products"},
        {"all": True},
    ],
)
async def test_purge_makes_gone_what_a_dry_run_has_only_named(redis_url: str, named: dict[str, Any]) -> None:
    async with two_levels(redis_url) as (app, _):
        await call(app, "GET", "/products/1")
        dry = await ask(app, "POST", "/api/purge", {**named, "dry_run": True})
        assert (dry["matched"], dry["sample"], dry["purged"]) == (1, ["http://test/products/1"], False)
        assert_hit(await call(app, "GET", "/products/1"))
        purged = await ask(app, "POST", "/api/purge", named)
        assert (purged["purged"], purged["propagated"]) == (True, True)
        assert_miss(await call(app, "GET", "/products/1"))


async def test_soft_purge_leaves_what_is_stale(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, _):
        await call(app, "GET", "/products/1")
        await ask(app, "POST", "/api/purge", {"tag": "products", "soft": True})
        page = await ask(app, "GET", "/api/entries?level=l1")
    assert [entry["stands"] for entry in page["entries"]] == ["stale"]


async def test_levels_are_cleared_one_by_one_and_copied(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, cache):
        await call(app, "GET", "/products/1")
        await cache.store.flush()  # type: ignore[attr-defined]
        assert (await ask(app, "DELETE", "/l1"))["cleared"] == "l1"
        assert (await ask(app, "GET", "/api/entries?level=l1"))["entries"] == []
        assert (await ask(app, "POST", "/api/sync", {"to": "l1"}))["copied"] == 1
        assert_hit(await call(app, "GET", "/products/1"))
        assert (await ask(app, "DELETE", "/l2"))["cleared"] == "l2"
        assert (await ask(app, "GET", "/api/entries?level=l2"))["entries"] == []
        await ask(app, "DELETE", "/all")
        assert_miss(await call(app, "GET", "/products/1"))


async def test_warm_asks_the_app_and_reset_begins_anew(redis_url: str) -> None:
    async with two_levels(redis_url) as (app, cache):
        urls = ["http://test/products/1", "http://test/private", "http://test/_cache/api/stats"]
        assert await ask(app, "POST", "/api/warm", {"urls": urls}) == {
            "done": 3, "stored": 1, "hits": 0, "uncached": 2, "failed": 0,
        }  # fmt: skip
        assert_hit(await call(app, "GET", "/products/1"))
        told = await ask(app, "POST", "/stats/reset")
        assert told == {"worker": cache.worker_id, "reset": True, "told": True}
        assert cache.stats().hits == 0


async def test_one_warming_at_a_time() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Response:
        asked.set()
        await answer.wait()
        return PlainTextResponse("slow")

    app = Starlette(routes=[Route("/slow", slow)], middleware=[Middleware(HTTPCacheMiddleware, store=MemoryStore())])
    mount(app, auth=TOKEN)
    first = asyncio.create_task(ask(app, "POST", "/api/warm", {"urls": ["http://test/slow"]}))
    await asked.wait()
    status, words = await refused(app, "POST", "/api/warm", {"urls": ["http://test/slow"]})
    assert (status, words) == (409, "warming is under way already: wait for its end")
    answer.set()
    assert (await first)["done"] == 1
    assert (await ask(app, "POST", "/api/warm", {"urls": ["http://test/slow"]}))["done"] == 1


# --- what is refused, in words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/api/entries?limit=0", None, 400, "limit must be a number, 1 to 500, not '0'"),
        ("GET", "/api/entries?limit=%C2%B2", None, 400, "limit must be a number"),
        ("GET", "/api/entries?limit=1&limit=2", None, 400, "limit must be given once"),
        ("GET", "/api/entries?level=l3", None, 400, "level must be l1 or l2, not 'l3'"),
        ("GET", "/api/entries?cursor=x", None, 400, "no cursor"),
        ("GET", f"/api/entries?match={'x' * 8193}", None, 400, "match must have 1 to 8192 characters"),
        ("GET", "/api/entries?colour=red", None, 400, "unknown: 'colour'; allowed: match"),
        ("GET", "/api/entries?match=%ff", None, 400, "the query must be UTF-8"),
        ("GET", "/api/stats?" + "&".join(["a=1"] * 101), None, 400, "there may be 100 parameters"),
        ("GET", "/api/entry", None, 400, "url is missing"),
        ("GET", "/api/entry?url=nonsense", None, 400, "absolute"),
        ("GET", "/api/entry?url=http://test/&header=nonsense", None, 400, "Name: value"),
        ("GET", "/api/entry?url=http://test/&header=A:%E2%82%AC", None, 400, "request field"),
        ("GET", "/api/entry?url=http://test/" + "&header=A:b" * 33, None, 400, "header may be given 32 times"),
        ("GET", "/api/stats?a=" + "b" * 65_536, None, 400, "the query may have 65536 octets"),
        ("POST", "/api/purge", {}, 400, "name exactly one of url, tag, prefix and all"),
        ("POST", "/api/purge", {"url": "/a", "tag": "b"}, 400, "not url and tag"),
        ("POST", "/api/purge", {"all": "yes"}, 400, "all must be true or false, not 'yes'"),
        ("POST", "/api/purge", {"tag": 7}, 400, "tag must be text, not 7"),
        ("POST", "/api/purge", {"tag": "\ud800"}, 400, "half a surrogate pair"),
        ("POST", "/api/purge", {"all": True, "when": "now"}, 400, "unknown: 'when'"),
        ("POST", "/api/purge", ["all"], 400, "must be a JSON object"),
        ("POST", "/api/purge", {"url": "x" * 70_000}, 413, "the body may have 65536 octets"),
        ("POST", "/api/sync", {}, 400, "to is missing"),
        ("POST", "/api/sync", {"to": ["l1"]}, 400, "to must be l1 or l2"),
        ("POST", "/api/warm", {"urls": []}, 400, "urls must be a list of 1 to 1000 texts"),
        ("POST", "/api/warm", {"urls": ["http://x/"] * 1001}, 400, "urls must be a list of 1 to 1000 texts"),
        ("POST", "/api/warm", {"urls": ["http://test/products/1", "mailto:x"]}, 400, "absolute"),
        ("POST", "/stats/reset", {"all": True}, 400, "unknown: 'all'; nothing is asked for"),
        ("GET", "/nothing", None, 404, "nothing here"),
        ("GET", "/api/../api/stats", None, 404, "nothing here"),
        ("GET", "/static/../app.py", None, 404, "no such file"),
        ("GET", "/static/index.html", None, 404, "no such file"),
        ("DELETE", "/api/stats", None, 405, "the method must be GET or HEAD"),
        ("PUT", "/login", None, 405, "the method must be GET or HEAD or POST"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_in_words(
    method: str, path: str, body: object, status: int, words: str
) -> None:
    cache = Cache(MemoryStore())
    app = shop(cache)
    told = await refused(app, method, path, body)
    assert told[0] == status
    assert words in told[1]
    assert cache.stats().store.entries == 0  # not even the first of two URLs was asked for


@pytest.mark.parametrize(
    ("raw", "headers", "status"),
    [
        pytest.param(b'{"all": true}', {"content-type": "text/plain"}, 415, id="a-form-could-send-it"),
        pytest.param(b'{"all": true}', {}, 415, id="no-type"),
        pytest.param(
            b'{"all": true}', {"content-type": "application/json", "content-encoding": "gzip"}, 415, id="coded"
        ),
        pytest.param(b"", {"content-type": "application/json"}, 400, id="empty"),
        pytest.param(b"{", {"content-type": "application/json"}, 400, id="half"),
        pytest.param(b"\xff\xfe\xff", {"content-type": "application/json"}, 400, id="no-unicode"),
        pytest.param(b'{"limit": NaN}', {"content-type": "application/json"}, 400, id="not-a-number"),
        pytest.param(b"[" * 60_000, {"content-type": "application/json"}, 400, id="deep"),
        pytest.param(b'{"a":' + b"9" * 50_000 + b"}", {"content-type": "application/json"}, 400, id="long-number"),
    ],
)
async def test_body_that_is_no_json_object_is_refused(raw: bytes, headers: dict[str, str], status: int) -> None:
    app = shop(Cache(MemoryStore()))
    response = await call(app, "POST", "/_cache/api/purge", {**BEARER, **headers}, body=raw)
    assert response.status == status, response.body
    assert "error" in json.loads(response.body)


async def test_body_without_a_length_is_bounded_too() -> None:
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 1
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    app = shop(Cache(MemoryStore()))
    scope = open_request(app, "POST", "/_cache/api/purge", JSON)
    scope.cancel()
    await app(scope.scope, receive, send)
    assert messages[0]["status"] == 413
    assert sent == 7


async def test_body_that_says_it_is_too_large_is_not_read() -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("it was read")

    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    dashboard = Dashboard(Cache(MemoryStore()), auth=TOKEN)
    scope = open_request(dashboard, "POST", "/api/purge", {**JSON, "content-length": "65537"})
    scope.cancel()
    await dashboard(scope.scope, receive, send)
    assert messages[0]["status"] == 413


async def test_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "_PATIENCE", 0.05)
    dashboard = Dashboard(Cache(MemoryStore()), auth=TOKEN)
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    scope = open_request(dashboard, "POST", "/api/purge", JSON)
    scope.cancel()
    await dashboard(scope.scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert messages[0]["status"] == 400
    assert b"the body did not come" in messages[1]["body"]


async def test_client_that_leaves_before_its_body_is_there_is_no_error() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    dashboard = Dashboard(Cache(MemoryStore()), auth=TOKEN)
    scope = open_request(dashboard, "POST", "/api/purge", JSON)
    scope.cancel()
    await dashboard(scope.scope, receive, send)


# --- with Redis down --------------------------------------------------------------------------------------------------


async def test_page_and_statistics_answer_without_redis(own_redis: RedisServer) -> None:
    async with two_levels(own_redis.url) as (app, _):
        await call(app, "GET", "/products/1")
        own_redis.kill()
        page = await call(app, "GET", "/_cache/", BEARER)
        assert (page.status, page["content-type"]) == (200, "text/html; charset=utf-8")
        stats = await ask(app, "GET", "/api/stats")
        assert stats["workers_known"] is False
        assert stats["worker"]["requests"] == 1
        assert len((await ask(app, "GET", "/api/entries"))["entries"]) == 1
        status, words = await refused(app, "GET", "/api/entries?level=l2")
        where = own_redis.url.removeprefix("redis://").partition("/")[0]
        assert (status, words) == (503, f"Redis cannot be asked now: no connection to {where} (Connection refused)")
        for to in ("l1", "l2"):
            assert (await refused(app, "POST", "/api/sync", {"to": to}))[0] == 503
        seen = await ask(app, "GET", "/api/entry?url=http://test/products/1")
        assert (seen["unknown"], list(seen["levels"])) == (["l2"], ["l1"])
        assert (await refused(app, "POST", "/api/purge", {"tag": "products", "dry_run": True}))[0] == 503
        assert (await ask(app, "POST", "/stats/reset"))["told"] is False
        assert (await ask(app, "POST", "/api/purge", {"tag": "products"}))["propagated"] is False
        assert_miss(await call(app, "GET", "/products/1"))
        stream = open_request(app, "GET", "/_cache/api/events", BEARER)
        told = dict(await stream_events(stream, 3))
        assert told["stats"]["workers_known"] is False
        stream.disconnect()
        await stream.response()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StoreTimeout("Redis at x did not keys within 0.1 s"), "it did not answer in time"),
        (StoreError("the store was closed"), "the store was closed"),
    ],
)
async def test_why_redis_cannot_be_asked_is_said_in_words(error: StoreError, words: str) -> None:
    class Broken(MemoryStore):
        def page(self, cursor: str, count: int) -> Any:
            raise error

    told = await refused(shop(Cache(Broken())), "GET", "/api/entries")
    assert told == (503, f"Redis cannot be asked now: {words}")


# --- the stream -------------------------------------------------------------------------------------------------------


async def stream_events(stream: ClientRequest, number: int) -> list[tuple[str, Any]]:
    """Return the next events of *stream*, at least *number* of them."""
    found: list[tuple[str, Any]] = []
    while len(found) < number:
        message = await stream.message()
        for event in message.get("body", b"").decode().split("\n\n"):
            if event.startswith("event: "):
                name, _, data = event.removeprefix("event: ").partition("\ndata: ")
                found.append((name, json.loads(data)))
    return found


def tasks_of_others() -> set[str]:
    return {str(task.get_coro()) for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_stream_tells_statistics_and_only_new_refusals() -> None:
    app = shop(Cache(MemoryStore()))
    before = tasks_of_others()
    stream = open_request(app, "GET", "/_cache/api/events", BEARER)
    first = dict(await stream_events(stream, 3))
    assert set(first) == {"stats", "top", "refusals"}
    assert set(first["stats"]) == {"shared", "worker", "total", "workers", "workers_known"}
    assert (first["stats"]["shared"], first["stats"]["workers_known"]) == (False, False)
    assert first["top"]["worker"] == first["stats"]["worker"]["id"] != ""
    assert first["refusals"] == []
    assert stream.messages[0]["status"] == 200
    assert dict(stream.messages[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    await call(app, "GET", "/private")
    while "refusals" not in dict(second := await stream_events(stream, 1)):
        pass  # a tick that came before the refusal
    assert [one["reason"] for one in dict(second)["refusals"]] == ["private"]
    assert dict(second)["stats"]["worker"]["requests"] == 1
    names = [name for name, _ in await stream_events(stream, 2)]
    assert "refusals" not in names
    stream.disconnect()
    await stream.response()
    assert tasks_of_others() == before


async def test_all_streams_share_one_look_a_second() -> None:
    cache = Cache(MemoryStore())
    app = shop(cache)
    await call(app, "GET", "/products/1")
    streams = [open_request(app, "GET", "/_cache/api/events", BEARER) for _ in range(16)]
    bodies: list[bytes] = []
    for stream in streams:
        while not (body := (await stream.message()).get("body", b"")).startswith(b"event: stats"):
            pass
        bodies.append(body)
    assert len(set(bodies)) == 1  # the time of the report is in it
    status, words = await refused(app, "GET", "/api/events")
    assert (status, words) == (503, "there are 16 streams already")
    head = await call(app, "HEAD", "/_cache/api/events", BEARER)
    assert (head.status, head.body) == (200, b"")
    await cache.aclose()
    for stream in streams:
        ended = await stream.response()
        assert ended.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    again = open_request(app, "GET", "/_cache/api/events", BEARER)  # the cache may be used again
    await stream_events(again, 1)
    again.cancel()
    await asyncio.wait([again.task])


async def test_slow_reader_gets_the_newest_and_nothing_queues_up() -> None:
    app = shop(Cache(MemoryStore()))
    slow, quick = (open_request(app, "GET", "/_cache/api/events", BEARER) for _ in range(2))
    await stream_events(slow, 3)
    await stream_events(quick, 3)
    slow.stop_reading()
    for _ in range(3):
        await stream_events(quick, 1)
    newest = (await stream_events(quick, 1))[0][1]["worker"]["time"]
    slow.read_on()
    missed = 0
    while (await stream_events(slow, 1))[0][1]["worker"]["time"] < newest:
        missed += 1
    assert missed <= 1  # the one that it was taking
    for stream in (slow, quick):
        stream.disconnect()
        await stream.response()


async def test_stream_ends_after_a_while_so_that_it_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LONGEST_STREAM", -1.0)
    response = await call(shop(Cache(MemoryStore())), "GET", "/_cache/api/events", BEARER)
    assert response.status == 200
    assert response.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_client_that_takes_nothing_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_CLIENT_PATIENCE", 0.05)
    app = shop(Cache(MemoryStore()))
    before = tasks_of_others()
    stream = open_request(app, "GET", "/_cache/api/events", BEARER)
    await stream_events(stream, 1)
    stream.stop_reading()
    assert (await stream.response()).messages[-1]["more_body"] is True
    assert tasks_of_others() == before


async def test_workers_that_cannot_be_asked_in_time_do_not_hold_up_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(self: Management) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(Management, "stats", hang)
    monkeypatch.setattr(events, "_REDIS_PATIENCE", 0.05)
    stream = open_request(shop(Cache(MemoryStore())), "GET", "/_cache/api/events", BEARER)
    told = dict(await stream_events(stream, 3))
    assert (told["stats"]["workers"], told["stats"]["workers_known"]) == (1, False)
    assert told["stats"]["total"]["store"] == told["stats"]["worker"]["store"] == "MemoryStore"
    stream.disconnect()
    await stream.response()


def test_numbers_that_json_has_not_are_null() -> None:
    told = {"a": [float("inf"), (float("nan"), 1.5)], "b": "\u2028<"}
    assert events.to_json(told) == b'{"a":[null,[null,1.5]],"b":"\\u2028<"}'


async def test_trouble_with_the_statistics_ends_the_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: Management, number: int = 10) -> Any:
        raise RuntimeError("details")

    monkeypatch.setattr(Management, "top", fail)
    response = await call(shop(Cache(MemoryStore())), "GET", "/_cache/api/events", BEARER)
    assert b"details" not in response.body
    assert "the dashboard's statistics failed" in caplog.text


SERVED = f"""
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from echo_cache import HTTPCacheMiddleware, MemoryStore
from echo_cache.dashboard import mount
import sys, uvicorn
app = Starlette(middleware=[Middleware(HTTPCacheMiddleware, store=MemoryStore())])
mount(app, auth={TOKEN!r})
uvicorn.run(app, fd=int(sys.argv[1]), log_level="warning", **eval(sys.argv[2]))
"""


@pytest.mark.parametrize("options", ["{}", "{'limit_max_requests': 1}"], ids=["sigterm", "max-requests"])
def test_open_stream_does_not_hold_up_a_server_that_stops(options: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SERVED, str(listener.fileno()), options]
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=Path(__file__).parent.parent)
        try:
            with socket.create_connection(listener.getsockname(), timeout=30) as client:
                client.sendall(
                    b"GET /_cache/api/events HTTP/1.1\r\nHost: x\r\n"
                    + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
                )
                heard = b""
                while b"event: stats" not in heard:
                    heard += client.recv(65536)
                if options == "{}":
                    server.send_signal(signal.SIGTERM)
                else:
                    with socket.create_connection(listener.getsockname(), timeout=30) as other:
                        other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                        assert other.recv(65536)
                while client.recv(65536):
                    pass
            assert server.wait(20) in (0, -signal.SIGTERM)
        finally:
            server.kill()
            server.wait()


# --- mounting ---------------------------------------------------------------------------------------------------------


async def test_dashboard_is_found_before_a_route_that_takes_everything() -> None:
    app = FastAPI()
    app.mount("/", StaticFiles(directory=Path(__file__).parent))
    app.add_middleware(HTTPCacheMiddleware, store=MemoryStore())
    mount(app, "/ops/cache", auth=TOKEN)
    bare = await call(app, "GET", "/ops/cache")
    assert (bare.status, bare["location"]) == (307, "./cache/")
    assert (await call(app, "GET", "/ops/cache/api/stats", BEARER)).status == 200
    assert "/ops/cache" not in json.dumps(app.openapi())


@pytest.mark.parametrize("root_path", ["", "/api"])
@pytest.mark.parametrize("stripped", [False, True])
async def test_dashboard_answers_below_the_root_path_of_the_app(root_path: str, stripped: bool) -> None:
    app = FastAPI()
    cache = Cache(MemoryStore())
    app.add_middleware(HTTPCacheMiddleware, cache=cache)
    mount(app, auth=TOKEN)
    path = "/_cache/api/openapi.json" if stripped else f"{root_path}/_cache/api/openapi.json"
    response = await call(app, "GET", path, BEARER, root_path=root_path)
    assert response.status == 200, response.body
    assert json.loads(response.body)["servers"] == [{"url": f"{root_path}/_cache"}]
    assert cache.stats().forwards == {}


async def test_cache_is_that_of_the_innermost_middleware_around() -> None:
    inner, outer = Cache(MemoryStore(), name="inner"), Cache(MemoryStore(), name="outer")
    around = [Middleware(HTTPCacheMiddleware, cache=outer), Middleware(HTTPCacheMiddleware, cache=inner)]
    app = Starlette(routes=list(ROUTES), middleware=around)
    mount(app, auth=TOKEN)
    assert (await ask(app, "GET", "/api/stats"))["worker"]["name"] == "inner"
    assert inner.stats().forwards == outer.stats().forwards == {}


async def test_cache_is_found_where_the_app_is_wrapped_and_where_it_is_mounted_by_hand() -> None:
    by_hand = Mount("/_cache", Dashboard(auth=TOKEN), middleware=[Middleware(GZipMiddleware)])
    app = Starlette(routes=[Mount("/deep", routes=[by_hand])])
    cache = Cache(MemoryStore(), name="around")
    wrapped = HTTPCacheMiddleware(app, cache=cache)
    response = await call(wrapped, "GET", "/deep/_cache/api/stats", BEARER)
    assert json.loads(response.body)["worker"]["name"] == "around"
    assert cache.stats().forwards == {}


async def test_dashboard_is_kept_out_through_middleware_between_it_and_the_cache() -> None:
    inner = Starlette(routes=list(ROUTES))
    mount(inner, auth=TOKEN)
    below = Starlette(routes=[Mount("/shop", GZipMiddleware(inner))])
    for app, path in (
        (GZipMiddleware(inner), "/_cache"),
        (GZipMiddleware(below), "/shop/_cache"),
        (below, "/shop/_cache"),
    ):
        cache = Cache(MemoryStore())
        wrapped = HTTPCacheMiddleware(app, cache=cache)
        response = await call(wrapped, "GET", f"{path}/api/stats", BEARER)
        assert (response.status, response["cache-status"]) == (200, "")
        assert (await call(wrapped, "GET", f"{path}x"))["cache-status"] != ""  # another path
        assert cache.stats().forwards == {"uri-miss": 1}


async def test_dashboard_is_kept_out_of_the_cache_of_an_app_that_is_mounted_itself() -> None:
    inner = Starlette(routes=list(ROUTES))
    mount(inner, auth=TOKEN)
    cache = Cache(MemoryStore())
    outer = Starlette(routes=[Mount("/shop", HTTPCacheMiddleware(inner, cache=cache)), *ROUTES])
    assert (await call(outer, "GET", "/shop/_cache/api/stats", BEARER)).status == 200
    assert (await call(outer, "GET", "/shop/products/1")).status == 200
    assert cache.stats().forwards == {"uri-miss": 1}


async def test_dashboard_that_is_mounted_late_works_as_any_app_behind_the_cache() -> None:
    cache = Cache(MemoryStore())
    app = Starlette(routes=list(ROUTES), middleware=[Middleware(HTTPCacheMiddleware, cache=cache)])
    await call(app, "GET", "/products/1")
    mount(app, auth=TOKEN)
    assert (await ask(app, "GET", "/api/stats"))["worker"]["stored"] == 1
    assert cache.stats().store.entries == 1


async def test_dashboard_without_a_cache_says_so() -> None:
    app = Starlette()
    mount(app, auth=TOKEN)
    status, words = await refused(app, "GET", "/api/stats")
    assert status == 503
    assert "add HTTPCacheMiddleware to the app" in words
    assert (await call(app, "GET", "/_cache/", BEARER)).status == 200


async def test_dashboard_alone_is_an_app_of_its_own() -> None:
    cache = Cache(MemoryStore())
    dashboard = Dashboard(cache, auth=TOKEN)
    sent: list[Any] = []
    inbox: asyncio.Queue[Any] = asyncio.Queue()

    async def send(message: Any) -> None:
        sent.append(message["type"])

    lifespan = asyncio.create_task(dashboard({"type": "lifespan"}, inbox.get, send))
    inbox.put_nowait({"type": "lifespan.startup"})
    stream = open_request(dashboard, "GET", "/api/events", BEARER)
    await stream_events(stream, 1)
    inbox.put_nowait({"type": "lifespan.shutdown"})
    await lifespan
    await stream.response()
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("path", ["", "/", "_cache", "/_cache/", "/a b", "/{x}", "/../x", "/a/..", "//x", 7])
def test_path_that_cannot_be_mounted_at_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError, match='path must be like "/_cache"'):
        mount(Starlette(), path, auth=TOKEN)


def test_what_is_no_app_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="app must be a Starlette or FastAPI app, not a Dashboard"):
        mount(Dashboard(auth=TOKEN), auth=TOKEN)
    with pytest.raises(ConfigurationError, match="cache must be a Cache"):
        Dashboard("redis://", auth=TOKEN)  # type: ignore[arg-type]


def test_dashboard_says_what_it_is() -> None:
    assert repr(Dashboard(auth=[TOKEN, TOKEN[::-1]])) == "<Dashboard <Door for 2 tokens> with 0 streams>"


# --- the description --------------------------------------------------------------------------------------------------


def test_description_has_every_endpoint() -> None:
    described = {(method.upper(), path) for path, methods in openapi("/_cache")["paths"].items() for method in methods}
    pages = {("GET", "/"), ("GET", "/login"), ("GET", "/static/")}
    assert described == {(one.method, one.path) for one in ENDPOINTS} - pages


async def test_static_files_are_known_by_their_etag() -> None:
    app = shop(Cache(MemoryStore()))
    script = await call(app, "GET", "/_cache/static/app.js")
    assert (script.status, script["content-type"]) == (200, "text/javascript; charset=utf-8")
    again = await call(app, "GET", "/_cache/static/app.js", {"if-none-match": script["etag"]})
    assert (again.status, again.body, again["etag"]) == (304, b"", script["etag"])
    assert again["cache-control"] == script["cache-control"] == "private, no-cache"
    page = await call(app, "GET", "/_cache/", BEARER)
    assert (page["cache-control"], page["etag"]) == ("no-store", "")
    head = await call(app, "HEAD", "/_cache/static/app.js")
    assert (head.status, head.body, head["content-length"]) == (200, b"", str(len(script.body)))
