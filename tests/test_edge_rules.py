"""Which rule wins, who counts as a stranger, and what one request, one router or one worker cannot do to others."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from echo_cache import (
    Cache,
    ConfigurationError,
    HTTPCacheMiddleware,
    MemoryStore,
    PolicyOptions,
    StoreError,
    TwoLevelConfig,
    TwoLevelStore,
    cached,
    never_cached,
)
from echo_cache.fastapi import Cached
from echo_cache.testing import ManualClock, ScriptedApp, call

HOUR = {"cache-control": "max-age=3600"}


class Shared(MemoryStore):
    """Another worker's view of what all share: a memory that the two-level stores of a test have in common."""

    remote = True


def worker(app: Any, shared: Shared, clock: ManualClock, **config: Any) -> Any:
    store = TwoLevelStore(MemoryStore(clock=clock), shared, TwoLevelConfig(sync_mode="sync", **config), clock=clock)
    return HTTPCacheMiddleware(app, cache=Cache(store, clock=clock))


async def status_of(app: Any, path: str = "/", **how: Any) -> str:
    return (await call(app, path=path, **how))["cache-status"]


def starlette(*routes: Any, **options: Any) -> Starlette:
    app = Starlette(routes=list(routes))
    app.add_middleware(HTTPCacheMiddleware, store=MemoryStore(), default_ttl=None, **options)
    return app


# Which rule wins.


async def test_never_cached_wins_over_the_rule_of_a_router() -> None:
    app = FastAPI()
    app.add_middleware(HTTPCacheMiddleware, store=MemoryStore())
    router = APIRouter(dependencies=[Depends(Cached(ttl=60))])

    @router.get("/private")
    @never_cached
    def private() -> str:
        return "x"

    app.include_router(router)
    assert "detail=route" in await status_of(app, "/private")
    assert "hit" not in await status_of(app, "/private")


async def test_decorators_work_on_the_methods_of_endpoint_classes() -> None:
    class Page(HTTPEndpoint):
        @never_cached
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("x", headers=HOUR)

    class Kept(HTTPEndpoint):
        @cached(ttl=60)
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("x")

    app = starlette(Route("/page", Page), Route("/kept", Kept))
    assert "detail=route" in await status_of(app, "/page")
    assert "stored" in await status_of(app, "/kept")


async def test_a_decorator_without_ttl_takes_the_one_of_the_path_pattern() -> None:
    @cached(tags=["p"])
    async def page(request: Request) -> Response:
        return PlainTextResponse("x")

    app = starlette(Route("/p/1", page), include={"/p/*": 60})
    assert await status_of(app, "/p/1") == "echo_cache; fwd=uri-miss; ttl=60; stored"


def test_tags_may_name_the_path_parameters_of_mounts() -> None:
    @cached(ttl=60, tags=["tenant:{tenant}", "item:{item:04d}"])
    async def page(request: Request) -> Response:
        return PlainTextResponse("x")

    app = starlette(Mount("/{tenant}", routes=[Route("/{item:int}", page)]))
    with TestClient(app) as client:
        assert "stored" in client.get("/acme/7").headers["cache-status"]


async def test_a_wrong_decorator_is_said_to_the_server_as_a_failed_start() -> None:
    @cached(ttl=60)
    async def update(request: Request) -> Response:
        return PlainTextResponse("x")

    app = starlette(Route("/", update, methods=["POST"]))
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(ConfigurationError):
        await app({"type": "lifespan", "app": app, "state": {}}, receive, send)
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "only GET is cached" in sent[0]["message"]


def test_rules_of_a_router_leave_its_web_sockets_alone() -> None:
    app = FastAPI()
    app.add_middleware(HTTPCacheMiddleware, store=MemoryStore())
    router = APIRouter(dependencies=[Depends(Cached(ttl=60))])

    @router.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    app.include_router(router)
    with TestClient(app).websocket_connect("/ws") as socket:
        assert socket.receive_text() == "hello"


def test_mistakes_in_writing_the_decorator_and_the_store_say_what_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"write @cached\(ttl=60\)"):
        cached(60)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"store must be a store such as MemoryStore\(\)"):
        Cache(MemoryStore)  # type: ignore[arg-type]


async def test_skip_that_raises_sends_the_request_past_the_cache() -> None:
    def skip(scope: Any) -> bool:
        raise KeyError("session")

    app = HTTPCacheMiddleware(ScriptedApp(plain), store=MemoryStore(), skip=skip)
    assert await status_of(app) == "echo_cache; fwd=bypass"


