"""Responses on their way: chunk by chunk to the client, a copy to the store, and never more memory than agreed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions
from echo_cache.coordination import flight
from echo_cache.testing import AskedApp, ManualClock, ScriptedApp, call, open_request

HOUR = {"cache-control": "max-age=3600"}


def edge(app: Any, clock: ManualClock | None = None, policy: PolicyOptions | None = None, **options: Any) -> Any:
    clock = clock or ManualClock()
    return HTTPCacheMiddleware(app, cache=Cache(MemoryStore(clock=clock), policy, clock=clock), **options)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"content-type": "text/event-stream"}, id="event-stream"),
        pytest.param(HOUR, id="storable"),
        pytest.param({"cache-control": "no-store"}, id="no-store"),
    ],
)
async def test_stream_reaches_the_client_chunk_by_chunk(headers: dict[str, str]) -> None:
    app = ScriptedApp()
    request = open_request(edge(app))
    asked = await app.called()
    await asked.start(200, headers)
    assert (await request.message())["type"] == "http.response.start"
    for chunk in (b"one", b"two", b"three"):
        await asked.body(chunk, more=True)
        assert (await request.message())["body"] == chunk
    await asked.body()
    await asked.finish()
    assert (await request.response()).body == b"onetwothree"


async def test_chunks_whose_buffer_the_app_uses_again_are_copied() -> None:
    async def reusing(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        buffer = bytearray(b"aaaa")
        message = {"type": "http.response.body", "body": memoryview(buffer), "more_body": True}
        for letter in b"abc":
            buffer[:] = bytes([letter]) * 4
            await asked.send(message)
        message["body"], message["more_body"] = bytearray(b"end"), False
        await asked.send(message)
        buffer[:] = b"XXXX"
        message["body"] = b"YYYY"

    app = ScriptedApp(reusing)
    cached = edge(app)
    first, waiter = open_request(cached), open_request(cached)
    assert [(await request.response()).body for request in (first, waiter)] == [b"aaaabbbbccccend"] * 2
    assert (await call(cached)).body == b"aaaabbbbccccend"
    assert len(app.calls) == 1


async def test_head_that_the_app_changes_afterwards_is_as_it_was_sent() -> None:
    async def changing(asked: AskedApp) -> None:
        lines = [(b"cache-control", b"max-age=60"), (b"x-said", b"first")]
        await asked.send({"type": "http.response.start", "status": 200, "headers": lines})
        lines[1] = (b"x-said", b"later")
        await asked.body(b"")

    cached = edge(ScriptedApp(changing))
    assert [(await call(cached))["x-said"] for _ in range(2)] == ["first", "first"]


async def test_headers_may_be_any_iterable_of_pairs() -> None:
    async def generating(asked: AskedApp) -> None:
        lines = ([name, value] for name, value in ((b"Cache-Control", b"max-age=60"), (b"X-One", b"1")))
        await asked.send({"type": "http.response.start", "status": 200, "headers": lines})
        await asked.body(b"x")

    app = ScriptedApp(generating)
    cached = edge(app)
    assert [(await call(cached))["x-one"] for _ in range(2)] == ["1", "1"]
    assert len(app.calls) == 1


async def test_extensions_that_hide_the_body_are_kept_from_an_app_whose_answer_may_be_stored() -> None:
    async def plain(asked: AskedApp) -> None:
        await asked.respond(200, HOUR)

    app = ScriptedApp(plain)
    extensions: dict[str, Any] = {
        "http.response.pathsend": {},
        "http.response.zerocopysend": {},
        "http.response.trailers": {},
    }
    await call(edge(app), extensions=extensions)
    assert app.calls[0].scope["extensions"] == {"http.response.trailers": {}}
    assert len(extensions) == 3


@pytest.mark.parametrize(
    ("method", "options"),
    [pytest.param("POST", {}, id="post"), pytest.param("GET", {"exclude": ["/*"]}, id="excluded")],
)
async def test_file_is_sent_by_path_where_nothing_is_stored(method: str, options: Any) -> None:
    async def by_path(asked: AskedApp) -> None:
        assert "http.response.pathsend" in asked.scope["extensions"]
        await asked.start(200)
        await asked.send({"type": "http.response.pathsend", "path": "/tmp/file"})

    request = open_request(edge(ScriptedApp(by_path), **options), method, extensions={"http.response.pathsend": {}})
    await request.response()
    assert request.messages[-1] == {"type": "http.response.pathsend", "path": "/tmp/file"}


async def test_early_hints_come_before_the_head_and_to_who_asked_only() -> None:
    app = ScriptedApp()
    cached = edge(app)
    leader = open_request(cached)
    asked = await app.called()
    waiter = open_request(cached)
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>"]}
    await asked.send(dict(hint))
    assert await leader.message() == hint
    await asked.send(dict(hint))
    await asked.respond(200, HOUR, b"x")
    await leader.response()
    await waiter.response()
    kinds = [message["type"].removeprefix("http.response.") for message in leader.messages]
    assert kinds == ["early_hint", "early_hint", "start", "body"]
    assert [message["type"].removeprefix("http.response.") for message in waiter.messages] == ["start", "body"]


async def test_trailers_pass_through_and_such_a_response_is_not_stored() -> None:
    async def trailing(asked: AskedApp) -> None:
        await asked.start(200, HOUR, trailers=True)
        await asked.body(b"x")
        await asked.send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False})

    app = ScriptedApp(trailing)
    cached = edge(app)
    for _ in range(2):
        request = open_request(cached)
        await request.response()
        assert request.messages[-1]["headers"] == [(b"x-sum", b"1")]
        assert request.messages[0]["trailers"] is True
    assert len(app.calls) == 2


@pytest.mark.parametrize("chunks", [pytest.param([], id="empty"), pytest.param([b"x"] * 10_000, id="many")])
async def test_body_of_any_number_of_chunks_is_stored(chunks: list[bytes]) -> None:
    async def chunked(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        for chunk in chunks:
            await asked.body(chunk, more=True)
        await asked.send({"type": "http.response.body"})

    app = ScriptedApp(chunked)
    cached = edge(app)
    assert [(await call(cached)).body for _ in range(2)] == [b"".join(chunks)] * 2
    assert len(app.calls) == 1


async def test_entry_is_in_memory_before_the_last_byte_leaves() -> None:
    app = ScriptedApp()
    cached = edge(app)
    seen = []

    async def noticing(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            if message["type"] == "http.response.body":
                seen.append((message.get("more_body", False), cached.cache.store.stats().entries))
            await send(message)

        await cached(scope, receive, noting)

    request = open_request(noticing)
    asked = await app.called()
    await asked.start(200, HOUR)
    await asked.body(b"x", more=True)
    await request.message()
    await request.message()
    await asked.body(b"y")
    await request.response()
    assert seen == [(True, 0), (False, 1)]
    await asked.finish()


@pytest.mark.parametrize("background", [pytest.param(None, id="returns"), pytest.param(ValueError(), id="raises")])
async def test_what_the_app_does_after_its_response_delays_neither_client_nor_store(
    background: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    app = ScriptedApp()
    cached = edge(app)
    request = open_request(cached)
    asked = await app.called()
    await asked.start(200, HOUR)
    await asked.body(b"x")
    assert (await request.response()).body == b"x"  # while the app is still at work
    assert (await call(cached)).body == b"x"
    if background is None:
        await asked.finish()
    else:
        await asked.fail(background)
        await asyncio.sleep(0)
        assert "after its response" in caplog.text
    await cached.cache.aclose()
    assert not asked.cancelled


@pytest.mark.parametrize(
    ("length", "body"), [pytest.param("9", b"short", id="shorter"), pytest.param("2", b"longer", id="longer")]
)
async def test_body_of_another_length_than_was_announced_is_not_stored(length: str, body: bytes) -> None:
    async def lying(asked: AskedApp) -> None:
        await asked.respond(200, {**HOUR, "content-length": length}, body)

    app = ScriptedApp(lying)
    cached = edge(app)
    assert [(await call(cached)).body for _ in range(2)] == [body] * 2
    assert len(app.calls) == 2
    assert cached.cache.stats().refused == {"incomplete": 2}


async def test_app_that_returns_without_finishing_leaves_nothing_behind() -> None:
    async def unfinished(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        await asked.body(b"half", more=True)

    app = ScriptedApp(unfinished)
    cached = edge(app)
    for _ in range(2):
        request = open_request(cached)
        assert (await request.response()).body == b"half"
        assert request.messages[-1]["more_body"] is True
    assert len(app.calls) == 2
    assert cached.cache.filling_bytes == cached.cache.flights.held_bytes == 0


async def test_app_that_returns_without_a_word_leaves_nobody_waiting() -> None:
    app = ScriptedApp()
    cached = edge(app)
    requests = [open_request(cached) for _ in range(3)]
    await (await app.called()).finish()
    assert [(await request.response()).status for request in requests] == [0, 0, 0]
    assert len(app.calls) == 1


async def test_message_of_a_stray_task_after_the_app_has_returned_is_not_taken_for_the_end() -> None:
    sends = []

    async def straying(asked: AskedApp) -> None:
        sends.append(asked._send)
        await asked.start(200, HOUR)
        await asked.body(b"half", more=True)

    app = ScriptedApp(straying)
    cached = edge(app)
    await call(cached)
    await sends[0]({"type": "http.response.body", "body": b"", "more_body": False})
    await call(cached)
    assert len(app.calls) == 2


async def test_second_head_of_an_app_is_not_stored() -> None:
    async def twice(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        await asked.start(404, HOUR)
        await asked.body(b"x")

    app = ScriptedApp(twice)
    cached = edge(app)
    for _ in range(2):
        await call(cached)
    assert len(app.calls) == 2


async def test_client_that_leaves_in_mid_body_ends_the_call_and_nothing_is_stored() -> None:
    app = ScriptedApp()
    cached = edge(app)
    request = open_request(cached)
    asked = await app.called()
    await asked.start(200, HOUR)
    await asked.body(b"half", more=True)
    await request.message()
    request.disconnect()
    await request.response()
    await asked.ended()
    assert asked.cancelled
    assert cached.cache.stats().stored == 0
    assert cached.cache.filling_bytes == cached.cache.flights.held_bytes == 0


async def test_body_over_the_bound_streams_on_and_is_not_stored() -> None:
    async def large(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        for _ in range(100):
            await asked.body(b"x" * 100, more=True)
        await asked.body()

    app = ScriptedApp(large)
    cached = edge(app, policy=PolicyOptions(max_body_bytes=1000))
    requests = [open_request(cached) for _ in range(5)]
    assert [len((await request.response()).body) for request in requests] == [10_000] * 5
    assert len(app.calls) == 1
    assert len((await call(cached)).body) == 10_000
    assert len(app.calls) == 2
    assert cached.cache.filling_bytes == cached.cache.flights.held_bytes == 0


async def test_announced_length_over_the_bound_is_refused_at_the_head() -> None:
    app = ScriptedApp()
    cached = edge(app, policy=PolicyOptions(max_body_bytes=1000))
    requests = [open_request(cached) for _ in range(3)]
    asked = await app.called()
    await asked.start(200, {**HOUR, "content-length": "2000"})
    others = [await app.called() for _ in range(2)]  # the waiters make calls of their own
    for one in (asked, *others):
        if one is not asked:
            await one.start(200, {**HOUR, "content-length": "2000"})
        await one.body(b"x" * 2000)
        await one.finish()
    assert [len((await request.response()).body) for request in requests] == [2000] * 3


async def test_bound_over_all_fills_holds() -> None:
    app = ScriptedApp()
    cached = edge(app, policy=PolicyOptions(max_body_bytes=10_000))
    peak = 0
    requests, calls = [], []
    for number in range(40):
        requests.append(open_request(cached, path=f"/{number}"))
        asked = await app.called()
        calls.append(asked)
        await asked.start(200, HOUR)
        await asked.body(b"x" * 9_000, more=True)
        await requests[-1].message()
        await requests[-1].message()
        peak = max(peak, cached.cache.filling_bytes + cached.cache.flights.held_bytes)
    assert peak <= cached.cache.max_filling_bytes + 40 * 512 + 10_000
    for asked in calls:
        await asked.body(b"end")
        await asked.finish()
    assert {len((await request.response()).body) for request in requests} == {9_003}
    assert 0 < cached.cache.stats().stored < 40
    assert cached.cache.filling_bytes == cached.cache.flights.held_bytes == 0


async def test_bound_over_all_fills_counts_those_that_share_nothing() -> None:
    app = ScriptedApp()
    cached = edge(app, policy=PolicyOptions(max_body_bytes=10_000))
    cached.cache.is_uncacheable = lambda lane: True
    peak = 0
    requests = []
    for number in range(40):
        requests.append(open_request(cached, path=f"/{number}"))
        asked = await app.called()
        await asked.start(200, HOUR)
        await asked.body(b"x" * 9_000, more=True)
        peak = max(peak, cached.cache.filling_bytes)
    assert 9_000 < peak <= cached.cache.max_filling_bytes
    for asked in app.calls:
        await asked.body(b"end")
        await asked.finish()
    assert {len((await request.response()).body) for request in requests} == {9_003}
    assert 0 < cached.cache.stats().stored < 40
    assert cached.cache.filling_bytes == 0


async def test_many_small_chunks_cannot_cost_more_than_the_bound() -> None:
    async def endless(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        for number in range(20_000):
            await asked.body(b"%02d" % (number % 100), more=True)
        await asked.body()

    cached = edge(ScriptedApp(endless), policy=PolicyOptions(max_body_bytes=100_000))
    request = open_request(cached)
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while not request.task.done():
            peak = max(peak, cached.cache.filling_bytes + cached.cache.flights.held_bytes)
            await asyncio.sleep(0)

    _, response = await asyncio.gather(watch(), request.response())
    assert len(response.body) == 40_000
    assert peak <= cached.cache.max_filling_bytes + flight.WINDOW_BYTES


async def test_slow_reader_of_a_large_stream_slows_the_app_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "WINDOW_BYTES", 10_000)
    sent = 0

    async def large(asked: AskedApp) -> None:
        nonlocal sent
        await asked.start(200, HOUR)
        for _ in range(100):
            await asked.body(b"x" * 1000, more=True)
            sent += 1
        await asked.body()

    cached = edge(ScriptedApp(large), policy=PolicyOptions(max_body_bytes=5_000))
    request = open_request(cached)
    await request.message()
    request.stop_reading()
    for _ in range(50):
        await asyncio.sleep(0)
    assert sent < 25
    request.read_on()
    assert len((await request.response()).body) == 100_000


async def test_reader_that_stalls_and_holds_up_others_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "WINDOW_BYTES", 10_000)
    monkeypatch.setattr(flight, "STALL_SECONDS", 0.02)

    async def large(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        for number in range(100):
            await asked.body(b"%03d" % number * 1000, more=True)
        await asked.body()

    app = ScriptedApp(large)
    cached = edge(app, policy=PolicyOptions(max_body_bytes=5_000))
    stalled, good = open_request(cached), open_request(cached)
    await stalled.message()
    stalled.stop_reading()
    whole = b"".join(b"%03d" % number * 1000 for number in range(100))
    assert (await good.response()).body == whole
    stalled.read_on()
    with pytest.raises(flight.TooSlow):
        await stalled.response()
    # What it has is a true beginning: nothing left out in the middle.
    assert whole.startswith(stalled.so_far().body)
    assert len(app.calls) == 1


async def test_reader_that_only_crawls_is_cut_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "WINDOW_BYTES", 10_000)
    monkeypatch.setattr(flight, "STALL_SECONDS", 0.05)

    async def large(asked: AskedApp) -> None:
        await asked.start(200, HOUR)
        for _ in range(1000):
            await asked.body(b"x" * 1000, more=True)
        await asked.body()

    cached = edge(ScriptedApp(large), policy=PolicyOptions(max_body_bytes=5_000))

    async def crawling(scope: Any, receive: Any, send: Any) -> None:
        async def crawl(message: Any) -> None:
            await asyncio.sleep(0.01)
            await send(message)

        await cached(scope, receive, crawl)

    slow, good = open_request(crawling), open_request(cached)
    assert len((await good.response()).body) == 1_000_000
    with pytest.raises(flight.TooSlow):
        await slow.response()


async def test_slow_reader_of_a_kept_response_holds_up_nobody() -> None:
    app = ScriptedApp()
    cached = edge(app)
    slow, good = open_request(cached), open_request(cached)
    asked = await app.called()
    await asked.start(200, HOUR)
    await slow.message()
    slow.stop_reading()
    for _ in range(20):
        await asked.body(b"x" * 10_000, more=True)
    await asked.body()
    await asked.finish()
    assert len((await good.response()).body) == 200_000
    assert len((await call(cached)).body) == 200_000
    slow.read_on()
    assert len((await slow.response()).body) == 200_000
    assert cached.cache.flights.held_bytes == 0


def test_stream_of_a_gigabyte_costs_no_more_memory_than_one_body_may_take() -> None:
    program = """
        import asyncio, resource
        from echo_cache import HTTPCacheMiddleware, MemoryStore, PolicyOptions
        from echo_cache.testing import open_request

        CAP = 8 * 1024 * 1024

        async def app(scope, receive, send):
            large = scope["path"] == "/large"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=9")]})
            for _ in range(16 * 1024 if large else 1):
                await send({"type": "http.response.body", "body": bytes(64 * 1024), "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        cached = HTTPCacheMiddleware(app, store=MemoryStore(), policy=PolicyOptions(max_body_bytes=CAP))

        async def count(path):
            received = 0

            async def counting(scope, receive, send):
                async def note(message):
                    nonlocal received
                    received += len(message.get("body", b""))
                await cached(scope, receive, note)

            await asyncio.gather(*[open_request(counting, path=path).response() for _ in range(2)])
            return received

        async def main():
            await count("/small")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            received = await count("/large")
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            assert received == 2 * 1024**3, received
            assert grown <= CAP + 8 * 1024 * 1024, grown

        asyncio.run(main())
    """
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
