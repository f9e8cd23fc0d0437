"""
No request decides what others get. Rows of the threat table that are held here:

- HEAD poisons GET (cacheable-response #86);
- error poisoning (CPDoS; Next.js CVE-2025-49826);
- Range poisoning and RangeAmp;
- 304 poisoning;
- response splitting, at storing (at loading: test_security_redis);
- a flood of no-cache requests for one key.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore
from tests.test_security_support import (
    FRESH,
    Answer,
    Headers,
    ManualClock,
    Naive,
    ask,
    behind_cache,
    field,
)

NO_CACHE = (b"cache-control", b"no-cache")
ETAG = (b"etag", b'"1"')
BODY = bytes(range(256)) * 4


# --- HEAD -------------------------------------------------------------------------------------------------------------


def by_method(scope: dict[str, Any], body: bytes) -> Any:
    return 200, [FRESH, (b"x-method", scope["method"].encode())], b"" if scope["method"] == "HEAD" else b"page"


@pytest.mark.parametrize("extra", [[], [NO_CACHE], [(b"cookie", b"a=1")]])
async def test_head_never_stores(extra: Headers) -> None:
    cached = behind_cache(Naive(by_method))

    for _ in range(2):
        assert not (await ask(cached, method="HEAD", headers=extra)).is_stored
    assert cached.cache.stats().store.entries == 0
    assert (await ask(cached)).body == b"page"


async def test_head_of_a_stored_page_leaves_the_page_whole() -> None:
    cached = behind_cache(Naive(by_method))
    await ask(cached)

    for extra in ([], [NO_CACHE], [(b"range", b"bytes=0-0")], [(b"if-none-match", b"*")]):
        assert (await ask(cached, method="HEAD", headers=extra)).body == b""
        assert (await ask(cached)).body == b"page"


async def test_head_does_not_answer_those_who_wait_for_get() -> None:
    gate = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await Naive(by_method)(scope, receive, send)

    cached = behind_cache(app)
    head = asyncio.create_task(ask(cached, method="HEAD"))
    gets = [asyncio.create_task(ask(cached)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()

    assert (await head).body == b""
    assert [(await get).body for get in gets] == [b"page"] * 5


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param((b"content-length", b"0"), id="length"),
        pytest.param((b"content-encoding", b"gzip"), id="encoding"),
        pytest.param((b"content-type", b"text/evil"), id="type"),
        pytest.param((b"content-range", b"bytes 0-0/4"), id="range"),
        pytest.param((b"transfer-encoding", b"chunked"), id="framing"),
        pytest.param((b"set-cookie", b"session=alice"), id="cookie"),
    ],
)
async def test_head_with_other_fields_never_changes_what_the_stored_body_is(forged: tuple[bytes, bytes]) -> None:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        extra = [forged] if scope["method"] == "HEAD" else []
        return 200, [FRESH, ETAG, (b"content-type", b"text/html"), *extra], b"page"

    app = Naive(handler)
    cached = behind_cache(app)
    whole = await ask(cached)
    await ask(cached, method="HEAD", headers=[NO_CACHE])

    after = await ask(cached)
    assert after.body == b"page"
    assert after.of_the_app == whole.of_the_app


# --- errors -----------------------------------------------------------------------------------------------------------

FRESHNESS = [
    pytest.param([], id="says-nothing"),
    pytest.param([FRESH], id="max-age"),
    pytest.param([(b"cache-control", b"public, s-maxage=3600")], id="s-maxage"),
    pytest.param([(b"expires", b"Fri, 01 Jan 2100 00:00:00 GMT")], id="expires"),
]


def suspicious(headers: Headers, status: int) -> Naive:
    """The app that stumbles over what it did not expect, and says of its error what it says of its pages."""

    def handler(scope: dict[str, Any], body: bytes) -> Any:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        odd = any(not 32 <= octet < 127 and octet != 9 for _, value in scope["headers"] for octet in value)
        override = any(
            field(scope, b"x-" + name) for name in (b"http-method-override", b"http-method", b"method-override")
        )
        return (status if size > 8_192 or odd or override else 200), headers, b"page"

    return Naive(handler)


@pytest.mark.parametrize("headers", FRESHNESS)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 414, 431, 500, 501, 503])
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param([(b"x-oversized", b"x" * 9_000)], id="oversized"),
        pytest.param([(b"x-many-%d" % number, b"x" * 90) for number in range(100)], id="oversized-in-many"),
        pytest.param([(b"x-http-method-override", b"POST")], id="method-override"),
        pytest.param([(b"x-http-method", b"DELETE")], id="http-method"),
        pytest.param([(b"x-method-override", b"TRACE")], id="override"),
        pytest.param([(b"x-meta", b"a\x07b")], id="bell"),
        pytest.param([(b"x-meta", b"a\x00b")], id="nul"),
        pytest.param([(b"x-meta", b"a\nb")], id="line-feed"),
        pytest.param([(b"x-meta", b"\x7f")], id="delete"),
        pytest.param([(b"x-meta", b"\xff\xfe")], id="high"),
    ],
)
async def test_error_that_the_request_provoked_is_not_for_others(
    attack: Headers, status: int, headers: Headers
) -> None:
    cached = behind_cache(suspicious(headers, status))

    attacked = await ask(cached, headers=attack)
    assert attacked.status == status
    assert not attacked.is_stored
    victim = await ask(cached)
    assert victim.status == 200
    assert not victim.is_hit


@pytest.mark.parametrize("name", [b"x-http-method-override", b"x-http-method", b"x-method-override"])
async def test_success_under_another_method_is_not_for_others(name: bytes) -> None:
    cached = behind_cache(Naive(lambda scope, body: (200, [FRESH], field(scope, name) or b"page")))
    assert (await ask(cached, headers=[(name, b"DELETE")])).body == b"DELETE"

    assert (await ask(cached)).body == b"page"


async def test_those_who_wait_with_the_attacker_get_no_error_of_his() -> None:
    gate = asyncio.Event()
    inner = suspicious([FRESH], 400)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await inner(scope, receive, send)

    cached = behind_cache(app)
    attacker = asyncio.create_task(ask(cached, headers=[(b"x-oversized", b"x" * 9_000)]))
    await asyncio.sleep(0)
    victims = [asyncio.create_task(ask(cached)) for _ in range(10)]
    await asyncio.sleep(0)
    gate.set()

    assert (await attacker).status == 400
    assert [(await victim).status for victim in victims] == [200] * 10


@pytest.mark.parametrize("status", [*range(200, 227), *range(300, 309), *range(400, 452), *range(500, 512), 599])
async def test_without_explicit_freshness_few_statuses_are_stored(status: int) -> None:
    """RFC 9110 section 15.1, without 206; and never what answers a request field that is not in the key."""
    stored = {200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501}
    never = {206, 304, 407, 412, 416, 417, 428, 429, 431, 511}

    assert (await ask(behind_cache(Naive(status=status, headers=[])))).is_stored is (status in stored)
    assert (await ask(behind_cache(Naive(status=status)))).is_stored is (status not in never)


# --- ranges -----------------------------------------------------------------------------------------------------------


def serves_ranges(scope: dict[str, Any], body: bytes) -> Any:
    """The app that knows single ranges, and answers an odd one with 400 that caches may have for long."""
    wanted = field(scope, b"range")
    if not wanted:
        return 200, [FRESH, ETAG], BODY
    if wanted == b"bytes=0-9":
        return 206, [FRESH, ETAG, (b"content-range", b"bytes 0-9/1024")], BODY[:10]
    return 400, [(b"cache-control", b"public, max-age=3600")], b"what?"


@pytest.mark.parametrize(
    "value", [b"bytes=0-9", b"bytes=9-0", b"cow", b"", b"bytes=-", b"bytes=99999999999999999999-", b"bytes=0-0,1-1"]
)
@pytest.mark.parametrize("extra", [[], [(b"if-range", b'"1"')], [(b"if-range", b'"x"')]])
async def test_range_request_never_fills(value: bytes, extra: Headers) -> None:
    cached = behind_cache(Naive(serves_ranges))

    answer = await ask(cached, headers=[(b"range", value), *extra])
    assert not answer.is_stored
    assert cached.cache.stats().store.entries == 0
    assert (await ask(cached)).body == BODY


@pytest.mark.parametrize("status", [200, 206])
async def test_part_that_nobody_asked_for_is_not_stored(status: int) -> None:
    part = [FRESH, (b"content-range", b"bytes 0-3/1024")]
    cached = behind_cache(Naive(status=status, headers=part))

    assert not (await ask(cached)).is_stored
    assert not (await ask(cached)).is_hit


RANGES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 2_000), st.integers(0, 2_000)).map(lambda pair: b"%d-%d" % pair),
        st.integers(0, 2_000).map(lambda first: b"%d-" % first),
        st.integers(0, 2_000).map(lambda suffix: b"-%d" % suffix),
        st.sampled_from([b"0-", b"0-0", b"-1", b"-", b"x", b"", b"0-99999999999999999999999", b"-0"]),
    ),
    min_size=1,
    max_size=40,
)


@given(RANGES, st.sampled_from([b"bytes=", b"BYTES=", b"bytes =", b"cows=", b""]))
def test_ranges_never_give_more_than_the_whole(specs: list[bytes], unit: bytes) -> None:
    async def run() -> Answer:
        cached = behind_cache(Naive(serves_ranges))
        await ask(cached)
        return await ask(cached, headers=[(b"range", unit + b",".join(specs))])

    answer = asyncio.run(run())
    assert answer.is_hit
    assert answer.status in (200, 206, 416)
    assert len(answer.body) <= len(BODY)
    assert answer.get(b"content-length") == b"%d" % len(answer.body)
    if answer.status == 200:
        assert answer.body == BODY


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"bytes=" + b",".join([b"0-"] * 17), id="seventeen"),
        pytest.param(b"bytes=" + b",".join([b"0-"] * 100_000), id="a-hundred-thousand"),
        pytest.param(b"bytes=0-1023,0-1023", id="overlapping"),
        pytest.param(b"bytes=0-,-1024", id="overlapping-suffix"),
        pytest.param(b"bytes=0-0," * 16 + b"0-0", id="small-and-many"),
    ],
)
async def test_many_or_overlapping_ranges_get_the_whole_once(value: bytes) -> None:
    app = Naive(serves_ranges)
    cached = behind_cache(app)
    await ask(cached)

    answer = await ask(cached, headers=[(b"range", value)])
    assert answer.status in (200, 416)
    assert len(answer.body) <= len(BODY)
    assert len(app.calls) == 1


# --- 304 --------------------------------------------------------------------------------------------------------------


def answers_conditions(scope: dict[str, Any], body: bytes) -> Any:
    if field(scope, b"if-none-match") or field(scope, b"if-modified-since"):
        return 304, [FRESH, ETAG], b""
    return 200, [FRESH, ETAG], b"page"


@pytest.mark.parametrize(
    "condition",
    [
        (b"if-none-match", b'"1"'),
        (b"if-none-match", b"*"),
        (b"if-none-match", b'W/"1", "2"'),
        (b"if-modified-since", b"Fri, 01 Jan 2100 00:00:00 GMT"),
        (b"If-None-Match".lower(), b""),
    ],
)
async def test_condition_of_a_client_never_reaches_a_fill(condition: tuple[bytes, bytes]) -> None:
    app = Naive(answers_conditions)
    cached = behind_cache(app)

    await ask(cached, headers=[condition])

    assert {name for name, _ in app.calls[0]["headers"]} == {b"host"}
    victim = await ask(cached)
    assert (victim.status, victim.body) == (200, b"page")


@pytest.mark.parametrize("headers", [[], [FRESH, ETAG], [(b"cache-control", b"public, s-maxage=60"), ETAG]])
async def test_unasked_304_is_never_stored(headers: Headers) -> None:
    cached = behind_cache(Naive(status=304, headers=headers))

    assert not (await ask(cached)).is_stored
    assert not (await ask(cached)).is_hit
    assert cached.cache.stats().store.entries == 0


async def test_unasked_304_leaves_the_stored_page_as_it_is() -> None:
    """A stored page without a validator of the app's cannot have been asked about."""
    clock = ManualClock()
    statuses = iter([200, 304, 304])
    cached = behind_cache(
        Naive(lambda scope, body: (next(statuses), [FRESH, (b"x-evil", b"%d" % len(cached.app.calls))], b"page")),
        clock=clock,
    )
    first = await ask(cached)
    for headers in ([NO_CACHE], [(b"cache-control", b"max-age=0, no-cache")]):
        assert (await ask(cached, headers=headers)).status == 304
    after = await ask(cached)

    assert after.is_hit
    assert after.of_the_app == first.of_the_app


