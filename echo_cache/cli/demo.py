"""
A small shop behind the cache, to look at: slow pages, tags, a page that is never stored, and the dashboard.

The one rule: it listens on this machine alone, as its dashboard asks nobody for a token. Some traffic of its own keeps
the charts moving.
"""

from __future__ import annotations

import asyncio
import html
import importlib.util
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from echo_cache.asgi import HTTPCacheMiddleware
from echo_cache.cache import Cache
from echo_cache.cli.inside import ask, clean
from echo_cache.cli.target import in_words
from echo_cache.cli.web import Unavailable
from echo_cache.errors import ConfigurationError
from echo_cache.options import PolicyOptions
from echo_cache.routes import cached, never_cached
from echo_cache.settings import Settings
from echo_cache.stores import MemoryStore, TwoLevelStore

__all__ = ["make_app", "serve", "tour"]

_HOST: Final = "127.0.0.1"
_SLOW: Final = 0.15
"""How long the database takes that a real shop would ask, in seconds."""
_PAUSE: Final = 0.2
"""How long the demo's own visitors pause between two requests, on average."""

PREFIX: Final = "echo_cache_demo"
"""What names in Redis begin with: none of a real app's, and all of it is deleted at the end."""

_PAGES: Final = ("/products/1", "/products/2", "/products/3", "/news", "/search?q=shoes", "/account")
_WEIGHTS: Final = (30, 20, 10, 20, 15, 5)


async def _slow_work() -> None:
    await asyncio.sleep(_SLOW)


@cached(ttl=20, stale_while_revalidate=20, tags=["catalog", "product:{number}"])
async def _product(request: Request) -> Response:
    await _slow_work()
    number = request.path_params["number"]
    return JSONResponse({"id": number, "price": 5 + number % 20, "made_at": time.time()})


@cached(ttl=5, tags=["catalog"])
async def _search(request: Request) -> Response:
    await _slow_work()
    return JSONResponse({"found": random.sample(range(1, 100), 5)})


async def _news(request: Request) -> Response:
    await _slow_work()
    return PlainTextResponse("nothing new\n", headers={"cache-control": "max-age=10, stale-while-revalidate=30"})


async def _account(request: Request) -> Response:
    await _slow_work()
    # Not stored, and the dashboard says why.
    return PlainTextResponse("yours alone\n", headers={"cache-control": "private"})


@never_cached
async def _home(request: Request) -> Response:
    links = "".join(f'<li><a href="{html.escape(page)}">{html.escape(page)}</a></li>' for page in _PAGES)
    buttons = "".join(
        f'<form method="post" action="/purge?tag={tag}"><button>Purge {tag}</button></form>'
        for tag in ("product:1", "catalog")
    )
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>A small shop</title>'
        "<h1>A small shop behind the cache</h1>"
        f"<p>Each page takes {_SLOW * 1000:.0f} ms to make. Load one twice, and look at Cache-Status.</p>"
        f'<ul>{links}</ul>{buttons}<p><a href="/_cache/">The dashboard</a></p></html>'
    )


