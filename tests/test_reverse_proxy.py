"""
What a client sees through uvicorn, the cache and examples/reverse_proxy.py is what the origin sent, byte for byte.

The first request of each test is forwarded, the second is answered from the cache where that is allowed.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from email.utils import formatdate

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions
from examples.reverse_proxy import reverse_proxy
from tests.servers_http import (
    HOST,
    PATIENCE,
    Client,
    Origin,
    Reply,
    Seen,
    UvicornServer,
    ask,
    parse_reply,
    uvicorn_server,
)

Fields = list[tuple[bytes, bytes]]

MEGABYTE = 1024 * 1024
# One for all, so that no answer depends on the second in which it was asked for; fresh for longer than any test run.
DATE = formatdate(usegmt=True).encode()
FRESH = b"Cache-Control: max-age=86400"
# Of one connection, so each hop has its own; or the cache's word.
OF_THE_HOP = {b"connection", b"keep-alive", b"transfer-encoding"}
OF_THE_CACHE = {b"age", b"cache-status"}


@dataclass
class Proxy:
    """The proxy under uvicorn, and the origin behind it."""

    origin: Origin
    server: UvicornServer
    cache: Cache

    async def ask(self, target: str, *, method: str = "GET", fields: Fields | None = None, body: bytes = b"") -> Reply:
        return await ask(self.server.port, target, method=method, fields=fields, body=body)

    async def ask_origin(self, target: str, *, method: str = "GET", fields: Fields | None = None) -> Reply:
        return await ask(self.origin.port, target, method=method, fields=fields)


@pytest.fixture(params=["httptools", "h11"])
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    async with Origin().running() as origin:
        cache = Cache(MemoryStore(), PolicyOptions.rfc9111(max_body_bytes=32 * MEGABYTE))
        app = reverse_proxy(f"http://{HOST}:{origin.port}", cache)
        with uvicorn_server(app, http=request.param) as server:
            yield Proxy(origin, server, cache)


def message(
    *fields: bytes,
    status: bytes = b"200 OK",
    body: bytes = b"",
    framing: str = "length",
    date: bool = True,
) -> bytes:
    """Return a response as an origin writes it; *framing* is "length", "chunks", "close" or "none"."""
    lines = [b"HTTP/1.1 " + status, *fields]
    if date:
        lines.append(b"Date: " + DATE)
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
    elif framing == "chunks":
        lines.append(b"Transfer-Encoding: chunked")
        body = b"".join(chunks(body)) + b"0\r\n\r\n"
    lines += [b"Connection: close", b"", b""]
    return b"\r\n".join(lines) + body


def chunks(body: bytes, size: int = 7000) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        part = body[start : start + size]
        yield b"%x\r\n%s\r\n" % (len(part), part)


def assert_same(reply: Reply, direct: Reply, *, without: Iterable[bytes] = ()) -> None:
    """Hold that *reply*, through the proxy, is the *direct* one: what is not of the hop or of the cache."""
    left_out = OF_THE_HOP | OF_THE_CACHE | set(without)
    assert reply.status == direct.status
    assert [line for line in reply.fields if line[0] not in left_out] == [
        line for line in direct.fields if line[0] not in left_out
    ]
    if reply.body != direct.body:  # not an assert: nobody reads the difference of two bodies of 20 MB
        pytest.fail(f"{len(reply.body)} bytes of body differ from the {len(direct.body)} of the origin")
    assert reply.whole
    assert direct.whole
    assert len(reply.get(b"date")) == 1
    assert len(reply.get(b"cache-status")) == 1


def said(reply: Reply) -> str:
    return reply.get(b"cache-status")[0].decode()


# What may be cached: the second answer is a hit, and the same.

ALL_BYTES = bytes(range(256)) * 8
BIG = random.Random(20).randbytes(20 * MEGABYTE)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(message(FRESH, b"Content-Type: text/plain", body=b"hello"), id="200"),
        pytest.param(
            message(
                b"X-Order: 1",
                b"Set-Cookie: a=1; Path=/",
                b"Link: </a.css>; rel=preload",
                b"sEt-cOOkie: b=2, 3",
                b"X-Order: 2",
                FRESH,
                b"Link: </b.css>; rel=preload",
                b"X-Order: 1",
                b"X-Empty:",
                body=b"repeated",
            ),
            id="repeated-fields-in-order",
        ),
        pytest.param(message(FRESH, b"X-Name: caf\xe9 \xf0\x9f\x98\x80", body=b"text"), id="bytes-beyond-ascii"),
        pytest.param(message(FRESH, body=ALL_BYTES), id="all-bytes"),
        pytest.param(message(FRESH, body=b""), id="empty-body"),
        pytest.param(
            message(FRESH, b"Content-Encoding: gzip", b"Vary: Accept-Encoding", body=gzip.compress(ALL_BYTES, mtime=0)),
            id="gzip-stays-as-it-is",
        ),
        pytest.param(message(FRESH, status=b"404 Not Found", body=b"no such page"), id="404"),
        pytest.param(message(FRESH, b"Location: /there", status=b"301 Moved Permanently", body=b"."), id="301"),
        pytest.param(message(FRESH, status=b"204 No Content", framing="none"), id="204"),
        pytest.param(
            message(b"CDN-Cache-Control: max-age=86400", b"Cache-Control: no-store", body=b"cdn"), id="targeted"
        ),
        pytest.param(message(FRESH, b"Age: 100", body=b"from a cache upstream"), id="age-of-upstream"),
        pytest.param(message(FRESH, b'ETag: "own"', body=BIG), id="20-MB"),
        pytest.param(message(FRESH, body=ALL_BYTES, framing="chunks"), id="chunks"),
        pytest.param(message(FRESH, body=b"", framing="chunks"), id="chunks-empty"),
        pytest.param(message(FRESH, body=BIG, framing="chunks"), id="chunks-20-MB"),
        pytest.param(message(FRESH, body=ALL_BYTES, framing="close"), id="until-close"),
    ],
)
async def test_hit_and_miss_are_what_the_origin_sent(proxy: Proxy, answer: bytes) -> None:
    proxy.origin.handlers["/page"] = answer
    direct = await proxy.ask_origin("/page")

    miss = await proxy.ask("/page")
    assert_same(miss, direct, without=[] if direct.get(b"content-length") else [b"content-length"])
    assert "stored" in said(miss)

    hit = await proxy.ask("/page")
    assert said(hit).startswith("echo_cache; hit")
    assert proxy.origin.calls("/page") == 2, "the direct one and the first"
    # A stored response has a known length, whatever the framing was.
    assert_same(hit, direct, without=[] if direct.get(b"content-length") else [b"content-length"])
    if hit.status != 204:
        assert hit.get(b"content-length") == [b"%d" % len(direct.body)]
    upstream = int((direct.get(b"age") or [b"0"])[0])
    assert [upstream <= int(age) < 86400 for age in hit.get(b"age")] == [True]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(message(b"Cache-Control: no-store", body=b"hello"), id="no-store"),
        pytest.param(message(b"Cache-Control: private", b"Set-Cookie: a=1", b"Set-Cookie: b=2"), id="private"),
        pytest.param(message(b"Cache-Control: no-store", body=BIG), id="20-MB"),
        pytest.param(message(b"Cache-Control: no-store", body=BIG, framing="chunks"), id="chunks-20-MB"),
        pytest.param(message(body=b"no word about caching", framing="close"), id="until-close"),
        pytest.param(message(status=b"500 Internal Server Error", body=b"oh"), id="500"),
        pytest.param(message(FRESH, b"Vary: *", body=b"any"), id="vary-star"),
        pytest.param(message(status=b"404 Not Found", body=b"gone for now", framing="chunks"), id="404"),
        pytest.param(message(status=b"299 Of My Own", body=b"odd"), id="unknown-status"),
    ],
)
async def test_what_may_not_be_cached_passes_as_it_is_each_time(proxy: Proxy, answer: bytes) -> None:
    proxy.origin.handlers["/page"] = answer
    direct = await proxy.ask_origin("/page")
    for calls in (2, 3):
        reply = await proxy.ask("/page")
        assert_same(reply, direct)
        assert "hit" not in said(reply)
        assert proxy.origin.calls("/page") == calls
    assert proxy.cache.stats().stored == 0


async def test_head_is_the_origins_before_and_after_the_get_is_stored(proxy: Proxy) -> None:
    proxy.origin.handlers["/page"] = message(FRESH, b"X-A: 1", b"X-A: 2", body=b"hello")
    direct = await proxy.ask_origin("/page", method="HEAD")
    assert_same(await proxy.ask("/page", method="HEAD"), direct)
    await proxy.ask("/page")
    hit = await proxy.ask("/page", method="HEAD")
    assert_same(hit, direct)
    assert "hit" in said(hit)
    assert [seen.method for seen in proxy.origin.seen] == ["HEAD", "HEAD", "GET"]


async def test_304_comes_from_the_cache_and_through_it(proxy: Proxy) -> None:
    # The length of a 304 is the one that the 200 would have; RFC 9110 section 8.6 allows it.
    of_the_200 = (FRESH, b'ETag: "v1"', b"Content-Length: 5")
    not_modified = message(*of_the_200, status=b"304 Not Modified", framing="none")
    full = message(FRESH, b'ETag: "v1"', body=b"hello")

    async def page(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(not_modified if seen.get(b"if-none-match") == [b'"v1"'] else full)

    proxy.origin.handlers["/page"] = page
    condition = (b"If-None-Match", b'"v1"')
    direct = await proxy.ask_origin("/page", fields=[condition])
    assert direct.status == 304

    through = await proxy.ask("/page", fields=[condition, (b"Cache-Control", b"no-store")])
    assert "hit" not in said(through)
    assert_same(through, direct, without=[b"content-length"])
    await assert_connection_lives_on(proxy, fields=[condition, (b"Cache-Control", b"no-store")])

    whole = await proxy.ask("/page")
    assert (whole.status, whole.body) == (200, b"hello")
    cached = await proxy.ask("/page", fields=[condition])
    assert "hit" in said(cached)
    assert_same(cached, direct, without=[b"content-length"])
    assert cached.get(b"content-length") == []
    assert proxy.origin.calls("/page") == 5
    await assert_connection_lives_on(proxy, fields=[condition])


async def assert_connection_lives_on(proxy: Proxy, *, fields: Fields) -> None:
    """Hold that a second request for /page is answered on the same connection: the server found the first in order."""
    async with Client.connected(proxy.server.port) as client:
        await client.send("/page", fields=fields, keep=True)
        await client.read_until(b"\r\n\r\n")
        await client.send("/page", fields=fields)
        assert (await client.read_all()).count(b"HTTP/1.1 304 Not Modified\r\n") == 2


async def test_206_comes_through_the_cache_and_from_it(proxy: Proxy) -> None:
    range_of_it = (FRESH, b"Content-Range: bytes 100-199/2048", b'ETag: "v1"')
    part = message(*range_of_it, status=b"206 Partial Content", body=ALL_BYTES[100:200])
    full = message(FRESH, b'ETag: "v1"', body=ALL_BYTES)

    async def page(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(part if seen.get(b"range") else full)

    proxy.origin.handlers["/page"] = page
    asked: Fields = [(b"Range", b"bytes=100-199")]
    direct = await proxy.ask_origin("/page", fields=asked)
    for _ in range(2):
        through = await proxy.ask("/page", fields=asked)
        assert "hit" not in said(through)
        assert_same(through, direct)

    assert (await proxy.ask("/page")).status == 200
    cached = await proxy.ask("/page", fields=asked)
    assert "hit" in said(cached)
    assert_same(cached, direct, without=[b"content-range", b"content-length"])  # the order of these two is its own
    assert cached.get(b"content-range") == direct.get(b"content-range")
    assert cached.get(b"content-length") == direct.get(b"content-length")
    assert proxy.origin.calls("/page") == 4


# What the origin sees.


async def test_request_reaches_the_origin_as_it_was_sent(proxy: Proxy) -> None:
    target = "/a/../b//c%2Fd;e/%7e"
    proxy.origin.handlers[target] = message(b"Cache-Control: no-store")
    fields: Fields = [
        (b"X-Order", b"1"),
        (b"Accept-Encoding", b"br;q=0.5, gzip"),
        (b"Cookie", b"a=1"),
        (b"x-order", b"2"),
        (b"Connection", b"X-Of-The-Hop"),
        (b"X-Of-The-Hop", b"gone"),
        (b"TE", b"trailers"),
        (b"X-Name", b"caf\xe9"),
        (b"X-Order", b"1"),
    ]
    await proxy.ask(f"{target}?b=2&a=%20&a=1&c", fields=fields)
    (seen,) = proxy.origin.seen
    assert (seen.method, seen.target) == ("GET", f"{target}?b=2&a=%20&a=1&c")
    assert seen.fields == [
        (b"host", b"shop.test"),
        (b"x-order", b"1"),
        (b"accept-encoding", b"br;q=0.5, gzip"),
        (b"cookie", b"a=1"),
        (b"x-order", b"2"),
        (b"x-name", b"caf\xe9"),
        (b"x-order", b"1"),
        (b"via", b"1.1 echo_cache"),
    ]


async def test_proxy_asks_for_no_coding_that_the_client_did_not_ask_for(proxy: Proxy) -> None:
    proxy.origin.handlers["/"] = message(FRESH, body=b"plain")
    await proxy.ask("/")
    assert proxy.origin.seen[0].fields == [(b"host", b"shop.test"), (b"via", b"1.1 echo_cache")]


@pytest.mark.parametrize("framing", ["length", "chunks", "none"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_body_of_a_request_reaches_the_origin(proxy: Proxy, method: str, framing: str) -> None:
    proxy.origin.handlers["/form"] = message(
        b"Location: /made/1", b"Set-Cookie: a=1", b"Set-Cookie: b=2", status=b"201 Created", body=b"made"
    )
    body = random.Random(1).randbytes(300_000) if framing != "none" else b""
    direct = await proxy.ask_origin("/form", method=method)
    fields: dict[str, tuple[Fields, bytes]] = {
        "length": ([(b"Content-Length", b"%d" % len(body))], body),
        "chunks": ([(b"Transfer-Encoding", b"chunked")], b"".join(chunks(body)) + b"0\r\n\r\n"),
        "none": ([], b""),
    }
    framed, sent = fields[framing]
    for _ in range(2):
        reply = await proxy.ask("/form", method=method, fields=framed, body=sent)
        assert_same(reply, direct)
        assert said(reply) == "echo_cache; fwd=method"
        seen = proxy.origin.seen[-1]
        assert seen.method == method
        assert seen.body == body
    assert proxy.origin.calls("/form") == 3


async def test_put_invalidates_what_is_stored(proxy: Proxy) -> None:
    proxy.origin.handlers["/page"] = message(FRESH, body=b"v")
    assert ["hit" in said(await proxy.ask("/page")) for _ in range(2)] == [False, True]
    await proxy.ask("/page", method="PUT", fields=[(b"Content-Length", b"1")], body=b"w")
    assert ["hit" in said(await proxy.ask("/page")) for _ in range(2)] == [False, True]


async def test_response_without_a_date_gets_one(proxy: Proxy) -> None:
    proxy.origin.handlers["/page"] = message(FRESH, body=b"hello", date=False)
    miss = await proxy.ask("/page")
    hit = await proxy.ask("/page")
    assert "hit" in said(hit)
    assert len(miss.get(b"date")) == 1
    assert hit.get(b"date") == miss.get(b"date")


# An origin in trouble.


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nCache-Control: max-", id="half-a-head"),
        pytest.param(b"what is this?\r\n\r\n", id="no-http"),
    ],
)
async def test_origin_that_hangs_up_before_the_head_is_a_502(proxy: Proxy, sent: bytes) -> None:
    proxy.origin.handlers["/page"] = sent
    for calls in (1, 2):
        reply = await proxy.ask("/page")
        assert (reply.status, reply.whole) == (502, True)
        assert proxy.origin.calls("/page") == calls
    assert proxy.cache.stats().stored == 0


async def test_origin_that_is_not_there_is_a_502() -> None:
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    with uvicorn_server(reverse_proxy(f"http://{HOST}:{port}", Cache(MemoryStore()))) as server:
        assert (await ask(server.port, "/")).status == 502


@pytest.mark.parametrize("reset", [pytest.param(False, id="end"), pytest.param(True, id="reset")])
@pytest.mark.parametrize("store", [pytest.param(True, id="cacheable"), pytest.param(False, id="no-store")])
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("before", [0, 200_000])
async def test_origin_that_hangs_up_in_mid_body_is_a_broken_transfer_and_nothing_is_stored(
    proxy: Proxy, before: int, framing: str, store: bool, reset: bool
) -> None:
    body = random.Random(2).randbytes(300_000)
    policy = FRESH if store else b"Cache-Control: no-store"
    whole = message(policy, body=body, framing=framing)
    head_end = whole.index(b"\r\n\r\n") + 4
    client_has_some = asyncio.Event()

    async def page(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(whole[: head_end + before])
        await writer.drain()
        await client_has_some.wait()  # so that a reset cannot overtake what was sent
        if reset:
            writer.transport.abort()

    proxy.origin.handlers["/page"] = page
    for calls in (1, 2):
        client_has_some.clear()
        async with Client.connected(proxy.server.port) as client:
            await client.send("/page")
            await client.read_until(b"\r\n\r\n")
            client_has_some.set()
            reply = parse_reply(await client.read_all())
        assert reply.status == 200
        assert not reply.whole
        assert body.startswith(reply.body)
        if framing == "length":
            assert reply.get(b"content-length") == [b"300000"]
        else:
            assert reply.get(b"transfer-encoding") == [b"chunked"]
        assert proxy.origin.calls("/page") == calls
    assert proxy.cache.stats().stored == 0

    proxy.origin.handlers["/page"] = whole
    reply = await proxy.ask("/page")
    assert (reply.whole, len(reply.body)) == (True, len(body))


# Streams. The origin sends the next chunk only when the client has the one before.


@pytest.mark.parametrize(
    ("head", "stored"),
    [
        pytest.param([b"Content-Type: text/event-stream", b"Cache-Control: no-store"], False, id="events"),
        pytest.param([b"Content-Type: text/event-stream"], False, id="events-that-say-nothing-of-caching"),
        pytest.param([b"Content-Type: text/event-stream", FRESH], False, id="events-that-claim-to-be-fresh"),
        pytest.param([FRESH], True, id="slow-and-cacheable"),
        pytest.param([FRESH, b"Content-Length: 24"], True, id="slow-and-cacheable-of-known-length"),
        pytest.param([b"Cache-Control: no-store"], False, id="slow-and-not-cacheable"),
    ],
)
async def test_stream_reaches_the_client_chunk_by_chunk(proxy: Proxy, head: list[bytes], stored: bool) -> None:
    parts = [b"data: %d\n" % number for number in range(3)]
    confirmed = [asyncio.Event() for _ in parts]

    async def events(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(message(*head, framing="none"))
        for part, has_come in zip(parts, confirmed, strict=True):
            writer.write(part)
            await writer.drain()
            await has_come.wait()

    proxy.origin.handlers["/stream"] = events
    async with Client.connected(proxy.server.port) as client:
        await client.send("/stream")
        for part, has_come in zip(parts, confirmed, strict=True):
            await client.read_until(part)
            has_come.set()
        await client.read_all()

    again = await proxy.ask("/stream")
    assert again.body == b"".join(parts)
    assert ("hit" in said(again)) is stored


async def test_client_that_comes_in_mid_stream_has_at_once_what_was_sent(proxy: Proxy) -> None:
    both_have_it = asyncio.Event()

    async def slow(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(message(FRESH, framing="none") + b"first,")
        await writer.drain()
        await both_have_it.wait()
        writer.write(b"second")

    proxy.origin.handlers["/slow"] = slow
    async with Client.connected(proxy.server.port) as early, Client.connected(proxy.server.port) as late:
        await early.send("/slow")
        await early.read_until(b"first,")
        await late.send("/slow")
        await late.read_until(b"first,")
        both_have_it.set()
        await early.read_until(b"second")
        await late.read_until(b"second")
        assert b"collapsed" in late.received
    assert proxy.origin.calls("/slow") == 1


@pytest.mark.parametrize("head", [[FRESH], [b"Cache-Control: no-store"]], ids=["cacheable", "no-store"])
async def test_client_that_leaves_ends_the_stream_of_the_origin(proxy: Proxy, head: list[bytes]) -> None:
    ended = asyncio.Event()

    async def endless(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(message(*head, framing="none"))
        try:
            while not writer.transport.is_closing():
                writer.write(b"and so on\n")
                await writer.drain()
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    proxy.origin.handlers["/endless"] = endless
    for _ in range(2):  # the second passes beside the flights, as one of an uncacheable key
        ended.clear()
        async with Client.connected(proxy.server.port) as client:
            await client.send("/endless")
            await client.read_until(b"and so on\n")
        await asyncio.wait_for(ended.wait(), PATIENCE)
    assert proxy.cache.stats().stored == 0


async def test_upload_reaches_the_origin_chunk_by_chunk(proxy: Proxy) -> None:
    seen_by_origin = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"first")
        seen_by_origin.set()
        await reader.readuntil(b"second")
        writer.write(message(body=b"thanks"))
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    app = reverse_proxy(f"http://{HOST}:{port}", proxy.cache)
    try:
        with uvicorn_server(app) as front:
            async with Client.connected(front.port) as client:
                await client.send("/form", method="POST", fields=[(b"Content-Length", b"11")], body=b"first")
                await asyncio.wait_for(seen_by_origin.wait(), PATIENCE)
                await client.write(b"second")
                await client.read_until(b"thanks")
    finally:
        server.close()


# The middleware around an app of its own, without a proxy.


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize(
    ("media_type", "cache_control"),
    [
        pytest.param("text/event-stream", "no-cache", id="events"),
        pytest.param("text/event-stream", "max-age=60", id="events-that-claim-to-be-fresh"),
        pytest.param("text/plain", "max-age=60", id="slow-and-cacheable"),
        pytest.param("text/plain", "no-store", id="slow-and-not-cacheable"),
    ],
)
async def test_stream_of_an_app_reaches_the_client_chunk_by_chunk(
    media_type: str, cache_control: str, http: str
) -> None:
    confirmed = [asyncio.Event() for _ in range(3)]

    async def stream(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for number, has_come in enumerate(confirmed):
                yield b"data: %d\n\n" % number
                await has_come.wait()

        return StreamingResponse(parts(), media_type=media_type, headers={"cache-control": cache_control})

    app = Starlette(routes=[Route("/stream", stream)])
    app.add_middleware(HTTPCacheMiddleware, store=MemoryStore())
    with uvicorn_server(app, http=http) as server:
        async with Client.connected(server.port) as client:
            await client.send("/stream")
            for number, has_come in enumerate(confirmed):
                await client.read_until(b"data: %d\n\n" % number)
                server.call(has_come.set)
            await client.read_until(b"0\r\n\r\n")