@pytest.mark.parametrize(
    "forged",
    [
        (b"content-length", b"1"),
        (b"Content-Length", b"999"),
        (b"content-encoding", b"gzip"),
        (b"Content-Type", b"text/evil"),
        (b"content-range", b"bytes 0-0/4"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
    ],
)
async def test_304_never_changes_what_the_stored_body_is(forged: tuple[bytes, bytes]) -> None:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        if field(scope, b"if-none-match"):
            return 304, [FRESH, ETAG, forged, (b"x-seen", b"304")], b""
        return 200, [FRESH, ETAG, (b"content-type", b"text/html")], b"page"

    cached = behind_cache(Naive(handler))
    first = await ask(cached)
    await ask(cached, headers=[NO_CACHE])
    after = await ask(cached)

    assert after.is_hit
    assert after.get(b"x-seen") == b"304"
    assert after.of_the_app == (200, sorted([*first.of_the_app[1], (b"x-seen", b"304")]), b"page")
    assert after.get(b"content-length") == b"4"


@pytest.mark.parametrize("etag", [b'"other"', b'W/"other"', b"garbage", b""])
async def test_304_about_something_else_changes_nothing(etag: bytes) -> None:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        if field(scope, b"if-none-match"):
            return 304, [FRESH, (b"etag", etag), (b"x-evil", b"1")], b""
        return 200, [FRESH, ETAG], b"page"

    cached = behind_cache(Naive(handler))
    await ask(cached)
    validated = await ask(cached, headers=[NO_CACHE])
    after = await ask(cached)

    assert (validated.status, validated.body) == (200, b"page")
    assert (after.status, after.body, after.get(b"x-evil")) == (200, b"page", None)
    assert after.get(b"etag") == ETAG[1]


# --- response splitting, at storing -----------------------------------------------------------------------------------

EVIL_TEXTS = [b"a\r\nset-cookie: x=1", b"a\nb", b"a\rb", b"a\x00b", b"\r\n\r\n<script>", b"\n", b"\x00"]


@pytest.mark.parametrize("text", EVIL_TEXTS, ids=repr)
@pytest.mark.parametrize("where", ["value", "name"])
async def test_field_that_splits_a_message_is_not_stored(text: bytes, where: str) -> None:
    line = (b"x-evil", text) if where == "value" else (text, b"x")
    cached = behind_cache(Naive(headers=[FRESH, line]))

    answer = await ask(cached)
    # It goes on to the server as it came: to refuse it or not is the server's, as without a cache.
    assert line in answer.headers
    assert not answer.is_stored
    assert not (await ask(cached)).is_hit


@pytest.mark.parametrize("name", [b"", b" ", b"cache-control ", b"set-cookie\t", b"x y", b"x:y", b"\xe9", b"x\x7f"])
async def test_name_that_is_no_token_is_not_stored(name: bytes) -> None:
    """ "Set-Cookie " with a blank is a cookie to lenient clients and was none to the rules."""
    assert not (await ask(behind_cache(Naive(headers=[FRESH, (name, b"x")])))).is_stored


@pytest.mark.parametrize("text", EVIL_TEXTS, ids=repr)
async def test_field_that_splits_a_message_does_not_enter_by_a_304(text: bytes) -> None:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        return (
            (304 if field(scope, b"if-none-match") else 200),
            [
                FRESH,
                ETAG,
                *([(b"x-evil", text)] if field(scope, b"if-none-match") else []),
            ],
            b"page",
        )

    cached = behind_cache(Naive(handler))
    await ask(cached)
    validated = await ask(cached, headers=[NO_CACHE])

    for answer in (validated, await ask(cached), await ask(cached)):
        assert answer.get(b"x-evil") is None
        assert answer.body == b"page"


# --- a flood of no-cache ----------------------------------------------------------------------------------------------


class Crowded:
    """An app that knows how many of its calls run at the same time."""

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.calls = self.running = self.most = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(5):
            await asyncio.sleep(0)
        asked = field(scope, b"if-none-match")
        await send({"type": "http.response.start", "status": 304 if asked else 200, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": b"" if asked else b"page"})
        self.running -= 1


FORCING = [
    pytest.param((b"cache-control", b"no-cache"), id="no-cache"),
    pytest.param((b"Cache-Control".lower(), b"NO-CACHE, max-age=0"), id="odd-case"),
    pytest.param((b"cache-control", b"max-age=0"), id="max-age"),
    pytest.param((b"cache-control", b"min-fresh=999999"), id="min-fresh"),
    pytest.param((b"pragma", b"no-cache"), id="pragma"),
]


@pytest.mark.parametrize("forcing", FORCING)
@pytest.mark.parametrize("headers", [pytest.param([FRESH], id="plain"), pytest.param([FRESH, ETAG], id="validator")])
@pytest.mark.parametrize("warm", [True, False])
async def test_flood_of_forced_misses_is_one_call_at_a_time(
    forcing: tuple[bytes, bytes], headers: Headers, warm: bool
) -> None:
    app = Crowded(headers)
    cached = behind_cache(app)
    if warm:
        await ask(cached)

    answers = await asyncio.gather(*(ask(cached, headers=[forcing]) for _ in range(300)))

    assert {(answer.status, answer.body) for answer in answers} == {(200, b"page")}
    assert app.most == 1


@pytest.mark.parametrize("forcing", [*FORCING, pytest.param((b"cache-control", b"no-store"), id="no-store")])
async def test_directives_of_requests_can_be_ignored(forcing: tuple[bytes, bytes]) -> None:
    app = Crowded([FRESH])
    cached = behind_cache(app, request_directives="ignore")

    for _ in range(3):
        answers = await asyncio.gather(*(ask(cached, headers=[forcing]) for _ in range(100)))
        assert {answer.body for answer in answers} == {b"page"}
    assert app.calls == 1
    assert (await ask(cached, b"/other", headers=[(b"cache-control", b"only-if-cached")])).status == 200


# --- apps that break the protocol -------------------------------------------------------------------------------------


async def test_error_page_behind_a_second_head_is_not_stored_under_the_first() -> None:
    """A server refuses a second head; until it does, what follows is no page of the first."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [FRESH]})
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"error"})

    cached = HTTPCacheMiddleware(app, cache=Cache(MemoryStore()))
    first = await ask(cached)

    # The server sees both, in order, as without a cache, and can say so.
    assert [message.get("status") for message in first.messages][:2] == [200, 500]
    assert cached.cache.stats().store.entries == 0
