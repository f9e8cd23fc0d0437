"""What is said of a response: why it was cached or was not, and what to change."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache import Cache, HTTPCacheMiddleware, MemoryStore, PolicyOptions, cached, never_cached
from echo_cache.cli.explain import Explanation, Outcome, explain
from echo_cache.fields import cache_status_member
from echo_cache.model import Fwd, Refusal
from echo_cache.policy.explaining import WHY_FORWARDED, WHY_NOT_STORED
from echo_cache.testing import AskedApp, ManualClock, Response, ScriptedApp, call

URL = "http://test/"
MINUTE = {"cache-control": "max-age=60"}


def app_that_says(
    status: int = 200, headers: Mapping[str, str] | None = None, body: bytes = b"hello"
) -> Callable[[AskedApp], Awaitable[None]]:
    async def script(asked: AskedApp) -> None:
        await asked.respond(status, MINUTE if headers is None else headers, body)

    return script


def edge(script: Any, clock: ManualClock | None = None, policy: PolicyOptions | None = None, **options: Any) -> Any:
    clock = clock or ManualClock()
    return HTTPCacheMiddleware(
        ScriptedApp(script), cache=Cache(MemoryStore(clock=clock), policy, clock=clock), **options
    )


def of(
    response: Response,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    second: Response | None = None,
    **more: Any,
) -> Explanation:
    asked = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    again = None if second is None else (second.status, second.headers)
    return explain(method, URL, asked, response.status, response.headers, again, **more)


# --- the sentences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "table"), [(Refusal, WHY_NOT_STORED), (Fwd, WHY_FORWARDED)])
def test_every_reason_has_a_sentence_and_what_to_change(
    kind: type[enum.StrEnum], table: Mapping[Any, tuple[str, str]]
) -> None:
    assert set(table) == set(kind)
    for sentence, change in table.values():
        for text in (sentence, change):
            assert text[0].isupper() or text[0] == "@", text
            assert text.endswith("."), text
            assert text.isascii(), text
            assert text.isprintable(), text
    assert len({sentence for sentence, _ in table.values()}) == len(table)


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_in_cache_status_is_explained_by_its_sentence(refusal: Refusal) -> None:
    told = cache_status_member("echo_cache", fwd="uri-miss", detail=refusal.value)
    explained = explain("GET", URL, [], 200, [(b"cache-status", told)])
    sentence, change = WHY_NOT_STORED[refusal]
    assert explained.outcome is Outcome.NOT_STORED
    assert sentence in explained.sentence
    assert change in explained.changes


@pytest.mark.parametrize("fwd", Fwd)
def test_every_way_forward_in_cache_status_is_explained_by_its_sentence(fwd: Fwd) -> None:
    told = cache_status_member("echo_cache", fwd=fwd.value)
    explained = explain("GET", URL, [], 200, [(b"cache-status", told)])
    assert WHY_FORWARDED[fwd][0] in explained.sentence
    passed = fwd in (Fwd.BYPASS, Fwd.METHOD)
    assert explained.outcome is (Outcome.PASSED if passed else Outcome.NOT_STORED)


# --- answers of the middleware ----------------------------------------------------------------------------------------


async def test_a_first_request_is_stored_and_a_second_one_is_a_hit() -> None:
    app = edge(app_that_says())
    first, second = await call(app), await call(app)
    stored = of(first)
    assert (stored.outcome, stored.changes) == (Outcome.STORED, ())
    assert "stored, fresh for 60 s" in stored.sentence
    hit = of(second)
    assert (hit.outcome, hit.sentence) == (Outcome.HIT, "Answered from the cache, fresh for another 60 s.")
    both = of(first, second=second)
    assert both.outcome is Outcome.HIT
    assert both.sentence == f"The first request had its response stored. {hit.sentence}"


@pytest.mark.parametrize(
    ("status", "headers", "named"),
    [
        pytest.param(200, {**MINUTE, "set-cookie": "session=s3cret; Path=/"}, "sets session.", id="set-cookie"),
        pytest.param(200, {"cache-control": "private, max-age=60"}, "private, max-age=60", id="private"),
        pytest.param(200, {"cache-control": "no-store"}, "Cache-Control: no-store.", id="no-store"),
        pytest.param(200, {**MINUTE, "vary": "*"}, "Vary: *.", id="vary"),
        pytest.param(429, MINUTE, "The status is 429.", id="status"),
        pytest.param(500, {}, "no Cache-Control", id="no-freshness"),
        pytest.param(200, {"cache-control": "max-age=0"}, "max-age=0", id="already-stale"),
        pytest.param(200, {**MINUTE, "content-length": "99999999"}, "99999999", id="body-size"),
        pytest.param(200, {**MINUTE, "content-type": "text/event-stream"}, "no end", id="event-stream"),
        pytest.param(206, {**MINUTE, "content-range": "bytes 0-1/5"}, "part", id="partial"),
    ],
)
async def test_a_response_that_is_not_stored_is_explained_by_what_it_says(
    status: int, headers: dict[str, str], named: str
) -> None:
    response = await call(edge(app_that_says(status, headers)))
    explained = of(response)
    assert explained.outcome is Outcome.NOT_STORED
    assert named in explained.sentence
    assert explained.changes
    assert "s3cret" not in explained.sentence


@pytest.mark.parametrize(
    ("method", "headers", "named"),
    [
        pytest.param("HEAD", {}, "Only responses to GET", id="head"),
        pytest.param("GET", {"range": "bytes=0-1"}, "asked for a range", id="range"),
        pytest.param("GET", {"cache-control": "no-store"}, "no-store", id="no-store"),
        pytest.param("GET", {"if-match": '"v1"'}, "conditional (If-Match)", id="if-match"),
        pytest.param("GET", {"authorization": "Bearer s3cret"}, "has Authorization.", id="authorization"),
    ],
)
async def test_a_request_whose_response_is_not_stored_is_explained_by_what_it_asked(
    method: str, headers: dict[str, str], named: str
) -> None:
    response = await call(edge(app_that_says()), method, headers=headers)
    explained = of(response, headers, method)
    assert explained.outcome is Outcome.NOT_STORED
    assert named in explained.sentence
    assert "s3cret" not in explained.sentence


async def test_credentials_where_nothing_is_said_are_named() -> None:
    headers = {"cookie": "session=s3cret", "x-api-key": "k3y"}
    response = await call(edge(app_that_says(headers={})), headers=headers)
    explained = of(response, headers)
    assert "Cookie, X-Api-Key." in explained.sentence
    assert "s3cret" not in explained.sentence


async def test_a_condition_that_went_to_the_app_as_it_was_is_named() -> None:
    app = edge(app_that_says(headers={"cache-control": "private", "etag": '"v1"'}))
    await call(app)
    headers = {"if-none-match": '"v1"'}
    explained = of(await call(app, headers=headers), headers)
    assert explained.outcome is Outcome.NOT_STORED
    assert "conditional (If-None-Match)" in explained.sentence


async def test_a_request_past_the_cache_is_said_to_be_past_it_and_the_path_is_shown() -> None:
    response = await call(edge(app_that_says(), exclude=["/a b*"]), path="/a b")
    explained = explain("GET", "http://test/a%20b?c", [], response.status, response.headers)
    assert explained.outcome is Outcome.PASSED
    assert any("exclude=" in change for change in explained.changes)
    assert any("/a b." in change for change in explained.changes)


async def test_another_method_is_passed() -> None:
    response = await call(edge(app_that_says()), "POST")
    assert of(response, method="POST").outcome is Outcome.PASSED


async def test_a_stale_answer_says_for_how_long_it_has_been_stale() -> None:
    clock = ManualClock()
    app = edge(app_that_says(headers={"cache-control": "max-age=60, stale-while-revalidate=60"}), clock)
    await call(app)
    clock.advance(70)
    explained = of(await call(app))
    assert explained.outcome is Outcome.STALE
    assert "stale for 10 s" in explained.sentence


async def test_a_stale_answer_in_place_of_an_error_says_that_the_app_failed() -> None:
    clock = ManualClock()
    answers = iter([app_that_says(headers={"cache-control": "max-age=60, stale-if-error=60"}), app_that_says(500)])

    async def script(asked: AskedApp) -> None:
        await next(answers)(asked)

    app = edge(script, clock)
    await call(app)
    clock.advance(70)
    explained = of(await call(app))
    assert (explained.outcome, "The app failed" in explained.sentence) == (Outcome.STALE, True)


async def test_a_confirmed_answer_is_not_a_miss_and_twice_is_not_a_hit() -> None:
    async def script(asked: AskedApp) -> None:
        fields = {"cache-control": "no-cache", "etag": '"v1"'}
        asks = any(name == b"if-none-match" for name, _ in asked.scope["headers"])
        await asked.respond(304 if asks else 200, fields, b"" if asks else b"hello")

    app = edge(script)
    first, second = await call(app), await call(app)
    assert "to be confirmed by the app" in of(first).sentence
    assert of(second).outcome is Outcome.VALIDATED
    both = of(first, second=second)
    assert both.outcome is Outcome.MISS
    assert WHY_FORWARDED[Fwd.STALE][0] in both.sentence


async def test_only_if_cached_without_a_stored_response_is_said_to_be_unsatisfiable() -> None:
    headers = {"cache-control": "only-if-cached"}
    response = await call(edge(app_that_says()), headers=headers)
    assert of(response, headers).outcome is Outcome.UNSATISFIABLE


async def test_a_body_that_grew_too_large_shows_at_the_second_request() -> None:
    app = edge(app_that_says(body=b"x" * 100), policy=PolicyOptions(max_body_bytes=10))
    first, second = await call(app), await call(app)
    assert of(first).outcome is Outcome.STORED
    both = of(first, second=second)
    assert both.outcome is Outcome.MISS
    assert any("max_body_bytes" in change for change in both.changes)
    assert any("another worker" in change for change in both.changes)


async def test_a_second_request_with_other_fields_is_told_what_varies() -> None:
    app = edge(app_that_says(headers={**MINUTE, "vary": "accept-language"}))
    first = await call(app, headers={"accept-language": "de"})
    second = await call(app, headers={"accept-language": "fr"})
    both = of(first, second=second)
    assert both.outcome is Outcome.MISS
    assert "Vary: accept-language." in both.sentence


async def test_a_shared_call_of_the_app_is_said_to_be_shared() -> None:
    told = cache_status_member("echo_cache", fwd="uri-miss", ttl=60, collapsed=True)
    explained = explain("GET", URL, [], 200, [(b"Cache-Status", told)])
    assert (explained.outcome, "shared, fresh for 60 s." in explained.sentence) == (Outcome.COLLAPSED, True)


@pytest.mark.parametrize(
    ("endpoint", "outcome"),
    [
        pytest.param(never_cached, Outcome.NOT_STORED, id="never-cached"),
        pytest.param(cached(ttl=60), Outcome.STORED, id="cached"),
    ],
)
async def test_a_route_that_is_never_cached_is_named_as_the_reason(endpoint: Any, outcome: Outcome) -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", endpoint(page))])
    response = await call(HTTPCacheMiddleware(app, MemoryStore()))
    assert of(response).outcome is outcome
    if outcome is Outcome.NOT_STORED:
        assert "@never_cached" in of(response).changes[0]


# --- no cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "named"),
    [
        pytest.param("GET", 200, "HTTPCacheMiddleware", id="plain"),
        pytest.param("GET", 500, "has probably raised", id="error"),
        pytest.param("OPTIONS", 200, "preflight", id="preflight"),
    ],
)
def test_an_answer_without_cache_status_has_been_seen_by_no_cache(method: str, status: int, named: str) -> None:
    explained = explain(method, URL, [], status, [])
    assert explained.outcome is Outcome.NO_CACHE
    assert any(named in change for change in explained.changes)


@pytest.mark.parametrize(
    ("url", "status"),
    [pytest.param("http://test/_cache/", 200, id="dashboard"), pytest.param(URL, 500, id="handler-that-raised")],
)
def test_nobody_is_told_to_add_the_middleware_where_it_may_well_be(url: str, status: int) -> None:
    assert "Add HTTPCacheMiddleware" not in " ".join(explain("GET", url, [], status, []).changes)


@pytest.mark.parametrize(
    ("status", "headers", "named"),
    [
        pytest.param(422, {}, "See why the app answers 422", id="422"),
        pytest.param(500, {}, "why it answers 500", id="500"),
        pytest.param(307, {"location": "/products/"}, "It is a redirect to /products/: explain that one.", id="307"),
        pytest.param(302, {"location": "http://u:s3cret@h/\x7f"}, "It is a redirect to http://h/\\x7f:", id="302"),
    ],
)
async def test_of_an_answer_that_is_no_success_the_status_is_told_and_no_lifetime_advised(
    status: int, headers: dict[str, str], named: str
) -> None:
    explained = of(await call(edge(app_that_says(status, headers))))
    assert explained.outcome is Outcome.NOT_STORED
    assert f"The status is {status}." in explained.sentence
    assert any(named in change for change in explained.changes)
    told = " ".join((explained.sentence, *explained.changes))
    assert "ttl=" not in told
    assert "s3cret" not in told


async def test_default_ttl_is_named_as_a_possible_cause() -> None:
    response = await call(edge(app_that_says(headers={}), policy=PolicyOptions(default_ttl=None)))
    assert "default_ttl is None" in of(response).sentence


def test_the_only_cache_that_has_spoken_is_taken_for_the_one_that_is_meant() -> None:
    told = [(b"cache-status", b"shop; hit; ttl=9")]
    explained = explain("GET", URL, [], 200, told)
    assert (explained.outcome, "It is shop" in explained.changes[0]) == (Outcome.HIT, True)
    assert explain("GET", URL, [], 200, told, name="echo_cache").outcome is Outcome.NO_CACHE


def test_another_cache_is_named_and_is_not_taken_for_ours() -> None:
    told = [(b"cache-status", b"CDN; hit; ttl=3"), (b"cache-status", b'"our \\"edge\\", one"; fwd=uri-miss; stored')]
    explained = explain("GET", URL, [], 200, told)
    assert explained.outcome is Outcome.NO_CACHE
    assert 'speaks of CDN, our "edge", one, and not of echo_cache' in explained.sentence
    assert explain("GET", URL, [], 200, told, name="CDN").outcome is Outcome.HIT
    assert explain("GET", URL, [], 200, told, name='our "edge", one').outcome is Outcome.STORED


def test_the_last_member_of_the_name_counts() -> None:
    told = [(b"cache-status", b"echo_cache; fwd=uri-miss; stored, echo_cache; hit; ttl=9")]
    assert explain("GET", URL, [], 200, told).outcome is Outcome.HIT


def test_a_flag_that_is_false_is_none() -> None:
    told = [(b"cache-status", b"echo_cache; hit=?0; fwd=uri-miss; stored=?0")]
    assert explain("GET", URL, [], 200, told).outcome is Outcome.NOT_STORED


def test_a_lifetime_that_is_no_number_is_left_out() -> None:
    explained = explain("GET", URL, [], 200, [(b"cache-status", b"echo_cache; hit; ttl")])
    assert explained.sentence == "Answered from the cache."


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b'echo_cache; detail="x', id="open-quote"),
        pytest.param(b'echo_cache; hit"ttl=5', id="stray-quote"),
        pytest.param(b"echo_cache; hit,", id="trailing-comma"),
        pytest.param(b"echo_cache; =1", id="no-key"),
        pytest.param(b"echo_cache; hit" + b"; a" * 10_000, id="too-long"),
        pytest.param(b"", id="empty"),
    ],
)
def test_malformed_cache_status_is_said_to_be_malformed(value: bytes) -> None:
    explained = explain("GET", URL, [], 200, [(b"cache-status", value)])
    assert (explained.outcome, "malformed" in explained.sentence) == (Outcome.NO_CACHE, True)


def test_nothing_that_a_terminal_would_obey_is_repeated() -> None:
    told = [
        (b"cache-status", b"echo_cache; fwd=uri-miss; detail=set-cookie"),
        (b"set-cookie", b"\x1b]0;evil\x07\n=1"),
        (b"set-cookie", b"s3cret-without-a-name"),
        *[(b"set-cookie", b"%d=1" % number) for number in range(1000)],
    ]
    explained = explain("GET", "http://[", [], 200, told)
    assert explained.sentence.isprintable()
    assert r"It sets \x1b]0;evil\x07, a cookie without a name, 0, 1, 2 and 997 more." in explained.sentence
    assert "s3cret" not in explained.sentence
    assert len(explained.sentence) < 1_000


@given(
    method=st.text(max_size=10),
    url=st.text(max_size=50),
    fields=st.lists(
        st.tuples(
            st.sampled_from([b"cache-status", b"vary", b"set-cookie", b"cache-control", b"content-length", b"Host"]),
            st.binary(max_size=60)
            | st.sampled_from([b"echo_cache; fwd=uri-miss; detail=vary", b"echo_cache; fwd=stale; stored; ttl=-1"]),
        ),
        max_size=5,
    ),
)
def test_whatever_is_said_is_explained_in_printable_words(
    method: str, url: str, fields: list[tuple[bytes, bytes]]
) -> None:
    explained = explain(method, url, fields, 200, fields, (200, fields))
    for text in (explained.sentence, *explained.changes):
        assert text.isprintable()


def test_an_explanation_is_json() -> None:
    explained = explain("GET", URL, [], 200, [])
    assert explained.as_json() == {
        "outcome": "no_cache",
        "sentence": explained.sentence,
        "changes": list(explained.changes),
    }
