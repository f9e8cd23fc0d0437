"""
One user's answer is never another's. Rows of the threat table that are held here:

- private answers shared (Flask CVE-2023-30861, Django CVE-2026-6907, -8404, -48587): Authorization, Cookie, the case
  of directives, white space; 2 users x 1,000 concurrent requests;
- CORS reflection without Vary: Origin;
- hop-by-hop abuse: Connection: close, Cookie.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from echo_cache import MemoryStore, RedisStore, TwoLevelStore, cached
from tests.test_security_support import FRESH, Headers, Naive, ask, assert_as_bare, behind_cache, field

ALICE = (b"cookie", b"session=alice")
BOB = (b"cookie", b"session=bob")
USERS = 2
EACH = 1_000


def greets(*headers: tuple[bytes, bytes], status: int = 200) -> Naive:
    """The app that knows who asks, by Cookie or by Authorization, and says so."""

    def handler(scope: dict[str, Any], body: bytes) -> Any:
        return status, headers, b"hello " + field(scope, b"cookie") + field(scope, b"authorization")

    return Naive(handler)


# --- what says that it is private -------------------------------------------------------------------------------------

PRIVATE = [
    pytest.param([b"private"], id="plain"),
    pytest.param([b"PRIVATE"], id="upper-case"),
    pytest.param([b"pRiVaTe"], id="odd-case"),
    pytest.param([b"  private\t"], id="white-space"),
    pytest.param([b",,private,,"], id="empty-members"),
    pytest.param([b"max-age=60,private"], id="after-max-age"),
    pytest.param([b"max-age=60 , \t private"], id="spaced-list"),
    pytest.param([b"max-age=60", b"private"], id="second-line"),
    pytest.param([b"public, private, max-age=60"], id="contradiction"),
    pytest.param([b'private="", max-age=60'], id="empty-argument"),
    pytest.param([b'private="unclosed, max-age=60'], id="unclosed-quote"),
    pytest.param([b'x="a, max-age=60, private'], id="behind-an-unclosed-quote"),
    pytest.param([b"private; max-age=60"], id="semicolon-after"),
    pytest.param([b"private max-age=60"], id="no-comma-after"),
    pytest.param([b"no-store"], id="no-store"),
    pytest.param([b"NO-STORE,max-age=60"], id="no-store-odd-case"),
    pytest.param([b"no-store=1, max-age=60"], id="no-store-argument"),
    pytest.param([b"s-maxage=60, no-store"], id="no-store-after-s-maxage"),
    # What people write who have forgotten the comma. nginx looks for the words, wherever they stand.
    pytest.param([b"max-age=60; private"], id="semicolon-before"),
    pytest.param([b"public; private"], id="semicolon-behind-public"),
    pytest.param([b"public private"], id="no-comma"),
    pytest.param([b"max-age=60, must-revalidate private"], id="no-comma-in-a-list"),
    pytest.param([b"max-age=60, must-revalidate; no-store"], id="no-store-behind-a-semicolon"),
    pytest.param([b"must-revalidate no-store"], id="no-store-without-comma"),
    pytest.param([b'"private"'], id="quoted"),
    pytest.param([b'"private, max-age=60"'], id="all-quoted"),
    pytest.param([b"\xa0private"], id="no-break-space"),
]


@pytest.mark.parametrize("lines", PRIVATE)
async def test_restriction_counts_however_it_is_written(lines: list[bytes]) -> None:
    cached_app = behind_cache(greets(*((b"Cache-CONTROL", line) for line in lines)))

    assert not (await ask(cached_app)).is_stored
    assert not (await ask(cached_app)).is_hit
    assert not (await ask(cached_app, headers=[ALICE])).is_stored
    assert (await ask(cached_app, headers=[BOB])).body == b"hello session=bob"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([FRESH, (b"set-cookie", b"session=alice")], id="set-cookie"),
        pytest.param([FRESH, (b"Set-Cookie", b"session=alice")], id="set-cookie-case"),
        pytest.param([(b"set-cookie", b"")], id="empty-set-cookie"),
        pytest.param([(b"cache-control", b"public, s-maxage=60"), (b"set-cookie", b"a=1")], id="public-set-cookie"),
        pytest.param([FRESH, (b"vary", b"*")], id="vary-star"),
        pytest.param([FRESH, (b"vary", b"Cookie , *")], id="vary-cookie-star"),
    ],
)
@pytest.mark.parametrize("credentials", [None, ALICE])
async def test_answer_for_one_is_stored_for_nobody(headers: Headers, credentials: tuple[bytes, bytes] | None) -> None:
    cached_app = behind_cache(greets(*headers))

    assert not (await ask(cached_app, headers=[credentials] if credentials else [])).is_stored
    assert not (await ask(cached_app, headers=[BOB])).is_hit
    assert not (await ask(cached_app)).is_hit


# --- what the request says of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache_control", "stored"),
    [
        (b"max-age=60", False),
        (b"max-age=60, immutable", False),
        (b"public", False),  # nothing says for how long, and we do not guess for somebody with credentials
        (b"public, max-age=60", True),
        (b"s-maxage=60", True),
        (b"max-age=60, must-revalidate", True),
        (b"max-age=60, public=no", False),
        (b"max-age=60, xpublic", False),
        (b"max-age=60, proxy-revalidate", False),
        (b"no-cache, max-age=60", False),
    ],
)
async def test_authorization_is_shared_only_where_the_response_says_so(cache_control: bytes, stored: bool) -> None:
    """RFC 9111 section 3.5."""
    cached_app = behind_cache(greets((b"cache-control", cache_control)))

    assert (await ask(cached_app, headers=[(b"authorization", b"Bearer alice")])).is_stored is stored
    assert (await ask(cached_app, headers=[(b"authorization", b"Bearer bob")])).is_hit is stored
    assert (await ask(cached_app)).is_hit is stored


@pytest.mark.parametrize("value", [b"", b"Basic Og==", b"x"])
@pytest.mark.parametrize("name", [b"authorization", b"cookie"])
@pytest.mark.parametrize(
    "headers", [[], [(b"cache-control", b"x")], [(b"last-modified", b"Mon, 01 Jan 2001 00:00:00 GMT")]]
)
async def test_answer_that_says_nothing_is_for_strangers_only(headers: Headers, name: bytes, value: bytes) -> None:
    cached_app = behind_cache(greets(*headers))

    assert not (await ask(cached_app, headers=[(name, value)])).is_stored
    assert not (await ask(cached_app)).is_hit
    if not headers:
        assert (await ask(cached_app)).is_hit
        assert not (await ask(cached_app, headers=[(name, value)])).is_hit


async def test_ttl_of_a_route_does_not_override_private() -> None:
    @cached(ttl=60)
    def endpoint() -> None: ...

    def handler(scope: dict[str, Any], body: bytes) -> Any:
        scope["endpoint"] = endpoint
        return 200, [(b"cache-control", b"private")], field(scope, b"cookie")

    cached_app = behind_cache(Naive(handler))
    assert not (await ask(cached_app, headers=[ALICE])).is_stored
    assert (await ask(cached_app, headers=[BOB])).body == BOB[1]


@pytest.mark.parametrize("vary", [b"Cookie", b" cookie ", b"COOKIE,", b",Cookie", b"Accept,\tCookie"])
async def test_vary_on_the_cookie_keeps_users_apart(vary: bytes) -> None:
    requests = [{"headers": [user]} for user in (ALICE, BOB, ALICE, BOB)]
    requests += [{}, {"headers": [(b"cookie", b"")]}, {"headers": [(b"cookie", b"session=alice"), (b"cookie", b"x")]}]
    await assert_as_bare(greets(FRESH, (b"vary", vary)), requests * 2)


async def test_cookie_that_differs_in_white_space_beside_a_comma_is_another() -> None:
    """A list would be normalised there; a cookie is no list, and the app may see a difference."""
    requests = [{"headers": [(b"cookie", value)]} for value in (b"a=1,2", b"a=1, 2", b"a=1 ,2")]
    await assert_as_bare(greets(FRESH, (b"vary", b"cookie")), requests * 2)


async def test_set_cookie_in_a_304_is_for_whoever_asked() -> None:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        if field(scope, b"if-none-match"):
            return 304, [(b"etag", b'"1"'), FRESH, (b"set-cookie", field(scope, b"cookie"))], b""
        return 200, [(b"etag", b'"1"'), FRESH], b"page"

    cached_app = behind_cache(Naive(handler))
    await ask(cached_app)
    await ask(cached_app, headers=[ALICE, (b"cache-control", b"no-cache")])

    for answer in (await ask(cached_app), await ask(cached_app, headers=[BOB])):
        assert answer.get(b"set-cookie") != ALICE[1]
        assert answer.body == b"page"


# --- two users, a thousand requests each, at once ---------------------------------------------------------------------


class Slow:
    """
    An app with private answers, whose first calls all run at the same time: it answers when *together* have come.

    A cache that collapses what it must not would hand one user's answer to the other here.
    """

    def __init__(self, headers: Headers, together: int) -> None:
        self.headers = headers
        self.together = together
        self.calls = 0
        self.gate = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.calls += 1
        if self.calls >= self.together:
            self.gate.set()
        await self.gate.wait()
        who = field(scope, b"cookie") or field(scope, b"authorization")
        await send({"type": "http.response.start", "status": 200, "headers": [*self.headers, (b"x-user", who)]})
        await send({"type": "http.response.body", "body": b"hello ", "more_body": True})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": who})


CROWDS = [
    pytest.param(b"cookie", [], id="says-nothing"),
    pytest.param(b"cookie", [(b"set-cookie", b"a=1"), FRESH], id="set-cookie"),
    pytest.param(b"cookie", [(b"Cache-Control", b" \tPRIVATE , max-age=60")], id="private-in-odd-case"),
    pytest.param(b"cookie", [(b"cache-control", b"no-store")], id="no-store"),
    pytest.param(b"cookie", [FRESH, (b"vary", b"Cookie")], id="vary-cookie"),
    pytest.param(b"cookie", [FRESH, (b"vary", b" * ")], id="vary-star"),
    pytest.param(b"authorization", [FRESH], id="authorization"),
    pytest.param(b"authorization", [], id="authorization-says-nothing"),
]


@pytest.mark.parametrize(("name", "headers"), CROWDS)
async def test_two_users_with_a_thousand_requests_each_are_never_crossed(name: bytes, headers: Headers) -> None:
    app = Slow(headers, together=1)
    cached_app = behind_cache(app)

    async def request(number: int) -> bool:
        who = b"user %d" % (number % USERS)
        answer = await ask(cached_app, headers=[(name, who)])
        return answer.body == b"hello " + who and answer.get(b"x-user") == who

    answers = await asyncio.gather(*(request(number) for number in range(USERS * EACH)))

    assert answers.count(False) == 0
    # A stranger, after all of them, gets an answer of nobody.
    assert (await ask(cached_app)).body == b"hello "


async def test_strangers_who_wait_with_users_are_not_crossed_either() -> None:
    """The leader is anonymous, or a user: neither's answer is for the other, whoever came first."""
    app = Slow([], together=2)
    cached_app = behind_cache(app)
    who = [b"", b"alice", b"", b"bob", b"alice", b""] * 50

    answers = await asyncio.gather(*(ask(cached_app, headers=[(b"cookie", user)] if user else []) for user in who))

    assert [answer.body for answer in answers] == [b"hello " + user for user in who]


