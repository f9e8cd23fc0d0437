"""May a response be stored: RFC 9111 section 3, and what we refuse beyond it."""

from __future__ import annotations

from typing import Any

import hishel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.model import Headers, Refusal
from echo_cache.options import PolicyOptions, RouteOptions
from tests.policy_cases import NOW, PLAIN, SAFE, admission, asking, date, pairs, stored

FRESH = "cache-control: max-age=60"
AUTHORIZED = asking("authorization: Basic YTpi")
WITH_COOKIE = asking("cookie: session=1")

STORED = None  # in the tables: no refusal


@pytest.mark.parametrize(
    ("section", "lines", "more", "refusal"),
    [
        # 3: the request method is understood
        pytest.param("9111-3", [FRESH], {}, STORED, id="method-get"),
        pytest.param("9111-3", [FRESH], {"request": asking(method="HEAD")}, Refusal.METHOD, id="method-head"),
        pytest.param("9111-3", [FRESH], {"request": asking(method="POST")}, Refusal.METHOD, id="method-post"),
        pytest.param("9111-3", [FRESH], {"request": asking(method="get")}, Refusal.METHOD, id="method-is-exact"),
        pytest.param("9111-3", [FRESH], {"request": asking(has_body=True)}, Refusal.REQUEST_BODY, id="fat-get"),
        # 3: the status code is final
        *(
            pytest.param("9111-3", [FRESH], {"status": status}, Refusal.STATUS, id=f"status-{status}-not-final")
            for status in (100, 101, 103, 199, 600, 999)
        ),
        *(
            pytest.param("9111-3", [FRESH], {"status": status}, STORED, id=f"status-{status}-explicit")
            for status in (200, 201, 203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 499, 500, 503, 599)
        ),
        # 3.3 and 3.4: partial responses
        pytest.param("9111-3.3", [FRESH], {"status": 206}, Refusal.PARTIAL, id="status-206"),
        pytest.param(
            "9111-3.3", [FRESH, "content-range: bytes 0-1/9"], {}, Refusal.PARTIAL, id="content-range-in-a-200"
        ),
        pytest.param(
            "9111-3.3",
            [FRESH],
            {"request": asking("range: bytes=0-1")},
            Refusal.REQUEST_RANGE,
            id="range-never-fills",
        ),
        pytest.param("9111-3", [FRESH], {"status": 304}, Refusal.STATUS, id="unasked-304"),
        # 5.2.2.3: must-understand
        pytest.param(
            "9111-5.2.2.3",
            ["cache-control: must-understand, no-store, max-age=60"],
            {},
            STORED,
            id="must-understand-undoes-no-store",
        ),
        *(
            pytest.param(
                "9111-5.2.2.3",
                ["cache-control: must-understand, no-store, max-age=60"],
                {"status": status},
                STORED,
                id=f"must-understand-{status}",
            )
            for status in (201, 202, 205, 302, 303, 307, 400, 401, 403, 409, 421, 500, 502, 503, 504)
        ),
        pytest.param(
            "9111-5.2.2.3",
            ["cache-control: must-understand, max-age=60"],
            {"status": 599},
            Refusal.NOT_UNDERSTOOD,
            id="must-understand-unknown-status",
        ),
        pytest.param(
            "9111-5.2.2.3",
            ["cache-control: must-understand, no-store, max-age=60"],
            {"status": 599},
            Refusal.NOT_UNDERSTOOD,
            id="must-understand-no-store-unknown-status",
        ),
        pytest.param(
            "9111-5.2.2.3",
            ["cache-control: must-understand, private, max-age=60"],
            {},
            Refusal.PRIVATE,
            id="must-understand-leaves-private",
        ),
        # 5.2.2.5 and 5.2.2.7
        pytest.param(
            "9111-5.2.2.5", ["cache-control: no-store, max-age=60"], {}, Refusal.NO_STORE, id="response-no-store"
        ),
        pytest.param(
            "9111-5.2.2.5",
            ["cache-control: max-age=60", "cache-control: No-Store"],
            {},
            Refusal.NO_STORE,
            id="no-store-on-a-later-line-in-any-case",
        ),
        pytest.param(
            "9111-5.2.2.7", ["cache-control: private, max-age=60"], {}, Refusal.PRIVATE, id="response-private"
        ),
        pytest.param(
            "9111-5.2.2.7",
            ["cache-control: PRIVATE, public, s-maxage=60"],
            {},
            Refusal.PRIVATE,
            id="private-beats-public",
        ),
        pytest.param(
            "9111-5.2.2.7", ['cache-control: private="x-user", max-age=60'], {}, STORED, id="private-qualified"
        ),
        # 5.2.1.5
        pytest.param(
            "9111-5.2.1.5",
            [FRESH],
            {"request": asking("cache-control: no-store")},
            Refusal.REQUEST_NO_STORE,
            id="request-no-store",
        ),
        pytest.param(
            "9111-5.2.1.5",
            [FRESH],
            {"request": asking("cache-control: max-age=0", "cache-control: NO-STORE")},
            Refusal.REQUEST_NO_STORE,
            id="request-no-store-on-a-later-line",
        ),
        pytest.param(
            "9111-5.2.1.4",
            [FRESH],
            {"request": asking("cache-control: no-cache")},
            STORED,
            id="request-no-cache-may-fill",
        ),
        pytest.param(
            "design",
            [FRESH],
            {
                "request": asking("cache-control: no-store"),
                "options": PolicyOptions(request_directives="ignore"),
            },
            STORED,
            id="request-no-store-ignored-by-option",
        ),
        # 3.5
        pytest.param("9111-3.5", [FRESH], {"request": AUTHORIZED}, Refusal.AUTHORIZATION, id="authorization"),
        *(
            pytest.param("9111-3.5", [f"cache-control: {how}"], {"request": AUTHORIZED}, STORED, id=f"auth-{how}")
            for how in ("public, max-age=60", "must-revalidate, max-age=60", "s-maxage=60")
        ),
        *(
            pytest.param(
                "9111-3.5",
                [f"cache-control: {how}"],
                {"request": AUTHORIZED},
                Refusal.AUTHORIZATION,
                id=f"auth-{how}",
            )
            for how in ("proxy-revalidate, max-age=60", "immutable, max-age=60", "public=1, max-age=60")
        ),
        pytest.param(
            "9111-3.5",
            [FRESH],
            {"request": AUTHORIZED, "route": RouteOptions(share_authorized=True)},
            STORED,
            id="auth-shared-by-route",
        ),
        # 3, last condition: something in the response lets a cache have it
        pytest.param("9111-3", ['etag: "a"'], {}, STORED, id="validator-alone-heuristic-status"),
        pytest.param("9111-3", ['etag: "a"'], {"status": 500}, Refusal.NO_FRESHNESS, id="validator-alone-500"),
        pytest.param("9111-3", ['etag: "a"'], {"status": 302}, Refusal.NO_FRESHNESS, id="validator-alone-302"),
        pytest.param(
            "9111-3", ['etag: "a"', "cache-control: public"], {"status": 302}, STORED, id="public-validator-302"
        ),
        pytest.param(
            "9111-3",
            ['etag: "a"', "cache-control: no-cache"],
            {"status": 403},
            Refusal.NO_FRESHNESS,
            id="no-cache-is-no-permission",
        ),
        pytest.param("9111-3", ['etag: "a"', "cache-control: no-cache"], {}, STORED, id="no-cache-with-validator"),
        pytest.param("9111-3", ["cache-control: no-cache"], {}, Refusal.NO_FRESHNESS, id="no-cache-without-validator"),
        pytest.param(
            "9111-3",
            ["cache-control: no-cache, max-age=60"],
            {},
            Refusal.ALREADY_STALE,
            id="no-cache-max-age-without-validator",
        ),
        pytest.param("9111-3", [], {}, Refusal.NO_FRESHNESS, id="nothing-said-plain"),
        pytest.param("9111-3", ["cache-control: max-age=0"], {}, Refusal.ALREADY_STALE, id="stale-at-once"),
        pytest.param("9111-3", ["cache-control: max-age=0", 'etag: "a"'], {}, STORED, id="stale-with-validator"),
        pytest.param(
            "9111-4.2",
            [FRESH, f"date: {date(-7200)}", 'etag: "a"'],
            {},
            Refusal.ALREADY_STALE,
            id="too-long-stale-to-keep",
        ),
        pytest.param(
            "5861-3",
            ["cache-control: max-age=0, stale-while-revalidate=60"],
            {},
            STORED,
            id="stale-while-revalidate-alone",
        ),
        pytest.param("5861-4", ["cache-control: max-age=0, stale-if-error=60"], {}, STORED, id="stale-if-error-alone"),
        # RFC 6585: MUST NOT be stored; and answers to fields that are not in the key
        *(
            pytest.param("6585-3..6", [FRESH], {"status": status}, Refusal.STATUS, id=f"status-{status}-must-not")
            for status in (428, 429, 431, 511)
        ),
        *(
            pytest.param("9110-15.5", [FRESH], {"status": status}, Refusal.STATUS, id=f"status-{status}-unkeyed")
            for status in (407, 412, 416, 417)
        ),
        # Set-Cookie
        pytest.param("9111-7.3", [FRESH, "set-cookie: a=1"], {}, STORED, id="set-cookie-plain"),
        pytest.param(
            "9111-7.3", [FRESH, "set-cookie: a=1"], {"options": SAFE}, Refusal.SET_COOKIE, id="set-cookie-safe"
        ),
        pytest.param(
            "9111-7.3",
            [FRESH, "set-cookie: a=1"],
            {"options": SAFE, "route": RouteOptions(store_set_cookie=True)},
            STORED,
            id="set-cookie-by-route",
        ),
        pytest.param(
            "9111-5.2.2.7",
            ['cache-control: max-age=60, private="Set-Cookie"', "set-cookie: a=1"],
            {"options": SAFE},
            STORED,
            id="set-cookie-private",
        ),
        pytest.param(
            "9111-5.2.2.4",
            ['cache-control: max-age=60, no-cache="Set-Cookie"', "set-cookie: a=1"],
            {"options": SAFE},
            STORED,
            id="set-cookie-no-cache",
        ),
        # event streams never end
        *(
            pytest.param(
                "design", [FRESH, f"content-type: {media_type}"], {}, Refusal.EVENT_STREAM, id=f"stream-{media_type}"
            )
            for media_type in ("text/event-stream", "Text/Event-Stream; charset=utf-8", "\ttext/event-stream")
        ),
        pytest.param("design", [FRESH, "content-type: text/html"], {}, STORED, id="no-stream"),
        # Vary
        pytest.param("9111-4.1", [FRESH, "vary: *"], {}, Refusal.VARY, id="vary-star"),
        pytest.param("9111-4.1", [FRESH, "vary: Accept, * , b"], {}, Refusal.VARY, id="vary-star-among-others"),
        pytest.param("9111-4.1", [FRESH, "vary: Accept", "vary: *"], {}, Refusal.VARY, id="vary-star-on-a-later-line"),
        pytest.param("9111-4.1", [FRESH, "vary: b c"], {}, Refusal.VARY, id="vary-not-a-name"),
        pytest.param("design", [FRESH, "vary: a,b,c,d,e,f,g,h"], {}, STORED, id="vary-eight"),
        pytest.param("design", [FRESH, "vary: a,b,c,d,e,f,g,h,i"], {}, Refusal.VARY, id="vary-too-many"),
        pytest.param("design", [FRESH, "vary: " + "a, " * 1000 + "b"], {}, STORED, id="vary-long-with-repetitions"),
        pytest.param(
            "design",
            [FRESH, "vary: a,b,c,d,e,f,g,h", "access-control-allow-origin: https://a.example"],
            {},
            Refusal.VARY,
            id="vary-too-many-with-origin",
        ),
        # bytes that would split a response
        *(
            pytest.param("9110-5.5", [FRESH, f"x-a: b{octet}c"], {}, Refusal.INVALID_FIELD, id=f"value-{octet!r}")
            for octet in ("\r", "\n", "\0")
        ),
        *(
            pytest.param("9110-5.1", [FRESH, f"{name}: c"], {}, Refusal.INVALID_FIELD, id=f"name-{name!r}")
            for name in ("x a", "x\ra", "x\na", "x\0a", "", "x\xe9")
        ),
        pytest.param(
            "9111-7.6.1", [FRESH, "connection: x-a", "x-a: b\rc"], {}, STORED, id="value-of-a-field-not-stored"
        ),
        # bounds
        pytest.param("design", [FRESH, "x-a: " + "b" * 33_000], {}, Refusal.HEADER_SIZE, id="header-size"),
        pytest.param(
            "design",
            ["cache-control: max-age=9", "x: " + "b" * 10],
            {"options": PolicyOptions(max_header_bytes=32)},
            Refusal.HEADER_SIZE,
            id="header-size-one-over",
        ),
        pytest.param(
            "design",
            ["cache-control: max-age=9", "x: " + "b" * 10],
            {"options": PolicyOptions(max_header_bytes=33)},
            STORED,
            id="header-size-exact",
        ),
        # hosts
        pytest.param("CWE-349", [FRESH], {"options": PolicyOptions(allowed_hosts=["a"])}, Refusal.HOST, id="host"),
        pytest.param(
            "CWE-349", [FRESH], {"options": PolicyOptions(allowed_hosts=["EXAMPLE.com"])}, STORED, id="host-allowed"
        ),
        pytest.param(
            "CWE-349",
            [FRESH],
            {"options": PolicyOptions(allowed_hosts=["example.com"]), "request": asking(host=b"Example.com:80")},
            STORED,
            id="host-allowed-default-port",
        ),
        pytest.param(
            "CWE-349",
            [FRESH],
            {"options": PolicyOptions(allowed_hosts=["example.com"]), "request": asking(host=b"example.com:81")},
            Refusal.HOST,
            id="host-other-port",
        ),
        pytest.param(
            "CWE-349",
            [FRESH],
            {"options": PolicyOptions(allowed_hosts=["example.com"]), "request": asking(host=None)},
            Refusal.HOST,
            id="host-absent",
        ),
        # routes
        pytest.param("design", [FRESH], {"route": RouteOptions(store=False)}, Refusal.ROUTE, id="route-never"),
        pytest.param("design", [], {"route": RouteOptions(ttl=5)}, STORED, id="route-ttl"),
        pytest.param(
            "design",
            ["cache-control: no-store"],
            {"route": RouteOptions(ttl=5)},
            Refusal.NO_STORE,
            id="route-ttl-is-no-permission",
        ),
        *(
            pytest.param(
                "design",
                ['etag: "a"'],
                {"status": status, "route": RouteOptions(ttl=5)},
                Refusal.NO_FRESHNESS,
                id=f"route-ttl-not-for-{status}",
            )
            for status in (302, 400, 401, 403, 422, 500, 503)
        ),
    ],
)
def test_storing(section: str, lines: list[str], more: dict[str, Any], refusal: Refusal | None) -> None:
    verdict = admission(*lines, **more)
    assert verdict.refusal is refusal, section
    assert (verdict.entry is None) == (refusal is not None)


