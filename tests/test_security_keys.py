"""
What a request is looked up by cannot be bent. Rows of the threat table that are held here:

- unkeyed Host and X-Forwarded-* that the app reflects (web cache poisoning, CWE-349);
- cache deception: paths with an extension, a parameter, an encoded slash, a NUL or dot segments;
- the decoded path of ASGI: %2F, %41, NFC and NFD, a scope without raw_path;
- parameter cloaking (CVE-2021-23336);
- fat GET;
- Vary explosion;
- key collision and injection.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions, RedisStore, cached
from echo_cache.codec import key_digest, variant_id
from echo_cache.policy import primary_key, request_of_scope
from tests.test_security_support import FRESH, Answer, Naive, ask, assert_as_bare, behind_cache, call, field, http_scope

COOKIE = (b"cookie", b"session=victim")


def key_of(scope: dict[str, Any], options: PolicyOptions | None = None) -> tuple[Any, ...]:
    return primary_key(request_of_scope(scope), options or PolicyOptions())


# --- Host and X-Forwarded-* -------------------------------------------------------------------------------------------


def links_to_itself(scope: dict[str, Any], body: bytes) -> Answer:
    """The naive app: it writes links to whatever host the request names."""
    link = b"%s://%s%s" % (scope["scheme"].encode(), field(scope, b"host"), scope["path"].encode())
    return 200, [FRESH, (b"content-location", link)], b"<script src='%s/app.js'>" % link


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param({"host": b"evil.example"}, id="host"),
        pytest.param({"host": b"example.com:1337"}, id="port"),
        pytest.param({"host": b"example.com@evil.example"}, id="userinfo"),
        pytest.param({"host": b"example.com."}, id="trailing-dot"),
        pytest.param({"host": b""}, id="empty"),
        pytest.param({"host": None}, id="absent"),
        pytest.param({"host": b"evil.example", "headers": [(b"host", b"example.com")]}, id="duplicated-evil-first"),
        pytest.param({"host": b"example.com", "headers": [(b"host", b"evil.example")]}, id="duplicated-evil-last"),
        pytest.param({"scheme": "https"}, id="scheme"),
        pytest.param({"host": b"example.com\x00"}, id="nul"),
        pytest.param({"host": b"example.com "}, id="space"),
    ],
)
@pytest.mark.parametrize("attacker_first", [True, False])
async def test_reflected_host_is_in_the_key(attack: dict[str, Any], attacker_first: bool) -> None:
    requests = [attack, {}] if attacker_first else [{}, attack]
    await assert_as_bare(Naive(links_to_itself), requests)


async def test_another_host_is_never_stored_where_hosts_are_named() -> None:
    cached = behind_cache(Naive(links_to_itself), allowed_hosts=["Example.com"])

    for host in (b"evil.example", b"example.com:1337", b"example.com.", b"", None, b"xample.com", b"a.example.com"):
        answer = await ask(cached, host=host)
        assert not answer.is_stored, host
        assert b"detail=host-not-allowed" in answer.cache_status
        assert not (await ask(cached, host=host)).is_hit, host
    assert not (await ask(cached, headers=[(b"host", b"example.com")])).is_stored
    assert cached.cache.stats().store.entries == 0

    assert (await ask(cached)).is_stored
    assert (await ask(cached, host=b"EXAMPLE.com:80")).is_hit


async def test_scheme_from_a_trusted_proxy_is_in_the_key() -> None:
    """X-Forwarded-Proto counts when something outside, which knows the proxy, has put it into the scope."""
    app = Naive(links_to_itself)
    outer = ProxyHeadersMiddleware(behind_cache(app), trusted_hosts="192.0.2.1")
    secure = [(b"x-forwarded-proto", b"https")]

    assert (await ask(outer)).body.startswith(b"<script src='http://")
    assert (await ask(outer, headers=secure)).body.startswith(b"<script src='https://")
    assert (await ask(outer)).is_hit
    assert (await ask(outer, headers=secure)).is_hit


@pytest.mark.parametrize("name", [b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix", b"forwarded"])
@pytest.mark.parametrize("how", ["vary", "route"])
async def test_reflected_proxy_field_can_be_made_part_of_the_key(name: bytes, how: str) -> None:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        if how == "route":
            scope["endpoint"] = endpoint
        return 200, [FRESH, *([(b"vary", name.title())] if how == "vary" else [])], b"for " + field(scope, name)

    @cached(vary=[name.decode()])
    def endpoint() -> None: ...

    cached_app = behind_cache(Naive(handler))
    assert (await ask(cached_app, headers=[(name, b"evil.example")])).body == b"for evil.example"
    assert (await ask(cached_app)).body == b"for "
    assert (await ask(cached_app, headers=[(name, b"evil.example")])).is_hit


# --- cache deception --------------------------------------------------------------------------------------------------

DECEPTIONS = [
    b"/account",
    b"/account/x.css",
    b"/account/nonexistent.js",
    b"/account;x.css",
    b"/account;.css",
    b"/account%3b.css",
    b"/account%2fx.css",
    b"/account%00.css",
    b"/account%0ax.css",
    b"/account%23.css",
    b"/account%3f.css",
    b"/account/.css",
    b"/static/..%2faccount",
    b"/static/%2e%2e/account",
    b"/static/../account",
    b"/static/..%5caccount.css",
    b"/account/../static/x.css",
    b"//account/x.css",
    b"/robots.txt/../account",
    b"/account/favicon.ico",
]


def account(scope: dict[str, Any], body: bytes) -> Any:
    """The naive app: every path with "account" in it is the account of whoever asks; nothing is said of caches."""
    return 200, [(b"content-type", b"text/html")], b"account of " + (field(scope, b"cookie") or b"nobody")


@pytest.mark.parametrize("raw_path", DECEPTIONS, ids=repr)
@pytest.mark.parametrize(
    "credentials", [pytest.param(COOKIE, id="cookie"), pytest.param((b"authorization", b"Basic dmlj"), id="basic")]
)
async def test_no_extension_makes_a_private_page_public(raw_path: bytes, credentials: tuple[bytes, bytes]) -> None:
    cached = behind_cache(Naive(account))

    lured = await ask(cached, raw_path, headers=[credentials])
    attacker = await ask(cached, raw_path)

    assert not lured.is_stored
    assert not attacker.is_hit
    assert attacker.body == b"account of nobody"
    # And what strangers get is not what somebody with a session gets.
    assert not (await ask(cached, raw_path, headers=[credentials])).is_hit


@pytest.mark.parametrize("raw_path", DECEPTIONS, ids=repr)
async def test_storing_does_not_depend_on_the_path(raw_path: bytes) -> None:
    public, private = behind_cache(Naive()), behind_cache(Naive(headers=[(b"cache-control", b"private")]))

    assert (await ask(public, raw_path)).is_stored
    assert not (await ask(private, raw_path)).is_stored


async def test_last_modified_is_no_freshness_for_a_private_page() -> None:
    """The heuristic is a default of ours as well: a user's file behind a session has a Last-Modified too."""
    page = [(b"last-modified", b"Mon, 01 Jan 2001 00:00:00 GMT"), (b"etag", b'"1"')]
    cached = behind_cache(Naive(headers=page))

    assert not (await ask(cached, b"/file.pdf", headers=[COOKIE])).is_stored
    assert not (await ask(cached, b"/file.pdf")).is_hit


