"""One call of the app for all who wait for the same thing; and nobody is harmed by who leaves."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import pytest

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions
from echo_cache.coordination import flight
from echo_cache.coordination.marks import Invalidation, Kind
from echo_cache.testing import AskedApp, ClientRequest, ManualClock, ScriptedApp, call, open_request

HOUR = {"cache-control": "max-age=3600"}


def edge(app: Any, clock: ManualClock | None = None, policy: PolicyOptions | None = None, **options: Any) -> Any:
    clock = clock or ManualClock()
    return HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), policy, clock=clock, **options))


async def aboard(cached: Any, count: int) -> None:
    """Wait until *count* requests are aboard the one flight there is."""
    while True:
        flights = list(cached.cache.flights._by_key.values())
        if len(flights) == 1 and len(flights[0]._passengers) == count:
            return
        await asyncio.sleep(0)


async def key_is_free(cached: Any) -> None:
    """Wait until there is no flight to board."""
    while True:
        await asyncio.sleep(0)
        if not len(cached.cache.flights):
            return


async def bodies(requests: list[ClientRequest]) -> set[bytes]:
    return {(await request.response()).body for request in requests}


async def test_500_requests_for_a_cold_key_are_one_call() -> None:
    app = ScriptedApp()
    cached = edge(app)
    requests = [open_request(cached) for _ in range(500)]
    asked = await app.called()
    await aboard(cached, 500)
    await asked.respond(200, HOUR, b"hello")
    assert await bodies(requests) == {b"hello"}
    assert len(app.calls) == 1
    assert cached.cache.stats().collapsed == 499
    statuses = [(await request.response())["cache-status"] for request in requests]
    assert statuses[0] == "echo_cache; fwd=uri-miss; ttl=3600; stored"
    assert set(statuses[1:]) == {"echo_cache; fwd=uri-miss; ttl=3600; collapsed"}


@pytest.mark.parametrize("how", ["disconnect", "cancel"])
async def test_500_requests_are_one_call_when_the_leaders_client_leaves(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "WATCH_AFTER", 0.0)
    app = ScriptedApp()
    cached = edge(app)
    requests = [open_request(cached) for _ in range(500)]
    asked = await app.called()
    await aboard(cached, 500)
    getattr(requests[0], how)()
    await asyncio.wait([requests[0].task])
    await asked.respond(200, HOUR, b"hello")
    assert await bodies(requests[1:]) == {b"hello"}
    assert requests[0].messages == []
    assert len(app.calls) == 1
    assert (await call(cached)).body == b"hello"


@pytest.mark.parametrize("how", ["disconnect", "cancel"])
async def test_last_one_to_leave_ends_the_call_and_the_app_hears_of_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "WATCH_AFTER", 0.0)
    app = ScriptedApp()
    cached = edge(app)
    requests = [open_request(cached) for _ in range(3)]
    asked = await app.called()
    await aboard(cached, 3)
    assert (await asked.receive())["type"] == "http.request"
    heard = asyncio.ensure_future(asked.receive())
    for request in requests:
        assert not asked.cancelled
        getattr(request, how)()
        await asyncio.wait([request.task])
    assert (await heard)["type"] == "http.disconnect"
    await asked.ended()
    assert asked.cancelled
    assert len(cached.cache.flights) == 0
    # And the key is free.
    again = open_request(cached)
    await (await app.called()).respond(200, HOUR, b"anew")
    assert (await again.response()).body == b"anew"


async def test_app_that_goes_on_although_it_was_cancelled_costs_no_memory() -> None:
    held = []

    async def stubborn(asked: AskedApp) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asked.start(200, HOUR)
            for _ in range(100):
                await asked.body(b"x" * 1000, more=True)
                held.append(cached.cache.flights.held_bytes)

    app = ScriptedApp(stubborn)
    cached = edge(app)
    request = open_request(cached)
    asked = await app.called()
    request.cancel()
    await asked.ended()
    await asyncio.sleep(0)
    assert held == [0] * 100
    assert cached.cache.filling_bytes == cached.cache.flights.held_bytes == 0


@pytest.mark.parametrize("who", ["leader", "waiter"])
@pytest.mark.parametrize("turns", range(14))
async def test_cancelling_one_at_each_await_harms_nobody(who: str, turns: int) -> None:
    async def slow(asked: AskedApp) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asked.start(200, HOUR)
        for letter in (b"a", b"b", b"c"):
            await asyncio.sleep(0)
            await asked.body(letter, more=True)
        await asyncio.sleep(0)
        await asked.body(b"d")

    app = ScriptedApp(slow)
    cached = edge(app)
    requests = [open_request(cached) for _ in range(4)]
    victim = requests[0 if who == "leader" else 2]
    for _ in range(turns):
        await asyncio.sleep(0)
    victim.cancel()
    await asyncio.wait([victim.task])
    assert await bodies([request for request in requests if request is not victim]) == {b"abcd"}
    assert (await call(cached)).body == b"abcd"
    # A leader that is gone before anybody has come takes its call along.
    assert len(app.calls) <= 1 + (who == "leader" and turns == 0)
    assert len(cached.cache.flights) == cached.cache.flights.held_bytes == cached.cache.filling_bytes == 0


@pytest.mark.parametrize("turns", range(10))
async def test_cancelling_the_only_one_at_each_await_leaves_nothing_behind(turns: int) -> None:
    async def slow(asked: AskedApp) -> None:
        await asyncio.sleep(0)
        await asked.start(200, HOUR)
        await asyncio.sleep(0)
        await asked.body(b"a", more=True)
        await asyncio.sleep(0)
        await asked.body(b"b")

    app = ScriptedApp(slow)
    cached = edge(app)
    request = open_request(cached)
    for _ in range(turns):
        await asyncio.sleep(0)
    request.cancel()
    await asyncio.wait([request.task])
    for asked in app.calls:
        await asked.ended()
    assert (await call(cached)).body == b"ab"
    assert len(cached.cache.flights) == cached.cache.flights.held_bytes == cached.cache.filling_bytes == 0


async def test_waiters_get_head_and_chunks_as_they_come_and_late_ones_all_from_the_beginning() -> None:
    app = ScriptedApp()
    cached = edge(app)
    leader, waiter = open_request(cached), open_request(cached)
    asked = await app.called()
    await asked.start(200, {**HOUR, "x-one": "1"})
    assert (await leader.message())["status"] == (await waiter.message())["status"] == 200
    await asked.body(b"one", more=True)
    assert (await leader.message())["body"] == (await waiter.message())["body"] == b"one"
    late = open_request(cached)
    await asked.body(b"two", more=True)
    assert [(await late.message()).get("body") for _ in range(3)] == [None, b"one", b"two"]
    await asked.body(b"three")
    await asked.finish()
    requests = [leader, waiter, late]
    assert await bodies(requests) == {b"onetwothree"}
    assert {(await request.response())["x-one"] for request in requests} == {"1"}
    assert len(app.calls) == 1


UNSHAREABLE = [
    pytest.param(200, {"cache-control": "private, max-age=60"}, id="private"),
    pytest.param(200, {"cache-control": "no-store"}, id="no-store"),
    pytest.param(200, {**HOUR, "set-cookie": "a=b"}, id="set-cookie"),
    pytest.param(200, {**HOUR, "content-type": "text/event-stream"}, id="event-stream"),
    pytest.param(200, {**HOUR, "content-length": "99999999"}, id="too-large"),
    pytest.param(200, {**HOUR, "vary": "*"}, id="vary-star"),
    pytest.param(500, {}, id="error"),
    pytest.param(200, {"cache-control": "no-cache", "etag": '"1"'}, id="no-cache"),
]


@pytest.mark.parametrize(("status", "headers"), UNSHAREABLE)
async def test_response_that_is_for_one_alone_releases_the_others_at_its_head(
    status: int, headers: dict[str, str]
) -> None:
    app = ScriptedApp()
    cached = edge(app)
    requests = [open_request(cached) for _ in range(20)]
    calls = [await app.called()]
    await aboard(cached, 20)
    await calls[0].start(status, headers)
    calls += [await app.called() for _ in range(19)]  # while the first is still at work
    # A second wave does not queue at all.
    second = [open_request(cached) for _ in range(20)]
    calls += [await app.called() for _ in range(20)]
    for number, asked in enumerate(calls):
        if number:
            await asked.start(status, headers)
        await asked.body(b"for %d" % number)
        await asked.finish()
    assert len(await bodies([*requests, *second])) == 40
    assert len(app.calls) == 40


async def test_response_that_can_be_stored_ends_the_memory_of_one_that_could_not() -> None:
    clock = ManualClock()
    app = ScriptedApp()
    cached = edge(app, clock)
    first = open_request(cached)
    await (await app.called()).respond(200, {"cache-control": "private"})
    await first.response()
    second = open_request(cached)
    await (await app.called()).respond(200, HOUR, b"shared")
    await second.response()
    clock.advance(3601)
    third = [open_request(cached) for _ in range(5)]
    await (await app.called()).respond(200, HOUR, b"shared")
    assert await bodies(third) == {b"shared"}
    assert len(app.calls) == 3


async def test_memory_of_an_uncacheable_key_ends_after_its_time() -> None:
    clock = ManualClock()
    app = ScriptedApp()
    cached = edge(app, clock, policy=PolicyOptions(hit_for_miss=10))
    first = open_request(cached)
    await (await app.called()).respond(200, {"cache-control": "private"})
    await first.response()
    clock.advance(11)
    requests = [open_request(cached) for _ in range(5)]
    asked = await app.called()
    await aboard(cached, 5)
    await asked.respond(200, HOUR, b"x")
    assert await bodies(requests) == {b"x"}
    assert len(app.calls) == 2


async def test_each_request_validates_a_no_cache_response_for_itself_without_queueing() -> None:
    app = ScriptedApp()
    cached = edge(app)
    first = open_request(cached)
    await (await app.called()).respond(200, {"cache-control": "no-cache", "etag": '"1"'}, b"x")
    await first.response()
    for _ in range(2):
        requests = [open_request(cached) for _ in range(10)]
        calls = [await app.called() for _ in range(10)]  # all at once
        for asked in calls:
            assert asked.headers["if-none-match"] == '"1"'
            await asked.respond(304, {"cache-control": "no-cache", "etag": '"1"'})
        assert await bodies(requests) == {b"x"}


async def test_odd_request_of_one_client_does_not_end_the_sharing_of_others() -> None:
    app = ScriptedApp()
    cached = edge(app)
    odd = open_request(cached, headers={"x-http-method-override": "DELETE"})
    await (await app.called()).respond(200, HOUR, b"deleted")
    await odd.response()
    requests = [open_request(cached) for _ in range(5)]
    await (await app.called()).respond(200, HOUR, b"shared")
    assert await bodies(requests) == {b"shared"}
    assert len(app.calls) == 2


async def test_who_comes_when_the_head_has_told_what_it_varies_on_comes_aboard() -> None:
    app = ScriptedApp()
    cached = edge(app)
    english = {"accept-language": "en"}
    leader = open_request(cached, headers=english)
    asked = await app.called()
    await asked.start(200, {**HOUR, "vary": "accept-language"})
    await leader.message()
    late, other = open_request(cached, headers=english), open_request(cached, headers={"accept-language": "de"})
    await (await app.called()).respond(200, {**HOUR, "vary": "accept-language"}, b"de")
    await asked.body(b"en")
    await asked.finish()
    assert await bodies([leader, late]) == {b"en"}
    assert (await other.response()).body == b"de"
    assert len(app.calls) == 2


async def test_range_or_no_store_of_one_client_does_not_end_the_sharing_of_others() -> None:
    clock = ManualClock()

    async def script(asked: AskedApp) -> None:
        await asked.respond(200, {**HOUR, "etag": '"1"'}, b"x")

    app = ScriptedApp(script)
    cached = edge(app, clock)
    await call(cached)
    clock.advance(3601)
    await call(cached, headers={"range": "bytes=0-0"})
    await call(cached, path="/other", headers={"cache-control": "no-store"})
    assert not cached.cache._uncacheable._known


async def test_fields_for_one_client_do_not_reach_those_who_wait_with_it() -> None:
    app = ScriptedApp()
    cached = edge(app)
    leader, waiter = open_request(cached), open_request(cached)
    asked = await app.called()
    await aboard(cached, 2)
    headers = {"cache-control": 'max-age=60, private="set-cookie"', "set-cookie": "session=1", "connection": "x-hop"}
    await asked.respond(200, {**headers, "x-hop": "1"}, b"x")
    assert (await leader.response())["set-cookie"] == "session=1"
    shared = await waiter.response()
    assert (shared.body, shared["set-cookie"], shared["x-hop"]) == (b"x", "", "")


async def test_groups_with_different_languages_each_get_their_own_in_at_most_three_calls() -> None:
    async def speaking(asked: AskedApp) -> None:
        language = asked.headers["accept-language"]
        await asyncio.sleep(0)
        await asked.respond(200, {**HOUR, "vary": "Accept-Language"}, language.encode())

    app = ScriptedApp(speaking)
    cached = edge(app)
    requests = {
        language: [open_request(cached, headers={"accept-language": language}) for _ in range(250)]
        for language in ("en", "de")
    }
    for language, group in requests.items():
        assert await bodies(group) == {language.encode()}
    assert len(app.calls) <= 3
    await cached.cache.log.append([Invalidation(Kind.ALL)])
    again = [open_request(cached, headers={"accept-language": language}) for language in ("en", "de") * 100]
    assert await bodies(again) == {b"en", b"de"}
    assert len(app.calls) <= 5


async def test_requests_with_credentials_do_not_wait_with_those_without() -> None:
    app = ScriptedApp()
    cached = edge(app)
    plain = [open_request(cached) for _ in range(3)]
    with_cookie = [open_request(cached, headers={"cookie": "a=b"}) for _ in range(3)]
    first, second = await app.called(), await app.called()
    assert ["cookie" in asked.headers for asked in (first, second)] == [False, True]
    await first.respond(200, HOUR, b"plain")
    await second.respond(200, HOUR, b"cookie")
    assert await bodies(plain) == {b"plain"}
    assert await bodies(with_cookie) == {b"cookie"}
    assert len(app.calls) == 2


async def test_error_of_the_app_reaches_each_waiting_request_once_and_is_the_same_one() -> None:
    app = ScriptedApp()
    cached = edge(app)
    requests = [open_request(cached) for _ in range(200)]
    asked = await app.called()
    await aboard(cached, 200)
    error = ValueError("of the app")
    await asked.fail(error)
    depths = []
    for request in requests:
        with pytest.raises(ValueError, match="of the app") as raised:
            await request.response()
        assert raised.value is error
        depths.append(len(traceback.extract_tb(request.task.exception().__traceback__)))  # type: ignore[union-attr]
    assert max(depths) < 20
    assert len(app.calls) == 1
    assert cached.cache.stats().stored == 0
    assert len(cached.cache.flights) == 0


async def test_error_in_mid_body_reaches_everyone_aboard_and_nothing_is_stored() -> None:
    app = ScriptedApp()
    cached = edge(app)
    requests = [open_request(cached) for _ in range(3)]
    asked = await app.called()
    await asked.start(200, HOUR)
    await asked.body(b"half", more=True)
    error = ValueError("of the app")
    await asked.fail(error)
    for request in requests:
        with pytest.raises(ValueError, match="of the app") as raised:
            await request.response()
        assert raised.value is error
        assert request.so_far().body == b"half"
    assert cached.cache.stats().stored == 0
    assert cached.cache.filling_bytes == cached.cache.flights.held_bytes == 0


async def test_error_right_after_the_response_reaches_the_server_as_without_a_cache() -> None:
    error = ValueError("after a 500")

    async def server_error(asked: AskedApp) -> None:
        await asked.respond(500, {}, b"oops")
        raise error

    request = open_request(edge(ScriptedApp(server_error)))
    with pytest.raises(ValueError, match="after a 500") as raised:
        await request.response()
    assert raised.value is error
    assert request.so_far().body == b"oops"


async def test_deadline_frees_the_key_and_one_of_those_who_waited_starts_anew() -> None:
    app = ScriptedApp()
    cached = edge(app)
    requests = [open_request(cached) for _ in range(50)]
    first = await app.called()
    await aboard(cached, 50)
    # Deadline after deadline, and never more than one of them begins a call.
    later = []
    for _ in range(6):
        (flying,) = cached.cache.flights._by_key.values()
        flying.expire()
        later.append(await app.called())
    assert len(app.calls) == 7
    assert not first.cancelled
    await later[-1].respond(200, HOUR, b"at last")
    for asked in (first, *later[:-1]):
        await asked.respond(200, HOUR, b"late")
    assert await bodies(requests) == {b"at last", b"late"}
    assert {(await request.response()).status for request in requests} == {200}


async def test_deadline_lets_go_of_a_stream_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "WATCH_AFTER", 0.001)
    app = ScriptedApp()
    cached = edge(app, fill_timeout=0.002)
    first = open_request(cached)
    asked = await app.called()
    await asked.start(200, HOUR)
    await first.message()
    await key_is_free(cached)
    second = open_request(cached)
    other = await app.called()
    for one, body in ((asked, b"first"), (other, b"second")):
        if one is other:
            await one.start(200, HOUR)
        await one.body(body)
        await one.finish()
    assert ((await first.response()).body, (await second.response()).body) == (b"first", b"second")


async def test_flood_of_no_cache_requests_is_one_call_at_a_time() -> None:
    most = running = 0

    async def counting(asked: AskedApp) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await asked.respond(200, HOUR, b"x")
        running -= 1

    app = ScriptedApp(counting)
    cached = edge(app)
    await call(cached)
    for _ in range(5):
        requests = [open_request(cached, headers={"cache-control": "no-cache"}) for _ in range(100)]
        assert await bodies(requests) == {b"x"}
        statuses = {(await request.response())["cache-status"] for request in requests}
        assert all("fwd=request" in status for status in statuses)
    assert most == 1
    assert len(app.calls) < 20


async def test_no_cache_request_is_not_answered_by_a_flight_that_only_found_something_stored() -> None:
    class Slow(MemoryStore):
        """What it has is found by looking further only."""

        remote = True

        def get_nowait(self, key: Any) -> Any:
            return None

        async def get(self, key: Any, match: Any) -> Any:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return await super().get(key, match)

    clock = ManualClock()
    app = ScriptedApp()
    cached = HTTPCacheMiddleware(app, cache=Cache(Slow(clock=clock), clock=clock))
    first = open_request(cached)
    await (await app.called()).respond(200, HOUR, b"old")
    await first.response()
    plain = open_request(cached)
    reload = open_request(cached, headers={"cache-control": "no-cache"})
    assert (await plain.response()).body == b"old"
    await (await app.called()).respond(200, HOUR, b"new")
    assert (await reload.response()).body == b"new"


async def test_validation_by_one_is_good_for_all_who_wait() -> None:
    clock = ManualClock()
    app = ScriptedApp()
    cached = edge(app, clock)
    first = open_request(cached)
    await (await app.called()).respond(200, {**HOUR, "etag": '"1"'}, b"hello")
    await first.response()
    clock.advance(3601)
    requests = [open_request(cached) for _ in range(50)]
    asked = await app.called()
    await aboard(cached, 50)
    assert asked.headers["if-none-match"] == '"1"'
    await asked.start(304, {**HOUR, "etag": '"1"'})
    # Answered at the head already: what else the app does with its 304 is its own affair.
    assert await bodies(requests) == {b"hello"}
    await asked.body()
    await asked.finish()
    assert len(app.calls) == 2
    assert "hit" in (await call(cached))["cache-status"]


async def test_validation_that_sets_a_cookie_is_for_the_asker_alone() -> None:
    clock = ManualClock()
    app = ScriptedApp()
    cached = edge(app, clock)
    first = open_request(cached)
    await (await app.called()).respond(200, {**HOUR, "etag": '"1"'}, b"hello")
    await first.response()
    clock.advance(3601)
    leader, waiter = open_request(cached), open_request(cached)
    asked = await app.called()
    await aboard(cached, 2)
    await asked.respond(304, {**HOUR, "etag": '"1"', "set-cookie": "session=1"})
    assert (await leader.response())["set-cookie"] == "session=1"
    await (await app.called()).respond(200, HOUR, b"own")
    assert (await waiter.response()).body == b"own"
    assert (await waiter.response())["set-cookie"] == ""


async def test_clients_are_not_watched_in_a_loop_that_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some test clients give http.request whenever they are asked."""
    monkeypatch.setattr(flight, "WATCH_AFTER", 0.0)
    app = ScriptedApp()
    cached = edge(app)

    asked_for = 0

    async def always(scope: Any, receive: Any, send: Any) -> None:
        async def ready() -> Any:
            nonlocal asked_for
            asked_for += 1
            if asked_for > 100:
                raise RuntimeError("this would go on for ever")
            return {"type": "http.request", "body": b"", "more_body": False}

        await cached(scope, ready, send)

    request = open_request(always)
    asked = await app.called()
    while not cached.cache.flights._watches:  # noqa: ASYNC110  # nothing else tells of it
        await asyncio.sleep(0)
    await asked.respond(200, HOUR, b"x")
    assert (await request.response()).body == b"x"
    assert asked_for == 2