def test_names_in_upper_case_are_refused_lest_a_restriction_is_overlooked() -> None:
    from echo_cache.policy import admit

    headers = [(b"Cache-Control", b"private"), (b"expires", date(60).encode())]
    verdict = admit(asking(), 200, headers, request_time=NOW, response_time=NOW, options=SAFE)
    assert verdict.refusal is Refusal.INVALID_FIELD


@pytest.mark.parametrize(
    ("section", "lines", "kept"),
    [
        pytest.param("3.1", [FRESH, "x-a: 2", "x-a: 1", "X-A: 2"], [FRESH, "x-a: 2", "x-a: 1", "x-a: 2"], id="order"),
        *(
            pytest.param("3.1", [FRESH, f"{name}: x"], [FRESH], id=f"without-{name}")
            for name in (
                *("connection", "keep-alive", "proxy-authenticate", "proxy-authentication-info"),
                *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
            )
        ),
        pytest.param(
            "3.1",
            [FRESH, "connection: X-One, close", "connection: x-two", "x-one: 1", "x-two: 2", "x-three: 3"],
            [FRESH, "x-three: 3"],
            id="listed-by-connection",
        ),
        pytest.param("5.1", [FRESH, "age: 3"], [FRESH], id="without-age"),
        pytest.param(
            "5.2.2.4",
            ['cache-control: max-age=60, no-cache="X-One, x-two"', "x-one: 1", "x-two: 2", "x-three: 3"],
            ['cache-control: max-age=60, no-cache="X-One, x-two"', "x-three: 3"],
            id="qualified-no-cache",
        ),
        pytest.param(
            "5.2.2.7",
            ['cache-control: max-age=60, private="X-One"', "x-one: 1", "x-three: 3"],
            ['cache-control: max-age=60, private="X-One"', "x-three: 3"],
            id="qualified-private",
        ),
        pytest.param("3.1", [FRESH, "x-new: é", "x-empty:"], [FRESH, "x-new: é", "x-empty:"], id="unknown-fields"),
    ],
)
def test_stored_fields(section: str, lines: list[str], kept: list[str]) -> None:
    assert list(stored(*lines).response.headers) == pairs(*kept), section


