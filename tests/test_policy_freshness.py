"""How old and how long fresh: RFC 9111 section 4.2, through what `admit` stores and `answer` sends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.model import Refusal
from echo_cache.options import PolicyOptions
from echo_cache.policy import answer
from tests.policy_cases import NOW, PLAIN, Pairs, admission, asking, date, stored

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