async def test_receive_that_raises_is_not_taken_for_a_client_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "WATCH_AFTER", 0.0)
    app = ScriptedApp()
    cached = edge(app)

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        async def broken() -> Any:
            raise RuntimeError("nothing more to receive")

        await cached(scope, broken, send)

    request = open_request(deaf)
    asked = await app.called()
    while not cached.cache.flights._watches:  # noqa: ASYNC110  # nothing else tells of it
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    await asked.respond(200, HOUR, b"x")
    assert (await request.response()).body == b"x"


def test_flight_that_another_loop_left_behind_holds_up_nobody() -> None:
    app = ScriptedApp()
    cached = edge(app)

    async def leave_behind() -> None:
        for path in ("/", "/new"):
            open_request(cached, path=path)
            await app.called()

    async def ask() -> bytes:
        request = open_request(cached)
        await (await app.called()).respond(200, HOUR, b"x")
        return (await request.response()).body

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_behind())
    app._new = asyncio.Queue()
    assert asyncio.run(ask()) == b"x"

    async def end_what_was_left(flights: Any) -> None:
        # Here a new flight for the same key is under way, and the old one, which ends now, does not free its key.
        new = open_request(cached, path="/new")
        asked = await app.called()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        await asyncio.to_thread(loop.run_forever)
        assert len(flights) == 1
        await asked.respond(200, HOUR, b"x")
        await new.response()

    app._new = asyncio.Queue()

    def stop_when_idle() -> None:
        if asyncio.all_tasks(loop) == set():
            loop.stop()
        else:
            loop.call_soon(stop_when_idle)

    loop.call_soon(stop_when_idle)
    asyncio.run(end_what_was_left(cached.cache.flights))
    loop.close()
