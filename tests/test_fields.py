"""Fields, rule by rule: each row names the section that it holds."""

from __future__ import annotations

import math
from typing import Any

import http_sf
import pytest

from echo_cache import fields
from echo_cache.fields import RangeRefusal, RequestDirectives, ResponseDirectives
from echo_cache.fields.structured import Date, DisplayString, Token

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
NOV_1994 = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT

RESPONSE_ROWS = [
    pytest.param(None, {}, id="9111-5.2-absent"),
    pytest.param(b"", {}, id="9111-5.2-empty"),
    pytest.param(b" , ,\t,", {}, id="9110-5.6.1-empty-members"),
    pytest.param(b"no-store", {"no_store": True}, id="9111-5.2.2.5-no-store"),
    pytest.param(b"No-StoRE", {"no_store": True}, id="9111-5.2-name-case-insensitive"),
    pytest.param(b"no-store=1", {"no_store": True}, id="9111-5.2.2.5-no-store-argument-ignored"),
    pytest.param(b"no-store; max-age=60", {"no_store": True}, id="9111-5.2-no-store-with-semicolon"),
    pytest.param(b"private max-age=60", {"private": True}, id="9111-5.2-private-without-comma"),
    pytest.param(b"foo-no-store", {}, id="9111-5.2.3-unknown-that-contains-a-known-name"),
    pytest.param(b'"no-store"', {"no_store": True}, id="9111-5.2-quoted-restriction-counts"),
    pytest.param(b"public; private", {"public": False, "private": True}, id="9111-5.2-restriction-behind-a-semicolon"),
    pytest.param(b"public; not-private", {}, id="9111-5.2-no-restriction-inside-a-word"),
    pytest.param(b'x="no-store"', {}, id="9111-5.2.3-restriction-in-an-argument-of-another"),
    pytest.param(b"no-cache", {"no_cache": True}, id="9111-5.2.2.4-no-cache"),
    pytest.param(
        b'no-cache="Set-Cookie, X-A"', {"no_cache_fields": {b"set-cookie", b"x-a"}}, id="9111-5.2.2.4-qualified"
    ),
    pytest.param(b"no-cache=Set-Cookie", {"no_cache_fields": {b"set-cookie"}}, id="9111-5.2.2.4-qualified-token"),
    pytest.param(b'no-cache=""', {"no_cache": True}, id="9111-5.2.2.4-empty-list-is-unqualified"),
    pytest.param(b'no-cache=" , "', {"no_cache": True}, id="9111-5.2.2.4-list-of-nothing-is-unqualified"),
    pytest.param(b"no-cache=", {"no_cache": True}, id="9111-5.2.2.4-missing-argument-is-unqualified"),
    pytest.param(b'no-cache="a b"', {"no_cache": True}, id="9111-5.2.2.4-not-a-field-name-is-unqualified"),
    pytest.param(b'no-cache="a, \xff"', {"no_cache": True}, id="9111-5.2.2.4-one-bad-name-is-unqualified"),
    pytest.param(b'no-cache="a"b', {"no_cache": True}, id="9111-5.2.2.4-text-after-the-quote-is-unqualified"),
    pytest.param(b'no-cache = "a"', {"no_cache": True}, id="9111-5.2-white-space-at-equals-is-unqualified"),
    pytest.param(
        b'no-cache, no-cache="a"', {"no_cache": True, "no_cache_fields": {b"a"}}, id="9111-4.2.1-both-forms-count"
    ),
    pytest.param(
        b'private="a", private="b"', {"private_fields": {b"a", b"b"}}, id="9111-5.2.2.7-repeated-lists-are-united"
    ),
    pytest.param(b"private", {"private": True}, id="9111-5.2.2.7-private"),
    pytest.param(b'private="\\a"', {"private_fields": {b"a"}}, id="9110-5.6.4-quoted-pair"),
    pytest.param(
        b'private="set-cookie, max-age=60, no-store',
        {"private": True, "max_age": 60, "no_store": True},
        id="9110-5.6.4-unclosed-quote-hides-nothing",
    ),
    pytest.param(b'x="no-store, private"', {}, id="9110-5.6.4-quoted-directives-are-text"),
    pytest.param(b'x="a\\", no-store"', {}, id="9110-5.6.4-escaped-quote-does-not-close"),
    pytest.param(b'x="a\\\\", no-store', {"no_store": True}, id="9110-5.6.4-escaped-backslash-does"),
    pytest.param(b"public", {"public": True}, id="9111-5.2.2.9-public"),
    pytest.param(b"public=1", {}, id="9111-5.2.2.9-public-must-be-well-formed"),
    pytest.param(b"public; max-age=60", {}, id="9111-5.2.2.9-public-with-semicolon"),
    pytest.param(b"immutable", {"immutable": True}, id="8246-2-immutable"),
    pytest.param(b"immutable=0", {}, id="8246-2-immutable-must-be-well-formed"),
    pytest.param(b"must-understand", {"must_understand": True}, id="9111-5.2.2.3-must-understand"),
    pytest.param(b"must-understand=no", {}, id="9111-5.2.2.3-must-understand-must-be-well-formed"),
    pytest.param(b"must-revalidate", {"must_revalidate": True}, id="9111-5.2.2.2-must-revalidate"),
    pytest.param(b"proxy-revalidate=x", {"proxy_revalidate": True}, id="9111-5.2.2.8-proxy-revalidate-argument"),
    pytest.param(b"no-transform", {"no_transform": True}, id="9111-5.2.2.6-no-transform"),
    pytest.param(b"max-age=60", {"max_age": 60}, id="9111-5.2.2.1-max-age"),
    pytest.param(b"MAX-AGE=60", {"max_age": 60}, id="9111-5.2-max-age-case-insensitive"),
    pytest.param(b'max-age="60"', {"max_age": 60}, id="9111-5.2-max-age-quoted"),
    pytest.param(b"\tmax-age=60 \t,", {"max_age": 60}, id="9110-5.6.1-white-space-around-members"),
    pytest.param(b"max-age=0060", {"max_age": 60}, id="9111-1.2.2-leading-zeros"),
    pytest.param(b"max-age=2147483647", {"max_age": 2**31 - 1}, id="9111-1.2.2-below-overflow"),
    pytest.param(b"max-age=2147483649", {"max_age": 2**31}, id="9111-1.2.2-overflow"),
    pytest.param(b"max-age=" + b"9" * 9000, {"max_age": 2**31}, id="9111-1.2.2-overlong"),
    pytest.param(b"max-age=" + b"0" * 9000 + b"7", {"max_age": 7}, id="9111-1.2.2-overlong-zeros"),
    *(
        pytest.param(b"max-age" + rest, {"max_age": 0}, id=f"9111-4.2.1-stale-max-age{rest.decode('latin-1')}")
        for rest in (b"", b"=", b'=""', b"=-1", b"=+1", b"=1.5", b"=60s", b"=a", b"='60'", b"= 60", b" =60", b"; 60")
    ),
    pytest.param("max-age=\u0663".encode(), {"max_age": 0}, id="9111-1.2.2-only-ascii-digits"),
    pytest.param(b"max-age=1, max-age=60", {"max_age": 1}, id="9111-4.2.1-first-of-two"),
    pytest.param(b"max-age=x, max-age=60", {"max_age": 0}, id="9111-4.2.1-first-of-two-invalid"),
    pytest.param(b"s-maxage=5, max-age=60", {"s_maxage": 5, "max_age": 60}, id="9111-5.2.2.10-s-maxage"),
    pytest.param(b"s-maxage=x", {"s_maxage": 0}, id="9111-4.2.1-stale-s-maxage"),
    pytest.param(
        b"stale-while-revalidate=5, stale-if-error=6",
        {"stale_while_revalidate": 5, "stale_if_error": 6},
        id="5861-3-stale",
    ),
    pytest.param(b"stale-while-revalidate, stale-if-error=-1", {}, id="5861-3-invalid-stale-is-absent"),
    pytest.param(b"foo, bar=1, community=UCI", {}, id="9111-5.2.3-unknown-ignored"),
    pytest.param(b"x" * 70_000 + b", no-store", {"no_store": True}, id="9111-5.2-too-long-to-be-memoised"),
]