def test_pairs_that_are_lists_become_tuples() -> None:
    from echo_cache.policy import admit

    headers: Any = [[b"cache-control", b"max-age=60"]]
    verdict = admit(asking(), 200, headers, request_time=NOW, response_time=NOW, options=SAFE)
    assert verdict.entry is not None
    assert verdict.entry.response.headers == ((b"cache-control", b"max-age=60"),)


@pytest.mark.parametrize(
    ("lines", "request_lines", "vary"),
    [
        pytest.param([], [], (), id="none"),
        pytest.param(["vary:"], ["accept: a"], (), id="empty"),
        pytest.param(["vary: Accept"], [], ((b"accept", None),), id="absent"),
        pytest.param(["vary: Accept"], ["accept:"], ((b"accept", b""),), id="empty-is-not-absent"),
        pytest.param(["vary: b, A ,b"], ["a: 1"], ((b"a", b"1"), (b"b", None)), id="sorted-once"),
        pytest.param(["vary: b", "vary: a"], [], ((b"a", None), (b"b", None)), id="two-lines"),
        pytest.param(["vary: a"], ["a: 1", "a: 2"], ((b"a", b"1, 2"),), id="repeated-request-field"),
        pytest.param(
            ["vary: accept-encoding"],
            ["accept-encoding: BR;q=0.5,gzip"],
            ((b"accept-encoding", b"gzip, br;q=0.5"),),
            id="normalised",
        ),
        pytest.param(
            ["access-control-allow-origin: https://a.example"],
            ["origin: https://a.example"],
            ((b"origin", b"https://a.example"),),
            id="cors-reflected",
        ),
        pytest.param(
            ["access-control-allow-origin: null", "vary: a"], [], ((b"a", None), (b"origin", None)), id="cors-null"
        ),
        pytest.param(
            ["access-control-allow-origin: *", "access-control-allow-origin: https://a.example"],
            [],
            ((b"origin", None),),
            id="cors-two-lines",
        ),
        pytest.param(["access-control-allow-origin:  * "], ["origin: https://a.example"], (), id="cors-star"),
    ],
)
def test_selecting_fields(lines: list[str], request_lines: list[str], vary: object) -> None:
    assert stored(FRESH, *lines, request=asking(*request_lines)).vary == vary


