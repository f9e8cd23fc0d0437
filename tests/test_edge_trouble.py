"""The cache in trouble, the app in trouble, and the end: what a request feels of them."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions, policy
from echo_cache.coordination import flight
from echo_cache.events import AppFailed, CacheFailed, Event
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call, open_request

HOUR = {"cache-control": "max-age=3600"}
LENIENT = {"cache-control": "max-age=10, stale-if-error=3600", "etag": '"1"'}
REVALIDATING = {"cache-control": "max-age=10, stale-while-revalidate=3600", "etag": '"1"'}


class Edge(HTTPCacheMiddleware):
    """The middleware with a clock to turn and the events that were seen."""

    def __init__(self, app: Any, store: Any = None, policy: PolicyOptions | None = None, **options: Any) -> None:
        self.clock = ManualClock()
        self.events: list[Event] = []
        observers = [self.events.append, *options.pop("observers", ())]
        store = MemoryStore(clock=self.clock) if store is None else store
        super().__init__(app, cache=Cache(store, policy, clock=self.clock, observers=observers, **options))

    def failures(self) -> list[str]:
        return [event.operation for event in self.events if isinstance(event, CacheFailed)]


async def hello(asked: AskedApp) -> None:
    await asked.respond(200, HOUR, b"hello")


# The cache in trouble.


@pytest.mark.parametrize("error", [ValueError("bug"), MemoryError(), OSError("gone"), KeyError("x")])
@pytest.mark.parametrize("method", ["get_nowait", "get", "put", "delete"])
@pytest.mark.parametrize("remote", [False, True])
async def test_store_that_raises_is_an_event_and_a_normal_answer(
    method: str, error: Exception, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    store.remote = remote
    app = ScriptedApp(hello)
    cached = Edge(app, store)

    def broken(*_: Any) -> Any:
        raise error

    async def broken_later(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(store, method, broken_later if method in ("get", "delete") else broken)
    cached.cache._hit_path = (store.get_nowait, cached.clock.time)
    for _ in range(2):
        assert [(await open_request(cached).response()).body for _ in range(3)] == [b"hello"] * 3
        assert (await call(cached, "HEAD")).status == 200
    assert (await call(cached, "POST")).status == 200
    await cached.cache.aclose()
    assert cached.failures() or (method == "get" and not remote)


async def test_store_that_cannot_be_read_does_not_end_the_sharing_of_a_call() -> None:
    class Unreadable(MemoryStore):
        remote = True

        async def get(self, key: Any, match: Any) -> Any:
            raise RuntimeError("bug in a store")

    app = ScriptedApp()
    cached = Edge(app, Unreadable())
    requests = [open_request(cached) for _ in range(20)]
    await (await app.called()).respond(200, HOUR, b"x")
    assert {(await request.response()).body for request in requests} == {b"x"}
    assert len(app.calls) == 1
    assert cached.failures() == ["get"]


async def test_status_tells_the_reason_also_where_the_store_cannot_be_read() -> None:
    class Unreadable(MemoryStore):
        remote = True

        async def get(self, key: Any, match: Any) -> Any:
            raise RuntimeError("bug in a store")

    response = await call(Edge(ScriptedApp(hello), Unreadable()), headers={"range": "bytes=0-1"})
    assert response["cache-status"] == "echo_cache; fwd=uri-miss"


async def test_observer_that_raises_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise ValueError("bug in an observer")

    cached = Edge(ScriptedApp(hello), observers=[broken])
    assert [(await call(cached)).body for _ in range(2)] == [b"hello"] * 2
    assert "bug in an observer" in caplog.text


@pytest.mark.parametrize("function", ["admit", "decide", "matches", "answer"])
async def test_bug_in_the_policy_is_an_event_and_a_normal_answer(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def varying(asked: AskedApp) -> None:
        await asked.respond(200, {**HOUR, "vary": "accept"}, b"hello")

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("bug in the policy")

    app = ScriptedApp(varying)
    cached = Edge(app)
    monkeypatch.setattr(policy, function, broken)
    for _ in range(3):
        requests = [open_request(cached, headers=headers) for headers in ({}, {}, {"range": "bytes=0-0"})]
        assert {(await request.response()).body for request in requests} == {b"hello"}
    assert cached.failures()


async def test_bug_in_freshening_asks_the_app_again_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def validating(asked: AskedApp) -> None:
        if "if-none-match" in asked.headers:
            await asked.respond(304)
        else:
            await asked.respond(200, {**HOUR, "etag": '"1"'}, b"hello")

    app = ScriptedApp(validating)
    cached = Edge(app)
    await call(cached)
    cached.clock.advance(3601)

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("bug in the policy")

    monkeypatch.setattr(policy, "freshen", broken)
    response = await call(cached)
    assert (response.status, response.body) == (200, b"hello")
    assert len(app.calls) == 3


# The app in trouble.


@pytest.mark.parametrize(
    ("method", "options"),
    [pytest.param("GET", {}, id="miss"), pytest.param("POST", {}, id="post"), pytest.param("HEAD", {}, id="head")],
)
async def test_error_of_the_app_is_raised_untouched(method: str, options: Any) -> None:
    error = LookupError("of the app")

    async def raising(asked: AskedApp) -> None:
        raise error

    with pytest.raises(LookupError) as raised:
        await call(Edge(ScriptedApp(raising)), method)
    assert raised.value is error
    assert raised.value.__cause__ is raised.value.__context__ is None


async def test_error_on_an_excluded_path_is_raised_untouched() -> None:
    error = LookupError("of the app")

    async def raising(asked: AskedApp) -> None:
        raise error

    cached = HTTPCacheMiddleware(ScriptedApp(raising), store=MemoryStore(), exclude=["/*"])
    with pytest.raises(LookupError) as raised:
        await call(cached)
    assert raised.value is error


async def fail_500(asked: AskedApp) -> None:
    await asked.respond(503, {}, b"sorry")


async def fail_raising(asked: AskedApp) -> None:
    raise ValueError("of the app")


async def fail_500_and_raise(asked: AskedApp) -> None:
    await asked.respond(500, {}, b"sorry")
    raise ValueError("of the app")


async def fail_silently(asked: AskedApp) -> None:
    pass


@pytest.mark.parametrize("failing", [fail_500, fail_raising, fail_500_and_raise, fail_silently])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("validator", [True, False])
async def test_stale_response_answers_in_place_of_a_failing_app(
    failing: Callable[[AskedApp], Any], method: str, validator: bool
) -> None:
    async def once(asked: AskedApp) -> None:
        headers = LENIENT if validator else {"cache-control": LENIENT["cache-control"]}
        await (asked.respond(200, headers, b"hello") if len(app.calls) == 1 else failing(asked))

    app = ScriptedApp(once)
    cached = Edge(app)
    await call(cached)
    cached.clock.advance(60)
    requests = [open_request(cached, method) for _ in range(3)]
    for request in requests:
        response = await request.response()
        assert (response.status, response.body) == (200, b"hello" if method == "GET" else b"")
        assert response["age"] == "60"
        assert "detail=stale-if-error" in response["cache-status"]
    assert len(app.calls) == (2 if method == "GET" else 4)
    assert any(isinstance(event, AppFailed) for event in cached.events)
    await cached.cache.aclose()


async def test_failure_answer_is_replaced_at_its_head_not_at_the_end_of_the_apps_work() -> None:
    app = ScriptedApp()
    cached = Edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, LENIENT, b"hello")
    await first.response()
    cached.clock.advance(60)
    second = open_request(cached)
    asked = await app.called()
    await asked.start(503)
    assert (await second.response()).body == b"hello"
    await asked.body(b"sorry")
    await asked.finish()


async def test_stale_answer_that_one_clients_request_allows_is_not_given_to_others() -> None:
    app = ScriptedApp()
    cached = Edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, {"cache-control": "max-age=10", "etag": '"1"'}, b"hello")
    await first.response()
    cached.clock.advance(60)
    lenient = open_request(cached, headers={"cache-control": "stale-if-error=600"})
    strict = open_request(cached)
    await (await app.called()).respond(503)
    assert (await lenient.response()).status == 200
    await (await app.called()).respond(503)
    assert (await strict.response()).status == 503


@pytest.mark.parametrize("failing", [fail_500, fail_raising])
async def test_failure_is_passed_on_where_nothing_stale_is_allowed(failing: Callable[[AskedApp], Any]) -> None:
    async def once(asked: AskedApp) -> None:
        headers = {"cache-control": "max-age=10, stale-if-error=600, must-revalidate", "etag": '"1"'}
        await (asked.respond(200, headers, b"hello") if len(app.calls) == 1 else failing(asked))

    app = ScriptedApp(once)
    cached = Edge(app)
    await call(cached)
    cached.clock.advance(60)
    if failing is fail_500:
        assert (await call(cached)).status == 503
    else:
        with pytest.raises(ValueError, match="of the app"):
            await call(cached)


# Background refresh.


async def test_refresh_is_one_and_delays_nobody() -> None:
    app = ScriptedApp()
    cached = Edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, REVALIDATING, b"old")
    await first.response()
    cached.clock.advance(60)
    for headers in ({}, {}, {"cookie": "a=b"}):
        response = await call(cached, headers=headers)
        assert response.body == b"old"
        assert "hit" in response["cache-status"]
    asked = await app.called()
    assert len(app.calls) == 2
    await asked.respond(200, REVALIDATING, b"new")
    await cached.cache.aclose()
    assert (await call(cached)).body == b"new"
    assert len(app.calls) == 2


async def test_error_in_a_refresh_is_logged_and_the_stale_response_stays(caplog: pytest.LogCaptureFixture) -> None:
    app = ScriptedApp()
    cached = Edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, REVALIDATING, b"old")
    await first.response()
    cached.clock.advance(60)
    assert (await call(cached)).body == b"old"
    await (await app.called()).fail(ValueError("of the app"))
    await cached.cache.aclose()
    assert "of the app" in caplog.text
    assert caplog.text.count("Traceback") == 1
    assert any(isinstance(event, AppFailed) for event in cached.events)
    assert (await call(cached)).body == b"old"
    assert len(cached.cache.flights) == 0, "after a failure there is a pause"
    cached.clock.advance(1.1)
    assert (await call(cached)).body == b"old"
    (await app.called()).scope.clear()


async def test_refresh_is_not_the_request_that_set_it_off_and_survives_its_client() -> None:
    app = ScriptedApp()
    cached = Edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, REVALIDATING, b"old")
    await first.response()
    cached.clock.advance(60)
    request = open_request(cached)
    asked = await app.called()
    await request.response()
    request.disconnect()
    assert (await asked.receive())["type"] == "http.request"
    await asked.respond(200, REVALIDATING, b"new")
    await cached.cache.aclose()
    assert (await call(cached)).body == b"new"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"cache-control": "private"}, id="private"),
        pytest.param({"content-type": "text/event-stream"}, id="event-stream"),
    ],
)
async def test_refresh_that_brings_what_is_not_for_others_goes_to_nobody(headers: dict[str, str]) -> None:
    app = ScriptedApp()
    cached = Edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, REVALIDATING, b"old")
    await first.response()
    cached.clock.advance(60)
    await call(cached, headers={"cookie": "user=a"})
    refresh = await app.called()
    assert refresh.headers["cookie"] == "user=a"
    # Another user who wants no stale answer comes aboard; the private answer to the first is not for her.
    other = open_request(cached, headers={"cookie": "user=b", "cache-control": "no-cache"})
    for _ in range(5):
        await asyncio.sleep(0)
    await refresh.start(200, headers)
    own = await app.called()
    assert own.headers["cookie"] == "user=b"
    await own.respond(200, headers, b"for b")
    assert (await other.response()).body == b"for b"
    await refresh.ended()
    assert refresh.cancelled  # nobody wants the rest


async def test_refresh_that_never_ends_is_cancelled_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "WATCH_AFTER", 0.001)
    app = ScriptedApp()
    cached = Edge(app, fill_timeout=0.002)
    first = open_request(cached)
    await (await app.called()).respond(200, REVALIDATING, b"old")
    await first.response()
    cached.clock.advance(60)
    await call(cached)
    asked = await app.called()
    await asked.ended()
    assert asked.cancelled
    await call(cached)
    await app.called()


async def test_deadline_of_a_refresh_does_not_break_off_what_clients_are_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flight, "WATCH_AFTER", 0.001)
    app = ScriptedApp()
    cached = Edge(app, fill_timeout=0.005)
    first = open_request(cached)
    await (await app.called()).respond(200, REVALIDATING, b"old")
    await first.response()
    cached.clock.advance(60)
    await call(cached)
    refresh = await app.called()
    reload = open_request(cached, headers={"cache-control": "no-cache"})
    await refresh.start(200, HOUR)
    await reload.message()
    while True:
        await asyncio.sleep(0)
        if not len(cached.cache.flights):
            break
    for _ in range(5):
        await asyncio.sleep(0)  # where a cancelled call would end
    await refresh.body(b"new", more=True)
    await reload.message()
    # Overdue, it is no longer the cache's own affair: it ends with the last client.
    assert not refresh.cancelled
    reload.cancel()
    await refresh.ended()
    assert refresh.cancelled


# The end.


async def test_closing_waits_for_what_is_under_way() -> None:
    app = ScriptedApp()
    cached = Edge(app)
    request = open_request(cached)
    asked = await app.called()
    closing = asyncio.ensure_future(cached.cache.aclose())
    await asked.respond(200, HOUR, b"x")
    await closing
    assert (await request.response()).body == b"x"
    assert not asked.cancelled


@pytest.mark.parametrize("head", [False, True])
async def test_closing_cancels_what_is_late(head: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    app = ScriptedApp()
    cached = Edge(app)
    leader, waiter = open_request(cached), open_request(cached)
    asked = await app.called()
    if head:
        await asked.start(200, HOUR)
        await leader.message()
        await waiter.message()
    await cached.cache.aclose(deadline=0.0)
    assert asked.cancelled
    if head:
        # Broken off in mid-stream, and no request mistakes the cancellation of the call for its own.
        for request in (leader, waiter):
            with pytest.raises(flight.Interrupted):
                await request.response()
    else:
        # Nothing was sent yet: each asks the app itself.
        for _ in range(2):
            await (await app.called()).respond(200, HOUR, b"x")
        assert {(await request.response()).body for request in (leader, waiter)} == {b"x"}
    assert len(cached.cache.flights) == cached.cache.flights.held_bytes == 0
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_closing_gives_up_on_a_call_that_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    let_go = asyncio.Event()

    async def stubborn(asked: AskedApp) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    app = ScriptedApp(stubborn)
    cached = Edge(app)
    request = open_request(cached)
    await app.called()
    await cached.cache.aclose(deadline=0.01)
    assert "do not end" in caplog.text
    request.cancel()
    let_go.set()
    await app.calls[0].ended()


async def test_cache_that_was_closed_twice_works_again() -> None:
    app = ScriptedApp(hello)
    cached = Edge(app)
    await call(cached)
    await cached.cache.aclose()
    await cached.cache.aclose()
    requests = [open_request(cached, path="/other") for _ in range(5)]
    assert {(await request.response()).body for request in requests} == {b"hello"}
    assert len(app.calls) == 2


async def test_closing_from_within_a_handler_does_not_wait_for_itself() -> None:
    async def closing(asked: AskedApp) -> None:
        await cached.cache.aclose()
        await hello(asked)

    cached = Edge(ScriptedApp(closing))
    assert (await asyncio.wait_for(call(cached), 2)).body == b"hello"