@pytest.mark.parametrize(("value", "expected"), RESPONSE_ROWS)
def test_response_directives(value: bytes | None, expected: dict[str, Any]) -> None:
    assert fields.parse_response_directives(value) == ResponseDirectives(**expected)
    assert fields.parse_response_directives(value) == ResponseDirectives(**expected)


@pytest.mark.parametrize(
    ("cache_control", "pragma", "expected"),
    [
        pytest.param(None, None, {}, id="9111-5.2.1-absent"),
        pytest.param(b"no-cache", None, {"no_cache": True}, id="9111-5.2.1.4-no-cache"),
        pytest.param(b'NO-CACHE="x"', None, {"no_cache": True}, id="9111-5.2.1.4-argument-ignored"),
        pytest.param(b"no-store", None, {"no_store": True}, id="9111-5.2.1.5-no-store"),
        pytest.param(b"no-transform", None, {"no_transform": True}, id="9111-5.2.1.6-no-transform"),
        pytest.param(b"only-if-cached", None, {"only_if_cached": True}, id="9111-5.2.1.7-only-if-cached"),
        pytest.param(b"max-age=5", None, {"max_age": 5}, id="9111-5.2.1.1-max-age"),
        pytest.param(b"max-age=x", None, {"max_age": 0}, id="9111-5.2.1.1-invalid-forces-validation"),
        pytest.param(b"max-age", None, {"max_age": 0}, id="9111-5.2.1.1-missing-forces-validation"),
        pytest.param(b"max-stale", None, {"max_stale": math.inf}, id="9111-5.2.1.2-any-staleness"),
        pytest.param(b"max-stale=5", None, {"max_stale": 5}, id="9111-5.2.1.2-max-stale"),
        pytest.param(b"max-stale=x", None, {}, id="9111-5.2.1.2-invalid-ignored"),
        pytest.param(b"max-stale=", None, {}, id="9111-5.2.1.2-empty-ignored"),
        pytest.param(b"min-fresh=5", None, {"min_fresh": 5}, id="9111-5.2.1.3-min-fresh"),
        pytest.param(b"min-fresh=-5", None, {}, id="9111-5.2.1.3-invalid-ignored"),
        pytest.param(b"stale-if-error=5", None, {"stale_if_error": 5}, id="5861-4-stale-if-error"),
        pytest.param(b"max-age=1, max-age=9", None, {"max_age": 1}, id="9111-4.2.1-first-of-two"),
        pytest.param(None, b"no-cache", {"no_cache": True}, id="9111-5.4-pragma"),
        pytest.param(None, b'foo, No-Cache="x"', {"no_cache": True}, id="9111-5.4-pragma-in-a-list"),
        pytest.param(None, b"cache", {}, id="9111-5.4-pragma-unknown"),
        pytest.param(b"max-age=5", b"no-cache", {"max_age": 5}, id="9111-5.4-cache-control-hides-pragma"),
        pytest.param(b"", b"no-cache", {}, id="9111-5.4-empty-cache-control-hides-pragma"),
        pytest.param(b"a" * 300 + b", no-cache", None, {"no_cache": True}, id="9111-5.2-too-long-to-be-memoised"),
    ],
)
def test_request_directives(cache_control: bytes | None, pragma: bytes | None, expected: dict[str, Any]) -> None:
    assert fields.parse_request_directives(cache_control, pragma) == RequestDirectives(**expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b"", None, id="9213-2.1-empty-is-ignored"),
        pytest.param(b"  ", None, id="9213-2.1-blank-is-ignored"),
        pytest.param(b"max-age=60, &&&", None, id="9213-2.1-malformed-is-ignored-whole"),
        pytest.param(b"max-age =60", None, id="9651-4.2.2-space-before-equals"),
        pytest.param(b"max-age= 60", None, id="9651-4.2.2-space-after-equals"),
        pytest.param(b"MaX-aGe=60", None, id="9651-4.2.3.3-keys-are-lower-case"),
        pytest.param(b"max-age=60,", None, id="9651-4.2.2-trailing-comma"),
        pytest.param(b"none", {}, id="9213-3.1-valid-without-a-known-directive"),
        pytest.param(b"max-age=60", {"max_age": 60}, id="9213-2.1-integer"),
        pytest.param(b"max-age=60;x=1;y", {"max_age": 60}, id="9213-2.1-parameters-ignored"),
        pytest.param(b"max-age=99999999999", {"max_age": 2**31}, id="9111-1.2.2-overflow"),
        pytest.param(b"max-age=1, max-age=60", {"max_age": 60}, id="9651-4.2.2-last-of-two"),
        pytest.param(b"max-age=60.0", {"max_age": 0}, id="9213-2.1-decimal-not-converted"),
        pytest.param(b'max-age="60"', {"max_age": 0}, id="9213-2.1-string-not-converted"),
        pytest.param(b"max-age=-1", {"max_age": 0}, id="9111-4.2.1-negative-is-stale"),
        pytest.param(b"max-age", {"max_age": 0}, id="9213-2.1-boolean-is-stale"),
        pytest.param(b"max-age=?0", {}, id="9213-2.1-false-is-absent"),
        pytest.param(b"s-maxage=9, max-age=60", {"s_maxage": 9, "max_age": 60}, id="9213-2.2-s-maxage"),
        pytest.param(b"no-store", {"no_store": True}, id="9213-2.1-flag"),
        pytest.param(b"no-store=?1", {"no_store": True}, id="9651-3.3.6-true"),
        pytest.param(b"no-store=?0, max-age=1", {"max_age": 1}, id="9213-2.1-false-flag-is-absent"),
        pytest.param(b"no-store=1", {"no_store": True}, id="9213-2.1-restriction-of-wrong-type-stays"),
        pytest.param(b"public=1, immutable=yes, must-understand=1", {}, id="9213-2.1-permission-of-wrong-type"),
        pytest.param(
            b"public, immutable, must-understand, must-revalidate, proxy-revalidate, no-transform",
            {
                "public": True,
                "immutable": True,
                "must_understand": True,
                "must_revalidate": True,
                "proxy_revalidate": True,
                "no_transform": True,
            },
            id="9213-2.2-all-flags",
        ),
        pytest.param(b"private", {"private": True}, id="9213-2.1-private"),
        pytest.param(b'private="Set-Cookie, a"', {"private_fields": {b"set-cookie", b"a"}}, id="9213-2.1-private-list"),
        pytest.param(b"no-cache=set-cookie", {"no_cache_fields": {b"set-cookie"}}, id="9213-2.1-no-cache-token"),
        pytest.param(b'no-cache=("a" "b")', {"no_cache": True}, id="9213-2.1-inner-list-is-unqualified"),
        pytest.param(b"no-cache=?0, private=1", {"private": True}, id="9213-2.1-number-is-unqualified"),
        pytest.param(
            b"stale-while-revalidate=5, stale-if-error=6",
            {"stale_while_revalidate": 5, "stale_if_error": 6},
            id="5861-3-stale",
        ),
        pytest.param(b"stale-while-revalidate, stale-if-error=-6", {}, id="5861-3-invalid-stale-is-absent"),
    ],
)
def test_targeted_fields(value: bytes, expected: dict[str, Any] | None) -> None:
    assert fields.parse_targeted(value) == (None if expected is None else ResponseDirectives(**expected))