def test_a_route_can_add_selecting_fields() -> None:
    entry = stored(FRESH, "vary: b", request=asking("x-tenant: 7"), route=RouteOptions(vary=["X-Tenant"]))
    assert entry.vary == ((b"b", None), (b"x-tenant", b"7"))


@pytest.mark.parametrize(
    ("section", "lines", "options", "lifetime"),
    [
        pytest.param("9213-2.2", ["cdn-cache-control: max-age=5", FRESH], PLAIN, 5, id="wins"),
        pytest.param("9213-2.2", ["cdn-cache-control: max-age=5", FRESH], SAFE, 60, id="off-by-default"),
        pytest.param("9213-2.2", ["cdn-cache-control: max-age=5", "cache-control: no-store"], PLAIN, 5, id="no-store"),
        pytest.param("9213-2.2", ["cdn-cache-control: no-store", FRESH], PLAIN, Refusal.NO_STORE, id="its-no-store"),
        pytest.param("9213-2.1", ["cdn-cache-control: max-age=5 x", FRESH], PLAIN, 60, id="malformed-is-ignored"),
        pytest.param("9213-2.1", ["cdn-cache-control:", FRESH], PLAIN, 60, id="empty-is-ignored"),
        pytest.param(
            "9213-2.2",
            ["cdn-cache-control: public", f"expires: {date(60)}"],
            PLAIN,
            Refusal.NO_FRESHNESS,
            id="expires-is-ignored",
        ),
        pytest.param(
            "9213-2.2",
            ["cdn-cache-control: max-age=5", "our-cache-control: max-age=6"],
            PolicyOptions(targeted_fields=["Our-Cache-Control", "CDN-Cache-Control"]),
            6,
            id="first-of-the-list",
        ),
        pytest.param(
            "9213-2.2",
            ["cdn-cache-control: max-age=5", "our-cache-control: (max-age=6"],
            PolicyOptions(targeted_fields=["Our-Cache-Control", "CDN-Cache-Control"]),
            5,
            id="first-valid-of-the-list",
        ),
    ],
)
def test_targeted_fields(section: str, lines: list[str], options: PolicyOptions, lifetime: object) -> None:
    verdict = admission(*lines, options=options)
    found = verdict.refusal if verdict.entry is None else verdict.entry.fresh_until - NOW
    assert found == lifetime, section


