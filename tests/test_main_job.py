"""The main job, on a real Redis: one line around an app, answers from memory, then from Redis, in every worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, RedisStore, TwoLevelConfig, TwoLevelStore
from echo_cache.testing import ScriptedApp, call


async def page(asked: Any) -> None:
    language = dict(asked.scope["headers"]).get(b"accept-language", b"none")
    headers = {"cache-control": "max-age=60", "content-type": "text/plain", "etag": '"1"'}
    if asked.scope["path"] == "/varies":
        headers["vary"] = "Accept-Language"
    await asked.respond(200, headers, b"hello " + language)


class Worker:
    """A worker process in small: the same app and the same Redis, a memory of its own."""

    def __init__(self, app: Any, redis_url: str, **config: Any) -> None:
        self.store = TwoLevelStore(MemoryStore(), RedisStore(redis_url, timeout=5), TwoLevelConfig(**config))
        self.cache = Cache(self.store)
        self.app = HTTPCacheMiddleware(app, cache=self.cache)

    async def ask(self, path: str = "/", method: str = "GET", **headers: str) -> Any:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return await call(self.app, method=method, path=path, headers=fields)

    async def written(self) -> None:
        """Wait until what was stored in memory is in Redis too."""
        while self.cache._tasks:
            await next(iter(self.cache._tasks))


@pytest.fixture
async def workers(redis_url: str) -> AsyncIterator[tuple[ScriptedApp, Worker, Worker]]:
    app = ScriptedApp(page)
    a, b = Worker(app, redis_url), Worker(app, redis_url)
    yield app, a, b
    for worker in (a, b):
        await worker.cache.aclose()


async def test_memory_answers_first_then_redis_in_every_worker(workers: tuple[ScriptedApp, Worker, Worker]) -> None:
    app, a, b = workers
    assert (await a.ask())["cache-status"] == "echo_cache; fwd=uri-miss; ttl=60; stored"
    assert "; hit" in (await a.ask())["cache-status"]
    await a.written()
    found = await b.ask()
    assert "; hit" in found["cache-status"]
    assert found.body == b"hello none"
    assert found["age"] == "0"
    assert b.store.get_stats().l2_hits == 1
    assert "; hit" in (await b.ask())["cache-status"]
    assert b.store.get_stats().l2_hits == 1, "the second time it is in memory"
    assert len(app.calls) == 1


@pytest.mark.parametrize(
    ("method", "headers", "status", "body"),
    [
        pytest.param("HEAD", {}, 200, b"", id="head"),
        pytest.param("GET", {"if_none_match": '"1"'}, 304, b"", id="304"),
        pytest.param("GET", {"range": "bytes=0-4"}, 206, b"hello", id="206"),
        pytest.param("GET", {"range": "bytes=99-"}, 416, b"", id="416"),
        pytest.param("GET", {"cache_control": "only-if-cached"}, 200, b"hello none", id="only-if-cached"),
        pytest.param("GET", {"cache_control": "max-age=30"}, 200, b"hello none", id="max-age"),
    ],
)
async def test_what_only_redis_has_answers_every_kind_of_request(
    workers: tuple[ScriptedApp, Worker, Worker], method: str, headers: dict[str, str], status: int, body: bytes
) -> None:
    app, a, b = workers
    await a.ask()
    await a.written()
    found = await b.ask(method=method, **headers)
    assert (found.status, found.body) == (status, body)
    assert "; hit" in found["cache-status"]
    assert len(app.calls) == 1


async def test_variants_are_found_in_redis_by_the_fields_that_select_them(
    workers: tuple[ScriptedApp, Worker, Worker],
) -> None:
    app, a, b = workers
    for language in ("de", "fr"):
        await a.ask("/varies", accept_language=language)
    await a.written()
    for language in ("de", "fr"):
        assert (await b.ask("/varies", accept_language=language)).body == b"hello " + language.encode()
    assert "fwd=vary-miss" in (await b.ask("/varies", accept_language="it"))["cache-status"]
    assert len(app.calls) == 3


async def test_an_unsafe_request_in_one_worker_deletes_the_page_in_redis(
    workers: tuple[ScriptedApp, Worker, Worker],
) -> None:
    app, a, b = workers
    await a.ask()
    await a.written()
    await a.ask(method="PUT")
    assert "fwd=uri-miss" in (await b.ask())["cache-status"]
    assert len(app.calls) == 3


async def test_memory_holds_an_entry_no_longer_than_its_cap_and_redis_goes_on(redis_url: str) -> None:
    app = ScriptedApp(page)
    worker = Worker(app, redis_url, l1_ttl=0, l2_ttl=60)
    await worker.ask()
    await worker.written()
    assert "; hit" in (await worker.ask())["cache-status"]
    assert worker.store.get_stats().l2_hits == 1
    assert len(app.calls) == 1
    await worker.cache.aclose()
