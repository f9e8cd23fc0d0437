"""
Bad input never becomes an error of ours. Rows of the threat table, and lines of the foundation, that are held here:

- disclosure: Cache-Status carries no key; logs carry no header values and no control characters, one line each;
- odd header values, a header of 1 MB, odd methods and paths, apps that send what is no ASGI: what a client gets is
  what the bare app gives it, and what a server sees is what it would see without a cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions, RedisStore
from tests.test_security_support import (
    FRESH,
    OF_THE_CACHE,
    Headers,
    ManualClock,
    Naive,
    ask,
    behind_cache,
    call,
    field,
    http_scope,
)

SECRET = b"s3cr3t-of-alice"


# --- disclosure -------------------------------------------------------------------------------------------------------


async def test_cache_status_carries_no_key() -> None:
    """RFC 9211 has a parameter for it; what is in a key may be a secret in a query."""
    seen = []
    for policy in ({}, {"max_body_bytes": 1}, {"allowed_hosts": ["x"]}, {"ignored_query_parameters": ["a"]}):
        for headers in (
            [FRESH],
            [FRESH, (b"vary", b"x-secret")],
            [(b"cache-control", b"private")],
            [FRESH, (b"vary", b"*")],
        ):
            cached = behind_cache(Naive(headers=headers), **policy)
            for extra in ([], [(b"cache-control", b"no-cache")], [(b"cache-control", b"only-if-cached")]):
                for method in ("GET", "HEAD", "POST"):
                    request = {
                        "method": method,
                        "query": b"token=" + SECRET,
                        "headers": [*extra, (b"x-secret", SECRET)],
                    }
                    seen.append(await ask(cached, b"/path-of-alice", **request))
    for answer in seen:
        assert answer.cache_status.startswith(b"echo_cache;")
        for word in (b"key", b"token", b"path", b"example", SECRET):
            assert word not in answer.cache_status


class FailingReads(MemoryStore):
    """A store of somebody else's, that fails and names what it was asked for."""

    remote = True

    async def get(self, key: Any, match: Any) -> Any:
        raise RuntimeError(f"cannot read {key}\r\nforged line")


class HostileError(Exception):
    """An error of the app that repeats what the request said."""


def assert_plain(records: list[logging.LogRecord]) -> None:
    """Assert that what our logger says is one line each, without control characters or what requests carry."""
    ours = [record.getMessage() for record in records if record.name.split(".")[0] == "echo_cache"]
    assert ours
    for message in ours:
        assert message.isprintable(), message
        assert SECRET.decode() not in message


async def test_log_of_a_failing_app_is_one_plain_line(caplog: pytest.LogCaptureFixture) -> None:
    """The traceback beside it is the app's own, as a server logs it; the line is ours."""
    caplog.set_level(logging.DEBUG)
    clock = ManualClock()
    request = {"query": b"token=" + SECRET, "headers": [(b"x-secret", SECRET + b"\r\nforged: line")]}
    failing = False

    def handler(scope: dict[str, Any], body: bytes) -> Any:
        if failing:
            raise HostileError(f"{scope['query_string']!r}\r\nforged line {field(scope, b'x-secret')!r}")
        return 200, [(b"cache-control", b"max-age=1, stale-if-error=60"), (b"x-secret", SECRET)], b"page"

    cached = behind_cache(Naive(handler), clock=clock)
    await ask(cached, **request)
    clock.now += 2
    failing = True

    assert (await ask(cached, **request)).body == b"page"
    assert_plain(caplog.records)


async def test_log_of_a_failing_store_does_not_repeat_its_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cached = HTTPCacheMiddleware(Naive(), cache=Cache(FailingReads()))

    answer = await ask(cached, query=SECRET)

    assert answer.status == 200
    assert_plain(caplog.records)