# --- the path as it was sent ------------------------------------------------------------------------------------------

TWINS = [
    pytest.param(b"/a%2Fb", b"/a/b", id="slash"),
    pytest.param(b"/a%2fb", b"/a%2Fb", id="case-of-the-digits"),
    pytest.param(b"/%41", b"/A", id="unreserved"),
    pytest.param(b"/caf%C3%A9", b"/cafe%CC%81", id="nfc-nfd"),
    pytest.param(b"/a%00", b"/a", id="nul"),
    pytest.param(b"/a/", b"/a", id="trailing-slash"),
    pytest.param(b"//a", b"/a", id="double-slash"),
    pytest.param(b"/./a", b"/a", id="dot"),
    pytest.param(b"/a/../b", b"/b", id="dots"),
    pytest.param(b"/a%3Fq", b"/a", id="question-mark"),
    pytest.param(b"/a+b", b"/a%20b", id="plus"),
    pytest.param(b"/A", b"/a", id="case"),
    pytest.param(b"/%ff", b"/%C3%BF", id="latin-1"),
    pytest.param(b"*", b"/*", id="asterisk-form"),
    pytest.param(b"http://evil.example/", b"/", id="absolute-form"),
    pytest.param(b"", b"/", id="empty"),
]


def reflects_raw_path(scope: dict[str, Any], body: bytes) -> Any:
    return 200, [FRESH], scope.get("raw_path", b"none") + b" | " + scope["path"].encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(("one", "other"), TWINS)