async def plain(asked: Any) -> None:
    await asked.respond(200, HOUR, b"hello")


async def test_requests_that_are_not_skipped_are_hits() -> None:
    app = HTTPCacheMiddleware(ScriptedApp(plain), store=MemoryStore(), skip=lambda scope: scope["path"] == "/no")
    await call(app)
    assert "; hit" in await status_of(app)
    assert await status_of(app, "/no") == "echo_cache; fwd=bypass"


# Who counts as a stranger.


@pytest.mark.parametrize("name", ["x-api-key", "x-auth-token", "api-key", "proxy-authorization", "cookie"])
async def test_an_answer_that_says_nothing_is_not_shared_with_or_by_who_shows_a_key(name: str) -> None:
    async def greet(asked: Any) -> None:
        headers = {key.decode(): value.decode() for key, value in asked.scope["headers"]}
        await asked.respond(200, {}, headers.get(name, "stranger").encode())

    app = HTTPCacheMiddleware(ScriptedApp(greet), store=MemoryStore())
    assert (await call(app, headers={name: "alice"})).body == b"alice"
    assert (await call(app)).body == b"stranger"
    assert (await call(app)).body == b"stranger"
    assert (await call(app, headers={name: "bob"})).body == b"bob"


# What one request cannot do to others.


async def test_refresh_that_a_head_sets_off_is_a_get() -> None:
    app = ScriptedApp(stale_soon)
    clock = ManualClock()
    edge = HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), clock=clock))
    await call(edge)
    clock.advance(5)
    assert "; hit; ttl=-" in await status_of(edge, method="HEAD", headers={"cache-control": "no-transform"})
    await edge.cache.flights.aclose(5)
    assert [asked.scope["method"] for asked in app.calls] == ["GET", "GET"]
    assert not any(name == b"cache-control" for name, _ in app.calls[1].scope["headers"])
    assert "; hit; ttl=1" in await status_of(edge)


async def stale_soon(asked: Any) -> None:
    await asked.respond(200, {"cache-control": "max-age=1, stale-while-revalidate=600"}, b"hello")


async def test_one_odd_request_does_not_end_the_sharing_for_all() -> None:
    async def picky(asked: Any) -> None:
        odd = any(name == b"accept" for name, _ in asked.scope["headers"])
        await asyncio.sleep(0)
        await asked.respond(406 if odd else 200, {} if odd else HOUR, b"hello")

    app = ScriptedApp(picky)
    edge = HTTPCacheMiddleware(app, store=MemoryStore(), default_ttl=None)
    assert (await call(edge, headers={"accept": "x/y"})).status == 406
    await asyncio.gather(*(call(edge) for _ in range(100)))
    assert len(app.calls) == 2


async def test_the_same_cache_further_in_does_not_wait_for_itself() -> None:
    cache = Cache(MemoryStore())
    app = ScriptedApp(plain)
    twice = HTTPCacheMiddleware(HTTPCacheMiddleware(app, cache=cache), cache=cache)
    response = await call(twice)
    assert response.body == b"hello"
    assert len(app.calls) == 1


async def test_nothing_is_stored_while_disabled_even_if_it_began_before() -> None:
    app = ScriptedApp()
    edge = HTTPCacheMiddleware(app, store=MemoryStore())
    request = asyncio.ensure_future(call(edge))
    asked = await app.called()
    with edge.cache.disabled():
        await asked.respond(200, HOUR, b"hello")
        await request
    assert edge.cache.stats().stored == 0


# Soft marks, and the levels.


async def test_stale_windows_after_a_soft_invalidation_end() -> None:
    async def windows(asked: Any) -> None:
        await asked.respond(200, {"cache-control": "max-age=86400, stale-while-revalidate=30"}, b"hello")

    app, clock = ScriptedApp(windows), ManualClock()
    edge = HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), clock=clock))
    await call(edge)
    await edge.cache.invalidate(prefix="/", soft=True)
    clock.advance(31)
    assert "fwd=stale" in await status_of(edge)