async def test_log_of_a_redis_in_trouble_is_one_plain_line(own_redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = own_redis.url.replace("redis://", "redis://:" + SECRET.decode() + "@")
    cached = behind_cache(Naive(), RedisStore(url, timeout=5))

    assert (await ask(cached, query=SECRET)).status == 200  # a server without a password refuses one
    own_redis.kill()
    assert (await ask(cached, query=SECRET)).status == 200
    await cached.cache.aclose()
    assert_plain(caplog.records)


# --- the bare app is the judge ----------------------------------------------------------------------------------------

OCTETS = st.binary(max_size=24)
TEXT = st.text("aA09 \t,;=\"\\*-:/()<>'é\x00\r\n\x7f", max_size=24).map(lambda text: text.encode("latin-1"))
NUMBERS = st.sampled_from([b"0", b"-1", b"1e9", b"9" * 30, b"0x10", b" 7 ", b"+5", b"\xb2", b"1" * 5_000])
DATES = st.sampled_from(
    [
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov  6 08:49:37 1994",
        b"Fri, 31 Dec 9999 23:59:59 GMT",
        b"Mon, 01 Jan 0001 00:00:00 GMT",
        b"Mon, 99 Foo 2024 99:99:99 GMT",
        b"0",
    ]
)
DIRECTIVES = st.lists(
    st.sampled_from(
        [
            *(b"max-age=60", b"max-age=-1", b"max-age=", b"s-maxage=1", b"no-cache", b'no-cache="x"', b"private"),
            *(b'private="set-cookie"', b"public", b"must-revalidate", b"must-understand", b"no-store", b"immutable"),
            *(b"stale-while-revalidate=9", b"stale-if-error=9", b"max-stale", b"min-fresh=1", b"=", b'"', b"\xff"),
        ]
    ),
    max_size=4,
).map(b", ".join)
VALUES = st.one_of(OCTETS, TEXT, NUMBERS, DATES, DIRECTIVES)

REQUEST_NAMES = st.one_of(
    st.sampled_from(
        [
            *(b"cookie", b"authorization", b"accept-encoding", b"accept-language", b"accept", b"origin", b"connection"),
            *(b"user-agent", b"x-forwarded-host", b"x-http-method-override", b"expect", b"te", b"upgrade", b"host"),
            *(b"content-length", b"transfer-encoding", b"content-type", b"via", b"max-forwards", b""),
        ]
    ),
    OCTETS.map(bytes.lower),
)
RESPONSE_NAMES = st.one_of(
    st.sampled_from(
        [
            *(b"Cache-Control", b"cache-control", b"EXPIRES", b"date", b"Age", b"vary", b"ETag", b"last-modified"),
            *(b"set-cookie", b"content-type", b"content-encoding", b"connection", b"content-range", b"cache-groups"),
            *(b"cache-group-invalidation", b"location", b"content-location", b"cdn-cache-control", b"pragma"),
            *(b"access-control-allow-origin", b"transfer-encoding", b"trailer", b"surrogate-control", b""),
        ]
    ),
    OCTETS,
)
# What a client asks of caches, and gets from them: for these only the kind of the answer can be foretold.
ASKING_NAMES = st.sampled_from(
    [
        *(b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range", b"range"),
        *(b"cache-control", b"pragma"),
    ]
)
STATUSES = st.one_of(st.integers(200, 599), st.sampled_from([200, 200, 200, 204, 206, 304, 404, 500, 199, 0, 999]))
METHODS = st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PURGE", "", "get", "G\x00T", "OPTIONS", "é" * 9])
PATHS = st.one_of(OCTETS, st.sampled_from([b"/", b"*", b"", b"http://a/b", b"//", b"/%", b"/%zz", b"/\xff", b"a:443"]))
CHUNKS = st.lists(st.one_of(OCTETS, OCTETS.map(bytearray), OCTETS.map(memoryview)), max_size=3)


class Scripted:
    """An app that sends what the script says, whatever it is asked."""

    def __init__(self, status: Any, headers: Any, chunks: list[Any], raises: int | None = None) -> None:
        self.status, self.headers, self.chunks, self.raises = status, headers, chunks, raises

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if self.raises == 0:
            raise HostileError("before the head")
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for number, chunk in enumerate(self.chunks):
            if self.raises == number + 1:
                raise HostileError("in the body")
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})