async def test_paths_that_the_app_can_tell_apart_are_apart(one: bytes, other: bytes) -> None:
    requests = [{"raw_path": one}, {"raw_path": other}, {"raw_path": one}, {"raw_path": other}]
    await assert_as_bare(Naive(reflects_raw_path), requests)


@pytest.mark.parametrize("path", ["/a/b", "/A", "/caf\u00e9", "/cafe\u0301", "/\udcff", "/", ""])
async def test_decoded_paths_have_a_namespace_of_their_own(path: str) -> None:
    """Two servers before one store: one gives raw_path, the other does not, and the app can tell."""
    cached = behind_cache(Naive(reflects_raw_path))
    raw = path.encode("utf-8", "surrogateescape")

    decoded = await ask(cached, None, path=path)
    sent = await ask(cached, raw, path=path)

    assert decoded.is_stored
    assert sent.is_stored
    assert not sent.is_hit
    assert (await ask(cached, None, path=path)).body == decoded.body != sent.body


async def test_raw_path_of_none_is_an_absent_one() -> None:
    cached = behind_cache(Naive())
    await call(cached, {**http_scope(None, path="/x"), "raw_path": None})

    assert (await ask(cached, None, path="/x")).is_hit


# --- parameter cloaking -----------------------------------------------------------------------------------------------


def reflects_query(scope: dict[str, Any], body: bytes) -> Any:
    return 200, [FRESH], scope["query_string"]


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        (b"utm=1", b""),
        (b"a=1&utm=evil", b"a=1"),
        (b"utm=1&utm=2&a=1", b"a=1"),
        (b"utm&a=1", b"a=1"),
        # The semicolon is a separator to some apps. What hides behind an ignored name goes with it.
        (b"utm=1;a=evil", b""),
        (b"a=1;utm=evil", b"a=1;utm=evil"),
        # A disguised name is not ignored: it is in the key and the app sees it.
        (b"%75tm=evil", b"%75tm=evil"),
        (b"utm%00=evil", b"utm%00=evil"),
        (b"UTM=evil", b"UTM=evil"),
        (b"utm[]=evil", b"utm[]=evil"),
        (b"+utm=evil", b"+utm=evil"),
        (b"a=1&&b=2", b"a=1&&b=2"),
        (b"a=1&utm=?&a=2", b"a=1&a=2"),
    ],
)
async def test_app_sees_exactly_the_query_that_is_in_the_key(query: bytes, seen: bytes) -> None:
    app = Naive(reflects_query)
    cached = behind_cache(app, ignored_query_parameters=["utm"])

    answer = await ask(cached, query=query)

    assert answer.body == seen
    assert [key[4] async for key in cached.cache.store.keys()] == [seen]  # noqa: SIM118  # a store is no dict
    # Also where the answer is not for the cache, the app must not see more: it may store what it computes.
    await ask(cached, query=query, headers=[(b"cache-control", b"no-store")])
    await ask(cached, query=query, method="HEAD", headers=[(b"cache-control", b"no-cache")])
    await ask(cached, query=query, method="POST")
    assert {call["query_string"] for call in app.calls} == {seen}