async def test_what_is_stale_by_the_cap_of_memory_is_looked_for_below_before_it_is_served_stale() -> None:
    clock, shared = ManualClock(), Shared()
    shared._now = clock.time
    bodies = iter([b"old", b"new"])

    async def page(asked: Any) -> None:
        await asked.respond(200, {"cache-control": "max-age=60, stale-while-revalidate=30"}, next(bodies))

    app = ScriptedApp(page)
    a, b = worker(app, shared, clock, l1_ttl=5), worker(app, shared, clock, l1_ttl=5)
    await call(a)
    assert (await call(b)).body == b"old"
    await a.cache.invalidate(url="http://localhost/")
    await a.cache.store.delete(("GET", "http", dict(app.calls[0].scope["headers"]).get(b"host"), b"/", b""))
    await call(a)
    clock.advance(6)
    assert (await call(b)).body == b"new"
    assert len(app.calls) == 2


async def test_entry_that_is_gone_in_memory_does_not_hide_the_fresh_one_below() -> None:
    clock, shared = ManualClock(), Shared()
    shared._now = clock.time
    app = ScriptedApp(plain)
    a, b = worker(app, shared, clock), worker(app, shared, clock)
    await call(a)
    await call(b)
    clock.advance(1)
    for each in (a, b):
        await each.cache.invalidate(prefix="/")
    clock.advance(1)
    await call(a)
    assert "; hit" in await status_of(b)
    assert len(app.calls) == 2


class Broken(MemoryStore):
    remote = True
    broken = True

    async def get(self, *args: Any) -> Any:
        if self.broken:
            raise StoreError("Redis at example.invalid is away")
        return await super().get(*args)


async def test_trouble_of_the_store_is_one_warning_and_its_end_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "echo_cache")
    store, clock = Broken(), ManualClock()
    edge = HTTPCacheMiddleware(ScriptedApp(plain), cache=Cache(store, PolicyOptions(default_ttl=None), clock=clock))
    for number in range(5):
        assert (await call(edge, path=f"/{number}")).status == 200
    store.broken = False
    await call(edge, path="/again")  # one answer does not tell that it is over
    assert len(caplog.records) == 1
    clock.advance(60)
    for number in range(2):
        await call(edge, path=f"/calm/{number}")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "Redis at example.invalid is away" in caplog.text


# A client's own condition, when its request is the one that fills the cache.


async def test_a_client_that_has_what_its_request_fetches_gets_a_304_and_the_cache_gets_the_whole() -> None:
    app = ScriptedApp()
    edge = HTTPCacheMiddleware(app, store=MemoryStore())
    mine = asyncio.ensure_future(call(edge, headers={"if-none-match": '"1"'}))
    asked = await app.called()
    theirs = asyncio.ensure_future(call(edge))
    also = asyncio.ensure_future(call(edge, headers={"if-none-match": 'W/"1", "2"'}))
    await asyncio.sleep(0)
    assert not any(name == b"if-none-match" for name, _ in asked.scope["headers"])
    await asked.start(200, {**HOUR, "etag": '"1"', "content-type": "text/plain", "content-length": "5"})
    for request in (mine, also):
        response = await request
        assert (response.status, response.body, response["etag"]) == (304, b"", '"1"')
        assert b"content-length" not in dict(response.headers)
    await asked.body(b"hello")
    assert (await theirs).body == b"hello"
    assert "; hit" in await status_of(edge)
    assert len(app.calls) == 1


async def test_a_304_to_the_only_client_does_not_end_the_fill() -> None:
    app = ScriptedApp()
    edge = HTTPCacheMiddleware(app, store=MemoryStore())
    mine = asyncio.ensure_future(call(edge, headers={"if-modified-since": "Sun, 06 Nov 1994 08:49:37 GMT"}))
    asked = await app.called()
    await asked.start(200, {**HOUR, "last-modified": "Sun, 06 Nov 1994 08:49:37 GMT"})
    assert (await mine).status == 304
    await asked.body(b"hello")
    assert (await call(edge)).body == b"hello"
    assert len(app.calls) == 1


async def test_a_client_whose_copy_has_changed_gets_the_whole() -> None:
    async def second(asked: Any) -> None:
        await asked.respond(200, {**HOUR, "etag": '"2"'}, b"hello")

    edge = HTTPCacheMiddleware(ScriptedApp(second), store=MemoryStore())
    assert (await call(edge, headers={"if-none-match": '"1"'})).body == b"hello"


def test_a_wrong_option_is_in_the_log_of_a_server_that_swallows_what_is_raised_at_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigurationError, match="unknown option 'stor'"):
        HTTPCacheMiddleware(ScriptedApp(plain), stor=MemoryStore())
    assert [(record.levelname, "unknown option 'stor'" in record.message) for record in caplog.records] == [
        ("CRITICAL", True)
    ]
