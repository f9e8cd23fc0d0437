"""
No client can fill the memory of the process. Rows of the threat table that are held here:

- memory: a stream of 1 GB, a crowd of distinct URLs, an endless body, a reader who stalls, a short body;
- and what is remembered beside the entries: keys, hosts, marks. All of it is chosen by clients.

The resident set is measured in processes of their own, from a start that has done the same work once.
"""

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
from tests.test_security_support import FRESH, Answer, Headers, Naive, ask, behind_cache, call, http_scope

MIB = 2**20

MEASURING = """
import asyncio, gc, sys
sys.path.insert(0, ".")
from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions
from tests.test_security_support import FRESH, Naive, ask, http_scope

def rss(what="VmRSS"):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what)) / 1024

def reset_peak():
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")

async def silent(app, scope):
    async def receive():
        await asyncio.Event().wait()
    async def send(message):
        pass
    await app(scope, receive, send)
"""


def measured(program: str) -> None:
    """Run *program*, whose assertions are the test, in a process of its own."""
    code = MEASURING + textwrap.dedent(program)
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=55, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


# --- streams ----------------------------------------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([FRESH], id="storable"),
        pytest.param([FRESH, (b"content-length", b"%d" % 2**30)], id="announced"),
        pytest.param([(b"cache-control", b"private")], id="private"),
        pytest.param([FRESH, (b"transfer-encoding", b"chunked"), (b"vary", b"x-id")], id="varied"),
    ],
)
def test_stream_of_a_gigabyte_takes_a_body_and_eight_megabytes(headers: Headers) -> None:
    measured(f"""
        async def stream(scope, receive, send):
            await send({{"type": "http.response.start", "status": 200, "headers": {headers!r}}})
            for number in range(scope["chunks"]):
                # A new one each time, and touched: or all of them would be one page of zeros.
                await send({{"type": "http.response.body", "body": bytes([number & 255]) * 2**20, "more_body": True}})
            await send({{"type": "http.response.body", "body": b""}})

        async def main():
            cap = PolicyOptions().max_body_bytes
            cached = HTTPCacheMiddleware(stream, cache=Cache(MemoryStore()))
            await silent(cached, {{**http_scope(b"/warm"), "chunks": 2}})
            entries = cached.cache.stats().store.entries
            gc.collect(); before = rss(); reset_peak()
            await silent(cached, {{**http_scope(), "chunks": 1024}})
            grown = rss("VmHWM") - before
            assert grown <= cap / 2**20 + 8, grown
            assert cached.cache.stats().store.entries == entries
            assert cached.cache.filling_bytes == 0

        asyncio.run(main())
    """)


async def test_endless_body_ends_when_the_client_leaves() -> None:
    leaves, closed = asyncio.Event(), asyncio.Event()
    sent = 0

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [FRESH]})
            while True:
                await send({"type": "http.response.body", "body": b"x" * 1024, "more_body": True})
                sent += 1
                if sent == 1_000:
                    leaves.set()
                await asyncio.sleep(0.0001 if sent > 1_000 else 0)
        finally:
            closed.set()

    cached = behind_cache(endless, max_body_bytes=64 * 1024)
    answer = await call(cached, http_scope(), leaves=leaves)

    await asyncio.wait_for(closed.wait(), 5)
    assert not answer.is_complete
    assert cached.cache.stats().store.entries == 0
    assert cached.cache.filling_bytes == 0


async def test_many_fills_at_once_are_bounded_together() -> None:
    """A hundred streams that each stay under the bound of one body: past the bound of all, copies are dropped."""
    reached = asyncio.Event()
    waiting = 0
    largest = 0

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        nonlocal waiting, largest
        await send({"type": "http.response.start", "status": 200, "headers": [FRESH]})
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        waiting += 1
        largest = max(largest, cached.cache.filling_bytes)
        if waiting == 100:
            reached.set()
        await reached.wait()
        await send({"type": "http.response.body", "body": b"y"})

    cached = behind_cache(stream, max_body_bytes=1_001)
    answers = await asyncio.gather(*(ask(cached, b"/%d" % number) for number in range(100)))

    assert {answer.body for answer in answers} == {b"x" * 1000 + b"y"}
    assert largest <= 8 * 1_001
    assert cached.cache.stats().store.entries <= 8
    assert cached.cache.filling_bytes == 0