@given(st.lists(st.sampled_from([b"a=1", b"a=2", b"b=1", b"utm=1", b"utm=x", b"utm", b"%75tm=1", b"", b"a;utm=1"])))
def test_ignored_parameters_never_reach_the_app(parts: list[bytes]) -> None:
    app = Naive(reflects_query)
    cached = behind_cache(app, ignored_query_parameters=["utm"])

    answer = asyncio.run(ask(cached, query=b"&".join(parts)))

    kept = [part for part in answer.body.split(b"&") if part]
    assert kept == [part for part in parts if part and not re.match(rb"utm(=|$)", part)]


async def test_order_and_repetition_of_parameters_count() -> None:
    queries = [b"a=1&a=2", b"a=2&a=1", b"a=1", b"a=1&b=2", b"b=2&a=1", b"a=1&a=1", b"a", b"a=", b"", b"A=1", b"a=1&"]
    await assert_as_bare(Naive(reflects_query), [{"query": query} for query in queries * 2])


async def test_sorting_is_asked_for_and_keeps_the_order_of_a_repeated_name() -> None:
    cached = behind_cache(Naive(reflects_query), sort_query=True)
    await ask(cached, query=b"b=1&a=2&a=1")

    assert (await ask(cached, query=b"a=2&a=1&b=1")).is_hit
    assert not (await ask(cached, query=b"a=1&a=2&b=1")).is_hit


# --- fat GET ----------------------------------------------------------------------------------------------------------


def reads_the_body(scope: dict[str, Any], body: bytes) -> Any:
    return 200, [FRESH], b"page " + (body or b"1")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "framing",
    [
        pytest.param([(b"content-length", b"4")], id="length"),
        pytest.param([(b"content-length", b"+4")], id="signed-length"),
        pytest.param([(b"content-length", b"0"), (b"content-length", b"4")], id="two-lengths"),
        pytest.param([(b"content-length", b"0, 4")], id="length-list"),
        pytest.param([(b"transfer-encoding", b"chunked")], id="chunked"),
        pytest.param([(b"transfer-encoding", b"")], id="empty-transfer-encoding"),
    ],
)
async def test_get_with_a_body_is_neither_looked_up_nor_stored(method: str, framing: list[tuple[bytes, bytes]]) -> None:
    app = Naive(reads_the_body)
    cached = behind_cache(app)
    fat = {"method": method, "headers": framing, "body": b"evil"}

    assert (await ask(cached, **fat)).body == b"page evil"
    assert cached.cache.stats().store.entries == 0
    assert (await ask(cached)).body == b"page 1"
    # It comes to the app, with its body, although there is an entry now; and the entry stays what it is.
    answer = await ask(cached, **fat)
    assert answer.body == b"page evil"
    assert b"fwd=bypass" in answer.cache_status
    assert (await ask(cached)).body == b"page 1"


async def test_unannounced_body_does_not_reach_the_call_that_is_shared() -> None:
    """HTTP/2 needs no Content-Length: what a server hands over without one is not what others may be answered by."""
    cached = behind_cache(Naive(reads_the_body))

    await ask(cached, body=b"evil")

    assert (await ask(cached)).body == b"page 1"


# --- Vary explosion ---------------------------------------------------------------------------------------------------


def varies(vary: bytes) -> Naive:
    return Naive(
        lambda scope, body: (200, [FRESH, (b"vary", vary)], b"for " + field(scope, b"x-id")), headers=[(b"vary", vary)]
    )