def make_app(cache: Cache) -> Starlette:
    """Return the shop behind *cache*."""

    async def purge(request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return PlainTextResponse("only from the shop's own page\n", 403)
        await cache.invalidate(tags=[request.query_params.get("tag") or "catalog"])
        return RedirectResponse("/", 303)

    return Starlette(
        routes=[
            Route("/", _home),
            Route("/products/{number:int}", _product),
            Route("/search", _search),
            Route("/news", _news),
            Route("/account", _account),
            Route("/purge", purge, methods=["POST"]),
        ],
        middleware=[Middleware(HTTPCacheMiddleware, cache=cache)],
    )


def _make_cache(settings: Settings | None) -> Cache:
    """Return a cache over memory, and over the Redis of *settings* behind it."""
    policy = PolicyOptions(default_ttl=None)
    if settings is None:
        return Cache(MemoryStore(), policy)
    return Cache(TwoLevelStore(MemoryStore(), settings.redis.store(settings.url)), policy)


async def _require_redis(settings: Settings | None) -> None:
    """Raise Unavailable where Redis cannot be asked: the shop would work without, and the demo would show less."""
    if settings is not None:
        store = settings.redis.store(settings.url)
        try:
            with in_words(store.server.location):
                await store.count()
        finally:
            await store.aclose()


async def _clean(settings: Settings | None) -> None:
    if settings is not None:
        await clean(settings.redis.store(settings.url))


# --- the tour ---------------------------------------------------------------------------------------------------------


async def tour(settings: Settings | None) -> list[dict[str, Any]]:
    """Make some requests in this process, and return what was done and what the cache said. Raises Unavailable."""
    # Nobody has asked for it before, whatever is in Redis.
    path = f"/products/{random.randrange(1_000, 2**31)}"
    steps: list[dict[str, Any]] = []
    await _require_redis(settings)
    try:
        async with _make_cache(settings) as cache:
            app = make_app(cache)
            for name, method, target in (
                ("GET, the first: a miss", "GET", path),
                ("GET again: a hit", "GET", path),
                ("HEAD, answered by the stored GET", "HEAD", path),
                ("POST, which purges by tag", "POST", f"/purge?tag=product:{path.rpartition('/')[2]}"),
                ("GET after it: a miss", "GET", path),
                ("GET again: a hit", "GET", path),
                ("GET of what is private: not stored", "GET", "/account"),
            ):
                start = time.perf_counter()
                status, said = await ask(app, target.encode(), method)
                took = time.perf_counter() - start
                steps.append({"step": name, "status": status, "seconds": took, "cache_status": said.decode()})
    finally:
        await _clean(settings)
    return steps


# --- serving ----------------------------------------------------------------------------------------------------------


def serve(port: int, settings: Settings | None, note: Callable[[str], object]) -> int:
    """
    Serve the shop and its dashboard on *port* of this machine until it is interrupted, and return the exit code.

    Raises ConfigurationError without uvicorn, Unavailable where the port is taken, or Redis is not there.
    """
    if importlib.util.find_spec("uvicorn") is None:
        raise ConfigurationError(
            "the demo needs uvicorn: pip install '.[demo]' in a checkout (or demo --once, without)"
        )
    import uvicorn

    from echo_cache.dashboard import mount

    asyncio.run(_require_redis(settings))
    try:
        listener = socket.create_server((_HOST, port))
    except OSError as error:
        # Its own words repeat the address.
        why = os.strerror(error.errno) if error.errno else error
        raise Unavailable(f"port {port} cannot be listened on ({why}): choose another by --port") from error

    with listener:
        bound = listener.getsockname()[1]
        app = make_app(_make_cache(settings))
        app.router.lifespan_context = lambda app: _with_visitors(app, f"{_HOST}:{bound}".encode())
        # None: no token is asked for; it answers to this machine alone.
        mount(app, "/_cache", auth=None)
        note(f"the shop:      http://{_HOST}:{bound}/\nthe dashboard: http://{_HOST}:{bound}/_cache/\nCtrl-C ends it.")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            asyncio.run(_clean(settings))
    return 0


@asynccontextmanager
async def _with_visitors(app: Starlette, host: bytes) -> AsyncIterator[None]:
    visitors = asyncio.create_task(_visit(app, host))
    try:
        yield
    finally:
        visitors.cancel()
        await asyncio.wait([visitors])


async def _visit(app: Starlette, host: bytes) -> None:
    """Ask for one page after the other, as some visitors would, and purge now and then."""
    while True:
        if random.random() < 0.01:
            await ask(app, b"/purge?tag=catalog", "POST", host)
        else:
            (page,) = random.choices(_PAGES, _WEIGHTS)
            await ask(app, page.encode(), "GET", host)
        await asyncio.sleep(random.expovariate(1 / _PAUSE))
