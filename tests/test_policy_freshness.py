"""How old and how long fresh: RFC 9111 section 4.2, through what `admit` stores and `answer` sends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.model import Refusal
from echo_cache.options import PolicyOptions, RouteOptions
from echo_cache.policy import answer
from tests.policy_cases import NOW, PLAIN, SAFE, Pairs, admission, asking, date, stored

FRESH = "cache-control: max-age=100"
ETAG = 'etag: "a"'


@pytest.mark.parametrize(
    ("section", "lines", "lifetime"),
    [
        # 4.2.1: the first match wins
        pytest.param("4.2.1", ["cache-control: max-age=60, s-maxage=30"], 30, id="s-maxage-before-max-age"),
        pytest.param("4.2.1", ["cache-control: max-age=30, s-maxage=60"], 60, id="s-maxage-longer"),
        pytest.param("4.2.1", ["cache-control: max-age=60", f"expires: {date(30)}"], 60, id="max-age-before-expires"),
        pytest.param("5.3", ["cache-control: max-age=60", "expires: 0"], 60, id="max-age-before-invalid-expires"),
        pytest.param(
            "4.2.1", ["cache-control: s-maxage=60", f"expires: {date(-30)}"], 60, id="s-maxage-before-expires"
        ),
        pytest.param("4.2.1", [f"expires: {date(60)}"], 60, id="expires"),
        pytest.param("4.2.1", [f"expires: {date(60)}", f"date: {date(-10)}"], 70, id="expires-counts-from-date"),
        pytest.param(
            "4.2.2", [f"expires: {date(60)}", f"last-modified: {date(-1e5)}"], 60, id="explicit-beats-heuristic"
        ),
        pytest.param("5.3", [f"expires: {date(0)}", ETAG], 0, id="expires-is-date"),
        pytest.param("5.3", [f"expires: {date(-60)}", ETAG], 0, id="expires-in-the-past"),
        # 5.3: "A cache recipient MUST interpret invalid date formats, especially the value "0", as in the past"
        *(
            pytest.param("5.3", [f"expires: {value}", ETAG], 0, id=f"expires-{value or 'empty'}")
            for value in ("0", "-1", "", "60", "tomorrow", "Tue, 32 Nov 2033 22:13:20 GMT", date(60)[:-3] + "CET")
        ),
        # 4.2.1: more than one value: the first, or stale
        pytest.param("4.2.1", [f"expires: {date(60)}", f"expires: {date(90)}"], 60, id="expires-first-of-two"),
        pytest.param("4.2.1", ["expires: 0", f"expires: {date(90)}", ETAG], 0, id="expires-invalid-first-of-two"),
        pytest.param("4.2.1", ["cache-control: max-age=60, max-age=90"], 60, id="max-age-first-of-two"),
        pytest.param(
            "4.2.1", ["cache-control: max-age=60", "cache-control: max-age=90"], 60, id="max-age-first-of-two-lines"
        ),
        pytest.param("4.2.1", ["cache-control: s-maxage=60, s-maxage=9"], 60, id="s-maxage-first-of-two"),
        # 4.2.1: invalid freshness is stale
        *(
            pytest.param("4.2.1", [f"cache-control: max-age={value}", ETAG], 0, id=f"max-age-{value or 'missing'}")
            for value in ("", "-1", "1.5", "60s", "0x3c", "+60", "1 0")
        ),
        pytest.param("4.2.1", ["cache-control: s-maxage=x, max-age=60", ETAG], 0, id="invalid-s-maxage-is-not-skipped"),
        pytest.param("1.2.2", ["cache-control: max-age=99999999999999999999"], 2**31, id="overflow"),
        pytest.param("1.2.2", ["cache-control: max-age=4294967296"], 2**31, id="overflow-of-32-bits"),
        pytest.param("5.2", ['cache-control: max-age="60"'], 60, id="quoted"),
        pytest.param("5.2", ["cache-control: MAX-AGE=60"], 60, id="any-case"),
        pytest.param("5.2.3", ['cache-control: unknown, x="max-age=1", max-age=60'], 60, id="unknown-directives"),
        # 4.2.2: heuristics
        pytest.param("4.2.2", [f"last-modified: {date(-1000)}"], 100, id="a-tenth"),
        pytest.param("4.2.2", [f"last-modified: {date(-1010)}", f"date: {date(-10)}"], 100, id="a-tenth-from-date"),
        pytest.param("4.2.2", [f"last-modified: {date(-1e8)}"], 86_400, id="capped"),
        pytest.param("4.2.2", [f"last-modified: {date(50)}"], 0, id="modified-in-the-future"),
        pytest.param("4.2.2", [f"last-modified: {date(-1000)}", "cache-control: no-cache"], 0, id="not-with-no-cache"),
    ],
)
def test_freshness_lifetime(section: str, lines: list[str], lifetime: float) -> None:
    entry = stored(*lines)
    assert entry.fresh_until - entry.generated_at == lifetime, section


@pytest.mark.parametrize(
    ("section", "status", "control", "lifetime"),
    [
        *(
            pytest.param("9110-15.1", status, "no-transform", 100, id=f"{status}")
            for status in (200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501)
        ),
        *(
            pytest.param("9110-15.1", status, "no-transform", Refusal.NO_FRESHNESS, id=f"not-{status}")
            for status in (201, 202, 302, 303, 307, 400, 401, 403, 451, 500, 503)
        ),
        *(pytest.param("5.2.2.9", status, "public", 100, id=f"public-{status}") for status in (201, 302, 403, 503)),
    ],
)
def test_heuristics_by_status(section: str, status: int, control: str, lifetime: object) -> None:
    verdict = admission(f"cache-control: {control}", f"last-modified: {date(-1000)}", status=status)
    assert (verdict.refusal if verdict.entry is None else verdict.entry.fresh_until - NOW) == lifetime, section


def test_the_heuristic_has_a_share_a_cap_and_an_off_switch() -> None:
    lines = f"last-modified: {date(-1000)}"
    assert stored(lines, options=PolicyOptions(heuristic_fraction=0.5)).fresh_until == NOW + 500
    assert stored(lines, options=PolicyOptions(heuristic_max=7)).fresh_until == NOW + 7
    assert stored(lines, options=PolicyOptions.rfc9111(heuristic_fraction=0)).fresh_until == NOW


NO_TTL: dict[str, Any] = {}
LONG: dict[str, Any] = {"ttl": 60}
SHORT: dict[str, Any] = {"ttl": 4}
OWN: dict[str, Any] = {"negative_ttl": 30}
BOTH: dict[str, Any] = {"ttl": 60, "negative_ttl": 30}
MODIFIED = f"last-modified: {date(-1000)}"  # the heuristic makes it 100 s
AS_OTHERS = PolicyOptions(negative_ttl=None)


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize(
    ("lines", "route", "options", "lifetime"),
    [
        # the route's own word for what is missing
        pytest.param([], OWN, SAFE, 30, id="route-negative-ttl"),
        pytest.param([], OWN, AS_OTHERS, 30, id="route-negative-ttl-alone"),
        pytest.param([], BOTH, SAFE, 30, id="route-negative-ttl-before-its-ttl"),
        pytest.param([FRESH], OWN, SAFE, 30, id="route-negative-ttl-before-max-age"),
        pytest.param(["cache-control: max-age=5"], OWN, SAFE, 30, id="route-negative-ttl-longer-than-max-age"),
        pytest.param([], {"ttl": 4, "negative_ttl": 30}, SAFE, 30, id="route-negative-ttl-longer-than-ttl"),
        pytest.param(["age: 50", FRESH], OWN, SAFE, 30, id="route-negative-ttl-counts-from-now"),
        pytest.param([], {"negative_ttl": 0}, SAFE, Refusal.ALREADY_STALE, id="route-negative-ttl-zero"),
        pytest.param(["cache-control: no-store"], OWN, SAFE, Refusal.NO_STORE, id="route-negative-ttl-no-permission"),
        # the route's ttl, cut
        pytest.param([], LONG, SAFE, 10, id="route-ttl-cut"),
        pytest.param([], {"ttl": 10}, SAFE, 10, id="route-ttl-equal"),
        pytest.param([], SHORT, SAFE, 4, id="route-ttl-shorter"),
        pytest.param([FRESH], LONG, SAFE, 10, id="route-ttl-cut-before-max-age"),
        pytest.param(["age: 50", FRESH], LONG, SAFE, 10, id="route-ttl-cut-counts-from-now"),
        pytest.param([], LONG, AS_OTHERS, 60, id="route-ttl-as-others"),
        pytest.param([], LONG, PolicyOptions(negative_ttl=0), Refusal.ALREADY_STALE, id="route-ttl-cut-to-nothing"),
        # what the response says of itself stands
        pytest.param([FRESH], NO_TTL, SAFE, 100, id="max-age"),
        pytest.param(["cache-control: s-maxage=100"], NO_TTL, SAFE, 100, id="s-maxage"),
        pytest.param([f"expires: {date(100)}"], NO_TTL, SAFE, 100, id="expires"),
        pytest.param([FRESH], NO_TTL, PolicyOptions(negative_ttl=0), 100, id="max-age-with-negative-ttl-zero"),
        # guesses, cut
        pytest.param([MODIFIED], NO_TTL, SAFE, 10, id="heuristic-cut"),
        pytest.param([f"last-modified: {date(-40)}"], NO_TTL, SAFE, 4, id="heuristic-shorter"),
        pytest.param([MODIFIED], NO_TTL, AS_OTHERS, 100, id="heuristic-as-others"),
        pytest.param([], NO_TTL, SAFE, 10, id="default-ttl-cut"),
        pytest.param([], NO_TTL, PolicyOptions(default_ttl=4), 4, id="default-ttl-shorter"),
        pytest.param([], NO_TTL, AS_OTHERS, 180, id="default-ttl-as-others"),
        pytest.param([], NO_TTL, PolicyOptions(negative_ttl=0), Refusal.ALREADY_STALE, id="default-ttl-cut-to-nothing"),
        pytest.param([], NO_TTL, PolicyOptions(default_ttl=None), Refusal.NO_FRESHNESS, id="gives-nothing-by-itself"),
        # the plain standard
        pytest.param([MODIFIED], NO_TTL, PLAIN, 100, id="plain-heuristic"),
        pytest.param([], LONG, PLAIN, 60, id="plain-route-ttl"),
    ],
)
def test_what_is_missing_has_a_lifetime_of_its_own(
    lines: list[str], route: dict[str, Any], options: PolicyOptions, lifetime: object, status: int
) -> None:
    verdict = admission(*lines, status=status, options=options, route=RouteOptions(**route))
    assert (verdict.refusal if verdict.entry is None else verdict.entry.fresh_until - NOW) == lifetime


@pytest.mark.parametrize(
    ("status", "lines", "route", "lifetime"),
    [
        *(
            pytest.param(status, [], route, lifetime, id=f"{status}-{name}")
            for status in (200, 301, 405, 414, 501)
            for name, route, lifetime in (
                ("default-ttl", NO_TTL, 180),
                ("default-ttl-beside-negative-ttl", OWN, 180),
                ("route-ttl", LONG, 60),
                ("route-ttl-beside-negative-ttl", BOTH, 60),
            )
        ),
        pytest.param(200, [MODIFIED], OWN, 100, id="200-heuristic"),
        pytest.param(200, [FRESH], OWN, 100, id="200-max-age"),
        *(
            pytest.param(status, [], BOTH, Refusal.NO_FRESHNESS, id=f"{status}-nothing")
            for status in (302, 400, 403, 451, 500, 503)
        ),
    ],
)
def test_negative_ttl_says_nothing_of_other_statuses(
    status: int, lines: list[str], route: dict[str, Any], lifetime: object
) -> None:
    verdict = admission(*lines, status=status, options=SAFE, route=RouteOptions(**route))
    assert (verdict.refusal if verdict.entry is None else verdict.entry.fresh_until - NOW) == lifetime


@pytest.mark.parametrize(
    ("lines", "route", "for_strangers"),
    [
        pytest.param([], OWN, False, id="route-negative-ttl"),
        pytest.param([], LONG, False, id="route-ttl-cut"),
        pytest.param([], NO_TTL, True, id="default-ttl-cut"),
        pytest.param([MODIFIED], NO_TTL, True, id="heuristic-cut"),
    ],
)
def test_a_cut_lifetime_is_still_whose_it_was(lines: list[str], route: dict[str, Any], for_strangers: bool) -> None:
    entry = stored(*lines, status=404, options=SAFE, route=RouteOptions(**route))
    assert entry.anonymous_only is for_strangers


# jitter

# The share of http://example.com/a at NOW, pinned: it must be the same in every process, as hash() is not.
SHARE = 0.6943679747637361
# What a float of epoch seconds cannot tell apart.
TICK = 1e-6


@pytest.mark.parametrize(
    ("lines", "more", "jitter", "lifetime", "remaining"),
    [
        pytest.param([FRESH], {}, 0.0, 100, 100, id="off"),
        pytest.param([FRESH], {}, 0.2, 100, 100, id="max-age"),
        pytest.param([FRESH], {}, 0.5, 100, 100, id="half"),
        pytest.param(["age: 40", FRESH], {}, 0.2, 100, 60, id="of-what-remains"),
        pytest.param([f"date: {date(-40)}", FRESH], {}, 0.2, 100, 60, id="of-what-remains-since-date"),
        pytest.param([FRESH], {"route": RouteOptions(ttl=20)}, 0.2, 20, 20, id="route-ttl"),
        pytest.param([], {"status": 404, "route": RouteOptions(negative_ttl=5)}, 0.2, 5, 5, id="negative-ttl"),
        pytest.param([f"last-modified: {date(-1000)}"], {}, 0.2, 100, 100, id="heuristic"),
        pytest.param(["cache-control: max-age=1"], {}, 0.2, 1, 1, id="one-second"),
        pytest.param(["cache-control: max-age=0", ETAG], {}, 0.5, 0, 0, id="none-remains"),
        pytest.param(["age: 130", FRESH, ETAG], {}, 0.5, 100, -30, id="stale-on-receipt"),
    ],
)
def test_jitter_takes_a_share_of_what_remains(
    lines: list[str], more: dict[str, Any], jitter: float, lifetime: float, remaining: float
) -> None:
    entry = stored(*lines, options=PolicyOptions.rfc9111(expiry_jitter=jitter), **more)
    cut = max(0, remaining) * jitter * SHARE
    assert entry.fresh_until == pytest.approx(NOW + remaining - cut, rel=0, abs=TICK)
    assert entry.generated_at == (NOW if more else NOW + remaining - lifetime)


def test_stale_windows_keep_their_length_and_begin_earlier() -> None:
    lines = ("cache-control: max-age=100, stale-while-revalidate=30, stale-if-error=90",)
    plain, jittered = stored(*lines), stored(*lines, options=PolicyOptions.rfc9111(expiry_jitter=0.5))
    assert jittered.fresh_until < plain.fresh_until
    assert jittered.retain_until - jittered.fresh_until == pytest.approx(90, rel=0, abs=TICK)
    assert (jittered.stale_while_revalidate, jittered.stale_if_error) == (30, 90)
    assert jittered == plain._replace(fresh_until=jittered.fresh_until, retain_until=jittered.retain_until)


def test_jitter_is_no_reason_to_refuse() -> None:
    verdict = admission(FRESH, options=PolicyOptions.rfc9111(expiry_jitter=0.5))
    assert verdict.shareable
    assert verdict.refusal is None


def share(now: float = NOW, **target: Any) -> float:
    """Return how much jitter takes of this target at *now*, as a part of the most that it may."""
    entry = stored("cache-control: max-age=1000", request=asking(**target), options=HALF, sent=now, now=now)
    return (now + 1000 - entry.fresh_until) / 500


HALF = PolicyOptions.rfc9111(expiry_jitter=0.5)


@pytest.mark.parametrize(
    ("target", "now", "same"),
    [
        pytest.param({"headers": [(b"cookie", b"a=1")]}, NOW, True, id="other-fields"),
        pytest.param({"scheme": "https"}, NOW, True, id="other-scheme"),
        pytest.param({"host": b"example.org"}, NOW, False, id="other-host"),
        pytest.param({"host": None}, NOW, False, id="no-host"),
        pytest.param({"path": b"/b"}, NOW, False, id="other-path"),
        pytest.param({"query": b"a=1"}, NOW, False, id="other-query"),
        pytest.param({}, NOW + 1, False, id="another-second"),
        pytest.param({}, NOW + 0.001, False, id="another-millisecond"),
    ],
)
def test_the_share_is_told_by_target_and_time(target: dict[str, Any], now: float, same: bool) -> None:
    assert (abs(share(now, **target) - SHARE) < TICK) is same


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param([share(path=b"/item/%d" % number) for number in range(1000)], id="paths"),
        pytest.param([share(path=b"/item", query=b"page=%d" % number) for number in range(1000)], id="queries"),
        pytest.param([share(host=b"%d.example" % number) for number in range(1000)], id="hosts"),
        pytest.param([share(NOW + number) for number in range(1000)], id="seconds"),
        pytest.param([share(NOW + 3600 * number) for number in range(1000)], id="hours"),
    ],
)
def test_shares_are_spread_evenly(shares: list[float]) -> None:
    counts = [sum(bucket / 20 <= found < (bucket + 1) / 20 for found in shares) for bucket in range(20)]
    assert sum(counts) == 1000
    # 19 degrees of freedom: chance exceeds 44 once in a thousand; CRC-32 alone gives 174 for the queries.
    assert sum((count - 50) ** 2 / 50 for count in counts) < 44


LIFETIMES = st.integers(0, 10**7)
TARGETS = st.fixed_dictionaries(
    {"host": st.none() | st.binary(max_size=9), "path": st.binary(max_size=9), "query": st.binary(max_size=9)}
)


@given(TARGETS, LIFETIMES, st.integers(0, 10**7), st.floats(0, 0.5), st.floats(0, 4e9))
def test_jitter_never_lengthens_and_never_takes_more_than_its_share(
    target: dict[str, Any], lifetime: int, age: int, jitter: float, now: float
) -> None:
    lines = (f"cache-control: max-age={lifetime}, stale-if-error=20000000", f"age: {age}")
    options = PolicyOptions.rfc9111(expiry_jitter=jitter)
    given: dict[str, Any] = {"request": asking(**target), "sent": now, "now": now}
    plain, jittered = stored(*lines, **given), stored(*lines, options=options, **given)
    cut = plain.fresh_until - jittered.fresh_until
    assert 0 <= cut <= jitter * max(0.0, plain.fresh_until - now) + TICK
    assert jittered.retain_until - jittered.fresh_until == pytest.approx(20_000_000, rel=0, abs=TICK)
    assert jittered == stored(*lines, options=options, **given)


@pytest.mark.parametrize(
    ("section", "lines", "delay", "age"),
    [
        pytest.param("4.2.3", [], 0, 0, id="date-missing"),
        pytest.param("4.2.3", [], 3, 3, id="date-missing-delay-counts"),
        pytest.param("4.2.3", [f"date: {date(-10)}"], 0, 10, id="apparent-age"),
        pytest.param("4.2.3", [f"date: {date(-10)}"], 3, 10, id="apparent-age-is-more-than-delay"),
        pytest.param("4.2.3", [f"date: {date(-2)}"], 3, 3, id="delay-is-more-than-apparent-age"),
        pytest.param("4.2.3", [f"date: {date(10)}"], 0, 0, id="date-in-the-future"),
        pytest.param("4.2.3", [f"date: {date(10)}", "age: 4"], 0, 4, id="date-in-the-future-with-age"),
        pytest.param("4.2.3", ["date: now"], 0, 0, id="date-malformed"),
        pytest.param("4.2.3", ["date: now", "age: 5"], 0, 5, id="date-malformed-with-age"),
        pytest.param("4.2.3", ["age: 20"], 3, 23, id="age-and-delay-add"),
        pytest.param("4.2.3", ["age: 20", f"date: {date(-10)}"], 0, 20, id="age-is-more"),
        pytest.param("4.2.3", ["age: 5", f"date: {date(-10)}"], 0, 10, id="age-is-less"),
        pytest.param("4.2.3", [], -3, 0, id="clock-set-back"),
        pytest.param("4.2", ["date: Tuesday, 14-Nov-23 22:13:10 GMT"], 0, 10, id="rfc850-date"),
        pytest.param("4.2", ["date: Tue Nov 14 22:13:10 2023"], 0, 10, id="asctime-date"),
        pytest.param("5.1", ["age: 7, 8"], 0, 7, id="age-list-first"),
        pytest.param("5.1", ["age: 7", "age: 8"], 0, 7, id="age-lines-first"),
        *(
            pytest.param("5.1", [f"age: {value}"], 0, 0, id=f"age-{value or 'empty'}-ignored")
            for value in ("", "-7", "7.5", "abc", '"7"')
        ),
    ],
)
def test_age_on_receipt(section: str, lines: list[str], delay: float, age: float) -> None:
    entry = stored(FRESH, *lines, sent=NOW - delay)
    assert NOW - entry.generated_at == age, section
    assert entry.fresh_until == entry.generated_at + 100


@pytest.mark.parametrize("value", ["99999999999999999999", "2147483649"])
def test_an_age_that_overflows_is_2_to_the_31(value: str) -> None:
    verdict = admission(FRESH, ETAG, f"age: {value}")  # RFC 9111 section 1.2.2
    assert verdict.refusal is Refusal.ALREADY_STALE
    entry = stored(FRESH, f"age: {value}", options=PolicyOptions(stale_if_error=3e9))
    assert entry.generated_at == NOW - 2**31


@pytest.mark.parametrize(
    ("section", "generated_ago", "later", "sent"),
    [
        pytest.param("5.1", 0, 0, b"0", id="new"),
        pytest.param("5.1", 0, 5.9, b"5", id="whole-seconds"),
        pytest.param("5.1", 7, 5, b"12", id="counts-from-generation"),
        pytest.param("4.2.3", 0, -5, b"0", id="clock-set-back"),
    ],
)
def test_age_is_sent(section: str, generated_ago: int, later: float, sent: bytes) -> None:
    entry = stored(FRESH, f"date: {date(-generated_ago)}")
    headers = answer(asking(), entry, NOW + later).headers
    assert [value for name, value in headers if name == b"age"] == [sent], section


RECEIVED = st.fixed_dictionaries(
    {},
    optional={
        "date": st.integers(-(10**6), 10**6).map(date) | st.text("0123 GMT", max_size=8),
        "age": st.integers(0, 10**6).map(str) | st.text("-0123,", max_size=6),
        "expires": st.integers(-(10**6), 10**6).map(date) | st.text("01 GMT", max_size=8),
        "last-modified": st.integers(-(10**6), 10**6).map(date),
        "cache-control": st.lists(
            st.sampled_from(["public", "no-cache", "must-revalidate"])
            | st.integers(0, 10**6).map(lambda n: f"max-age={n}")
            | st.integers(0, 10**6).map(lambda n: f"s-maxage={n}")
        ).map(", ".join),
    },
)


def _lines(received: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in received.items()]


@given(RECEIVED, st.floats(0, 100), st.lists(st.floats(0, 1e6), min_size=2, max_size=6))
def test_age_never_falls_and_is_never_below_what_upstream_counted(
    received: dict[str, str], delay: float, moments: list[float]
) -> None:
    options = PolicyOptions(stale_if_error=1e7)  # so that most are admitted, however stale
    entry = admission(*_lines(received), options=options, sent=NOW - delay).entry
    if entry is None:
        return
    ages = [_age(answer(asking(), entry, NOW + moment).headers) for moment in sorted(moments)]
    assert ages == sorted(ages)
    assert entry.generated_at <= NOW
    if received.get("age", "").isdigit():
        assert ages[0] >= int(received["age"])


def _age(headers: Pairs) -> int:
    (age,) = [int(value) for name, value in headers if name == b"age"]
    return age


@given(RECEIVED, st.floats(-100, 100))
def test_an_entry_is_kept_at_least_while_it_is_fresh(received: dict[str, str], delay: float) -> None:
    verdict = admission(*_lines(received), ETAG, options=PLAIN, sent=NOW - delay)
    if verdict.entry is not None:
        assert verdict.entry.retain_until >= verdict.entry.fresh_until
        assert verdict.entry.retain_until > NOW
    assert (verdict.entry is None) == (verdict.refusal is not None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"cache-control", b"date", b"age", b"expires", b"vary", b"connection", b"x", b"etag"])
            | st.binary(max_size=5),
            st.binary(max_size=40),
        ),
        max_size=6,
    ),
    st.integers(0, 1000),
)
def test_admit_takes_any_bytes(headers: list[tuple[bytes, bytes]], status: int) -> None:
    from echo_cache.policy import admit

    verdict: Any = admit(asking(), status, headers, request_time=NOW, response_time=NOW, options=PLAIN)
    assert (verdict.entry is None) == (verdict.refusal is not None)
