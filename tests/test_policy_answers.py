"""What a client gets from a stored response: RFC 9111 section 4.3.2, RFC 9110 sections 13 to 15."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.model import Entry
from echo_cache.options import RouteOptions
from echo_cache.policy import answer
from echo_cache.policy.answers import answered_headers, told_to_client
from tests.policy_cases import BODY, NOW, Pairs, asking, date, pairs, stored

FRESH = "cache-control: max-age=60"
MODIFIED = f"last-modified: {date(-5000)}"
DATED = f"date: {date(0)}"

STRONG = stored(FRESH, 'etag: "a"')
WEAK = stored(FRESH, 'etag: W/"a"')
BARE = stored(FRESH)
ON_DATE = stored(FRESH, DATED)
CHANGED = stored(FRESH, MODIFIED)
BOTH = stored(FRESH, 'etag: "a"', MODIFIED, DATED)


def values(headers: Pairs, name: bytes) -> list[bytes]:
    """Return the values of all lines of *name*."""
    return [value for line, value in headers if line == name]


@pytest.mark.parametrize(
    ("section", "entry", "lines", "status"),
    [
        # If-None-Match, by weak comparison
        pytest.param("9110-13.1.2", STRONG, [], 200, id="unconditional"),
        pytest.param("9110-13.1.2", STRONG, ['if-none-match: "a"'], 304, id="match"),
        pytest.param("9110-13.1.2", STRONG, ['if-none-match: "b"'], 200, id="no-match"),
        pytest.param("9110-13.1.2", STRONG, ['if-none-match: W/"a"'], 304, id="weak-asked"),
        pytest.param("9110-13.1.2", WEAK, ['if-none-match: "a"'], 304, id="weak-stored"),
        pytest.param("9110-13.1.2", WEAK, ['if-none-match: W/"a"'], 304, id="weak-both"),
        pytest.param("9110-13.1.2", STRONG, ['if-none-match: "x", W/"y" ,"a"'], 304, id="list"),
        pytest.param("9110-13.1.2", STRONG, ['if-none-match: "x", "y"'], 200, id="list-without"),
        pytest.param("9110-13.1.2", STRONG, ['if-none-match: "x"', 'if-none-match: "a"'], 304, id="two-lines"),
        pytest.param("9110-13.1.2", STRONG, ["if-none-match: *"], 304, id="star"),
        pytest.param("9110-13.1.2", BARE, ["if-none-match: *"], 304, id="star-without-etag"),
        pytest.param("9110-13.1.2", BARE, ['if-none-match: "a"'], 200, id="no-stored-etag"),
        pytest.param("9110-13.1.2", stored(FRESH, "etag: a"), ['if-none-match: "a"'], 200, id="malformed-stored"),
        pytest.param("9110-13.1.2", STRONG, ["if-none-match: a"], 200, id="malformed-asked"),
        pytest.param("9110-13.1.2", STRONG, ['if-none-match: "A"'], 200, id="case-matters"),
        # If-Modified-Since
        pytest.param("9110-13.1.3", CHANGED, [f"if-modified-since: {date(-5000)}"], 304, id="since-equal"),
        pytest.param("9110-13.1.3", CHANGED, [f"if-modified-since: {date(-4999)}"], 304, id="since-later"),
        pytest.param("9110-13.1.3", CHANGED, [f"if-modified-since: {date(-5001)}"], 200, id="since-earlier"),
        pytest.param("9110-13.1.3", CHANGED, ["if-modified-since: x"], 200, id="since-malformed"),
        pytest.param("9110-13.1.3", CHANGED, [f"if-modified-since: {date(0)}"] * 2, 200, id="since-twice"),
        pytest.param(
            "9110-13.1.3",
            stored(FRESH, "last-modified: x", DATED),
            [f"if-modified-since: {date(9)}"],
            200,
            id="last-modified-malformed",
        ),
        pytest.param("9111-4.3.2", ON_DATE, [f"if-modified-since: {date(0)}"], 304, id="date-stands-in"),
        pytest.param("9111-4.3.2", ON_DATE, [f"if-modified-since: {date(-1)}"], 200, id="date-stands-in-earlier"),
        pytest.param("9111-4.3.2", BARE, [f"if-modified-since: {date(0)}"], 304, id="receipt-stands-in"),
        pytest.param("9111-4.3.2", BARE, [f"if-modified-since: {date(-1)}"], 200, id="receipt-stands-in-earlier"),
        pytest.param(
            "9111-4.3.2",
            stored(FRESH, "age: 30"),
            [f"if-modified-since: {date(-10)}"],
            200,
            id="receipt-and-not-generation",
        ),
        # precedence
        pytest.param(
            "9110-13.2.2",
            BOTH,
            ['if-none-match: "b"', f"if-modified-since: {date(0)}"],
            200,
            id="if-none-match-first-no",
        ),
        pytest.param(
            "9110-13.2.2",
            BOTH,
            ['if-none-match: "a"', f"if-modified-since: {date(-9000)}"],
            304,
            id="if-none-match-first-yes",
        ),
        pytest.param(
            "9111-4.3.2",
            CHANGED,
            ['if-none-match: "a"', f"if-modified-since: {date(0)}"],
            200,
            id="if-none-match-first-without-etag",
        ),
        pytest.param(
            "9110-13.2.2", BOTH, ['if-none-match: "a"', "range: bytes=0-1"], 304, id="precondition-before-range"
        ),
        pytest.param("9110-13.2.2", BOTH, ['if-none-match: "b"', "range: bytes=0-1"], 206, id="then-the-range"),
        # only a stored 200
        pytest.param(
            "9111-4.3.2", stored(FRESH, 'etag: "a"', status=404), ['if-none-match: "a"'], 404, id="stored-404"
        ),
        pytest.param("9110-14.2", stored(FRESH, status=404), ["range: bytes=0-1"], 404, id="range-of-a-404"),
    ],
)
def test_preconditions(section: str, entry: Entry, lines: list[str], status: int) -> None:
    for method in ("GET", "HEAD"):
        found = answer(asking(*lines, method=method), entry, NOW)
        expected = 200 if method == "HEAD" and status == 206 else status  # a range is for GET only
        assert found.status == expected, section
        if method == "HEAD" or status == 304:
            assert found.body == b""


def test_a_304_has_what_updates_a_stored_response_and_nothing_of_the_body() -> None:
    kept = [
        *(FRESH, 'etag: "a"', DATED, f"expires: {date(60)}", "vary: x", "content-location: /b", MODIFIED),
        *("x-a: 1", "set-cookie: a=1"),
    ]
    described = [
        *("content-type: a/b", "content-length: 10", "content-encoding: gzip", "content-language: en"),
        *("content-digest: sha-256=:AA==:", "content-md5: AA=="),
    ]
    assert answer(asking(), stored(*kept, *described), NOW + 5).headers == [*pairs(*kept, *described), (b"age", b"5")]
    found = answer(asking('if-none-match: "a"'), stored(*kept, *described), NOW + 5)
    assert (found.status, found.body) == (304, b"")
    assert found.headers == [*pairs(*kept), (b"age", b"5")]  # RFC 9110 section 15.4.5


@pytest.mark.parametrize(
    ("section", "wanted", "body", "content_range"),
    [
        pytest.param("9110-14.1.2", "bytes=0-0", b"0", b"bytes 0-0/10", id="first"),
        pytest.param("9110-14.1.2", "bytes=2-4", b"234", b"bytes 2-4/10", id="middle"),
        pytest.param("9110-14.1.2", "bytes=8-", b"89", b"bytes 8-9/10", id="open"),
        pytest.param("9110-14.1.2", "bytes=-3", b"789", b"bytes 7-9/10", id="suffix"),
        pytest.param("9110-14.1.2", "bytes=-99", BODY, b"bytes 0-9/10", id="suffix-too-long"),
        pytest.param("9110-14.1.2", "bytes=5-999", b"56789", b"bytes 5-9/10", id="past-the-end"),
        pytest.param("9110-14.1", "BYTES=0-1", b"01", b"bytes 0-1/10", id="unit-in-any-case"),
        pytest.param("9110-14.2", "bytes=4-5,20-30", b"45", b"bytes 4-5/10", id="one-of-two-exists"),
        pytest.param("9110-15.5.17", "bytes=10-", None, b"bytes */10", id="unsatisfiable"),
        pytest.param("9110-15.5.17", "bytes=-0", None, b"bytes */10", id="empty-suffix"),
        pytest.param("9110-15.5.17", "bytes=20-30,40-50", None, b"bytes */10", id="none-of-two-exists"),
        pytest.param("9110-14.2", "items=0-1", BODY, None, id="unknown-unit"),
        pytest.param("9110-14.2", "bytes=4-2", BODY, None, id="invalid"),
        pytest.param("9110-14.2", "bytes=a-b", BODY, None, id="not-numbers"),
        pytest.param("9110-14.2", "bytes=0-1,3-4", BODY, None, id="several"),
        pytest.param("9110-17.15", "bytes=0-5,2-9", BODY, None, id="overlapping"),
        pytest.param("9110-17.15", "bytes=" + ",".join(["0-"] * 9), BODY, None, id="amplification"),
        pytest.param("9110-17.15", "bytes=" + ",".join(["0-0"] * 1300), BODY, None, id="too-many"),
    ],
)
def test_ranges(section: str, wanted: str, body: bytes | None, content_range: bytes | None) -> None:
    entry = stored(FRESH, 'etag: "a"', "content-type: text/plain", "content-length: 10")
    found = answer(asking(f"range: {wanted}"), entry, NOW + 5)
    assert found.status == (416 if body is None else 200 if content_range is None else 206), section
    assert found.body == (body or b"")
    assert values(found.headers, b"content-range") == ([] if content_range is None else [content_range])
    assert values(found.headers, b"content-length") == [b"%d" % len(found.body)]
    if found.status == 206:  # RFC 9110 section 15.3.7
        assert values(found.headers, b"etag") == [b'"a"']
        assert values(found.headers, b"cache-control") == [b"max-age=60"]
        assert values(found.headers, b"content-type") == [b"text/plain"]


def test_two_range_fields_get_the_whole() -> None:
    assert answer(asking("range: bytes=0-1", "range: bytes=2-3"), STRONG, NOW).status == 200


def test_a_part_does_not_carry_the_digest_of_the_whole_message() -> None:
    entry = stored(FRESH, "content-digest: sha-256=:AA==:", "repr-digest: sha-256=:AA==:", "content-md5: AA==")
    found = answer(asking("range: bytes=0-1"), entry, NOW)
    assert values(found.headers, b"content-md5") == []
    assert values(found.headers, b"content-digest") == []
    assert values(found.headers, b"repr-digest") == [b"sha-256=:AA==:"]


def test_a_416_cannot_be_kept_in_place_of_the_response() -> None:
    entry = stored(
        *(FRESH, "cdn-cache-control: max-age=60", f"expires: {date(60)}", 'etag: "a"', MODIFIED),
        *("content-type: text/plain", "access-control-allow-origin: *", DATED),
    )
    found = answer(asking("range: bytes=99-"), entry, NOW + 5)
    assert found.headers == pairs(
        "access-control-allow-origin: *", DATED, "content-range: bytes */10", "content-length: 0"
    )


@pytest.mark.parametrize(
    ("section", "entry", "if_range", "holds"),
    [
        pytest.param("9110-13.1.5", STRONG, '"a"', True, id="etag"),
        pytest.param("9110-13.1.5", STRONG, '"b"', False, id="other-etag"),
        pytest.param("9110-13.1.5", STRONG, 'W/"a"', False, id="weak-asked"),
        pytest.param("9110-13.1.5", WEAK, 'W/"a"', False, id="weak-both"),
        pytest.param("9110-13.1.5", WEAK, '"a"', False, id="weak-stored"),
        pytest.param("9110-13.1.5", BARE, '"a"', False, id="no-etag"),
        pytest.param("9110-13.1.5", STRONG, '"a", "b"', False, id="list"),
        pytest.param("9110-13.1.5", BOTH, date(-5000), True, id="date"),
        pytest.param("9110-13.1.5", BOTH, date(-4999), False, id="later-date"),
        pytest.param("9110-13.1.5", BOTH, date(-5001), False, id="earlier-date"),
        pytest.param("9110-13.1.5", STRONG, date(-5000), False, id="no-last-modified"),
        pytest.param("9110-13.1.5", BOTH, "x", False, id="malformed"),
        pytest.param("9110-8.8.2.2", stored(FRESH, f"last-modified: {date(0)}", DATED), date(0), False, id="too-new"),
        pytest.param("9110-8.8.2.2", stored(FRESH, f"last-modified: {date(-1)}", DATED), date(-1), True, id="a-second"),
        pytest.param("9110-8.8.2.2", CHANGED, date(-5000), True, id="receipt-stands-in"),
        pytest.param("9110-8.8.2.2", stored(FRESH, f"last-modified: {date(0)}"), date(0), False, id="receipt-too-new"),
        pytest.param("9110-8.8.2.2", stored(FRESH, MODIFIED, "date: x"), date(-5000), False, id="date-malformed"),
        pytest.param("9110-13.1.5", stored(FRESH, "last-modified: x", DATED), "x", False, id="both-malformed"),
    ],
)
def test_if_range(section: str, entry: Entry, if_range: str, holds: bool) -> None:
    found = answer(asking("range: bytes=0-1", f"if-range: {if_range}"), entry, NOW)
    assert found.status == (206 if holds else 200), section


def test_two_if_range_fields_hold_nothing() -> None:
    assert answer(asking("range: bytes=0-1", 'if-range: "a"', 'if-range: "a"'), STRONG, NOW).status == 200


def test_if_range_without_range_says_nothing() -> None:
    assert answer(asking('if-range: "b"'), STRONG, NOW).body == BODY


def test_head_gets_the_fields_without_the_body() -> None:
    got, asked = answer(asking(), STRONG, NOW), answer(asking("range: bytes=0-1", method="HEAD"), STRONG, NOW)
    assert (asked.status, asked.headers, asked.body) == (200, got.headers, b"")
    assert answer(asking(method="HEAD"), stored(FRESH, status=404), NOW).body == b""


@pytest.mark.parametrize(
    ("lines", "status", "lengths"),
    [
        pytest.param(["content-length: 10"], 200, [b"10"], id="stored"),
        pytest.param([], 200, [b"10"], id="made"),
        pytest.param(["transfer-encoding: chunked"], 200, [b"10"], id="in-place-of-chunked"),
        pytest.param([], 404, [b"10"], id="404"),
        pytest.param([], 204, [], id="204"),
        pytest.param([], 205, [], id="205"),
    ],
)
def test_content_length(lines: list[str], status: int, lengths: list[bytes]) -> None:
    found = answer(asking(), stored(FRESH, *lines, status=status), NOW)
    assert values(found.headers, b"content-length") == lengths  # RFC 9110 section 8.6


def test_repeated_fields_stay_apart_and_in_order() -> None:
    lines = [FRESH, "set-cookie: a=1; expires=x", "x-a: 2", "set-cookie: b=2", "x-a: 1", "content-length: 10"]
    assert answer(asking(), stored(*lines), NOW).headers == [*pairs(*lines), (b"age", b"0")]


def test_an_answer_is_a_list_of_its_own() -> None:
    first = answer(asking(), STRONG, NOW)
    first.headers.clear()
    assert answer(asking(), STRONG, NOW).headers


@pytest.mark.parametrize(
    ("control", "client_ttl", "told"),
    [
        pytest.param("cache-control: s-maxage=600", None, ["cache-control: s-maxage=600"], id="as-it-is"),
        pytest.param("cache-control: s-maxage=600, public", 30, ["cache-control: max-age=37"], id="age-on-top"),
        pytest.param(f"expires: {date(600)}", 30, ["cache-control: max-age=37"], id="no-expires-beside-it"),
        pytest.param("cache-control: s-maxage=600", 0, ["cache-control: max-age=7"], id="zero"),
        pytest.param("cache-control: s-maxage=600", 1.9, ["cache-control: max-age=8"], id="whole-seconds"),
    ],
)
def test_what_clients_are_told(control: str, client_ttl: float | None, told: list[str]) -> None:
    entry = stored(control, "x-a: 1", route=RouteOptions(client_ttl=client_ttl))
    headers = answered_headers(entry, NOW + 7)
    assert [line for line in headers if line[0] in (b"cache-control", b"expires")] == pairs(*told)
    assert (b"x-a", b"1") in headers


@pytest.mark.parametrize("restriction", ["no-store", "private", "no-cache", "Private, max-age=9"])
def test_a_routes_client_ttl_never_undoes_a_restriction(restriction: str) -> None:
    headers = pairs(f"cache-control: {restriction}", "x-a: 1")
    assert told_to_client(headers, 60, 0) == headers


RANGES = st.lists(
    st.builds("{}-{}".format, st.integers(0, 20) | st.just(""), st.integers(0, 20) | st.just("")), max_size=20
).map(lambda specs: "bytes=" + ",".join(specs))


@given(st.binary(max_size=12), RANGES | st.text("0123456789-,= bytes", max_size=20), st.booleans())
def test_no_more_bytes_go_out_than_the_entity_has(body: bytes, wanted: str, by_head: bool) -> None:
    entry = stored(FRESH, body=body)
    found = answer(asking(f"range: {wanted}", method="HEAD" if by_head else "GET"), entry, NOW)
    assert len(found.body) <= len(body)
    assert found.status in (200, 206, 416)
    if found.status == 206:
        (content_range,) = values(found.headers, b"content-range")
        span, _, size = content_range.removeprefix(b"bytes ").partition(b"/")
        first, last = map(int, span.split(b"-"))
        assert found.body == body[first : last + 1] != b""
        assert int(size) == len(body)
    if not by_head:
        assert values(found.headers, b"content-length") == [b"%d" % len(found.body)]


CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "if-none-match": st.text('"aW/*, ', max_size=12),
        "if-modified-since": st.integers(-9000, 9000).map(date) | st.text("0: GMT", max_size=6),
        "if-range": st.text('"aW/*, ', max_size=12) | st.just(date(-5000)),
        "range": RANGES,
    },
)


@given(CONDITIONS, st.sampled_from([STRONG, WEAK, BARE, CHANGED, BOTH]), st.floats(-10, 1e6))
def test_every_answer_is_whole_and_dated(conditions: dict[str, Any], entry: Entry, later: float) -> None:
    found = answer(asking(*[f"{name}: {value}" for name, value in conditions.items()]), entry, NOW + later)
    assert found.status in (200, 206, 304, 416)
    assert len(values(found.headers, b"age")) == (found.status != 416)
    assert len(values(found.headers, b"content-length")) == (found.status != 304)
    if found.status == 304:
        assert found.body == b""
        assert "if-none-match" in conditions or "if-modified-since" in conditions
    if found.status in (206, 416):
        assert "range" in conditions


def test_a_stale_entry_is_answered_with_its_true_age() -> None:
    entry = STRONG._replace(generated_at=NOW - 500.0)
    assert values(answer(asking(), entry, NOW + 0.9).headers, b"age") == [b"500"]
