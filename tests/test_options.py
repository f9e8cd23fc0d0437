"""Options are checked when they are made: each default, each wrong value, and what the message allows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from echo_cache import CacheStrategy, ConfigurationError, PolicyOptions, RouteOptions, SyncMode, TwoLevelConfig
from echo_cache.options import route_options, seconds


def test_policy_defaults_are_the_safe_ones() -> None:
    options = PolicyOptions()
    assert options.default_ttl == 180
    assert options.negative_ttl == 10
    assert options.expiry_jitter == 0
    assert options.early_refresh is None
    assert not options.store_set_cookie
    assert options.targeted_fields == ()
    assert options.generate_etag
    assert options.request_directives == "honour"
    assert options.hit_for_miss == 120


def test_rfc9111_is_the_plain_standard() -> None:
    options = PolicyOptions.rfc9111()
    assert options.default_ttl is None
    assert options.negative_ttl is None
    assert options.expiry_jitter == 0
    assert options.early_refresh is None
    assert options.store_set_cookie
    assert options.targeted_fields == ("cdn-cache-control",)
    assert not options.generate_etag


def test_rfc9111_takes_changes() -> None:
    assert PolicyOptions.rfc9111(max_body_bytes=5).max_body_bytes == 5


def test_two_level_defaults_are_those_of_the_ancestor() -> None:
    config = TwoLevelConfig()
    assert config.strategy is CacheStrategy.WRITE_THROUGH
    assert (config.l1_ttl, config.l2_ttl) == (300, 1800)
    assert config.cache_warming
    assert config.sync_mode is SyncMode.ASYNC
    assert config.async_buffer == 1000


def test_two_level_defaults_beside_them() -> None:
    config = TwoLevelConfig()
    assert config.async_buffer_bytes == 64 * 1024 * 1024
    assert config.drain_timeout == 5.0
    assert config.l2_soft_timeout == 0.020


@pytest.mark.parametrize("member", [*CacheStrategy, *SyncMode], ids=str)
def test_enumerations_are_taken_in_any_case(member: CacheStrategy | SyncMode) -> None:
    name = "strategy" if isinstance(member, CacheStrategy) else "sync_mode"
    for value in (member, member.value, member.value.upper(), member.value.title(), member.name):
        options: dict[str, Any] = {name: value}
        assert getattr(TwoLevelConfig(**options), name) is member


def test_two_level_durations_may_be_timedeltas_and_zero() -> None:
    minute: Any = timedelta(minutes=1)
    nothing: Any = timedelta(0)
    config = TwoLevelConfig(l1_ttl=minute, l2_ttl=minute, drain_timeout=minute, l2_soft_timeout=nothing)
    assert (config.l1_ttl, config.l2_ttl, config.drain_timeout, config.l2_soft_timeout) == (60.0, 60.0, 60.0, 0.0)


def test_a_timedelta_is_taken_for_seconds() -> None:
    assert seconds("ttl", timedelta(minutes=2)) == 120.0
    assert route_options({"ttl": timedelta(minutes=1)}).ttl == 60.0
    assert route_options({"negative_ttl": timedelta(seconds=5)}).negative_ttl == 5.0
    half_a_minute: Any = timedelta(seconds=30)
    assert PolicyOptions(negative_ttl=half_a_minute).negative_ttl == 30.0


def test_a_route_says_nothing_of_what_is_missing_unless_it_does() -> None:
    assert RouteOptions(ttl=60).negative_ttl is None
    assert route_options({"ttl": 60}).negative_ttl is None
    assert route_options({"negative_ttl": 0}).negative_ttl == 0.0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"negative_ttl": None}, id="negative-ttl-off"),
        pytest.param({"negative_ttl": 0}, id="negative-ttl-zero"),
        pytest.param({"expiry_jitter": 0}, id="jitter-off"),
        pytest.param({"expiry_jitter": 0.5}, id="jitter-most"),
        pytest.param({"early_refresh": None}, id="early-refresh-off"),
        pytest.param({"early_refresh": 1e-9}, id="early-refresh-at-once"),
        pytest.param({"early_refresh": 1 - 1e-9}, id="early-refresh-at-the-end"),
    ],
)
def test_values_at_the_bounds_are_taken(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    assert getattr(PolicyOptions(**options), name) == value


def test_options_are_frozen() -> None:
    with pytest.raises(AttributeError):
        PolicyOptions().default_ttl = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        pytest.param(PolicyOptions, {"default_ttl": -1}, "default_ttl must be a number of seconds >= 0", id="negative"),
        pytest.param(PolicyOptions, {"keep": float("inf")}, "keep must be", id="infinite"),
        pytest.param(PolicyOptions, {"keep": float("nan")}, "keep must be", id="not-a-number"),
        pytest.param(PolicyOptions, {"stale_if_error": "5"}, "stale_if_error must be", id="string"),
        pytest.param(PolicyOptions, {"stale_while_revalidate": True}, "must be a number", id="bool"),
        pytest.param(PolicyOptions, {"heuristic_fraction": 1.5}, "0..1", id="fraction"),
        pytest.param(PolicyOptions, {"negative_ttl": -1}, "negative_ttl must be a number of seconds", id="missing-ttl"),
        *(
            pytest.param(
                PolicyOptions,
                {"expiry_jitter": value},
                f"expiry_jitter must be a number in 0..0.5, not {value!r}",
                id=f"jitter-{value}",
            )
            for value in (-0.01, 0.51, float("nan"), float("inf"), True, "0.1", None)
        ),
        *(
            pytest.param(
                PolicyOptions,
                {"early_refresh": value},
                f"early_refresh must be a number between 0 and 1, or None, not {value!r}",
                id=f"early-refresh-{value}",
            )
            for value in (0, 1, -0.5, 1.5, float("nan"), False, True, "0.8")
        ),
        pytest.param(PolicyOptions, {"max_body_bytes": 0}, "max_body_bytes must be a whole number", id="zero-bytes"),
        pytest.param(PolicyOptions, {"max_vary_fields": 1.5}, "whole number", id="half-a-field"),
        pytest.param(PolicyOptions, {"request_directives": "obey"}, "'honour', 'ignore'", id="unknown-mode"),
        pytest.param(PolicyOptions, {"targeted_fields": "CDN-Cache-Control"}, "must be a list", id="one-string"),
        pytest.param(PolicyOptions, {"targeted_fields": ["CDN Cache"]}, "not a valid name", id="not-a-token"),
        pytest.param(PolicyOptions, {"allowed_hosts": ["a/b"]}, "not a valid name", id="not-a-host"),
        pytest.param(PolicyOptions, {"ignored_query_parameters": [""]}, "non-empty", id="empty-parameter"),
        pytest.param(RouteOptions, {"ttl": -5}, "ttl must be", id="negative-ttl"),
        pytest.param(RouteOptions, {"negative_ttl": -5}, "negative_ttl must be", id="route-missing-ttl"),
        pytest.param(RouteOptions, {"negative_ttl": "5"}, "negative_ttl must be", id="route-missing-ttl-string"),
        pytest.param(RouteOptions, {"tags": "catalog"}, "tags must be a list", id="tags-as-string"),
        pytest.param(RouteOptions, {"vary": ["a b"]}, "not a valid name", id="vary-not-a-token"),
        pytest.param(TwoLevelConfig, {"l1_ttl": 10, "l2_ttl": 5}, "l1_ttl .* must not be longer", id="l1-over-l2"),
        pytest.param(
            TwoLevelConfig, {"strategy": "both"}, "'cache_aside', 'write_through', 'write_back'", id="strategy"
        ),
        pytest.param(TwoLevelConfig, {"strategy": None}, "strategy must be one of .*, not None", id="no-strategy"),
        pytest.param(TwoLevelConfig, {"sync_mode": 1}, "'sync', 'async'", id="sync-mode"),
        pytest.param(TwoLevelConfig, {"sync_mode": "later"}, "'sync', 'async', not 'later'", id="unknown-sync-mode"),
        pytest.param(TwoLevelConfig, {"l1_ttl": -1}, "l1_ttl must be a number of seconds", id="l1-negative"),
        pytest.param(TwoLevelConfig, {"l2_ttl": "5"}, "l2_ttl must be a number of seconds", id="l2-string"),
        pytest.param(TwoLevelConfig, {"cache_warming": "no"}, "cache_warming must be True or False", id="warming"),
        pytest.param(TwoLevelConfig, {"async_buffer": 0}, "async_buffer must be a whole number", id="buffer"),
        pytest.param(TwoLevelConfig, {"async_buffer": 1.5}, "async_buffer must be a whole number", id="half-a-place"),
        pytest.param(TwoLevelConfig, {"async_buffer_bytes": 0}, "async_buffer_bytes must be", id="buffer-bytes"),
        pytest.param(TwoLevelConfig, {"drain_timeout": -0.1}, "drain_timeout must be a number", id="drain"),
        pytest.param(TwoLevelConfig, {"drain_timeout": float("inf")}, "drain_timeout must be", id="drain-for-ever"),
        pytest.param(TwoLevelConfig, {"l2_soft_timeout": None}, "l2_soft_timeout must be", id="soft-timeout"),
    ],
)
def test_wrong_values_say_what_is_allowed(kind: Any, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        kind(**wrong)


def test_an_unknown_rule_of_a_route_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown rule 'tll'; allowed are ttl, negative_ttl, client_ttl"):
        route_options({"tll": 5})  # type: ignore[typeddict-unknown-key]
