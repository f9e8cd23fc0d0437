"""With Starlette and FastAPI: decorators, dependencies, other middleware, mounted apps, start and end."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from echo_cache import Cache, ConfigurationError, HTTPCacheMiddleware, MemoryStore, PolicyOptions, cached, never_cached
from echo_cache.fastapi import Cached, CacheDep, get_cache
from echo_cache.testing import ManualClock, call, open_request

HOUR = {"cache-control": "max-age=3600"}


def shop(**options: Any) -> tuple[FastAPI, Cache, ManualClock]:
    """Return a FastAPI app with the middleware, its cache and its clock."""
    clock = ManualClock()
    cache = Cache(MemoryStore(clock=clock), PolicyOptions(default_ttl=None), clock=clock)
    app = FastAPI()
    app.add_middleware(HTTPCacheMiddleware, cache=cache, **options)
    return app, cache, clock


async def hit(app: Any, path: str, headers: dict[str, str] | None = None) -> bool:
    return "; hit" in (await call(app, path=path, headers=headers or {}))["cache-status"]


# Decorators.


@pytest.mark.parametrize("order", ["cached outside", "cached inside"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_decorator_works_on_sync_and_async_endpoints_in_either_order(order: str, kind: str) -> None:
    app, cache, clock = shop()
    calls = []

    async def endpoint(number: int) -> dict[str, int]:
        calls.append(number)
        return {"number": number}

    def sync_endpoint(number: int) -> dict[str, int]:
        calls.append(number)
        return {"number": number}

    target = endpoint if kind == "async" else sync_endpoint
    mark = cached(ttl=timedelta(seconds=60), tags=["number:{number}"])
    if order == "cached outside":
        mark(app.get("/n/{number}")(target))
    else:
        app.get("/n/{number}")(mark(target))
    for _ in range(3):
        assert (await call(app, path="/n/7")).body == b'{"number":7}'
    assert calls == [7]
    await cache.invalidate(tags=["number:8"])
    assert await hit(app, "/n/7")
    await cache.invalidate(tags=["number:7"])
    assert not await hit(app, "/n/7")
    clock.advance(61)
    assert not await hit(app, "/n/7")


async def test_never_cached_keeps_a_response_out_whatever_it_says() -> None:
    app, _, _ = shop()

    @app.get("/")
    @never_cached
    async def endpoint() -> JSONResponse:
        return JSONResponse({}, headers=HOUR)

    assert not await hit(app, "/")
    assert not await hit(app, "/")


async def test_client_ttl_is_what_clients_are_told() -> None:
    app, _, clock = shop()

    @app.get("/")
    @cached(ttl=600, client_ttl=30)
    async def endpoint() -> dict[str, str]:
        return {}

    first = await call(app)
    clock.advance(100)
    second = await call(app)
    assert (first["cache-control"], second["cache-control"], second["age"]) == ("max-age=30", "max-age=130", "100")


def start(app: Any) -> None:
    with TestClient(app):
        pass


def test_cached_on_a_change_only_raises_at_start() -> None:
    app, _, _ = shop()

    @app.post("/")
    @cached(ttl=60)
    async def endpoint() -> None: ...

    with pytest.raises(ConfigurationError, match="only GET is cached"):
        start(app)


def test_tag_that_names_what_the_path_does_not_have_raises_at_start() -> None:
    app, _, _ = shop()

    @app.get("/n/{number}")
    @cached(ttl=60, tags=["number:{nubmer}"])
    async def endpoint(number: int) -> None: ...

    with pytest.raises(ConfigurationError, match="nubmer"):
        start(app)


async def test_bad_tag_without_a_start_is_an_event_and_a_normal_answer() -> None:
    app, cache, _ = shop()

    @app.get("/n/{number}")
    @cached(ttl=60, tags=["number:{nubmer}"])
    async def endpoint(number: int) -> int:
        return number

    assert (await call(app, path="/n/7")).body == b"7"
    assert cache.stats().failures == 1
    assert not await hit(app, "/n/7")


def test_cached_and_never_cached_contradict_each_other() -> None:
    with pytest.raises(ConfigurationError, match="contradict"):

        @cached(ttl=60)
        @never_cached
        async def endpoint() -> None: ...


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: cached(ttl=-1), id="negative-ttl"),
        pytest.param(lambda: cached(ttl="60"), id="text-ttl"),  # type: ignore[arg-type]
        pytest.param(lambda: cached(tags="one"), id="tags-no-list"),
        pytest.param(lambda: Cached(ttl=-1), id="dependency"),
        pytest.param(lambda: HTTPCacheMiddleware(None), id="no-store"),  # type: ignore[arg-type]
        pytest.param(
            lambda: HTTPCacheMiddleware(None, store=MemoryStore(), cache=Cache(MemoryStore())),  # type: ignore[arg-type]
            id="store-and-cache",
        ),
        pytest.param(lambda: HTTPCacheMiddleware(None, store=MemoryStore(), tll=3), id="unknown"),  # type: ignore[arg-type]
        pytest.param(
            lambda: HTTPCacheMiddleware(None, store=MemoryStore(), include={"/a": -1}),  # type: ignore[arg-type]
            id="negative-include",
        ),
        pytest.param(lambda: HTTPCacheMiddleware(None, store=MemoryStore(), exclude=["a"]), id="pattern"),  # type: ignore[arg-type]
        pytest.param(lambda: HTTPCacheMiddleware(None, store="redis://x"), id="no-store-object"),  # type: ignore[arg-type]
        pytest.param(lambda: HTTPCacheMiddleware(None, store=MemoryStore(), default_ttl=-1), id="default-ttl"),  # type: ignore[arg-type]
        pytest.param(lambda: Cache(MemoryStore(), fill_timeout=-1), id="fill-timeout"),
        pytest.param(lambda: Cache(MemoryStore(), name=""), id="name"),
    ],
)
def test_wrong_configuration_raises_at_once_and_says_what_is_allowed(make: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        make()
    assert len(str(raised.value)) > 20


# Dependencies.


async def test_cached_as_a_dependency_of_a_route_and_of_a_router() -> None:
    app, cache, _ = shop()
    router = APIRouter(dependencies=[Depends(Cached(ttl=60, tags=["all"]))])

    @router.get("/routed")
    async def routed() -> str:
        return "x"

    @app.get("/direct", dependencies=[Depends(Cached(ttl=60, tags=["one"]))])
    def direct() -> str:
        return "x"

    app.include_router(router)
    for path, tag in (("/routed", "all"), ("/direct", "one")):
        await call(app, path=path)
        assert await hit(app, path)
        await cache.invalidate(tags=[tag])
        assert not await hit(app, path)


async def test_cache_in_a_handler_invalidates_and_tags() -> None:
    app, cache, _ = shop()

    @app.get("/async/{number}")
    @cached(ttl=60)
    async def one(number: int, cache: CacheDep) -> int:
        cache.tag("numbers")
        return number

    @app.get("/sync/{number}")
    @cached(ttl=60)
    def other(number: int, cache: CacheDep) -> int:
        cache.tag("numbers")
        return number

    @app.put("/numbers")
    async def change(cache: CacheDep) -> None:
        await cache.invalidate(tags=["numbers"])

    for path in ("/async/1", "/sync/1"):
        await call(app, path=path)
        assert await hit(app, path)
    await call(app, "PUT", "/numbers")
    assert not await hit(app, "/async/1")
    assert not await hit(app, "/sync/1")
    assert cache.stats().failures == 0


async def test_dependency_without_the_middleware_is_a_configuration_error() -> None:
    app = FastAPI()

    @app.get("/")
    async def endpoint(cache: Annotated[Cache, Depends(get_cache)]) -> None: ...

    with pytest.raises(ConfigurationError, match="add_middleware"):
        await call(app)


# Other middleware.


async def test_context_variables_of_outer_middleware_are_seen_by_the_app() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    app, _, _ = shop()

    @app.get("/")
    async def endpoint() -> str:
        return variable.get()

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        variable.set("set outside")
        await app(scope, receive, send)

    assert (await call(outer)).body == b'"set outside"'


@pytest.mark.parametrize("inside", [True, False])
async def test_works_inside_and_outside_of_base_http_middleware(inside: bool) -> None:
    app = FastAPI()
    clock = ManualClock()
    cache = Cache(MemoryStore(clock=clock), clock=clock)
    calls: list[Any] = []

    @app.get("/n/{number}")
    @cached(ttl=60, tags=["n:{number}"])
    async def endpoint(number: int, background: BackgroundTasks) -> StreamingResponse:
        calls.append(number)

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0)
                yield b"x"

        background.add_task(calls.append, "background")
        return StreamingResponse(chunks())

    @app.get("/raises")
    async def raises() -> None:
        raise LookupError("of the app")

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            response = await call_next(request)
            response.headers["x-passed"] = "1"
            return response

    if inside:
        app.add_middleware(HTTPCacheMiddleware, cache=cache)
        app.add_middleware(Passing)
    else:
        app.add_middleware(Passing)
        app.add_middleware(HTTPCacheMiddleware, cache=cache)
    requests = [open_request(app, path="/n/7") for _ in range(5)]
    for request in requests:
        response = await request.response()
        assert (response.body, response["x-passed"]) == (b"xxx", "1")
    await cache.aclose()
    assert calls == [7, "background"]
    for _ in range(2):
        response = await call(app, path="/n/7")
        assert (response.body, response["x-passed"]) == (b"xxx", "1")
    assert calls == [7, "background"]
    with pytest.raises(LookupError, match="of the app"):
        await call(app, path="/raises")


async def test_gzip_outside_does_not_change_what_is_stored() -> None:
    app, _, _ = shop()

    @app.get("/")
    @cached(ttl=60)
    async def endpoint() -> PlainTextResponse:
        return PlainTextResponse("x" * 2000)

    app.add_middleware(GZipMiddleware)
    zipped = [await call(app, headers={"accept-encoding": "gzip"}) for _ in range(3)]
    for response in zipped:
        assert gzip.decompress(response.body) == b"x" * 2000
        assert response["content-encoding"] == "gzip"
    assert zipped[1].headers == zipped[2].headers
    plain = await call(app, headers={"accept-encoding": "identity"})
    assert (plain.body, plain["content-encoding"], plain["content-length"]) == (b"x" * 2000, "", "2000")


async def test_gzip_inside_is_stored_per_encoding() -> None:
    app = FastAPI()
    app.add_middleware(GZipMiddleware)
    cache = Cache(MemoryStore())
    app.add_middleware(HTTPCacheMiddleware, cache=cache)

    @app.get("/")
    @cached(ttl=60)
    async def endpoint() -> PlainTextResponse:
        return PlainTextResponse("x" * 2000)

    for _ in range(2):
        assert gzip.decompress((await call(app, headers={"accept-encoding": "gzip"})).body) == b"x" * 2000
        assert (await call(app, headers={"accept-encoding": "identity"})).body == b"x" * 2000
    assert cache.stats().hits == 2


async def test_cors_outside_answers_each_origin_for_itself() -> None:
    app, _, _ = shop()

    @app.get("/")
    @cached(ttl=60)
    async def endpoint() -> str:
        return "x"

    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example", "https://b.example"])
    for _ in range(2):
        for origin in ("https://a.example", "https://b.example", "https://evil.example"):
            response = await call(app, headers={"origin": origin})
            allowed = "" if "evil" in origin else origin
            assert response["access-control-allow-origin"] == allowed
            assert [name for name, _ in response.headers].count(b"access-control-allow-origin") <= 1


async def test_mounted_app_is_cached_and_its_decorators_are_seen() -> None:
    inner, _, _ = FastAPI(), None, None
    calls = []

    @inner.get("/n/{number}")
    @cached(ttl=60, tags=["n:{number}"])
    async def endpoint(number: int) -> int:
        calls.append(number)
        return number

    app, cache, _ = shop()
    app.mount("/inner", inner)
    for _ in range(2):
        assert (await call(app, path="/inner/n/7")).body == b"7"
    assert calls == [7]
    await cache.invalidate(tags=["n:7"])
    await call(app, path="/inner/n/7")
    assert calls == [7, 7]


async def test_middleware_within_a_mounted_app_works() -> None:
    inner, _, _ = shop()

    @inner.get("/")
    @cached(ttl=60)
    async def endpoint() -> str:
        return "x"

    outer = Starlette(routes=[Mount("/inner", inner)])
    await call(outer, path="/inner/")
    assert await hit(outer, "/inner/")


async def test_two_apps_may_share_one_cache() -> None:
    clock = ManualClock()
    cache = Cache(MemoryStore(clock=clock), clock=clock)
    apps = []
    for name in ("one", "two"):
        app = FastAPI()
        app.add_middleware(HTTPCacheMiddleware, cache=cache)

        @app.get("/")
        async def endpoint(name: str = name) -> JSONResponse:
            return JSONResponse(name, headers=HOUR)

        apps.append(app)
    assert (await call(apps[0], headers={"host": "one"})).body == b'"one"'
    assert (await call(apps[1], headers={"host": "two"})).body == b'"two"'
    assert (await call(apps[1], headers={"host": "one"})).body == b'"one"'
    assert cache.stats().hits == 1


# Start and end, and other kinds of scope.


def test_test_client_without_a_start_works_each_request_in_a_loop_of_its_own() -> None:
    app, _, _ = shop()

    @app.get("/")
    @cached(ttl=60, stale_while_revalidate=600)
    async def endpoint() -> str:
        return "x"

    client = TestClient(app)
    statuses = [client.get("/").headers["cache-status"] for _ in range(3)]
    assert ["; hit" in status for status in statuses] == [False, True, True]


def test_lifespan_of_the_app_is_kept_and_the_cache_is_closed_at_its_end() -> None:
    events = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        events.append("start")
        yield
        events.append("end")

    class Closing(MemoryStore):
        async def aclose(self) -> None:
            events.append("closed")

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(HTTPCacheMiddleware, store=Closing())

    @app.get("/")
    @cached(ttl=60)
    async def endpoint() -> str:
        return "x"

    with TestClient(app) as client:
        assert [("; hit" in client.get("/").headers["cache-status"]) for _ in range(2)] == [False, True]
    assert events == ["start", "end", "closed"]


async def test_websocket_passes() -> None:
    async def echo(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/ws", echo)])
    app.add_middleware(HTTPCacheMiddleware, store=MemoryStore())
    with TestClient(app).websocket_connect("/ws") as session:
        session.send_text("hello")
        assert session.receive_text() == "hello"


async def test_server_errors_of_starlette_reach_client_and_server_as_without_a_cache() -> None:
    async def raising(request: Request) -> None:
        raise LookupError("of the app")

    bare = Starlette(routes=[Route("/", raising)])
    for app in (bare, HTTPCacheMiddleware(bare, store=MemoryStore())):
        request = open_request(app)
        with pytest.raises(LookupError, match="of the app"):
            await request.response()
        assert (request.so_far().status, request.so_far().body) == (500, b"Internal Server Error")


async def test_client_that_leaves_ends_a_streaming_response_of_starlette() -> None:
    ended = asyncio.Event()

    async def endless(request: Request) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x"
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(chunks(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/", endless)])
    app.add_middleware(HTTPCacheMiddleware, store=MemoryStore())
    request = open_request(app)
    for _ in range(3):
        await request.message()
    request.disconnect()
    await request.response()
    await ended.wait()