# ---------------------------------------------------------------------------------------------- dates


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b"Sun, 06 Nov 1994 08:49:37 GMT", NOV_1994, id="9110-5.6.7-imf-fixdate"),
        pytest.param(b"Sunday, 06-Nov-94 08:49:37 GMT", NOV_1994, id="9110-5.6.7-rfc850"),
        pytest.param(b"Sun Nov  6 08:49:37 1994", NOV_1994, id="9110-5.6.7-asctime"),
        pytest.param(b"Sun Nov 16 08:49:37 1994", NOV_1994 + 864_000, id="9110-5.6.7-asctime-two-digit-day"),
        pytest.param(b" \tSun, 06 Nov 1994 08:49:37 GMT ", NOV_1994, id="9110-5.5-white-space-around"),
        pytest.param(b"Mon, 06 Nov 1994 08:49:37 GMT", NOV_1994, id="9110-5.6.7-another-day-name"),
        pytest.param(b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0, id="9110-5.6.7-epoch"),
        pytest.param(b"Wed, 31 Dec 1969 23:59:59 GMT", -1.0, id="9110-5.6.7-before-epoch"),
        pytest.param(b"Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_799.0, id="9110-5.6.7-leap-second"),
        pytest.param(b"Tue, 29 Feb 2000 00:00:00 GMT", 951_782_400.0, id="9110-5.6.7-leap-day"),
        pytest.param(b"Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799.0, id="9110-5.6.7-last-year"),
    ],
)
def test_dates_of_three_formats(value: bytes, expected: float) -> None:
    assert fields.parse_date(value, NOW) == expected


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(value, id=f"9111-5.3-{value.decode('latin-1')}")
        for value in (
            b"",
            b"0",
            b"-1",
            b"1700000000",
            b"2023-11-14T22:13:20Z",
            b"SUN, 06 Nov 1994 08:49:37 GMT",
            b"Sun, 06 NOV 1994 08:49:37 GMT",
            b"Sun, 06 Nov 1994 08:49:37 gmt",
            b"Sun, 06 Nov 1994 08:49:37 UTC",
            b"Sun, 06 Nov 1994 08:49:37 +0000",
            b"Sun, 06 Nov 1994 08:49:37",
            b"Sun 06 Nov 1994 08:49:37 GMT",
            b"Sun,06 Nov 1994 08:49:37 GMT",
            b"Sun, 6 Nov 1994 08:49:37 GMT",
            b"Sun, 06  Nov  1994 08:49:37 GMT",
            b"Sun, 06-Nov-1994 08:49:37 GMT",
            b"Sun, 06 Nov 94 08:49:37 GMT",
            b"Sun, 06 Nov 1994 8:49:37 GMT",
            b"Sun, 06 Nov 1994 08.49.37 GMT",
            b"Sun, 06 Nov 1994 08:49 GMT",
            b"Sun, 06 Nov 1994 24:00:00 GMT",
            b"Sun, 06 Nov 1994 08:60:00 GMT",
            b"Sun, 06 Nov 1994 08:49:61 GMT",
            b"Sun, 00 Nov 1994 08:49:37 GMT",
            b"Sun, 31 Nov 1994 08:49:37 GMT",
            b"Mon, 29 Feb 1900 00:00:00 GMT",
            b"Sun, 06 Nov 0000 08:49:37 GMT",
            b"Xxx, 06 Nov 1994 08:49:37 GMT",
            b"Sun, 06 Xxx 1994 08:49:37 GMT",
            b"Sun, 06 Nov 1994 08:49:37 GMT\n",
            b"Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
            b"Sun, 06-Nov-94 08:49:37 GMT",
            b"Sunday, 06-Nov-1994 08:49:37 GMT",
            b"Sunday, 06 Nov 94 08:49:37 GMT",
            b"Sun Nov 6 08:49:37 1994",
            b"Sun Nov  6 08:49:37 1994 GMT",
            b"Sun Nov  0 08:49:37 1994",
            "Sun, \u0660\u0666 Nov 1994 08:49:37 GMT".encode(),
        )
    ],
)
def test_malformed_dates_are_none(value: bytes) -> None:
    assert fields.parse_date(value, NOW) is None