@pytest.mark.parametrize(
    ("lines", "more", "lifetime"),
    [
        pytest.param([], {}, 180, id="applies"),
        pytest.param([], {"request": WITH_COOKIE}, Refusal.CREDENTIALS, id="not-with-cookie"),
        pytest.param(['etag: "a"'], {"request": WITH_COOKIE}, Refusal.CREDENTIALS, id="not-with-cookie-and-etag"),
        pytest.param(
            [f"last-modified: {date(-1e6)}"],
            {"request": WITH_COOKIE},
            Refusal.CREDENTIALS,
            id="no-heuristic-with-cookie",
        ),
        pytest.param(
            [],
            {"request": AUTHORIZED, "route": RouteOptions(share_authorized=True)},
            Refusal.CREDENTIALS,
            id="not-with-authorization",
        ),
        pytest.param([FRESH], {"request": WITH_COOKIE}, 60, id="explicit-with-cookie"),
        pytest.param(
            ["cache-control: public", f"last-modified: {date(-1000)}"],
            {"request": WITH_COOKIE},
            100,
            id="public-heuristic-with-cookie",
        ),
        pytest.param(['etag: "a"', "cache-control: no-cache"], {"request": WITH_COOKIE}, 0, id="no-cache-with-cookie"),
        pytest.param(
            ['etag: "a"', "cache-control: must-revalidate"], {"request": WITH_COOKIE}, 0, id="must-revalidate-cookie"
        ),
        pytest.param([], {"status": 404}, 10, id="status-404-for-negative-ttl-at-most"),
        pytest.param(
            [], {"status": 404, "options": PolicyOptions(negative_ttl=None)}, 180, id="status-404-as-others-by-option"
        ),
        pytest.param([], {"status": 500}, Refusal.NO_FRESHNESS, id="not-for-500"),
        pytest.param([], {"status": 302}, Refusal.NO_FRESHNESS, id="not-for-302"),
        pytest.param([], {"status": 403}, Refusal.NO_FRESHNESS, id="not-for-403"),
        pytest.param(["expires: 0"], {}, Refusal.ALREADY_STALE, id="not-where-expires-is-invalid"),
        pytest.param(["cache-control: max-age=x"], {}, Refusal.ALREADY_STALE, id="not-where-max-age-is-invalid"),
        pytest.param(["cache-control: public"], {}, 180, id="public-says-no-more"),
        pytest.param(["cache-control: x"], {}, 180, id="an-unknown-directive-says-nothing"),
        pytest.param(["pragma: no-cache"], {}, Refusal.NO_FRESHNESS, id="not-with-pragma"),
        pytest.param([], {"options": PolicyOptions(default_ttl=None)}, Refusal.NO_FRESHNESS, id="off"),
        pytest.param(
            [f"last-modified: {date(-1000)}"],
            {"options": PolicyOptions(heuristic_fraction=0)},
            180,
            id="without-the-heuristic",
        ),
        pytest.param(["last-modified: yesterday"], {}, 180, id="last-modified-malformed"),
    ],
)
def test_default_ttl_is_for_strangers_and_what_says_nothing(
    lines: list[str], more: dict[str, Any], lifetime: object
) -> None:
    verdict = admission(*lines, **{"options": SAFE, **more})
    found = verdict.refusal if verdict.entry is None else verdict.entry.fresh_until - NOW
    assert found == lifetime


