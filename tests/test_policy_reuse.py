"""What a request gets, given what is stored: RFC 9111 sections 4 and 5.2.1."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cache.model import Decision, Entry, Forward, Fwd, Request, Serve, Unsatisfiable, Validate
from echo_cache.options import PolicyOptions
from echo_cache.policy import answer, decide, may_serve_on_error, refresh_from
from tests.policy_cases import NOW, PLAIN, SAFE, asking, date, stored

IGNORE = PolicyOptions(request_directives="ignore")

# One that has no validator, so that what is not served is a plain forward.
PLAIN_60 = stored("cache-control: max-age=60")
WITH_ETAG = stored("cache-control: max-age=60", 'etag: "a"')
IMMUTABLE = stored("cache-control: max-age=60, immutable")
NO_CACHE = stored("cache-control: max-age=60, no-cache", 'etag: "a"')
MUST_REVALIDATE = stored("cache-control: max-age=60, must-revalidate", 'etag: "a"')
PROXY_REVALIDATE = stored("cache-control: max-age=60, proxy-revalidate", 'etag: "a"')
S_MAXAGE = stored("cache-control: s-maxage=60", 'etag: "a"')
S_MAXAGE_WINDOW = stored("cache-control: s-maxage=60, stale-while-revalidate=30, stale-if-error=90", 'etag: "a"')
WINDOW = stored("cache-control: max-age=60, stale-while-revalidate=30, stale-if-error=90", 'etag: "a"')
STRANGERS = stored(options=SAFE)  # fresh for 180 s, by default_ttl

FRESH, STALE = NOW + 59, NOW + 61

ETAG_A = ((b"if-none-match", b'"a"'),)


def control(value: str, **changes: Any) -> Request:
    """Return a GET with this Cache-Control."""
    return asking(f"cache-control: {value}", **changes)


def call(entry: Entry | None, fwd: Fwd = Fwd.STALE) -> Forward:
    """Return the forward that may be shared and stored."""
    return Forward(fwd, stale=entry)


def alone(entry: Entry | None, fwd: Fwd) -> Forward:
    """Return the forward that is for this request only."""
    return Forward(fwd, stale=entry, collapse=False, store=False)


@pytest.mark.parametrize(
    ("section", "request_", "entry", "now", "decision"),
    [
        # 4: what must hold for reuse
        pytest.param("4", asking(), PLAIN_60, FRESH, Serve(PLAIN_60), id="fresh"),
        pytest.param("4", asking(), PLAIN_60, NOW + 60, call(PLAIN_60), id="stale-at-the-very-end"),
        pytest.param("4", asking(), PLAIN_60, STALE, call(PLAIN_60), id="stale"),
        pytest.param("4", asking(), WITH_ETAG, STALE, Validate(WITH_ETAG, ETAG_A, Fwd.STALE), id="stale-validate"),
        pytest.param("4", asking(), None, NOW, Forward(Fwd.URI_MISS), id="nothing"),
        pytest.param("4", asking(method="HEAD"), PLAIN_60, FRESH, Serve(PLAIN_60), id="head-from-get"),
        pytest.param("4", asking(method="HEAD"), None, NOW, alone(None, Fwd.URI_MISS), id="head-fills-nothing"),
        pytest.param("4", asking(method="HEAD"), WITH_ETAG, STALE, alone(WITH_ETAG, Fwd.STALE), id="head-stale"),
        *(
            pytest.param("4", asking(method=method), PLAIN_60, FRESH, alone(None, Fwd.METHOD), id=f"method-{method}")
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "get", "QUERY")
        ),
        pytest.param("4", asking(has_body=True), PLAIN_60, FRESH, alone(None, Fwd.BYPASS), id="fat-get"),
        # 5.2.2.4: no-cache of the response
        pytest.param("5.2.2.4", asking(), NO_CACHE, NOW, Validate(NO_CACHE, ETAG_A, Fwd.STALE), id="no-cache"),
        pytest.param(
            "5.2.2.4",
            control("max-stale"),
            NO_CACHE,
            FRESH,
            Validate(NO_CACHE, ETAG_A, Fwd.STALE),
            id="no-cache-max-stale",
        ),
        # 5.2.1.1: max-age
        pytest.param("5.2.1.1", control("max-age=59"), PLAIN_60, FRESH, Serve(PLAIN_60), id="max-age-enough"),
        pytest.param("5.2.1.1", control("max-age=58"), PLAIN_60, FRESH, call(PLAIN_60, Fwd.REQUEST), id="max-age-less"),
        pytest.param("5.2.1.1", control("max-age=0"), PLAIN_60, NOW + 0.5, call(PLAIN_60, Fwd.REQUEST), id="reload"),
        pytest.param(
            "5.2.1.1", control("max-age=999"), WINDOW, STALE, Validate(WINDOW, ETAG_A, Fwd.STALE), id="max-age-no-stale"
        ),
        pytest.param(
            "5.2.1.1",
            control("max-age=999, max-stale=9"),
            PLAIN_60,
            STALE,
            Serve(PLAIN_60, stale=True),
            id="max-age-and-max-stale",
        ),
        pytest.param(
            "5.2.1.1", control("max-age=x"), PLAIN_60, FRESH, call(PLAIN_60, Fwd.REQUEST), id="max-age-invalid"
        ),
        # 5.2.1.2: max-stale
        pytest.param(
            "5.2.1.2", control("max-stale=5"), PLAIN_60, NOW + 65, Serve(PLAIN_60, stale=True), id="max-stale"
        ),
        pytest.param("5.2.1.2", control("max-stale=4"), PLAIN_60, NOW + 65, call(PLAIN_60), id="max-stale-too-little"),
        pytest.param(
            "5.2.1.2", control("max-stale"), PLAIN_60, NOW + 9e9, Serve(PLAIN_60, stale=True), id="max-stale-any"
        ),
        pytest.param("5.2.1.2", control("max-stale=x"), PLAIN_60, STALE, call(PLAIN_60), id="max-stale-invalid"),
        pytest.param(
            "5.2.1.2",
            control("max-stale=5"),
            WINDOW,
            NOW + 70,
            Validate(WINDOW, ETAG_A, Fwd.STALE),
            id="max-stale-limits",
        ),
        pytest.param(
            "5.2.1.2",
            control("max-stale=15"),
            WINDOW,
            NOW + 70,
            Serve(WINDOW, stale=True, refresh=True),
            id="max-stale-in-window",
        ),
        # 5.2.1.3: min-fresh
        pytest.param("5.2.1.3", control("min-fresh=1"), PLAIN_60, FRESH, Serve(PLAIN_60), id="min-fresh"),
        pytest.param(
            "5.2.1.3", control("min-fresh=2"), PLAIN_60, FRESH, call(PLAIN_60, Fwd.REQUEST), id="min-fresh-less"
        ),
        pytest.param(
            "5.2.1.3", control("min-fresh=0"), WINDOW, STALE, Validate(WINDOW, ETAG_A, Fwd.STALE), id="min-fresh-stale"
        ),
        # 5.2.1.4: no-cache
        pytest.param(
            "5.2.1.4", control("no-cache"), PLAIN_60, FRESH, call(PLAIN_60, Fwd.REQUEST), id="request-no-cache"
        ),
        pytest.param(
            "5.2.1.4",
            control("No-Cache, max-stale"),
            WITH_ETAG,
            FRESH,
            Validate(WITH_ETAG, ETAG_A, Fwd.REQUEST),
            id="request-no-cache-validates",
        ),
        # 5.2.1.5: no-store says nothing about what is stored already
        pytest.param("5.2.1.5", control("no-store"), PLAIN_60, FRESH, Serve(PLAIN_60), id="request-no-store-served"),
        pytest.param("5.2.1.5", control("no-store"), None, NOW, alone(None, Fwd.URI_MISS), id="request-no-store-miss"),
        pytest.param(
            "5.2.1.5", control("no-store"), WITH_ETAG, STALE, alone(WITH_ETAG, Fwd.STALE), id="request-no-store-stale"
        ),
        # 5.2.1.7: only-if-cached
        pytest.param("5.2.1.7", control("only-if-cached"), PLAIN_60, FRESH, Serve(PLAIN_60), id="only-if-cached"),
        pytest.param("5.2.1.7", control("only-if-cached"), None, NOW, Unsatisfiable(), id="only-if-cached-nothing"),
        pytest.param(
            "5.2.1.7", control("only-if-cached"), WITH_ETAG, STALE, Unsatisfiable(), id="only-if-cached-stale"
        ),
        pytest.param(
            "5.2.1.7",
            control("only-if-cached, max-stale"),
            PLAIN_60,
            STALE,
            Serve(PLAIN_60, stale=True),
            id="only-if-cached-max-stale",
        ),
        pytest.param(
            "5.2.1.7",
            control("only-if-cached"),
            WINDOW,
            STALE,
            Serve(WINDOW, stale=True, refresh=True),
            id="only-if-cached-window",
        ),
        pytest.param(
            "5.2.1.7",
            asking("cache-control: only-if-cached", 'if-match: "a"'),
            PLAIN_60,
            FRESH,
            Unsatisfiable(),
            id="only-if-cached-if-match",
        ),
        pytest.param(
            "5.2.1.7",
            asking("cache-control: only-if-cached", "cookie: a=1"),
            STRANGERS,
            FRESH,
            Unsatisfiable(),
            id="only-if-cached-cookie",
        ),
        # 5.4: Pragma
        pytest.param("5.4", asking("pragma: no-cache"), PLAIN_60, FRESH, call(PLAIN_60, Fwd.REQUEST), id="pragma"),
        pytest.param(
            "5.4",
            asking("pragma: no-cache", "cache-control: max-age=99"),
            PLAIN_60,
            FRESH,
            Serve(PLAIN_60),
            id="pragma-beside-cache-control",
        ),
        pytest.param("5.4", asking("pragma: x"), PLAIN_60, FRESH, Serve(PLAIN_60), id="pragma-other"),
        # 5.2: several lines are one
        pytest.param(
            "5.2",
            asking("cache-control: max-age=99", "cache-control: no-cache"),
            PLAIN_60,
            FRESH,
            call(PLAIN_60, Fwd.REQUEST),
            id="two-lines",
        ),
        # RFC 8246
        pytest.param("8246-2", control("max-age=0"), IMMUTABLE, FRESH, Serve(IMMUTABLE), id="immutable-reload"),
        pytest.param(
            "8246-2", control("no-cache"), IMMUTABLE, FRESH, call(IMMUTABLE, Fwd.REQUEST), id="immutable-forced"
        ),
        pytest.param("8246-2", control("max-age=0"), IMMUTABLE, STALE, call(IMMUTABLE), id="immutable-stale"),
        pytest.param(
            "8246-2",
            control("max-age=0, min-fresh=9"),
            IMMUTABLE,
            FRESH,
            call(IMMUTABLE, Fwd.REQUEST),
            id="immutable-min-fresh",
        ),
        # 4.2.4: what forbids stale answers
        *(
            pytest.param(
                section, control("max-stale"), entry, STALE, Validate(entry, ETAG_A, Fwd.STALE), id=f"{name}-max-stale"
            )
            for section, name, entry in (
                ("5.2.2.2", "must-revalidate", MUST_REVALIDATE),
                ("5.2.2.8", "proxy-revalidate", PROXY_REVALIDATE),
                ("5.2.2.10", "s-maxage", S_MAXAGE),
                ("5.2.2.10", "s-maxage-past-its-window", S_MAXAGE_WINDOW._replace(stale_while_revalidate=0.5)),
            )
        ),
        pytest.param("5.2.2.2", asking(), MUST_REVALIDATE, FRESH, Serve(MUST_REVALIDATE), id="must-revalidate-fresh"),
        pytest.param(
            "5861-3",
            asking(),
            S_MAXAGE_WINDOW,
            STALE,
            Serve(S_MAXAGE_WINDOW, stale=True, refresh=True),
            id="s-maxage-with-window",
        ),
        # RFC 5861 section 3
        pytest.param("5861-3", asking(), WINDOW, NOW + 60, Serve(WINDOW, stale=True, refresh=True), id="window-begins"),
        pytest.param("5861-3", asking(), WINDOW, NOW + 89, Serve(WINDOW, stale=True, refresh=True), id="window"),
        pytest.param("5861-3", asking(), WINDOW, NOW + 90, Validate(WINDOW, ETAG_A, Fwd.STALE), id="window-over"),
        pytest.param(
            "5861-3", asking(method="HEAD"), WINDOW, NOW + 89, Serve(WINDOW, stale=True, refresh=True), id="window-head"
        ),
        pytest.param(
            "5861-3", control("no-cache"), WINDOW, NOW + 89, Validate(WINDOW, ETAG_A, Fwd.STALE), id="window-no-cache"
        ),
        # 4.3.2: conditions that only the app can evaluate
        pytest.param("4.3.2", asking('if-match: "a"'), PLAIN_60, FRESH, alone(None, Fwd.REQUEST), id="if-match"),
        pytest.param(
            "4.3.2",
            asking(f"if-unmodified-since: {date(0)}"),
            PLAIN_60,
            FRESH,
            alone(None, Fwd.REQUEST),
            id="if-unmodified",
        ),
        pytest.param(
            "4.3.2", asking('if-match: "a"'), None, NOW, alone(None, Fwd.REQUEST), id="if-match-nothing-stored"
        ),
        pytest.param(
            "4.3.2", asking('if-none-match: "a"'), PLAIN_60, FRESH, Serve(PLAIN_60), id="if-none-match-is-ours"
        ),
        # ranges
        pytest.param("9110-14.2", asking("range: bytes=0-1"), PLAIN_60, FRESH, Serve(PLAIN_60), id="range"),
        pytest.param(
            "9110-14.2", asking("range: bytes=0-1"), None, NOW, alone(None, Fwd.URI_MISS), id="range-fills-nothing"
        ),
        pytest.param(
            "9110-14.2", asking("range: bytes=0-1"), PLAIN_60, STALE, alone(PLAIN_60, Fwd.STALE), id="range-stale"
        ),
        pytest.param(
            "9110-14.2",
            asking("range: bytes=0-1"),
            WITH_ETAG,
            STALE,
            Validate(WITH_ETAG, ETAG_A, Fwd.STALE),
            id="range-validates",
        ),
        # default_ttl is for strangers
        pytest.param("design", asking(), STRANGERS, FRESH, Serve(STRANGERS), id="stranger"),
        pytest.param("design", asking("cookie: a=1"), STRANGERS, FRESH, call(None, Fwd.REQUEST), id="stranger-cookie"),
        pytest.param(
            "design", asking("authorization: x"), STRANGERS, FRESH, call(None, Fwd.REQUEST), id="stranger-authorization"
        ),
        pytest.param(
            "design",
            asking("cookie: a=1", method="HEAD"),
            STRANGERS,
            FRESH,
            alone(None, Fwd.REQUEST),
            id="stranger-cookie-head",
        ),
        pytest.param("design", asking("cookie: a=1"), PLAIN_60, FRESH, Serve(PLAIN_60), id="explicit-cookie"),
    ],
)
def test_reuse(section: str, request_: Request, entry: Entry | None, now: float, decision: Decision) -> None:
    assert decide(request_, entry, now, PLAIN) == decision, section


EARLY = PolicyOptions.rfc9111(early_refresh=0.75)  # of PLAIN_60: from the 45th second on
DUE = NOW + 45
AGED = stored("cache-control: max-age=60", "age: 20")  # 40 s remain, so it is due after 30


@pytest.mark.parametrize(
    ("request_", "entry", "now", "decision"),
    [
        pytest.param(asking(), PLAIN_60, NOW, Serve(PLAIN_60), id="new"),
        pytest.param(asking(), PLAIN_60, DUE - 0.001, Serve(PLAIN_60), id="not-yet"),
        pytest.param(asking(), PLAIN_60, DUE, Serve(PLAIN_60, refresh=True), id="from-then-on"),
        pytest.param(asking(), PLAIN_60, NOW + 59.999, Serve(PLAIN_60, refresh=True), id="to-the-end"),
        pytest.param(asking(), PLAIN_60, NOW + 60, call(PLAIN_60), id="stale"),
        pytest.param(asking(), PLAIN_60, NOW - 9, Serve(PLAIN_60), id="clock-set-back"),
        pytest.param(asking(), WITH_ETAG, DUE, Serve(WITH_ETAG, refresh=True), id="validator"),
        pytest.param(asking(), MUST_REVALIDATE, DUE, Serve(MUST_REVALIDATE, refresh=True), id="must-revalidate"),
        pytest.param(asking(), WINDOW, DUE, Serve(WINDOW, refresh=True), id="before-the-window"),
        pytest.param(asking(), WINDOW, NOW + 61, Serve(WINDOW, stale=True, refresh=True), id="in-the-window"),
        pytest.param(asking(), STRANGERS, NOW + 134, Serve(STRANGERS), id="default-ttl-not-yet"),
        pytest.param(asking(), STRANGERS, NOW + 135, Serve(STRANGERS, refresh=True), id="default-ttl"),
        pytest.param(asking(), AGED, NOW + 29.999, Serve(AGED), id="counts-from-storing-not-yet"),
        pytest.param(asking(), AGED, NOW + 30, Serve(AGED, refresh=True), id="counts-from-storing"),
        # never served, so nothing to start beside it
        pytest.param(asking(), NO_CACHE, DUE, Validate(NO_CACHE, ETAG_A, Fwd.STALE), id="no-cache"),
        pytest.param(asking('if-match: "a"'), PLAIN_60, DUE, alone(None, Fwd.REQUEST), id="if-match"),
        pytest.param(asking("cookie: a=1"), STRANGERS, NOW + 170, call(None, Fwd.REQUEST), id="stranger-cookie"),
        # what else the request says
        pytest.param(asking(method="HEAD"), PLAIN_60, DUE, Serve(PLAIN_60, refresh=True), id="head"),
        pytest.param(asking("range: bytes=0-1"), PLAIN_60, DUE, Serve(PLAIN_60, refresh=True), id="range"),
        pytest.param(asking('if-none-match: "a"'), WITH_ETAG, DUE, Serve(WITH_ETAG, refresh=True), id="if-none-match"),
        pytest.param(control("max-age=50"), PLAIN_60, DUE, Serve(PLAIN_60, refresh=True), id="max-age"),
        pytest.param(control("max-age=44"), PLAIN_60, DUE, call(PLAIN_60, Fwd.REQUEST), id="max-age-less"),
        pytest.param(control("min-fresh=15"), PLAIN_60, DUE, Serve(PLAIN_60, refresh=True), id="min-fresh"),
        pytest.param(control("max-stale=9"), PLAIN_60, DUE, Serve(PLAIN_60, refresh=True), id="max-stale"),
        pytest.param(control("max-stale=9"), PLAIN_60, STALE, Serve(PLAIN_60, stale=True), id="max-stale-stale"),
        pytest.param(control("no-store"), PLAIN_60, DUE, Serve(PLAIN_60, refresh=True), id="no-store"),
        pytest.param(control("only-if-cached"), PLAIN_60, DUE, Serve(PLAIN_60), id="only-if-cached"),
        pytest.param(control("only-if-cached, max-stale"), PLAIN_60, DUE, Serve(PLAIN_60), id="only-if-cached-stale"),
    ],
)
def test_early_refresh(request_: Request, entry: Entry, now: float, decision: Decision) -> None:
    assert decide(request_, entry, now, EARLY) == decision


@pytest.mark.parametrize("later", [0, 30, 45, 59.999])
def test_nothing_is_refreshed_early_unless_asked_for(later: float) -> None:
    assert decide(asking(), PLAIN_60, NOW + later, PLAIN) == Serve(PLAIN_60)
    assert decide(asking(), PLAIN_60, NOW + later, SAFE) == Serve(PLAIN_60)


def test_only_if_cached_that_is_ignored_does_not_hold_back_a_refresh() -> None:
    options = PolicyOptions(request_directives="ignore", early_refresh=0.75)
    assert decide(control("only-if-cached"), PLAIN_60, DUE, options) == Serve(PLAIN_60, refresh=True)


@pytest.mark.parametrize(
    ("entry", "early_refresh", "instant"),
    [
        pytest.param(PLAIN_60, None, math.inf, id="off"),
        pytest.param(PLAIN_60, 0.75, NOW + 45, id="three-quarters"),
        pytest.param(PLAIN_60, 0.5, NOW + 30, id="half"),
        pytest.param(AGED, 0.75, NOW + 30, id="of-what-remained-at-storing"),
        pytest.param(STRANGERS, 0.5, NOW + 90, id="default-ttl"),
        pytest.param(
            stored("cache-control: max-age=60, stale-if-error=600"), 0.5, NOW + 30, id="windows-are-no-lifetime"
        ),
        pytest.param(stored("cache-control: max-age=0", 'etag: "a"'), 0.5, NOW, id="never-fresh"),
    ],
)
def test_refresh_from(entry: Entry, early_refresh: float | None, instant: float) -> None:
    assert refresh_from(entry, PolicyOptions(early_refresh=early_refresh)) == instant


def test_an_early_refresh_follows_the_jitter() -> None:
    options = PolicyOptions.rfc9111(early_refresh=0.5, expiry_jitter=0.5)
    entry = stored("cache-control: max-age=60", options=options)
    assert entry.fresh_until < NOW + 60
    assert refresh_from(entry, options) == pytest.approx((NOW + entry.fresh_until) / 2, rel=0, abs=1e-6)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(-10, 200))
def test_what_is_refreshed_early_is_fresh_and_due(early_refresh: float, later: float) -> None:
    options = PolicyOptions.rfc9111(early_refresh=early_refresh)
    decision = decide(asking(), PLAIN_60, NOW + later, options)
    assert isinstance(decision, Serve) == (NOW + later < PLAIN_60.fresh_until)
    if isinstance(decision, Serve):
        assert decision.refresh == (NOW + later >= refresh_from(PLAIN_60, options))


def test_a_key_with_other_variants_is_a_vary_miss() -> None:
    assert decide(asking(), None, NOW, PLAIN, other_variants=True) == Forward(Fwd.VARY_MISS)  # RFC 9211 section 2.2


@pytest.mark.parametrize(
    "lines",
    [
        ["cache-control: no-cache"],
        ["cache-control: max-age=0"],
        ["cache-control: min-fresh=999"],
        ["pragma: no-cache"],
        ["cache-control: no-store"],
    ],
    ids=" ".join,
)
def test_request_directives_can_be_ignored(lines: list[str]) -> None:
    request = asking(*lines)
    assert decide(request, PLAIN_60, FRESH, IGNORE) == Serve(PLAIN_60)
    assert decide(request, None, FRESH, IGNORE) == Forward(Fwd.URI_MISS)


def test_ignored_request_directives_make_nothing_of_max_stale_and_only_if_cached() -> None:
    assert decide(control("max-stale, only-if-cached"), PLAIN_60, STALE, IGNORE) == call(PLAIN_60)
    assert not may_serve_on_error(control("stale-if-error=99"), PLAIN_60, STALE, IGNORE)


def test_plain_etags_of_ours_are_no_condition_for_the_app() -> None:
    entry = stored("cache-control: max-age=60", own_etag=b'"ours"')
    assert decide(asking(), entry, STALE, PLAIN) == call(entry)


@pytest.mark.parametrize(
    ("section", "lines", "entry", "now", "allowed"),
    [
        pytest.param("5861-4", [], WINDOW, NOW + 150, True, id="own-window"),
        pytest.param("5861-4", [], WINDOW, NOW + 151, False, id="own-window-over"),
        pytest.param("5861-4", [], WINDOW, FRESH, True, id="still-fresh"),
        pytest.param("5861-4", [], PLAIN_60, STALE, False, id="no-window"),
        pytest.param("9111-5.2.1.4", ["cache-control: no-cache"], PLAIN_60, FRESH, False, id="no-window-fresh"),
        pytest.param("5861-4", ["cache-control: stale-if-error=9"], PLAIN_60, NOW + 69, True, id="request"),
        pytest.param("5861-4", ["cache-control: stale-if-error=9"], PLAIN_60, NOW + 70, False, id="request-over"),
        pytest.param("5861-4", ["cache-control: stale-if-error=9"], WINDOW, NOW + 150, True, id="the-longer-one"),
        pytest.param("9111-4.2.4", ["cache-control: stale-if-error=9"], NO_CACHE, FRESH, False, id="no-cache"),
        pytest.param("9111-4.2.4", ["cache-control: stale-if-error=9"], MUST_REVALIDATE, STALE, False, id="must-r"),
        pytest.param("9111-4.2.4", ["cache-control: stale-if-error=9"], PROXY_REVALIDATE, STALE, False, id="proxy-r"),
        pytest.param("9111-4.2.4", ["cache-control: stale-if-error=9"], S_MAXAGE, STALE, False, id="s-maxage"),
        pytest.param("5861-4", [], S_MAXAGE_WINDOW, NOW + 150, True, id="s-maxage-with-window"),
        pytest.param(
            "design", ["cookie: a=1", "cache-control: stale-if-error=999"], STRANGERS, NOW + 190, False, id="cookie"
        ),
        pytest.param("design", ["cache-control: stale-if-error=999"], STRANGERS, NOW + 190, True, id="stranger"),
    ],
)
def test_stale_answers_in_trouble(section: str, lines: list[str], entry: Entry, now: float, allowed: bool) -> None:
    assert may_serve_on_error(asking(*lines), entry, now, PLAIN) is allowed, section


CONTROLS = st.lists(
    st.sampled_from(["no-cache", "no-store", "max-stale", "only-if-cached", "x=y"])
    | st.builds("{}={}".format, st.sampled_from(["max-age", "min-fresh", "max-stale"]), st.integers(0, 120)),
    max_size=4,
).map(", ".join)


@given(CONTROLS, st.floats(-10, 200))
def test_what_must_be_validated_is_never_served_stale(directives: str, later: float) -> None:
    for entry in (MUST_REVALIDATE, PROXY_REVALIDATE, S_MAXAGE, NO_CACHE):
        decision = decide(control(directives), entry, NOW + later, PLAIN)
        if isinstance(decision, Serve):
            assert entry is not NO_CACHE
            assert not decision.stale
            assert later < 60


@given(CONTROLS, st.floats(-10, 200))
def test_what_is_served_is_as_fresh_as_the_client_asked(directives: str, later: float) -> None:
    decision = decide(control(directives), WINDOW, NOW + later, PLAIN)
    assert isinstance(decision, Serve | Validate | Forward | Unsatisfiable)
    if isinstance(decision, Serve):
        assert "no-cache" not in directives
        assert decision.stale == (later >= 60)
        answered = dict(answer(asking(), WINDOW, NOW + later).headers)
        assert int(answered[b"age"]) >= int(later)
