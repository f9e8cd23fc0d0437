"""Asking the app whether a stored response still holds: RFC 9111 sections 3.2 and 4.3."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.model import Entry, Refusal, Request, Validate
from echo_cache.options import PolicyOptions, RouteOptions
from echo_cache.policy import Admission, answer, decide, freshen, freshen_by_head
from echo_cache.policy.validation import conditions, without_conditions
from tests.policy_cases import BODY, NOW, PLAIN, SAFE, asking, date, pairs, stored

LATER = NOW + 1000.0
FRESH = "cache-control: max-age=60"
MODIFIED = f"last-modified: {date(-5000)}"
OTHER_DATE = f"last-modified: {date(-4000)}"

STRONG = stored(FRESH, 'etag: "a"', "x-old: 1")
WEAK = stored(FRESH, 'etag: W/"a"')
DATED = stored(FRESH, MODIFIED)
BOTH = stored(FRESH, 'etag: "a"', MODIFIED)
BARE = stored(FRESH)
OWN = stored(FRESH, MODIFIED, own_etag=b'"ours"')


def renew(entry: Entry, *lines: str, request: Request | None = None, **more: Any) -> Admission | None:
    """Return the verdict on *entry* after a 304 with these field *lines*, which came at LATER."""
    given: dict[str, Any] = {"request_time": LATER, "response_time": LATER, "options": PLAIN, **more}
    return freshen(entry, request or asking(), pairs(*lines), **given)


def renewed(entry: Entry, *lines: str, **more: Any) -> Entry:
    """Return the freshened *entry*, which the 304 must have renewed."""
    verdict = renew(entry, *lines, **more)
    assert verdict is not None
    assert verdict.entry is not None, verdict.refusal
    return verdict.entry


def fields_of(entry: Entry) -> list[tuple[bytes, bytes]]:
    """Return the stored fields, in order of their names."""
    return sorted(entry.response.headers)


@pytest.mark.parametrize(
    ("section", "entry", "asked"),
    [
        pytest.param("4.3.1", STRONG, ['if-none-match: "a"'], id="etag"),
        pytest.param("4.3.1", WEAK, ['if-none-match: W/"a"'], id="weak-etag"),
        pytest.param("4.3.1", DATED, [f"if-modified-since: {date(-5000)}"], id="last-modified"),
        pytest.param("4.3.1", BOTH, ['if-none-match: "a"', f"if-modified-since: {date(-5000)}"], id="both"),
        pytest.param("4.3.1", BARE, [], id="none"),
        pytest.param("9110-8.8.3", stored(FRESH, "etag: a"), [], id="malformed-etag"),
        pytest.param("design", OWN, [f"if-modified-since: {date(-5000)}"], id="own-etag-is-not-asked-about"),
    ],
)
def test_conditions(section: str, entry: Entry, asked: list[str]) -> None:
    assert list(conditions(entry)) == pairs(*asked), section
    decision = decide(asking(), entry, LATER, PLAIN)
    assert isinstance(decision, Validate) == bool(asked)


def test_a_clients_own_conditions_never_reach_a_fill() -> None:
    kept = ["host: h", "accept: a", "cookie: c"]
    conditional = [
        *('if-none-match: "x"', "if-modified-since: x", 'if-match: "x"', "if-unmodified-since: x"),
        *("if-range: x", "range: bytes=0-1"),
    ]
    assert without_conditions(pairs(kept[0], *conditional, *kept[1:])) == pairs(*kept)


@pytest.mark.parametrize(
    ("section", "entry", "lines", "about"),
    [
        # 4.3.4: strong validators identify
        pytest.param("4.3.4", STRONG, ['etag: "a"'], True, id="strong-same"),
        pytest.param("4.3.4", STRONG, ['etag: "b"'], False, id="strong-other"),
        pytest.param("4.3.4", WEAK, ['etag: "a"'], False, id="strong-for-weak"),
        pytest.param("4.3.4", DATED, ['etag: "a"', MODIFIED], False, id="strong-for-none"),
        pytest.param("4.3.4", OWN, ['etag: "a"', MODIFIED], False, id="strong-for-own"),
        pytest.param("4.3.4", OWN, ['etag: "ours"', MODIFIED], False, id="strong-equal-to-own"),
        pytest.param("4.3.4", BOTH, ['etag: "a"', OTHER_DATE], True, id="strong-same-other-date"),
        pytest.param("4.3.4", BOTH, ['etag: "b"', MODIFIED], False, id="strong-other-same-date"),
        # weak ones must correspond
        pytest.param("4.3.4", WEAK, ['etag: W/"a"'], True, id="weak-same"),
        pytest.param("4.3.4", STRONG, ['etag: W/"a"'], True, id="weak-for-strong"),
        pytest.param("4.3.4", STRONG, ['etag: W/"b"'], False, id="weak-other"),
        pytest.param("4.3.4", DATED, ['etag: W/"a"', MODIFIED], True, id="weak-for-none-same-date"),
        pytest.param("4.3.4", DATED, ['etag: W/"a"', OTHER_DATE], False, id="weak-for-none-other-date"),
        pytest.param("4.3.4", DATED, ['etag: W/"a"'], False, id="weak-for-none"),
        pytest.param("4.3.4", DATED, [MODIFIED], True, id="date-same"),
        pytest.param("4.3.4", DATED, [OTHER_DATE], False, id="date-other"),
        pytest.param("4.3.4", BARE, [MODIFIED], False, id="date-for-none"),
        # none
        pytest.param("4.3.4", STRONG, [], True, id="none-for-strong"),
        pytest.param("4.3.4", BARE, [], True, id="none-for-none"),
        # malformed
        pytest.param("9110-8.8.3", STRONG, ["etag: a"], False, id="malformed"),
        pytest.param("9110-8.8.3", stored(FRESH, "etag: a", MODIFIED), ["etag: a"], True, id="malformed-same"),
    ],
)
def test_which_entry_a_304_is_about(section: str, entry: Entry, lines: list[str], about: bool) -> None:
    assert (renew(entry, *lines) is not None) is about, section


@pytest.mark.parametrize(
    ("section", "before", "lines", "after"),
    [
        pytest.param("3.2", ["x-a: 1"], ["x-a: 2"], ["x-a: 2"], id="replaced"),
        pytest.param("3.2", ["x-a: 1"], [], ["x-a: 1"], id="kept"),
        pytest.param("3.2", [], ["x-a: 2"], ["x-a: 2"], id="added"),
        pytest.param("3.2", ["x-a: 1", "x-a: 2"], ["x-a: 3"], ["x-a: 3"], id="all-lines-replaced"),
        pytest.param("3.2", ["x-a: 1"], ["x-a: 2", "x-a: 3"], ["x-a: 2", "x-a: 3"], id="by-several-lines"),
        *(
            pytest.param("3.2", [f"{name}: 1"], [f"{name}: 2"], [f"{name}: 1"], id=f"never-{name}")
            for name in ("content-length", "content-encoding", "content-type")
        ),
        *(
            pytest.param("3.2", [], [f"{name}: 2"], [], id=f"never-adds-{name}")
            for name in (
                *("content-length", "content-encoding", "content-type", "content-range"),
                *("connection", "transfer-encoding", "keep-alive", "upgrade", "age"),
            )
        ),
        pytest.param("3.1", ["x-a: 1"], ["connection: x-a", "x-a: 2"], ["x-a: 1"], id="not-what-connection-lists"),
        pytest.param("9110-6.6.1", [f"date: {date(-9)}"], [f"date: {date(999)}"], [f"date: {date(999)}"], id="date"),
        pytest.param("9110-6.6.1", [f"date: {date(-9)}"], [], [f"date: {date(1000)}"], id="date-of-receipt"),
        pytest.param("9110-6.6.1", [], [], [], id="no-date"),
    ],
)
def test_what_a_304_changes(section: str, before: list[str], lines: list[str], after: list[str]) -> None:
    entry = stored(FRESH, 'etag: "a"', *before)
    fresh = renewed(entry, 'etag: "a"', *lines)
    assert fields_of(fresh) == sorted(pairs(FRESH, 'etag: "a"', *after)), section
    assert fresh.response.body == BODY
    assert fresh.response.status == 200


@pytest.mark.parametrize(
    ("section", "entry", "lines", "fresh_until"),
    [
        pytest.param("4.3.4", STRONG, [], LATER + 60, id="stored-lifetime"),
        pytest.param("4.3.4", STRONG, ["cache-control: max-age=9"], LATER + 9, id="new-lifetime"),
        pytest.param("4.2.3", STRONG, ["age: 20"], LATER + 40, id="age-of-the-304"),
        pytest.param("4.2.3", STRONG, [f"date: {date(990)}"], LATER + 50, id="date-of-the-304"),
        pytest.param("4.2.3", stored(FRESH, 'etag: "a"', f"date: {date(0)}"), [], LATER + 60, id="old-date-is-gone"),
        pytest.param("4.2.3", stored(FRESH, 'etag: "a"', "age: 50"), [], LATER + 60, id="old-age-is-gone"),
        pytest.param(
            "4.2.1",
            stored(f"expires: {date(60)}", f"date: {date(0)}", 'etag: "a"'),
            [f"expires: {date(1060)}"],
            LATER + 60,
            id="new-expires",
        ),
    ],
)
def test_a_304_makes_fresh(section: str, entry: Entry, lines: list[str], fresh_until: float) -> None:
    fresh = renewed(entry, *lines, mark=7)
    assert (fresh.fresh_until, fresh.stored_at, fresh.mark) == (fresh_until, LATER, 7), section


JITTERED = PolicyOptions.rfc9111(expiry_jitter=0.5)
# The share of http://example.com/a at LATER.
CUT = 0.5 * 0.9520995002239943


@pytest.mark.parametrize(
    ("entry", "lines", "lifetime"),
    [
        pytest.param(STRONG, [], 60, id="stored-lifetime"),
        pytest.param(STRONG, ["cache-control: max-age=9"], 9, id="new-lifetime"),
        pytest.param(STRONG, ["age: 20"], 40, id="what-remains"),
        pytest.param(stored(FRESH, 'etag: "a"', options=JITTERED), [], 60, id="jittered-before"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_a_304_makes_fresh_is_jittered_once(entry: Entry, lines: list[str], lifetime: float, method: str) -> None:
    fresh = renewed(entry, *lines, request=asking(method=method), options=JITTERED)
    assert fresh.fresh_until == pytest.approx(LATER + lifetime * (1 - CUT), rel=0, abs=1e-6)
    assert fresh.retain_until - fresh.fresh_until == JITTERED.keep


def test_what_a_head_makes_fresh_is_jittered() -> None:
    verdict = head(STRONG, 'etag: "a"', options=JITTERED)
    assert verdict is not None
    assert verdict.entry is not None
    assert verdict.entry.fresh_until == pytest.approx(LATER + 60 * (1 - CUT), rel=0, abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "route", "lifetime"),
    [
        pytest.param([], RouteOptions(), 60, id="its-own"),
        pytest.param([], RouteOptions(ttl=60), 10, id="route-ttl-cut"),
        pytest.param([], RouteOptions(ttl=60, negative_ttl=30), 30, id="route-negative-ttl"),
    ],
)
def test_a_304_about_what_is_missing_counts_as_such(lines: list[str], route: RouteOptions, lifetime: float) -> None:
    missing = stored(FRESH, 'etag: "a"', status=404)
    assert renewed(missing, *lines, options=SAFE, route=route).fresh_until == LATER + lifetime


def test_a_304_renews_what_the_entry_says_of_itself() -> None:
    entry = stored(FRESH, 'etag: "a"', "vary: x", request=asking("x: 1"))
    lines = ("vary: y", 'cache-groups: "g"', "cache-control: s-maxage=5, stale-if-error=6")
    fresh = renewed(entry, *lines, request=asking("x: 1", "y: 2"), route=RouteOptions(tags=["t"], client_ttl=3))
    assert fresh.vary == ((b"y", b"2"),)
    assert fresh.groups == ("t", "g")
    assert (fresh.stale_if_error, fresh.never_stale, fresh.client_ttl) == (6, True, 3)


def test_our_own_etag_outlives_a_304() -> None:
    fresh = renewed(OWN, MODIFIED)
    assert fresh.own_etag
    assert (b"etag", b'"ours"') in fresh.response.headers
    assert [name for name, _ in conditions(fresh)] == [b"if-modified-since"]


@pytest.mark.parametrize(
    ("section", "lines", "options", "refusal"),
    [
        pytest.param("5.2.2.5", ["cache-control: no-store"], PLAIN, Refusal.NO_STORE, id="no-store"),
        pytest.param("5.2.2.7", ["cache-control: private, max-age=9"], PLAIN, Refusal.PRIVATE, id="private"),
        pytest.param("4.1", ["vary: *"], PLAIN, Refusal.VARY, id="vary-star"),
        pytest.param("7.3", ["set-cookie: a=1"], SAFE, Refusal.SET_COOKIE, id="set-cookie"),
    ],
)
def test_a_304_that_forbids_storing_ends_the_entry_and_answers_its_asker(
    section: str, lines: list[str], options: PolicyOptions, refusal: Refusal
) -> None:
    verdict = renew(STRONG, *lines, options=options)
    assert verdict is not None
    assert (verdict.entry, verdict.refusal, verdict.shareable) == (None, refusal, False), section
    assert verdict.for_asker is not None
    given = answer(asking(), verdict.for_asker, LATER)
    assert (given.status, given.body) == (200, BODY)
    assert pairs(*lines)[0] in given.headers
    assert (b"age", b"0") in given.headers


def test_a_304_with_bytes_that_would_split_the_answer_gives_what_was_stored() -> None:
    verdict = renew(STRONG, "x-a: b\r\nc")
    assert verdict is not None
    assert (verdict.entry, verdict.refusal, verdict.for_asker) == (None, Refusal.INVALID_FIELD, STRONG)


@pytest.mark.parametrize(
    ("section", "entry", "request_", "options", "refusal"),
    [
        pytest.param("3.5", STRONG, asking("authorization: x"), PLAIN, Refusal.AUTHORIZATION, id="authorization"),
        pytest.param("5.2.1.5", STRONG, asking("cache-control: no-store"), PLAIN, Refusal.REQUEST_NO_STORE, id="n"),
        pytest.param(
            "design",
            stored('etag: "a"', MODIFIED),
            asking("cookie: a=1"),
            PLAIN,
            Refusal.CREDENTIALS,
            id="cookie",
        ),
        pytest.param(
            "CPDoS", STRONG, asking("x-http-method-override: PUT"), PLAIN, Refusal.SUSPECT_REQUEST, id="override"
        ),
        pytest.param(
            "CWE-349", STRONG, asking(host=b"evil"), PolicyOptions(allowed_hosts=["a"]), Refusal.HOST, id="host"
        ),
    ],
)
def test_who_asked_cannot_end_what_is_stored(
    section: str, entry: Entry, request_: Request, options: PolicyOptions, refusal: Refusal
) -> None:
    verdict = renew(entry, "x-new: 1", request=request_, options=options)
    assert verdict is not None
    assert (verdict.entry, verdict.refusal, verdict.shareable) == (entry, refusal, False), section
    assert verdict.for_asker is not None
    assert (b"x-new", b"1") in verdict.for_asker.response.headers
    assert verdict.for_asker.fresh_until == LATER


@pytest.mark.parametrize("line", ["range: bytes=0-1", 'if-none-match: "b"', 'if-match: "a"'])
def test_a_304_that_a_conditional_request_brought_about_renews(line: str) -> None:
    fresh = renewed(STRONG, request=asking(line))  # the app was asked with our conditions, not with the client's
    assert fresh.fresh_until == LATER + 60


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *(b"content-length", b"content-encoding", b"content-type", b"content-range", b"etag", b"x-a"),
                    *(b"connection", b"last-modified", b"cache-control", b"transfer-encoding", b"date", b"age"),
                ]
            ),
            st.sampled_from([b"1", b'"a"', b"gzip", b"x-a", b"max-age=9", b"text/html", b"bytes 0-1/2"]),
        ),
        max_size=8,
    )
)
def test_no_304_changes_what_the_body_is(headers: list[tuple[bytes, bytes]]) -> None:
    described = ["content-type: text/plain", "content-length: 10", "content-encoding: br"]
    entry = stored(FRESH, 'etag: "a"', *described)
    verdict = freshen(entry, asking(), headers, request_time=LATER, response_time=LATER, options=PLAIN)
    if verdict is None or verdict.entry is None:
        return
    kept = [line for line in verdict.entry.response.headers if line[0].startswith(b"content-")]
    assert kept == pairs(*described)
    assert verdict.entry.response.body == BODY


def test_a_304_to_a_head_renews_as_one_to_a_get() -> None:
    assert renewed(STRONG, request=asking(method="HEAD")).fresh_until == LATER + 60


# HEAD


def head(
    entry: Entry, *lines: str, status: int = 200, request: Request | None = None, options: PolicyOptions = PLAIN
) -> Admission | None:
    """Return the verdict on *entry* after an answer to HEAD with these field *lines*."""
    asked = (request or asking())._replace(method="HEAD")
    more: dict[str, Any] = {"request_time": LATER, "response_time": LATER, "options": options}
    return freshen_by_head(entry, asked, status, pairs(*lines), **more)


RENEWED, GONE, AS_IT_WAS = "renewed", "gone", "as it was"


@pytest.mark.parametrize(
    ("section", "entry", "status", "lines", "outcome"),
    [
        pytest.param("4.3.5", STRONG, 200, ['etag: "a"'], RENEWED, id="same-etag"),
        pytest.param("4.3.5", STRONG, 200, ['etag: "b"'], GONE, id="other-etag"),
        pytest.param("4.3.5", STRONG, 200, ['etag: W/"a"'], GONE, id="weak-etag"),
        pytest.param("4.3.5", BARE, 200, ['etag: "a"'], GONE, id="new-etag"),
        pytest.param("4.3.5", OWN, 200, ['etag: "ours"', MODIFIED], GONE, id="etag-beside-our-own"),
        pytest.param("4.3.5", DATED, 200, [MODIFIED], RENEWED, id="same-date"),
        pytest.param("4.3.5", OWN, 200, [MODIFIED], RENEWED, id="same-date-own-etag"),
        pytest.param("4.3.5", DATED, 200, [OTHER_DATE], GONE, id="other-date"),
        pytest.param("4.3.5", BOTH, 200, ['etag: "a"', OTHER_DATE], GONE, id="same-etag-other-date"),
        pytest.param("4.3.5", BOTH, 200, ['etag: "a"'], RENEWED, id="same-etag-no-date"),
        pytest.param("4.3.5", STRONG, 200, ['etag: "a"', "content-length: 10"], RENEWED, id="same-length"),
        pytest.param("4.3.5", STRONG, 200, ['etag: "a"', "content-length: 11"], GONE, id="other-length"),
        pytest.param("4.3.5", BARE, 200, ["content-length: 10"], AS_IT_WAS, id="length-alone"),
        pytest.param("4.3.5", BARE, 200, ["content-length: 11"], GONE, id="other-length-alone"),
        pytest.param("4.3.5", BARE, 200, [], AS_IT_WAS, id="nothing-said"),
        pytest.param("4.3.5", STRONG, 404, ['etag: "b"'], AS_IT_WAS, id="status-404"),
        pytest.param("4.3.5", STRONG, 304, ['etag: "b"'], AS_IT_WAS, id="status-304"),
        pytest.param("4.3.5", stored(FRESH, 'etag: "a"', status=404), 200, ['etag: "b"'], AS_IT_WAS, id="stored-404"),
        pytest.param("5.2.2.5", STRONG, 200, ['etag: "a"', "cache-control: no-store"], GONE, id="no-store"),
    ],
)
def test_head_freshens(section: str, entry: Entry, status: int, lines: list[str], outcome: str) -> None:
    verdict = head(entry, *lines, status=status)
    if outcome is AS_IT_WAS:
        assert verdict is None, section
    elif outcome is GONE:
        assert verdict is not None, section
        assert verdict.entry is None
    else:
        assert verdict is not None, section
        assert verdict.entry is not None
        assert (verdict.entry.fresh_until, verdict.entry.response.body) == (LATER + 60, BODY)


@pytest.mark.parametrize("line", ["authorization: x", "cache-control: no-store"])
def test_who_asked_by_head_cannot_end_what_is_stored(line: str) -> None:
    assert head(STRONG, 'etag: "a"', request=asking(line)) is None