def test_what_nobody_allowed_makes_an_entry_for_strangers_only() -> None:
    assert stored(options=SAFE).anonymous_only
    assert stored(f"last-modified: {date(-1000)}", options=SAFE).anonymous_only
    assert not stored(FRESH, options=SAFE).anonymous_only
    assert not stored("cache-control: public", f"last-modified: {date(-1000)}", options=SAFE).anonymous_only


@pytest.mark.parametrize(
    ("request_lines", "status", "refusal"),
    [
        pytest.param(["user-agent: Mozilla/5.0 (X11; Linux) ~"], 404, STORED, id="ordinary"),
        pytest.param(["x-http-method-override: POST"], 404, Refusal.SUSPECT_REQUEST, id="override-404"),
        pytest.param(["x-http-method: POST"], 200, Refusal.SUSPECT_REQUEST, id="override-200"),
        pytest.param(["x-method-override: POST"], 301, Refusal.SUSPECT_REQUEST, id="override-301"),
        pytest.param(["x-a: " + "b" * 9000], 400, Refusal.SUSPECT_REQUEST, id="oversized-400"),
        pytest.param(["x-a: " + "b" * 9000], 200, STORED, id="oversized-200"),
        pytest.param([f"x-a{i}: " + "b" * 90 for i in range(90)], 404, Refusal.SUSPECT_REQUEST, id="many-404"),
        pytest.param(["x-a: a\nb"], 404, Refusal.SUSPECT_REQUEST, id="line-feed-404"),
        pytest.param(["x-a: \x07"], 404, Refusal.SUSPECT_REQUEST, id="bell-404"),
        pytest.param(["x-a: \x7f"], 404, Refusal.SUSPECT_REQUEST, id="delete-404"),
        pytest.param(["x-a: \x1f"], 404, Refusal.SUSPECT_REQUEST, id="unit-separator-404"),
        pytest.param(["x-a: \xff"], 500, Refusal.SUSPECT_REQUEST, id="not-ascii-500"),
        pytest.param(["x-a: a\tb"], 404, STORED, id="tab-404"),
    ],
)
def test_an_error_that_the_shape_of_the_request_may_have_caused_is_not_stored(
    request_lines: list[str], status: int, refusal: Refusal | None
) -> None:
    assert admission(FRESH, status=status, request=asking(*request_lines)).refusal is refusal