async def outcome(app: Any, scope: dict[str, Any]) -> Any:
    """Return what *app* answers but for what is the cache's, or the error that it raises."""
    try:
        answer = await call(app, scope)
    except HostileError as error:
        return repr(error)
    status, headers, body = answer.of_the_app
    return status, headers, b"" if scope["method"] == "HEAD" else body


@settings(max_examples=300)
@given(
    method=METHODS,
    path=PATHS,
    query=VALUES,
    asked=st.lists(st.tuples(REQUEST_NAMES, VALUES), max_size=5),
    status=STATUSES,
    headers=st.lists(st.tuples(RESPONSE_NAMES, VALUES), max_size=6),
    chunks=CHUNKS,
    raises=st.sampled_from([None, None, None, 0, 1, 2]),
    plain=st.booleans(),
)
def test_answers_and_errors_are_those_of_the_bare_app(
    method: str,
    path: bytes,
    query: bytes,
    asked: Headers,
    status: int,
    headers: Headers,
    chunks: list[Any],
    raises: int | None,
    plain: bool,
) -> None:
    async def run() -> None:
        app = Scripted(status, headers, chunks, raises)
        options = PolicyOptions.rfc9111() if plain else PolicyOptions()
        cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore(), options))
        scope = http_scope(path, path=path.decode("latin-1"), method=method, query=query, headers=asked)
        bare = await outcome(app, copy.deepcopy(scope))
        whole = await outcome(cached, copy.deepcopy(scope))
        assert whole == bare
        # A second time perhaps from the store, which keeps no field of the connection.
        again = await outcome(cached, copy.deepcopy(scope))
        assert _without_hops(again) == _without_hops(bare)

    asyncio.run(run())


def _without_hops(answer: Any) -> Any:
    if isinstance(answer, str):
        return answer
    status, headers, body = answer
    hops = {b"connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"keep-alive", b"proxy-connection"}
    hops |= {b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization"}
    listed = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    hops |= {name.strip(b" \t") for name in listed}
    # What a qualified private or no-cache names is not stored either.
    hops |= {b"set-cookie", b"x"}
    return status, [line for line in headers if line[0] not in hops], body


@settings(max_examples=300)
@given(
    asked=st.lists(st.tuples(ASKING_NAMES, VALUES), min_size=1, max_size=4),
    headers=st.lists(st.tuples(RESPONSE_NAMES, VALUES), max_size=4),
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    warm=st.booleans(),
)
@example([(b"if-none-match", b'"' * 20_000)], [], "GET", True)
@example([(b"if-none-match", b'W/"a",' * 20_000)], [], "GET", True)
@example([(b"range", b"bytes=" + b"9" * 20_000 + b"-")], [], "GET", True)
@example([(b"if-modified-since", b"Sunday, " * 20_000)], [], "GET", True)
@example([(b"cache-control", b'a="' * 20_000)], [], "GET", True)
@example([(b"cache-control", b'max-age="\\' + b"\\" * 20_000)], [], "GET", True)
def test_whatever_is_asked_of_the_cache_is_answered(asked: Headers, headers: Headers, method: str, warm: bool) -> None:
    async def run() -> None:
        app = Scripted(200, [(b"etag", b'"1"'), FRESH, *headers], [b"page"])
        cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))
        if warm:
            await ask(cached)
        for _ in range(2):
            answer = await ask(cached, method=method, headers=asked)
            assert answer.status in (200, 206, 304, 416, 504)
            assert answer.body in (b"page", b"") or answer.status in (206, 504)
        after = await ask(cached)
        assert (after.status, after.body) == (200, b"page")

    asyncio.run(run())