@pytest.mark.parametrize(
    ("value", "now", "expected"),
    [
        pytest.param(b"14-Nov-73 22:13:20", b"Tue, 14 Nov 2023 22:13:20 GMT", b"2073", id="exactly-50-years-ahead"),
        pytest.param(b"14-Nov-73 22:13:21", b"Tue, 14 Nov 2023 22:13:20 GMT", b"1973", id="a-second-more"),
        pytest.param(b"01-Jan-74 00:00:00", b"Tue, 14 Nov 2023 22:13:20 GMT", b"1974", id="the-year-after"),
        pytest.param(b"31-Dec-24 00:00:00", b"Tue, 14 Nov 2023 22:13:20 GMT", b"2024", id="next-year"),
        pytest.param(b"01-Jan-00 00:00:00", b"Fri, 31 Dec 1999 23:59:59 GMT", b"2000", id="next-century"),
        pytest.param(b"01-Jan-10 00:00:00", b"Mon, 01 Jan 2080 00:00:00 GMT", b"2110", id="the-century-after"),
        pytest.param(b"31-Dec-99 00:00:00", b"Sat, 01 Jan 2000 00:00:00 GMT", b"1999", id="last-century"),
    ],
)
def test_two_digit_year_is_within_50_years_ahead(value: bytes, now: bytes, expected: bytes) -> None:
    """RFC 9110 section 5.6.7."""
    clock = fields.parse_date(now, 0.0)
    assert clock is not None
    found = fields.parse_date(b"Monday, " + value + b" GMT", clock)
    assert found is not None
    assert fields.format_date(found)[12:16] == expected


def test_two_digit_leap_day_is_of_the_year_it_falls_in() -> None:
    """RFC 9110 section 5.6.7: 29 February exists in 2000 and not in 1900."""
    assert fields.parse_date(b"Monday, 29-Feb-00 00:00:00 GMT", NOW) is not None
    assert fields.parse_date(b"Monday, 29-Feb-23 00:00:00 GMT", NOW) is None


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        pytest.param(NOV_1994, b"Sun, 06 Nov 1994 08:49:37 GMT", id="9110-5.6.7-imf-fixdate"),
        pytest.param(NOV_1994 + 0.999, b"Sun, 06 Nov 1994 08:49:37 GMT", id="9110-5.6.7-cut-to-the-second"),
        pytest.param(-0.5, b"Wed, 31 Dec 1969 23:59:59 GMT", id="9110-5.6.7-cut-downwards"),
        pytest.param(math.inf, b"Fri, 31 Dec 9999 23:59:59 GMT", id="9110-5.6.7-at-most-year-9999"),
        pytest.param(-math.inf, b"Mon, 01 Jan 0001 00:00:00 GMT", id="9110-5.6.7-at-least-year-1"),
    ],
)
def test_format_date(timestamp: float, expected: bytes) -> None:
    assert fields.format_date(timestamp) == expected


# ------------------------------------------------------------------------------------------ validators


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b'"xyzzy"', (b"xyzzy", False), id="9110-8.8.3-strong"),
        pytest.param(b'W/"xyzzy"', (b"xyzzy", True), id="9110-8.8.3-weak"),
        pytest.param(b'""', (b"", False), id="9110-8.8.3-empty"),
        pytest.param(b' "a" ', (b"a", False), id="9110-5.5-white-space-around"),
        pytest.param(b'"a,b\\\xff"', (b"a,b\\\xff", False), id="9110-8.8.3-comma-backslash-obs-text"),
        pytest.param(b'w/"xyzzy"', None, id="9110-8.8.3-weak-is-case-sensitive"),
        pytest.param(b'W / "a"', None, id="9110-8.8.3-space-in-prefix"),
        pytest.param(b"xyzzy", None, id="9110-8.8.3-unquoted"),
        pytest.param(b'"xyzzy', None, id="9110-8.8.3-unclosed"),
        pytest.param(b'"a b"', None, id="9110-8.8.3-space-is-no-etagc"),
        pytest.param(b'"a\x7f"', None, id="9110-8.8.3-control-is-no-etagc"),
        pytest.param(b'"a""b"', None, id="9110-8.8.3-two"),
        pytest.param(b'"a", "b"', None, id="9110-8.8.3-list"),
        pytest.param(b"", None, id="9110-8.8.3-nothing"),
    ],
)
def test_etag(value: bytes, expected: tuple[bytes, bool] | None) -> None:
    assert fields.parse_etag(value) == (None if expected is None else fields.ETag(*expected))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b"*", "*", id="9110-13.1.2-star"),
        pytest.param(b" * ", "*", id="9110-13.1.2-star-spaced"),
        pytest.param(b'"*"', [b"*"], id="9110-13.1.2-quoted-star-is-a-tag"),
        pytest.param(b'*, "a"', [b"a"], id="9110-13.1.2-star-in-a-list-is-malformed"),
        pytest.param(b'"a"', [b"a"], id="9110-13.1.2-one"),
        pytest.param(b'"a", W/"b" ,\t"c"', [b"a", b"W/b", b"c"], id="9110-13.1.2-list"),
        pytest.param(b',, "a",,"b",', [b"a", b"b"], id="9110-5.6.1-empty-members"),
        pytest.param(b'"a,b", "c"', [b"a,b", b"c"], id="9110-8.8.3-comma-inside"),
        pytest.param(b'a, "b"', [b"b"], id="9110-13.1.2-unquoted-skipped"),
        pytest.param(b'"a"x, "b"', [b"b"], id="9110-13.1.2-trailing-text-skipped"),
        pytest.param(b'"a" "b", "c"', [b"c"], id="9110-13.1.2-missing-comma-skipped"),
        pytest.param(b'"a", "b', [b"a"], id="9110-13.1.2-unclosed-skipped"),
        pytest.param(b"", [], id="9110-13.1.2-empty"),
    ],
)
def test_etag_list(value: bytes, expected: list[bytes] | str) -> None:
    found = fields.parse_etag_list(value)
    assert (found if found == "*" else [b"W/" * tag.weak + tag.opaque for tag in found]) == expected


