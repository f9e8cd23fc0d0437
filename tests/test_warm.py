"""Filling the cache before anybody asks: what is warmed is what a request would have filled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from echo_cache import Cache, ConfigurationError, HTTPCacheMiddleware, MemoryStore, Request, WarmReport, cached
from echo_cache.testing import AskedApp, ScriptedApp, call

HOUR = {"cache-control": "max-age=3600"}


async def page(asked: AskedApp) -> None:
    path = asked.scope["path"]
    if path == "/broken":
        raise ValueError("of the app")
    if path == "/error":
        await asked.respond(503)
    elif path == "/private":
        await asked.respond(200, {"cache-control": "private"})
    else:
        headers = {**HOUR, "vary": "accept-language"} if path == "/varied" else HOUR
        await asked.respond(200, headers, asked.headers.get("accept-language", "x").encode())


async def test_what_was_warmed_is_a_hit() -> None:
    app = ScriptedApp(page)
    edge = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))
    urls = [f"http://test/products/{number}?full=1" for number in range(20)]
    report = await edge.cache.warm(urls)
    assert report == WarmReport(done=20, stored=20)
    assert "; hit" in (await call(edge, path="/products/7?full=1"))["cache-status"]
    assert await edge.cache.warm(urls) == WarmReport(done=20, hits=20)
    assert len(app.calls) == 20


async def test_what_becomes_of_each_is_counted_and_nothing_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    edge = HTTPCacheMiddleware(ScriptedApp(page), cache=Cache(MemoryStore()))
    paths = ("/a", "/broken", "/error", "/private", "/a", "/b")
    report = await edge.cache.warm([f"http://test{path}" for path in paths], concurrency=1)
    assert report == WarmReport(done=6, stored=2, hits=1, uncached=1, failed=2)
    assert "ValueError" in caplog.text


async def test_progress_is_told_after_each_and_may_be_awaited() -> None:
    edge = HTTPCacheMiddleware(ScriptedApp(page), cache=Cache(MemoryStore()))
    seen: list[int] = []

    async def progress(report: WarmReport) -> None:
        seen.append(report.done)
        await asyncio.sleep(0)

    urls = [f"http://test/{number}" for number in range(5)]
    await edge.cache.warm(urls, progress=progress)
    assert sorted(seen) == [1, 2, 3, 4, 5]
    await edge.cache.warm(urls, progress=lambda report: seen.append(report.hits))
    assert sorted(seen[5:]) == [1, 2, 3, 4, 5]


async def test_no_more_than_concurrency_are_asked_for_at_a_time_and_the_source_is_not_read_ahead() -> None:
    under_way, most, taken = 0, 0, 0

    async def slow(asked: AskedApp) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        await asked.respond(200, HOUR)

    async def urls() -> AsyncIterator[str]:
        nonlocal taken
        for number in range(50):
            assert taken <= len(app.calls) + 3
            taken += 1
            yield f"http://test/{number}"

    app = ScriptedApp(slow)
    edge = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))
    assert (await edge.cache.warm(urls(), concurrency=3)).stored == 50
    assert most == 3


async def test_a_request_brings_its_own_fields() -> None:
    edge = HTTPCacheMiddleware(ScriptedApp(page), cache=Cache(MemoryStore()))
    german = Request("GET", "http", b"test", b"/varied", b"", [(b"accept-language", b"de")])
    await edge.cache.warm([german])
    assert "; hit" in (await call(edge, path="/varied", headers={"accept-language": "de"}))["cache-status"]
    assert "; hit" not in (await call(edge, path="/varied", headers={"accept-language": "en"}))["cache-status"]


async def test_the_app_is_called_as_a_server_calls_it() -> None:
    """Starlette's request.app and the lifespan's state are there, and a decorated route is what it is."""

    @cached(ttl=60)
    async def decorated(request: StarletteRequest) -> PlainTextResponse:
        return PlainTextResponse(f"{request.app.state.name} {request.state.from_lifespan} {request.url.path}")

    cache = Cache(MemoryStore())
    app = Starlette(routes=[Route("/ä/{name}", decorated)], middleware=[Middleware(HTTPCacheMiddleware, cache=cache)])
    app.state.name = "shop"
    with pytest.raises(ConfigurationError, match="needs an app"):
        await cache.warm(["http://test/"])

    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    started = asyncio.Event()
    over = asyncio.Event()

    async def receive() -> Any:
        message = next(messages)
        if message["type"] == "lifespan.shutdown":
            await over.wait()
        return message

    async def send(message: Any) -> None:
        assert "failed" not in message["type"], message
        started.set()

    lifespan = asyncio.create_task(app({"type": "lifespan", "state": {"from_lifespan": 1}}, receive, send))
    await started.wait()
    assert await cache.warm(["http://test/ä/x"]) == WarmReport(done=1, stored=1)
    response = await call(app, path="/ä/x", raw_path=b"/%C3%A4/x")
    assert response.body == "shop 1 /ä/x".encode()
    assert "; hit" in response["cache-status"]
    over.set()
    await lifespan


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(["/only/a/path"], id="a-path"),
        pytest.param(["ftp://testserver/"], id="another-scheme"),
        pytest.param([7], id="a-number"),
        pytest.param("http://test/", id="a-bare-string"),
        pytest.param([Request("POST", "http", b"test", b"/", b"", ())], id="a-post"),
    ],
)
async def test_what_cannot_be_warmed_is_refused(what: Any) -> None:
    edge = HTTPCacheMiddleware(ScriptedApp(page), cache=Cache(MemoryStore()))
    with pytest.raises(ConfigurationError):
        await edge.cache.warm(what)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True])
async def test_a_concurrency_that_cannot_work_is_refused(concurrency: Any) -> None:
    edge = HTTPCacheMiddleware(ScriptedApp(page), cache=Cache(MemoryStore()))
    with pytest.raises(ConfigurationError, match="concurrency"):
        await edge.cache.warm([], concurrency=concurrency)