async def test_reader_who_stalls_is_cut_off_and_frees_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a body too large to keep, the slowest may not hold up the others for longer than STALL_SECONDS."""
    assert flight.STALL_SECONDS <= 5
    monkeypatch.setattr(flight, "STALL_SECONDS", 0.01)
    gate = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [FRESH]})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    cached = behind_cache(stream, max_body_bytes=20_000)
    never = asyncio.Event()

    async def stalled() -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await never.wait()

        await cached(http_scope(), asyncio.Event().wait, send)

    stuck = asyncio.create_task(stalled())
    await asyncio.sleep(0)
    reader = asyncio.create_task(ask(cached))
    await asyncio.sleep(0)
    gate.set()

    assert len((await reader).body) == 1_000_000
    never.set()
    with pytest.raises(flight.TooSlow):
        await stuck


@pytest.mark.parametrize(
    ("length", "chunks"),
    [
        pytest.param(b"10", [b"12345"], id="short"),
        pytest.param(b"10", [], id="empty"),
        pytest.param(b"10", [b"1234", b"12345"], id="short-in-chunks"),
        pytest.param(b"3", [b"12345"], id="long"),
        pytest.param(b"0", [b"12345"], id="zero"),
        pytest.param(b"5, 6", [b"12345"], id="two"),
        pytest.param(b"+5", [b"12345"], id="signed"),
        pytest.param(b"5.0", [b"12345"], id="fraction"),
        pytest.param(b"", [b"12345"], id="none"),
        pytest.param(b"\xb2", [b"12"], id="superscript-two"),
        pytest.param(b"9" * 10_000, [b"12345"], id="ten-thousand-digits"),
    ],
)
async def test_body_of_another_length_than_it_says_is_never_stored(length: bytes, chunks: list[bytes]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [FRESH, (b"Content-Length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    cached = behind_cache(app)
    answer = await ask(cached)

    assert answer.body == b"".join(chunks)
    assert answer.get(b"content-length") == length
    assert cached.cache.stats().store.entries == 0


# --- crowds -----------------------------------------------------------------------------------------------------------


@linux_only
def test_crowd_of_distinct_urls_stays_within_max_bytes() -> None:
    """The row names 10^6. What counts is how often the store is turned over: 20,000 do it twice, in seconds."""
    measured("""
        async def main():
            cap = 24
            store = MemoryStore(max_bytes=cap * 2**20)
            app = Naive(lambda scope, body: (200, [FRESH, (b"content-type", b"text/html")], b"x" * 2_500))
            cached = HTTPCacheMiddleware(app, cache=Cache(store))
            for number in range(100):
                await silent(cached, http_scope(b"/warm/%d" % number))
            gc.collect(); before = rss(); reset_peak()
            for number in range(20_000):
                await silent(cached, http_scope(b"/products/%d" % number, query=b"session=%d" % number))
                app.calls.clear()
            grown = rss("VmHWM") - before
            stats = store.stats()
            assert stats.evictions > stats.entries, stats
            assert stats.bytes <= cap * 2**20
            assert grown <= 1.2 * cap, grown

        async def plain(self, scope, receive, send):
            status, headers, content = self.handler(scope, b"")
            await send({"type": "http.response.start", "status": status, "headers": list(headers)})
            await send({"type": "http.response.body", "body": bytes(content)})
        Naive.__call__ = plain
        asyncio.run(main())
    """)


@linux_only
@pytest.mark.parametrize(
    ("what", "request_of"),
    [
        pytest.param("private answers", 'http_scope(b"/", query=(b"%d" % number).ljust(60_000, b"q"))', id="queries"),
        pytest.param("hosts", 'http_scope(b"/", host=(b"%d" % number).ljust(60_000, b"h"))', id="hosts"),
        pytest.param(
            "marks", 'http_scope(b"/", method="POST", query=(b"%d" % number).ljust(60_000, b"q"))', id="invalidations"
        ),
        pytest.param("variants", 'http_scope((b"/v%d" % number).ljust(60_000, b"p"))', id="varied-paths"),
    ],
)
def test_what_is_remembered_of_requests_is_bounded_in_bytes(what: str, request_of: str) -> None:
    """Each request names something of 60 kB, which most servers let pass; 3,000 of them are 180 MB if kept."""
    measured(f"""
        async def app(scope, receive, send):
            headers = [FRESH, (b"vary", b"x-id")] if scope["path"][:2] == "/v" else [(b"cache-control", b"private")]
            await send({{"type": "http.response.start", "status": 200, "headers": headers}})
            await send({{"type": "http.response.body", "body": b""}})

        async def main():
            cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore(max_bytes=2**22)))
            for number in range(10):
                await silent(cached, {request_of})
            gc.collect(); before = rss()
            for number in range(3_000):
                await silent(cached, {request_of})
            gc.collect()
            grown = rss() - before
            assert grown <= 32, grown

        asyncio.run(main())
    """)


async def test_number_of_remembered_keys_is_bounded() -> None:
    cached = behind_cache(Naive(headers=[(b"cache-control", b"private")]))

    for number in range(12_000):
        await ask(cached, b"/%d" % number, host=b"%d.example.com" % number)

    cache = cached.cache
    assert len(cache._uncacheable._known) <= 10_000
    assert len(cache._hosts) <= 1_024
    assert len(cache.flights) == 0
    assert not cache._tasks


async def test_flood_of_invalidations_is_bounded() -> None:
    cached = behind_cache(Naive())

    for number in range(21_000):
        await ask(cached, b"/%d" % number, method="POST")

    assert len(cached.cache.log._marks) <= 20_000


async def test_object_that_is_too_large_does_not_evict_the_others() -> None:
    store = MemoryStore(max_bytes=MIB)
    cached = HTTPCacheMiddleware(
        Naive(lambda scope, body: (200, [FRESH], b"x" * (MIB // 2 if scope["path"] == "/large" else 100))),
        cache=Cache(store, PolicyOptions()),
    )
    for number in range(50):
        await ask(cached, b"/%d" % number)

    answer: Answer = await ask(cached, b"/large")

    assert len(answer.body) == MIB // 2
    assert store.stats().entries == 50
    assert store.stats().evictions == 0