@given(st.integers(0, 255), st.sampled_from(["name", "value"]), st.sampled_from(["request", "response"]))
def test_every_octet_may_stand_in_a_field(octet: int, where: str, whose: str) -> None:
    byte = bytes([octet])
    line = (b"x-" + byte.lower(), b"v") if where == "name" else (b"x-odd", byte)

    async def run() -> None:
        app = Scripted(200, [FRESH, *([line] if whose == "response" else [])], [b"page"])
        cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))
        scope = http_scope(headers=[line] if whose == "request" else [])
        for _ in range(2):
            assert await outcome(cached, dict(scope)) == await outcome(app, dict(scope))

    asyncio.run(run())


# --- large fields -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"x-large", b"cookie", b"accept-language", b"cache-control", b"if-none-match", b"range"]
)
@pytest.mark.parametrize("unit", [b"x", b",", b'"', b"a;q=0.5,", b"\\", b" ", b"a=", b'a="b",', b"1-2,"], ids=repr)
async def test_request_field_of_a_megabyte(name: bytes, unit: bytes) -> None:
    app = Naive(headers=[FRESH, (b"vary", b"x-large, accept-language")])
    cached = behind_cache(app)
    large = [(name, unit * (2**20 // len(unit)))]

    for _ in range(2):
        answer = await ask(cached, headers=large)
        assert answer.status == 200
    # What was kept of it is counted, and nobody else selects it.
    assert (await ask(cached)).body != b"answer 1" or name not in (b"x-large", b"accept-language")


@pytest.mark.parametrize(
    "name",
    [
        b"x-large",
        b"vary",
        b"cache-control",
        b"etag",
        b"connection",
        b"cache-groups",
        b"expires",
        b"content-length",
        b"age",
    ],
)
@pytest.mark.parametrize("unit", [b"x", b",", b'"', b"a,", b'"a", ', b"9"], ids=repr)
async def test_response_field_of_a_megabyte(name: bytes, unit: bytes) -> None:
    line = (name, unit * (2**20 // len(unit)))
    cached = behind_cache(Naive(headers=[line, FRESH]))

    for _ in range(2):
        answer = await ask(cached)
        assert answer.status == 200
        if name not in (b"connection", b"age"):  # these are not stored, and what is left is small
            assert not answer.is_hit
            assert line in answer.headers


@pytest.mark.parametrize("number", [100, 257, 5_000])
async def test_many_response_fields(number: int) -> None:
    headers = [(b"x-%d" % index, b"v") for index in range(number)]
    app = Naive(headers=[FRESH, *headers])
    cached = behind_cache(app)

    for _ in range(2):
        answer = await ask(cached)
        assert [line for line in answer.headers if line[0].startswith(b"x-")] == headers


@pytest.mark.parametrize("length", [2**16, 2**20])
async def test_long_url_is_a_key_like_others_or_none(length: int, redis_url: str) -> None:
    for store in (MemoryStore(), RedisStore(redis_url, timeout=5)):
        cached = behind_cache(Naive(), store)
        for request in ({"raw_path": b"/" + b"p" * length}, {"query": b"q" * length}, {"host": b"h" * length}):
            assert (await ask(cached, **request)).status == 200
            assert (await ask(cached, **request)).status == 200
        await cached.cache.aclose()


# --- apps that break the protocol: what the server would have said, it says -------------------------------------------

BROKEN_HEADERS = [
    pytest.param([("x-a", "text")], id="text"),
    pytest.param([(b"x-a", "text")], id="text-value"),
    pytest.param([("set-cookie", b"a=1"), FRESH], id="text-name"),
    pytest.param([("cache-control", "private")], id="text-private"),
    pytest.param([(b"x-a", None)], id="none"),
    pytest.param([(b"x-a", 7)], id="number"),
    pytest.param([(b"x-a",)], id="one-part"),
    pytest.param([(b"x-a", b"b", b"c")], id="three-parts"),
    pytest.param([b"ab"], id="bytes"),
    pytest.param([7], id="no-pair"),
    pytest.param([(b"x-a", bytearray(b"b"))], id="bytearray"),
    pytest.param([(b"x-a", memoryview(b"b"))], id="memoryview"),
]


@pytest.mark.parametrize("headers", BROKEN_HEADERS)
async def test_headers_that_are_no_headers_go_on_as_they_are(headers: Any) -> None:
    app = Scripted(200, [*headers, FRESH], [b"page"])
    cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))

    for _ in range(2):
        answer = await call(cached, http_scope())
        assert list(answer.start["headers"])[: len(headers)] == headers
    if not isinstance(headers[0], tuple) or not isinstance(headers[0][-1], bytearray | memoryview):
        assert cached.cache.stats().store.entries == 0


async def test_headers_may_be_any_iterable() -> None:
    """ASGI says Iterable: a generator gives them once."""
    lines = [(b"x-a", b"1"), FRESH, (b"content-security-policy", b"default-src 'none'")]

    class Generating(Scripted):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self.headers = (line for line in lines)
            await super().__call__(scope, receive, send)

    for app in (Generating(200, None, [b"page"]), Scripted(200, map(list, lines), [b"page"])):
        cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))
        for method in ("GET", "POST"):
            if isinstance(app, Generating) or method == "GET":
                answer = await ask(cached, method=method)
                assert [tuple(line) for line in answer.headers][: len(lines)] == lines, method


@pytest.mark.parametrize("headers", [7, "text"])
async def test_headers_that_cannot_be_read_are_the_apps_error_or_go_on(headers: Any) -> None:
    cached = HTTPCacheMiddleware(Scripted(200, headers, [b"page"]), cache=Cache(MemoryStore()))
    with contextlib.suppress(TypeError):
        await call(cached, http_scope())
    assert cached.cache.stats().store.entries == 0


async def test_body_that_is_no_bytes_is_not_made_into_some() -> None:
    """bytes(5) would be five NULs, and bytes(10**10) ten gigabytes of them."""
    for body in (5, [1, 2], None, "text"):
        cached = HTTPCacheMiddleware(Scripted(200, [FRESH], [body]), cache=Cache(MemoryStore()))
        try:
            answer = await call(cached, http_scope())
        except (TypeError, ValueError):
            pass
        else:
            assert any(message.get("body") is body for message in answer.messages), body
        assert cached.cache.stats().store.entries == 0, body


MISSING = [
    pytest.param([], id="nothing"),
    pytest.param([{"type": "http.response.body", "body": b"x"}], id="body-without-head"),
    pytest.param([{"type": "http.response.start", "status": 200, "headers": [FRESH]}], id="head-without-body"),
    pytest.param([{"type": "http.response.start", "headers": [FRESH]}], id="no-status"),
    pytest.param([{"type": "http.response.unknown"}], id="unknown"),
    pytest.param([{}], id="no-type"),
    pytest.param([{"type": "http.response.start", "status": "200", "headers": [FRESH]}], id="status-text"),
    pytest.param([{"type": "http.response.start", "status": None, "headers": [FRESH]}], id="status-none"),
]


@pytest.mark.parametrize("messages", MISSING)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_half_an_answer_reaches_the_server_as_it_is(messages: list[dict[str, Any]], method: str) -> None:
    """The server knows what to make of it; it must neither wait for ever nor be stored."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))
    for _ in range(2):
        try:
            answer = await call(cached, http_scope(method=method))
        except KeyError:
            assert "type" not in messages[0] or "status" not in messages[0]
        else:
            assert [message.get("type") for message in answer.messages] == [message["type"] for message in messages]
    assert cached.cache.stats().store.entries == 0


async def test_messages_before_the_head_stay_before_the_head() -> None:
    """Early hints (RFC 8297) are no use behind the answer, and servers refuse them there."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]})
        await send({"type": "http.response.start", "status": 200, "headers": [FRESH]})
        await send({"type": "http.response.body", "body": b"page"})

    answer = await ask(HTTPCacheMiddleware(app, cache=Cache(MemoryStore())))
    assert [message["type"].rpartition(".")[2] for message in answer.messages] == ["early_hint", "start", "body"]


@pytest.mark.parametrize("left_out", ["scheme", "raw_path", "root_path", "client", "server", "asgi", "http_version"])
async def test_scope_may_lack_what_is_optional(left_out: str) -> None:
    cached = behind_cache(Naive())
    scope = http_scope()
    del scope[left_out]

    for expected in (False, True):
        answer = await call(cached, dict(scope))
        assert answer.body == b"answer 1"
        assert answer.is_hit is expected


@pytest.mark.parametrize("where", [1, 2, 3])
async def test_app_that_raises_in_mid_body_stores_nothing(where: int) -> None:
    app = Scripted(200, [FRESH], [b"a", b"b", b"c"], raises=where)
    cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))

    results = await asyncio.gather(*(outcome(cached, http_scope()) for _ in range(20)))

    assert set(results) == {"HostileError('in the body')"}
    assert cached.cache.stats().store.entries == 0
    assert cached.cache.filling_bytes == 0
    assert len(cached.cache.flights) == 0
    app.raises = None
    assert (await ask(cached)).body == b"abc"