@pytest.mark.parametrize(("policy", "values"), [("lru", 2_000), ("lfu", 200)])
async def test_thousands_of_variants_are_thirty_two(policy: str, values: int) -> None:
    """The 33rd value meets the same store as the 10,000th, so this many will do."""
    store = MemoryStore(policy=policy)
    cached = behind_cache(varies(b"X-Id"), store)

    await ask(cached, b"/other")
    sizes = []
    for number in range(10_000, 10_000 + values):
        answer = await ask(cached, headers=[(b"x-id", b"%d" % number)])
        assert answer.body == b"for %d" % number
        if number % (values // 5) == 0:
            sizes.append(store.stats().bytes)

    assert store.stats().entries == 33
    assert len(set(sizes[1:])) == 1
    assert (await ask(cached, b"/other")).is_hit
    assert (await ask(cached, headers=[(b"x-id", b"%d" % number)])).is_hit
    assert not (await ask(cached, headers=[(b"x-id", b"10000")])).is_hit


async def test_variants_are_bounded_by_the_store() -> None:
    cached = behind_cache(varies(b"X-Id"), MemoryStore(max_variants=4))

    for number in range(20):
        await ask(cached, headers=[(b"x-id", b"%d" % number)])

    assert cached.cache.stats().store.entries == 4


async def test_variants_in_redis_are_bounded(redis_url: str) -> None:
    store = RedisStore(redis_url, timeout=5, max_variants=4)
    cached = behind_cache(varies(b"X-Id"), store)
    try:
        for number in range(50):
            await ask(cached, headers=[(b"x-id", b"%d" % number)])
        await cached.cache.aclose()

        # The index and its variants: what was cut is gone from the server, too.
        client = redis_client(redis_url)
        assert len(await client.keys("echo_cache:1:*")) == 5
        await client.aclose()
    finally:
        await store.aclose()


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"*"], id="star"),
        pytest.param([b" * "], id="spaced-star"),
        pytest.param([b"accept, *"], id="star-in-a-list"),
        pytest.param([b"accept", b"*"], id="star-in-a-second-line"),
        pytest.param([b"accept,,*,"], id="star-among-empties"),
        pytest.param([b", ".join(b"x-%d" % number for number in range(9))], id="nine-fields"),
        pytest.param([b"x-%d" % number for number in range(9)], id="nine-lines"),
        pytest.param([b",".join(b"x-%d" % number for number in range(20_000))], id="two-hundred-kilobytes"),
        pytest.param([b"x-a x-b"], id="no-field-name"),
        pytest.param([b'"accept"'], id="quoted"),
        pytest.param([b"accept\x00"], id="nul"),
    ],
)
async def test_response_that_nothing_or_too_much_selects_is_not_stored(lines: list[bytes]) -> None:
    cached = behind_cache(Naive(headers=[FRESH, *((b"Vary", line) for line in lines)]))

    assert not (await ask(cached)).is_stored
    assert not (await ask(cached)).is_hit


async def test_absent_and_empty_select_two_variants() -> None:
    def handler(scope: dict[str, Any], body: bytes) -> Any:
        present = any(name == b"x-id" for name, _ in scope["headers"])
        return 200, [FRESH, (b"vary", b" ,X-Id\t,")], b"present" if present else b"absent"

    requests: list[dict[str, Any]] = [{}, {"headers": [(b"x-id", b"")]}]
    await assert_as_bare(Naive(handler), requests * 2)


# --- collision and injection ------------------------------------------------------------------------------------------

ATOMS = st.text('aA/:?&=%2F\x00\r\n ,[]"\\{}é1-_.@#', max_size=8).map(lambda text: text.encode("latin-1"))
HOSTS = st.one_of(st.none(), ATOMS, st.sampled_from([b"", b"a", b"a:80", b"a:443", b"a:8", b":80"]))
SCOPES = st.builds(
    lambda path, decoded, query, host, scheme: http_scope(
        None if decoded else path,
        path=path.decode("latin-1"),
        query=query,
        host=host,
        scheme=scheme,
    ),
    path=ATOMS,
    decoded=st.booleans(),
    query=ATOMS,
    host=HOSTS,
    scheme=st.sampled_from(["http", "https", "ftp", "", "http:"]),
)


