"""What a request through the middleware is answered with, and what Cache-Status says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import http_sf
import pytest

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions
from echo_cache.testing import AskedApp, ManualClock, Response, ScriptedApp, call

HOUR = {"cache-control": "max-age=3600"}


def answering(
    status: int = 200, headers: dict[str, str] | None = None, body: bytes = b"hello"
) -> Callable[[AskedApp], Awaitable[None]]:
    async def script(asked: AskedApp) -> None:
        await asked.respond(status, HOUR if headers is None else headers, body)

    return script


def edge(app: Any, clock: ManualClock | None = None, policy: PolicyOptions | None = None, **options: Any) -> Any:
    clock = clock or ManualClock()
    return HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), policy, clock=clock), **options)


def cache_status(response: Response) -> tuple[str, dict[str, Any]]:
    """Return the name and the parameters of the last member, as another parser of Structured Fields reads them."""
    members: Any = http_sf.parse(response["cache-status"].encode(), tltype="list")
    name, parameters = members[-1]
    return str(name), {
        key: str(value) if not isinstance(value, bool | int) else value for key, value in parameters.items()
    }


async def test_second_request_is_answered_from_memory() -> None:
    app = ScriptedApp(answering())
    cached = edge(app)
    first = await call(cached)
    second = await call(cached)
    assert (first.status, first.body) == (second.status, second.body) == (200, b"hello")
    assert len(app.calls) == 1
    assert cache_status(first) == ("echo_cache", {"fwd": "uri-miss", "ttl": 3600, "stored": True})
    assert cache_status(second) == ("echo_cache", {"hit": True, "ttl": 3600})


async def test_age_counts_up_with_the_clock_and_ttl_down() -> None:
    clock = ManualClock()
    cached = edge(ScriptedApp(answering()), clock)
    await call(cached)
    ages = []
    for _ in range(4):
        response = await call(cached)
        ages.append((int(response["age"]), cache_status(response)[1]["ttl"]))
        clock.advance(1)
    assert ages == [(0, 3600), (1, 3599), (2, 3598), (3, 3597)]


async def test_stale_response_is_fetched_anew() -> None:
    clock = ManualClock()
    app = ScriptedApp(answering())
    cached = edge(app, clock)
    await call(cached)
    clock.advance(3601)
    assert cache_status(await call(cached))[1]["fwd"] in ("stale", "uri-miss")
    assert len(app.calls) == 2


async def test_client_that_has_the_stored_response_gets_a_304() -> None:
    app = ScriptedApp(answering(headers={**HOUR, "etag": '"v1"'}))
    cached = edge(app)
    await call(cached)
    response = await call(cached, headers={"if-none-match": '"v1"'})
    assert (response.status, response.body, response["content-length"]) == (304, b"", "")
    assert response["etag"] == '"v1"'
    assert cache_status(response)[1]["hit"] is True
    assert len(app.calls) == 1


async def test_own_etag_is_given_to_a_body_without_one_and_answers_with_304() -> None:
    app = ScriptedApp(answering())
    cached = edge(app)
    await call(cached)
    etag = (await call(cached))["etag"]
    assert etag.startswith('"')
    assert (await call(cached, headers={"if-none-match": etag})).status == 304
    assert len(app.calls) == 1


async def test_own_etag_depends_on_the_body_alone_however_it_was_sent() -> None:
    async def in_pieces(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        for piece in (b"he", b"", b"llo"):
            await asked.body(piece, more=True)
        await asked.body()

    whole, pieces = edge(ScriptedApp(answering())), edge(ScriptedApp(in_pieces))
    for cached in (whole, pieces):
        await call(cached)
    assert (await call(whole))["etag"] == (await call(pieces))["etag"]


async def test_head_is_answered_from_a_stored_get() -> None:
    app = ScriptedApp(answering())
    cached = edge(app)
    await call(cached)
    response = await call(cached, "HEAD")
    assert (response.status, response.body, response["content-length"]) == (200, b"", "5")
    assert len(app.calls) == 1


async def test_head_miss_goes_to_the_app_and_is_not_stored() -> None:
    app = ScriptedApp(answering(body=b""))
    cached = edge(app)
    for _ in range(2):
        assert cache_status(await call(cached, "HEAD"))[1]["fwd"] == "uri-miss"
    await call(cached)
    assert [asked.scope["method"] for asked in app.calls] == ["HEAD", "HEAD", "GET"]


@pytest.mark.parametrize(
    ("asked_for", "status", "body", "content_range"),
    [
        pytest.param("bytes=0-1", 206, b"he", "bytes 0-1/5", id="RFC 9110 14.1.2 first bytes"),
        pytest.param("bytes=-2", 206, b"lo", "bytes 3-4/5", id="RFC 9110 14.1.2 suffix"),
        pytest.param("bytes=9-", 416, b"", "bytes */5", id="RFC 9110 15.5.17 unsatisfiable"),
    ],
)
async def test_range_is_cut_from_the_stored_response(
    asked_for: str, status: int, body: bytes, content_range: str
) -> None:
    app = ScriptedApp(answering())
    cached = edge(app)
    await call(cached)
    response = await call(cached, headers={"range": asked_for})
    assert (response.status, response.body, response["content-range"]) == (status, body, content_range)
    assert cache_status(response)[1]["hit"] is True
    assert len(app.calls) == 1


async def test_range_request_without_a_stored_response_passes_through_as_it_is() -> None:
    async def ranged(asked: AskedApp) -> None:
        assert asked.headers["range"] == "bytes=0-1"
        await asked.respond(206, {**HOUR, "content-range": "bytes 0-1/5"}, b"he")

    app = ScriptedApp(ranged)
    cached = edge(app)
    for _ in range(2):
        response = await call(cached, headers={"range": "bytes=0-1"})
        assert (response.status, response.body) == (206, b"he")
    assert len(app.calls) == 2


async def test_range_request_that_renews_a_stale_response_is_stored_whole() -> None:
    clock = ManualClock()
    bodies = [b"hello", b"world"]

    async def changing(asked: AskedApp) -> None:
        assert "range" not in asked.headers or len(app.calls) == 0
        body = bodies[len(app.calls) - 1]
        await asked.respond(200, {**HOUR, "etag": f'"{body.decode()}"'}, body)

    app = ScriptedApp(changing)
    cached = edge(app, clock)
    await call(cached)
    clock.advance(3601)
    response = await call(cached, headers={"range": "bytes=0-1"})
    assert response.body in (b"wo", b"world")
    again = await call(cached)
    assert (again.body, cache_status(again)[1].get("hit")) == (b"world", True)
    assert len(app.calls) == 2


async def test_clients_condition_does_not_reach_a_fill() -> None:
    async def conditional(asked: AskedApp) -> None:
        assert "if-none-match" not in asked.headers
        await asked.respond(200, {**HOUR, "etag": '"v1"'}, b"hello")

    app = ScriptedApp(conditional)
    cached = edge(app)
    assert (await call(cached, headers={"if-none-match": '"v1"'})).status in (200, 304)
    assert (await call(cached)).body == b"hello"
    assert len(app.calls) == 1


async def test_clients_condition_reaches_an_app_whose_responses_are_private() -> None:
    async def private(asked: AskedApp) -> None:
        fresh = asked.headers.get("if-none-match") == '"mine"'
        headers = {"cache-control": "private, max-age=0", "etag": '"mine"'}
        await asked.respond(304 if fresh else 200, headers, b"" if fresh else b"mine")

    cached = edge(ScriptedApp(private))
    assert (await call(cached)).status == 200
    assert (await call(cached, headers={"if-none-match": '"mine"'})).status == 304


@pytest.mark.parametrize(
    ("request_", "options", "expected"),
    [
        pytest.param(("POST", "/", {}), {}, {"fwd": "method"}, id="post"),
        pytest.param(("GET", "/admin/x", {}), {"exclude": ["/admin/*"]}, {"fwd": "bypass"}, id="excluded"),
        pytest.param(("GET", "/x", {}), {"include": ["/api/*"]}, {"fwd": "bypass"}, id="not-included"),
        pytest.param(("GET", "/", {}), {"skip": lambda scope: True}, {"fwd": "bypass"}, id="skipped"),
        pytest.param(("GET", "/", {"cache-control": "only-if-cached"}), {}, {"detail": "only-if-cached"}, id="504"),
        pytest.param(
            ("GET", "/", {"cache-control": "no-store"}),
            {},
            {"fwd": "uri-miss"},
            id="no-store",
        ),
        pytest.param(("GET", "/", {"range": "bytes=0-1"}), {}, {"fwd": "uri-miss"}, id="range"),
        pytest.param(("OPTIONS", "/", {}), {}, {"fwd": "method"}, id="options"),
    ],
)
async def test_cache_status_is_on_every_response(request_: Any, options: Any, expected: dict[str, Any]) -> None:
    cached = edge(ScriptedApp(answering()), **options)
    name, parameters = cache_status(await call(cached, *request_))
    assert (name, parameters) == ("echo_cache", expected)


async def test_cache_status_carries_the_name_that_was_given() -> None:
    cached = HTTPCacheMiddleware(ScriptedApp(answering()), store=MemoryStore(), name="front door")
    await call(cached)
    assert cache_status(await call(cached))[0] == "front door"


async def test_cache_status_of_the_app_comes_first() -> None:
    cached = edge(ScriptedApp(answering(headers={**HOUR, "cache-status": "origin; hit"})))
    members: Any = http_sf.parse((await call(cached))["cache-status"].encode(), tltype="list")
    assert [str(name) for name, _ in members] == ["origin", "echo_cache"]


async def test_disabled_cache_neither_stores_nor_answers() -> None:
    app = ScriptedApp(answering())
    cached = edge(app)
    with cached.cache.disabled():
        for _ in range(2):
            assert cache_status(await call(cached))[1] == {"fwd": "bypass"}
    assert "hit" not in cache_status(await call(cached))[1]
    with cached.cache.disabled():
        assert cache_status(await call(cached))[1] == {"fwd": "bypass"}
    assert "hit" in cache_status(await call(cached))[1]
    assert len(app.calls) == 4


async def test_only_if_cached_is_a_504_and_the_app_is_not_asked() -> None:
    app = ScriptedApp(answering())
    cached = edge(app)
    response = await call(cached, headers={"cache-control": "only-if-cached"})
    assert response.status == 504
    assert len(app.calls) == 0
    await call(cached)
    assert (await call(cached, headers={"cache-control": "only-if-cached"})).status == 200


async def test_status_of_a_refusal_names_its_reason() -> None:
    cached = edge(ScriptedApp(answering(headers={"cache-control": "private"})))
    assert cache_status(await call(cached))[1] == {"fwd": "uri-miss", "detail": "private"}


async def test_repeated_fields_and_their_order_survive_storing() -> None:
    lines = [("cache-control", "max-age=60"), ("link", "<a>"), ("x-one", "1"), ("link", "<b>")]

    async def repeating(asked: AskedApp) -> None:
        await asked.start(200, lines)
        await asked.body(b"")

    cached = edge(ScriptedApp(repeating))
    await call(cached)
    second = await call(cached)
    kept = [(name.decode(), value.decode()) for name, value in second.headers if name in (b"link", b"x-one")]
    assert kept == [("link", "<a>"), ("x-one", "1"), ("link", "<b>")]


async def test_validation_by_the_app_freshens_and_costs_no_body() -> None:
    clock = ManualClock()

    async def validating(asked: AskedApp) -> None:
        if asked.headers.get("if-none-match") == '"v1"':
            await asked.respond(304, {**HOUR, "etag": '"v1"', "x-new": "yes"})
        else:
            await asked.respond(200, {**HOUR, "etag": '"v1"'}, b"hello")

    app = ScriptedApp(validating)
    cached = edge(app, clock)
    await call(cached)
    clock.advance(3601)
    validated = await call(cached)
    assert (validated.status, validated.body, validated["x-new"]) == (200, b"hello", "yes")
    assert cache_status(validated)[1] == {"fwd": "stale", "fwd-status": 304, "ttl": 3600}
    assert cache_status(await call(cached))[1] == {"hit": True, "ttl": 3600}
    assert len(app.calls) == 2


async def test_mismatching_304_is_followed_by_an_unconditional_call() -> None:
    clock = ManualClock()

    async def confused(asked: AskedApp) -> None:
        # An app that reads the request must find it complete, the second time as well.
        assert (await asked.receive())["type"] == "http.request"
        if "if-none-match" in asked.headers:
            await asked.respond(304, {"etag": '"other"'})
        else:
            await asked.respond(200, {**HOUR, "etag": '"v1"'}, b"body %d" % len(app.calls))

    app = ScriptedApp(confused)
    cached = edge(app, clock)
    await call(cached)
    clock.advance(3601)
    assert (await call(cached)).body == b"body 3"
    assert (await call(cached)).body == b"body 3"
    assert ["if-none-match" in asked.headers for asked in app.calls] == [False, True, False]


async def test_mismatching_304_to_a_request_of_its_own_is_followed_by_an_unconditional_call_too() -> None:
    async def confused(asked: AskedApp) -> None:
        assert (await asked.receive())["type"] == "http.request"
        headers = {"cache-control": "no-cache", "etag": '"v1"'}
        if "if-none-match" in asked.headers:
            await asked.respond(304, {"etag": '"other"'})
        else:
            await asked.respond(200, headers, b"body %d" % len(app.calls))

    app = ScriptedApp(confused)
    cached = edge(app)
    await call(cached)
    # Each validates for itself, in its own task, and the app reads the request twice.
    assert (await call(cached)).body == b"body 3"


async def test_ttl_of_a_path_pattern_applies() -> None:
    clock = ManualClock()
    app = ScriptedApp(answering(headers={}))
    cached = edge(app, clock, include={"/products/*": 5, "/other": None})
    await call(cached, path="/products/1")
    clock.advance(4)
    assert "hit" in cache_status(await call(cached, path="/products/1"))[1]
    clock.advance(2)
    assert "hit" not in cache_status(await call(cached, path="/products/1"))[1]


async def test_ignored_query_parameter_is_neither_in_the_key_nor_seen_by_the_app() -> None:
    app = ScriptedApp(answering())
    cached = edge(app, policy=PolicyOptions(ignored_query_parameters=["utm"]))
    await call(cached, path="/?a=1&utm=x")
    await call(cached, path="/?utm=y&a=1")
    assert [asked.scope["query_string"] for asked in app.calls] == [b"a=1"]


async def test_what_outer_middleware_does_to_an_answer_does_not_change_what_is_stored() -> None:
    cached = edge(ScriptedApp(answering()))

    async def meddling(scope: Any, receive: Any, send: Any) -> None:
        async def adding(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-added", b"1"))
            await send(message)

        await cached(scope, receive, adding)

    for _ in range(4):
        response = await call(meddling)
        assert [name for name, _ in response.headers].count(b"x-added") == 1