@pytest.mark.parametrize(
    ("a", "b", "strong", "weak"),
    [
        pytest.param(b'W/"1"', b'W/"1"', False, True, id="9110-8.8.3.2-both-weak"),
        pytest.param(b'W/"1"', b'W/"2"', False, False, id="9110-8.8.3.2-weak-and-different"),
        pytest.param(b'W/"1"', b'"1"', False, True, id="9110-8.8.3.2-one-weak"),
        pytest.param(b'"1"', b'W/"1"', False, True, id="9110-8.8.3.2-the-other-weak"),
        pytest.param(b'"1"', b'"1"', True, True, id="9110-8.8.3.2-both-strong"),
        pytest.param(b'"1"', b'"2"', False, False, id="9110-8.8.3.2-strong-and-different"),
    ],
)
def test_etag_comparison(a: bytes, b: bytes, strong: bool, weak: bool) -> None:
    left, right = fields.parse_etag(a), fields.parse_etag(b)
    assert left is not None
    assert right is not None
    assert fields.strong_match(left, right) is strong
    assert fields.weak_match(left, right) is weak


# ---------------------------------------------------------------------------------------------- ranges

IGNORED, UNSATISFIABLE, TOO_MANY = RangeRefusal.IGNORED, RangeRefusal.UNSATISFIABLE, RangeRefusal.TOO_MANY


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        pytest.param(b"bytes=0-4", 10, [(0, 5)], id="9110-14.1.2-first-bytes"),
        pytest.param(b"bytes=0-0", 10, [(0, 1)], id="9110-14.1.2-one-byte"),
        pytest.param(b"BYTES=0-4", 10, [(0, 5)], id="9110-14.1-unit-case-insensitive"),
        pytest.param(b"bytes=4-", 10, [(4, 10)], id="9110-14.1.2-open"),
        pytest.param(b"bytes=4-99", 10, [(4, 10)], id="9110-14.1.2-past-the-end"),
        pytest.param(b"bytes=-3", 10, [(7, 10)], id="9110-14.1.2-suffix"),
        pytest.param(b"bytes=-99", 10, [(0, 10)], id="9110-14.1.2-suffix-longer-than-the-body"),
        pytest.param(b"bytes=-0", 10, UNSATISFIABLE, id="9110-14.1.2-suffix-of-nothing"),
        pytest.param(b"bytes=10-", 10, UNSATISFIABLE, id="9110-15.5.17-begins-at-the-end"),
        pytest.param(b"bytes=10-, 99-100", 10, UNSATISFIABLE, id="9110-15.5.17-all-past-the-end"),
        pytest.param(b"bytes=99-, 0-1", 10, [(0, 2)], id="9110-14.2-one-satisfiable"),
        pytest.param(b"bytes= 0-1 ,, 5-6\t,-1", 10, [(0, 2), (5, 7), (9, 10)], id="9110-14.1.1-list-in-order"),
        pytest.param(b"bytes=5-6,0-1", 10, [(5, 7), (0, 2)], id="9110-14.2-order-of-the-request"),
        pytest.param(b"bytes=0-", 0, UNSATISFIABLE, id="9110-14.1.2-empty-body"),
        pytest.param(b"bytes=-0", 0, UNSATISFIABLE, id="9110-14.1.2-empty-body-empty-suffix"),
        pytest.param(b"bytes=-1", 0, IGNORED, id="9110-14.4-empty-body-has-no-content-range"),
        pytest.param(b"bytes=5-4", 10, IGNORED, id="9110-14.1.1-last-before-first"),
        pytest.param(b"bytes=99-98", 10, IGNORED, id="9110-14.1.1-last-before-first-past-the-end"),
        pytest.param(b"bytes=0-1,5-4", 10, IGNORED, id="9110-14.2-one-invalid-spoils-all"),
        pytest.param(b"bytes=-", 10, IGNORED, id="9110-14.1.1-dash"),
        pytest.param(b"bytes=", 10, IGNORED, id="9110-14.1.1-no-range"),
        pytest.param(b"bytes=,", 10, IGNORED, id="9110-14.1.1-empty-list"),
        pytest.param(b"bytes", 10, IGNORED, id="9110-14.2-no-set"),
        pytest.param(b"", 10, IGNORED, id="9110-14.2-empty"),
        pytest.param(b"lines=0-4", 10, IGNORED, id="9110-14.2-unknown-unit"),
        pytest.param(b"bytes 0-4", 10, IGNORED, id="9110-14.2-no-equals"),
        pytest.param(b"bytes=a-4", 10, IGNORED, id="9110-14.1.1-no-digits"),
        pytest.param(b"bytes=0 - 4", 10, IGNORED, id="9110-14.1.1-space-inside"),
        pytest.param(b"bytes=+1-4", 10, IGNORED, id="9110-14.1.1-sign"),
        pytest.param(b"bytes=0-4-5", 10, IGNORED, id="9110-14.1.1-three"),
        pytest.param(b"bytes=" + b"9" * 9000 + b"-", 10, UNSATISFIABLE, id="9110-14.1.1-huge-first"),
        pytest.param(b"bytes=0-" + b"9" * 9000, 10, [(0, 10)], id="9110-14.1.1-huge-last"),
        pytest.param(b"bytes=-" + b"9" * 9000, 10, [(0, 10)], id="9110-14.1.1-huge-suffix"),
        pytest.param(
            b"bytes=" + b"9" * 9000 + b"-" + b"8" * 9000, 10, IGNORED, id="9110-14.1.1-huge-last-before-first"
        ),
        pytest.param(b"bytes=" + b"0-0," * 16, 10, [(0, 1)] * 16, id="9110-17.15-sixteen"),
        pytest.param(b"bytes=" + b"0-0," * 17, 10, TOO_MANY, id="9110-17.15-seventeen"),
    ],
)
def test_byte_ranges(value: bytes, size: int, expected: fields.ByteRanges) -> None:
    assert fields.parse_byte_ranges(value, size) == expected