@pytest.mark.parametrize(
    "path", [b"/account/x.css", b"/account;x.css", b"/a%2f..%2fx.js", b"/a%00.png", b"/a/../b.gif"]
)
def test_the_path_has_no_say_in_storing(path: bytes) -> None:
    # cache deception
    assert admission(options=SAFE, request=asking("cookie: a=1", path=path)).refusal is Refusal.CREDENTIALS
    assert admission(options=SAFE, request=asking(path=path)).refusal is None


@pytest.mark.parametrize(
    ("section", "control", "options", "route", "windows"),
    [
        pytest.param("5861-3", "max-age=9, stale-while-revalidate=5", PLAIN, {}, (5, 0), id="own-while"),
        pytest.param("5861-4", "max-age=9, stale-if-error=6", PLAIN, {}, (0, 6), id="own-error"),
        pytest.param(
            "design", "max-age=9", PolicyOptions(stale_while_revalidate=1, stale_if_error=2), {}, (1, 2), id="d"
        ),
        pytest.param(
            "design",
            "max-age=9, stale-while-revalidate=0, stale-if-error=0",
            PolicyOptions(stale_while_revalidate=1, stale_if_error=2),
            {},
            (0, 0),
            id="own-zero-beats-default",
        ),
        pytest.param(
            "design",
            "max-age=9, stale-while-revalidate=5, stale-if-error=6",
            PLAIN,
            {"stale_while_revalidate": 3, "stale_if_error": 4},
            (3, 4),
            id="route-beats-own",
        ),
        *(
            pytest.param(
                "9111-4.2.4",
                f"max-age=9, stale-while-revalidate=5, stale-if-error=6, {forbidding}",
                PolicyOptions(stale_while_revalidate=1, stale_if_error=2),
                {"stale_while_revalidate": 3, "stale_if_error": 4},
                (0, 0),
                id=forbidding,
            )
            for forbidding in ("must-revalidate", "proxy-revalidate", "no-cache")
        ),
        pytest.param(
            "9111-5.2.2.10",
            "s-maxage=9",
            PolicyOptions(stale_while_revalidate=1, stale_if_error=2),
            {},
            (0, 0),
            id="s-maxage-beats-default",
        ),
        pytest.param(
            "9111-5.2.2.10",
            "s-maxage=9, stale-while-revalidate=5, stale-if-error=6",
            PolicyOptions(stale_while_revalidate=1, stale_if_error=2),
            {},
            (5, 6),
            id="s-maxage-with-explicit-permission",
        ),
        pytest.param(
            "9111-4.2.4",
            "public",
            PolicyOptions(stale_while_revalidate=1, stale_if_error=2, default_ttl=None),
            {"stale_while_revalidate": 3, "stale_if_error": 4},
            (0, 0),
            id="never-fresh",
        ),
    ],
)
def test_stale_windows(
    section: str, control: str, options: PolicyOptions, route: dict[str, Any], windows: tuple[float, float]
) -> None:
    entry = stored(f"cache-control: {control}", 'etag: "a"', options=options, route=RouteOptions(**route))
    assert (entry.stale_while_revalidate, entry.stale_if_error) == windows, section


def test_a_personal_answer_never_becomes_stale_for_others_by_an_option_of_ours() -> None:
    options = PolicyOptions(stale_while_revalidate=60, stale_if_error=60)
    assert admission('etag: "a"', options=options, request=WITH_COOKIE).refusal is Refusal.CREDENTIALS


@pytest.mark.parametrize(
    ("control", "never_stale", "always_validate"),
    [
        pytest.param("max-age=9", False, False, id="plain"),
        pytest.param("max-age=9, must-revalidate", True, False, id="must-revalidate"),
        pytest.param("max-age=9, proxy-revalidate", True, False, id="proxy-revalidate"),
        pytest.param("s-maxage=9", True, False, id="s-maxage"),
        pytest.param("max-age=9, no-cache", False, True, id="no-cache"),
        pytest.param('max-age=9, no-cache="x"', False, False, id="no-cache-qualified"),
    ],
)
def test_what_the_directives_forbid_is_kept_with_the_entry(
    control: str, never_stale: bool, always_validate: bool
) -> None:
    entry = stored(f"cache-control: {control}", 'etag: "a"')
    assert (entry.never_stale, entry.always_validate) == (never_stale, always_validate)