# --- a real server ----------------------------------------------------------------------------------------------------


class Served:
    """uvicorn with *app* on a free port, in this event loop."""

    def __init__(self, app: Any, http: str) -> None:
        config = uvicorn.Config(
            app,
            port=0,
            http=http,
            log_config=None,
            lifespan="off",
            ws="none",
            date_header=False,
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)

    async def __aenter__(self) -> int:
        self.task = asyncio.create_task(self.server.serve())
        while not self.server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        return self.server.servers[0].sockets[0].getsockname()[1]

    async def __aexit__(self, *_: object) -> None:
        self.server.should_exit = True
        await self.task


async def raw(port: int, request: bytes) -> bytes:
    """Return all that the server sends for *request* before it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


WIRE = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", id="plain"),
    pytest.param(b"GET * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", id="asterisk"),
    pytest.param(b"GET http://b/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", id="absolute"),
    pytest.param(b"GET / HTTP/1.0\r\n\r\n", id="no-host"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", id="two-hosts"),
    pytest.param(b"GET / HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", id="empty-host"),
    pytest.param(b"GET /\xff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", id="odd-path"),
    pytest.param(b"GET /%00%2f%2e%2e HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", id="encoded-path"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: \xff\xfe\r\n\r\n", id="odd-value"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", id="fat"),
    pytest.param(b"BREW / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", id="unknown-method"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Cookie\r\nCookie: a=1\r\n\r\n", id="hop-by-hop"),
]


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_real_server_answers_with_and_without_a_cache_alike(http: str) -> None:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        seen = [scope["method"].encode(), scope["path"].encode("utf-8", "surrogateescape"), field(scope, b"host"), body]
        content = b" | ".join(seen)
        return 200, [FRESH, (b"content-length", b"%d" % len(content))], content

    app = Naive(handler)
    async with Served(app, http) as bare, Served(behind_cache(app), http) as cached:
        for param in WIRE:
            request = param.values[0]
            for _ in range(2):
                assert _wire(await raw(cached, request)) == _wire(await raw(bare, request)), param.id


def _wire(answer: bytes) -> tuple[list[bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return [first, *sorted(line for line in lines if line.partition(b":")[0].lower() not in OF_THE_CACHE)], body


async def test_real_server_reports_a_lying_length_as_without_a_cache() -> None:
    lying = Scripted(200, [FRESH, (b"content-length", b"10")], [b"short"])
    cached = HTTPCacheMiddleware(lying, cache=Cache(MemoryStore()))
    async with Served(cached, "h11") as port, httpx.AsyncClient() as client:
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"http://127.0.0.1:{port}/")
    assert cached.cache.stats().store.entries == 0


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_real_server_says_what_it_says_of_an_app_that_sends_nothing(http: str) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        return

    cached = HTTPCacheMiddleware(nothing, cache=Cache(MemoryStore()))
    async with Served(cached, http) as port:
        answer = await raw(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