# ------------------------------------------------------------------------------------------- selecting


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], (), id="9110-12.5.5-absent"),
        pytest.param([b""], (), id="9110-12.5.5-empty"),
        pytest.param([b"Accept-Encoding"], (b"accept-encoding",), id="9110-12.5.5-one"),
        pytest.param([b"b, A ,\ta,", b",C"], (b"a", b"b", b"c"), id="9110-12.5.5-sorted-unique-lower-case"),
        pytest.param([b"*"], None, id="9111-4.1-star"),
        pytest.param([b"*, *"], None, id="9111-4.1-two-stars"),
        pytest.param([b", *"], None, id="9111-4.1-star-after-empty"),
        pytest.param([b"a, *"], None, id="9111-4.1-star-among-names"),
        pytest.param([b"", b"*"], None, id="9111-4.1-star-on-another-line"),
        pytest.param([b"a b"], None, id="9111-4.1-space-inside-a-name"),
        pytest.param([b'a, "b"'], None, id="9111-4.1-quoted"),
        pytest.param([b"a\xff"], None, id="9111-4.1-not-a-token"),
    ],
)
def test_vary(values: list[bytes], expected: tuple[bytes, ...] | None) -> None:
    assert fields.parse_vary(values) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param(b"accept-encoding", None, None, id="9111-4.1-absent"),
        pytest.param(b"accept-encoding", b"", b"", id="9111-4.1-empty"),
        pytest.param(b"accept-encoding", b" , ", b"", id="9110-5.6.1-empty-members"),
        pytest.param(b"accept-encoding", b"gzip,br", b"br, gzip", id="9110-12.5.3-order-of-equals"),
        pytest.param(b"accept-encoding", b"GZip ; Q=1.000 , Br", b"br, gzip", id="9110-12.5.3-case-space-weight"),
        pytest.param(b"accept-encoding", b"br;q=0.5, gzip", b"gzip, br;q=0.5", id="9110-12.4.2-by-weight"),
        pytest.param(b"accept-encoding", b"br;q=0.50, gzip;q=0.", b"br;q=0.5, gzip;q=0", id="9110-12.4.2-zeros"),
        pytest.param(b"accept-encoding", b"br;q=0.123", b"br;q=0.123", id="9110-12.4.2-three-digits"),
        pytest.param(b"accept-encoding", b"gzip, x-gzip", b"gzip", id="9110-8.4.1.3-x-gzip"),
        pytest.param(b"accept-encoding", b"*;q=0,identity", b"identity, *;q=0", id="9110-12.5.3-star"),
        pytest.param(b"accept-encoding", b"br ,gzip;q=2", b"br, gzip;q=2", id="9111-4.1-malformed-weight-kept"),
        pytest.param(b"accept-encoding", b"B ,a;q=0.1234", b"B, a;q=0.1234", id="9111-4.1-overlong-weight-kept"),
        pytest.param(b"accept-encoding", b"gzip;q= 1", b"gzip;q= 1", id="9111-4.1-space-in-weight-kept"),
        pytest.param(
            b"accept-encoding", b"a" * 300 + b" ,B", b"a" * 300 + b", b", id="9111-4.1-too-long-to-be-memoised"
        ),
        pytest.param(b"accept-language", b"EN-gb , de", b"en-gb, de", id="9110-12.5.4-case-and-space"),
        pytest.param(b"accept-language", b"de, en", b"de, en", id="9110-12.5.4-order-of-equals-is-preference"),
        pytest.param(b"accept-language", b"en, de", b"en, de", id="9110-12.5.4-order-of-equals-is-preference-too"),
        pytest.param(b"accept-language", b"fr;q=0.5, de;q=1.0", b"de, fr;q=0.5", id="9110-12.4.2-by-weight"),
        pytest.param(b"accept-language", b"en;q=0, de, de", b"de, en;q=0", id="9110-12.4.2-q0-kept-repeats-dropped"),
        pytest.param(b"accept-language", b"en ,d e", b"en, d e", id="9111-4.1-malformed-kept"),
        pytest.param(b"accept-language", b"a" * 300 + b" ,B", b"a" * 300 + b", b", id="9111-4.1-long-language"),
        pytest.param(b"x-foo", b" 1,2 ", b"1, 2", id="9111-4.1-white-space"),
        pytest.param(b"x-foo", b"1 ,\t2", b"1, 2", id="9111-4.1-white-space-before-comma"),
        pytest.param(b"x-foo", b"2, 1", b"2, 1", id="9111-4.1-unknown-order-kept"),
        pytest.param(b"x-foo", b"A  b", b"A  b", id="9111-4.1-unknown-inner-space-kept"),
        pytest.param(b"x-foo", b'"a,b" ,c', b'"a,b", c', id="9111-4.1-quoted-comma-kept"),
        pytest.param(b"x-foo", b"1,,2", b"1, , 2", id="9111-4.1-unknown-empty-members-kept"),
        pytest.param(b"x-foo", b"", b"", id="9111-4.1-unknown-empty"),
        pytest.param(b"x-foo", None, None, id="9111-4.1-unknown-absent"),
        pytest.param(b"cookie", b" a=1,b=2 ", b"a=1,b=2", id="9111-4.1-no-list-is-kept"),
    ],
)
def test_normalised_request_fields(name: bytes, value: bytes | None, expected: bytes | None) -> None:
    assert fields.normalise(name, value) == expected