@pytest.mark.parametrize(
    ("lines", "tags", "groups"),
    [
        pytest.param([], (), (), id="none"),
        pytest.param(['cache-groups: "a", "b"'], (), ("a", "b"), id="field"),
        pytest.param(['cache-groups: "a"', 'cache-groups: "b"'], (), ("a", "b"), id="two-lines"),
        pytest.param(["cache-groups: a"], (), (), id="malformed"),
        pytest.param(['cache-groups: "a", "b"'], ("c", "a"), ("c", "a", "b"), id="route-first-each-once"),
        pytest.param([], ("c", "c"), ("c",), id="route"),
    ],
)
def test_groups(lines: list[str], tags: tuple[str, ...], groups: tuple[str, ...]) -> None:
    assert stored(FRESH, *lines, route=RouteOptions(tags=tags)).groups == groups  # RFC 9875 section 2


def test_an_entry_says_how_long_it_is_kept_and_where_the_log_stood() -> None:
    route = RouteOptions(client_ttl=7)
    entry = stored("cache-control: max-age=60, stale-if-error=90", mark=12, route=route)
    assert (entry.stored_at, entry.fresh_until, entry.retain_until) == (NOW, NOW + 60, NOW + 150)
    assert (entry.mark, entry.client_ttl, entry.own_etag) == (12, 7, False)
    assert (stored(FRESH).mark, stored(FRESH).client_ttl) == (0, None)
    assert stored(FRESH).retain_until == NOW + 60
    assert stored(FRESH, 'etag: "a"').retain_until == NOW + 60 + PLAIN.keep


def test_a_response_is_shared_while_it_comes_only_when_it_is_fresh() -> None:
    assert admission(FRESH).shareable
    assert not admission("cache-control: max-age=0", 'etag: "a"').shareable
    assert not admission("cache-control: max-age=9, no-cache", 'etag: "a"').shareable
    assert not admission("cache-control: no-store").shareable


def test_the_body_and_our_own_etag_come_last() -> None:
    entry = stored(FRESH, body=b"abc", own_etag=b'"x"')
    assert entry.response.body == b"abc"
    assert entry.response.headers[-1] == (b"etag", b'"x"')
    assert entry.own_etag


def test_the_time_of_a_route_counts_from_now() -> None:
    entry = stored("age: 50", "cache-control: max-age=10", route=RouteOptions(ttl=20))
    assert entry.fresh_until == NOW + 20
    assert entry.generated_at == NOW - 50


DIRECTIVES = [
    *("no-store", "private", "public", "no-cache", "must-revalidate", "proxy-revalidate", "immutable"),
    *("max-age=0", "max-age=60", "s-maxage=0", "s-maxage=60", 'no-cache="x"', "unknown=1"),
]


@given(
    st.sampled_from(["GET", "HEAD", "POST", "DELETE"]),
    st.booleans(),
    st.sampled_from([200, 201, 204, 206, 301, 302, 304, 307, 403, 404, 410, 451, 500, 501, 503]),
    st.lists(st.sampled_from(DIRECTIVES), max_size=4, unique=True),
    st.booleans(),
)
def test_another_cache_agrees_on_what_may_be_stored(
    method: str, authorized: bool, status: int, directives: list[str], expires: bool
) -> None:
    """
    Compared with hishel's reading of section 3, as a shared cache.

    The responses have a validator, since we do not keep what is stale and has none. Left out are must-understand,
    which hishel does not know, the qualified private, which it takes as the milder of the two, invalid durations,
    which it reads otherwise, and the status codes that we refuse beyond section 3.
    """
    lines = ['etag: "a"', f"cache-control: {', '.join(directives)}", *([f"expires: {date(60)}"] if expires else [])]
    request = asking(*(["authorization: x"] if authorized else []), method=method)
    ours = admission(*lines, status=status, request=request)

    asked = hishel.Request(method, "http://example.com/a", headers=hishel.Headers(_named(request.headers)))
    options = hishel.CacheOptions(shared=True, supported_methods=["GET"], allow_stale=False)
    answered = hishel.Response(status, headers=hishel.Headers(_named(pairs(*lines))))
    theirs: hishel.AnyState = hishel.CacheMiss(request=asked, options=options).next(answered)
    if isinstance(theirs, hishel.InvalidateEntries):
        theirs = theirs.next()
    assert (ours.entry is not None) == isinstance(theirs, hishel.StoreAndUse)


def _named(headers: Headers) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


def test_long_tags_are_cut_where_invalidation_cuts_them() -> None:
    """RFC 9875: a bound on the length of a group must be the same on both sides."""
    tag = "t" * 300
    assert stored("cache-control: max-age=9", route=RouteOptions(tags=[tag])).groups == ("t" * 128,)