@pytest.mark.parametrize(
    "make", [RedisStore, lambda url, **options: TwoLevelStore(MemoryStore(), RedisStore(url, **options))]
)
async def test_private_answers_do_not_cross_in_redis(redis_url: str, make: Callable[..., Any]) -> None:
    store = make(redis_url, timeout=10)
    cached_app = behind_cache(Slow([FRESH, (b"vary", b"cookie")], together=1), store)
    try:
        for _ in range(2):
            users = [b"user %d" % (number % 5) for number in range(200)]
            answers = await asyncio.gather(*(ask(cached_app, headers=[(b"cookie", user)]) for user in users))
            assert [answer.body for answer in answers] == [b"hello " + user for user in users]
    finally:
        await cached_app.cache.aclose()


# --- CORS -------------------------------------------------------------------------------------------------------------


def reflects_origin(scope: dict[str, Any], body: bytes) -> Any:
    origin = field(scope, b"origin")
    allowed = [(b"Access-Control-Allow-Origin", origin), (b"access-control-allow-credentials", b"true")]
    return 200, [FRESH, *(allowed if origin else [(b"access-control-allow-origin", b"null")])], b"page"


async def test_reflected_origin_is_in_the_key_without_vary() -> None:
    origins = (b"https://evil.example", b"https://good.example", b"null", b"")
    requests: list[dict[str, Any]] = [{}, *({"headers": [(b"origin", origin)]} for origin in origins)]
    await assert_as_bare(Naive(reflects_origin), requests * 2)
    await assert_as_bare(Naive(reflects_origin), list(reversed(requests)) * 2)


