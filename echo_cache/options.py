"""
What can be configured: frozen values that are checked when they are made.

A wrong value raises ConfigurationError at start, with what is allowed. Durations are float seconds (a timedelta is
accepted and converted), sizes are bytes. Enumerations are given as members or as their values in any case.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Self, TypeAlias, TypedDict, TypeVar, cast

from echo_cache.errors import ConfigurationError

__all__ = [
    "CacheStrategy",
    "Duration",
    "PolicyOptions",
    "RequestDirectiveMode",
    "RouteOptions",
    "RouteRules",
    "SyncMode",
    "TwoLevelConfig",
    "route_options",
    "seconds",
]

Duration: TypeAlias = float | timedelta

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def seconds(name: str, value: Duration) -> float:
    """
    Return *value* as seconds.

    Raises ConfigurationError for what is no duration, negative, infinite or not a number.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} must be a number of seconds >= 0 or a timedelta, not {value!r}")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number >= 1, not {value!r}")


class RequestDirectiveMode(enum.StrEnum):
    """Whether Cache-Control and Pragma of requests count: public sites may not want clients to force misses."""

    HONOUR = "honour"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """
    The rules of storing and reuse. The defaults are the safe ones of a cache inside an app.

    default_ttl: freshness for responses that say nothing about caching, to requests without Cookie and Authorization,
        when their status is heuristically cacheable; None turns it off.
    heuristic_fraction, heuristic_max: RFC 9111 section 4.2.2, of Date minus Last-Modified; fraction 0 turns it off.
    stale_while_revalidate, stale_if_error: used where the response does not give its own.
    keep: how long a stale response that has a validator is kept to be validated.
    store_set_cookie: store responses that set cookies. Only for gateways that know what they do.
    targeted_fields: response fields that take the place of Cache-Control for this cache, in order (RFC 9213).
    generate_etag: give stored bodies without an ETag a strong one.
    request_directives: "honour", or "ignore" where clients must not force misses.
    allowed_hosts: responses for other hosts are never stored; None allows all.
    ignored_query_parameters: removed from the query before the key is made and before the app sees it.
    sort_query: sort the parameters of the query by name, in the key only.
    max_body_bytes, max_header_bytes: larger responses pass through and are not stored.
    max_vary_fields: responses that vary on more fields are not stored.
    hit_for_miss: how long a key is remembered as not worth waiting for.
    """

    default_ttl: float | None = 180.0  # as the ancestor library, echo-http-cache, has it
    heuristic_fraction: float = 0.1  # RFC 9111 section 4.2.2 names 10 %
    heuristic_max: float = 86_400.0
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    keep: float = 3_600.0
    store_set_cookie: bool = False
    targeted_fields: Sequence[str] = ()
    generate_etag: bool = True
    request_directives: str = RequestDirectiveMode.HONOUR
    allowed_hosts: Sequence[str] | None = None
    ignored_query_parameters: Sequence[str] = ()
    sort_query: bool = False
    max_body_bytes: int = 8 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    max_vary_fields: int = 8
    # 120 s: Varnish's built-in hit-for-miss; long enough that strangers stop queueing, short enough that a fix shows.
    hit_for_miss: float = 120.0

    def __post_init__(self) -> None:
        put = _setter(self)
        if self.default_ttl is not None:
            put("default_ttl", seconds("default_ttl", self.default_ttl))
        for name in ("heuristic_max", "stale_while_revalidate", "stale_if_error", "keep", "hit_for_miss"):
            put(name, seconds(name, getattr(self, name)))
        if not 0 <= self.heuristic_fraction <= 1:
            raise ConfigurationError(f"heuristic_fraction must be in 0..1, not {self.heuristic_fraction!r}")
        for name in ("max_body_bytes", "max_header_bytes", "max_vary_fields"):
            _positive_int(name, getattr(self, name))
        put("request_directives", _enum(RequestDirectiveMode, "request_directives", self.request_directives))
        put("targeted_fields", _strings("targeted_fields", self.targeted_fields, _TOKEN, lower=True))
        if self.allowed_hosts is not None:
            put("allowed_hosts", _strings("allowed_hosts", self.allowed_hosts, re.compile(r"[^\s/@]+"), lower=True))
        put("ignored_query_parameters", _strings("ignored_query_parameters", self.ignored_query_parameters))

    @classmethod
    def rfc9111(cls, **changes: Any) -> Self:
        """
        Return the plain standard, with nothing of our own: for gateways and conformance runs.

        No default_ttl, Set-Cookie is stored as the standard allows, CDN-Cache-Control is honoured, nothing is
        generated.
        """
        plain: dict[str, Any] = {
            "default_ttl": None,
            "store_set_cookie": True,
            "targeted_fields": ("CDN-Cache-Control",),
            "generate_etag": False,
        }
        return cls(**{**plain, **changes})


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """
    What one route says about its responses; it speaks to this cache only, never to browsers.

    ttl: freshness here, in place of what the response says; None leaves that to the response.
    client_ttl: what clients are told in Cache-Control: max-age, counted from each answer; None leaves it alone.
    stale_while_revalidate, stale_if_error: as the directives of RFC 5861; None leaves them to the response.
    tags: the cache groups of its responses; "{name}" is filled from the path parameters.
    vary: request fields that select the response, beside those of its Vary field.
    store: False keeps every response of the route out of the cache.
    share_authorized: responses to requests with Authorization are the same for all who may ask.
    store_set_cookie: Set-Cookie of this route belongs to nobody in particular and may be shared.
    """

    ttl: float | None = None
    client_ttl: float | None = None
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    tags: Sequence[str] = ()
    vary: Sequence[str] = ()
    store: bool = True
    share_authorized: bool = False
    store_set_cookie: bool = False

    def __post_init__(self) -> None:
        put = _setter(self)
        for name in ("ttl", "client_ttl", "stale_while_revalidate", "stale_if_error"):
            value = getattr(self, name)
            if value is not None:
                put(name, seconds(name, value))
        put("tags", _strings("tags", self.tags))
        put("vary", _strings("vary", self.vary, _TOKEN, lower=True))