# -------------------------------------------------------------------------------------- structured fields


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b"", {}, id="9651-4.2-empty"),
        pytest.param(b"a", {"a": True}, id="9651-4.2.2-bare-key"),
        pytest.param(b"  a \t,\t b=?0  ", {"a": True, "b": False}, id="9651-4.2.2-white-space"),
        pytest.param(b"a=1, a=2", {"a": 2}, id="9651-4.2.2-last-counts"),
        pytest.param(b"a=-15, b=0", {"a": -15, "b": 0}, id="9651-4.2.4-integer"),
        pytest.param(b"a=1.5, b=-0.125", {"a": 1.5, "b": -0.125}, id="9651-4.2.4-decimal"),
        pytest.param(b'a="x\\"\\\\y"', {"a": 'x"\\y'}, id="9651-4.2.5-string"),
        pytest.param(b"a=*x/y:z", {"a": Token("*x/y:z")}, id="9651-4.2.6-token"),
        pytest.param(b"a=:aGk=:, b=:aGk:, c=::", {"a": b"hi", "b": b"hi", "c": b""}, id="9651-4.2.7-byte-sequence"),
        pytest.param(b"a=@1659578233", {"a": Date(1659578233)}, id="9651-4.2.9-date"),
        pytest.param(b'a=%"f%c3%bc"', {"a": DisplayString("f\u00fc")}, id="9651-4.2.10-display-string"),
        pytest.param(b'a=( 1;x "b"  c;y=?1 );z', {"a": (1, "b", Token("c"))}, id="9651-4.2.1.2-inner-list"),
        pytest.param(b"a=()", {"a": ()}, id="9651-4.2.1.2-empty-inner-list"),
        pytest.param(b"a;x=1; y;z=:aGk=:, b", {"a": True, "b": True}, id="9651-4.2.3.2-parameters-dropped"),
        *(
            pytest.param(value, None, id=f"9651-4.2-malformed-{value.decode('latin-1')}")
            for value in (
                b"\ta",
                b"A",
                b"1a",
                b",",
                b"a,",
                b"a b",
                b"a=",
                b"a=,b",
                b"a= 1",
                b"a=1.",
                b"a=1.2345",
                b"a=1.2.3",
                b"a=-",
                b"a=--1",
                b"a=.5",
                b"a=1234567890123456",
                b"a=1234567890123.1",
                b'a="',
                b'a="\\x"',
                b'a="\xc3\xbc"',
                b'a="\x00"',
                b"a='x'",
                b"a=?2",
                b"a=?",
                b"a=:a",
                b"a=:a:",
                b"a=:=:",
                b"a=:aGk===:",
                b"a=:a=Gk:",
                b"a=:*:",
                b"a=@1.5",
                b"a=@",
                b'a=%"%C3"',
                b'a=%"%c3"',
                b"a=%x",
                b"a=(1",
                b"a=(1,2)",
                b"a=(1\t2)",
                b'a=("x"y)',
                b"a=((1))",
                b"a;",
                b"a;B",
                b"a;x=",
                b"a;x=(1)",
                b"a=1;;x",
                b"\xff",
            )
        ),
    ],
)
def test_dictionary(value: bytes, expected: dict[str, Any] | None) -> None:
    found = fields.parse_dictionary(value)
    assert found == expected
    if found is not None and expected is not None:
        assert {key: type(member) for key, member in found.items()} == {k: type(m) for k, m in expected.items()}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b'"scripts"', ("scripts",), id="9875-2-one"),
        pytest.param(b'"b", "a" ,"b"', ("b", "a"), id="9875-2-list-each-once"),
        pytest.param(b'"a";x=1, "b";y', ("a", "b"), id="9875-2-parameters-ignored"),
        pytest.param(b'"A", "a"', ("A", "a"), id="9875-2.1-compared-character-by-character"),
        pytest.param(b'""', ("",), id="9651-3.3.3-empty-string"),
        pytest.param(b'"a, b"', ("a, b",), id="9651-3.3.3-comma-inside"),
        pytest.param(b"", (), id="9875-2-empty"),
        pytest.param(b"scripts", (), id="9875-2-token-is-no-string"),
        pytest.param(b'"a", b', (), id="9875-2-one-token-spoils-all"),
        pytest.param(b'("a" "b")', (), id="9875-2-inner-list"),
        pytest.param(b'"a",', (), id="9651-4.2.1-trailing-comma"),
        pytest.param(b'"a" "b"', (), id="9651-4.2.1-missing-comma"),
        pytest.param(b'"a', (), id="9651-4.2.5-unclosed"),
        pytest.param(b'"' + b"x" * 200 + b'"', ("x" * 128,), id="9875-2-at-most-128-characters"),
    ],
)
def test_groups(value: bytes, expected: tuple[str, ...]) -> None:
    assert fields.parse_groups(value) == expected


def test_groups_beyond_the_128th_are_dropped() -> None:
    """RFC 9875 section 2 asks for 32 groups of 32 characters; the first 128 are used."""
    names = [f"{number:032}" for number in range(1000)]
    assert fields.parse_groups(", ".join(f'"{name}"' for name in names).encode()) == tuple(names[:128])


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        pytest.param("echo_cache", {}, b"echo_cache", id="9211-2-name-alone"),
        pytest.param("echo_cache", {"hit": True, "ttl": 30}, b"echo_cache; hit; ttl=30", id="9211-2.1-hit"),
        pytest.param("c", {"hit": True, "ttl": -5}, b"c; hit; ttl=-5", id="9211-2.4-stale"),
        pytest.param(
            "c",
            {"fwd": "uri-miss", "stored": True, "collapsed": True},
            b"c; fwd=uri-miss; stored; collapsed",
            id="9211-2.2-forwarded",
        ),
        pytest.param("c", {"fwd": "stale", "fwd_status": 304}, b"c; fwd=stale; fwd-status=304", id="9211-2.3-status"),
        pytest.param("c", {"detail": "NO-STORE"}, b"c; detail=NO-STORE", id="9211-2.8-detail-token"),
        pytest.param("c", {"detail": 'a "b"\\'}, b'c; detail="a \\"b\\"\\\\"', id="9211-2.8-detail-string"),
        pytest.param("c", {"detail": "a\r\nb\u00fc"}, b'c; detail="a??b?"', id="9211-2.8-detail-not-printable"),
        pytest.param("my cache", {}, b'"my cache"', id="9211-2-name-string"),
        pytest.param("1cache", {}, b'"1cache"', id="9211-2-name-that-begins-with-a-digit"),
        pytest.param("", {}, b'""', id="9211-2-name-empty"),
        pytest.param("c", {"ttl": 10**20}, b"c; ttl=999999999999999", id="9651-3.3.1-integer-range"),
    ],
)
def test_cache_status_member(name: str, arguments: dict[str, Any], expected: bytes) -> None:
    written = fields.cache_status_member(name, **arguments)
    assert written == expected
    parsed: Any = http_sf.parse(written, tltype="list")
    assert [str(member[0]) for member in parsed] == [name]