def what_is_asked(scope: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells two requests apart, with hosts that RFC 9110 section 4.2.3 calls the same made the same."""
    host = next((value for name, value in scope["headers"] if name == b"host"), None)
    if host is not None:
        host = host.lower()
        port = {"http": b":80", "https": b":443"}.get(scope["scheme"])
        if port and host.endswith(port):
            host = host[: -len(port)]
    return scope["scheme"], host, "raw_path" in scope, scope.get("raw_path", scope["path"]), scope["query_string"]


@given(SCOPES, SCOPES)
@example(http_scope(scheme="ftp", host=b"a\n"), http_scope(scheme="ftp", host=b"a"))
@example(http_scope(host=b""), http_scope(host=None))
@example(http_scope(b"/a?b"), http_scope(b"/a", query=b"b"))
def test_two_requests_never_share_a_key_or_a_name_in_redis(one: dict[str, Any], other: dict[str, Any]) -> None:
    assume(what_is_asked(one) != what_is_asked(other))

    assert key_of(one) != key_of(other)
    assert key_digest(key_of(one)) != key_digest(key_of(other))


@given(SCOPES, SCOPES)
def test_two_requests_never_share_an_entry(one: dict[str, Any], other: dict[str, Any]) -> None:
    assume(what_is_asked(one) != what_is_asked(other))

    async def run() -> None:
        app = Naive()
        cached = behind_cache(app)
        assert (await call(cached, one)).body == b"answer 1"
        assert (await call(cached, other)).body == b"answer 2"
        assert (await call(cached, one)).is_hit

    asyncio.run(run())


@given(SCOPES)
def test_name_in_redis_has_no_character_of_the_request(scope: dict[str, Any]) -> None:
    """Nothing that a client sends can end a key, begin another command, or move a key to another slot."""
    store = RedisStore("redis://localhost")

    assert re.fullmatch(r"echo_cache:\d+:\{[A-Za-z0-9_-]{27}\}", store._name(key_of(scope)))


VARY = st.lists(st.tuples(ATOMS, st.none() | ATOMS), max_size=3).map(tuple)


@given(VARY, VARY)
def test_two_variants_never_share_a_name(one: Any, other: Any) -> None:
    assume(one != other)
    assert variant_id(one) != variant_id(other)


async def test_two_host_fields_are_not_one_with_a_comma() -> None:
    """The app takes the first of two Host fields; in one field with a comma it sees both."""
    requests = [
        {"host": b"a.example", "headers": [(b"host", b"b.example")]},
        {"host": b"a.example, b.example"},
    ]
    await assert_as_bare(Naive(links_to_itself), requests)
    await assert_as_bare(Naive(links_to_itself), reversed(requests))


# --- path patterns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw_path", [b"/admin/x", b"/%61dmin/x", b"/admin%2Fx", b"/admin/%0a/x"])
async def test_excluded_path_is_excluded_however_it_is_written(raw_path: bytes) -> None:
    cached = HTTPCacheMiddleware(Naive(), cache=Cache(MemoryStore()), exclude=["/admin/*"])

    assert not (await ask(cached, raw_path)).is_stored


def test_matching_a_path_pattern_takes_no_time_that_a_client_can_choose() -> None:
    """Stars are tried from the left, once each: a regular expression that backtracks would need years for this path."""
    program = """
        from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore
        cached = HTTPCacheMiddleware(None, cache=Cache(MemoryStore()), exclude=["/*/x/*/x/*/x/*.css"])
        assert cached._pattern({"path": "/x" * 30_000}) is not None
        assert cached._pattern({"path": "/x" * 100 + ".css"}) is None
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=5, check=False)
    assert done.returncode == 0


def redis_client(url: str) -> Any:
    from redis.asyncio import Redis

    return Redis.from_url(url, protocol=2)