@pytest.mark.parametrize(
    ("value", "one_for_all"),
    [(b"*", True), (b" * ", True), (b"null", False), (b"*, *", False), (b"https://a.example", False), (b"", False)],
)
async def test_only_the_star_permits_one_answer_for_all_origins(value: bytes, one_for_all: bool) -> None:
    cached_app = behind_cache(Naive(headers=[FRESH, (b"access-control-allow-origin", value)]))
    await ask(cached_app, headers=[(b"origin", b"https://a.example")])

    assert (await ask(cached_app, headers=[(b"origin", b"https://b.example")])).is_hit is one_for_all
    assert (await ask(cached_app)).is_hit is one_for_all


async def test_waiting_for_a_reflected_origin_does_not_share_it() -> None:
    cached_app = behind_cache(Naive(reflects_origin))
    origins = [b"https://%d.example" % (number % 7) for number in range(70)]

    answers = await asyncio.gather(*(ask(cached_app, headers=[(b"origin", origin)]) for origin in origins))

    assert [answer.get(b"access-control-allow-origin") for answer in answers] == origins


# --- hop by hop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "connection",
    [
        b"close, Cookie, Authorization",
        b"cookie,authorization",
        b"COOKIE , AUTHORIZATION",
        b"Authorization\t,\tCookie, close",
        b"close, cache-control, cookie, authorization, host",
    ],
)
@pytest.mark.parametrize(
    ("credentials", "headers"),
    [
        pytest.param(ALICE, (), id="cookie"),
        pytest.param((b"authorization", b"Bearer alice"), (FRESH,), id="authorization"),
        pytest.param((b"authorization", b"Bearer alice"), (), id="authorization-says-nothing"),
    ],
)
async def test_credentials_that_connection_lists_are_credentials(
    connection: bytes, credentials: tuple[bytes, bytes], headers: Headers
) -> None:
    cached_app = behind_cache(greets(*headers))

    for fields in ([(b"connection", connection), credentials], [credentials, (b"connection", connection)]):
        assert not (await ask(cached_app, headers=fields)).is_stored
    assert not (await ask(cached_app)).is_hit


async def test_fields_that_the_response_lists_are_not_stored_and_decide_all_the_same() -> None:
    lists_set_cookie = behind_cache(greets(FRESH, (b"connection", b"set-cookie"), (b"set-cookie", b"a=1")))
    assert not (await ask(lists_set_cookie)).is_stored

    lists_vary = behind_cache(greets(FRESH, (b"connection", b"vary, cache-control"), (b"vary", b"cookie")))
    await ask(lists_vary, headers=[ALICE])
    assert (await ask(lists_vary, headers=[BOB])).body == b"hello session=bob"

    lists_private = behind_cache(greets((b"cache-control", b"private"), (b"connection", b"close, cache-control")))
    assert not (await ask(lists_private)).is_stored