class RouteRules(TypedDict, total=False):
    """RouteOptions as a person writes them, by keyword: durations may be timedeltas."""

    ttl: Duration | None
    client_ttl: Duration | None
    stale_while_revalidate: Duration | None
    stale_if_error: Duration | None
    tags: Sequence[str]
    vary: Sequence[str]
    share_authorized: bool
    store_set_cookie: bool


def route_options(rules: RouteRules) -> RouteOptions:
    """Return *rules* as RouteOptions. Raises ConfigurationError for a name or a value that cannot work."""
    unknown = rules.keys() - RouteRules.__annotations__.keys()
    if unknown:
        allowed = ", ".join(RouteRules.__annotations__)
        raise ConfigurationError(f"unknown rule {', '.join(sorted(map(repr, unknown)))}; allowed are {allowed}")
    return RouteOptions(**cast(dict[str, Any], rules))


class CacheStrategy(enum.StrEnum):
    """How a write reaches the two levels."""

    CACHE_ASIDE = "cache_aside"
    WRITE_THROUGH = "write_through"
    WRITE_BACK = "write_back"


class SyncMode(enum.StrEnum):
    """Whether work between the levels that the answer does not need is awaited or queued."""

    SYNC = "sync"
    ASYNC = "async"


@dataclass(frozen=True, slots=True)
class TwoLevelConfig:
    """
    How memory (L1) and Redis (L2) work together.

    strategy: how a write reaches the levels. sync_mode: whether promotion is awaited or queued.
    l1_ttl, l2_ttl: the longest time for which each level calls an entry fresh; they never lengthen what it allows.
    cache_warming: an entry found in L2 is put into L1 with its remaining life.
    async_buffer, async_buffer_bytes: the bounds of each queue between the levels: of what WRITE_BACK has yet to write
        to L2, and of what sync_mode ASYNC has yet to promote. In operations, and in bytes.
    drain_timeout: how long aclose tries to write what WRITE_BACK has queued.
    l2_soft_timeout: how long L2 is waited for while a stale answer is at hand. (Without one, L2's own time-out holds.)
    """

    strategy: str = CacheStrategy.WRITE_THROUGH
    l1_ttl: float = 300.0
    l2_ttl: float = 1_800.0
    cache_warming: bool = True
    sync_mode: str = SyncMode.ASYNC
    async_buffer: int = 1_000
    async_buffer_bytes: int = 64 * 1024 * 1024
    drain_timeout: float = 5.0
    l2_soft_timeout: float = 0.020

    def __post_init__(self) -> None:
        put = _setter(self)
        put("strategy", _enum(CacheStrategy, "strategy", self.strategy))
        put("sync_mode", _enum(SyncMode, "sync_mode", self.sync_mode))
        for name in ("l1_ttl", "l2_ttl", "drain_timeout", "l2_soft_timeout"):
            put(name, seconds(name, getattr(self, name)))
        if self.l1_ttl > self.l2_ttl:
            raise ConfigurationError(
                f"l1_ttl ({self.l1_ttl} s) must not be longer than l2_ttl ({self.l2_ttl} s): "
                "memory would call entries fresh that Redis has given up"
            )
        if not isinstance(self.cache_warming, bool):
            raise ConfigurationError(f"cache_warming must be True or False, not {self.cache_warming!r}")
        for name in ("async_buffer", "async_buffer_bytes"):
            _positive_int(name, getattr(self, name))


_E = TypeVar("_E", bound=enum.StrEnum)


def _enum(kind: type[_E], name: str, value: str) -> _E:
    try:
        return kind(value.lower())
    except (ValueError, AttributeError):
        allowed = ", ".join(repr(member.value) for member in kind)
        raise ConfigurationError(f"{name} must be one of {allowed}, not {value!r}") from None


def _strings(
    name: str, values: object, pattern: re.Pattern[str] | None = None, *, lower: bool = False
) -> tuple[str, ...]:
    if (
        not isinstance(values, Collection)
        or isinstance(values, str | bytes)
        or not all(isinstance(value, str) and value for value in values)
    ):
        raise ConfigurationError(f"{name} must be a list of non-empty strings, not {values!r}")
    for value in values:
        if pattern is not None and not pattern.fullmatch(value):
            raise ConfigurationError(f"{name}: {value!r} is not a valid name here")
    return tuple(value.lower() if lower else value for value in values)


def _setter(value: Any) -> Any:
    """Return a function that sets a field of the frozen *value* while it is being made."""
    names = {field.name for field in fields(value)}

    def put(name: str, new: object) -> None:
        assert name in names
        object.__setattr__(value, name, new)

    return put