# ----------------------------------------------------------------------------------------- lines and lists


def test_absent_differs_from_empty() -> None:
    """RFC 9110 section 5.2."""
    headers = [(b"a", b"1"), (b"b", b""), (b"a", b"2")]
    assert fields.get_all(headers, b"a") == [b"1", b"2"]
    assert fields.get_all(headers, b"c") == []
    assert fields.get_joined(headers, b"a") == b"1, 2"
    assert fields.get_joined(headers, b"b") == b""
    assert fields.get_joined(headers, b"c") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b"", [], id="9110-5.6.1-empty"),
        pytest.param(b"foo , ,bar,charlie", [b"foo", b"bar", b"charlie"], id="9110-5.6.1.2-example"),
        pytest.param(b" ,\t, ", [], id="9110-5.6.1.2-only-empties"),
        pytest.param(b'a="x,y", b', [b'a="x,y"', b"b"], id="9110-5.6.4-quoted-comma"),
        pytest.param(b'"a\\",b", c', [b'"a\\",b"', b"c"], id="9110-5.6.4-quoted-pair"),
        pytest.param(b'a="x, b', [b'a="x', b"b"], id="9110-5.6.4-unclosed-is-literal"),
        pytest.param(b'a="x,y"z="u, b', [b'a="x,y"z="u', b"b"], id="9110-5.6.4-closed-then-unclosed"),
        pytest.param(b'a, "b\\', [b"a", b'"b\\'], id="9110-5.6.4-ends-in-backslash"),
        pytest.param(b'a, "b\\"', [b"a", b'"b\\"'], id="9110-5.6.4-ends-in-escaped-quote"),
        pytest.param(b'"a\n,b", c', [b'"a\n,b"', b"c"], id="9110-5.6.4-line-end-inside"),
    ],
)
def test_list_members(value: bytes, expected: list[bytes]) -> None:
    assert fields.split_list(value) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(b"content-type", True, id="9110-5.1-token"),
        pytest.param(b"!#$%&'*+-.^_`|~09azAZ", True, id="9110-5.6.2-every-kind-of-tchar"),
        pytest.param(b"", False, id="9110-5.1-empty"),
        *(
            pytest.param(b"a" + bytes([char]) + b"b", False, id=f"9110-5.6.2-{char:#04x}")
            for char in b'\x00\t\r\n "(),/:;<=>?@[\\]{}\x7f\x80\xff'
        ),
    ],
)
def test_field_names(name: bytes, expected: bool) -> None:
    assert fields.is_valid_field_name(name) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b"", True, id="9110-5.5-empty"),
        pytest.param(b"a b\tc\xff", True, id="9110-5.5-text"),
        pytest.param(b"a\x01\x7f", True, id="9110-5.5-harmless-controls"),
        pytest.param(b"a\r", False, id="9110-5.5-cr"),
        pytest.param(b"\nb", False, id="9110-5.5-lf"),
        pytest.param(b"a\x00b", False, id="9110-5.5-nul"),
        pytest.param(b"x\r\nset-cookie: a=b", False, id="9110-5.5-response-splitting"),
    ],
)
def test_field_values(value: bytes, expected: bool) -> None:
    assert fields.is_valid_field_value(value) is expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], None, id="9111-5.1-absent"),
        pytest.param([b""], None, id="9111-5.1-empty"),
        pytest.param([b"0"], 0.0, id="9111-5.1-zero"),
        pytest.param([b" 7200 "], 7200.0, id="9111-5.1-seconds"),
        pytest.param([b"7200,0"], 7200.0, id="9111-5.1-first-member"),
        pytest.param([b"0", b"7200"], 0.0, id="9111-5.1-first-line"),
        pytest.param([b"", b",5"], 5.0, id="9110-5.6.1-empty-members-dropped"),
        pytest.param([b"abc, 5"], None, id="9111-5.1-invalid-first-member"),
        pytest.param([b"-7200"], None, id="9111-5.1-negative"),
        pytest.param([b"7200.0"], None, id="9111-5.1-float"),
        pytest.param([b"7200;x=y"], None, id="9111-5.1-parameter"),
        pytest.param([b"99999999999"], 2.0**31, id="9111-1.2.2-overflow"),
    ],
)
def test_age(values: list[bytes], expected: float | None) -> None:
    assert fields.parse_age(values) == expected


INVALID = fields.InvalidLength.INVALID


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], None, id="9110-8.6-absent"),
        pytest.param([b"0"], 0, id="9110-8.6-zero"),
        pytest.param([b" 42 "], 42, id="9110-8.6-length"),
        pytest.param([b"42", b"42"], 42, id="9110-8.6-equal-lines"),
        pytest.param([b"42, 042"], 42, id="9110-8.6-equal-members"),
        pytest.param([b"42", b"43"], INVALID, id="9110-8.6-different-lines"),
        pytest.param([b"42, 43"], INVALID, id="9110-8.6-different-members"),
        pytest.param([b""], INVALID, id="9110-8.6-empty"),
        pytest.param([b"42,"], INVALID, id="9110-8.6-empty-member"),
        pytest.param([b"-1"], INVALID, id="9110-8.6-negative"),
        pytest.param([b"+1"], INVALID, id="9110-8.6-signed"),
        pytest.param([b"1_0"], INVALID, id="9110-8.6-underscore"),
        pytest.param([b"0x10"], INVALID, id="9110-8.6-hexadecimal"),
        pytest.param([b"4 2"], INVALID, id="9110-8.6-space-inside"),
        pytest.param([b"9" * 5000], INVALID, id="9110-8.6-longer-than-any-body"),
    ],
)
def test_content_length(values: list[bytes], expected: fields.ContentLength) -> None:
    headers = [(b"content-type", b"1"), *((b"content-length", value) for value in values)]
    assert fields.parse_content_length(headers) == expected
